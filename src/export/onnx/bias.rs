//! Biases that make up for the mean error of rounding.
//!
//! Rounded weights and cut ranges move the mean of a convolution's channels, and the layers behind see the shift as a
//! signal. With images it is measured and taken from the bias.
//!
//! Source: Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, ICCV 2019, section 4.2
//! and appendix D (the empirical form: layer by layer, with the layers in front corrected).

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use super::graph::{Graph, NodeId};
use super::plan::GraphPlan;
use super::reference::Reference;

/// Gives each convolution of `rounded` the bias with which the means of its channels over `images` `[n, 3, h, w]` are those
/// of `float`, the same network before its weights were rounded; a layer that runs on several levels has one bias each.
///
/// # Errors
/// If images have another size than the graphs, or these are of different networks.
pub fn correct_biases(
    float: &Graph,
    rounded: &Graph,
    plan: &mut GraphPlan,
    trained: &GraphPlan,
    images: &Tensor,
) -> Result<()> {
    ensure!(float.nodes.len() == rounded.nodes.len(), "the graphs are of different networks");
    let mut means: Vec<Option<Tensor>> = vec![];
    Reference::new(float).run(images, Some(trained), |node, x| {
        let is_conv = float.nodes[node].op.conv().is_some();
        means.push(is_conv.then(|| channel_means(x)));
    })?;
    let mut biases: Vec<Option<Vec<f32>>> = vec![None; means.len()];
    Reference::new(rounded).run_corrected(images, plan, |node: NodeId, x: &Tensor| {
        let shift = means[node].as_ref()? - channel_means(x);
        let conv = rounded.nodes[node].op.conv()?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::calibrate::{Calibration, CalibrationMethod, calibrate};
    use crate::export::onnx::network::graph_of;
    use crate::export::onnx::plan;
    use crate::export::onnx::testing::{images, network};
    use crate::topology::wdr::NetworkConfig;

    #[test]
    fn means_of_channels_are_those_of_the_floats() {
        let net = network(&NetworkConfig::widedepth_tiny(), 1);
        let images = images(3, 64, 64);
        let float = graph_of(&net, &[], (64, 64)).unwrap();
        let mut rounded = float.clone();
        let wanted = plan::wanted(&float, true);
        plan::round_weights(&mut rounded, &wanted, false);
        let none = GraphPlan::none(float.nodes.len());
        let calibration =
            Calibration { method: CalibrationMethod::MinMax, bits: 4, symmetric: false };
        let found = calibrate(&rounded, &none, &wanted, calibration, |each| each(&images)).unwrap();
        let mut plan = plan::calibrated(&rounded, &Default::default(), found);
        // The error of a channel's mean, largest in each convolution.
        let errors = |plan: &GraphPlan| -> Vec<f64> {
            let mut means = vec![];
            let see = |_: NodeId, x: &Tensor| means.push(channel_means(x));
            Reference::new(&float).run(&images, None, see).unwrap();
            let mut errors = vec![];
            let see = |node: NodeId, x: &Tensor| {
                if float.nodes[node].op.conv().is_some() {
                    let shift = (channel_means(x) - &means[node]).abs().max();
                    errors.push(shift.double_value(&[]));
                }
            };
            Reference::new(&rounded).run(&images, Some(plan), see).unwrap();
            errors
        };
        let before = errors(&plan);
        correct_biases(&float, &rounded, &mut plan, &none, &images).unwrap();
        let after = errors(&plan);
        // The first convolution of integers is off by the rounding of its bias; behind it some values fall to the other
        // side of a half, of which the coarsest level has only a few.
        assert!(before[1] > 0.0 && after[1] < 0.1 * before[1], "{before:?} {after:?}");
        let sum = |errors: &[f64]| errors.iter().sum::<f64>();
        assert!(sum(&after) < 0.7 * sum(&before), "{before:?} {after:?}");
        assert!(
            correct_biases(
                &Graph { nodes: vec![], ..float.clone() },
                &rounded,
                &mut plan,
                &none,
                &images
            )
            .is_err()
        );
    }
}
