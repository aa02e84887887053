//! Frames that come from outside: of videos, cameras, streams and standard input; every one of them, or with `--realtime` the
//! newest one whenever the network is free.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufReader, Read, Stdin};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::inputs::FrameSource;
use crate::io::image_stream::ImageStream;
use crate::io::video::{Video, VideoFrame};
use crate::io::{Interruptible, StopFlags};

/// How long a wait lasts until the flags are looked at again.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Frames of one source.
pub(super) type Frames = Box<dyn Iterator<Item = VideoFrame> + Send>;

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
            let images = images.take_while(move |image| image.is_ok() || !stop.are_raised());
            let frame = |(number, image)| VideoFrame { number, time_s: None, image };
            Box::new(images.enumerate().map(frame))
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

/// A frame that was taken from its source.
pub(super) struct Frame {
    /// The frame; the dropped ones are counted in its number.
    pub frame: VideoFrame,
    /// When it was complete.
    pub arrived: Instant,
    /// Frames that were left out before it.
    pub num_dropped: u64,
}

impl Frame {
    /// One that is complete now.
    pub fn now(frame: VideoFrame) -> Self {
        Self { frame, arrived: Instant::now(), num_dropped: 0 }
    }

    fn is_readable(&self) -> bool {
        self.frame.image.is_ok()
    }
}

/// Frames that cannot be read and wait to be told; with so many a source waits.
const MAX_UNREADABLE: usize = 256;

/// The newest frame of a source that another thread reads as fast as it comes; those that nobody took are dropped. None that
/// cannot be read is: each is told in its place.
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
    /// In their order: the newest readable one, and all that cannot be read.
    frames: VecDeque<Frame>,
    ended: bool,
}

impl State {
    /// Puts a frame behind the others; a readable one takes the place of that before it.
    fn push(&mut self, frame: VideoFrame) {
        let mut frame = Frame::now(frame);
        let older = self.frames.iter().position(Frame::is_readable);
        if let Some(at) = older.filter(|_| frame.is_readable())
            && let Some(older) = self.frames.remove(at)
        {
            let next = self.frames.get_mut(at).unwrap_or(&mut frame);
            next.num_dropped += older.num_dropped + 1;
        }
        self.frames.push_back(frame);
    }

    fn is_full(&self) -> bool {
        self.frames.iter().filter(|frame| !frame.is_readable()).count() >= MAX_UNREADABLE
    }
}

impl Slot {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a frame in, waiting while too many that cannot be read are not yet told.
    fn put(&self, frame: VideoFrame, until: &StopFlags) {
        let mut state = self.state();
        while state.is_full() && !until.are_raised() {
            state = self.wait(state);
        }
        state.push(frame);
        drop(state);
        self.changed.notify_all();
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, LOOK_EVERY);
        waited.unwrap_or_else(PoisonError::into_inner).0
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
            for frame in frames {
                filled.put(frame, &until);
                if until.are_raised() {
                    break;
                }
            }
            filled.state().ended = true;
            filled.changed.notify_all();
        });
        Ok(Self { slot, stop: stop.clone(), closed, reading: Some(reading) })
    }

    /// The next frame that cannot be read, else the newest one, waited for; `None` at the end of the source and when it is asked to stop.
    pub fn take(&self) -> Option<Frame> {
        let mut state = self.slot.state();
        loop {
            if self.stop.are_raised() {
                return None;
            }
            if let Some(frame) = state.frames.pop_front() {
                drop(state);
                self.slot.changed.notify_all();
                return Some(frame);
            }
            if state.ended {
                return None;
            }
            state = self.slot.wait(state);
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
    use image::RgbImage;

    use super::*;

    fn image(value: u8) -> RgbImage {
        RgbImage::from_pixel(1, 1, image::Rgb([value; 3]))
    }

    fn numbered(images: impl Iterator<Item = Result<RgbImage>> + Send + 'static) -> Frames {
        let frame = |(number, image)| VideoFrame { number, time_s: None, image };
        Box::new(images.enumerate().map(frame))
    }

    #[test]
    fn the_newest_frame_is_taken_and_older_ones_are_counted() {
        let (sender, receiver) = std::sync::mpsc::channel::<u8>();
        let (read, was_read) = std::sync::mpsc::channel();
        let images = receiver.into_iter().map(move |value| {
            let _ = read.send(());
            anyhow::Ok(image(value))
        });
        let newest = Newest::begin(|_| Ok(numbered(images)), &StopFlags::default()).unwrap();
        let send = |value: u8| {
            sender.send(value).unwrap();
            was_read.recv().unwrap();
        };
        send(1);
        assert_eq!(newest.take().unwrap().frame.image.unwrap(), image(1));
        (2..=5).for_each(send);
        // The last one may be on its way into the slot.
        while newest.slot.state().frames.front().is_none_or(|frame| frame.frame.number < 4) {
            std::thread::yield_now();
        }
        let frame = newest.take().unwrap();
        let VideoFrame { number, image: newest_image, .. } = frame.frame;
        assert_eq!((newest_image.unwrap(), frame.num_dropped, number), (image(5), 3, 4));
        send(6);
        let frame = newest.take().unwrap();
        assert_eq!((frame.num_dropped, frame.frame.number), (0, 5));
        drop(sender);
        assert!(newest.take().is_none());
    }

    fn bad(why: &str) -> Result<RgbImage> {
        Err(anyhow::anyhow!("{why}"))
    }

    #[test]
    fn what_cannot_be_read_is_told_in_its_place() {
        let frames = [
            bad("a"),
            Ok(image(1)),
            Ok(image(2)),
            bad("b"),
            Ok(image(3)),
            Ok(image(4)),
            bad("the camera is gone"),
        ];
        let open = |_| Ok(numbered(frames.into_iter()));
        let newest = Newest::begin(open, &StopFlags::default()).unwrap();
        while !newest.slot.state().ended {
            std::thread::yield_now();
        }
        let found = std::iter::from_fn(|| newest.take()).map(|frame| {
            let VideoFrame { number, image, .. } = frame.frame;
            let what = image.map_or_else(|why| why.to_string(), |i| i.as_raw()[0].to_string());
            (number, what, frame.num_dropped)
        });
        let found: Vec<_> = found.collect();
        let found: Vec<_> =
            found.iter().map(|(n, what, dropped)| (*n, what.as_str(), *dropped)).collect();
        let expected = [(0, "a", 0), (3, "b", 2), (5, "4", 1), (6, "the camera is gone", 0)];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_source_of_broken_frames_waits_until_they_are_told() {
        let frames = (0..3 * MAX_UNREADABLE).map(|i| bad(&i.to_string()));
        let open = |_| Ok(numbered(frames));
        let newest = Newest::begin(open, &StopFlags::default()).unwrap();
        while newest.slot.state().frames.len() < MAX_UNREADABLE {
            std::thread::yield_now();
        }
        let mut num = 0;
        while let Some(frame) = newest.take() {
            assert!(newest.slot.state().frames.len() <= MAX_UNREADABLE);
            let VideoFrame { number, image, .. } = frame.frame;
            assert_eq!((number, image.unwrap_err().to_string()), (num, num.to_string()));
            num += 1;
        }
        assert_eq!(num, 3 * MAX_UNREADABLE);
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
