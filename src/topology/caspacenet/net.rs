//! The whole network.

use anyhow::Result;
use tch::{Device, Tensor};

use super::config::NetworkConfig;
use super::keys::FPN_SUB;
use super::recognise::advise;
use crate::nn::{self, DenseLevel, Eager, Engine, Network, Ops, OutputShape, Store, Trace, Tracer};
use crate::topology::family::Family;
use crate::topology::wdr::{
    AnchorGrid, BackboneNet, Fpn, Head, HeadOutputs, add_anchors, check_build, keys, output_shapes,
};

/// Side of the images for which a new network is traced, px.
const TRACE_PX: usize = 128;

/// CA-SpaceNet, full or narrow by its config.
///
/// State-dict keys: those of [`PoseNet`](crate::topology::wdr::PoseNet) and `fpn_sub.*`, named as `fpn.*`.
pub struct CaSpaceNet {
    /// Every tensor by its key, and the quantizable layers.
    pub store: Store,
    config: NetworkConfig,
    num_classes: i64,
    backbone: BackboneNet,
    fpn: Fpn,
    fpn_sub: Fpn,
    head: Head,
}

/// What lies between images and outputs; levels finest first.
#[derive(Debug)]
pub struct Features<V = Tensor> {
    /// The backbone's 5 stages, strides 2 to 32.
    pub backbone: Vec<V>,
    /// The first pyramid.
    pub fpn: Vec<V>,
    /// The second pyramid.
    pub fpn_sub: Vec<V>,
    /// What the head sees: `fpn - subtract * fpn_sub`.
    pub difference: Vec<V>,
}

impl CaSpaceNet {
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
    /// As [`CaSpaceNet::new`].
    pub fn blank(config: &NetworkConfig, num_classes: i64, device: Device) -> Result<Self> {
        Self::build(config, num_classes, Store::new(device))
    }

    pub(super) fn build(config: &NetworkConfig, num_classes: i64, store: Store) -> Result<Self> {
        let mut problems = vec![];
        config.check("network", &mut problems);
        check_build(&problems, num_classes)?;
        let (wdr, root) = (&config.wdr, store.root());
        let backbone = BackboneNet::new(&(&root / keys::BACKBONE), wdr);
        let fpn = Fpn::new(&(&root / keys::FPN), wdr);
        let fpn_sub = Fpn::second(&(&root / FPN_SUB), wdr, config.zero_start, config.shared_top);
        let head = Head::new(&(&root / keys::HEAD), wdr, num_classes);
        let config = config.clone();
        let net = Self { backbone, fpn, fpn_sub, head, config, num_classes, store };
        add_anchors(&net.store, &net.grid(1, 1));
        net.store.join(FPN_SUB, keys::FPN);
        net.trace(TRACE_PX, TRACE_PX).mark(&net.store);
        Ok(net)
    }

    /// The config it was built from.
    pub fn config(&self) -> &NetworkConfig {
        &self.config
    }

    /// Where the outputs for images of `width` x `height` px lie.
    pub fn grid(&self, width: usize, height: usize) -> AnchorGrid {
        AnchorGrid::new(&self.config.wdr, width, height)
    }

    /// Logits and offsets for images `[n, 3, h, w]`, normalised; `train` for batch statistics.
    pub fn forward_t(&self, images: &Tensor, train: bool) -> HeadOutputs {
        self.record(&mut Eager { train }, images).0
    }

    /// The features alone.
    pub fn features_t(&self, images: &Tensor, train: bool) -> Features {
        self.run_features(&mut Eager { train }, images)
    }

    /// The network itself, for any reader: its outputs and the second pyramid.
    fn record<O: Ops>(
        &self,
        ops: &mut O,
        images: &O::Value,
    ) -> (HeadOutputs<O::Value>, Vec<O::Value>) {
        let Features { fpn_sub, difference, .. } = self.run_features(ops, images);
        (self.head.run(ops, &difference), fpn_sub)
    }

    fn run_features<O: Ops>(&self, ops: &mut O, images: &O::Value) -> Features<O::Value> {
        let backbone = self.backbone.run(ops, images);
        let fpn = self.fpn.run(ops, &backbone);
        let mut fpn_sub = self.fpn_sub.run(ops, &backbone);
        // Levels on top that both pyramids share are those of the first.
        let shared: Vec<O::Value> = fpn[fpn_sub.len()..].iter().map(|x| ops.share(x)).collect();
        fpn_sub.extend(shared);
        let mut difference = Vec::with_capacity(fpn.len());
        for ((level, first), second) in self.config.wdr.levels().zip(&fpn).zip(&fpn_sub) {
            let name = format!("{FPN_SUB}.subtract.p{level}");
            let second = match self.config.subtract as f32 {
                1.0 => ops.share(second),
                factor => ops.times(format_args!("{name}.times"), factor, second),
            };
            difference.push(ops.sub(format_args!("{name}"), first, &second));
        }
        Features { backbone, fpn, fpn_sub, difference }
    }
}

/// The name of a level of the second pyramid among the outputs: `sub_p3`, by the level's stride.
pub(super) fn sub_name(stride: i64) -> String {
    format!("sub_p{}", stride.max(1).ilog2())
}

impl Engine for CaSpaceNet {
    fn outputs(&self, width: usize, height: usize) -> Vec<OutputShape> {
        output_shapes(&self.grid(width, height), self.num_classes as usize)
    }

    fn forward(&self, images: &Tensor) -> Result<nn::Outputs> {
        let outputs = tch::no_grad(|| self.forward_t(images, false));
        Ok(outputs.named(&self.config.wdr.strides()))
    }
}

impl Network for CaSpaceNet {
    fn store(&self) -> &Store {
        &self.store
    }

    /// The outputs, and behind them the second pyramid, which the feature loss reads.
    fn run(&self, images: &Tensor, train: bool) -> nn::Outputs {
        let (outputs, sub) = self.record(&mut Eager { train }, images);
        let strides = self.config.wdr.strides();
        let mut named = outputs.named(&strides).into_named();
        named.extend(strides.iter().map(|&stride| sub_name(stride)).zip(sub));
        nn::Outputs::new(named)
    }

    fn trace(&self, width: usize, height: usize) -> Trace {
        let mut tracer = Tracer::new();
        let images = tracer.input("images", &[3, height as i64, width as i64]);
        let (outputs, _) = self.record(&mut tracer, &images);
        tracer.finish(outputs.level_by_level(&self.config.wdr.strides()))
    }

    fn dense_levels(&self) -> Vec<DenseLevel> {
        Family::dense_levels(&self.config)
    }

    fn aliases(&self) -> Vec<(String, String)> {
        match self.config.shared_top {
            true => {
                self.fpn.top_keys().map(|key| (key.replacen(keys::FPN, FPN_SUB, 1), key)).collect()
            }
            false => Vec::new(),
        }
    }

    fn advise(&self, tensors: &[(String, Tensor)], mismatched: &[&str]) -> String {
        advise(&self.config, self.num_classes, tensors, mismatched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::ModuleInfo;
    use crate::topology::wdr::{self, PoseNet};

    fn images() -> Tensor {
        let values: Vec<f32> = (0..2 * 3 * 64 * 96).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
        Tensor::from_slice(&values).reshape([2, 3, 64, 96])
    }

    /// The tiny network with the levels of the published one.
    fn five_levels() -> NetworkConfig {
        let anchor_sizes = wdr::NetworkConfig::widedepth().anchor_sizes;
        NetworkConfig::of(wdr::NetworkConfig {
            anchor_sizes,
            ..wdr::NetworkConfig::widedepth_tiny()
        })
    }

    #[test]
    fn both_pyramids_are_one_module_with_the_published_counts() {
        let count = |shared_top| {
            let config = NetworkConfig { shared_top, ..NetworkConfig::default() };
            CaSpaceNet::blank(&config, 1, Device::Cpu).unwrap().modules()
        };
        let [backbone, fpn, head] = &count(false)[..] else { panic!() };
        let names: Vec<&str> = [backbone, fpn, head].iter().map(|m| m.name.as_str()).collect();
        assert_eq!(names, ["backbone", "fpn", "head"]);
        let numbers = |m: &ModuleInfo| (m.num_parameters, m.num_conv_weights, m.num_convs);
        assert_eq!(numbers(fpn), (2 * 5_179_392, 2 * 5_177_344, 16));
        assert_eq!(numbers(head).0, 4_763_926);
        let shared = &count(true)[1];
        assert_eq!(numbers(shared), (5_179_392 + 2_229_760, 5_177_344 + 2_228_224, 14));
    }

    #[test]
    fn it_begins_as_the_other_network() {
        let config = five_levels();
        let net = CaSpaceNet::new(&config, 1, Device::Cpu, 5).unwrap();
        let wdr = PoseNet::new(&config.wdr, 1, Device::Cpu, 5).unwrap();
        for (a, b) in [(net.forward_t(&images(), false), wdr.forward_t(&images(), false))] {
            for (a, b) in a.cls.iter().chain(&a.reg).zip(b.cls.iter().chain(&b.reg)) {
                assert!(a.equal(b));
            }
        }
        let random = NetworkConfig { zero_start: false, ..config };
        let random = CaSpaceNet::new(&random, 1, Device::Cpu, 5).unwrap();
        let sub = random.features_t(&images(), false).fpn_sub;
        assert!(sub.iter().all(|level| level.abs().max().double_value(&[]) > 0.0));
    }

    #[test]
    fn a_shared_top_leaves_nothing_for_the_head() {
        let config = NetworkConfig { shared_top: true, zero_start: false, ..five_levels() };
        let net = CaSpaceNet::new(&config, 1, Device::Cpu, 5).unwrap();
        let features = net.features_t(&images(), false);
        let zero: Vec<bool> = features
            .difference
            .iter()
            .map(|level| level.abs().max().double_value(&[]) == 0.0)
            .collect();
        assert_eq!(zero, [false, false, false, true, true]);
        let aliases = net.aliases();
        assert_eq!(aliases.len(), 4);
        assert!(aliases.contains(&(
            "fpn_sub.top_blocks.p6.weight".to_owned(),
            "fpn.top_blocks.p6.weight".to_owned()
        )));
        assert!(
            aliases.iter().all(|(alias, of)| {
                net.store.get(alias).is_none() && net.store.get(of).is_some()
            })
        );
    }

    #[test]
    fn a_part_of_the_second_pyramid_is_subtracted() {
        let config = NetworkConfig { subtract: 0.25, zero_start: false, ..five_levels() };
        let net = CaSpaceNet::new(&config, 1, Device::Cpu, 5).unwrap();
        let Features { fpn, fpn_sub, difference, .. } = net.features_t(&images(), false);
        for ((fpn, sub), difference) in fpn.iter().zip(&fpn_sub).zip(&difference) {
            assert!((fpn - sub * 0.25).equal(difference));
        }
        // The head's first layers read the difference, and nothing else has changed.
        let summary = net.summary(96, 64);
        assert_eq!(summary.iter().filter(|l| l.uses == 0).count(), 0);
    }
}
