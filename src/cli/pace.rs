//! How long the stage and the run still take, by how fast the stage went so far.

use std::time::{Duration, Instant};

/// The pace of a stage since this process began with it, validations included.
pub(super) struct Pace {
    began: Instant,
    /// Epochs of the stage that were done then, parts of one included.
    from: f64,
    /// Epochs of the stage.
    epochs: f64,
    /// Epochs of the stages behind it.
    later: f64,
}

/// What is left of a training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Left {
    /// Of the stage, s.
    pub stage_s: f64,
    /// Of the run, s: epochs of other stages are taken to be as long as those of this one.
    pub run_s: f64,
}

impl Pace {
    /// A stage of `epochs` epochs begins after `from` of them; the stages behind it have `later`.
    pub fn start(from: f64, epochs: u32, later: u64) -> Self {
        Self { began: Instant::now(), from, epochs: f64::from(epochs), later: later as f64 }
    }

    /// What is left when `done` epochs of the stage are done, parts of one included.
    pub fn left(&self, done: f64) -> Option<Left> {
        self.left_after(done, self.began.elapsed())
    }

    fn left_after(&self, done: f64, elapsed: Duration) -> Option<Left> {
        let here = done - self.from;
        let epoch_s = elapsed.as_secs_f64() / here;
        let stage_s = epoch_s * (self.epochs - done).max(0.0);
        (here > 0.0).then_some(Left { stage_s, run_s: stage_s + epoch_s * self.later })
    }
}

impl Left {
    /// `stage 12.5 min left, run 3.2 h left`.
    pub fn text(self) -> String {
        format!("stage {} left, run {} left", duration(self.stage_s), duration(self.run_s))
    }
}

/// Seconds with a unit that suits their number.
pub(super) fn duration(seconds: f64) -> String {
    let units = [(60.0, 1.0, "s"), (3600.0, 60.0, "min"), (172_800.0, 3600.0, "h")];
    let unit = units.into_iter().find(|(below, ..)| seconds < *below);
    let (_, size, name) = unit.unwrap_or((f64::INFINITY, 86_400.0, "days"));
    format!("{:.1} {name}", seconds / size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_by_the_pace_since_the_begin_of_this_process() {
        // Resumed after 2 of 6 epochs, 4 more in another stage; a quarter of an epoch took 30 s.
        let pace = Pace::start(2.0, 6, 4);
        assert_eq!(pace.left_after(2.0, Duration::from_secs(9)), None);
        let left = pace.left_after(2.25, Duration::from_secs(30)).unwrap();
        assert_eq!(left, Left { stage_s: 450.0, run_s: 930.0 });
        assert_eq!(left.text(), "stage 7.5 min left, run 15.5 min left");
        let end = pace.left_after(6.0, Duration::from_secs(480)).unwrap();
        assert_eq!((end.stage_s, end.run_s), (0.0, 480.0));
    }

    #[test]
    fn durations_have_one_decimal_and_a_fitting_unit() {
        let texts = [0.0, 59.9, 60.0, 3600.0, 100_000.0, 172_800.0].map(duration);
        assert_eq!(texts, ["0.0 s", "59.9 s", "1.0 min", "1.0 h", "27.8 h", "2.0 days"]);
    }
}
