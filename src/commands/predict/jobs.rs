//! The pictures of all inputs, one after the other, as jobs for the network.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use std::vec;

use super::cameras::Cameras;
use super::inputs::{FrameSource, Input, Inputs, Picture};
use super::live::{self, Frame, Frames, Gate, Newest};
use crate::data::View;
use crate::eval::{FramePlace, Job, PictureSource, image_ids};
use crate::io::StopFlags;
use crate::io::video::{VideoFrame, VideoSource, estimated_frames};

/// Which pictures are drawn with their poses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overlays {
    /// So many, spread evenly over the input; 0 for none.
    Some(usize),
    /// Every one.
    All,
}

impl std::str::FromStr for Overlays {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            _ => text
                .parse()
                .map(Self::Some)
                .map_err(|_| format!("{text:?} is neither a number nor `all`")),
        }
    }
}

impl Overlays {
    /// Whether the picture at `place` of `total` is drawn; of an unknown total the first ones.
    fn contain(self, place: usize, total: Option<usize>) -> bool {
        match (self, total) {
            (Self::All, _) => true,
            (Self::Some(n), Some(total)) if n < total && place < total => {
                (place + 1) * n / total > place * n / total
            }
            (Self::Some(n), Some(total)) => n >= total && n > 0,
            (Self::Some(n), None) => place < n,
        }
    }
}

/// How many pictures there are; none when a video does not tell.
pub(super) fn total(inputs: &Inputs) -> Option<usize> {
    let of = |input: &Input| match input {
        Input::Pictures(pictures) => Some(pictures.len()),
        Input::Frames(FrameSource::Video(VideoSource::File { path, .. })) => {
            estimated_frames(path).map(|n| n as usize)
        }
        Input::Frames(_) => None,
    };
    inputs.inputs.iter().map(of).sum()
}

/// BOP's numbers of the pictures: those of their paths when these tell all of them apart, else the number of the input and the
/// frame's number or the place in it.
pub(super) struct Numbering {
    from_paths: bool,
    /// Pictures before each input, as far as known.
    starts: Vec<usize>,
}

impl Numbering {
    pub fn of(inputs: &Inputs) -> Self {
        let mut seen = HashSet::new();
        let tells = |picture: &Picture, seen: &mut HashSet<_>| {
            image_ids(&picture.name).is_some_and(|ids| seen.insert(ids))
        };
        let from_paths = inputs.inputs.iter().all(|input| match input {
            Input::Pictures(pictures) => pictures.iter().all(|p| tells(p, &mut seen)),
            Input::Frames(_) => false,
        });
        Self { from_paths, starts: Vec::new() }
    }

    /// Whether the numbers are those of the paths.
    pub fn is_from_paths(&self) -> bool {
        self.from_paths
    }

    /// An input begins at `place`.
    fn begin(&mut self, place: usize) {
        self.starts.push(place);
    }

    /// Scene and image number of a picture.
    pub fn of_picture(&self, name: &str, place: usize, frame: Option<FramePlace>) -> (u32, u32) {
        if self.from_paths
            && let Some(ids) = image_ids(name)
        {
            return ids;
        }
        let input = self.starts.partition_point(|start| *start <= place).saturating_sub(1);
        let counted = place - self.starts.get(input).copied().unwrap_or(0);
        let within = frame.map_or(counted, |frame| frame.number);
        (input as u32, u32::try_from(within).unwrap_or(u32::MAX))
    }
}

/// When jobs come and when they end.
pub(super) struct Ends<'a> {
    /// Opens for one picture at a time, with `--realtime`.
    pub realtime: Option<Arc<Gate>>,
    /// Ends the jobs early.
    pub stop: StopFlags,
    /// Raised behind the last job.
    pub ended: &'a AtomicBool,
}

/// A picture before it is a job.
struct Next {
    name: String,
    source: PictureSource,
    /// None for a frame, whose camera is the one that was given.
    view: Option<Arc<View>>,
    frame: Option<FramePlace>,
    arrived: Option<Instant>,
    num_dropped: u64,
}

impl Next {
    /// Of a file, or something that is no picture.
    fn unread(name: String, source: PictureSource, view: Option<Arc<View>>) -> Self {
        Self { name, source, view, frame: None, arrived: None, num_dropped: 0 }
    }

    /// A frame of the source `name`.
    fn of_frame(name: &str, frame: Frame) -> Self {
        let Frame { frame: VideoFrame { number, time_s, image }, arrived, num_dropped } = frame;
        let source = match image {
            Ok(image) => PictureSource::Picture(image),
            Err(why) => PictureSource::Bad(format!("{why:#}")),
        };
        let name = format!("{name}#{number:06}");
        let frame = Some(FramePlace { number, time_s });
        Self { name, source, view: None, frame, arrived: Some(arrived), num_dropped }
    }
}

/// An iterator over the jobs of all inputs.
pub(super) struct Jobs<'a> {
    cameras: &'a Cameras,
    inputs: vec::IntoIter<Input>,
    current: Option<Current>,
    numbering: &'a std::sync::Mutex<Numbering>,
    overlays: Overlays,
    total: Option<usize>,
    place: usize,
    num_pictures: usize,
    /// Lets one picture in at a time and drops older frames.
    realtime: Option<Arc<Gate>>,
    stop: StopFlags,
    ended: &'a AtomicBool,
}

enum Current {
    Pictures(vec::IntoIter<Picture>),
    /// Every frame.
    Frames {
        name: String,
        frames: Frames,
    },
    /// The newest frame, whenever one is asked for.
    Newest {
        name: String,
        newest: Newest,
    },
    /// A source of frames that cannot be opened, once.
    Bad {
        name: String,
        why: String,
    },
}

impl<'a> Jobs<'a> {
    /// `ended` is raised behind the last job.
    pub fn new(
        inputs: Inputs,
        cameras: &'a Cameras,
        numbering: &'a std::sync::Mutex<Numbering>,
        (overlays, total): (Overlays, Option<usize>),
        Ends { realtime, stop, ended }: Ends<'a>,
    ) -> Self {
        Self {
            realtime,
            stop,
            cameras,
            inputs: inputs.inputs.into_iter(),
            current: None,
            numbering,
            overlays,
            total,
            place: 0,
            num_pictures: 0,
            ended,
        }
    }

    /// Goes to the next input; false when there is none.
    fn open_next(&mut self) -> bool {
        let Some(input) = self.inputs.next() else { return false };
        let mut numbering =
            self.numbering.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        numbering.begin(self.place);
        drop(numbering);
        self.current = Some(match input {
            Input::Pictures(pictures) => Current::Pictures(pictures.into_iter()),
            Input::Frames(source) => self.open(&source),
        });
        true
    }

    fn open(&self, source: &FrameSource) -> Current {
        let name = source.name();
        let opened = match &self.realtime {
            None => live::open(source, self.stop.clone())
                .map(|frames| Current::Frames { name: name.clone(), frames }),
            Some(_) => Newest::begin(|stop| live::open(source, stop), &self.stop)
                .map(|newest| Current::Newest { name: name.clone(), newest }),
        };
        opened.unwrap_or_else(|why| Current::Bad { name, why: format!("{why:#}") })
    }

    /// The next picture of the input at hand.
    fn next_picture(&mut self) -> Option<Next> {
        match self.current.as_mut()? {
            Current::Pictures(pictures) => {
                let Picture { name, path } = pictures.next()?;
                let number = self.num_pictures;
                self.num_pictures += 1;
                let source = match self.cameras.takes_as_stored(number) {
                    true => PictureSource::File(path),
                    false => PictureSource::Photo(path),
                };
                Some(match self.cameras.of_picture(number) {
                    Ok(view) => Next::unread(name, source, Some(view)),
                    Err(why) => Next::unread(name, PictureSource::Bad(why), None),
                })
            }
            Current::Frames { name, frames } => {
                Some(Next::of_frame(name, Frame::now(frames.next()?)))
            }
            Current::Newest { name, newest } => Some(Next::of_frame(name, newest.take()?)),
            Current::Bad { name, why } => {
                let source = PictureSource::Bad(std::mem::take(why));
                let bad = Next::unread(std::mem::take(name), source, None);
                self.current = None;
                Some(bad)
            }
        }
    }
}

impl Iterator for Jobs<'_> {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        let pass = match &self.realtime {
            Some(gate) => Some(Box::new(gate.enter(&self.stop)?) as Box<dyn Send>),
            None => None,
        };
        loop {
            if let Some(next) = self.next_picture() {
                let Next { name, source, view, frame, arrived, num_dropped } = next;
                let place = self.place;
                self.place += 1;
                let view = view.or_else(|| self.cameras.any())?;
                let keep = self.overlays.contain(place, self.total);
                return Some(Job {
                    place,
                    name,
                    source,
                    view,
                    keep,
                    frame,
                    arrived,
                    num_dropped,
                    pass,
                });
            }
            if self.stop.are_raised() {
                return None;
            }
            if !self.open_next() {
                self.ended.store(true, Ordering::SeqCst);
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlays_are_spread_over_the_input() {
        let drawn = |overlays: Overlays, total: usize| {
            (0..total).filter(|i| overlays.contain(*i, Some(total))).collect::<Vec<_>>()
        };
        assert_eq!(drawn(Overlays::Some(2), 10), [4, 9]);
        assert_eq!(drawn(Overlays::Some(3), 3), [0, 1, 2]);
        assert_eq!(drawn(Overlays::Some(9), 3), [0, 1, 2]);
        assert_eq!(drawn(Overlays::Some(0), 3).len(), 0);
        assert_eq!(drawn(Overlays::All, 3).len(), 3);
        assert!(Overlays::Some(2).contain(1, None) && !Overlays::Some(2).contain(2, None));
        // A video may have more frames than it told.
        assert!(!Overlays::Some(2).contain(12, Some(10)));
        assert_eq!("all".parse(), Ok(Overlays::All));
        assert_eq!("7".parse(), Ok(Overlays::Some(7)));
        assert!("every".parse::<Overlays>().is_err());
    }

    #[test]
    fn numbers_are_those_of_paths_where_they_tell_pictures_apart() {
        let inputs = |names: &[&[&str]]| Inputs {
            inputs: (names.iter())
                .map(|names| {
                    let picture = |n: &&str| Picture { name: (*n).to_owned(), path: n.into() };
                    Input::Pictures(names.iter().map(picture).collect())
                })
                .collect(),
            list_root: None,
        };
        let bop = [
            "testing/seq_000007/000000/rgb/000042.jpg",
            "testing/seq_000008/000000/rgb/000042.jpg",
        ];
        let numbering = Numbering::of(&inputs(&[&bop]));
        assert!(numbering.is_from_paths());
        assert_eq!(numbering.of_picture(bop[1], 1, None), (8, 42));
        for other in [&["a.png"][..], &bop[..1]] {
            let mut numbering = Numbering::of(&inputs(&[&bop, other]));
            assert!(!numbering.is_from_paths());
            numbering.begin(0);
            assert_eq!(numbering.of_picture(bop[1], 1, None), (0, 1));
            numbering.begin(2);
            assert_eq!(numbering.of_picture(other[0], 2, None), (1, 0));
        }
    }
}
