// Functions of libtorch that tch does not have, as C functions. Each returns 0, or 1 with the first line of what went wrong in
// `error`; no exception leaves this file. Lists are `n` pointers to tensors.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

namespace {

template <class Work>
int guarded(char* error, size_t size, const Work& work) noexcept {
    const char* what = "an unknown error of libtorch";
    try {
        work();
        return 0;
    } catch (const std::exception& e) {
        // libtorch's own type is not named: the launcher, which is linked without libtorch, would need it.
        what = e.what();
        const size_t length = std::min(std::strcspn(what, "\n"), size - 1);
        std::memcpy(error, what, length);
        error[length] = '\0';
        return 1;
    } catch (...) {
        const size_t length = std::min(std::strlen(what), size - 1);
        std::memcpy(error, what, length);
        error[length] = '\0';
        return 1;
    }
}

using List = const at::Tensor* const*;

std::vector<at::Tensor> listed(List tensors, size_t n) {
    std::vector<at::Tensor> all;
    all.reserve(n);
    for (size_t i = 0; i < n; i++) all.push_back(*tensors[i]);
    return all;
}

} // namespace

extern "C" {

// The norm over all tensors, a scalar on their device.
int mqat_norm(List tensors, size_t n, at::Tensor** out, char* error, size_t size) {
    return guarded(error, size, [&] {
        const auto norms = at::_foreach_norm(listed(tensors, n), 2);
        *out = new at::Tensor(at::linalg_vector_norm(at::stack(norms), 2));
    });
}

int mqat_scale(List tensors, size_t n, double factor, char* error, size_t size) {
    return guarded(error, size, [&] { at::_foreach_mul_(listed(tensors, n), factor); });
}

int mqat_clamp_min(List tensors, size_t n, double least, char* error, size_t size) {
    return guarded(error, size, [&] { at::_foreach_clamp_min_(listed(tensors, n), least); });
}

// tensors += weight (ends - tensors)
int mqat_lerp(List tensors, List ends, size_t n, double weight, char* error, size_t size) {
    return guarded(error, size, [&] { at::_foreach_lerp_(listed(tensors, n), listed(ends, n), weight); });
}

int mqat_copy(List tensors, List from, size_t n, char* error, size_t size) {
    return guarded(error, size, [&] { at::_foreach_copy_(listed(tensors, n), listed(from, n), /*non_blocking=*/true); });
}

// d = grad + decay p; m = momentum m + d; p -= lr (nesterov ? d + momentum m : m)
int mqat_sgd(List params, List grads, List momenta, size_t n, double lr, double momentum, double weight_decay, bool nesterov,
             char* error, size_t size) {
    return guarded(error, size, [&] {
        at::_fused_sgd_(listed(params, n), listed(grads, n), listed(momenta, n), weight_decay, momentum, lr, /*dampening=*/0,
                        nesterov, /*maximize=*/false, /*is_first_step=*/false);
    });
}

// A tensor of the host on GPU `index`, through page-locked memory: the host does not wait for it.
int mqat_upload(const at::Tensor* tensor, int index, at::Tensor** out, char* error, size_t size) {
    return guarded(error, size, [&] {
        const at::Tensor pinned = tensor->is_pinned() ? *tensor : tensor->pin_memory();
        const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(index));
        *out = new at::Tensor(pinned.to(device, pinned.scalar_type(), /*non_blocking=*/true));
    });
}

// How CUDA computes: whether products of convolutions and matrices may be rounded to TF32, and whether the same kernels are
// chosen every time.
int mqat_set_cuda(bool tf32, bool deterministic, char* error, size_t size) {
    return guarded(error, size, [&] {
        auto& context = at::globalContext();
        context.setAllowTF32CuDNN(tf32);
        context.setAllowTF32CuBLAS(tf32);
        context.setDeterministicCuDNN(deterministic);
        context.setBenchmarkCuDNN(false);
        // Operators without a deterministic form are told, not refused.
        context.setDeterministicAlgorithms(deterministic, /*warn_only=*/true);
        context.setDeterministicFillUninitializedMemory(false);
    });
}

} // extern "C"
