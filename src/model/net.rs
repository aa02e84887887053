//! The whole network.

use anyhow::{Result, bail, ensure};
use tch::{Device, Tensor};

use super::anchors::AnchorGrid;
use super::config::NetworkConfig;
use super::darknet::Darknet;
use super::fpn::Fpn;
use super::head::Head;
use crate::nn::{LayerSummary, Store};

/// The network's outputs, one tensor a level, finest first.
#[derive(Debug)]
pub struct Outputs {
    /// Class logits `[n, C, h, w]`.
    pub cls: Vec<Tensor>,
    /// Corner offsets in anchor sizes `[n, 16 C, h, w]`: class by class 8 x, then 8 y.
    pub reg: Vec<Tensor>,
}

/// What lies between images and outputs.
#[derive(Debug)]
pub struct Features {
    /// The backbone's 5 stages, strides 2 to 32.
    pub backbone: Vec<Tensor>,
    /// The levels of the FPN, finest first.
    pub fpn: Vec<Tensor>,
}

/// A module of the network: what quantization goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// `backbone`, `fpn` or `head`: the first component of its keys.
    pub name: &'static str,
    /// Learnt numbers, the unused ones included.
    pub num_parameters: usize,
    /// Learnt numbers that no output depends on (the backbone's classifier).
    pub num_unused: usize,
    /// Convolution weights: what can be quantized.
    pub num_conv_weights: usize,
    /// Convolutions.
    pub num_convs: usize,
}

/// The pose network of the wide-depth-range paper, full or narrow by its config.
///
/// State-dict keys: `backbone.*`, `fpn.*`, `head.*`, `anchor_generator.cell_anchors.{level}`.
pub struct PoseNet {
    /// Every tensor by its key, and the quantizable layers.
    pub store: Store,
    config: NetworkConfig,
    num_classes: i64,
    backbone: Darknet,
    fpn: Fpn,
    head: Head,
}

impl PoseNet {
    /// The modules' names, in the order of the data.
    pub const MODULES: [&'static str; 3] = ["backbone", "fpn", "head"];

    /// Builds a network of `num_classes` object classes (background not counted), with initial values by `seed`.
    ///
    /// # Errors
    /// If the config is out of range or `num_classes` is not positive.
    pub fn new(
        config: &NetworkConfig,
        num_classes: i64,
        device: Device,
        seed: u64,
    ) -> Result<Self> {
        Self::build(config, num_classes, Store::seeded(device, seed))
    }

    /// Builds a network whose random initial values are 0: to be loaded, or only looked at.
    ///
    /// # Errors
    /// As [`PoseNet::new`].
    pub fn blank(config: &NetworkConfig, num_classes: i64, device: Device) -> Result<Self> {
        Self::build(config, num_classes, Store::new(device))
    }

    fn build(config: &NetworkConfig, num_classes: i64, store: Store) -> Result<Self> {
        let mut problems = vec![];
        config.check("network", &mut problems);
        if !problems.is_empty() {
            bail!("{}", problems.join("; "));
        }
        ensure!(
            num_classes >= 1,
            "the network has {num_classes} object classes, expected 1 or more"
        );
        let root = store.root();
        let net = Self {
            backbone: Darknet::new(&(&root / "backbone"), config),
            fpn: Fpn::new(&(&root / "fpn"), config),
            head: Head::new(&(&root / "head"), config, num_classes),
            config: config.clone(),
            num_classes,
            store,
        };
        // Published checkpoints hold each level's anchor of cell (0, 0).
        let anchors = root / "anchor_generator" / "cell_anchors";
        let grid = net.grid(1, 1);
        for (i, level) in grid.levels.iter().enumerate() {
            let corners = level.anchor_box(0, 0).map(|v| v as f32);
            anchors.buffer(&i.to_string(), Tensor::from_slice(&corners).reshape([1, 4]));
        }
        Ok(net)
    }

    /// The config it was built from.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Object classes, background not counted.
    pub fn num_classes(&self) -> i64 {
        self.num_classes
    }

    /// Where the outputs for images of `width` x `height` px lie.
    pub fn grid(&self, width: usize, height: usize) -> AnchorGrid {
        AnchorGrid::new(&self.config, width, height)
    }

    /// Logits and offsets for images `[n, 3, h, w]`, normalised; `train` for batch statistics.
    pub fn forward_t(&self, images: &Tensor, train: bool) -> Outputs {
        self.head.forward_t(&self.features_t(images, train).fpn, train)
    }

    /// The features alone.
    pub fn features_t(&self, images: &Tensor, train: bool) -> Features {
        let backbone = self.backbone.forward_t(images, train);
        let fpn = self.fpn.forward_t(&backbone, train);
        Features { backbone, fpn }
    }

    /// Every tensor by its key, in the order of published checkpoints; shares storage with the network.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.store.vars().into_iter().map(|var| (var.name, var.tensor)).collect()
    }

    /// The modules, in the order of the data.
    pub fn modules(&self) -> [ModuleInfo; 3] {
        let parameters = self.store.parameters();
        Self::MODULES.map(|name| {
            let inside = |key: &str| key.split('.').next() == Some(name);
            let sites = self.store.sites();
            let sites = sites.iter().filter(|site| inside(&site.name));
            ModuleInfo {
                name,
                num_parameters: parameters
                    .iter()
                    .filter(|v| inside(&v.name))
                    .map(|v| v.tensor.numel())
                    .sum(),
                num_unused: if name == "backbone" { self.backbone.num_unused() } else { 0 },
                num_conv_weights: sites.clone().map(|site| site.num_weights()).sum(),
                num_convs: sites.count(),
            }
        })
    }

    /// One line a layer, in the order of the state, with costs for one image of `width` x `height` px.
    pub fn summary(&self, width: usize, height: usize) -> Vec<LayerSummary> {
        let mut layers = vec![];
        let stages = self.backbone.summarize((height as i64, width as i64), &mut layers);
        let levels = self.fpn.summarize(&stages, &mut layers);
        self.head.summarize(&levels, &mut layers);
        layers
    }
}
