//! What an inference needs to know beside its networks.

use tch::Device;

use crate::data::{DataConfig, InputConfig, Share};
use crate::nn::Preprocess;
use crate::pose::RansacConfig;

/// What inference needs to know.
#[derive(Debug, Clone)]
pub struct InferOptions {
    /// Size, camera and normalisation of the network's input.
    pub input: InputConfig,
    /// The section `data`: batch size and how images are shrunk.
    pub data: DataConfig,
    /// PnP under the internal camera.
    pub ransac: RansacConfig,
    /// Seed of RANSAC's draws; each image has its own stream.
    pub seed: u64,
    /// Threads that load images.
    pub workers: usize,
    /// Leave images out that cannot be read instead of stopping.
    pub skip_bad: bool,
    /// The batches of the split that are looked at, where processes share it.
    pub share: Share,
    /// Where the network is.
    pub device: Device,
}

/// How pictures of the internal camera become a network's images, by the section `INPUT`.
pub fn preprocess(input: &InputConfig) -> Preprocess {
    Preprocess {
        width: input.width,
        height: input.height,
        mean: input.pixel_mean,
        std: input.pixel_std,
    }
}
