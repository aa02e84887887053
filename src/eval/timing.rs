//! Where an inference's time went.

use serde::{Deserialize, Serialize};

/// Where an inference's time went, seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Images.
    pub num_images: usize,
    /// Waiting for batches.
    pub loading_s: f64,
    /// Upload, network and download.
    pub network_s: f64,
    /// Selecting correspondences, summed over the threads.
    pub decode_s: f64,
    /// Solving for poses, summed over the threads.
    pub pnp_s: f64,
    /// From the request of the first batch to the last pose.
    pub total_s: f64,
}

impl Timing {
    /// Adds that of another process which worked at the same time.
    pub fn add(&mut self, other: &Self) {
        self.num_images += other.num_images;
        self.loading_s += other.loading_s;
        self.network_s += other.network_s;
        self.decode_s += other.decode_s;
        self.pnp_s += other.pnp_s;
        self.total_s = self.total_s.max(other.total_s);
    }
}
