//! Quantizes a module of a network of your own, with nothing but the library: builds it from layers of `nn`, attaches a
//! quantizer, trains a few steps and prints the levels.
//!
//! ```sh
//! cargo run --release --example quantize_your_own_network
//! ```

use anyhow::Result;
use mqat::nn::{Conv2d, ConvShape, Fill, Layer, Path, Store, leaky_relu};
use mqat::quant::{Claim, ModuleQuantizer, WeightMethod, WeightQuantConfig};
use mqat::train::{Sgd, SgdConfig};
use tch::{Device, Kind, Tensor, no_grad};

const EPOCHS: u32 = 4;
const STEPS: usize = 25;
const LEARNING_RATE: f64 = 0.02;

/// Finds edges: two convolutions and a prediction.
struct Net {
    body: [Conv2d; 2],
    head: Conv2d,
}

impl Net {
    /// Keys: `body.{0,1}.{weight,bias}`, `head.{weight,bias}`.
    fn new(root: &Path) -> Self {
        let conv = |path: &Path, c_in, c_out| {
            let shape = ConvShape::new(c_in, c_out, 3);
            Conv2d::new(path, shape, Fill::kaiming_uniform(shape.fan_in(), 0.1), Some(0.0))
        };
        let body = root / "body";
        Self {
            body: [conv(&(&body / 0), 1, 8), conv(&(&body / 1), 8, 8)],
            head: conv(&(root / "head"), 8, 1),
        }
    }

    /// Images `[n, 1, h, w]` to `[n, 1, h, w]`.
    fn forward(&self, images: &Tensor, train: bool) -> Tensor {
        let body = self.body.iter().fold(images.shallow_clone(), |x, conv| {
            leaky_relu(conv.forward_t(&x, train)) // [n, 8, h, w]
        });
        self.head.forward_t(&body, train)
    }
}

/// Smooth images, and the magnitude of their differences from left to right.
fn batch(step: usize) -> (Tensor, Tensor) {
    let place = Tensor::arange(4 * 16 * 16, (Kind::Float, Device::Cpu)).reshape([4, 1, 16, 16]);
    let images = (place * 0.37 + step as f64).sin();
    let right = images.roll([1], [3]);
    let edges = (&images - right).abs();
    (images, edges)
}

fn main() -> Result<()> {
    let store = Store::seeded(Device::Cpu, 1);
    let net = Net::new(&store.root());
    let parameters = store.parameters().into_iter().map(|v| (v.name, v.tensor)).collect();
    let mut sgd = Sgd::new(&SgdConfig::default(), parameters)?;

    // LSQ: 3-bit weights with a learnt step size, in all layers below `body`; `head` stays float.
    let weights = WeightQuantConfig { bits: Some(3), ..WeightQuantConfig::of(WeightMethod::Lsq) };
    let mut quantizer = ModuleQuantizer::attach(&Claim::of("body").with_weights(&weights), &store)?;
    for epoch in 0..EPOCHS {
        quantizer.start_epoch(epoch)?;
        sgd.set_learnt(quantizer.learnt(), quantizer.gradient_sources())?;
        let mut loss = 0.0;
        for step in 0..STEPS {
            let (images, edges) = batch(step);
            sgd.zero_grad()?;
            quantizer.begin_step()?;
            let error = net.forward(&images, true).mse_loss(&edges, tch::Reduction::Mean);
            error.backward();
            quantizer.end_step()?;
            sgd.step(LEARNING_RATE);
            loss = no_grad(|| error.double_value(&[]));
        }
        quantizer.end_epoch(epoch)?;
        println!("epoch {epoch}: loss {loss:.4}");
    }

    // From now on the weights themselves are quantized, and the layers run as float ones.
    quantizer.convert()?;
    quantizer.assert_on_grid()?;
    for layer in quantizer.report() {
        println!(
            "{}: {} weights, {} {} bits, {} levels: {:?}",
            layer.name,
            layer.num_weights,
            layer.method,
            layer.bits,
            layer.levels.len(),
            layer.levels
        );
    }
    let (images, edges) = batch(0);
    let error = no_grad(|| net.forward(&images, false).mse_loss(&edges, tch::Reduction::Mean));
    println!("with quantized weights: loss {:.4}", error.double_value(&[]));
    Ok(())
}
