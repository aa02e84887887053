//! A network of any kind, as everything that trains, quantizes, exports or evaluates it sees it.

use tch::Tensor;

use super::engine::Engine;
use super::outputs::Outputs;
use super::store::Store;
use super::trace::{LayerSummary, Trace};

/// Side of the images for which a network is traced where the size does not matter, px.
const TRACE_PX: usize = 128;

/// A network: its tensors, what it computes, and what it does as a list.
///
/// As an [`Engine`] it computes in evaluation mode.
pub trait Network: Engine {
    /// Every tensor by its key, and the quantizable layers.
    fn store(&self) -> &Store;

    /// The outputs for images `[n, 3, h, w]`, normalised; `train` for batch statistics and quantizers that learn.
    fn run(&self, images: &Tensor, train: bool) -> Outputs;

    /// What the network does for images of `width` x `height` px.
    fn trace(&self, width: usize, height: usize) -> Trace;

    /// Outputs that are cells with anchors, finest first: what an exporter can decode. None for other networks.
    fn dense_levels(&self) -> Vec<DenseLevel> {
        Vec::new()
    }

    /// Further names that files may hold tensors of the network under, with the tensor's key.
    fn aliases(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// What to change for tensors of a file to fit, where their names and shapes tell: ends with `": "`, or is empty.
    /// `mismatched` are those of another shape than the network's.
    fn advise(&self, _tensors: &[(String, Tensor)], _mismatched: &[&str]) -> String {
        String::new()
    }

    /// Every tensor by its key, in the order of construction; shares storage with the network.
    fn state(&self) -> Vec<(String, Tensor)> {
        self.store().vars().into_iter().map(|var| (var.name, var.tensor)).collect()
    }

    /// One line a layer, in the order of the state, with costs for one image of `width` x `height` px.
    fn summary(&self, width: usize, height: usize) -> Vec<LayerSummary> {
        self.trace(width, height).summary(self.store())
    }

    /// One line a layer, as [`Network::summary`], where the size of the image does not matter.
    fn layers(&self) -> Vec<LayerSummary> {
        self.summary(TRACE_PX, TRACE_PX)
    }

    /// The modules ([`Store::modules`]).
    fn modules(&self) -> Vec<ModuleInfo> {
        let store = self.store();
        let parameters = store.parameters();
        let layers = self.layers();
        let of = |name: String| {
            let inside = |key: &str| store.module_of(key) == name;
            let numbers = parameters.iter().filter(|v| inside(&v.name)).map(|v| v.tensor.numel());
            let unused = layers.iter().filter(|l| l.uses == 0 && inside(&l.layer.name));
            let sites = store.sites();
            let sites = sites.iter().filter(|site| inside(&site.name));
            ModuleInfo {
                num_parameters: numbers.sum(),
                num_unused: unused.map(|l| l.layer.parameters).sum(),
                num_conv_weights: sites.clone().map(|site| site.num_weights()).sum(),
                num_convs: sites.count(),
                name,
            }
        };
        store.modules().into_iter().map(of).collect()
    }
}

/// Two outputs of a network whose cells lie on a grid over the image, each with one square anchor.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseLevel {
    /// The output with class logits `[n, C, h, w]`.
    pub cls: String,
    /// The output with corner offsets in anchor sizes `[n, 16 C, h, w]`, class by class 8 x, then 8 y.
    pub reg: String,
    /// Distance of the cells, px.
    pub stride: i64,
    /// Side of the anchors, px.
    pub size_px: f64,
}

/// A module of a network: what quantization goes by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleInfo {
    /// The first component of its keys, for example `fpn`; of those that it was joined from, that of the first.
    pub name: String,
    /// Learnt numbers, the unused ones included.
    pub num_parameters: usize,
    /// Learnt numbers of layers that never run.
    pub num_unused: usize,
    /// Weights that can be quantized.
    pub num_conv_weights: usize,
    /// Quantizable layers.
    pub num_convs: usize,
}
