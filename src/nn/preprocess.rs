//! From bytes of pictures to images as networks take them: the one place where pixels are normalised.

use anyhow::{Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::libtorch::upload;

/// Size and normalisation of a network's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    /// px.
    pub width: usize,
    /// px.
    pub height: usize,
    /// Of R, G, B, with 255 as 1.
    pub mean: [f64; 3],
    /// Of R, G, B, with 255 as 1; above 0.
    pub std: [f64; 3],
}

impl Preprocess {
    /// Bytes of a picture: RGB.
    pub fn num_bytes(&self) -> usize {
        self.width * self.height * 3
    }

    /// Bytes `[n, h, w, 3]`, any `n`, to images `[n, 3, h, w]`, f32, `(byte / 255 - mean) / std`.
    ///
    /// The bytes go to the device as they are, and the host does not wait for them; the result is in channels-last memory.
    ///
    /// # Errors
    /// If the bytes are not those of whole pictures of this size.
    pub fn images(&self, pixels: &[u8], device: Device) -> Result<Tensor> {
        let (w, h) = (self.width, self.height);
        let per_picture = self.num_bytes();
        ensure!(
            per_picture > 0 && pixels.len().is_multiple_of(per_picture),
            "{} bytes of pixels, expected a multiple of {h} x {w} x 3 = {per_picture}",
            pixels.len()
        );
        let n = pixels.len() / per_picture;
        let factor = std::array::from_fn::<f32, 3, _>(|i| (1.0 / (255.0 * self.std[i])) as f32);
        let offset = std::array::from_fn::<f32, 3, _>(|i| (-self.mean[i] / self.std[i]) as f32);
        let channels = Tensor::from_slice(&[factor, offset].concat()).reshape([2, 1, 3, 1, 1]);
        let channels = upload(&channels, device);
        let bytes = Tensor::from_data_size(pixels, &[n as i64, h as i64, w as i64, 3], Kind::Uint8);
        let mut images = upload(&bytes, device).permute([0, 3, 1, 2]).to_kind(Kind::Float);
        let _ = images.g_mul_(&channels.get(0)).g_add_(&channels.get(1));
        Ok(images)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_normalised_channels_last_images() {
        let pixels: Vec<u8> = (0..2 * 2 * 3 * 3).map(|i| (i * 7) as u8).collect();
        let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
        let preprocess = Preprocess { width: 3, height: 2, mean, std };
        let images = preprocess.images(&pixels, Device::Cpu).unwrap();
        assert_eq!((images.size(), images.stride()), (vec![2, 3, 2, 3], vec![18, 1, 9, 3]));
        for (n, c, y, x) in [(0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 1, 0)] {
            let byte = f64::from(pixels[((n * 2 + y) * 3 + x) * 3 + c]);
            let value = images.double_value(&[n as i64, c as i64, y as i64, x as i64]);
            assert!((value - (byte / 255.0 - mean[c]) / std[c]).abs() < 1e-6);
        }
        let short = preprocess.images(&pixels[1..], Device::Cpu).unwrap_err().to_string();
        assert_eq!(short, "35 bytes of pixels, expected a multiple of 2 x 3 x 3 = 18");
        let none = Preprocess { width: 0, ..preprocess };
        assert!(none.images(&pixels, Device::Cpu).is_err());
    }
}
