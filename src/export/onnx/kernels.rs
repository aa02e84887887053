//! Weights as the integer kernels of ONNX Runtime take them on this CPU, changed when a file is loaded.
//!
//! Its convolutions of integers take bytes only: weights of 2 and 4 bits become bytes.
//!
//! Without an 8-bit dot product instruction (VNNI) ONNX Runtime multiplies unsigned by signed bytes with an instruction
//! that adds two products and saturates at 16 bits: 255 x 127 x 2 does not fit, and sums come out wrong. Products of two
//! unsigned bytes go another way, in 32 bits, at half the speed. So large weights become unsigned ones around 128, which
//! stand for the same numbers; weights of few bits never reach the limit and stay.
//!
//! Source: ONNX Runtime's documentation, *Quantize ONNX models*, "When and why do I need to try U8U8?".

use std::collections::HashSet;

use super::proto::{DataType, Graph};

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
    let mut weights = HashSet::new();
    for node in &graph.node {
        if node.op_type == "DequantizeLinear"
            && let [weight, _, zero] = node.input.as_slice()
        {
            weights.insert((weight.clone(), zero.clone()));
        }
    }
    let mut changed = 0;
    for (weight, zero) in weights {
        let find = |name: &str| graph.initializer.iter().position(|t| t.name == name);
        let (Some(weight), Some(zero)) = (find(&weight), find(&zero)) else { continue };
        let tensor = &graph.initializer[weight];
        let large = tensor.raw_data.iter().any(|b| i32::from(*b as i8).abs() > MAX_SAFE);
        if tensor.data_type != DataType::Int8 as i32 || tensor.dims.len() != 4 || !large {
            continue;
        }
        for index in [weight, zero] {
            let tensor = &mut graph.initializer[index];
            tensor.data_type = DataType::Uint8 as i32;
            tensor.raw_data.iter_mut().for_each(|b| *b = b.wrapping_add(128));
        }
        changed += 1;
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::proto::{Node, Tensor};

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
    fn only_weights_that_may_saturate_become_unsigned() {
        let mut graph = Graph::default();
        for (name, largest) in [("large", 127), ("small", 64)] {
            let [codes, zero] = ["codes", "zero"].map(|part| format!("{name}.{part}"));
            let values = [largest, -largest, 0];
            graph.initializer.push(Tensor::integers(
                &codes,
                &[3, 1, 1, 1],
                DataType::Int8,
                &values,
            ));
            graph.initializer.push(Tensor::integers(&zero, &[], DataType::Int8, &[0]));
            graph.node.push(Node {
                op_type: "DequantizeLinear".to_owned(),
                input: vec![codes, "scale".to_owned(), zero],
                ..Node::default()
            });
        }
        let again = graph.node[0].clone();
        graph.node.push(again); // a weight that is used twice is changed once
        assert_eq!(use_unsigned_weights(&mut graph), 1);
        let [codes, zero, small, _] = &graph.initializer[..] else { panic!() };
        assert_eq!((codes.raw_data.as_slice(), codes.data_type), (&[255, 1, 128][..], 2));
        assert_eq!((zero.raw_data.as_slice(), zero.data_type), (&[128][..], 2));
        assert_eq!(small.data_type, DataType::Int8 as i32);
    }
}
