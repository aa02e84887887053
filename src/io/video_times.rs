//! When the frames of a video are shown, by its container, and the numbers that follow.

use std::io::{BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::interruptible::StopFlags;

/// Units of a second in which ffmpeg is asked for times: those of MPEG transport streams.
pub(super) const UNITS_PER_S: u32 = 90_000;
/// How far a container's mean rate may be from its base rate if frames are to come at equal times.
const EQUAL_RATES: f64 = 0.01;
/// How long a wait for a time lasts until the flags are looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// After how long a wait there are no times: an ffmpeg that writes frames alone waits until these are taken.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The times of a video's frames, one after the other, from ffmpeg's muxer `framecrc`, which writes a line a frame.
#[derive(Debug)]
pub(super) struct FrameTimes {
    times: Option<Receiver<Option<f64>>>,
}

impl FrameTimes {
    /// Reads `lines` to their end beside the frames, or ffmpeg would wait for ever.
    pub fn of(lines: impl Read + Send + 'static) -> Self {
        let (sender, times) = channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(lines).split(b'\n').map_while(Result::ok);
            for line in lines.filter(|line| !line.is_empty() && !line.starts_with(b"#")) {
                // Nobody takes times any more when the video is left.
                let _ = sender.send(time_s(&String::from_utf8_lossy(&line)));
            }
        });
        Self { times: Some(times) }
    }

    /// The time of the next frame, s from the file's begin, waited for; `None` where ffmpeg does not tell it.
    pub fn next(&mut self, stop: &StopFlags) -> Option<f64> {
        let begin = Instant::now();
        loop {
            match self.times.as_ref()?.recv_timeout(LOOK_EVERY) {
                Ok(time_s) => return time_s,
                Err(RecvTimeoutError::Timeout) if begin.elapsed() < LONGEST_WAIT => {
                    if stop.are_raised() {
                        return None;
                    }
                }
                Err(_) => self.times = None,
            }
        }
    }
}

/// The presentation time in a line of `framecrc`: stream, decoding time, presentation time, ...
fn time_s(line: &str) -> Option<f64> {
    let units: i64 = line.split(',').nth(2)?.trim().parse().ok()?;
    Some(units as f64 / f64::from(UNITS_PER_S))
}

/// Numbers of frames: those of their times where the container says that frames come at equal times, so that one that is missing
/// in a damaged file is counted; else by counting.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// Frames a second.
    rate: Option<f64>,
    first_s: Option<f64>,
    next: usize,
}

impl Numbers {
    /// Of frames at `rate` a second, where they come at equal times.
    pub fn at(rate: Option<f64>) -> Self {
        Self { rate, ..Self::default() }
    }

    /// The number of the next frame, which is shown at this time.
    pub fn of(&mut self, time_s: Option<f64>) -> usize {
        let first_s = *self.first_s.get_or_insert(time_s.unwrap_or(0.0));
        let by_time = self.rate.zip(time_s).map(|(rate, at)| ((at - first_s) * rate).round());
        // Two frames at one time are two frames.
        let number = by_time.map_or(0, |number| number as usize).max(self.next);
        self.next = number + 1;
        number
    }
}

/// Frames a second, by a container's base rate and mean rate (`30000/1001`); `None` where frames do not come at equal times.
pub(super) fn equal_rate(base: &str, mean: &str) -> Option<f64> {
    let (base, mean) = (rate(base)?, rate(mean)?);
    ((mean / base - 1.0).abs() <= EQUAL_RATES).then_some(base)
}

/// A rate as ffprobe gives it.
pub(super) fn rate(text: &str) -> Option<f64> {
    let (above, below) = text.split_once('/')?;
    let rate = above.parse::<f64>().ok()? / below.parse::<f64>().ok()?;
    (rate.is_finite() && rate > 0.0).then_some(rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_line_by_line() {
        // ffmpeg -i v.ts -c:v rawvideo -enc_time_base 1/90000 -f framecrc pipe:1 (n9.0.2)
        let lines = "#software: Lavf63.1.102\n#tb 0: 1/90000\n#media_type 0: video\n\
                     0,          0,          0,     3600,     9216, 0xe56fc30d\n\
                     0,       3600,       3600,     3600,     9216, 0xffb4c53a\n\
                     0, x\n";
        let mut times = FrameTimes::of(lines.as_bytes());
        let stop = StopFlags::default();
        let found: Vec<_> = (0..4).map(|_| times.next(&stop)).collect();
        assert_eq!(found, [Some(0.0), Some(0.04), None, None]);
    }

    #[test]
    fn frames_that_are_missing_are_counted_by_time() {
        let mut numbers = Numbers::at(equal_rate("25/1", "25/1"));
        let found = [1.4, 1.44, 1.4801, 1.88, 1.88, 2.0].map(|at| numbers.of(Some(at)));
        assert_eq!(found, [0, 1, 2, 12, 13, 15]);
        assert_eq!(numbers.of(None), 16);
    }

    #[test]
    fn frames_at_other_times_are_counted() {
        for (base, mean) in [("120/1", "30/1"), ("30/1", "0/0"), ("", "25/1")] {
            let mut numbers = Numbers::at(equal_rate(base, mean));
            assert_eq!([0.0, 0.5, 3.0].map(|at| numbers.of(Some(at))), [0, 1, 2], "{base}");
        }
        let ntsc = equal_rate("30000/1001", "2997/100").unwrap();
        assert!((ntsc - 29.97).abs() < 1e-3);
    }
}
