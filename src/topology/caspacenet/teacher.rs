//! What the second pyramid learns from.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};

use crate::nn::{Eager, Path, Store};
use crate::topology::wdr::{self, BackboneNet, Fpn, keys};

/// A backbone and its pyramid with weights of their own, which never change: the Wide-Depth-Range network with which
/// training began.
pub struct FeatureTeacher {
    store: Store,
    backbone: BackboneNet,
    fpn: Fpn,
}

impl FeatureTeacher {
    /// A teacher with the weights of `backbone.*` and `fpn.*` in `state`, which are copied.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape; names it.
    pub fn new(
        config: &wdr::NetworkConfig,
        state: &[(String, Tensor)],
        device: Device,
    ) -> Result<Self> {
        let store = Store::new(device);
        let root: Path = store.root();
        let backbone = BackboneNet::new(&(&root / keys::BACKBONE), config);
        let fpn = Fpn::new(&(&root / keys::FPN), config);
        let by_name: HashMap<&str, &Tensor> = state.iter().map(|(n, t)| (n.as_str(), t)).collect();
        for mut var in store.vars() {
            let value = by_name.get(var.name.as_str());
            let value = value.with_context(|| format!("the teacher lacks {}", var.name))?;
            ensure!(
                value.size() == var.tensor.size(),
                "the teacher's {} is {:?}, expected {:?}",
                var.name,
                value.size(),
                var.tensor.size()
            );
            tch::no_grad(|| var.tensor.copy_(value));
        }
        Ok(Self { store, backbone, fpn })
    }

    /// Every tensor by its key; shares storage with the teacher.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.store.vars().into_iter().map(|var| (var.name, var.tensor)).collect()
    }

    /// The pyramid for images `[n, 3, h, w]`, normalised, finest level first; without gradient, in evaluation mode.
    pub fn features(&self, images: &Tensor) -> Vec<Tensor> {
        tch::no_grad(|| {
            let mut ops = Eager { train: false };
            let stages = self.backbone.run(&mut ops, images);
            self.fpn.run(&mut ops, &stages)
        })
    }
}
