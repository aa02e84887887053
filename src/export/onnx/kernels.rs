//! Weights as the integer kernels of ONNX Runtime take them on this CPU, changed when a file is loaded.
//!
//! Its convolutions of integers take bytes only: weights of 2 and 4 bits become bytes.
//!
//! Without an 8-bit dot product instruction (VNNI) ONNX Runtime multiplies unsigned by signed bytes with an instruction
//! that adds two products and saturates at 16 bits: 255 x 127 x 2 does not fit, and sums come out wrong. Products of two
//! unsigned bytes go another way, in 32 bits, at half the speed. So large weights become unsigned ones around 128, which
//! stand for the same numbers; weights of which no two neighbours reach the limit stay, as those of few bits.
//!
//! Source: ONNX Runtime's documentation, *Quantize ONNX models*, "When and why do I need to try U8U8?".

use std::collections::{BTreeMap, BTreeSet};

use super::proto::{DataType, Graph, Tensor};

/// Largest magnitude of a weight with which a pair of products with 255 fits 16 bits: 2 x 255 x 64 = 32640.
const MAX_SAFE: i32 = 64;

/// Whether this CPU has no instruction that sums products of bytes in 32 bits.
pub fn sums_saturate() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        !(is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni"))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Makes weights of 2 and 4 bits bytes of the same values; returns how many tensors were changed.
pub fn widen_weights(graph: &mut Graph) -> usize {
    let mut changed = 0;
    for tensor in &mut graph.initializer {
        let bits = match tensor.data_type {
            kind if kind == DataType::Int2 as i32 => 2,
            kind if kind == DataType::Int4 as i32 => 4,
            _ => continue,
        };
        let count = tensor.dims.iter().product::<i64>() as usize;
        let values = tensor.raw_data.iter().flat_map(|byte| {
            // The value's bits move to the top of a signed byte and back, which spreads their sign.
            (0..8 / bits)
                .map(move |i| (((byte >> (i * bits)) << (8 - bits)) as i8 >> (8 - bits)) as u8)
        });
        tensor.raw_data = values.take(count).collect();
        tensor.data_type = DataType::Int8 as i32;
        changed += 1;
    }
    changed
}

/// Makes the signed 8-bit weights of convolutions unsigned where sums could saturate; returns how many.
pub fn use_unsigned_weights(graph: &mut Graph) -> usize {
    // A layer that runs several times may have a zero point for each time.
    let mut zeros: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in &graph.node {
        if node.op_type == "DequantizeLinear"
            && let [weight, _, zero] = node.input.as_slice()
        {
            zeros.entry(weight.clone()).or_default().insert(zero.clone());
        }
    }
    let places: BTreeMap<&str, usize> =
        graph.initializer.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let mut changed = vec![];
    let mut num_weights = 0;
    for (weight, zeros) in &zeros {
        let zeros = zeros.iter().map(|zero| places.get(zero.as_str()).copied());
        let (Some(&weight), Some(zeros)) = (places.get(weight.as_str()), zeros.collect()) else {
            continue;
        };
        let zeros: Vec<usize> = zeros;
        let tensor = &graph.initializer[weight];
        if tensor.data_type == DataType::Int8 as i32
            && tensor.dims.len() == 4
            && may_saturate(tensor)
        {
            changed.extend(zeros.into_iter().chain([weight]));
            num_weights += 1;
        }
    }
    changed.sort_unstable();
    changed.dedup(); // zero points of one weight alone, but by name they could be shared
    for index in changed {
        let tensor = &mut graph.initializer[index];
        tensor.data_type = DataType::Uint8 as i32;
        tensor.raw_data.iter_mut().for_each(|b| *b = b.wrapping_add(128));
    }
    num_weights
}

/// Whether two products of neighbouring weights `[c_out, c_in, k, k]` with bytes up to 255 may leave 16 bits.
///
/// The kernels go through the input channels of one place of the kernel, then of the next; which of two neighbours make a
/// pair is not relied on.
fn may_saturate(weight: &Tensor) -> bool {
    let values: Vec<i32> = weight.raw_data.iter().map(|b| i32::from(*b as i8)).collect();
    if values.iter().all(|v| v.abs() <= MAX_SAFE) {
        return false;
    }
    let [num_in, places] = [weight.dims[1] as usize, (weight.dims[2] * weight.dims[3]) as usize];
    let per_channel = (num_in * places).max(1);
    let saturates = |a: i32, b: i32| {
        let (above, below) = (a.max(0) + b.max(0), a.min(0) + b.min(0));
        255 * above > i32::from(i16::MAX) || 255 * below < i32::from(i16::MIN)
    };
    values.chunks(per_channel).any(|channel| {
        // In the kernels' order: place by place, all input channels.
        let at = |k: usize| channel[(k % num_in) * places + k / num_in];
        (1..channel.len()).any(|k| saturates(at(k - 1), at(k)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::proto::Node;

    #[test]
    fn small_integers_become_bytes_of_the_same_values() {
        let mut graph = Graph::default();
        let (two, four) = ([1, 0, -1, -2, 1], [-8, 7, -1]);
        graph.initializer.push(Tensor::integers("two", &[5], DataType::Int2, &two));
        graph.initializer.push(Tensor::integers("four", &[3], DataType::Int4, &four));
        graph.initializer.push(Tensor::floats("float", &[1], &[1.0]));
        let float = graph.initializer[2].clone();
        assert_eq!(widen_weights(&mut graph), 2);
        assert_eq!(graph.initializer[0], Tensor::integers("two", &[5], DataType::Int8, &two));
        assert_eq!(graph.initializer[1], Tensor::integers("four", &[3], DataType::Int8, &four));
        assert_eq!(graph.initializer[2], float);
    }

    #[test]
    fn pairs_are_neighbouring_input_channels_of_one_place() {
        // Two input channels, kernels of two places: [channel][place].
        let weight =
            |values: [i32; 4]| Tensor::integers("w", &[1, 2, 1, 2], DataType::Int8, &values);
        assert!(may_saturate(&weight([100, 0, 100, 0]))); // both channels of the first place
        assert!(!may_saturate(&weight([100, 100, 0, 0]))); // 100, 0, 100, 0 in the kernels' order
        assert!(may_saturate(&weight([0, 100, 100, 0]))); // the last channel of a place, the first of the next
        assert!(!may_saturate(&weight([64, 64, 64, 64])));
        assert!(may_saturate(&weight([-65, 0, -64, 0])));
        assert!(!may_saturate(&weight([127, 0, -128, 0])));
    }

    #[test]
    fn only_weights_that_may_saturate_become_unsigned() {
        let mut graph = Graph::default();
        // Two input channels: products of opposite signs never add up, nor do those of different output channels.
        for (name, values) in [("large", [127, 2, 0, 0]), ("small", [64, 64, 127, -127])] {
            let [codes, zero] = ["codes", "zero"].map(|part| format!("{name}.{part}"));
            let dims = [2, 2, 1, 1];
            graph.initializer.push(Tensor::integers(&codes, &dims, DataType::Int8, &values));
            graph.initializer.push(Tensor::integers(&zero, &[], DataType::Int8, &[0]));
            graph.node.push(Node {
                op_type: "DequantizeLinear".to_owned(),
                input: vec![codes, "scale".to_owned(), zero],
                ..Node::default()
            });
        }
        // A weight that is used again, with a zero point of its own, is changed once, and so are both zero points.
        let mut again = graph.node[0].clone();
        again.input[2] = "other".to_owned();
        graph.node.push(again);
        graph.initializer.push(Tensor::integers("other", &[], DataType::Int8, &[0]));
        assert_eq!(use_unsigned_weights(&mut graph), 1);
        let [codes, zero, small, _, other] = &graph.initializer[..] else { panic!() };
        assert_eq!((codes.raw_data.as_slice(), codes.data_type), (&[255, 130, 128, 128][..], 2));
        for zero in [zero, other] {
            assert_eq!((zero.raw_data.as_slice(), zero.data_type), (&[128][..], 2));
        }
        assert_eq!(small.data_type, DataType::Int8 as i32);
    }
}
