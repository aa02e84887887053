//! The synthetic SwissCube: a 1U CubeSat in orbit, ray cast into a BOP dataset.
//!
//! Start at [`generate`]. Each sequence has its own Sun, Earth and stars (`trajectory`, `sky`); each frame is cast
//! (`render`, with the geometry of `mesh` and the surfaces of `materials`), exposed (`sensor`) and written
//! (`writer`). An image depends on the settings, the seed and its place only, never on the number of threads.
//! With `--layout bop` scenes of several objects (`shapes`) are rasterized instead (`scenes`, `raster`), with masks and depths
//! of one object at a time (`silhouette`).
//! A folder that holds anything but a synthetic dataset is refused. No list file is there before all images are.

mod lights;
mod materials;
mod mesh;
mod options;
mod part;
mod raster;
mod render;
mod scenes;
mod sensor;
mod shapes;
mod silhouette;
mod sky;
#[cfg(test)]
mod tests;
mod trajectory;
mod writer;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use image::RgbImage;
use rayon::prelude::*;
use serde::Serialize;

pub use mesh::DIAMETER_MM;
pub use options::{Attitude, Format, Layout, SynthOptions, parse_depth_range, parse_instances};
pub use writer::{finished, unfinished};

use crate::data::bop::FrameObjectInfo;
use render::{Rendered, Scene};
use scenes::Scenes;
use trajectory::SequencePlan;
use writer::Writer;

/// Linear colour.
type Rgb = nalgebra::Vector3<f32>;

/// What [`generate`] did.
#[derive(Debug, Clone, Serialize)]
pub struct SynthReport {
    /// Images written.
    pub images: usize,
    /// Wall time, s.
    pub seconds: f64,
    /// Threads that rendered.
    pub jobs: usize,
    /// Images a second and core in use.
    pub images_per_second_per_core: f64,
    /// Bytes of all files.
    pub bytes: u64,
}

/// Renders and writes a dataset. `progress` gets the number of images done and the total, from any
/// thread.
///
/// # Errors
/// If a setting is out of range, the folder holds something that may not be replaced, or a file cannot be
/// written. What was written by then stays, without list files; `overwrite` replaces it.
pub fn generate(
    options: &SynthOptions,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<SynthReport> {
    options.check()?;
    let start = Instant::now();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(options.jobs)
        .build()
        .context("starting the rendering threads")?;
    // What is rendered is read before anything is replaced.
    let scenes = (options.layout == Layout::Bop).then(|| Scenes::new(options)).transpose()?;
    if scenes.is_none() {
        options.ensure_depths_fit(DIAMETER_MM)?;
    }
    writer::begin(options)?;
    let writer = Writer::new(options);
    let images = pool.install(|| match &scenes {
        None => render_all(options, &writer, progress),
        Some(scenes) => scenes.render_all(&writer, progress),
    })?;

    let seconds = start.elapsed().as_secs_f64();
    let jobs = pool.current_num_threads();
    let cores = std::thread::available_parallelism().map_or(1, usize::from).min(jobs);
    Ok(SynthReport {
        images,
        seconds,
        jobs,
        images_per_second_per_core: images as f64 / seconds / cores as f64,
        bytes: writer.bytes(),
    })
}

fn render_all(
    options: &SynthOptions,
    writer: &Writer,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<usize> {
    let scene = Scene::new()?;
    let done = AtomicUsize::new(0);
    let total = options.num_images();
    let splits = plan_splits(options, &scene);
    for (split, sequences) in splits.iter().enumerate() {
        let backgrounds: Vec<_> = sequences.iter().map(Background::new).collect();
        let places: Vec<(usize, usize)> = sequences
            .iter()
            .enumerate()
            .flat_map(|(s, plan)| (0..plan.frames.len()).map(move |i| (s, i)))
            .collect();
        let infos = places
            .par_iter()
            .map(|&(s, i)| {
                let background = backgrounds[s].get(options.size_px);
                let (rgb, rendered) = render_frame(options, &scene, &sequences[s], i, &background);
                drop(background);
                let place = (split, sequences[s].number, i);
                writer.frame(place, &rgb, rendered.mask, &rendered.depth_mm)?;
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                Ok(rendered.info)
            })
            .collect::<Result<Vec<FrameObjectInfo>>>()?;
        let mut rest = infos.as_slice();
        for plan in sequences {
            let (own, others) = rest.split_at(plan.frames.len());
            writer.sequence(split, plan, own)?;
            rest = others;
        }
    }
    writer.finish(&splits)?;
    Ok(total)
}

/// The sky of a sequence: painted for its first frame, forgotten after its last.
struct Background<'a> {
    plan: &'a SequencePlan,
    /// The image, and how many frames have yet to take it.
    state: Mutex<(Option<Arc<Vec<Rgb>>>, usize)>,
}

impl<'a> Background<'a> {
    fn new(plan: &'a SequencePlan) -> Self {
        Self { plan, state: Mutex::new((None, plan.frames.len())) }
    }

    /// The image for one frame; to be called once for each.
    fn get(&self, size_px: u32) -> Arc<Vec<Rgb>> {
        // A thread that panicked here cannot have left the state half changed.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let image = state.0.take().unwrap_or_else(|| {
            let focal_px = trajectory::camera(size_px).focal_px().0;
            Arc::new(sky::paint(&self.plan.lights, size_px as usize, focal_px as f32))
        });
        state.1 = state.1.saturating_sub(1);
        if state.1 > 0 {
            state.0 = Some(image.clone());
        }
        image
    }
}

/// The sequences of the three splits, numbered over all of them.
fn plan_splits(options: &SynthOptions, scene: &Scene) -> [Vec<SequencePlan>; 3] {
    let mut first = 0;
    [options.num_train, options.num_val, options.num_test].map(|num_images| {
        let lengths = trajectory::sequence_lengths(num_images);
        let numbered: Vec<(usize, usize)> =
            lengths.into_iter().enumerate().map(|(i, n)| (first + i, n)).collect();
        first += numbered.len();
        numbered
            .par_iter()
            .map(|&(number, n)| trajectory::plan(options, scene, number, n))
            .collect()
    })
}

fn render_frame(
    options: &SynthOptions,
    scene: &Scene,
    sequence: &SequencePlan,
    index: usize,
    background: &[Rgb],
) -> (RgbImage, Rendered) {
    let plan = &sequence.frames[index];
    let camera = trajectory::camera(options.size_px);
    let mut rendered =
        scene.render(&camera, options.size_px, &plan.pose, &sequence.lights, background);
    let radiance = std::mem::take(&mut rendered.radiance);
    let rgb = sensor::expose(radiance, options.size_px as usize, plan, options.seed);
    (rgb, rendered)
}
