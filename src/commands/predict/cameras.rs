//! Which camera took each picture.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::inputs::{FrameSource, Input, Inputs, Picture};
use crate::data::{
    CameraFile, DataConfig, ImagePath, InputConfig, View, off_center, read_camera, scene_cameras,
};
use crate::geom::{Camera, Distortion};
use crate::io::image_stream::StreamFormat;
use crate::io::picture::{Orientation, size_and_orientation, upright_size};

/// Pictures that are looked at to tell whether the camera is theirs before anything runs.
const LOOKED_AT: usize = 8;
/// Fraction of a picture below which it is said that the network sees little of it.
const LITTLE: f64 = 0.5;
/// Cameras that are told one by one.
const MOST_TOLD: usize = 10;

/// A camera that was used.
#[derive(Debug, Clone, Serialize)]
pub struct CameraReport {
    /// Where it is from.
    pub source: String,
    /// Pictures of the input that it took; none where videos are among them.
    pub num_images: Option<usize>,
    /// K, row-major, px.
    pub k: [f64; 9],
    /// Width and height of its pictures, px, when its file tells them.
    pub image_size: Option<(usize, usize)>,
    /// The distortion that was undone, for people; none for a pinhole.
    pub distortion: Option<String>,
    /// Fraction of a picture's area that the network gets to see; none where no size is known.
    pub coverage: Option<f64>,
}

/// The cameras of all pictures.
#[derive(Debug)]
pub(super) struct Cameras {
    views: Vec<(Arc<View>, CameraReport)>,
    /// Of each picture, in the order of the inputs, videos left out: its view, or what is wrong with its camera.
    of_pictures: Vec<Result<usize, String>>,
    /// Of each picture: whether it is a dataset's, whose camera is that of the stored pixels.
    as_stored: Vec<bool>,
    /// The one that the user gave.
    given: Option<usize>,
    /// That of frames, where the user gave none.
    of_frames: Option<usize>,
}

/// What cameras are made for.
pub(super) struct NetworkInput<'a> {
    pub input: &'a InputConfig,
    pub data: &'a DataConfig,
}

impl Cameras {
    /// Finds the camera of each picture: `file` for all of them, else that of the dataset's scene that a picture lies in, else
    /// the network's own for pictures of exactly its size.
    ///
    /// # Errors
    /// If `file` is not a camera, a picture has none, or the first pictures are of another size than their camera.
    pub fn find(file: Option<&Path>, inputs: &Inputs, network: &NetworkInput) -> Result<Self> {
        let mut cameras = Self {
            views: Vec::new(),
            of_pictures: Vec::new(),
            as_stored: Vec::new(),
            given: None,
            of_frames: None,
        };
        if let Some(path) = file {
            let camera = read_camera(path)?;
            cameras.given = Some(cameras.view(camera, path.display().to_string(), network)?);
        }
        let mut scenes = HashMap::new();
        let mut homeless = Vec::new();
        for input in &inputs.inputs {
            let pictures = match input {
                Input::Pictures(pictures) => pictures,
                Input::Frames(source) => {
                    cameras.take_frames(source, network)?;
                    continue;
                }
            };
            let first = cameras.of_pictures.len();
            for (i, picture) in pictures.iter().enumerate() {
                let known = match cameras.given {
                    Some(_) => None,
                    None => scene_camera(picture, &mut scenes),
                };
                cameras.as_stored.push(known.is_some());
                let found = match (cameras.given, known) {
                    (Some(given), _) => Ok(given),
                    (None, Some(Ok((camera, source)))) => {
                        let file = CameraFile { lens: camera.into(), size: None };
                        Ok(cameras.view(file, source, network)?)
                    }
                    (None, Some(Err(why))) => Err(why),
                    (None, None) => {
                        homeless.push((first + i, picture));
                        Err(String::new())
                    }
                };
                cameras.of_pictures.push(found);
            }
            cameras.check_sizes(pictures, first)?;
        }
        cameras.take_in(&homeless, network)?;
        if let Some(Err(why)) = cameras.of_pictures.first()
            && cameras.of_pictures.iter().all(Result::is_err)
        {
            bail!("no picture has a camera, the first: {why}");
        }
        cameras.count();
        Ok(cameras)
    }

    /// The view of a picture, by its number over all inputs.
    pub fn of_picture(&self, number: usize) -> Result<Arc<View>, String> {
        self.of_pictures[number].clone().map(|view| self.views[view].0.clone())
    }

    /// Whether a picture, by its number over all inputs, is a dataset's: taken as stored. Others are turned as their EXIF
    /// orientation says, as OpenCV's `imread` does for calibration and use alike.
    pub fn takes_as_stored(&self, number: usize) -> bool {
        self.as_stored[number]
    }

    /// The view of frames, or any: for pictures that have none.
    pub fn any(&self) -> Option<Arc<View>> {
        let number = self.given.or(self.of_frames).unwrap_or(0);
        self.views.get(number).map(|(view, _)| view.clone())
    }

    /// The cameras that were used, the first of many.
    pub fn reports(&self) -> Vec<CameraReport> {
        let used = self.views.iter().filter(|(_, r)| r.num_images != Some(0));
        used.take(MOST_TOLD).map(|(_, report)| report.clone()).collect()
    }

    /// The number of the view for a camera, made when there is none yet.
    fn view(&mut self, file: CameraFile, source: String, network: &NetworkInput) -> Result<usize> {
        let same = |(view, report): &(Arc<View>, CameraReport)| {
            *view.lens() == file.lens && report.image_size == file.size
        };
        if let Some(at) = self.views.iter().position(same) {
            return Ok(at);
        }
        let CameraFile { lens, size } = file;
        let view = View::new(lens, size, network.input, network.data)?;
        let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let report = CameraReport {
            source,
            num_images: None,
            k: lens.camera().row_major(),
            image_size: size,
            distortion: told(lens.distortion()),
            coverage: size.map(|(w, h)| view.coverage((side(w), side(h)))),
        };
        self.views.push((Arc::new(view), report));
        Ok(self.views.len() - 1)
    }

    /// Frames are those of the given camera; of standard input also the network's own, by their size.
    fn take_frames(&mut self, source: &FrameSource, network: &NetworkInput) -> Result<()> {
        if let Some(given) = self.given {
            return check_raw(&self.views[given], source);
        }
        let own = (network.input.width, network.input.height);
        let FrameSource::Stdin(format) = source else {
            bail!(
                "{}: a video does not tell its camera; pass it with --camera FILE",
                source.name()
            );
        };
        if let StreamFormat::Raw(width, height) = *format {
            ensure!(
                (width as usize, height as usize) == own,
                "-: nothing tells the camera of frames of {width} x {height} px; pass it with --camera FILE. The network's \
                 own camera holds for images of {} x {} px only",
                own.0,
                own.1
            );
        }
        tracing::warn!(
            "-: images on standard input tell no camera: those of {} x {} px are taken for the network's own, others cannot \
             be used without --camera FILE",
            own.0,
            own.1
        );
        self.of_frames = Some(self.own_view(network)?);
        Ok(())
    }

    /// The number of the view for the network's own camera.
    fn own_view(&mut self, network: &NetworkInput) -> Result<usize> {
        let own = (network.input.width, network.input.height);
        let camera = CameraFile { lens: network.input.camera()?.into(), size: Some(own) };
        let source = "the network's own camera (INPUT.INTERNAL_K), by the images' size".to_owned();
        self.view(camera, source, network)
    }

    /// Fails when none of the first pictures is of its camera's size: then hardly any will be.
    fn check_sizes(&mut self, pictures: &[Picture], first: usize) -> Result<()> {
        let mut wrong = None;
        for (i, picture) in pictures.iter().take(LOOKED_AT).enumerate() {
            let Ok(view) = self.of_pictures[first + i] else { continue };
            let Some((w, h)) = size_of(picture, self.as_stored[first + i]) else { continue };
            let (view, report) = &mut self.views[view];
            report.coverage.get_or_insert_with(|| view.coverage((w, h)));
            let size = (w as usize, h as usize);
            match view.check_size(size) {
                Ok(()) => {
                    if let Some(odd) = off_center(view.lens().camera(), size) {
                        tracing::warn!("{}: {odd}", picture.name);
                    }
                    if report.coverage.is_some_and(|fraction| fraction < LITTLE) {
                        tracing::warn!(
                            "camera {}: the network's camera sees little of it",
                            report.line()
                        );
                    }
                    self.tell_turned(pictures, first);
                    return Ok(());
                }
                Err(e) => wrong = wrong.or(Some((picture, e))),
            }
        }
        match wrong {
            Some((picture, e)) => Err(e.context(picture.name.clone())),
            None => Ok(()),
        }
    }

    /// Says it when the first pictures have an EXIF orientation.
    fn tell_turned(&self, pictures: &[Picture], first: usize) {
        let turned = pictures.iter().take(LOOKED_AT).enumerate().find_map(|(i, picture)| {
            let (_, orientation) = size_and_orientation(&picture.path).ok()?;
            (orientation != Orientation::NoTransforms).then_some((
                picture,
                orientation,
                self.as_stored[first + i],
            ))
        });
        let Some((picture, orientation, as_stored)) = turned else { return };
        let what = match as_stored {
            true => "is ignored, as dataset images are taken as stored, like their cameras",
            false => {
                "is obeyed: pictures are turned upright before anything else, as OpenCV's imread does"
            }
        };
        tracing::warn!("{}: the EXIF orientation ({orientation:?}) {what}", picture.name);
    }

    /// Gives pictures without a camera the network's own, when they are of its size.
    fn take_in(&mut self, homeless: &[(usize, &Picture)], network: &NetworkInput) -> Result<()> {
        let Some((_, first)) = homeless.first() else { return Ok(()) };
        let own = (network.input.width, network.input.height);
        let sizes = homeless.iter().take(LOOKED_AT).filter_map(|(_, picture)| {
            let (w, h) = size_of(picture, false)?;
            Some((w as usize, h as usize))
        });
        let sizes: Vec<_> = sizes.collect();
        if !sizes.is_empty() && !sizes.contains(&own) {
            let (w, h) = sizes[0];
            bail!(
                "{}: nothing tells the camera of this image of {w} x {h} px; pass it with --camera FILE (JSON or YAML with fx, \
                 fy, cx, cy, see docs/predict.md). The network's own camera holds for images of {} x {} px only",
                first.name,
                own.0,
                own.1
            );
        }
        let view = self.own_view(network)?;
        for (number, _) in homeless {
            self.of_pictures[*number] = Ok(view);
        }
        Ok(())
    }

    fn count(&mut self) {
        let mut counts = vec![0; self.views.len()];
        for view in self.of_pictures.iter().flatten() {
            counts[*view] += 1;
        }
        for (i, (_, report)) in self.views.iter_mut().enumerate() {
            // One that the user gave may see videos too.
            let sees_frames = [self.given, self.of_frames].contains(&Some(i));
            report.num_images = (!sees_frames || counts[i] > 0).then_some(counts[i]);
        }
    }
}

/// Fails when raw frames are of another size than their camera's.
fn check_raw((view, report): &(Arc<View>, CameraReport), source: &FrameSource) -> Result<()> {
    let FrameSource::Stdin(StreamFormat::Raw(width, height)) = *source else { return Ok(()) };
    let contradiction = || format!("--raw {width}x{height} and --camera {}", report.source);
    view.check_size((width as usize, height as usize)).with_context(contradiction)
}

/// Width and height of a picture as it is taken, px; none where it cannot be read.
fn size_of(picture: &Picture, as_stored: bool) -> Option<(u32, u32)> {
    let (size, orientation) = size_and_orientation(&picture.path).ok()?;
    Some(if as_stored { size } else { upright_size(size, orientation) })
}

/// The camera that the scene of a picture's dataset tells; `None` for pictures that lie in no scene.
fn scene_camera(
    picture: &Picture,
    scenes: &mut HashMap<PathBuf, Result<HashMap<u32, Camera>, String>>,
) -> Option<Result<(Camera, String), String>> {
    let place = ImagePath::parse(picture.path.to_str()?).ok()?;
    let file = place.scene.join("scene_camera.json");
    let known = scenes.contains_key(&place.scene);
    if !known && !file.is_file() {
        return None;
    }
    let cameras = scenes
        .entry(place.scene.clone())
        .or_insert_with(|| scene_cameras(&place.scene).map_err(|e| format!("{e:#}")));
    Some(match cameras {
        Err(why) => Err(why.clone()),
        Ok(cameras) => match cameras.get(&place.number) {
            Some(camera) => Ok((*camera, file.display().to_string())),
            None => Err(format!("{}: image {} is not in it", file.display(), place.number)),
        },
    })
}

fn told(distortion: &Distortion) -> Option<String> {
    match distortion {
        Distortion::None => None,
        Distortion::Polynomial { k, p, s } => {
            let mut text = format!("k {k:?}, p {p:?}");
            if s.iter().any(|v| *v != 0.0) {
                text += &format!(", s {s:?}");
            }
            Some(text)
        }
        Distortion::Equidistant { k } => Some(format!("equidistant k {k:?}")),
    }
}

impl CameraReport {
    /// For people.
    pub(super) fn line(&self) -> String {
        let [fx, _, cx, _, fy, cy, ..] = self.k;
        let mut line =
            format!("{}: fx {fx:.2}, fy {fy:.2}, cx {cx:.2}, cy {cy:.2} px", self.source);
        if let Some(distortion) = &self.distortion {
            line += &format!(", distortion {distortion} undone");
        }
        if let Some(fraction) = self.coverage {
            line += &format!(", the network sees {:.0} % of a picture", 100.0 * fraction);
        }
        line
    }
}
