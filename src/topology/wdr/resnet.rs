//! ResNet-18, -34 and -50 with torchvision's keys, and narrower ones.

use super::config::{Backbone, NetworkConfig};
use super::darknet::{OUTPUT_CLASSES, conv_bn};
use crate::nn::{BatchNorm, Conv2d, ConvShape, Fill, Linear, Ops, Path, PoolShape};

/// The pooling behind the first convolution.
const POOL: PoolShape = PoolShape { kernel: 3, stride: 2, padding: 1 };

/// A convolution with its batch norm: two keys side by side.
struct ConvBn {
    conv: Conv2d,
    bn: BatchNorm,
}

impl ConvBn {
    fn new(conv: &Path, bn: &Path, shape: ConvShape) -> Self {
        // Kaiming's rule for a ReLU behind it, as torchvision has it up to the shape of the distribution.
        let fill = Fill::kaiming_uniform(shape.fan_in(), 0.0);
        Self { conv: Conv2d::new(conv, shape, fill, None), bn: BatchNorm::new(bn, shape.c_out) }
    }

    fn run<O: Ops>(&self, ops: &mut O, x: &O::Value) -> O::Value {
        conv_bn(ops, &self.conv, &self.bn, x)
    }
}

/// `relu(shortcut(x) + convs(x))`: two 3x3, or 1x1, 3x3 and 1x1 to four times the channels.
///
/// Keys: `conv{1..}.*`, `bn{1..}.*`, and `downsample.{0,1}.*` (1x1) where the shape changes. The stride is in the 3x3, as
/// in torchvision.
struct Block {
    name: String,
    convs: Vec<ConvBn>,
    downsample: Option<ConvBn>,
}

impl Block {
    fn new(p: &Path, c_in: i64, shapes: &[ConvShape], stride: i64) -> Self {
        let layer = |(i, shape): (usize, &ConvShape)| {
            ConvBn::new(&(p / format!("conv{}", i + 1)), &(p / format!("bn{}", i + 1)), *shape)
        };
        let convs = shapes.iter().enumerate().map(layer).collect();
        let c_out = shapes[shapes.len() - 1].c_out;
        let downsample = (stride != 1 || c_in != c_out).then(|| {
            let shape = ConvShape::new(c_in, c_out, 1).stride(stride);
            ConvBn::new(&(p / "downsample" / 0), &(p / "downsample" / 1), shape)
        });
        Self { name: p.prefix().to_owned(), convs, downsample }
    }

    fn run<O: Ops>(&self, ops: &mut O, x: &O::Value) -> O::Value {
        let name = &self.name;
        let mut y = ops.share(x);
        for (i, conv) in self.convs.iter().enumerate() {
            y = conv.run(ops, &y);
            if i + 1 < self.convs.len() {
                y = ops.relu_in_place(format_args!("{name}.relu{}", i + 1), y);
            }
        }
        let shortcut = self.downsample.as_ref().map(|conv| conv.run(ops, x));
        let y = ops.add_in_place(format_args!("{name}.add"), y, shortcut.as_ref().unwrap_or(x));
        ops.relu_in_place(format_args!("{name}.relu"), y)
    }
}

/// A ResNet's features, and its classifier, which nothing runs, where the state is to hold it.
///
/// Keys: `conv1.*`, `bn1.*`, `layer{1..4}.{i}.*`, `fc.{weight,bias}`.
///
/// Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016. Deviation: the stride of a block of
/// three convolutions is in the second, as in torchvision.
pub(in crate::topology) struct Resnet {
    name: String,
    stem: ConvBn,
    layers: Vec<Vec<Block>>,
}

impl Resnet {
    pub(super) fn new(p: &Path, config: &NetworkConfig) -> Self {
        let [stem, stages @ ..] = config.backbone_channels();
        let shape = ConvShape::new(3, stem, 7).stride(2);
        let stem_layer = ConvBn::new(&(p / "conv1"), &(p / "bn1"), shape);
        let mut c_in = stem;
        let mut layers = vec![];
        for (i, (c_out, num_blocks)) in stages.into_iter().zip(blocks(config.backbone)).enumerate()
        {
            let mut layer = vec![];
            for block in 0..num_blocks {
                let stride = if i > 0 && block == 0 { 2 } else { 1 };
                let p = p / format!("layer{}", i + 1) / block;
                let shapes = shapes(config.backbone, c_in, c_out, stride);
                layer.push(Block::new(&p, c_in, &shapes, stride));
                c_in = c_out;
            }
            layers.push(layer);
        }
        if config.with_output_layer {
            let _ = Linear::new(&(p / "fc"), c_in, OUTPUT_CLASSES);
        }
        Self { name: p.prefix().to_owned(), stem: stem_layer, layers }
    }

    /// The outputs of the first convolution and of the four layers, strides 2 to 32, for images `[n, 3, h, w]`.
    pub(super) fn run<O: Ops>(&self, ops: &mut O, images: &O::Value) -> Vec<O::Value> {
        let name = &self.name;
        let x = self.stem.run(ops, images);
        let stem = ops.relu_in_place(format_args!("{name}.relu"), x);
        let mut x = ops.max_pool(format_args!("{name}.maxpool"), POOL, &stem);
        let mut outputs = vec![stem];
        for layer in &self.layers {
            for block in layer {
                x = block.run(ops, &x);
            }
            outputs.push(ops.share(&x));
        }
        outputs
    }
}

/// Blocks of the four layers.
fn blocks(backbone: Backbone) -> [usize; 4] {
    match backbone {
        Backbone::Resnet18 => [2, 2, 2, 2],
        _ => [3, 4, 6, 3],
    }
}

/// The convolutions of a block.
fn shapes(backbone: Backbone, c_in: i64, c_out: i64, stride: i64) -> Vec<ConvShape> {
    match backbone {
        Backbone::Resnet50 => {
            let width = c_out / backbone.expansion();
            vec![
                ConvShape::new(c_in, width, 1),
                ConvShape::new(width, width, 3).stride(stride),
                ConvShape::new(width, c_out, 1),
            ]
        }
        _ => {
            vec![ConvShape::new(c_in, c_out, 3).stride(stride), ConvShape::new(c_out, c_out, 3)]
        }
    }
}
