//! Small networks and weights for the tests of this room.

use rand::Rng;
use tch::{Device, Kind, Tensor, no_grad};

use crate::nn::{Conv2d, ConvShape, Fill, Linear, Ops, Site, SiteKind, Store, Trace, Tracer};
use crate::seed;

/// Bell-shaped weights of that shape, a function of seed and shape.
pub fn weights(seed: u64, shape: &[i64]) -> Tensor {
    let mut rng = seed::stream(seed, &[1]);
    let count: i64 = shape.iter().product();
    let mut draw = || (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>();
    let values: Vec<f32> = (0..count).map(|_| draw()).collect();
    Tensor::from_slice(&values).reshape(shape)
}

/// The same values in channels-last memory.
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// A store with a quantizable layer for each name and weight.
pub fn store(layers: &[(&str, Tensor)]) -> Store {
    let store = Store::new(Device::Cpu);
    for (name, weight) in layers {
        let path = name.split('.').fold(store.root(), |path, part| path / part);
        let weight = path.parameter("weight", weight.shallow_clone());
        let kind = if weight.dim() == 4 { SiteKind::Conv } else { SiteKind::Linear };
        path.site(Site::new((*name).to_owned(), kind, &weight));
    }
    store
}

/// Names and kinds of layers as in the real network, but small.
pub fn network() -> Store {
    let conv = |seed| weights(seed, &[4, 3, 3, 3]);
    let store = store(&[
        ("backbone.features.init_block.conv", conv(1)),
        ("backbone.features.stage1.unit1.conv", conv(2)),
        ("backbone.output", weights(3, &[10, 4])),
        ("fpn.inner_convs.2", conv(4)),
        ("fpn.inner_convs.3", conv(5)),
        ("fpn.out_convs.2", conv(6)),
        ("head.cls_tower.0", conv(7)),
        ("head.cls_logits", conv(8)),
        ("head.pose_pred", conv(9)),
        ("head2.conv", conv(10)),
    ]);
    store.keep_sites(&trace());
    store
}

/// A trace in which the layers of [`network`] run, so that it has ends: one reads the images, two give the outputs.
fn trace() -> Trace {
    let other = Store::new(Device::Cpu);
    let conv = |name: &str, c_in| {
        let path = name.split('.').fold(other.root(), |path, part| path / part);
        Conv2d::new(&path, ConvShape::new(c_in, 4, 3), Fill::Constant(0.0), None)
    };
    let mut tracer = Tracer::new();
    let images = tracer.input("images", &[3, 8, 8]);
    let x = tracer.layer(&conv("backbone.features.init_block.conv", 3), &images);
    for name in ["backbone.features.stage1.unit1.conv", "fpn.inner_convs.2", "fpn.inner_convs.3"] {
        let _ = tracer.layer(&conv(name, 4), &x);
    }
    let _ = tracer.layer(&conv("fpn.out_convs.2", 4), &x);
    let _ = tracer.layer(&conv("head.cls_tower.0", 4), &x);
    let _ = tracer.layer(&conv("head2.conv", 4), &x);
    let flat = tracer.flatten(format_args!("flat"), &x);
    let output = other.root() / "backbone" / "output";
    let _ = tracer.layer(&Linear::new(&output, 4 * 64, 10), &flat);
    let outputs = ["head.cls_logits", "head.pose_pred"];
    let outputs = outputs.map(|name| (name.to_owned(), tracer.layer(&conv(name, 4), &x)));
    tracer.finish(outputs.into())
}

/// Changes the weights whose mask is 1, as training would: by up to `amount`, as `seed` says.
pub fn train(weight: &Tensor, trainable: &Tensor, amount: f64, seed: u64) {
    let change = weights(seed, &weight.size()) * amount * trainable;
    no_grad(|| {
        let _ = weight.shallow_clone().g_add_(&change);
    });
}

/// The bit patterns of a tensor in row-major order.
pub fn bits(x: &Tensor) -> Vec<u32> {
    let flat = x.detach().contiguous().reshape([-1]).to_kind(Kind::Float);
    Vec::<f32>::try_from(&flat).unwrap().into_iter().map(f32::to_bits).collect()
}
