//! What a network loses that differs from its teacher.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Reduction, Tensor};

use super::head::NUM_OFFSETS;
use super::loss::{LIFT, LossTargets, by_cell};
use super::outputs::HeadOutputs;

/// Distillation: the network also learns what the float network says that the run starts from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DistillConfig {
    /// Factor of the loss of class logits.
    #[schemars(range(min = 0))]
    pub weight_cls: f64,
    /// Factor of the loss of corner offsets.
    #[schemars(range(min = 0))]
    pub weight_reg: f64,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self { weight_cls: 0.01, weight_reg: 0.1 }
    }
}

/// The losses of a batch against its teacher, weighted; scalars with a graph.
#[derive(Debug)]
pub struct DistillLosses {
    /// Class logits: Kullback-Leibler divergence of the student's probability of each class in each cell from the teacher's
    /// (`p ln(p / q) + (1 - p) ln((1 - p) / (1 - q))`, q the student's), summed over images, cells and classes.
    pub cls: Tensor,
    /// Corner offsets of the cells that answer for an object: smooth L1 of the difference in 1/50 of the anchor's size, over
    /// 50, mean over a cell's 16 numbers, summed over cells; 0 if there is none.
    pub reg: Tensor,
}

/// The losses of a student's outputs against those of its teacher for the same images. Both have the shapes of the grid and
/// of the targets.
pub(super) fn distill(
    student: &HeadOutputs,
    teacher: &HeadOutputs,
    targets: &LossTargets,
    config: &DistillConfig,
) -> DistillLosses {
    let num_classes = student.cls[0].size()[1];
    let (q, p) = (by_cell(&student.cls, num_classes), by_cell(&teacher.cls, num_classes));
    let cls = divergence(&q, &p.detach()) * config.weight_cls;
    let offsets = |outputs: &HeadOutputs| {
        let all = by_cell(&outputs.reg, NUM_OFFSETS * num_classes).reshape([-1, NUM_OFFSETS]);
        all.index_select(0, targets.rows()) * LIFT
    };
    let difference =
        offsets(student).smooth_l1_loss(&offsets(teacher).detach(), Reduction::Sum, 1.0);
    let reg = difference * (config.weight_reg / (NUM_OFFSETS as f64 * LIFT));
    DistillLosses { cls, reg }
}

/// The summed divergence of probabilities, both given as logits.
fn divergence(student: &Tensor, teacher: &Tensor) -> Tensor {
    // -ln(1 - sigmoid(z)) = softplus(z)
    let difference = student.softplus() - teacher.softplus();
    (difference - (student - teacher) * teacher.sigmoid()).sum(Kind::Float)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::{Vec2, Vec3};
    use crate::schema::check_ranges;
    use crate::topology::wdr::anchors::AnchorGrid;
    use crate::topology::wdr::targets::Assignment;
    use crate::topology::wdr::{AssignedObject, NetworkConfig, Positive};

    fn outputs(grid: &AnchorGrid, cls: f64, reg: f64) -> HeadOutputs {
        let make = |channels: i64, value: f64| {
            let level = |l: &super::super::Level| {
                Tensor::full([1, channels, l.h as i64, l.w as i64], value, tch::kind::FLOAT_CPU)
                    .set_requires_grad(true)
            };
            grid.levels.iter().map(level).collect()
        };
        HeadOutputs { cls: make(2, cls), reg: make(32, reg) }
    }

    fn grid() -> AnchorGrid {
        AnchorGrid::new(&NetworkConfig::widedepth(), 32, 32)
    }

    /// Two cells of the finest level that answer for an object of the second class.
    fn assignment(grid: &AnchorGrid) -> Assignment {
        let object = AssignedObject {
            class: 1,
            corners_cam_mm: [Vec3::zeros(); 8],
            pixels: [Vec2::zeros(); 8],
            diameter_mm: 1.0,
            span_px: 1.0,
            levels: vec![],
        };
        let positive = |cell| Positive { cell, object: 0 };
        Assignment {
            labels: vec![0; grid.num_cells()],
            positives: vec![positive(0), positive(5)],
            objects: vec![object],
        }
    }

    fn targets(grid: &AnchorGrid) -> LossTargets {
        LossTargets::upload(grid, &[assignment(grid)], 2, tch::Device::Cpu).unwrap()
    }

    fn values(losses: &DistillLosses) -> (f64, f64) {
        (losses.cls.double_value(&[]), losses.reg.double_value(&[]))
    }

    #[test]
    fn a_student_that_says_what_its_teacher_says_loses_nothing() {
        let grid = grid();
        let (student, teacher) = (outputs(&grid, -1.5, 0.25), outputs(&grid, -1.5, 0.25));
        let config = DistillConfig::default();
        let found = distill(&student, &teacher, &targets(&grid), &config);
        assert_eq!(values(&found), (0.0, 0.0));
    }

    #[test]
    fn the_numbers_are_those_worked_out_by_hand() {
        let grid = grid();
        let (student, teacher) = (outputs(&grid, 0.0, 0.1), outputs(&grid, 3f64.ln(), 0.0));
        let config = DistillConfig { weight_cls: 2.0, weight_reg: 3.0 };
        let found = values(&distill(&student, &teacher, &targets(&grid), &config));
        // p = 3/4, q = 1/2 in 2 classes of all cells
        let divergence = 0.75 * 1.5f64.ln() + 0.25 * 0.5f64.ln();
        let expected = 2.0 * divergence * 2.0 * grid.num_cells() as f64;
        assert!((found.0 - expected).abs() < 1e-4 * expected, "{found:?} {expected}");
        // 0.1 anchors are 5 fiftieths: smooth L1 of 4.5, over 50, in two cells
        let expected = 3.0 * 2.0 * 4.5 / 50.0;
        assert!((found.1 - expected).abs() < 1e-5, "{found:?} {expected}");
    }

    #[test]
    fn the_student_alone_learns_and_offsets_only_where_an_object_is() {
        let grid = grid();
        let (student, teacher) = (outputs(&grid, 0.0, 0.1), outputs(&grid, 1.0, 0.0));
        let config = DistillConfig::default();
        let found = distill(&student, &teacher, &targets(&grid), &config);
        (found.cls + found.reg).backward();
        let learns = |t: &Tensor| t.grad().defined();
        assert!(student.cls.iter().all(learns) && !teacher.cls.iter().any(learns));
        assert!(!teacher.reg.iter().any(learns));
        let grad = student.reg[0].grad();
        // the 16 numbers of the second class in two cells
        assert_eq!(grad.not_equal(0.0).sum(Kind::Int64).int64_value(&[]), 32);
        assert!(grad.narrow(1, 0, 16).abs().max().double_value(&[]) == 0.0);
    }

    #[test]
    fn weights_below_zero_are_named() {
        let mut problems = vec![];
        let config = DistillConfig { weight_cls: -1.0, ..DistillConfig::default() };
        check_ranges(&config, "training.distill", &mut problems);
        assert_eq!(problems, ["training.distill.weight_cls: -1 is below 0"]);
    }
}
