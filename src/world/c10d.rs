//! The functions of `c10d.cpp`, with Rust's errors.

use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{NonNull, null_mut};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use tch::{Device, Tensor};

/// Room for a message of libtorch, and for a value of the store.
const TEXT: usize = 2048;

#[repr(C)]
struct RawStore([u8; 0]);

#[repr(C)]
struct RawGroup([u8; 0]);

/// An `at::Tensor`, as tch points to it.
type RawTensor = torch_sys::C_tensor;

unsafe extern "C" {
    fn mqat_store_open(
        host: *const c_char,
        port: u16,
        is_server: bool,
        prefix: *const c_char,
        timeout_ms: i64,
        out: *mut *mut RawStore,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_store_close(store: *mut RawStore);
    fn mqat_store_set(
        store: *mut RawStore,
        key: *const c_char,
        value: *const c_char,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_store_add(
        store: *mut RawStore,
        key: *const c_char,
        amount: i64,
        sum: *mut i64,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_store_has(
        store: *mut RawStore,
        key: *const c_char,
        out: *mut bool,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_store_get(
        store: *mut RawStore,
        key: *const c_char,
        timeout_ms: i64,
        value: *mut c_char,
        value_size: usize,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_group_open(
        store: *mut RawStore,
        rank: c_int,
        world: c_int,
        timeout_ms: i64,
        out: *mut *mut RawGroup,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_group_close(group: *mut RawGroup);
    fn mqat_all_reduce(
        group: *mut RawGroup,
        tensor: *const RawTensor,
        largest: bool,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_broadcast(
        group: *mut RawGroup,
        tensor: *const RawTensor,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_all_gather(
        group: *mut RawGroup,
        own: *const RawTensor,
        all: *const RawTensor,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
}

/// Calls a function that returns 0, or 1 with a message in the buffer.
fn call(work: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<()> {
    let mut text = [0; TEXT];
    match work(text.as_mut_ptr(), TEXT) {
        0 => Ok(()),
        _ => Err(anyhow!("{}", text_of(&text))),
    }
}

fn text_of(buffer: &[c_char; TEXT]) -> String {
    // SAFETY: the buffer was zeroed, and C++ ends what it writes there with a zero.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned()
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// A meeting point of processes that keeps small texts by name, over TCP.
pub(super) struct Store(NonNull<RawStore>);

// SAFETY: libtorch's TCP store takes a lock of its own for each call.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Opens the meeting point (`is_server`), or reaches the one at `host`. Names have `prefix` before them.
    pub fn open(
        host: &str,
        port: u16,
        is_server: bool,
        prefix: &str,
        timeout: Duration,
    ) -> Result<Self> {
        let (host, prefix) = (c_string(host), c_string(prefix));
        let mut out = null_mut();
        // SAFETY: all pointers are valid during the call, which keeps none of them.
        call(|error, size| unsafe {
            mqat_store_open(
                host.as_ptr(),
                port,
                is_server,
                prefix.as_ptr(),
                milliseconds(timeout),
                &mut out,
                error,
                size,
            )
        })?;
        Ok(Self(NonNull::new(out).ok_or_else(|| anyhow!("libtorch made no store"))?))
    }

    pub fn set(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (c_string(key), c_string(value));
        // SAFETY: the store lives as long as `self`; the call copies both texts.
        call(|error, size| unsafe {
            mqat_store_set(self.0.as_ptr(), key.as_ptr(), value.as_ptr(), error, size)
        })
    }

    /// Adds to the number of that name, which begins at 0; the sum.
    pub fn add(&self, key: &str, amount: i64) -> Result<i64> {
        let (key, mut sum) = (c_string(key), 0);
        // SAFETY: as in `set`; `sum` is valid for writes.
        call(|error, size| unsafe {
            mqat_store_add(self.0.as_ptr(), key.as_ptr(), amount, &mut sum, error, size)
        })?;
        Ok(sum)
    }

    pub fn has(&self, key: &str) -> Result<bool> {
        let (key, mut has) = (c_string(key), false);
        // SAFETY: as in `set`; `has` is valid for writes.
        call(|error, size| unsafe {
            mqat_store_has(self.0.as_ptr(), key.as_ptr(), &mut has, error, size)
        })?;
        Ok(has)
    }

    /// The text of that name, once somebody has set it.
    pub fn get(&self, key: &str, timeout: Duration) -> Result<String> {
        let (key, mut value) = (c_string(key), [0; TEXT]);
        // SAFETY: as in `set`; `value` is valid for writes of `TEXT` bytes.
        call(|error, size| unsafe {
            let (timeout, out) = (milliseconds(timeout), value.as_mut_ptr());
            mqat_store_get(self.0.as_ptr(), key.as_ptr(), timeout, out, TEXT, error, size)
        })?;
        Ok(text_of(&value))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: it was made by `mqat_store_open` and is closed once.
        unsafe { mqat_store_close(self.0.as_ptr()) };
    }
}

/// The connections among all processes. Tensors must be on the CPU and contiguous, and of one shape and kind in all
/// processes: gloo ends a process whose tensor has another size, or gives wrong numbers.
pub(super) struct Group(NonNull<RawGroup>);

impl Group {
    /// Connects to the others, which do the same.
    pub fn open(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<Self> {
        let (rank, world) = (c_int::try_from(rank)?, c_int::try_from(size)?);
        let mut out = null_mut();
        // SAFETY: the group keeps its own share of the store; `out` is valid for writes.
        call(|error, size| unsafe {
            mqat_group_open(
                store.0.as_ptr(),
                rank,
                world,
                milliseconds(timeout),
                &mut out,
                error,
                size,
            )
        })?;
        Ok(Self(NonNull::new(out).ok_or_else(|| anyhow!("libtorch made no group"))?))
    }

    /// The sum over the processes, or the largest, in place.
    pub fn all_reduce(&self, tensor: &Tensor, largest: bool) -> Result<()> {
        let raw = raw(tensor)?;
        // SAFETY: `raw` points to a tensor that lives during the call; libtorch takes a share of its own.
        call(|error, size| unsafe { mqat_all_reduce(self.0.as_ptr(), raw, largest, error, size) })
    }

    /// From the first process to all, in place.
    pub fn broadcast(&self, tensor: &Tensor) -> Result<()> {
        let raw = raw(tensor)?;
        // SAFETY: as in `all_reduce`.
        call(|error, size| unsafe { mqat_broadcast(self.0.as_ptr(), raw, error, size) })
    }

    /// The `own` of every process into `all`, one after the other.
    pub fn all_gather(&self, own: &Tensor, all: &Tensor) -> Result<()> {
        let (own, all) = (raw(own)?, raw(all)?);
        // SAFETY: as in `all_reduce`.
        call(|error, size| unsafe { mqat_all_gather(self.0.as_ptr(), own, all, error, size) })
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: it was made by `mqat_group_open` and is closed once.
        unsafe { mqat_group_close(self.0.as_ptr()) };
    }
}

/// The `at::Tensor` of a tensor that gloo can send.
fn raw(tensor: &Tensor) -> Result<*const RawTensor> {
    ensure!(
        tensor.device() == Device::Cpu && tensor.is_contiguous(),
        "a tensor of shape {:?} on {:?} cannot be sent: expected a contiguous one on the CPU",
        tensor.size(),
        tensor.device()
    );
    Ok(tensor.as_ptr())
}
