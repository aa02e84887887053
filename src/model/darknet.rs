//! The backbone: Darknet-53 and narrower ones of the same keys.

use tch::Tensor;

use super::config::NetworkConfig;
use crate::nn::{BatchNorm, Conv2d, ConvShape, Fill, LayerSummary, Linear, Path, leaky_relu};

/// Slope of the rule for the convolutions' initial values: PyTorch's default, uniform in `1 / sqrt(fan_in)`.
///
/// Batch norm makes the outputs independent of the weights' scale, and small weights turn faster. Tried on textured
/// cubes with the tiny network, one seed, learning rate 0.01: after 240 steps the losses were 6 % (regression) and
/// 9 % (classification) lower than with the rule for a slope of 0.1.
const INIT_SLOPE: f64 = 2.23606797749979; // sqrt(5)
/// Classes of the unused classifier (ImageNet).
const OUTPUT_CLASSES: i64 = 1000;

/// Convolution, batch norm, leaky ReLU.
///
/// Keys: `conv.weight`, `bn.{weight,bias,running_mean,running_var,num_batches_tracked}`.
struct ConvBnLeaky {
    conv: Conv2d,
    bn: BatchNorm,
}

impl ConvBnLeaky {
    fn new(p: &Path, shape: ConvShape) -> Self {
        let fill = Fill::kaiming_uniform(shape.fan_in(), INIT_SLOPE);
        Self {
            conv: Conv2d::new(&(p / "conv"), shape, fill, None),
            bn: BatchNorm::new(&(p / "bn"), shape.c_out),
        }
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        leaky_relu(self.bn.forward_t(&self.conv.forward_t(x, train), train))
    }

    fn summarize(&self, size: (i64, i64), layers: &mut Vec<LayerSummary>) -> (i64, i64) {
        let size = self.conv.summarize(size, layers);
        self.bn.summarize(size, layers);
        size
    }
}

/// `x + conv2(conv1(x))`: 1x1 to half the channels, 3x3 back.
///
/// Keys: `conv1.*`, `conv2.*`.
struct Residual {
    conv1: ConvBnLeaky,
    conv2: ConvBnLeaky,
}

impl Residual {
    fn new(p: &Path, channels: i64) -> Self {
        Self {
            conv1: ConvBnLeaky::new(&(p / "conv1"), ConvShape::new(channels, channels / 2, 1)),
            conv2: ConvBnLeaky::new(&(p / "conv2"), ConvShape::new(channels / 2, channels, 3)),
        }
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        // No gradient needs the activation's output, so the sum may take its place.
        self.conv2.forward_t(&self.conv1.forward_t(x, train), train).g_add_(x)
    }
}

/// A stride-2 convolution (`unit1`), then residual pairs (`unit2`, ...).
struct Stage {
    down: ConvBnLeaky,
    units: Vec<Residual>,
}

/// Darknet-53's features, and its classifier where the state is to hold it.
///
/// Keys: `features.init_block.*`, `features.stage{1..5}.unit{1..}.*`, `output.{weight,bias}`.
pub(super) struct Darknet {
    init_block: ConvBnLeaky,
    stages: Vec<Stage>,
    output: Option<Linear>,
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
            stages.push(Stage {
                down: ConvBnLeaky::new(&(&p / "unit1"), shape),
                units: (2..=units)
                    .map(|unit| Residual::new(&(&p / format!("unit{unit}")), channels))
                    .collect(),
            });
            c_in = channels;
        }
        let output =
            config.with_output_layer.then(|| Linear::new(&(p / "output"), c_in, OUTPUT_CLASSES));
        Self { init_block, stages, output }
    }

    /// The outputs of the 5 stages, strides 2 to 32, for images `[n, 3, h, w]`.
    pub(super) fn forward_t(&self, images: &Tensor, train: bool) -> Vec<Tensor> {
        let mut x = self.init_block.forward_t(images, train);
        let mut outputs = vec![];
        for stage in &self.stages {
            x = stage.down.forward_t(&x, train); // [n, c, h / 2, w / 2], rounded up
            for unit in &stage.units {
                x = unit.forward_t(&x, train);
            }
            outputs.push(x.shallow_clone());
        }
        outputs
    }

    /// Learnt numbers that no output depends on.
    pub(super) fn num_unused(&self) -> usize {
        self.output.as_ref().map_or(0, Linear::num_parameters)
    }

    /// Adds the layers' lines for images of `size` (height, width); returns the sizes of the stages.
    pub(super) fn summarize(
        &self,
        size: (i64, i64),
        layers: &mut Vec<LayerSummary>,
    ) -> Vec<(i64, i64)> {
        let mut size = self.init_block.summarize(size, layers);
        let mut sizes = vec![];
        for stage in &self.stages {
            size = stage.down.summarize(size, layers);
            for unit in &stage.units {
                unit.conv1.summarize(size, layers);
                unit.conv2.summarize(size, layers);
            }
            sizes.push(size);
        }
        if let Some(output) = &self.output {
            output.summarize(layers);
        }
        sizes
    }
}
