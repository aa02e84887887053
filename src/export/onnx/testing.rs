//! Networks and images for tests.

use tch::{Device, Tensor};

use crate::topology::wdr::{NetworkConfig, PoseNet};

/// A network whose outputs depend on its input everywhere: random weights, running statistics of random batches, a
/// batch norm with negative gains, scales other than 1.
pub fn network(config: &NetworkConfig, num_classes: i64) -> PoseNet {
    let net = PoseNet::new(config, num_classes, Device::Cpu, 5).unwrap();
    tch::no_grad(|| {
        for var in net.store.vars() {
            let mut tensor = var.tensor.shallow_clone();
            if var.name.starts_with("head.") && var.name.ends_with(".weight") && tensor.dim() == 4 {
                let _ = tensor.g_mul_scalar_(5.0); // the initial ones are all but 0
            } else if var.name.ends_with(".scale") {
                let _ = tensor.fill_(1.5);
            } else if var.name.ends_with("unit1.bn.weight") {
                let _ = tensor.get(1).fill_(-0.7);
            }
        }
        for _ in 0..30 {
            let _ = net.forward_t(&images(4, 64, 64), true);
        }
    });
    net
}

/// Images of smooth patterns, all different.
pub fn images(n: i64, width: i64, height: i64) -> Tensor {
    let value = |i: i64| {
        let (x, rest) = (i % width, i / width);
        let (y, plane) = (rest % height, rest / height);
        let t = (x * (plane + 2)) as f32 * 0.13 + (y * (plane % 3 + 1)) as f32 * 0.071;
        1.5 * t.sin() + 0.3 * ((x * y) as f32 * 0.01).cos()
    };
    let values: Vec<f32> = (0..n * 3 * height * width).map(value).collect();
    Tensor::from_slice(&values).reshape([n, 3, height, width])
}
