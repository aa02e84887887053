#pragma once
#include <chrono>
#include <memory>

namespace gloo {
namespace transport {
class Device;
class UnboundBuffer;
} // namespace transport

class Context {
public:
    Context() = delete;
    void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
