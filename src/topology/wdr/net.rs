//! The whole network.

use anyhow::{Result, ensure};
use tch::{Device, Tensor};

use super::anchors::AnchorGrid;
use super::backbone::BackboneNet;
use super::config::NetworkConfig;
use super::fpn::Fpn;
use super::head::Head;
use super::keys;
use super::outputs::{Features, HeadOutputs};
use super::recognise::advise;
use crate::nn::{self, DenseLevel, Eager, Network, Ops, Store, Trace, Tracer};
use crate::topology::family::Family;

/// Refuses a network with these problems, or without classes.
pub(in crate::topology) fn check_build(problems: &[String], num_classes: i64) -> Result<()> {
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    ensure!(num_classes >= 1, "the network has {num_classes} object classes, expected 1 or more");
    Ok(())
}

/// Adds what published checkpoints hold of the anchors: that of each level's cell (0, 0).
pub(in crate::topology) fn add_anchors(store: &Store, grid: &AnchorGrid) {
    let anchors = store.root() / keys::ANCHORS / "cell_anchors";
    for (i, level) in grid.levels.iter().enumerate() {
        let corners = level.anchor_box(0, 0).map(|v| v as f32);
        let _ = anchors.buffer(&i.to_string(), Tensor::from_slice(&corners).reshape([1, 4]));
    }
}

/// Side of the images for which a new network is traced, px.
const TRACE_PX: usize = 128;

/// The pose network of the wide-depth-range paper, full or narrow by its config.
///
/// State-dict keys: `backbone.*`, `fpn.*`, `head.*`, `anchor_generator.cell_anchors.{level}`.
pub struct PoseNet {
    /// Every tensor by its key, and the quantizable layers.
    pub store: Store,
    config: NetworkConfig,
    num_classes: i64,
    backbone: BackboneNet,
    fpn: Fpn,
    head: Head,
}

impl PoseNet {
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

    pub(super) fn build(config: &NetworkConfig, num_classes: i64, store: Store) -> Result<Self> {
        let mut problems = vec![];
        config.check("network", &mut problems);
        check_build(&problems, num_classes)?;
        let root = store.root();
        let net = Self {
            backbone: BackboneNet::new(&(&root / keys::BACKBONE), config),
            fpn: Fpn::new(&(&root / keys::FPN), config),
            head: Head::new(&(&root / keys::HEAD), config, num_classes),
            config: config.clone(),
            num_classes,
            store,
        };
        add_anchors(&net.store, &net.grid(1, 1));
        net.trace(TRACE_PX, TRACE_PX).mark(&net.store);
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
    ///
    /// The memory order of the images (channels-last or not) is kept to the outputs; the numbers do not depend on it
    /// but for rounding.
    pub fn forward_t(&self, images: &Tensor, train: bool) -> HeadOutputs {
        self.record(&mut Eager { train }, images)
    }

    /// The features alone.
    pub fn features_t(&self, images: &Tensor, train: bool) -> Features {
        self.run_features(&mut Eager { train }, images)
    }

    /// The network itself, for any reader.
    fn record<O: Ops>(&self, ops: &mut O, images: &O::Value) -> HeadOutputs<O::Value> {
        let levels = self.run_features(ops, images).fpn; // the backbone's features are no longer kept
        self.head.run(ops, &levels)
    }

    fn run_features<O: Ops>(&self, ops: &mut O, images: &O::Value) -> Features<O::Value> {
        let backbone = self.backbone.run(ops, images);
        let fpn = self.fpn.run(ops, &backbone);
        Features { backbone, fpn }
    }
}

impl Network for PoseNet {
    fn store(&self) -> &Store {
        &self.store
    }

    fn run(&self, images: &Tensor, train: bool) -> nn::Outputs {
        self.forward_t(images, train).named(&self.config.strides())
    }

    fn trace(&self, width: usize, height: usize) -> Trace {
        let mut tracer = Tracer::new();
        let images = tracer.input("images", &[3, height as i64, width as i64]);
        let outputs = self.record(&mut tracer, &images);
        tracer.finish(outputs.level_by_level(&self.config.strides()))
    }

    fn dense_levels(&self) -> Vec<DenseLevel> {
        Family::dense_levels(&self.config)
    }

    fn advise(&self, tensors: &[(String, Tensor)], mismatched: &[&str]) -> String {
        advise(&self.config, self.num_classes, tensors, mismatched)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Function, Layer, ModuleInfo, Preprocess};
    use crate::topology::wdr::Backbone;
    use std::fmt::Arguments;
    use tch::Kind;

    fn images(n: i64, h: i64, w: i64) -> Tensor {
        let values: Vec<f32> = (0..n * 3 * h * w).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
        Tensor::from_slice(&values).reshape([n, 3, h, w])
    }

    #[test]
    fn the_published_network_has_the_published_counts() {
        let net = PoseNet::blank(&NetworkConfig::widedepth(), 1, Device::Cpu).unwrap();
        let [backbone, fpn, head] = &net.modules()[..] else { panic!() };
        assert_eq!((backbone.num_parameters, backbone.num_unused), (41_609_928, 1_025_000));
        assert_eq!((fpn.num_parameters, fpn.num_unused), (5_179_392, 0));
        assert_eq!((head.num_parameters, head.num_unused), (4_763_926, 0));
        let millions = |m: &ModuleInfo| (m.num_conv_weights as f64 / 1e4).round() / 100.0;
        assert_eq!([backbone, fpn, head].map(millions), [40.55, 5.18, 4.76]);
        assert_eq!([backbone, fpn, head].map(|m| m.num_convs), [52, 8, 10]);
        let all: usize = net.store.parameters().iter().map(|v| v.tensor.numel()).sum();
        let layers = net.summary(512, 512);
        assert_eq!(layers.iter().map(|l| l.layer.parameters).sum::<usize>(), all);
        // 66.9 GMAC measured for the original at 512 x 512: backbone 56 %, fpn 6 %, head 39 %.
        let macs = |module: &str| -> f64 {
            let of = layers.iter().filter(|l| l.layer.name.starts_with(module));
            of.map(|l| l.macs as f64 / 1e9).sum()
        };
        let total = macs("");
        assert!((total - 66.9).abs() < 0.05, "{total}");
        for (module, percent) in [("backbone", 56.0), ("fpn", 6.0), ("head", 39.0)] {
            assert!((macs(module) / total * 100.0 - percent).abs() < 0.6, "{module}");
        }
    }

    /// The tiny network with the levels of the published one.
    fn five_levels() -> NetworkConfig {
        NetworkConfig {
            anchor_sizes: NetworkConfig::widedepth().anchor_sizes,
            ..NetworkConfig::widedepth_tiny()
        }
    }

    #[test]
    fn the_summary_tells_the_shapes_that_come_out() {
        let config = NetworkConfig { with_output_layer: true, ..five_levels() };
        let net = PoseNet::blank(&config, 2, Device::Cpu).unwrap();
        let layers = net.summary(100, 72);
        let features = tch::no_grad(|| net.features_t(&images(1, 72, 100), false));
        let output =
            |name: &str| layers.iter().find(|l| l.layer.name == name).unwrap().output.to_vec();
        assert_eq!(output("backbone.features.stage5.unit1.conv"), features.backbone[4].size()[1..]);
        assert_eq!(output("fpn.out_convs.2"), features.fpn[0].size()[1..]);
        assert_eq!(output("fpn.top_blocks.p7"), features.fpn[4].size()[1..]);
        assert_eq!(output("head.pose_pred"), [32, 9, 13]);
        assert_eq!(layers.iter().find(|l| l.layer.name == "head.cls_tower.0").unwrap().uses, 5);
        assert_eq!(layers.iter().find(|l| l.layer.name == "backbone.output").unwrap().uses, 0);
    }

    /// Computes, and writes down what shapes come out.
    struct Shapes {
        eager: Eager,
        shapes: Vec<Vec<i64>>,
    }

    impl Shapes {
        fn see(&mut self, y: Tensor) -> Tensor {
            self.shapes.push(y.size()[1..].to_vec());
            y
        }
    }

    impl Ops for Shapes {
        type Value = Tensor;

        fn share(&self, x: &Tensor) -> Tensor {
            self.eager.share(x)
        }

        fn size(&self, x: &Tensor) -> [i64; 2] {
            self.eager.size(x)
        }

        fn layer(&mut self, layer: &dyn Layer, x: &Tensor) -> Tensor {
            let y = self.eager.layer(layer, x);
            self.see(y)
        }

        fn function(&mut self, name: Arguments, f: Function, x: &[&Tensor]) -> Tensor {
            let y = self.eager.function(name, f, x);
            self.see(y)
        }
    }

    fn resnet(backbone: Backbone) -> NetworkConfig {
        NetworkConfig { backbone, resnet_width: 8, ..NetworkConfig::widedepth_tiny() }
    }

    #[test]
    fn a_trace_has_the_shapes_that_are_computed() {
        let with_output = NetworkConfig { with_output_layer: true, ..resnet(Backbone::Resnet34) };
        for config in [NetworkConfig::widedepth_tiny(), with_output, resnet(Backbone::Resnet50)] {
            let net = PoseNet::blank(&config, 2, Device::Cpu).unwrap();
            let mut run = Shapes { eager: Eager { train: false }, shapes: vec![vec![3, 72, 100]] };
            let outputs = tch::no_grad(|| net.record(&mut run, &images(1, 72, 100)));
            let trace = net.trace(100, 72);
            let traced: Vec<&Vec<i64>> = trace.nodes.iter().map(|node| &node.shape).collect();
            assert_eq!(traced, run.shapes.iter().collect::<Vec<_>>());
            let grid = net.grid(100, 72);
            for ((level, cls), reg) in grid.levels.iter().zip(&outputs.cls).zip(&outputs.reg) {
                let cells = [level.h as i64, level.w as i64];
                assert_eq!((&cls.size()[2..], &reg.size()[2..]), (&cells[..], &cells[..]));
            }
        }
    }

    #[test]
    fn resnets_have_torchvisions_keys_and_counts() {
        let published = |backbone| NetworkConfig { backbone, ..NetworkConfig::widedepth() };
        // torchvision's counts: 11,689,512, 21,797,672 and 25,557,032, the classifier included.
        for (backbone, millions, convs) in [
            (Backbone::Resnet18, 11_689_512, 20),
            (Backbone::Resnet34, 21_797_672, 36),
            (Backbone::Resnet50, 25_557_032, 53),
        ] {
            let net = PoseNet::blank(&published(backbone), 1, Device::Cpu).unwrap();
            let module = &net.modules()[0];
            assert_eq!((module.num_parameters, module.num_convs), (millions, convs));
            let key = |name: &str| net.store.get(name).map(|t| t.size());
            let expansion = backbone.expansion();
            assert_eq!(key("backbone.conv1.weight").unwrap(), [64, 3, 7, 7]);
            assert_eq!(key("backbone.fc.weight").unwrap(), [1000, 512 * expansion]);
            assert_eq!(
                key("backbone.layer2.0.downsample.0.weight").unwrap()[..2],
                [128 * expansion, 64 * expansion]
            );
            assert!(key("backbone.layer4.1.bn2.running_var").is_some());
            assert_eq!(module.num_unused, 1000 * (512 * expansion as usize + 1));
            assert_eq!(net.store.ends().first.iter().collect::<Vec<_>>(), ["backbone.conv1"]);
        }
    }

    #[test]
    fn the_network_tells_its_modules_and_ends() {
        let config = NetworkConfig { with_output_layer: true, ..NetworkConfig::widedepth_tiny() };
        let net = PoseNet::blank(&config, 1, Device::Cpu).unwrap();
        assert_eq!(net.store.modules(), ["backbone", "fpn", "head"]);
        let ends = net.store.ends();
        assert_eq!(ends.first.iter().collect::<Vec<_>>(), ["backbone.features.init_block.conv"]);
        assert_eq!(ends.last.iter().collect::<Vec<_>>(), ["head.cls_logits", "head.pose_pred"]);
        assert!(net.store.sites().iter().all(|site| site.name != "backbone.output"));
        let outputs: Vec<String> = net.trace(64, 64).outputs.into_iter().map(|o| o.0).collect();
        assert_eq!(outputs[..3], ["cls_p3", "reg_p3", "cls_p4"]);
    }

    #[test]
    fn the_tiny_network_fits_five_megabytes_and_any_image_size() {
        let net = PoseNet::new(&NetworkConfig::widedepth_tiny(), 2, Device::Cpu, 1).unwrap();
        let numbers: usize = net.state().iter().map(|(_, t)| t.numel()).sum();
        assert!((600_000..1_200_000).contains(&numbers), "{numbers}");
        for (h, w) in [(128, 128), (72, 100), (33, 1), (1, 1)] {
            let grid = net.grid(w, h);
            let images = images(1, h as i64, w as i64);
            let outputs = tch::no_grad(|| net.forward_t(&images, false));
            for ((level, cls), reg) in grid.levels.iter().zip(&outputs.cls).zip(&outputs.reg) {
                let (h, w) = (level.h as i64, level.w as i64);
                assert_eq!((cls.size(), reg.size()), (vec![1, 2, h, w], vec![1, 32, h, w]));
            }
        }
    }

    #[test]
    fn levels_may_start_finer_and_end_at_p5() {
        let config = NetworkConfig {
            finest_level: 2,
            anchor_sizes: vec![8.0, 16.0, 32.0, 64.0],
            ..NetworkConfig::widedepth_tiny()
        };
        let net = PoseNet::blank(&config, 1, Device::Cpu).unwrap();
        assert!(net.store.get("fpn.inner_convs.1.weight").is_some());
        assert!(net.store.get("fpn.top_blocks.p6.weight").is_none());
        let outputs = tch::no_grad(|| net.forward_t(&images(1, 64, 64), false));
        let sizes: Vec<i64> = outputs.cls.iter().map(|t| t.size()[2]).collect();
        assert_eq!(sizes, [16, 8, 4, 2]);
    }

    #[test]
    fn an_untrained_network_believes_in_one_cell_of_a_hundred() {
        let net = PoseNet::new(&NetworkConfig::widedepth_tiny(), 1, Device::Cpu, 3).unwrap();
        let outputs = tch::no_grad(|| net.forward_t(&images(2, 64, 64), true));
        let p = outputs.cls[0].sigmoid().mean(Kind::Float).double_value(&[]);
        assert!((p - 0.01).abs() < 0.005, "{p}");
        assert!(outputs.reg[0].abs().max().double_value(&[]) < 1.0);
    }

    #[test]
    fn channels_last_images_stay_channels_last() {
        let net = PoseNet::new(&five_levels(), 1, Device::Cpu, 3).unwrap();
        let bytes: Vec<u8> = (0..2 * 64 * 64 * 3).map(|i| (i * 31 % 256) as u8).collect();
        let preprocess = Preprocess { width: 64, height: 64, mean: [0.5; 3], std: [0.25; 3] };
        let nhwc = preprocess.images(&bytes, Device::Cpu).unwrap();
        let features = net.features_t(&nhwc, true);
        for t in features.backbone.iter().chain(&features.fpn[..4]) {
            let (c, w) = (t.size()[1], t.size()[3]);
            assert_eq!(t.stride()[1..], [1, w * c, c], "{t:?}");
        }
        let nchw = net.features_t(&nhwc.contiguous(), true);
        for (a, b) in features.fpn.iter().zip(&nchw.fpn) {
            let scale = b.abs().max().double_value(&[]);
            assert!((a - b).abs().max().double_value(&[]) < 1e-4 * scale);
        }
    }

    #[test]
    fn gradients_come_out_the_same_bit_for_bit() {
        let gradients = || {
            let net = PoseNet::new(&NetworkConfig::widedepth_tiny(), 1, Device::Cpu, 3).unwrap();
            let outputs = net.forward_t(&images(2, 64, 64), true);
            let all = outputs.cls.iter().chain(&outputs.reg);
            all.map(|t| t.square().sum(Kind::Float)).sum::<Tensor>().backward();
            net.store.parameters().iter().map(|v| v.tensor.grad()).collect::<Vec<_>>()
        };
        let (a, b) = (gradients(), gradients());
        assert!(a.iter().zip(&b).all(|(a, b)| a.equal(b)));
    }

    #[test]
    fn every_parameter_that_is_used_gets_a_gradient() {
        let config = NetworkConfig { with_output_layer: true, ..NetworkConfig::widedepth_tiny() };
        let net = PoseNet::new(&config, 1, Device::Cpu, 3).unwrap();
        let outputs = net.forward_t(&images(2, 64, 64), true);
        let all = outputs.cls.iter().chain(&outputs.reg);
        all.map(|t| t.square().sum(Kind::Float)).sum::<Tensor>().backward();
        for var in net.store.parameters() {
            let grad = var.tensor.grad();
            let any = grad.defined() && grad.abs().sum(Kind::Float).double_value(&[]) > 0.0;
            // A bias in front of a group norm of one channel a group would have none; these groups are wider.
            assert_eq!(any, !var.name.starts_with("backbone.output"), "{}", var.name);
        }
    }

    #[test]
    fn a_layer_more_does_not_change_the_others_initial_values() {
        let tiny = NetworkConfig::widedepth_tiny();
        let deeper = NetworkConfig { head_convs: tiny.head_convs + 1, ..tiny.clone() };
        let build = |config, seed| PoseNet::new(config, 1, Device::Cpu, seed).unwrap();
        let (a, b, c) = (build(&tiny, 7), build(&deeper, 7), build(&tiny, 8));
        for var in a.store.vars() {
            let other = b.store.get(&var.name).unwrap();
            assert!(other.equal(&var.tensor), "{}", var.name);
        }
        let key = "head.pose_pred.weight";
        assert!(!a.store.get(key).unwrap().equal(&c.store.get(key).unwrap()));
    }

    #[test]
    fn what_is_out_of_range_is_refused_by_name() {
        let config = NetworkConfig { head_convs: 0, ..NetworkConfig::widedepth_tiny() };
        let error = PoseNet::new(&config, 1, Device::Cpu, 1).err().unwrap().to_string();
        assert!(error.contains("network.head_convs: 0 is outside 1..=8"), "{error}");
        let error = PoseNet::new(&NetworkConfig::widedepth_tiny(), 0, Device::Cpu, 1);
        assert!(error.err().unwrap().to_string().contains("0 object classes"));
    }
}
