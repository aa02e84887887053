//! Functions of libtorch that tch does not have, by the C++ of `lists.cpp`: operators over lists of tensors, which take one
//! launch on a GPU where a loop takes one a tensor; copies to a GPU that nobody waits for; how CUDA computes.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;

use tch::{Device, TchError, Tensor};
use torch_sys::C_tensor;

/// Room for a message.
const TEXT: usize = 2048;

type List = *const *const C_tensor;

unsafe extern "C" {
    fn mqat_norm(
        tensors: List,
        n: usize,
        out: *mut *mut C_tensor,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_scale(tensors: List, n: usize, factor: f64, error: *mut c_char, size: usize) -> c_int;
    fn mqat_clamp_min(
        tensors: List,
        n: usize,
        least: f64,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_lerp(
        tensors: List,
        ends: List,
        n: usize,
        weight: f64,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_copy(tensors: List, from: List, n: usize, error: *mut c_char, size: usize) -> c_int;
    fn mqat_sgd(
        params: List,
        grads: List,
        momenta: List,
        n: usize,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: bool,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_upload(
        tensor: *const C_tensor,
        index: c_int,
        out: *mut *mut C_tensor,
        error: *mut c_char,
        size: usize,
    ) -> c_int;
    fn mqat_set_cuda(tf32: bool, deterministic: bool, error: *mut c_char, size: usize) -> c_int;
}

type Result<T> = std::result::Result<T, TchError>;

/// Calls a function that returns 0, or 1 with a message in the buffer.
fn call(work: impl FnOnce(*mut c_char, usize) -> c_int) -> Result<()> {
    let mut text: [c_char; TEXT] = [0; TEXT];
    match work(text.as_mut_ptr(), TEXT) {
        0 => Ok(()),
        _ => {
            // SAFETY: the buffer was zeroed, and C++ ends what it writes there with a zero.
            let message = unsafe { CStr::from_ptr(text.as_ptr()) };
            Err(TchError::Torch(message.to_string_lossy().into_owned()))
        }
    }
}

/// Tensors that live as long as the list.
struct Pointers(Vec<*const C_tensor>);

impl Pointers {
    fn of(tensors: &[Tensor]) -> Self {
        Self(tensors.iter().map(Tensor::as_ptr).collect())
    }

    fn list(&self) -> List {
        self.0.as_ptr()
    }
}

/// Takes a tensor over that C++ has made.
fn taken(out: *mut C_tensor) -> Result<Tensor> {
    if out.is_null() {
        return Err(TchError::Torch("libtorch made no tensor".to_owned()));
    }
    // SAFETY: C++ made it for us with `new`, as tch's own functions do.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// The Euclidean norm over the numbers of all tensors, a scalar on their device. At least one tensor.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn norm(tensors: &[Tensor]) -> Result<Tensor> {
    let (all, mut out) = (Pointers::of(tensors), null_mut());
    // SAFETY: the list has that many tensors, which live during the call; so it is in the functions below.
    call(|error, size| unsafe { mqat_norm(all.list(), tensors.len(), &mut out, error, size) })?;
    taken(out)
}

/// Multiplies all tensors by a factor, in place.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn scale(tensors: &[Tensor], factor: f64) -> Result<()> {
    let all = Pointers::of(tensors);
    // SAFETY: as in `norm`.
    call(|error, size| unsafe { mqat_scale(all.list(), tensors.len(), factor, error, size) })
}

/// Raises the numbers of all tensors that are below `least` to it, in place.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn clamp_min(tensors: &[Tensor], least: f64) -> Result<()> {
    let all = Pointers::of(tensors);
    // SAFETY: as in `norm`.
    call(|error, size| unsafe { mqat_clamp_min(all.list(), tensors.len(), least, error, size) })
}

/// Moves each tensor by the fraction `weight` of the way to its end, in place.
///
/// # Errors
/// Those of libtorch, and of lists of other lengths.
pub(crate) fn lerp(tensors: &[Tensor], ends: &[Tensor], weight: f64) -> Result<()> {
    let (all, ends) = (Pointers::of(tensors), same_length(tensors, ends)?);
    // SAFETY: as in `norm`; both lists have the same length.
    call(|error, size| unsafe {
        mqat_lerp(all.list(), ends.list(), tensors.len(), weight, error, size)
    })
}

/// Copies each tensor of `from` into that of its place.
///
/// # Errors
/// Those of libtorch, and of lists of other lengths.
pub(crate) fn copy(tensors: &[Tensor], from: &[Tensor]) -> Result<()> {
    let (all, from) = (Pointers::of(tensors), same_length(tensors, from)?);
    // SAFETY: as in `lerp`.
    call(|error, size| unsafe { mqat_copy(all.list(), from.list(), tensors.len(), error, size) })
}

/// A rule of stochastic gradient descent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SgdRule {
    pub lr: f64,
    pub momentum: f64,
    pub weight_decay: f64,
    pub nesterov: bool,
}

/// Updates parameters and momenta in one operator: `d = grad + weight_decay p; m = momentum m + d;
/// p -= lr (nesterov ? d + momentum m : m)`. Tensors of one place have the same shape and layout, and all are of one kind.
///
/// # Errors
/// Those of libtorch, and of lists of other lengths.
pub(crate) fn sgd(
    params: &[Tensor],
    grads: &[Tensor],
    momenta: &[Tensor],
    rule: SgdRule,
) -> Result<()> {
    let SgdRule { lr, momentum, weight_decay, nesterov } = rule;
    let (all, n) = (Pointers::of(params), params.len());
    let (grads, momenta) = (same_length(params, grads)?, same_length(params, momenta)?);
    // SAFETY: as in `lerp`.
    call(|error, size| unsafe {
        let lists = (all.list(), grads.list(), momenta.list());
        mqat_sgd(lists.0, lists.1, lists.2, n, lr, momentum, weight_decay, nesterov, error, size)
    })
}

fn same_length(tensors: &[Tensor], others: &[Tensor]) -> Result<Pointers> {
    if tensors.len() != others.len() {
        let text = format!("lists of {} and {} tensors", tensors.len(), others.len());
        return Err(TchError::Torch(text));
    }
    Ok(Pointers::of(others))
}

/// A tensor of the host on a device. A copy to a GPU goes through page-locked memory: it is queued, and the host goes on.
///
/// # Panics
/// On errors of libtorch, as the operators of tch do.
pub(crate) fn upload(host: &Tensor, device: Device) -> Tensor {
    let Device::Cuda(index) = device else { return host.to_device(device) };
    let mut out = null_mut();
    // SAFETY: the tensor lives during the call; libtorch keeps the page-locked memory until it was copied.
    let done = call(|error, size| unsafe {
        mqat_upload(host.as_ptr(), index as c_int, &mut out, error, size)
    });
    done.and_then(|()| taken(out)).unwrap()
}

/// How CUDA computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CudaMode {
    /// Products of convolutions and matrices are rounded to TF32: 10 bits behind the point.
    pub tf32: bool,
    /// The same kernels every time, none that adds in an order of its own.
    pub deterministic: bool,
}

/// Sets how CUDA computes from now on, in all threads.
///
/// # Errors
/// Those of libtorch.
pub(crate) fn set_cuda_mode(mode: CudaMode) -> Result<()> {
    // SAFETY: only flags are set.
    call(|error, size| unsafe { mqat_set_cuda(mode.tf32, mode.deterministic, error, size) })
}

#[cfg(test)]
mod tests {
    use tch::Kind;

    use super::*;

    fn tensors(phase: f64) -> Vec<Tensor> {
        let of = |n: i64| (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.7 + phase).sin();
        [5, 1, 12].into_iter().map(of).collect()
    }

    fn values(all: &[Tensor]) -> Vec<f32> {
        Vec::try_from(Tensor::cat(all, 0)).unwrap()
    }

    #[track_caller]
    fn assert_close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        let close = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(found.iter().zip(expected).all(close), "{found:?} {expected:?}");
    }

    #[test]
    fn a_list_is_one_vector() {
        let all = tensors(0.3);
        let expected = Tensor::cat(&all, 0).norm().double_value(&[]);
        assert!((norm(&all).unwrap().double_value(&[]) - expected).abs() < 1e-6);
        let before = values(&all);
        scale(&all, -2.0).unwrap();
        assert_close(&values(&all), &before.iter().map(|x| x * -2.0).collect::<Vec<_>>());
        clamp_min(&all, 0.5).unwrap();
        assert!(values(&all).iter().all(|&x| x >= 0.5));
        copy(&all, &tensors(1.0)).unwrap();
        lerp(&all, &tensors(2.0), 0.25).unwrap();
        let (from, to) = (values(&tensors(1.0)), values(&tensors(2.0)));
        let between: Vec<f32> = from.iter().zip(&to).map(|(a, b)| a + 0.25 * (b - a)).collect();
        assert_close(&values(&all), &between);
    }

    #[test]
    fn an_update_is_that_of_the_formula() {
        for nesterov in [false, true] {
            let rule = SgdRule { lr: 0.1, momentum: 0.9, weight_decay: 0.01, nesterov };
            let (params, grads, momenta) = (tensors(0.0), tensors(1.0), tensors(2.0));
            let (p, g, m) = (values(&params), values(&grads), values(&momenta));
            sgd(&params, &grads, &momenta, rule).unwrap();
            let d: Vec<f32> = p.iter().zip(&g).map(|(p, g)| g + 0.01 * p).collect();
            let m: Vec<f32> = m.iter().zip(&d).map(|(m, d)| 0.9 * m + d).collect();
            let step = |(m, d): (&f32, &f32)| if nesterov { d + 0.9 * m } else { *m };
            let p: Vec<f32> =
                p.iter().zip(m.iter().zip(&d)).map(|(p, md)| p - 0.1 * step(md)).collect();
            assert_close(&values(&momenta), &m);
            assert_close(&values(&params), &p);
        }
    }

    #[test]
    fn errors_have_one_line() {
        let (three, one) = (tensors(0.0), [Tensor::zeros([7], (Kind::Float, Device::Cpu))]);
        let text = lerp(&three, &one, 0.5).unwrap_err().to_string();
        assert!(text.contains("lists of 3 and 1 tensors"), "{text}");
        let text = copy(&three[..1], &one).unwrap_err().to_string();
        assert!(!text.contains('\n') && text.contains('7'), "{text}");
    }

    #[test]
    fn the_host_itself_needs_no_copy() {
        let x = Tensor::from_slice(&[1.0f32, 2.0]);
        assert_eq!(upload(&x, Device::Cpu).data_ptr(), x.data_ptr());
    }
}
