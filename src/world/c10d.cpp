// libtorch's c10d (a TCP store for the meeting, gloo for the messages) behind C functions. Each returns 0, or 1 with the
// first line of what went wrong in `error`; no exception leaves this file.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <vector>

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace {

using Milliseconds = std::chrono::milliseconds;
using StorePtr = c10::intrusive_ptr<c10d::Store>;
using GlooPtr = c10::intrusive_ptr<c10d::ProcessGroupGloo>;

struct Text {
    char* data;
    size_t size;

    void set(const char* what) const {
        const size_t line = std::strcspn(what, "\n");
        const size_t length = std::min(line, size - 1);
        std::memcpy(data, what, length);
        data[length] = '\0';
    }
};

template <class Work>
int guarded(Text error, const Work& work) noexcept {
    try {
        work();
        return 0;
    } catch (const std::exception& e) {
        // libtorch's own type is not named: the launcher, which is linked without libtorch, would need it.
        error.set(e.what());
    } catch (...) {
        error.set("an unknown error of libtorch");
    }
    return 1;
}

std::vector<uint8_t> bytes_of(const char* text) {
    return {text, text + std::strlen(text)};
}

} // namespace

extern "C" {

struct MqatStore {
    StorePtr store;
};

struct MqatGroup {
    GlooPtr gloo;
};

int mqat_store_open(const char* host, uint16_t port, bool is_server, const char* prefix, int64_t timeout_ms, MqatStore** out,
                    char* error, size_t size) {
    return guarded({error, size}, [&] {
        // c10d logs each attempt with its stack; what matters is in the error.
        if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
            FLAGS_caffe2_log_level = 3; // fatal errors alone
        }
        c10d::TCPStoreOptions options;
        options.port = port;
        options.isServer = is_server;
        // Who is there is told by keys (`wait_for_all` in mod.rs), which can name who is missing.
        options.waitWorkers = false;
        options.timeout = Milliseconds(timeout_ms);
        options.multiTenant = true;
        auto tcp = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
        *out = new MqatStore{c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(tcp))};
    });
}

void mqat_store_close(MqatStore* store) {
    char ignored[8];
    guarded({ignored, sizeof ignored}, [&] { delete store; });
}

int mqat_store_set(MqatStore* store, const char* key, const char* value, char* error, size_t size) {
    return guarded({error, size}, [&] { store->store->set(key, bytes_of(value)); });
}

int mqat_store_add(MqatStore* store, const char* key, int64_t amount, int64_t* sum, char* error, size_t size) {
    return guarded({error, size}, [&] { *sum = store->store->add(key, amount); });
}

int mqat_store_has(MqatStore* store, const char* key, bool* out, char* error, size_t size) {
    return guarded({error, size}, [&] { *out = store->store->check({key}); });
}

// Waits for the key; its value is cut to `value_size`.
int mqat_store_get(MqatStore* store, const char* key, int64_t timeout_ms, char* value, size_t value_size, char* error,
                   size_t size) {
    return guarded({error, size}, [&] {
        store->store->wait({key}, Milliseconds(timeout_ms));
        const std::vector<uint8_t> found = store->store->get(key);
        const size_t length = std::min(found.size(), value_size - 1);
        std::memcpy(value, found.data(), length);
        value[length] = '\0';
    });
}

int mqat_group_open(MqatStore* store, int rank, int world, int64_t timeout_ms, MqatGroup** out, char* error, size_t size) {
    return guarded({error, size}, [&] {
        auto prefixed = c10::make_intrusive<c10d::PrefixStore>("gloo", store->store);
        auto options = c10d::ProcessGroupGloo::Options::create_default(Milliseconds(timeout_ms));
        auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(prefixed, rank, world, options);
        *out = new MqatGroup{std::move(gloo)};
    });
}

void mqat_group_close(MqatGroup* group) {
    char ignored[8];
    guarded({ignored, sizeof ignored}, [&] { delete group; });
}

// Sums over the processes, or takes the largest, in place. The tensor is on the CPU and contiguous.
int mqat_all_reduce(MqatGroup* group, const at::Tensor* tensor, bool largest, char* error, size_t size) {
    return guarded({error, size}, [&] {
        std::vector<at::Tensor> tensors{*tensor};
        c10d::AllreduceOptions options;
        options.reduceOp = largest ? c10d::ReduceOp::MAX : c10d::ReduceOp::SUM;
        group->gloo->allreduce(tensors, options)->wait();
    });
}

// From the first process to all, in place. The tensor is on the CPU and contiguous.
int mqat_broadcast(MqatGroup* group, const at::Tensor* tensor, char* error, size_t size) {
    return guarded({error, size}, [&] {
        std::vector<at::Tensor> tensors{*tensor};
        group->gloo->broadcast(tensors, c10d::BroadcastOptions())->wait();
    });
}

// The `own` of each process, one after the other; `all` has so many times its length.
int mqat_all_gather(MqatGroup* group, const at::Tensor* own, const at::Tensor* all, char* error, size_t size) {
    return guarded({error, size}, [&] {
        at::Tensor from = *own, to = *all;
        group->gloo->_allgather_base(to, from, c10d::AllgatherOptions())->wait();
    });
}

} // extern "C"
