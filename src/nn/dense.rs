//! Tensors of the CPU as plain slices, for work that one pass over memory does better than several operators.

use tch::{Device, Kind, Tensor};

/// Whether a tensor is on the CPU, of that kind, and without gaps: contiguous or channels-last.
pub(crate) fn is_dense(x: &Tensor, kind: Kind) -> bool {
    let channels_last = || x.dim() == 4 && x.permute([0, 2, 3, 1]).is_contiguous();
    x.device() == Device::Cpu && x.kind() == kind && (x.is_contiguous() || channels_last())
}

/// Whether equal places of two tensors hold equal entries.
pub(crate) fn same_layout(x: &Tensor, other: &Tensor) -> bool {
    other.device() == x.device() && other.size() == x.size() && other.stride() == x.stride()
}

/// The numbers of a tensor in the order of its memory.
///
/// # Panics
/// If it is not [`is_dense`] and f32.
pub(crate) fn floats(x: &Tensor) -> &[f32] {
    assert!(is_dense(x, Kind::Float), "a tensor that is no dense f32 of the CPU");
    if x.numel() == 0 {
        return &[];
    }
    // SAFETY: the tensor has numel() f32 without gaps from its data pointer on, on the CPU.
    unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<f32>(), x.numel()) }
}

/// As [`floats`], to be changed.
pub(crate) fn floats_mut(x: &mut Tensor) -> &mut [f32] {
    assert!(is_dense(x, Kind::Float), "a tensor that is no dense f32 of the CPU");
    if x.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `floats`; callers hold the only reference in use to this storage while the slice lives (weights,
    // levels, momentum and gradients have storages of their own).
    unsafe { std::slice::from_raw_parts_mut(x.data_ptr().cast::<f32>(), x.numel()) }
}

/// As [`floats`], of bools: 0 or 1.
pub(crate) fn flags(x: &Tensor) -> &[u8] {
    assert!(is_dense(x, Kind::Bool), "a tensor that is no dense bool of the CPU");
    if x.numel() == 0 {
        return &[];
    }
    // SAFETY: as in `floats`; libtorch keeps a bool in a byte.
    unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<u8>(), x.numel()) }
}
