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

/// Whether no two of the tensors, all of them dense, have a byte in common.
pub(crate) fn are_disjoint(tensors: &[&Tensor]) -> bool {
    let range = |x: &Tensor| {
        let begin = x.data_ptr() as usize;
        begin..begin + x.numel() * x.kind().elt_size_in_bytes()
    };
    tensors.iter().enumerate().all(|(i, a)| {
        let a = range(a);
        tensors[i + 1..].iter().map(|b| range(b)).all(|b| a.end <= b.start || b.end <= a.start)
    })
}

/// The numbers of a tensor in the order of its memory.
///
/// # Safety
/// A tensor owns its memory together with all its clones and views, which borrows do not show. While the slice lives
/// nothing may write to that memory: no operator on it or on one that shares it, and no slice of [`floats_mut`]
/// ([`are_disjoint`] tells).
///
/// # Panics
/// If it is not [`is_dense`] and f32.
pub(crate) unsafe fn floats(x: &Tensor) -> &[f32] {
    assert!(is_dense(x, Kind::Float), "a tensor that is not a dense f32 of the CPU");
    if x.numel() == 0 {
        return &[];
    }
    // SAFETY: the tensor has numel() f32 without gaps from its data pointer on, on the CPU; the caller keeps them as
    // they are.
    unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<f32>(), x.numel()) }
}

/// As [`floats`], to be changed.
///
/// # Safety
/// While the slice lives nothing else may read or write that memory, through any tensor or slice.
///
/// # Panics
/// As [`floats`].
pub(crate) unsafe fn floats_mut(x: &mut Tensor) -> &mut [f32] {
    assert!(is_dense(x, Kind::Float), "a tensor that is not a dense f32 of the CPU");
    if x.numel() == 0 {
        return &mut [];
    }
    // SAFETY: as in `floats`; the caller uses the memory through this slice alone.
    unsafe { std::slice::from_raw_parts_mut(x.data_ptr().cast::<f32>(), x.numel()) }
}

/// As [`floats`], of bools: 0 or 1.
///
/// # Safety
/// As [`floats`].
///
/// # Panics
/// If it is not [`is_dense`] and bool.
pub(crate) unsafe fn flags(x: &Tensor) -> &[u8] {
    assert!(is_dense(x, Kind::Bool), "a tensor that is not a dense bool of the CPU");
    if x.numel() == 0 {
        return &[];
    }
    // SAFETY: as in `floats`; libtorch keeps a bool in a byte.
    unsafe { std::slice::from_raw_parts(x.data_ptr().cast::<u8>(), x.numel()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_that_share_memory_are_not_disjoint() {
        let x = Tensor::zeros([4, 6], (Kind::Float, Device::Cpu));
        let other = x.zeros_like();
        assert!(are_disjoint(&[&x, &other, &other.eq(0.0)]));
        assert!(!are_disjoint(&[&x, &other, &x.shallow_clone()]));
        // Views that lie one after the other, and views that overlap.
        assert!(are_disjoint(&[&x.narrow(0, 0, 2), &x.narrow(0, 2, 2)]));
        assert!(!are_disjoint(&[&x.narrow(0, 0, 3), &x.narrow(0, 2, 2)]));
        assert!(are_disjoint(&[&x, &x.narrow(0, 0, 0)]), "nothing is shared with no numbers");
    }
}
