//! The backbone, whichever it is.

use super::config::{Backbone, NetworkConfig};
use super::darknet::Darknet;
use super::resnet::Resnet;
use crate::nn::{Ops, Path};

/// What turns images into features of 5 strides.
pub(in crate::topology) enum BackboneNet {
    Darknet(Darknet),
    Resnet(Resnet),
}

impl BackboneNet {
    pub(in crate::topology) fn new(p: &Path, config: &NetworkConfig) -> Self {
        match config.backbone {
            Backbone::Darknet53 => Self::Darknet(Darknet::new(p, config)),
            Backbone::Resnet18 | Backbone::Resnet34 | Backbone::Resnet50 => {
                Self::Resnet(Resnet::new(p, config))
            }
        }
    }

    /// The outputs of the 5 stages.
    pub(in crate::topology) fn run<O: Ops>(&self, ops: &mut O, images: &O::Value) -> Vec<O::Value> {
        match self {
            Self::Darknet(net) => net.run(ops, images),
            Self::Resnet(net) => net.run(ops, images),
        }
    }
}
