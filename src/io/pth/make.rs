//! From checked descriptions to `tch` tensors.

use std::io::{Read, Seek};

use anyhow::{Context, Result, anyhow, bail, ensure};
use tch::{Device, Kind, Tensor};

use crate::io::tensors::first_line;

use super::parse::{Element, Order, Parsed, View};

/// The element types in `tch`.
const KINDS: [(Element, Kind); 10] = [
    (Element::F64, Kind::Double),
    (Element::F32, Kind::Float),
    (Element::F16, Kind::Half),
    (Element::BF16, Kind::BFloat16),
    (Element::I64, Kind::Int64),
    (Element::I32, Kind::Int),
    (Element::I16, Kind::Int16),
    (Element::I8, Kind::Int8),
    (Element::U8, Kind::Uint8),
    (Element::Bool, Kind::Bool),
];

/// The element type of a kind of `tch`, if files may have it.
pub(super) fn element_of(kind: Kind) -> Option<Element> {
    KINDS.iter().find(|(_, k)| *k == kind).map(|(element, _)| *element)
}

/// The tensors of a file, in the order of its views. One storage at a time is in memory besides.
pub(super) fn tensors<R: Read + Seek>(parsed: &mut Parsed<R>) -> Result<Vec<Tensor>> {
    let mut of_storage: Vec<Vec<usize>> = vec![Vec::new(); parsed.storages.len()];
    for (i, view) in parsed.views.iter().enumerate() {
        of_storage[view.storage].push(i);
    }
    let mut tensors: Vec<Option<Tensor>> = parsed.views.iter().map(|_| None).collect();
    for storage in parsed.in_order.clone() {
        let views = &of_storage[storage];
        let Some(&first) = views.first() else { continue };
        let plain = read_storage(parsed, storage, parsed.views[first].element.size())?;
        for &i in views {
            let view = &parsed.views[i];
            let same = parsed.order == Order::Little
                || view.element.size() == parsed.views[first].element.size();
            ensure!(same, "tensors of different element types share one big-endian storage");
            tensors[i] = Some(tensor(&plain, view)?);
        }
    }
    Ok(tensors.into_iter().flatten().collect())
}

/// The bytes of a storage in the order of this machine.
fn read_storage<R: Read + Seek>(
    parsed: &mut Parsed<R>,
    storage: usize,
    element_size: u64,
) -> Result<Tensor> {
    let num_bytes = parsed.storages[storage].num_bytes;
    let plain = Tensor::f_zeros([i64::try_from(num_bytes)?], (Kind::Uint8, Device::Cpu))
        .map_err(|error| anyhow!("storage of {num_bytes} bytes: {}", first_line(&error)))?;
    let num_bytes = usize::try_from(num_bytes)?;
    if num_bytes > 0 {
        // SAFETY: a fresh contiguous CPU tensor of `num_bytes` bytes, to which nobody else has a reference.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(plain.data_ptr().cast::<u8>(), num_bytes) };
        parsed.read_storage(storage, bytes)?;
        let swapped = (parsed.order == Order::Big) != cfg!(target_endian = "big");
        if swapped {
            bytes.chunks_exact_mut(usize::try_from(element_size)?).for_each(<[u8]>::reverse);
        }
    }
    Ok(plain)
}

/// The tensor that a view of a storage shows: the storage itself if it is all of it in order, else a copy.
fn tensor(plain: &Tensor, view: &View) -> Result<Tensor> {
    let signed = |sizes: &[u64]| -> Result<Vec<i64>> {
        Ok(sizes.iter().map(|&n| i64::try_from(n)).collect::<Result<_, _>>()?)
    };
    let (shape, strides) = (signed(&view.shape)?, signed(&view.strides)?);
    let kind = KINDS.iter().find(|(element, _)| *element == view.element).map(|(_, kind)| *kind);
    let kind = kind.context("an element type without a kind")?;
    let made = || {
        if view.num_elements == 0 {
            return Tensor::f_empty(&shape, (kind, Device::Cpu));
        }
        let typed = plain.f_view_dtype(kind)?;
        if view.is_contiguous() && view.num_elements == typed.numel() as u64 {
            return typed.f_view(&shape[..]);
        }
        let shown = typed.f_as_strided(&shape, &strides, i64::try_from(view.offset).ok())?;
        let mut copy = Tensor::f_empty(&shape, (kind, Device::Cpu))?;
        copy.f_copy_(&shown).map(|()| copy)
    };
    let tensor = made().map_err(|error| anyhow!("shape {shape:?}: {}", first_line(&error)))?;
    if kind == Kind::Bool {
        check_booleans(&tensor)?;
    }
    Ok(tensor)
}

fn check_booleans(tensor: &Tensor) -> Result<()> {
    let worst = tensor.f_view_dtype(Kind::Uint8).and_then(|bytes| match bytes.numel() {
        0 => Ok(0),
        _ => bytes.f_max().map(|worst| worst.int64_value(&[])),
    });
    match worst {
        Ok(..=1) => Ok(()),
        Ok(worst) => bail!("a boolean is {worst}, expected 0 or 1"),
        Err(error) => bail!("{}", first_line(&error)),
    }
}
