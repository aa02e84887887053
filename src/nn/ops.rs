//! What a network is written in: layers and functions, carried out by whoever reads them.
//!
//! A network is one function, generic over its reader: `fn run<O: Ops>(&self, ops: &mut O, images: O::Value)`.
//! [`Eager`] computes it with libtorch, [`super::Tracer`] writes it down.

use std::fmt::Arguments;

use tch::Tensor;

use super::function::{Function, PoolShape};
use super::layer::Layer;
use super::layers::leaky_relu;

/// A reader of networks.
///
/// A layer has a key and tensors in the store; a [`Function`] has neither, so it is given the name that graphs show.
pub trait Ops {
    /// What layers and functions take and give.
    type Value;

    /// The same value once more, without copying it.
    fn share(&self, x: &Self::Value) -> Self::Value;

    /// Height and width of a value `[n, c, h, w]`.
    fn size(&self, x: &Self::Value) -> [i64; 2];

    /// Says where layers run from here on, which tells apart the uses of a layer that runs several times
    /// (for example `p3` of a pyramid).
    fn at(&mut self, _place: Option<Arguments>) {}

    /// Runs a layer.
    fn layer(&mut self, layer: &dyn Layer, x: &Self::Value) -> Self::Value;

    /// Computes a function of as many values as it takes.
    fn function(&mut self, name: Arguments, function: Function, x: &[&Self::Value]) -> Self::Value;

    /// Computes a function of `first` and `others`; the result may take the storage of `first`, which nothing else
    /// may read. Not for a value whose own producer needs it for its gradient.
    fn function_in_place(
        &mut self,
        name: Arguments,
        function: Function,
        first: Self::Value,
        others: &[&Self::Value],
    ) -> Self::Value {
        let x: Vec<&Self::Value> = [&first].into_iter().chain(others.iter().copied()).collect();
        self.function(name, function, &x)
    }

    /// `x` where positive, 0 elsewhere.
    fn relu(&mut self, name: Arguments, x: &Self::Value) -> Self::Value {
        self.function(name, Function::Relu, &[x])
    }

    /// As [`Ops::relu`], in the storage of `x`.
    fn relu_in_place(&mut self, name: Arguments, x: Self::Value) -> Self::Value {
        self.function_in_place(name, Function::Relu, x, &[])
    }

    /// `x` where positive, 0.1 x elsewhere, in the storage of `x` when no gradient is wanted.
    fn leaky_relu_in_place(&mut self, name: Arguments, x: Self::Value) -> Self::Value {
        self.function_in_place(name, Function::LeakyRelu, x, &[])
    }

    /// `a + b`.
    fn add(&mut self, name: Arguments, a: &Self::Value, b: &Self::Value) -> Self::Value {
        self.function(name, Function::Add, &[a, b])
    }

    /// `a + b`, in the storage of `a`.
    fn add_in_place(&mut self, name: Arguments, a: Self::Value, b: &Self::Value) -> Self::Value {
        self.function_in_place(name, Function::Add, a, &[b])
    }

    /// `a - b`.
    fn sub(&mut self, name: Arguments, a: &Self::Value, b: &Self::Value) -> Self::Value {
        self.function(name, Function::Sub, &[a, b])
    }

    /// `factor * x`.
    fn times(&mut self, name: Arguments, factor: f32, x: &Self::Value) -> Self::Value {
        self.function(name, Function::Times(factor), &[x])
    }

    /// The cells of `x`, repeated to the height and width of `like` (nearest).
    fn upsample_like(
        &mut self,
        name: Arguments,
        x: &Self::Value,
        like: &Self::Value,
    ) -> Self::Value {
        let size = self.size(like);
        self.function(name, Function::Upsample { size }, &[x])
    }

    /// The largest value of each window.
    fn max_pool(&mut self, name: Arguments, pool: PoolShape, x: &Self::Value) -> Self::Value {
        self.function(name, Function::MaxPool(pool), &[x])
    }

    /// The mean of each channel, `[n, c, 1, 1]`.
    fn global_avg_pool(&mut self, name: Arguments, x: &Self::Value) -> Self::Value {
        self.function(name, Function::GlobalAvgPool, &[x])
    }

    /// The channels of all values, one after the other.
    fn concat(&mut self, name: Arguments, x: &[&Self::Value]) -> Self::Value {
        self.function(name, Function::Concat, x)
    }

    /// `[n, c, h, w]` to `[n, c h w]`: what linear layers take.
    fn flatten(&mut self, name: Arguments, x: &Self::Value) -> Self::Value {
        self.function(name, Function::Flatten, &[x])
    }
}

/// Computes a network with libtorch.
#[derive(Debug, Clone, Copy)]
pub struct Eager {
    /// Whether batch norms use (and move) batch statistics, and quantizers train.
    pub train: bool,
}

impl Ops for Eager {
    type Value = Tensor;

    fn share(&self, x: &Tensor) -> Tensor {
        x.shallow_clone()
    }

    fn size(&self, x: &Tensor) -> [i64; 2] {
        let s = x.size();
        [s[2], s[3]]
    }

    fn layer(&mut self, layer: &dyn Layer, x: &Tensor) -> Tensor {
        layer.forward_t(x, self.train)
    }

    fn function(&mut self, _name: Arguments, function: Function, x: &[&Tensor]) -> Tensor {
        function.compute(x)
    }

    fn function_in_place(
        &mut self,
        _name: Arguments,
        function: Function,
        mut first: Tensor,
        others: &[&Tensor],
    ) -> Tensor {
        match function {
            Function::LeakyRelu => leaky_relu(first),
            Function::Relu => first.relu_(),
            Function::Add => first.g_add_(others[0]),
            _ => {
                let x: Vec<&Tensor> = [&first].into_iter().chain(others.iter().copied()).collect();
                function.compute(&x)
            }
        }
    }
}
