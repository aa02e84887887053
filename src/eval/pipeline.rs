//! The one way from pictures to outputs and poses: engines x source x solver.
//!
//! [`Pipeline::run`] is the only loop: batches of pictures as bytes become images on the device, every engine computes its
//! outputs from the same images, and an observer gets them. [`Pipeline::solve`] is that loop with an observer that hands the
//! outputs to a [`Solver`] on other threads; at most a few batches wait between the two. Equal pictures in equal batches
//! therefore give equal bits, whatever they are for.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use crossbeam_channel::{Receiver, bounded};
use rayon::prelude::*;
use tch::{Device, Tensor};

use super::solver::{ImageResult, Solver};
use super::timing::Timing;
use crate::nn::{Engine, HostOutputs, Outputs, Preprocess};

/// Batches of outputs that may wait for their poses while the engines go on.
const WAITING_BATCHES: usize = 2;

/// A picture on its way.
#[derive(Debug, Clone)]
pub struct PictureInfo<T> {
    /// Its place in its list, from 0: RANSAC draws by it.
    pub place: usize,
    /// What it is called in results.
    pub name: String,
    /// Whether its pixels are in the batch; if not it is passed on without poses, so that results keep their order.
    pub readable: bool,
    /// What goes along with it.
    pub item: T,
}

/// Pictures that the engines see together.
#[derive(Debug, Clone)]
pub struct PictureBatch<T> {
    /// In the order of the results.
    pub pictures: Vec<PictureInfo<T>>,
    /// RGB `[n, h, w, 3]` of the readable pictures, under the internal camera.
    pub pixels: Vec<u8>,
}

/// A batch behind the engines.
#[derive(Debug)]
pub struct Forwarded<T> {
    /// The batch's pictures, the unreadable ones included.
    pub pictures: Vec<PictureInfo<T>>,
    /// The readable ones as the engines took them, `[n, 3, h, w]`; none where all are unreadable.
    pub images: Option<Tensor>,
    /// Of each engine; none where all pictures are unreadable.
    pub outputs: Vec<Outputs>,
    /// When the batch began to be computed.
    pub started: Instant,
}

/// What became of a picture.
#[derive(Debug)]
pub struct SolvedPicture<T> {
    /// The picture.
    pub picture: PictureInfo<T>,
    /// The poses by each engine; empty where the picture is unreadable.
    pub results: Vec<ImageResult>,
    /// Its part of the engines' time for the batch.
    pub network: Duration,
    /// What solving for its poses took.
    pub solving: Duration,
    /// When the engines began with its batch, and when they had its outputs.
    pub computed: [Instant; 2],
}

/// Engines that compute from the same images.
pub struct Pipeline<'a> {
    engines: Vec<&'a dyn Engine>,
    preprocess: Preprocess,
    device: Device,
}

impl<'a> Pipeline<'a> {
    /// Engines, of any number, that take images of `preprocess` on `device`.
    pub fn new(engines: &[&'a dyn Engine], preprocess: Preprocess, device: Device) -> Self {
        Self { engines: engines.to_vec(), preprocess, device }
    }

    /// The outputs of each engine for images `[n, 3, h, w]`, normalised.
    ///
    /// # Errors
    /// If an engine fails.
    pub fn forward(&self, images: &Tensor) -> Result<Vec<Outputs>> {
        self.engines.iter().map(|engine| engine.forward(images)).collect()
    }

    /// Computes the batches of `source` one after the other and hands each to `observe`, on the calling thread.
    /// Returns what was waited for the source.
    ///
    /// # Errors
    /// If the source, an engine or `observe` fails; the source is dropped then.
    pub fn run<T>(
        &self,
        mut source: impl Iterator<Item = Result<PictureBatch<T>>>,
        mut observe: impl FnMut(Forwarded<T>) -> Result<()>,
    ) -> Result<Duration> {
        let mut waited = Duration::ZERO;
        loop {
            let waiting = Instant::now();
            let Some(batch) = source.next() else { return Ok(waited) };
            let PictureBatch { pictures, pixels } = batch?;
            waited += waiting.elapsed();
            let started = Instant::now();
            let images = match pixels.is_empty() {
                true => None,
                false => Some(self.preprocess.images(&pixels, self.device)?),
            };
            drop(pixels);
            let outputs = match &images {
                Some(images) => self.forward(images)?,
                None => Vec::new(),
            };
            observe(Forwarded { pictures, images, outputs, started })?;
        }
    }

    /// Finds the poses in the pictures of `source`. `observe` gets the number of a batch's pictures and the outputs of each
    /// engine for it, on the calling thread; `on_solved` each picture with its poses, in the order of the source, on
    /// another one.
    ///
    /// # Errors
    /// If the source, an engine or `on_solved` fails, or the engines have not the outputs that the solver takes.
    pub fn solve<T: Send>(
        &self,
        solver: &Solver,
        source: impl Iterator<Item = Result<PictureBatch<T>>>,
        mut observe: impl FnMut(usize, &[HostOutputs]),
        mut on_solved: impl FnMut(SolvedPicture<T>) -> Result<()> + Send,
    ) -> Result<Timing> {
        self.check_outputs(solver)?;
        let started = Instant::now();
        let mut timing = Timing::default();
        let mut network = Duration::ZERO;
        let (waited, [decode_s, pnp_s]) = std::thread::scope(|scope| {
            let (sender, receiver) = bounded(WAITING_BATCHES);
            let solving = scope.spawn(move || solve_all(solver, receiver, &mut on_solved));
            let ran = self.run(source, |forwarded| {
                let Forwarded { pictures, outputs, started, .. } = forwarded;
                let num = pictures.iter().filter(|picture| picture.readable).count();
                let to_host = |outputs: &Outputs| outputs.to_host(solver.outputs(), num);
                let outputs = outputs.iter().map(to_host).collect::<Result<Vec<_>>>()?;
                let took = started.elapsed();
                network += took;
                observe(pictures.len(), &outputs);
                timing.num_images += num;
                let network = took / num.max(1) as u32;
                let computed = [started, started + took];
                let waiting = Waiting { pictures, outputs, network, computed };
                sender.send(waiting).map_err(|_| anyhow!("finding poses ended early"))
            });
            drop(sender);
            let solved = solving.join().map_err(|_| anyhow!("finding poses panicked"))?;
            // A failure behind the engines is why nobody takes batches any more.
            let seconds = solved?;
            Ok::<_, anyhow::Error>((ran?, seconds))
        })?;
        timing.loading_s = waited.as_secs_f64();
        timing.network_s = network.as_secs_f64();
        (timing.decode_s, timing.pnp_s) = (decode_s, pnp_s);
        timing.total_s = started.elapsed().as_secs_f64();
        Ok(timing)
    }

    /// Refuses engines whose outputs the solver cannot read, before anything is loaded.
    fn check_outputs(&self, solver: &Solver) -> Result<()> {
        let Preprocess { width, height, .. } = self.preprocess;
        for engine in &self.engines {
            let found = engine.outputs(width, height);
            for wanted in solver.outputs() {
                let own = found.iter().find(|own| own.name == wanted.name);
                ensure!(
                    own == Some(wanted),
                    "the network's output {} for images of {width} x {height} px has the shape {:?}, expected {:?}: is it \
                     a network of other classes or another config?",
                    wanted.name,
                    own.map_or(&[][..], |own| &own.shape),
                    wanted.shape
                );
            }
        }
        Ok(())
    }
}

/// A batch that waits for its poses.
struct Waiting<T> {
    pictures: Vec<PictureInfo<T>>,
    /// Of each engine.
    outputs: Vec<HostOutputs>,
    /// The engines' time for a picture.
    network: Duration,
    /// When the engines began and ended.
    computed: [Instant; 2],
}

/// Hands on every picture with its poses; returns the seconds of decoding and PnP, summed over the threads.
fn solve_all<T: Send>(
    solver: &Solver,
    batches: Receiver<Waiting<T>>,
    on_solved: &mut impl FnMut(SolvedPicture<T>) -> Result<()>,
) -> Result<[f64; 2]> {
    let mut seconds = [0.0; 2];
    for Waiting { pictures, outputs, network, computed } in batches {
        let mut image = 0;
        let pictures: Vec<(usize, PictureInfo<T>)> = (pictures.into_iter())
            .map(|picture| {
                image += usize::from(picture.readable);
                (image.saturating_sub(1), picture)
            })
            .collect();
        let solved: Vec<SolvedPicture<T>> = pictures
            .into_par_iter()
            .map(|(image, picture)| {
                let (results, solving) = solve_one(solver, &picture, &outputs, image);
                SolvedPicture { picture, results, network, solving, computed }
            })
            .collect();
        for solved in solved {
            for result in &solved.results {
                seconds[0] += result.decode_s;
                seconds[1] += result.pnp_s;
            }
            on_solved(solved)?;
        }
    }
    Ok(seconds)
}

/// The poses in the picture that is `image` of the outputs, and how long they took.
fn solve_one<T>(
    solver: &Solver,
    picture: &PictureInfo<T>,
    outputs: &[HostOutputs],
    image: usize,
) -> (Vec<ImageResult>, Duration) {
    let started = Instant::now();
    let results = match picture.readable {
        true => (outputs.iter())
            .map(|outputs| solver.solve(picture.place, &picture.name, outputs, image))
            .collect(),
        false => Vec::new(),
    };
    (results, started.elapsed())
}
