//! State dicts as `torch.save` writes them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use tch::{Kind, Tensor};

use super::make::element_of;
use super::parse::Element;
use super::zip_out::ZipOut;
use crate::io::tensors::{first_line, write_bytes};
use crate::io::write_atomic;

/// The folder inside the archive.
const ROOT: &str = "archive";

/// Writes an `OrderedDict` of tensors in the zip format, [whole or not at all](write_atomic).
///
/// `torch.load(path, weights_only=True)` reads it, and a module of these keys takes it by
/// `load_state_dict(strict=True)`. The tensors are written contiguous, as tensors of the CPU without gradients;
/// those that share their whole memory share it in the file. There is no `_metadata`: PyTorch then takes a
/// module's state as the oldest version, and does not ask for what came later.
///
/// # Errors
/// If a name occurs twice, a tensor is sparse, undefined or has an element type that [`read`](super::read) does not
/// know, or the file cannot be written; names the file and the tensor.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    write_atomic(path, |out| {
        let plan = plan(tensors)?;
        let mut zip = ZipOut::new(out);
        zip.record(&format!("{ROOT}/data.pkl"), &pickle(tensors, &plan)?)?;
        zip.record(&format!("{ROOT}/byteorder"), b"little")?;
        for (key, &first) in plan.firsts.iter().enumerate() {
            let (name, tensor) = &tensors[first];
            write_storage(&mut zip, key, tensor).with_context(|| format!("tensor {name}"))?;
        }
        // The version of the format that PyTorch 1.6 to 2.11 write.
        zip.record(&format!("{ROOT}/version"), b"3\n")?;
        zip.finish()
    })
}

/// Which tensor has which storage.
struct Plan {
    /// The element type and the storage of each tensor.
    parts: Vec<(Element, usize)>,
    /// The first tensor of each storage.
    firsts: Vec<usize>,
}

fn plan(tensors: &[(String, Tensor)]) -> Result<Plan> {
    let mut plan = Plan { parts: Vec::new(), firsts: Vec::new() };
    let (mut names, mut known) = (HashSet::new(), HashMap::new());
    for (i, (name, tensor)) in tensors.iter().enumerate() {
        ensure!(names.insert(name), "two tensors are named {name}");
        let element = checked_element(tensor).with_context(|| format!("tensor {name}"))?;
        let next = plan.firsts.len();
        let key = match tensor.numel() {
            n if n > 0 && tensor.is_contiguous() => {
                let place = (tensor.data_ptr() as usize, tensor.device(), element, n);
                *known.entry(place).or_insert(next)
            }
            _ => next,
        };
        if key == next {
            plan.firsts.push(i);
        }
        plan.parts.push((element, key));
    }
    Ok(plan)
}

fn checked_element(tensor: &Tensor) -> Result<Element> {
    ensure!(tensor.defined(), "it has no value");
    ensure!(!tensor.is_sparse(), "it is sparse, which cannot be written");
    let kind: Kind = tensor.f_kind().map_err(|error| anyhow!("{}", first_line(&error)))?;
    element_of(kind).with_context(|| format!("element type {kind:?} cannot be written"))
}

fn write_storage(zip: &mut ZipOut, key: usize, tensor: &Tensor) -> Result<()> {
    let num_bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    let name = format!("{ROOT}/data/{key}");
    zip.record_by(&name, num_bytes as u64, |out| write_bytes(out, tensor, num_bytes))
}

/// The pickle of the dict, protocol 2, as PyTorch's restricted reader takes it.
fn pickle(tensors: &[(String, Tensor)], plan: &Plan) -> Result<Vec<u8>> {
    const ORDERED_DICT: &[u8] = b"ccollections\nOrderedDict\n)R";
    const REBUILD: &[u8] = b"ctorch._utils\n_rebuild_tensor_v2\n";
    let mut out = b"\x80\x02".to_vec();
    out.extend(ORDERED_DICT);
    out.push(b'(');
    for ((name, tensor), &(element, key)) in tensors.iter().zip(&plan.parts) {
        put_text(&mut out, name)?;
        out.extend(REBUILD);
        out.extend(b"((");
        put_text(&mut out, "storage")?;
        out.extend(format!("ctorch\n{}\n", element.storage_class()).as_bytes());
        put_text(&mut out, &key.to_string())?;
        put_text(&mut out, "cpu")?;
        put_integer(&mut out, i64::try_from(tensor.numel())?);
        out.extend(b"tQ");
        put_integer(&mut out, 0); // offset
        let shape = tensor.size();
        put_sizes(&mut out, &shape);
        put_sizes(&mut out, &strides(&shape));
        out.push(0x89); // requires no gradient
        out.extend(ORDERED_DICT); // backward hooks
        out.extend(b"tR");
    }
    out.extend(b"u.");
    Ok(out)
}

/// Steps between neighbours of a contiguous tensor, elements.
fn strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1);
    }
    strides
}

fn put_text(out: &mut Vec<u8>, text: &str) -> Result<()> {
    out.push(b'X');
    out.extend(u32::try_from(text.len())?.to_le_bytes());
    out.extend(text.as_bytes());
    Ok(())
}

fn put_sizes(out: &mut Vec<u8>, sizes: &[i64]) {
    out.push(b'(');
    sizes.iter().for_each(|&size| put_integer(out, size));
    out.push(b't');
}

fn put_integer(out: &mut Vec<u8>, value: i64) {
    match (u8::try_from(value), i32::try_from(value)) {
        (Ok(byte), _) => out.extend([b'K', byte]),
        (_, Ok(short)) => {
            out.push(b'J');
            out.extend(short.to_le_bytes());
        }
        _ => {
            out.extend([0x8a, 8]);
            out.extend(value.to_le_bytes());
        }
    }
}
