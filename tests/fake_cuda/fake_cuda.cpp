// A stand-in for libtorch_cuda.so, so that the unmodified program runs `--device cuda` where there is no GPU.
//
// Memory of the "device" is one file in memory that is mapped twice: tensors point into a mapping that nobody may read or
// write, so that a host access is a segmentation fault, and the CPU's kernels work on the other one. An operator that meets a
// tensor of the CPU with a dimension throws, as on a GPU. Operators, copies, and waits of the host for the device are counted,
// copies and waits with the places in the program that they come from.
//
// It proves where tensors are, in which order libraries are loaded, and how often the host waits; nothing about CUDA's own
// kernels, streams and numbers.
//   FAKE_CUDA_STATS    where the counts go at the end of the process
//   FAKE_CUDA_MEMORY   bytes of the device
//   FAKE_CUDA_DEVICES  how many devices there are, 0 or 1

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include <execinfo.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <ATen/core/Tensor.h>
#include <ATen/EmptyTensor.h>
#include <ATen/InferSize.h>
#include <ATen/TensorUtils.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

namespace {
using namespace at;

// ---- counts ----

std::mutex counting;
std::map<std::string, long> operators, events, sites;
size_t peak_bytes = 0;
uintptr_t program = 0, program_end = 0;

// The program itself comes first.
int find_program(dl_phdr_info* info, size_t, void*) {
    program = info->dlpi_addr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto& part = info->dlpi_phdr[i];
        if (part.p_type == PT_LOAD) program_end = std::max<uintptr_t>(program_end, program + part.p_vaddr + part.p_memsz);
    }
    return 1;
}

void count(const std::string& name) {
    std::lock_guard<std::mutex> lock(counting);
    operators[name]++;
}

// Counts an event with the places of the program that led to it, the innermost first.
void event(const std::string& name) {
    void* frames[96];
    const int n = backtrace(frames, 96);
    std::string places;
    for (int i = 0, shown = 0; i < n && shown < 16; i++) {
        const auto at = reinterpret_cast<uintptr_t>(frames[i]);
        if (at < program || at >= program_end) continue;
        char text[32];
        snprintf(text, sizeof text, " %lx", at - program - 1);
        places += text;
        shown++;
    }
    std::lock_guard<std::mutex> lock(counting);
    events[name]++;
    sites[name + " |" + places]++;
}

void write_counts() {
    const char* path = getenv("FAKE_CUDA_STATS");
    if (!path) return;
    std::lock_guard<std::mutex> lock(counting);
    std::ofstream out(path);
    out << "peak " << peak_bytes << "\n";
    for (auto& [name, n] : events) out << "event " << n << " " << name << "\n";
    for (auto& [name, n] : operators) out << "operator " << n << " " << name << "\n";
    for (auto& [name, n] : sites) out << "site " << n << " " << name << "\n";
}

struct AtExit {
    AtExit() {
        dl_iterate_phdr(find_program, nullptr);
        atexit(write_counts);
    }
} at_exit;

// ---- memory ----

size_t number_of(const char* variable, size_t otherwise) {
    const char* text = getenv(variable);
    return text ? strtoull(text, nullptr, 10) : otherwise;
}

struct Memory {
    std::mutex mutex;
    size_t size = 0, top = 4096, live = 0;
    char *host = nullptr, *device = nullptr;
    std::map<size_t, std::vector<size_t>> free_blocks; // by size: offsets
    std::map<size_t, size_t> sizes;                    // by offset

    void open() {
        if (host) return;
        size = number_of("FAKE_CUDA_MEMORY", size_t(16) << 30);
        const int file = memfd_create("fake_cuda", 0);
        TORCH_CHECK(file >= 0 && ftruncate(file, off_t(size)) == 0, "no memory for the fake device");
        const int flags = MAP_SHARED | MAP_NORESERVE;
        host = static_cast<char*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, file, 0));
        device = static_cast<char*>(mmap(nullptr, size, PROT_NONE, flags, file, 0));
        TORCH_CHECK(host != MAP_FAILED && device != MAP_FAILED, "no memory for the fake device");
    }

    void* allocate(size_t wanted) {
        std::lock_guard<std::mutex> lock(mutex);
        open();
        const size_t n = (std::max<size_t>(wanted, 1) + 511) / 512 * 512;
        auto& list = free_blocks[n];
        size_t at = top;
        if (!list.empty()) {
            at = list.back();
            list.pop_back();
        } else {
            TORCH_CHECK_WITH(OutOfMemoryError, top + n <= size, "CUDA out of memory. Tried to allocate ", wanted,
                             " bytes. GPU 0 has a total capacity of ", size, " bytes");
            top += n;
        }
        sizes[at] = n;
        live += n;
        peak_bytes = std::max(peak_bytes, live);
        memset(host + at, 0xcb, std::min<size_t>(n, 4096)); // what was there must not look like numbers
        return device + at;
    }

    void release(void* pointer) {
        if (!pointer) return;
        std::lock_guard<std::mutex> lock(mutex);
        const size_t at = static_cast<char*>(pointer) - device, n = sizes[at];
        live -= n;
        free_blocks[n].push_back(at);
    }

    void* on_host(const void* pointer) const {
        if (!pointer) return nullptr;
        auto* p = static_cast<const char*>(pointer);
        TORCH_CHECK(p >= device && p < device + size, "a CUDA tensor with a pointer that is not the device's");
        return host + (p - device);
    }
} memory;

void release(void* pointer) { memory.release(pointer); }

struct DeviceAllocator final : Allocator {
    DataPtr allocate(size_t n) override {
        void* p = n ? memory.allocate(n) : nullptr;
        return {p, p, &release, Device(kCUDA, 0)};
    }
    DeleterFnPtr raw_deleter() const override { return &release; }
    void copy_data(void* to, const void* from, size_t n) const override {
        memcpy(memory.on_host(to), memory.on_host(from), n);
    }
} device_allocator;

// Page-locked memory of the host: copies from it need not wait.
std::mutex pinning;
std::map<const char*, size_t> pinned;

void release_pinned(void* pointer) {
    std::lock_guard<std::mutex> lock(pinning);
    pinned.erase(static_cast<const char*>(pointer));
    free(pointer);
}

bool is_pinned(const void* pointer) {
    std::lock_guard<std::mutex> lock(pinning);
    auto after = pinned.upper_bound(static_cast<const char*>(pointer));
    if (after == pinned.begin()) return false;
    auto& [begin, size] = *std::prev(after);
    return static_cast<const char*>(pointer) < begin + size;
}

struct PinnedAllocator final : Allocator {
    DataPtr allocate(size_t n) override {
        if (!n) return {nullptr, Device(kCPU)};
        void* p = aligned_alloc(64, (n + 63) / 64 * 64);
        std::lock_guard<std::mutex> lock(pinning);
        pinned[static_cast<const char*>(p)] = n;
        return {p, p, &release_pinned, Device(kCPU)};
    }
    DeleterFnPtr raw_deleter() const override { return &release_pinned; }
    void copy_data(void* to, const void* from, size_t n) const override { memcpy(to, from, n); }
} pinned_allocator;

// ---- tensors on either side ----

bool is_device(const Tensor& t) { return t.defined() && t.device().type() == kCUDA; }

// The same memory as a tensor of the CPU.
Tensor cpu_alias(const Tensor& t) {
    auto* from = t.storage().unsafeGetStorageImpl();
    DataPtr data(memory.on_host(from->data()), Device(kCPU));
    Storage storage(Storage::use_byte_size_t(), from->nbytes(), std::move(data), GetAllocator(kCPU), true);
    auto alias = at::detail::make_tensor<TensorImpl>(std::move(storage), DispatchKeySet(DispatchKey::CPU), t.dtype());
    alias.unsafeGetTensorImpl()->set_storage_offset(t.storage_offset());
    alias.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides());
    return alias;
}

Tensor to_device(const Tensor& t) {
    Tensor out(at::detail::empty_strided_generic(t.sizes(), t.strides(), &device_allocator, DispatchKeySet(DispatchKey::CUDA),
                                             t.scalar_type()));
    if (t.numel()) {
        AutoDispatchBelowADInplaceOrView guard;
        cpu_alias(out).copy_(t);
    }
    return out;
}

// Operators whose CUDA form takes indices of the CPU.
const std::set<std::string> MAY_MIX = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"};

// Runs an operator by the CPU's kernels on the aliases of its tensors.
void by_cpu(const OperatorHandle& op, torch::jit::Stack* stack) {
    const auto& schema = op.schema();
    const auto name = toString(schema.operator_name());
    count(name);
    std::vector<std::pair<TensorImpl*, Tensor>> originals;
    std::vector<Tensor> keep;
    auto on_cpu = [&](const Tensor& t) -> Tensor {
        if (!t.defined()) return t;
        if (is_device(t)) {
            auto alias = cpu_alias(t);
            keep.push_back(alias);
            originals.emplace_back(alias.unsafeGetTensorImpl(), t);
            return alias;
        }
        if (t.device().type() == kCPU && t.dim() > 0 && !MAY_MIX.count(name)) {
            event("MIXED " + name);
            TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu: ",
                        name, ", shape ", t.sizes());
        }
        return t;
    };
    for (size_t i = stack->size() - schema.arguments().size(); i < stack->size(); i++) {
        auto& value = (*stack)[i];
        if (value.isTensor()) {
            value = on_cpu(value.toTensor());
        } else if (value.isTensorList()) {
            std::vector<Tensor> list;
            for (const Tensor& t : value.toTensorVector()) list.push_back(on_cpu(t));
            value = c10::List<Tensor>(list);
        } else if (value.isOptionalTensorList()) {
            c10::List<std::optional<Tensor>> list;
            for (const std::optional<Tensor>& t : value.toOptionalTensorVector())
                list.push_back(t ? std::optional<Tensor>(on_cpu(*t)) : std::nullopt);
            value = list;
        } else if (value.isDevice()) {
            value = Device(kCPU);
        }
    }
    op.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack);
    // What was made larger than its memory has other memory now.
    for (auto& [impl, original] : originals) {
        Tensor alias(c10::intrusive_ptr<TensorImpl, UndefinedTensorImpl>::reclaim_copy(impl));
        if (alias.numel() == 0 || alias.storage().data() == memory.on_host(original.storage().data())) continue;
        Tensor fresh = to_device(alias);
        auto* to = original.unsafeGetTensorImpl();
        to->set_storage_keep_dtype(fresh.storage());
        to->set_storage_offset(0);
        to->set_sizes_and_strides(fresh.sizes(), fresh.strides());
    }
    auto on_device = [&](const Tensor& t) -> Tensor {
        if (!t.defined()) return t;
        for (auto& [impl, original] : originals) {
            if (impl != t.unsafeGetTensorImpl()) continue;
            if (t.sizes() != original.sizes() || t.strides() != original.strides())
                original.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides());
            return original;
        }
        return t.device().type() == kCPU ? to_device(t) : t;
    };
    for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
        auto& value = (*stack)[i];
        if (value.isTensor()) {
            value = on_device(value.toTensor());
        } else if (value.isTensorList()) {
            std::vector<Tensor> list;
            for (const Tensor& t : value.toTensorVector()) list.push_back(on_device(t));
            value = c10::List<Tensor>(list);
        }
    }
}

// Operators whose CUDA form reads something on the host.
void waiting(const OperatorHandle& op, torch::jit::Stack* stack) {
    event("WAIT in " + toString(op.schema().operator_name()));
    by_cpu(op, stack);
}

// ---- operators of their own ----

Tensor empty(IntArrayRef size, std::optional<ScalarType> kind, std::optional<Layout>, std::optional<Device>,
             std::optional<bool>, std::optional<MemoryFormat> format) {
    return Tensor(at::detail::empty_generic(size, &device_allocator, DispatchKeySet(DispatchKey::CUDA), kind.value_or(kFloat), format));
}

Tensor empty_strided(IntArrayRef size, IntArrayRef stride, std::optional<ScalarType> kind, std::optional<Layout>,
                     std::optional<Device>, std::optional<bool>) {
    return Tensor(at::detail::empty_strided_generic(size, stride, &device_allocator, DispatchKeySet(DispatchKey::CUDA),
                                                kind.value_or(kFloat)));
}

Tensor view_of(const Tensor& self, IntArrayRef size, IntArrayRef stride, int64_t offset) {
    auto view = at::detail::make_tensor<TensorImpl>(TensorImpl::VIEW, Storage(self.storage()), self.key_set(), self.dtype());
    view.unsafeGetTensorImpl()->set_storage_offset(offset);
    view.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
    return view;
}

Tensor as_strided(const Tensor& self, IntArrayRef size, IntArrayRef stride, std::optional<int64_t> offset) {
    return view_of(self, size, stride, offset.value_or(self.storage_offset()));
}

Tensor reshape_alias(const Tensor& self, IntArrayRef size, IntArrayRef stride) {
    return view_of(self, size, stride, self.storage_offset());
}

Tensor view(const Tensor& self, IntArrayRef size) {
    DimVector shape = infer_size_dv(size, self.numel());
    auto stride = at::detail::computeStride(self.sizes(), self.strides(), shape);
    TORCH_CHECK(stride.has_value(), "view size is not compatible with input tensor's size and stride");
    return view_of(self, shape, *stride, self.storage_offset());
}

Scalar item(const Tensor& self) {
    event("WAIT item");
    AutoDispatchBelowADInplaceOrView guard;
    return _local_scalar_dense(cpu_alias(self));
}

Tensor& copy_(Tensor& self, const Tensor& from, bool non_blocking) {
    AutoDispatchBelowADInplaceOrView guard;
    const bool to_is = is_device(self), from_is = is_device(from);
    if (to_is && from_is) {
        count("copy_ within the device");
    } else {
        const Tensor& host = to_is ? from : self;
        // Pageable memory is copied by the host, after all that was queued before.
        const bool waits = host.numel() > 0 && !(non_blocking && is_pinned(host.const_data_ptr()));
        event(std::string(waits ? "WAIT " : "") + (to_is ? "copy to the device" : "copy to the host"));
    }
    (to_is ? cpu_alias(self) : self).copy_(from_is ? cpu_alias(from) : from);
    return self;
}

const Tensor& resize_(const Tensor& self, IntArrayRef size, std::optional<MemoryFormat>) {
    if (self.sizes() == size) return self;
    auto fresh = empty(size, self.scalar_type(), {}, {}, {}, {});
    auto* impl = self.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(fresh.storage());
    impl->set_storage_offset(0);
    impl->set_sizes_contiguous(size);
    return self;
}

// ---- the device ----

DeviceIndex num_devices() { return static_cast<DeviceIndex>(number_of("FAKE_CUDA_DEVICES", 1)); }

thread_local DeviceIndex current = 0;

struct Guard final : c10::impl::DeviceGuardImplInterface {
    DeviceType type() const override { return kCUDA; }
    Device exchangeDevice(Device d) const override {
        Device before(kCUDA, current);
        setDevice(d);
        return before;
    }
    Device getDevice() const override { return Device(kCUDA, current); }
    void setDevice(Device d) const override {
        if (d.index() >= 0) current = d.index();
    }
    void uncheckedSetDevice(Device d) const noexcept override { setDevice(d); }
    Stream getStream(Device d) const override {
        return Stream(Stream::DEFAULT, Device(kCUDA, d.index() < 0 ? current : d.index()));
    }
    Stream getDefaultStream(Device d) const override { return getStream(d); }
    Stream getStreamFromGlobalPool(Device d, bool) const override { return getStream(d); }
    Stream exchangeStream(Stream s) const override { return s; }
    DeviceIndex deviceCount() const noexcept override { return num_devices(); }
    void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
    void block(void*, const Stream&) const override {}
    bool queryEvent(void*) const override { return true; }
    bool queryStream(const Stream&) const override { return true; }
    void synchronizeStream(const Stream&) const override { event("WAIT for a stream"); }
    void synchronizeDevice(const DeviceIndex) const override { event("WAIT for the device"); }
};

// Found by this name.
struct CUDAHooks : CUDAHooksInterface {
    CUDAHooks(CUDAHooksArgs) {}
    void init() const override {}
    bool hasCUDA() const override { return true; }
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return num_devices() > 0; }
    bool hasPrimaryContext(DeviceIndex) const override { return true; }
    DeviceIndex deviceCount() const override { return num_devices(); }
    DeviceIndex current_device() const override { return 0; }
    DeviceIndex getCurrentDevice() const override { return 0; }
    int getNumGPUs() const override { return num_devices(); }
    bool isPinnedPtr(const void* pointer) const override { return is_pinned(pointer); }
    Device getDeviceFromPtr(void*) const override { return Device(kCUDA, 0); }
    Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
    Allocator* getCUDADeviceAllocator() const override { return &device_allocator; }
    void deviceSynchronize(DeviceIndex) const override { event("WAIT for the device"); }
};

} // namespace

namespace c10::impl {
C10_REGISTER_GUARD_IMPL(CUDA, Guard)
}

namespace at {
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);
} // namespace at

namespace {

struct Register {
    Register() { c10::SetAllocator(kCUDA, &device_allocator); }
} at_load;

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
    m.impl("empty.memory_format", TORCH_FN(empty));
    m.impl("empty_strided", TORCH_FN(empty_strided));
    m.impl("as_strided", TORCH_FN(as_strided));
    m.impl("view", TORCH_FN(view));
    m.impl("_reshape_alias", TORCH_FN(reshape_alias));
    m.impl("_local_scalar_dense", TORCH_FN(item));
    m.impl("copy_", TORCH_FN(copy_));
    m.impl("resize_", TORCH_FN(resize_));
    // Without this its composite form would run, which is not what a GPU does. So for the operators over lists.
    for (const char* name : {"native_group_norm", "_foreach_norm.Scalar", "_foreach_mul_.Scalar", "_foreach_add_.List",
                             "_foreach_add_.Scalar", "_foreach_lerp_.Scalar", "_foreach_clamp_min_.Scalar",
                             "_foreach_mul_.List", "_foreach_addcmul_.Scalar"})
        m.impl(name, torch::CppFunction::makeFromBoxedFunction<&by_cpu>());
    for (const char* name : {"nonzero", "masked_select", "bincount", "equal", "unique_consecutive", "_unique2",
                             "_fake_quantize_learnable_per_tensor_affine",
                             "_fake_quantize_learnable_per_tensor_affine_backward",
                             "_fake_quantize_learnable_per_channel_affine"})
        m.impl(name, torch::CppFunction::makeFromBoxedFunction<&waiting>());
}

} // namespace
