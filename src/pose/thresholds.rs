//! The thresholds that scores of the BOP benchmark are averaged over.

/// Thresholds that a score is averaged over: 1 to 10 times the first.
pub const NUM_THRESHOLDS: usize = 10;

/// `step`, 2 `step` .. 10 `step`, rounded as the reference rounds them: errors that lie on a threshold are not below it.
///
/// # Source
/// bop_toolkit, `np.arange(step, 10.2 * step, step)`: numpy adds `step` k times to the first, so that the sixth of 0.05 is
/// 0.3, not 0.30000000000000004.
pub fn thresholds(step: f64) -> [f64; NUM_THRESHOLDS] {
    std::array::from_fn(|k| step + step * k as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_those_of_numpy_to_the_last_digit() {
        // numpy 1.26: np.arange(0.05, 0.51, 0.05).tolist()
        let numpy =
            [0.05, 0.1, 0.15000000000000002, 0.2, 0.25, 0.3, 0.35000000000000003, 0.4, 0.45, 0.5];
        assert_eq!(thresholds(0.05), numpy);
        assert_eq!(thresholds(5.0)[9], 50.0);
    }
}
