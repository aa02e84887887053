//! The store of named tensors.

use std::cell::{Ref, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::fmt::Display;
use std::ops::Div;
use std::rc::Rc;

use tch::{Device, Tensor};

use super::batch_norm::BatchNormControl;
use super::init::Fill;
use super::layer::{LayerInfo, LayerKind};
use super::products::Products;
use super::slot::Site;

/// What a stored tensor is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Learnt by the optimizer.
    Parameter,
    /// Part of the state, not learnt (running statistics, counters, anchors).
    Buffer,
}

/// A named tensor of the store. Cloning shares the storage.
#[derive(Debug)]
pub struct Var {
    /// The PyTorch state-dict key, for example `fpn.inner_convs.2.weight`.
    pub name: String,
    /// The tensor itself: changing it in place changes the network.
    pub tensor: Tensor,
    /// Parameter or buffer.
    pub role: Role,
}

impl Clone for Var {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), tensor: self.tensor.shallow_clone(), role: self.role }
    }
}

#[derive(Default)]
struct Inner {
    vars: Vec<Var>,
    by_name: HashMap<String, usize>,
    layers: Vec<Rc<LayerInfo>>,
    sites: Vec<Rc<Site>>,
    ends: Option<Ends>,
    /// Children of the root that are parts of the module of another one.
    joined: Vec<(String, String)>,
}

/// The quantizable layers at the two ends of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    /// Those that read the images.
    pub first: BTreeSet<String>,
    /// Those whose results are the outputs.
    pub last: BTreeSet<String>,
}

/// All tensors of a network, in the order of construction.
#[derive(Clone)]
pub struct Store {
    inner: Rc<RefCell<Inner>>,
    device: Device,
    seed: Option<u64>,
    batch_norms: Rc<BatchNormControl>,
    products: Products,
}

impl Store {
    /// An empty store whose tensors live on `device`; layers with random initial values start at zero, for
    /// networks that are loaded or only looked at.
    pub fn new(device: Device) -> Self {
        Self {
            inner: Rc::default(),
            device,
            seed: None,
            batch_norms: Rc::default(),
            products: Products::default(),
        }
    }

    /// An empty store whose layers draw their initial values by `seed` and their names.
    pub fn seeded(device: Device, seed: u64) -> Self {
        Self { seed: Some(seed), ..Self::new(device) }
    }

    /// Where the tensors live.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The root path, from which layers are built.
    pub fn root(&self) -> Path {
        Path { store: self.clone(), prefix: String::new() }
    }

    /// While frozen, the batch norms of this store normalise by their running statistics and leave them as they are,
    /// in training too.
    pub fn freeze_batch_norm(&self, frozen: bool) {
        self.batch_norms.set_frozen(frozen);
    }

    /// From now on convolutions take their inputs, weights and biases rounded to bfloat16, or in float32 again. Stored weights
    /// and everything else stay float32, gradients of weights too.
    pub fn convolve_in_bf16(&self, bf16: bool) {
        self.products.set_bf16(bf16);
    }

    pub(super) fn batch_norm_control(&self) -> &BatchNormControl {
        &self.batch_norms
    }

    /// Every tensor, in the order of construction.
    pub fn vars(&self) -> Vec<Var> {
        self.inner.borrow().vars.clone()
    }

    /// The parameters, in the order of construction.
    pub fn parameters(&self) -> Vec<Var> {
        self.vars().into_iter().filter(|v| v.role == Role::Parameter).collect()
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<Tensor> {
        let inner = self.inner.borrow();
        inner.by_name.get(name).map(|&i| inner.vars[i].tensor.shallow_clone())
    }

    /// The quantizable layers, in the order of construction.
    pub fn sites(&self) -> Ref<'_, [Rc<Site>]> {
        Ref::map(self.inner.borrow(), |inner| inner.sites.as_slice())
    }

    /// All layers, the unused ones included, in the order of construction.
    pub fn layers(&self) -> Vec<Rc<LayerInfo>> {
        self.inner.borrow().layers.clone()
    }

    /// Is told which layers of the network run (others are no longer quantizable) and which are its ends.
    pub(super) fn keep_sites(&self, used: &BTreeSet<&str>, ends: Ends) {
        let mut inner = self.inner.borrow_mut();
        inner.sites.retain(|site| used.contains(site.name.as_str()));
        inner.ends = Some(ends);
    }

    /// The ends of the network; of a store without a trace the first and the last of [`Store::sites`].
    pub fn ends(&self) -> Ends {
        let inner = self.inner.borrow();
        let one =
            |site: Option<&Rc<Site>>| site.map(|site| site.name.clone()).into_iter().collect();
        let built = || Ends { first: one(inner.sites.first()), last: one(inner.sites.last()) };
        inner.ends.clone().unwrap_or_else(built)
    }

    /// Makes the child `part` of the root a part of the module of the child `module`: both are quantized under the latter's
    /// name.
    pub fn join(&self, part: &str, module: &str) {
        self.inner.borrow_mut().joined.push((part.to_owned(), module.to_owned()));
    }

    /// The module of a layer or tensor: the child of the root that it lies in, or the one that this is a part of.
    pub fn module_of(&self, key: &str) -> String {
        let root = key.split('.').next().unwrap_or_default();
        let joined = &self.inner.borrow().joined;
        let module =
            joined.iter().find(|(part, _)| part == root).map(|(_, module)| module.as_str());
        module.unwrap_or(root).to_owned()
    }

    /// The modules: the children of the root that hold quantizable layers and are no part of another one, in the order of
    /// construction.
    pub fn modules(&self) -> Vec<String> {
        let mut modules: Vec<String> = Vec::new();
        for site in self.sites().iter() {
            let module = self.module_of(&site.name);
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
        modules
    }

    fn insert(&self, var: Var) {
        let mut inner = self.inner.borrow_mut();
        let index = inner.vars.len();
        assert!(
            inner.by_name.insert(var.name.clone(), index).is_none(),
            "two tensors are named {}",
            var.name
        );
        inner.vars.push(var);
    }
}

/// A place in the store's tree of names.
#[derive(Clone)]
pub struct Path {
    store: Store,
    prefix: String,
}

impl Path {
    /// The full name of `leaf` below this path.
    pub fn name(&self, leaf: &str) -> String {
        if self.prefix.is_empty() { leaf.to_owned() } else { format!("{}.{leaf}", self.prefix) }
    }

    /// This path's own name (`fpn.inner_convs.2`).
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Registers a learnt tensor; `value` is copied to the store's device as a leaf that requires a gradient.
    pub fn parameter(&self, leaf: &str, value: Tensor) -> Tensor {
        self.learnt(leaf, tch::no_grad(|| value.to_device(self.store.device).detach().copy()))
    }

    /// Registers a learnt f32 tensor with initial values by the store's seed and the tensor's name.
    ///
    /// Weights of convolutions lie in memory as activations do, channels last: libtorch would else reorder them at each use,
    /// and their gradients back. What loads them keeps that; files hold them in row-major order.
    pub fn filled(&self, leaf: &str, shape: &[i64], fill: Fill) -> Tensor {
        let name = self.name(leaf);
        let tensor = fill.tensor(&name, shape, self.store.seed).to_device(self.store.device);
        self.learnt(leaf, if shape.len() == 4 { channels_last(&tensor) } else { tensor })
    }

    /// Registers a tensor that nobody else holds.
    fn learnt(&self, leaf: &str, tensor: Tensor) -> Tensor {
        self.register(leaf, tensor.set_requires_grad(true), Role::Parameter)
    }

    /// Registers a tensor that is not learnt.
    pub fn buffer(&self, leaf: &str, value: Tensor) -> Tensor {
        let tensor = tch::no_grad(|| value.to_device(self.store.device).detach().copy());
        self.register(leaf, tensor, Role::Buffer)
    }

    /// How the convolutions of the store round.
    pub(super) fn products(&self) -> Products {
        self.store.products.clone()
    }

    /// What the batch norms do alike, now and later.
    pub(super) fn batch_norm_control(&self) -> Rc<BatchNormControl> {
        self.store.batch_norms.clone()
    }

    /// Registers a layer that is not quantizable.
    pub(super) fn layer(
        &self,
        kind: LayerKind,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> Rc<LayerInfo> {
        let info = Rc::new(LayerInfo {
            name: self.prefix.clone(),
            kind,
            weight: weight.size(),
            parameters: weight.numel() + bias.map_or(0, Tensor::numel),
        });
        self.store.inner.borrow_mut().layers.push(info.clone());
        info
    }

    /// Registers a quantizable layer of a network.
    pub(super) fn site_layer(
        &self,
        kind: LayerKind,
        weight: &Tensor,
        bias: Option<&Tensor>,
    ) -> (Rc<LayerInfo>, Rc<Site>) {
        let site_kind = kind.site().expect("convolutions and linear layers are quantizable");
        let site = Site::new(self.prefix.clone(), site_kind, weight);
        (self.layer(kind, weight, bias), self.site(site))
    }

    /// Registers a quantizable layer.
    pub fn site(&self, site: Site) -> Rc<Site> {
        let site = Rc::new(site);
        self.store.inner.borrow_mut().sites.push(site.clone());
        site
    }

    fn register(&self, leaf: &str, tensor: Tensor, role: Role) -> Tensor {
        self.store.insert(Var { name: self.name(leaf), tensor: tensor.shallow_clone(), role });
        tensor
    }
}

/// The same values, channels last in memory.
fn channels_last(x: &Tensor) -> Tensor {
    tch::no_grad(|| x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]))
}

impl<T: Display> Div<T> for &Path {
    type Output = Path;

    fn div(self, leaf: T) -> Path {
        Path { store: self.store.clone(), prefix: self.name(&leaf.to_string()) }
    }
}

impl<T: Display> Div<T> for Path {
    type Output = Path;

    fn div(self, leaf: T) -> Path {
        &self / leaf
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn names_join_and_keep_their_order() {
        let store = Store::new(Device::Cpu);
        let p = store.root() / "fpn" / "inner_convs" / 2;
        let _ = p.parameter("weight", Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)));
        let _ = p.buffer("count", Tensor::from(0i64));
        let names: Vec<_> = store.vars().into_iter().map(|v| v.name).collect();
        assert_eq!(names, ["fpn.inner_convs.2.weight", "fpn.inner_convs.2.count"]);
        assert_eq!(store.parameters().len(), 1);
        assert!(store.get("fpn.inner_convs.2.weight").unwrap().requires_grad());
        assert!(store.get("nothing").is_none());
    }

    #[test]
    #[should_panic(expected = "two tensors are named a")]
    fn a_name_given_twice_panics() {
        let store = Store::new(Device::Cpu);
        let _ = store.root().buffer("a", Tensor::from(0i64));
        let _ = store.root().buffer("a", Tensor::from(0i64));
    }
}
