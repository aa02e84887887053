//! Runs a graph with libtorch: to calibrate it, and to tell what another runtime should compute.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use super::graph::{Conv, Graph, GraphNode, NodeId, Op, Output};
use super::plan::{GraphPlan, QParams, integer_bias};
use crate::nn::{Engine, Function, NORM_EPS, OutputShape, Outputs};

/// A graph's constants as tensors, ready to run.
pub struct Reference<'a> {
    graph: &'a Graph,
    weights: Vec<(Tensor, Tensor)>,
    norms: Vec<(Tensor, Tensor)>,
    /// How often a value is read.
    num_readers: Vec<usize>,
}

impl<'a> Reference<'a> {
    /// Copies the constants.
    pub fn new(graph: &'a Graph) -> Self {
        let weights = graph.convs.iter().map(|c| (c.values(), Tensor::from_slice(&c.bias)));
        let norms = graph.norms.iter();
        let norms = norms.map(|n| (Tensor::from_slice(&n.weight), Tensor::from_slice(&n.bias)));
        let mut num_readers = vec![0; graph.nodes.len()];
        for x in graph.nodes.iter().flat_map(|node| node.inputs.clone()) {
            num_readers[x] += 1;
        }
        graph.outputs.iter().for_each(|output| num_readers[output.node] += 1);
        Self { graph, weights: weights.collect(), norms: norms.collect(), num_readers }
    }

    /// The outputs for images `[n, 3, h, w]`, rounded as the plan says; `see` gets every value before it is rounded.
    ///
    /// # Errors
    /// If the images have not the graph's size.
    pub fn run(
        &self,
        images: &Tensor,
        plan: Option<&GraphPlan>,
        mut see: impl FnMut(NodeId, &Tensor),
    ) -> Result<Outputs> {
        self.run_along(images, plan, |node, value| {
            see(node, value);
            None
        })
    }

    /// As [`Reference::run`]; where `along` gives a value, the nodes that read this one compute with that instead.
    ///
    /// # Errors
    /// As [`Reference::run`].
    pub fn run_along(
        &self,
        images: &Tensor,
        plan: Option<&GraphPlan>,
        along: impl FnMut(NodeId, &Tensor) -> Option<Tensor>,
    ) -> Result<Outputs> {
        self.run_with(images, plan, along, |_, _| None)
    }

    /// As [`Reference::run`]; what `correct` gives takes the place of a value before it is rounded.
    ///
    /// # Errors
    /// As [`Reference::run`].
    pub fn run_corrected(
        &self,
        images: &Tensor,
        plan: &GraphPlan,
        correct: impl FnMut(NodeId, &Tensor) -> Option<Tensor>,
    ) -> Result<Outputs> {
        self.run_with(images, Some(plan), |_, _| None, correct)
    }

    fn run_with(
        &self,
        images: &Tensor,
        plan: Option<&GraphPlan>,
        mut along: impl FnMut(NodeId, &Tensor) -> Option<Tensor>,
        mut correct: impl FnMut(NodeId, &Tensor) -> Option<Tensor>,
    ) -> Result<Outputs> {
        let nodes = &self.graph.nodes;
        ensure!(
            images.size().get(1..) == Some(&nodes[0].shape[..]),
            "images of shape {:?}, expected [n, {:?}]",
            images.size(),
            nodes[0].shape
        );
        let mut values: Vec<Option<Tensor>> = nodes.iter().map(|_| None).collect();
        let mut waiting = self.num_readers.clone();
        tch::no_grad(|| {
            for (i, node) in nodes.iter().enumerate() {
                let mut value = self.value(i, images, plan, &values);
                if let Some(corrected) = correct(i, &value) {
                    value = corrected;
                }
                let rounding = plan.and_then(|plan| Rounding::of(plan, i));
                values[i] = Some(match (along(i, &value), rounding) {
                    (Some(other), _) => other,
                    (None, Some(rounding)) => rounding.values(&rounding.integers(&value)),
                    (None, None) => value,
                });
                for &x in &node.inputs {
                    waiting[x] -= 1;
                    if waiting[x] == 0 {
                        values[x] = None;
                    }
                }
            }
        });
        let value = |output: &Output| {
            let value = values[output.node].as_ref().expect("outputs are kept");
            if output.flat { value.flatten(1, -1) } else { value.shallow_clone() }
        };
        let named = self.graph.outputs.iter().map(|output| (output.name.clone(), value(output)));
        Ok(Outputs::new(named.collect()))
    }

    fn value(
        &self,
        node: NodeId,
        images: &Tensor,
        plan: Option<&GraphPlan>,
        values: &[Option<Tensor>],
    ) -> Tensor {
        let GraphNode { op, inputs, shape, .. } = &self.graph.nodes[node];
        let of = |i: usize| values[inputs[i]].as_ref().expect("nodes read earlier ones");
        match *op {
            Op::Input => images.shallow_clone(),
            Op::Conv { conv } => {
                let own = plan.and_then(|plan| own_bias(self.graph, plan, node, inputs[0], conv));
                let again = plan.and_then(|plan| plan.inputs[node]);
                let x = again.map_or_else(|| of(0).shallow_clone(), |p| round(of(0), &p));
                let (weight, bias) = &self.weights[conv];
                convolve(&self.graph.convs[conv], &x, weight, own.as_ref().unwrap_or(bias))
            }
            Op::GroupNorm { norm } => {
                let (weight, bias) = &self.norms[norm];
                let groups = self.graph.norms[norm].groups;
                of(0).group_norm(groups, Some(weight), Some(bias), NORM_EPS, true)
            }
            Op::Affine { norm } => {
                let (weight, bias) = &self.norms[norm];
                of(0) * weight.view([1, -1, 1, 1]) + bias.view([1, -1, 1, 1])
            }
            Op::Scale { factor } => of(0) * f64::from(factor),
            Op::Function(Function::Flatten) => of(0).reshape([-1, shape[0], 1, 1]),
            Op::Function(function) => {
                let x: Vec<&Tensor> = (0..inputs.len()).map(of).collect();
                function.compute(&x)
            }
        }
    }
}

fn convolve(conv: &Conv, x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let window = conv.window;
    let (stride, pad, dilation) = ([window.stride; 2], [window.padding; 2], [window.dilation; 2]);
    match window.output_padding {
        None => x.conv2d(weight, Some(bias), stride, pad, dilation, window.groups),
        Some(cells) => {
            let weight = weight.transpose(0, 1);
            x.conv_transpose2d(&weight, Some(bias), stride, pad, [cells; 2], 1, dilation)
        }
    }
}

/// A graph, rounded as a plan says, as an engine: what the written file should compute.
pub struct PlannedGraph<'a> {
    reference: Reference<'a>,
    plan: &'a GraphPlan,
}

impl<'a> PlannedGraph<'a> {
    /// Copies the graph's constants.
    pub fn new(graph: &'a Graph, plan: &'a GraphPlan) -> Self {
        Self { reference: Reference::new(graph), plan }
    }
}

impl Engine for PlannedGraph<'_> {
    fn outputs(&self, _width: usize, _height: usize) -> Vec<OutputShape> {
        let graph = self.reference.graph;
        let shape = |output: &Output| {
            let shape = &graph.nodes[output.node].shape;
            shape[..if output.flat { 1 } else { 3 }].to_vec()
        };
        let of = |output: &Output| OutputShape { name: output.name.clone(), shape: shape(output) };
        graph.outputs.iter().map(of).collect()
    }

    fn forward(&self, images: &Tensor) -> Result<Outputs> {
        self.reference.run(images, Some(self.plan), |_, _| {})
    }
}

/// The bias of a convolution in a plan, if it is not the layer's: rounded for one of integers.
fn own_bias(
    graph: &Graph,
    plan: &GraphPlan,
    node: NodeId,
    x: NodeId,
    conv: usize,
) -> Option<Tensor> {
    let Some((integers, scales)) = integer_bias(graph, plan, node, x, conv) else {
        return plan.biases[node].as_ref().map(|bias| Tensor::from_slice(bias));
    };
    let scale_of = |channel: usize| scales[if scales.len() == 1 { 0 } else { channel }];
    let value = |(channel, v): (usize, &i32)| *v as f32 * scale_of(channel);
    Some(Tensor::from_slice(&integers.iter().enumerate().map(value).collect::<Vec<f32>>()))
}

/// How a node's value is rounded: by one step, or by one a channel.
pub(super) struct Rounding {
    /// `[]` or `[1, c, 1, 1]`.
    scale: Tensor,
    zero: Tensor,
    range: (i32, i32),
}

impl Rounding {
    /// Of a node; none where its value stays float.
    pub fn of(plan: &GraphPlan, node: NodeId) -> Option<Self> {
        let params = plan.values[node]?;
        let all = plan.channels[node].as_deref();
        let tensor = |of: fn(&QParams) -> f32| match all {
            Some(all) => {
                Tensor::from_slice(&all.iter().map(of).collect::<Vec<f32>>()).view([1, -1, 1, 1])
            }
            None => Tensor::from(of(&params)),
        };
        let (scale, zero) = (tensor(|p| p.scale), tensor(|p| p.zero_point as f32));
        Some(Self { scale, zero, range: params.range() })
    }

    /// The integers, as floats, halves to even.
    pub fn integers(&self, x: &Tensor) -> Tensor {
        let (low, high) = self.range;
        ((x / &self.scale).round() + &self.zero).clamp(f64::from(low), f64::from(high))
    }

    /// What integers, as floats, stand for.
    pub fn values(&self, integers: &Tensor) -> Tensor {
        (integers - &self.zero) * &self.scale
    }
}

/// Rounds to the integers of `params` and back, halves to even.
fn round(x: &Tensor, params: &QParams) -> Tensor {
    let (low, high) = params.range();
    let zero = f64::from(params.zero_point);
    let integers = (x / f64::from(params.scale)).round() + zero;
    let integers = integers.clamp(f64::from(low), f64::from(high));
    ((integers - zero) * f64::from(params.scale)).to_kind(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::calibrate::{Calibration, CalibrationMethod, calibrate};
    use crate::export::onnx::graph::Weight;
    use crate::export::onnx::network::{graph_of, graph_of_trace};
    use crate::export::onnx::plan;
    use crate::export::onnx::testing::{images, network};
    use crate::nn::{
        BatchNorm, Conv2d, ConvShape, ConvTranspose2d, Eager, Fill, Linear, Ops, PoolShape, Store,
        Trace, Tracer, TransposeShape,
    };
    use crate::quant::{Claim, ModuleQuantizer, WeightQuantConfig};
    use crate::topology::wdr::{Backbone, NetworkConfig};
    use tch::Device;

    /// The largest difference of outputs of the same names and shapes, as a fraction of the largest value.
    fn difference(ours: &Outputs, theirs: &Outputs) -> f64 {
        assert_eq!(ours.iter().count(), theirs.iter().count());
        let one = |(name, a): (&str, &Tensor)| {
            let b = theirs.get(name).unwrap();
            assert_eq!(a.size(), b.size());
            let scale = b.abs().max().double_value(&[]);
            assert!(scale > 0.0);
            (a - b).abs().max().double_value(&[]) / scale
        };
        ours.iter().map(one).fold(0.0, f64::max)
    }

    #[test]
    fn the_tiny_network_has_its_nodes_and_convolutions() {
        let net = network(&NetworkConfig::widedepth_tiny(), 2);
        let graph = graph_of(&net, &[], (64, 64)).unwrap();
        assert_eq!((graph.nodes.len(), graph.convs.len(), graph.norms.len()), (83, 24, 4));
        assert!(!graph.nodes.iter().any(|n| matches!(n.op, Op::Affine { .. })));
        let name = |i: usize| graph.nodes[i].name.as_str();
        assert_eq!([name(0), name(1)], ["images", "backbone.features.init_block.conv"]);
        let last = graph.nodes.len() - 1;
        assert_eq!([name(last - 1), name(last)], ["head.pose_pred.p5", "head.scales.2.scale"]);
    }

    #[test]
    fn a_resnets_batch_norms_are_folded_wherever_they_stand() {
        for backbone in [Backbone::Resnet18, Backbone::Resnet50] {
            let config = NetworkConfig {
                backbone,
                resnet_width: 8,
                finest_level: 2,
                anchor_sizes: vec![8.0, 16.0, 32.0, 64.0, 128.0],
                ..NetworkConfig::widedepth_tiny()
            };
            let net = network(&config, 2);
            let graph = graph_of(&net, &[], (72, 100)).unwrap();
            assert!(!graph.nodes.iter().any(|n| matches!(n.op, Op::Affine { .. })));
            let sites = net.store.sites().len();
            assert_eq!(graph.convs.len(), sites);
            let images = images(2, 72, 100);
            let ours = Reference::new(&graph).run(&images, None, |_, _| {}).unwrap();
            let diff = difference(&ours, &net.forward(&images).unwrap());
            assert!(diff < 1e-4, "{backbone:?}: {diff}");
        }
    }

    /// Every kind of layer and function that no pose network has, and a batch norm that nothing takes in.
    struct Odd {
        store: Store,
        dilated: Conv2d,
        grouped: Conv2d,
        up: ConvTranspose2d,
        up_norm: BatchNorm,
        free_norm: BatchNorm,
        fc: Linear,
    }

    impl Odd {
        fn new() -> Self {
            let store = Store::seeded(Device::Cpu, 3);
            let root = store.root();
            let fill = |n| Fill::kaiming_uniform(n, 0.0);
            let shape = ConvShape::new(3, 8, 3);
            let up = TransposeShape {
                c_in: 8,
                c_out: 6,
                kernel: 3,
                stride: 2,
                padding: 1,
                output_padding: 1,
            };
            let net = Self {
                dilated: Conv2d::new(&(&root / "dilated"), shape.dilation(2), fill(27), Some(0.1)),
                grouped: Conv2d::new(
                    &(&root / "grouped"),
                    ConvShape::new(8, 8, 3).groups(4).stride(2),
                    fill(18),
                    None,
                ),
                up: ConvTranspose2d::new(&(&root / "up"), up, fill(72), Some(0.2)),
                up_norm: BatchNorm::new(&(&root / "up_norm"), 6),
                free_norm: BatchNorm::new(&(&root / "free_norm"), 8),
                fc: Linear::new(&(&root / "fc"), 14, 5),
                store,
            };
            tch::no_grad(|| {
                for var in net.store.vars() {
                    let mut t = var.tensor.shallow_clone();
                    match var.name.rsplit_once('.') {
                        Some((_, "running_mean")) => drop(t.fill_(0.3)),
                        Some((_, "running_var")) => drop(t.fill_(2.0)),
                        _ => {}
                    }
                }
            });
            net
        }

        /// A map and a vector.
        fn run<O: Ops>(&self, ops: &mut O, images: &O::Value) -> [O::Value; 2] {
            let x = ops.layer(&self.dilated, images);
            let normed = ops.layer(&self.free_norm, &x);
            let x = ops.sub(format_args!("sub"), &normed, &x); // a second reader of the convolution
            let y = ops.layer(&self.grouped, &x);
            let up = ops.layer(&self.up, &y);
            let up = ops.layer(&self.up_norm, &up);
            let map = ops.concat(format_args!("concat"), &[&up, &x]);
            let pool = PoolShape { kernel: 3, stride: 2, padding: 1 };
            let pooled = ops.max_pool(format_args!("pool"), pool, &map);
            let mean = ops.global_avg_pool(format_args!("mean"), &pooled);
            let flat = ops.flatten(format_args!("flat"), &mean);
            let vector = ops.layer(&self.fc, &flat);
            [map, vector]
        }

        fn outputs(&self, images: &Tensor) -> Outputs {
            let [map, vector] = tch::no_grad(|| self.run(&mut Eager { train: false }, images));
            Outputs::new(vec![("map".to_owned(), map), ("vector".to_owned(), vector)])
        }

        fn trace(&self) -> Trace {
            let mut tracer = Tracer::new();
            let images = tracer.input("images", &[3, 12, 16]);
            let [map, vector] = self.run(&mut tracer, &images);
            tracer.finish(vec![("map".to_owned(), map), ("vector".to_owned(), vector)])
        }
    }

    #[test]
    fn every_kind_of_layer_is_computed_from_the_graph() {
        let net = Odd::new();
        let images = images(2, 16, 12);
        let float = graph_of_trace(&net.store, &net.trace(), &[]).unwrap();
        assert_eq!(float.norms.len(), 1); // the transposed convolution took the other one in
        let theirs = net.outputs(&images);
        let ours = Reference::new(&float).run(&images, None, |_, _| {}).unwrap();
        assert!(difference(&ours, &theirs) < 1e-5);

        // Integer weights: on levels, a transposed convolution's and a linear layer's, too.
        let config: WeightQuantConfig =
            serde_json::from_str(r#"{"bits": 4, "schedule": {"0": 1}}"#).unwrap();
        let quantizers = ["dilated", "grouped", "up", "fc"].map(|module| {
            let mut quantizer =
                ModuleQuantizer::attach(&Claim::of(module).with_weights(&config), &net.store)
                    .unwrap();
            quantizer.start_epoch(0).unwrap();
            quantizer
        });
        let graph = graph_of_trace(&net.store, &net.trace(), &quantizers).unwrap();
        assert!(graph.convs.iter().all(|conv| matches!(conv.weight, Weight::Codes(_))));
        let theirs = net.outputs(&images);
        let ours = Reference::new(&graph).run(&images, None, |_, _| {}).unwrap();
        assert!(difference(&ours, &theirs) < 1e-5);

        // And rounded values in between: near, and not the same.
        let mut graph = float;
        let wanted = plan::wanted(&graph, true);
        let calibration =
            Calibration { method: CalibrationMethod::MinMax, bits: 8, symmetric: false };
        let none = GraphPlan::none(graph.nodes.len());
        plan::round_weights(&mut graph, &wanted, false);
        let found = calibrate(&graph, &none, &wanted, calibration, |each| each(&images)).unwrap();
        let plan = plan::calibrated(&graph, &Default::default(), found);
        plan::fit_biases(&mut graph, &plan);
        let float = Reference::new(&graph).run(&images, None, |_, _| {}).unwrap();
        let rounded = Reference::new(&graph).run(&images, Some(&plan), |_, _| {}).unwrap();
        let diff = difference(&rounded, &float);
        assert!(diff > 0.0 && diff < 0.1, "{diff}");
    }

    #[test]
    fn a_partly_frozen_module_keeps_the_floats_that_it_computes_with() {
        let net = Odd::new();
        let config: WeightQuantConfig =
            serde_json::from_str(r#"{"bits": 2, "schedule": {"0": 0.5, "1": 1}}"#).unwrap();
        let claim = |module| Claim::of(module).with_weights(&config);
        let quantizers = [("dilated", 0), ("grouped", 1)].map(|(module, epoch)| {
            let mut quantizer = ModuleQuantizer::attach(&claim(module), &net.store).unwrap();
            for epoch in 0..=epoch {
                quantizer.start_epoch(epoch).unwrap();
            }
            quantizer
        });
        assert_eq!([quantizers[0].is_partial(), quantizers[1].is_partial()], [true, false]);
        let graph = graph_of_trace(&net.store, &net.trace(), &quantizers).unwrap();
        let conv = |name: &str| graph.convs.iter().find(|conv| conv.name == name).unwrap();
        assert!(matches!(conv("dilated").weight, Weight::Float(_)));
        assert!(matches!(conv("grouped").weight, Weight::Codes(_)));
        assert_eq!(conv("dilated").trained_bits, 32);
        let images = images(2, 16, 12);
        let ours = Reference::new(&graph).run(&images, None, |_, _| {}).unwrap();
        assert!(difference(&ours, &net.outputs(&images)) < 1e-5);
    }

    #[test]
    fn the_graph_computes_what_the_network_does() {
        let odd = NetworkConfig {
            finest_level: 2,
            anchor_sizes: vec![8.0, 16.0, 32.0, 64.0, 128.0],
            ..NetworkConfig::widedepth_tiny()
        };
        for (config, (w, h)) in [(NetworkConfig::widedepth_tiny(), (64, 96)), (odd, (72, 100))] {
            let net = network(&config, 2);
            let graph = graph_of(&net, &[], (w, h)).unwrap();
            let images = images(2, w as i64, h as i64);
            let ours = Reference::new(&graph).run(&images, None, |_, _| {}).unwrap();
            let diff = difference(&ours, &net.forward(&images).unwrap());
            assert!(diff < 1e-4, "{diff}");
        }
    }

    #[test]
    fn rounding_is_that_of_the_format() {
        let p = QParams::of_levels(-1.0, 1.0, 3).unwrap();
        let x = Tensor::from_slice(&[-9.0f32, -0.51, -0.5, 0.5, 0.51, 1.5]);
        assert!(round(&x, &p).equal(&Tensor::from_slice(&[-1.0f32, -1.0, 0.0, 0.0, 1.0, 1.0])));
    }

    #[test]
    fn more_bits_everywhere_come_nearer_to_the_floats() {
        let net = network(&NetworkConfig::widedepth_tiny(), 1);
        let images = images(2, 64, 64);
        let error = |bits: u32| {
            let mut graph = graph_of(&net, &[], (64, 64)).unwrap();
            let wanted = plan::wanted(&graph, false);
            let mut found = plan::Found {
                values: vec![None; graph.nodes.len()],
                channels: vec![None; graph.nodes.len()],
            };
            let see = |node: NodeId, x: &Tensor| {
                let (low, high) = (x.min().double_value(&[]), x.max().double_value(&[]));
                found.values[node] = wanted.values[node]
                    .then(|| QParams::over(low as f32, high as f32, bits, false));
            };
            let float = Reference::new(&graph).run(&images, None, see).unwrap();
            plan::round_weights(&mut graph, &wanted, false);
            let plan = plan::calibrated(&graph, &Default::default(), found);
            plan::fit_biases(&mut graph, &plan);
            let rounded = Reference::new(&graph).run(&images, Some(&plan), |_, _| {}).unwrap();
            let pairs = rounded.iter().zip(float.iter());
            let offsets = pairs.filter(|((name, _), _)| name.starts_with("reg"));
            offsets
                .map(|((_, a), (_, b))| (a - b).abs().sum(Kind::Double).double_value(&[]))
                .sum::<f64>()
        };
        let [coarse, fine] = [4, 8].map(error);
        assert!(fine > 0.0 && fine < 0.5 * coarse, "{fine} {coarse}");
    }
}
