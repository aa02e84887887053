//! Two networks over the same images: how far their outputs lie apart, and the poses of both.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use anyhow::{Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::candidates::REG_CHANNELS;
use super::infer::{
    Engine, HostOutputs, InferOptions, Progress, Solved, SplitSolver, start_loader,
};
use super::predictions::Prediction;
use super::solver::to_host;
use crate::data::{BadSample, Dataset};
use crate::model::{AnchorGrid, images_from_bytes};

/// Batches of outputs, of either network, that may wait for their poses.
const WAITING_BATCHES: usize = 4;

/// How far one kind of output of a level lies apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// Numbers compared.
    pub num_values: u64,
    /// The largest difference; of numbers that are both finite.
    pub max_abs: f64,
    /// The mean difference.
    pub mean_abs: f64,
    /// The largest magnitude of the first network's outputs.
    pub scale: f64,
    /// `max_abs / scale`; 0 where both are 0.
    pub relative: f64,
    /// Numbers of which one is not finite and the other is, or another such.
    pub num_not_finite: u64,
}

/// How far the outputs of one level lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LevelDeviation {
    /// Distance of its cells, px.
    pub stride: i64,
    /// Class logits.
    pub logits: Deviation,
    /// Corner offsets.
    pub offsets: Deviation,
}

/// What [`infer_pair`] found.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The predictions of the first and the second network, as [`super::infer`] makes them.
    pub predictions: [Vec<Prediction>; 2],
    /// By level, finest first.
    pub levels: Vec<LevelDeviation>,
    /// With `skip_bad`: the images that could not be read.
    pub left_out: Vec<BadSample>,
}

/// Sums of a deviation.
#[derive(Default, Clone, Copy)]
struct Sums {
    deviation: Deviation,
    sum: f64,
}

impl Sums {
    fn add(&mut self, first: &[f32], second: &[f32]) {
        let d = &mut self.deviation;
        d.num_values += first.len() as u64;
        for (&a, &b) in first.iter().zip(second) {
            if a.is_finite() && b.is_finite() {
                let difference = (f64::from(a) - f64::from(b)).abs();
                d.max_abs = d.max_abs.max(difference);
                d.scale = d.scale.max(f64::from(a).abs());
                self.sum += difference;
            } else if a != b && !(a.is_nan() && b.is_nan()) {
                d.num_not_finite += 1;
            }
        }
    }

    fn finish(self) -> Deviation {
        let mut d = self.deviation;
        d.mean_abs = self.sum / d.num_values.max(1) as f64;
        d.relative = match (d.max_abs, d.scale) {
            (0.0, _) => 0.0,
            // nothing but zeros against something else: no scale makes that small
            (_, 0.0) => f64::MAX,
            (max_abs, scale) => max_abs / scale,
        };
        d
    }
}

/// Compares the outputs of a batch, each `[images, all logits, then all offsets]` level by level.
fn compare(levels: &mut [[Sums; 2]], grid: &AnchorGrid, num_classes: usize, values: [&[f32]; 2]) {
    let logits = num_classes * grid.num_cells();
    let per_image = logits * (1 + REG_CHANNELS);
    let [first, second] = values.map(|v| v.chunks_exact(per_image.max(1)));
    for (first, second) in first.zip(second) {
        for (level, [cls, reg]) in grid.levels.iter().zip(levels.iter_mut()) {
            let at = num_classes * level.offset;
            let range = at..at + num_classes * level.num_cells();
            cls.add(&first[range.clone()], &second[range.clone()]);
            let wide = |i: usize| logits + i * REG_CHANNELS;
            let range = wide(range.start)..wide(range.end);
            reg.add(&first[range.clone()], &second[range]);
        }
    }
}

/// Runs two networks over the images of `dataset`, each image loaded once.
///
/// The predictions are those of [`super::infer`] for each network alone, bit for bit.
///
/// # Errors
/// If the networks differ in classes or levels, and as [`super::infer`].
pub fn infer_pair(
    networks: [&dyn Engine; 2],
    dataset: &Arc<Dataset>,
    options: &InferOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Pair> {
    let num_classes = dataset.models.len();
    for network in networks {
        ensure!(
            network.num_classes() == num_classes as i64,
            "a network has {} classes, the dataset {num_classes}",
            network.num_classes()
        );
    }
    let solver = SplitSolver::new(networks[0], dataset, options)?;
    let other = networks[1].grid(options.input.width, options.input.height);
    ensure!(*solver.grid() == other, "the networks differ in their levels or anchors");
    let mut loader = start_loader(dataset, options)?;
    let mut sums = vec![[Sums::default(); 2]; solver.grid().levels.len()];
    let predictions = std::thread::scope(|scope| -> Result<[Vec<Prediction>; 2]> {
        let (sender, receiver) = sync_channel::<(usize, HostOutputs)>(WAITING_BATCHES);
        let solver = &solver;
        let solving = scope.spawn(move || {
            let mut all = [Solved::default(), Solved::default()];
            for (which, batch) in receiver {
                solver.solve_batch(&batch, &mut all[which]);
            }
            all.map(|solved| solved.predictions)
        });
        let mut num_done = 0;
        for batch in loader.by_ref() {
            let batch = batch?;
            let size = [batch.indices.len(), batch.height, batch.width];
            let (mean, std) = (&options.input.pixel_mean, &options.input.pixel_std);
            let images = images_from_bytes(&batch.pixels, size, mean, std, options.device)?;
            let run = |network: &dyn Engine| {
                to_host(&network.forward(&images)?, solver.grid(), size[0], num_classes)
            };
            let values = [run(networks[0])?, run(networks[1])?];
            compare(&mut sums, solver.grid(), num_classes, [&values[0], &values[1]]);
            num_done += batch.indices.len();
            progress(Progress { num_done, num_images: dataset.frames.len() });
            for (which, values) in values.into_iter().enumerate() {
                let outputs = HostOutputs { indices: batch.indices.clone(), values };
                if sender.send((which, outputs)).is_err() {
                    break; // the solver panicked: joining it says so
                }
            }
        }
        drop(sender);
        solving.join().map_err(|_| anyhow!("solving for poses panicked"))
    })?;
    let levels = solver.grid().levels.iter().zip(sums).map(|(level, [logits, offsets])| {
        LevelDeviation { stride: level.stride, logits: logits.finish(), offsets: offsets.finish() }
    });
    Ok(Pair { predictions, levels: levels.collect(), left_out: loader.bad().to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetworkConfig;

    #[test]
    fn numbers_are_compared_level_by_level() {
        let grid = AnchorGrid::new(&NetworkConfig::widedepth_tiny(), 64, 64);
        let (classes, cells) = (2, grid.num_cells());
        let per_image = classes * (1 + REG_CHANNELS) * cells;
        let first = vec![2.0; 2 * per_image];
        let mut second = first.clone();
        // a logit of the second level and an offset of the last one, in the second image
        let level = &grid.levels[1];
        second[per_image + classes * level.offset] = 2.5;
        second[2 * per_image - 1] = -2.0;
        let mut sums = vec![[Sums::default(); 2]; grid.levels.len()];
        compare(&mut sums, &grid, classes, [&first, &second]);
        let found: Vec<[Deviation; 2]> = sums.into_iter().map(|s| s.map(Sums::finish)).collect();
        let values = |level: usize| 2 * (classes * grid.levels[level].num_cells()) as u64;
        assert_eq!(found[0].map(|d| (d.max_abs, d.relative)), [(0.0, 0.0); 2]);
        assert_eq!((found[1][0].max_abs, found[1][0].relative), (0.5, 0.25));
        assert_eq!(found[1][0].mean_abs, 0.5 / values(1) as f64);
        assert_eq!(found[1][1].max_abs, 0.0);
        let last = found.last().unwrap()[1];
        assert_eq!((last.max_abs, last.scale, last.relative), (4.0, 2.0, 2.0));
        for (level, [cls, reg]) in found.iter().enumerate() {
            assert_eq!(cls.num_values, values(level));
            assert_eq!(reg.num_values, values(level) * REG_CHANNELS as u64);
        }
    }

    #[test]
    fn what_is_not_finite_counts_unless_it_is_the_same() {
        let mut sums = Sums::default();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        sums.add(&[inf, nan, 1.0, 1.0, inf, 3.0], &[inf, nan, nan, inf, -inf, 3.5]);
        let d = sums.finish();
        assert_eq!((d.num_not_finite, d.max_abs, d.scale), (3, 0.5, 3.0));
        let mut zeros = Sums::default();
        zeros.add(&[0.0], &[1e-9]);
        assert_eq!(zeros.finish().relative, f64::MAX);
    }
}
