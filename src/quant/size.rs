//! The size of a network with quantized layers, counted in two ways that are never to be confused.

use serde::{Deserialize, Serialize};

/// Bits of a float weight.
pub const FLOAT_BITS: u32 = 32;

/// What the size of a convolution depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerSize {
    /// Its weights.
    pub num_weights: usize,
    /// Bits of each, [`FLOAT_BITS`] where they stay float.
    pub bits: u32,
    /// Scales that are stored with them: 0 for float, 1 a tensor, or one an output channel.
    pub num_scales: usize,
    /// Scales of its quantized activations, 0 where they stay float.
    pub num_input_scales: usize,
}

impl LayerSize {
    /// A layer that stays float.
    pub fn float(num_weights: usize) -> Self {
        Self { num_weights, bits: FLOAT_BITS, num_scales: 0, num_input_scales: 0 }
    }

    /// Bytes in a file: codes of `bits` bits without gaps, up to a whole byte, and scales of 4 bytes.
    pub fn bytes(&self) -> u64 {
        let codes = (self.num_weights as u64 * u64::from(self.bits)).div_ceil(8);
        codes + 4 * (self.num_scales + self.num_input_scales) as u64
    }
}

/// Both counts. Print them with their names.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sizes {
    /// "paper": `32 sum(n) / sum(n b)` over convolution weights alone (n weights of b bits): no scale, bias, norm.
    pub paper_compression: f64,
    /// "file": all bytes of the float network over all bytes of the quantized one.
    pub file_compression: f64,
    /// Bytes of everything: codes, scales, float layers, biases, norms and their statistics.
    pub file_bytes: u64,
    /// Bytes of the same in float.
    pub float_bytes: u64,
}

/// Counts a network of these convolutions and `other_bytes` of everything else, which stays as it is.
pub fn sizes(layers: &[LayerSize], other_bytes: u64) -> Sizes {
    let weights: u64 = layers.iter().map(|l| l.num_weights as u64).sum();
    let bits: u64 = layers.iter().map(|l| l.num_weights as u64 * u64::from(l.bits)).sum();
    let file_bytes = other_bytes + layers.iter().map(LayerSize::bytes).sum::<u64>();
    let float_bytes = other_bytes + 4 * weights;
    Sizes {
        paper_compression: (u64::from(FLOAT_BITS) * weights) as f64 / bits.max(1) as f64,
        file_compression: float_bytes as f64 / file_bytes.max(1) as f64,
        file_bytes,
        float_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_counts_are_as_computed_by_hand() {
        // 80 weights at 2 bits (20 bytes) with 4 scales, 20 float (80 bytes), 3 at 3 bits (2 bytes) with input scale
        let layers = [
            LayerSize { num_weights: 80, bits: 2, num_scales: 4, num_input_scales: 0 },
            LayerSize::float(20),
            LayerSize { num_weights: 3, bits: 3, num_scales: 1, num_input_scales: 1 },
        ];
        let found = sizes(&layers, 100);
        assert_eq!(found.file_bytes, 100 + (20 + 16) + 80 + (2 + 4 + 4));
        assert_eq!(found.float_bytes, 100 + 4 * 103);
        assert_eq!(found.paper_compression, 32.0 * 103.0 / (160.0 + 640.0 + 9.0));
        assert_eq!(found.file_compression, 512.0 / 226.0);
    }

    #[test]
    fn a_float_network_is_compressed_by_one() {
        let found = sizes(&[LayerSize::float(7)], 5);
        assert_eq!((found.paper_compression, found.file_compression), (1.0, 1.0));
    }

    #[test]
    fn the_published_factors_come_out_of_the_published_weight_counts() {
        // convolution weights of backbone, fpn, head; bits B-F-H
        let factor = |bits: [u32; 3]| {
            let layer = |(num_weights, bits)| LayerSize {
                num_weights,
                bits,
                num_scales: 1,
                num_input_scales: 0,
            };
            let layers = [40_549_216, 5_177_344, 4_758_336].into_iter().zip(bits).map(layer);
            sizes(&layers.collect::<Vec<_>>(), 0).paper_compression
        };
        assert!((factor([8, 2, 8]) - 4.33).abs() < 0.005, "{}", factor([8, 2, 8]));
        assert!((factor([4, 2, 4]) - 8.43).abs() < 0.005, "{}", factor([4, 2, 4]));
    }
}
