//! Biases that make up for the mean error of rounding.
//!
//! Rounded weights and cut ranges move the mean of a convolution's channels, and the layers behind see the shift as a
//! signal. With images it is measured and taken from the bias.
//!
//! Source: Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, ICCV 2019, section 4.2
//! and appendix D (the empirical form: layer by layer, with the layers in front corrected).

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use super::graph::{Graph, NodeId, Op};
use super::plan::Plan;
use super::reference::Reference;

/// Gives each convolution of `rounded` the bias with which the means of its channels over `images` `[n, 3, h, w]` are those
/// of `float`, the same network before its weights were rounded; a layer that runs on several levels has one bias each.
///
/// # Errors
/// If images have another size than the graphs, or these are of different networks.
pub fn correct_biases(float: &Graph, rounded: &Graph, plan: &mut Plan, trained: &Plan, images: &Tensor) -> Result<()> {
    ensure!(float.nodes.len() == rounded.nodes.len(), "the graphs are of different networks");
    let mut means: Vec<Option<Tensor>> = vec![];
    Reference::new(float).run(images, Some(trained), |node, x| {
        let is_conv = matches!(float.nodes[node].op, Op::Conv { .. });
        means.push(is_conv.then(|| channel_means(x)));
    })?;
    let mut biases: Vec<Option<Vec<f32>>> = vec![None; means.len()];
    Reference::new(rounded).run_corrected(images, plan, |node: NodeId, x: &Tensor| {
        let shift = means[node].as_ref()? - channel_means(x);
        let Op::Conv { conv, .. } = rounded.nodes[node].op else { return None };
        let moved = Tensor::from_slice(plan.bias(rounded, node, conv)) + &shift;
        biases[node] = Vec::<f32>::try_from(moved).ok();
        Some(x + shift.view([1, -1, 1, 1]))
    })?;
    plan.biases = biases;
    Ok(())
}

/// The mean of each channel, `[c]`.
fn channel_means(x: &Tensor) -> Tensor {
    x.mean_dim([0i64, 2, 3].as_slice(), false, Kind::Float)
}
