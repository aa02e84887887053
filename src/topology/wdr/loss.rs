//! The losses of a batch.

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Reduction, Tensor};

use super::anchors::AnchorGrid;
use super::head::NUM_OFFSETS;
use super::outputs::HeadOutputs;
use super::targets::{Assignment, Positive};
use crate::geom::Camera;
use crate::libtorch::upload;

/// Probabilities are kept this far from 0 and 1. In f32 1 - p is then 1.0133e-6 at the upper end; the loss of
/// saturated logits depends on that.
const CLAMP: f64 = 1e-6;
/// 3D errors are counted in units of the diameter times this, so that 1 / 50 of a diameter is where the smooth L1
/// loss turns from quadratic to linear.
pub(super) const LIFT: f64 = 50.0;

/// Weights of the losses; the default is the published setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LossConfig {
    /// Factor of the classification (focal) loss.
    #[schemars(range(min = 0))]
    pub weight_cls: f64,
    /// Factor of the 3D regression loss.
    #[schemars(range(min = 0))]
    pub weight_reg: f64,
    /// Weight of the positive cells in the focal loss.
    #[schemars(range(min = 0, max = 1))]
    pub focal_alpha: f64,
    /// Exponent of the focal loss.
    #[schemars(range(min = 0))]
    pub focal_gamma: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { weight_cls: 0.01, weight_reg: 0.1, focal_alpha: 0.25, focal_gamma: 2.0 }
    }
}

/// The losses of a batch, weighted; scalars with a graph.
#[derive(Debug)]
pub struct Losses {
    /// Classification: focal loss, summed over images, cells and classes.
    pub cls: Tensor,
    /// Regression: 3D distance in diameters, summed over the cells that answer for an object; 0 if there is none.
    pub reg: Tensor,
    /// Cells that answer for an object.
    pub num_positive: usize,
}

impl Losses {
    /// What is minimised.
    pub fn total(&self) -> Tensor {
        &self.cls + &self.reg
    }
}

/// The losses of a batch of outputs under the internal camera.
///
/// Deviation: for a batch without any positive cell the published code returns the plain sum of all regressions;
/// here the regression loss is 0.
///
/// # Errors
/// If the outputs do not have the shape of the grid and the assignments, or a class is not among the outputs'.
///
/// # Source
/// Hu et al., *Wide-Depth-Range 6D Object Pose Estimation in Space*, CVPR 2021, section 3; the focal loss:
/// Lin et al., ICCV 2017, equation 5.
pub fn losses(
    outputs: &HeadOutputs,
    grid: &AnchorGrid,
    camera: &Camera,
    assignments: &[Assignment],
    config: &LossConfig,
) -> Result<Losses> {
    let (_, num_classes) = check_shapes(outputs, grid, assignments)?;
    let device = outputs.cls[0].device();
    LossTargets::upload(grid, assignments, num_classes, device)?.losses(outputs, camera, config)
}

/// What the outputs of a batch are compared with, on the device of the network. Made before the forward pass, so that the
/// device gets all of its work without a wait for these.
pub(in crate::topology) struct LossTargets {
    /// `[n, cells, 1]`: class + 1, 0 background, -1 ignored.
    labels: Tensor,
    lift: LiftTargets,
}

impl LossTargets {
    /// Those of the assignments of a batch, for a network of so many classes.
    ///
    /// # Errors
    /// If an assignment is of another grid, or a class is not among the network's.
    pub fn upload(
        grid: &AnchorGrid,
        assignments: &[Assignment],
        num_classes: i64,
        device: Device,
    ) -> Result<Self> {
        check_cells(grid, assignments)?;
        let labels: Vec<i32> = assignments.iter().flat_map(|a| a.labels.iter().copied()).collect();
        let labels = Tensor::from_slice(&labels);
        let labels = labels.reshape([assignments.len() as i64, grid.num_cells() as i64, 1]);
        let lift = LiftTargets::collect(grid, assignments, num_classes, device)?;
        Ok(Self { labels: upload(&labels, device), lift })
    }

    /// The losses of outputs that fit the grid and the assignments.
    pub fn losses(
        &self,
        outputs: &HeadOutputs,
        camera: &Camera,
        config: &LossConfig,
    ) -> Result<Losses> {
        let num_classes = outputs.cls[0].size()[1];
        let logits = by_cell(&outputs.cls, num_classes); // [n, cells, C]
        let cls = focal_loss(&logits, &self.labels, config) * config.weight_cls;
        let offsets = by_cell(&outputs.reg, NUM_OFFSETS * num_classes).reshape([-1, NUM_OFFSETS]);
        let positive = offsets.index_select(0, &self.lift.rows);
        let reg = self.lift.loss(&positive, camera) * config.weight_reg;
        Ok(Losses { cls, reg, num_positive: self.lift.num })
    }

    /// The rows of the cells that answer for an object, in regressions seen as `[n * cells * C, 16]`; on the device.
    pub fn rows(&self) -> &Tensor {
        &self.lift.rows
    }
}

/// Batch size and number of classes of outputs that fit the grid.
pub(super) fn check_shapes(
    outputs: &HeadOutputs,
    grid: &AnchorGrid,
    assignments: &[Assignment],
) -> Result<(i64, i64)> {
    let num_levels = grid.levels.len();
    ensure!(
        outputs.cls.len() == num_levels && outputs.reg.len() == num_levels && num_levels > 0,
        "the network has {} and {} levels of outputs, expected {num_levels}",
        outputs.cls.len(),
        outputs.reg.len()
    );
    let n = assignments.len() as i64;
    let num_classes = outputs.cls[0].size().get(1).copied().unwrap_or(0);
    for (i, level) in grid.levels.iter().enumerate() {
        let (h, w) = (level.h as i64, level.w as i64);
        for (name, tensor, channels) in [
            ("class logits", &outputs.cls[i], num_classes),
            ("regressions", &outputs.reg[i], NUM_OFFSETS * num_classes),
        ] {
            let expected = [n, channels, h, w];
            let found = tensor.size();
            ensure!(
                found == expected,
                "the {name} of level {i} have shape {found:?}, expected {expected:?}"
            );
        }
    }
    check_cells(grid, assignments)?;
    Ok((n, num_classes))
}

fn check_cells(grid: &AnchorGrid, assignments: &[Assignment]) -> Result<()> {
    for (i, a) in assignments.iter().enumerate() {
        ensure!(
            a.labels.len() == grid.num_cells(),
            "assignment {i} has {} cells, expected {}",
            a.labels.len(),
            grid.num_cells()
        );
    }
    Ok(())
}

/// The levels' `[n, c, h, w]` as one `[n, cells, c]`.
pub(super) fn by_cell(levels: &[Tensor], channels: i64) -> Tensor {
    let flat: Vec<Tensor> = levels
        .iter()
        .map(|t| t.permute([0, 2, 3, 1]).reshape([t.size()[0], -1, channels]))
        .collect();
    Tensor::cat(&flat, 1)
}

/// The rows of the cells that answer for an object, for its class, in regressions seen as `[n * cells * C, 16]`.
fn positive_rows(grid: &AnchorGrid, assignments: &[Assignment], num_classes: i64) -> Vec<i64> {
    let of_image = |(image, a): (usize, &Assignment)| -> Vec<i64> {
        let row = |positive: &Positive| {
            let cell = image * grid.num_cells() + positive.cell;
            cell as i64 * num_classes + a.objects[positive.object].class as i64
        };
        a.positives.iter().map(row).collect()
    };
    assignments.iter().enumerate().flat_map(of_image).collect()
}

/// The sum of `-alpha (1 - p)^gamma ln p` where `labels` (last dimension 1) name the class, and of
/// `-(1 - alpha) p^gamma ln(1 - p)` elsewhere; nothing where a label is -1.
fn focal_loss(logits: &Tensor, labels: &Tensor, config: &LossConfig) -> Tensor {
    let num_classes = logits.size().last().copied().unwrap_or(0);
    let classes = Tensor::arange_start(1, num_classes + 1, (Kind::Int, logits.device()));
    let is_class = labels.eq_tensor(&classes); // [.., cells, C]
    let is_other = labels.ge(0).logical_and(&is_class.logical_not());
    let p = logits.sigmoid().clamp(CLAMP, 1.0 - CLAMP);
    let q = 1.0 - &p;
    let power = |x: &Tensor| {
        if config.focal_gamma == 2.0 { x * x } else { x.pow_tensor_scalar(config.focal_gamma) }
    };
    let hits = power(&q) * p.log() * is_class.to_kind(Kind::Float) * -config.focal_alpha;
    let misses = power(&p) * q.log() * is_other.to_kind(Kind::Float) * (config.focal_alpha - 1.0);
    (hits + misses).sum(Kind::Float)
}

/// What the positive cells of a batch are to regress, on the device of the outputs.
struct LiftTargets {
    num: usize,
    /// `[P]`, rows of the regressions seen as `[n * cells * C, 16]`.
    rows: Tensor,
    /// `[P, 1, 3]`: anchor centre x, y and size, px.
    anchors: Tensor,
    /// `[P, 8, 3]`: corners in the camera frame, in diameters, times 50.
    corners: Tensor,
}

impl LiftTargets {
    fn collect(
        grid: &AnchorGrid,
        assignments: &[Assignment],
        num_classes: i64,
        device: Device,
    ) -> Result<Self> {
        let rows = positive_rows(grid, assignments, num_classes);
        let mut numbers = vec![0f32; 0]; // 3 of the anchor and 24 of the corners a cell
        for (image, a) in assignments.iter().enumerate() {
            for positive in &a.positives {
                let object = &a.objects[positive.object];
                ensure!(
                    (object.class as i64) < num_classes,
                    "object {} of image {image} has class {}, but the network has {num_classes}",
                    positive.object,
                    object.class
                );
                let [x, y] = grid.centers_px[positive.cell];
                numbers.extend([x, y, grid.level_of(positive.cell).size_px].map(|v| v as f32));
                let unit = LIFT / object.diameter_mm;
                numbers.extend(object.corners_cam_mm.iter().flatten().map(|v| (v * unit) as f32));
            }
        }
        let numbers = upload(&Tensor::from_slice(&numbers).reshape([-1, 9, 3]), device);
        Ok(Self {
            num: rows.len(),
            rows: upload(&Tensor::from_slice(&rows), device),
            anchors: numbers.narrow(1, 0, 1),
            corners: numbers.narrow(1, 1, 8),
        })
    }

    /// The loss of regressions `[P, 16]`: each corner X against its projection `b (b . X) / (b . b)` onto the
    /// ray b of the regressed pixel; smooth L1, mean over a cell's 24 numbers, sum over cells.
    fn loss(&self, offsets: &Tensor, camera: &Camera) -> Tensor {
        let size = self.anchors.select(2, 2); // [P, 1]
        let u = offsets.narrow(1, 0, 8) * &size + self.anchors.select(2, 0); // [P, 8], px
        let v = offsets.narrow(1, 8, 8) * &size + self.anchors.select(2, 1);
        let k_inv = camera.k_inv();
        let x = &u * k_inv[(0, 0)] + &v * k_inv[(0, 1)] + k_inv[(0, 2)];
        let y = &v * k_inv[(1, 1)] + k_inv[(1, 2)];
        let z = y.ones_like();
        let ray = Tensor::stack(&[x, y, z], 2); // [P, 8, 3]
        let along = (&ray * &self.corners).sum_dim_intlist(2, true, Kind::Float);
        let length = (&ray * &ray).sum_dim_intlist(2, true, Kind::Float);
        let lifted = ray * (along / length);
        lifted.smooth_l1_loss(&self.corners, Reduction::Sum, 1.0) / (24.0 * LIFT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::{Pose, box_corners};
    use crate::schema::check_ranges;
    use crate::topology::wdr::{Draw, NetworkConfig, ObjectTarget, TargetConfig, assign};

    fn scene() -> (AnchorGrid, Camera) {
        let grid = AnchorGrid::new(&NetworkConfig::widedepth(), 64, 96);
        (grid, Camera::from_row_major(&[90.0, 2.0, 32.0, 0.0, 80.0, 48.0, 0.0, 0.0, 1.0]).unwrap())
    }

    fn assignment(class: usize, x_mm: f64) -> Assignment {
        let (grid, camera) = scene();
        let mut pose = Pose::identity();
        pose.t_mm.x = x_mm;
        pose.t_mm.z = 300.0;
        let corners = box_corners(&[[-50.0; 3], [50.0; 3]]);
        let object = ObjectTarget { class, pose, corners, diameter_mm: 173.2 };
        let mask: Vec<u8> = (0..64 * 96).map(|i| u8::from(i % 64 > 30)).collect();
        let draw = Draw::FirstInOrder;
        assign(&grid, &TargetConfig::default(), &camera, &[object], &mask, draw).unwrap()
    }

    /// HeadOutputs of `n` images and 2 classes: waves, so that no two cells agree.
    fn outputs(n: i64) -> HeadOutputs {
        let (grid, _) = scene();
        let make = |channels: i64| {
            let level = |l: &super::super::Level| {
                let size = [n, channels, l.h as i64, l.w as i64];
                let len = size.iter().product::<i64>();
                let x = Tensor::arange(len, (Kind::Float, Device::Cpu)) * 0.7;
                (x.sin() * 2.0).reshape(size).set_requires_grad(true)
            };
            grid.levels.iter().map(level).collect()
        };
        HeadOutputs { cls: make(2), reg: make(32) }
    }

    fn image(all: &HeadOutputs, i: i64) -> HeadOutputs {
        let pick = |levels: &[Tensor]| levels.iter().map(|t| t.narrow(0, i, 1)).collect();
        HeadOutputs { cls: pick(&all.cls), reg: pick(&all.reg) }
    }

    #[test]
    fn a_batch_loses_what_its_images_lose_and_wrong_regressions_lose_more() {
        let (grid, camera) = scene();
        let all = outputs(2);
        let assignments = [assignment(1, 10.0), assignment(0, -40.0)];
        let config = LossConfig::default();
        let run = |o: &HeadOutputs, a: &[Assignment]| {
            let l = losses(o, &grid, &camera, a, &config).unwrap();
            (l.cls.double_value(&[]), l.reg.double_value(&[]), l.num_positive)
        };
        let both = run(&all, &assignments);
        let one = run(&image(&all, 0), &assignments[..1]);
        let two = run(&image(&all, 1), &assignments[1..]);
        assert!((both.0 - one.0 - two.0).abs() < 1e-4 * both.0, "{both:?} {one:?} {two:?}");
        assert!((both.1 - one.1 - two.1).abs() < 1e-4 * both.1, "{both:?} {one:?} {two:?}");
        assert_eq!(both.2, one.2 + two.2);
        assert!(one.2 > 0 && two.2 > 0);

        // The true offsets in place of the regressed ones: nothing is lost.
        for (b, a) in assignments.iter().enumerate() {
            for p in &a.positives {
                let object = &a.objects[p.object];
                let index = grid.levels.partition_point(|l| l.offset <= p.cell) - 1;
                let level = &grid.levels[index];
                let (row, column) = {
                    let inside = p.cell - level.offset;
                    ((inside / level.w) as i64, (inside % level.w) as i64)
                };
                for (k, value) in grid.encode(p.cell, &object.pixels).into_iter().enumerate() {
                    let channel = (16 * object.class + k) as i64;
                    let place = all.reg[index].detach();
                    let place = place.select(0, b as i64).select(0, channel);
                    let _ = place.select(0, row).select(0, column).fill_(value);
                }
            }
        }
        let right = run(&all, &assignments);
        assert!(right.1 < 1e-6 && both.1 > 1e-3, "{right:?} {both:?}");
    }

    #[test]
    fn without_positives_the_regressions_have_zero_gradients() {
        let (grid, camera) = scene();
        let all = outputs(1);
        let draw = Draw::FirstInOrder;
        let empty = assign(&grid, &TargetConfig::default(), &camera, &[], &[0; 64 * 96], draw);
        let found =
            losses(&all, &grid, &camera, &[empty.unwrap()], &LossConfig::default()).unwrap();
        found.total().backward();
        assert_eq!((found.reg.double_value(&[]), found.num_positive), (0.0, 0));
        assert!(all.cls.iter().all(|t| t.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0));
        assert!(all.reg.iter().all(|t| t.grad().abs().sum(Kind::Float).double_value(&[]) == 0.0));
    }

    #[test]
    fn outputs_that_do_not_fit_are_refused() {
        let (grid, camera) = scene();
        let run = |outputs: &HeadOutputs, assignments: &[Assignment]| {
            let result = losses(outputs, &grid, &camera, assignments, &LossConfig::default());
            result.unwrap_err().to_string()
        };
        let a = assignment(2, 0.0);
        let error = run(&outputs(1), std::slice::from_ref(&a));
        assert!(error.contains("has class 2, but the network has 2"), "{error}");
        let error = run(&outputs(2), std::slice::from_ref(&a));
        assert!(error.contains("class logits of level 0 have shape [2, 2, 12, 8]"), "{error}");
        let short = Assignment { labels: vec![0], ..a };
        assert!(run(&outputs(1), &[short]).contains("assignment 0 has 1 cells, expected"));
        let none = HeadOutputs { cls: vec![], reg: vec![] };
        assert!(run(&none, &[]).contains("0 and 0 levels of outputs, expected 5"));
    }

    #[test]
    fn weights_out_of_range_are_named() {
        let mut problems = vec![];
        let config = LossConfig { weight_cls: -1.0, focal_alpha: 2.0, ..LossConfig::default() };
        check_ranges(&config, "training", &mut problems);
        check_ranges(&LossConfig::default(), "training", &mut problems);
        let expected =
            ["training.weight_cls: -1 is below 0", "training.focal_alpha: 2 is outside 0..=1"];
        assert_eq!(problems, expected);
    }
}
