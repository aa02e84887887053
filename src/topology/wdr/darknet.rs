//! Darknet-53 and narrower ones of the same keys.

use super::config::NetworkConfig;
use crate::nn::{BatchNorm, Conv2d, ConvShape, Fill, Linear, Ops, Path};

/// Slope of the rule for the convolutions' initial values: PyTorch's default, uniform in `1 / sqrt(fan_in)`.
///
/// Batch norm makes the outputs independent of the weights' scale, and small weights turn faster. Tried on textured
/// cubes with the tiny network, one seed, learning rate 0.01: after 240 steps the losses were 6 % (regression) and
/// 9 % (classification) lower than with the rule for a slope of 0.1.
const INIT_SLOPE: f64 = 2.23606797749979; // sqrt(5)
/// Classes of the unused classifier (ImageNet).
pub(super) const OUTPUT_CLASSES: i64 = 1000;

/// Convolution, batch norm, leaky ReLU.
///
/// Keys: `conv.weight`, `bn.{weight,bias,running_mean,running_var,num_batches_tracked}`.
struct ConvBnLeaky {
    name: String,
    conv: Conv2d,
    bn: BatchNorm,
}

impl ConvBnLeaky {
    fn new(p: &Path, shape: ConvShape) -> Self {
        let fill = Fill::kaiming_uniform(shape.fan_in(), INIT_SLOPE);
        Self {
            name: p.prefix().to_owned(),
            conv: Conv2d::new(&(p / "conv"), shape, fill, None),
            bn: BatchNorm::new(&(p / "bn"), shape.c_out),
        }
    }

    fn run<O: Ops>(&self, ops: &mut O, x: &O::Value) -> O::Value {
        let y = conv_bn(ops, &self.conv, &self.bn, x);
        ops.leaky_relu_in_place(format_args!("{}.activ", self.name), y)
    }
}

/// A convolution and its batch norm; what lies between is not kept.
pub(super) fn conv_bn<O: Ops>(
    ops: &mut O,
    conv: &Conv2d,
    bn: &BatchNorm,
    x: &O::Value,
) -> O::Value {
    let y = ops.layer(conv, x);
    ops.layer(bn, &y)
}

/// `x + conv2(conv1(x))`: 1x1 to half the channels, 3x3 back.
///
/// Keys: `conv1.*`, `conv2.*`.
struct Residual {
    name: String,
    conv1: ConvBnLeaky,
    conv2: ConvBnLeaky,
}

impl Residual {
    fn new(p: &Path, channels: i64) -> Self {
        Self {
            name: p.prefix().to_owned(),
            conv1: ConvBnLeaky::new(&(p / "conv1"), ConvShape::new(channels, channels / 2, 1)),
            conv2: ConvBnLeaky::new(&(p / "conv2"), ConvShape::new(channels / 2, channels, 3)),
        }
    }

    fn run<O: Ops>(&self, ops: &mut O, x: &O::Value) -> O::Value {
        let y = self.conv1.run(ops, x);
        let y = self.conv2.run(ops, &y);
        // No gradient needs the activation's output, so the sum may take its place.
        ops.add_in_place(format_args!("{}.add", self.name), y, x)
    }
}

/// A stride-2 convolution (`unit1`), then residual pairs (`unit2`, ...).
struct DarknetStage {
    down: ConvBnLeaky,
    units: Vec<Residual>,
}

/// Darknet-53's features, and its classifier, which nothing runs, where the state is to hold it.
///
/// Keys: `features.init_block.*`, `features.stage{1..5}.unit{1..}.*`, `output.{weight,bias}`.
pub(in crate::topology) struct Darknet {
    init_block: ConvBnLeaky,
    stages: Vec<DarknetStage>,
}

impl Darknet {
    pub(super) fn new(p: &Path, config: &NetworkConfig) -> Self {
        let features = p / "features";
        let stem = config.stem_channels;
        let init_block = ConvBnLeaky::new(&(&features / "init_block"), ConvShape::new(3, stem, 3));
        let mut stages = vec![];
        let mut c_in = stem;
        for (i, (&channels, &units)) in
            config.stage_channels.iter().zip(&config.stage_units).enumerate()
        {
            let p = &features / format!("stage{}", i + 1);
            let shape = ConvShape::new(c_in, channels, 3).stride(2);
            stages.push(DarknetStage {
                down: ConvBnLeaky::new(&(&p / "unit1"), shape),
                units: (2..=units)
                    .map(|unit| Residual::new(&(&p / format!("unit{unit}")), channels))
                    .collect(),
            });
            c_in = channels;
        }
        if config.with_output_layer {
            let _ = Linear::new(&(p / "output"), c_in, OUTPUT_CLASSES);
        }
        Self { init_block, stages }
    }

    /// The outputs of the 5 stages, strides 2 to 32, for images `[n, 3, h, w]`.
    pub(super) fn run<O: Ops>(&self, ops: &mut O, images: &O::Value) -> Vec<O::Value> {
        let mut x = self.init_block.run(ops, images);
        let mut outputs = vec![];
        for stage in &self.stages {
            x = stage.down.run(ops, &x); // [n, c, h / 2, w / 2], rounded up
            for unit in &stage.units {
                x = unit.run(ops, &x);
            }
            outputs.push(ops.share(&x));
        }
        outputs
    }
}
