//! The network that another one learns from.

use std::fmt;
use std::rc::Rc;

use anyhow::{Context, Result};
use tch::{Device, Kind};

use super::settings::DistillSettings;
use crate::nn::{Network, Outputs};
use crate::seed::fnv1a;

/// A float network that a student learns from, in evaluation mode; its weights never change.
#[derive(Clone)]
pub struct Teacher {
    network: Rc<dyn Network>,
    settings: DistillSettings,
    fingerprint: u64,
}

impl Teacher {
    /// A teacher with the weights that the network has now.
    ///
    /// # Errors
    /// If a tensor is of a kind that no network has.
    pub fn new(network: Box<dyn Network>, settings: DistillSettings) -> Result<Self> {
        let fingerprint = fingerprint(network.as_ref())?;
        Ok(Self { network: network.into(), settings, fingerprint })
    }

    /// How much is learnt from it: settings of the family that learns.
    pub fn settings(&self) -> &DistillSettings {
        &self.settings
    }

    /// A checksum of its weights: tells whether they are the same, and not how they differ.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// What it says about images `[n, 3, h, w]`; no gradient.
    pub fn outputs(&self, images: &tch::Tensor) -> Outputs {
        tch::no_grad(|| self.network.run(images, false))
    }
}

impl fmt::Debug for Teacher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Teacher").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

/// Names and values of all tensors in one number.
fn fingerprint(network: &dyn Network) -> Result<u64> {
    let mut hash = 0u64;
    for (name, tensor) in network.state() {
        let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
        let values = Vec::<f32>::try_from(flat.reshape([-1]));
        let values = values.with_context(|| format!("reading {name} of the teacher"))?;
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let of = [hash, fnv1a(name.as_bytes()), fnv1a(&bytes)].map(u64::to_le_bytes);
        hash = fnv1a(&of.concat());
    }
    Ok(hash)
}
