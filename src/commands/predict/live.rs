//! Frames that come from outside: of videos, cameras, streams and standard input; every one of them, or with `--realtime` the
//! newest one whenever the network is free.

use std::fs::File;
use std::io::{BufReader, Read, Stdin};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;
use image::RgbImage;

use super::inputs::FrameSource;
use crate::io::image_stream::ImageStream;
use crate::io::video::Video;
use crate::io::{Interruptible, StopFlags};

/// How long a wait lasts until the flags are looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Frames of one source; an error is one that cannot be read.
pub(super) type Frames = Box<dyn Iterator<Item = Result<RgbImage>> + Send>;

/// Opens a source. When `stop` is raised there are no more frames, even while it waits for one.
///
/// # Errors
/// If it is a file that is not there, or ffmpeg does not start.
pub(super) fn open(source: &FrameSource, stop: StopFlags) -> Result<Frames> {
    Ok(match source {
        FrameSource::Video(video) => Box::new(Video::open(video.clone(), stop)?),
        FrameSource::Stdin(format) => {
            // The lock's own buffer would hold back what the wait for data does not see.
            let stdin = std::io::stdin();
            let reader = Interruptible::new(RawStdin(stdin), stop.clone());
            let images = ImageStream::new(BufReader::with_capacity(1 << 16, reader), *format);
            // An image that ends because of a signal is none that is broken.
            Box::new(images.take_while(move |image| image.is_ok() || !stop.are_raised()))
        }
    })
}

/// Standard input without a buffer.
struct RawStdin(Stdin);

impl Read for RawStdin {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        File::from(self.0.as_fd().try_clone_to_owned()?).read(buffer)
    }
}

impl AsRawFd for RawStdin {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// A frame with its place in its source.
pub(super) struct Frame {
    /// From 0, the dropped ones counted.
    pub number: usize,
    /// When it was complete.
    pub arrived: Instant,
    /// The frame, or why it cannot be read.
    pub image: Result<RgbImage>,
    /// Frames that were left out before it.
    pub num_dropped: u64,
}

/// The newest frame of a source that another thread reads as fast as it comes; those that nobody took are dropped.
pub(super) struct Newest {
    slot: Arc<Slot>,
    stop: StopFlags,
    closed: Arc<AtomicBool>,
    reading: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    frame: Option<Frame>,
    /// The newest one that cannot be read; it takes no readable one's place.
    bad: Option<Frame>,
    num_read: usize,
    /// Since the last frame that was taken.
    num_dropped: u64,
    ended: bool,
}

impl Slot {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, image: Result<RgbImage>) {
        let mut state = self.state();
        let number = state.num_read;
        state.num_read += 1;
        let slot = if image.is_ok() { &mut state.frame } else { &mut state.bad };
        let frame = Frame { number, arrived: Instant::now(), image, num_dropped: 0 };
        let dropped = slot.replace(frame);
        state.num_dropped += u64::from(dropped.is_some());
        drop(state);
        self.changed.notify_all();
    }
}

impl Newest {
    /// Begins to read what `open` opens with the flags that end it.
    ///
    /// # Errors
    /// As `open`.
    pub fn begin(open: impl FnOnce(StopFlags) -> Result<Frames>, stop: &StopFlags) -> Result<Self> {
        let closed = Arc::new(AtomicBool::new(false));
        let until = stop.and(closed.clone());
        let frames = open(until.clone())?;
        let slot = Arc::new(Slot::default());
        let filled = slot.clone();
        let reading = std::thread::spawn(move || {
            for image in frames {
                filled.put(image);
                if until.are_raised() {
                    break;
                }
            }
            filled.state().ended = true;
            filled.changed.notify_all();
        });
        Ok(Self { slot, stop: stop.clone(), closed, reading: Some(reading) })
    }

    /// The newest frame, waited for; `None` at the end of the source and when it is asked to stop.
    pub fn take(&self) -> Option<Frame> {
        let mut state = self.slot.state();
        loop {
            if self.stop.are_raised() {
                return None;
            }
            if let Some(frame) = state.frame.take().or_else(|| state.bad.take()) {
                let num_dropped = std::mem::take(&mut state.num_dropped);
                return Some(Frame { num_dropped, ..frame });
            }
            if state.ended {
                return None;
            }
            let waited = self.slot.changed.wait_timeout(state, LOOK_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Newest {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        if let Some(reading) = self.reading.take() {
            // One that panicked has no frames either.
            drop(reading.join());
        }
    }
}

/// Lets one picture at a time into the pipeline.
#[derive(Default)]
pub(super) struct Gate {
    is_busy: Mutex<bool>,
    changed: Condvar,
}

/// Opens its gate when it is dropped: when the picture that it goes with is answered, or nobody will answer it.
pub(super) struct Pass(Arc<Gate>);

impl Gate {
    /// Waits until the picture before is answered; `None` when it is asked to stop.
    pub fn enter(self: &Arc<Self>, stop: &StopFlags) -> Option<Pass> {
        let mut is_busy = self.is_busy.lock().unwrap_or_else(PoisonError::into_inner);
        while *is_busy {
            if stop.are_raised() {
                return None;
            }
            let waited = self.changed.wait_timeout(is_busy, LOOK_EVERY);
            is_busy = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        *is_busy = true;
        Some(Pass(self.clone()))
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        *self.0.is_busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(value: u8) -> RgbImage {
        RgbImage::from_pixel(1, 1, image::Rgb([value; 3]))
    }

    #[test]
    fn the_newest_frame_is_taken_and_older_ones_are_counted() {
        let (sender, receiver) = std::sync::mpsc::channel::<u8>();
        let (read, was_read) = std::sync::mpsc::channel();
        let frames = receiver.into_iter().map(move |value| {
            let _ = read.send(());
            anyhow::Ok(image(value))
        });
        let newest = Newest::begin(|_| Ok(Box::new(frames)), &StopFlags::default()).unwrap();
        let send = |value: u8| {
            sender.send(value).unwrap();
            was_read.recv().unwrap();
        };
        send(1);
        assert_eq!(newest.take().unwrap().image.unwrap(), image(1));
        (2..=5).for_each(send);
        // The last one may be on its way into the slot.
        while newest.slot.state().num_read < 5 {
            std::thread::yield_now();
        }
        let frame = newest.take().unwrap();
        assert_eq!((frame.image.unwrap(), frame.num_dropped, frame.number), (image(5), 3, 4));
        send(6);
        let frame = newest.take().unwrap();
        assert_eq!((frame.num_dropped, frame.number), (0, 5));
        drop(sender);
        assert!(newest.take().is_none());
    }

    #[test]
    fn what_cannot_be_read_takes_no_readable_frames_place() {
        let bad = |why: &str| Err(anyhow::anyhow!("{why}"));
        let frames = [bad("a"), Ok(image(1)), bad("b"), Ok(image(2)), bad("the camera is gone")];
        let open = |_| -> Result<Frames> { Ok(Box::new(frames.into_iter())) };
        let newest = Newest::begin(open, &StopFlags::default()).unwrap();
        while !newest.slot.state().ended {
            std::thread::yield_now();
        }
        let frame = newest.take().unwrap();
        assert_eq!((frame.image.unwrap(), frame.number, frame.num_dropped), (image(2), 3, 3));
        let frame = newest.take().unwrap();
        assert_eq!((frame.number, frame.num_dropped), (4, 0));
        assert_eq!(frame.image.unwrap_err().to_string(), "the camera is gone");
        assert!(newest.take().is_none());
    }

    #[test]
    fn a_source_without_frames_is_left_when_a_flag_is_raised() {
        let flag = Arc::new(AtomicBool::new(false));
        let stop = StopFlags::default().and(flag.clone());
        // A source that waits for ever, as a camera without light in a dark room does not.
        let open = |until: StopFlags| -> Result<Frames> {
            Ok(Box::new(std::iter::from_fn(move || {
                while !until.are_raised() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                None
            })))
        };
        let newest = Newest::begin(open, &stop).unwrap();
        flag.store(true, Ordering::SeqCst);
        assert!(newest.take().is_none());
    }

    #[test]
    fn a_gate_lets_one_in_at_a_time() {
        let (gate, flag) = (Arc::new(Gate::default()), Arc::new(AtomicBool::new(false)));
        let stop = StopFlags::default().and(flag.clone());
        drop(gate.enter(&stop).unwrap());
        let pass = gate.enter(&stop).unwrap();
        flag.store(true, Ordering::SeqCst);
        assert!(gate.enter(&stop).is_none());
        drop(pass);
        assert!(gate.enter(&stop).is_some());
    }
}
