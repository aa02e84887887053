//! How the epochs of a flow are shared among its stages.

use serde::Serialize;

use super::request::StageEpochs;

/// Stages of a flow get a quarter of an equal share at least.
const FLOOR_DIVISOR: u32 = 4;

/// How the epochs of a plan were shared among its stages.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LengthsReport {
    /// By what.
    pub rule: StageEpochs,
    /// Epochs of all stages together, those of the config's flow.
    pub total: u32,
    /// Epochs that every stage has at least.
    pub floor: u32,
    /// The stages in order.
    pub stages: Vec<StageLength>,
}

/// A stage's share.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageLength {
    /// The module.
    pub module: String,
    /// Summed sensitivity of its layers at the bits chosen; null where it was not asked for.
    pub sensitivity: Option<f64>,
    /// Epochs.
    pub epochs: u32,
}

/// Epochs of stages that have `total` together: each gets the floor, `max(1, total / (4 stages))` rounded down, and the rest
/// is shared in proportion to `weights` (equally where all are 0; a negative one counts as 0). Fractions go to the largest
/// remainders, of equal ones to the earlier stage, so that the sum is exact.
///
/// # Panics
/// If there are fewer epochs than stages, or no stage.
pub fn lengths(total: u32, weights: &[f64]) -> (u32, Vec<u32>) {
    let num = u32::try_from(weights.len()).expect("few stages");
    assert!(num > 0 && total >= num, "{total} epochs for {num} stages");
    let floor = (total / (FLOOR_DIVISOR * num)).max(1);
    let rest = total - floor * num;
    let weights: Vec<f64> = weights.iter().map(|w| w.max(0.0)).collect();
    let sum: f64 = weights.iter().sum();
    let share = |w: f64| if sum > 0.0 { w / sum } else { 1.0 / f64::from(num) };
    let exact: Vec<f64> = weights.iter().map(|w| f64::from(rest) * share(*w)).collect();
    let mut epochs: Vec<u32> = exact.iter().map(|e| e.floor() as u32).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract()));
    let left = rest - epochs.iter().sum::<u32>();
    by_remainder.iter().cycle().take(left as usize).for_each(|&i| epochs[i] += 1);
    (floor, epochs.into_iter().map(|e| e + floor).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_kept_and_sensitive_stages_are_longer() {
        // 12 epochs: floor 1, 9 left: 0.9, 0.9 and 7.2 of them
        assert_eq!(lengths(12, &[1.0, 1.0, 8.0]), (1, vec![2, 2, 8]));
        // 90 epochs: floor 7, 69 left, in equal parts
        assert_eq!(lengths(90, &[2.0, 2.0, 2.0]), (7, vec![30, 30, 30]));
        assert_eq!(lengths(90, &[0.0, 0.0, 5.0]), (7, vec![7, 7, 76]));
    }

    #[test]
    fn every_stage_has_an_epoch_and_odd_ones_go_to_the_earlier_stages() {
        assert_eq!(lengths(3, &[0.0, -1.0, 9.0]), (1, vec![1, 1, 1]));
        assert_eq!(lengths(5, &[1.0, 1.0, 1.0]), (1, vec![2, 2, 1]));
        assert_eq!(lengths(8, &[0.0, 0.0, 0.0]), (1, vec![3, 3, 2]));
        for total in 4..60 {
            let (floor, epochs) = lengths(total, &[1e-9, 3.0, 0.2, 1e6]);
            assert_eq!(epochs.iter().sum::<u32>(), total);
            assert!(epochs.iter().all(|e| *e >= floor && floor >= 1));
        }
    }
}
