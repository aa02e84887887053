//! `mqat bench loader`: images a second of the data path.

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tch::Device;

use super::images;
use super::images::Images;
use super::report::{BenchReport, object, resize};
use super::rounds::{Progress, Rounds, Subject, measure, timed};
use crate::data::{Loader, LoaderOptions};
use crate::run::Machine;
use crate::run::config::{Config, Names};
use crate::run::folder::Start;
use crate::run::options::loader_options;
use crate::run::request::Request;

/// Most threads that load; as of `RUNTIME.NUM_WORKERS`.
const MOST_WORKERS: usize = 256;

/// What `mqat bench loader` is asked.
#[derive(Debug, Clone)]
pub struct LoaderBenchRequest {
    /// Config and dataset.
    pub run: Request,
    /// How often.
    pub rounds: Rounds,
    /// Numbers of threads that load (0 loads in the calling thread); empty takes powers of two up to the CPUs.
    pub workers: Vec<usize>,
    /// Whether images are augmented: each is measured.
    pub augment: Vec<bool>,
    /// Images of a call, 1 or more.
    pub images: usize,
    /// Images of a batch instead of the config's `bs_train`.
    pub batch: Option<usize>,
    /// Width and height of the network's input instead of the config's, px.
    pub size_px: Option<usize>,
    /// Width and height of images that are rendered where there is no dataset, px; twice the network's input where it is
    /// not given, as with SwissCube.
    pub image_px: Option<usize>,
}

/// Measures the loading of training images: reading, decoding, warping to the internal camera, augmenting, relabelling,
/// from the start of the threads to the last batch.
///
/// # Errors
/// If the dataset cannot be read, or settings are out of range.
pub fn bench_loader(
    request: &LoaderBenchRequest,
    progress: &mut Progress<'_>,
) -> Result<BenchReport> {
    let home = request.run.home()?;
    request.run.select.ensure_names_act(Names::Dataset)?;
    let mut config = request.run.select.resolve(&home)?;
    resize(&mut config, request.size_px)?;
    config.data.bs_train = request.batch.unwrap_or(config.data.bs_train);
    let problems = config.problems();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    ensure!(request.images > 0, "--images: 0 is below 1");
    let machine = Machine::here(Device::Cpu);
    let workers = workers(request, machine.cpus)?;
    let side_px = match request.image_px {
        Some(px) => px,
        None => 2 * config.input.width.max(config.input.height),
    };
    let found = images::open(&request.run, &mut config, request.images, side_px, progress)?;
    let num_images = found.dataset.frames.len();
    let batch_size = config.data.bs_train.min(num_images);
    let mut subjects = Vec::new();
    for &augment in &request.augment {
        for &workers in &workers {
            let options = LoaderOptions {
                augment,
                workers,
                drop_last: false,
                skip_bad: request.run.skip_bad,
                ..loader_options(&config, batch_size)
            };
            subjects.push(subject(&config, &found, options));
        }
    }
    let mut settings = object([
        ("size_px", json!([config.input.width, config.input.height])),
        ("batch", json!(batch_size)),
    ]);
    settings.extend(found.settings.clone());
    let notes = machine.busy().into_iter().chain(found.note.clone()).collect();
    Ok(BenchReport {
        bench: "loader",
        machine,
        command: Start::now(None).command,
        rounds: request.rounds,
        settings,
        item: "image",
        subjects: measure(subjects, request.rounds, progress)?,
        notes,
    })
}

/// The numbers of threads to measure.
fn workers(request: &LoaderBenchRequest, cpus: usize) -> Result<Vec<usize>> {
    if let Some(n) = request.workers.iter().find(|n| **n > MOST_WORKERS) {
        bail!("--workers: {n} is outside 0..={MOST_WORKERS}");
    }
    if !request.workers.is_empty() {
        return Ok(request.workers.clone());
    }
    let mut counts: Vec<usize> =
        std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < cpus).collect();
    counts.push(cpus);
    Ok(counts)
}

fn subject<'a>(config: &'a Config, found: &'a Images, options: LoaderOptions) -> Subject<'a> {
    let LoaderOptions { workers, augment, .. } = options;
    let num_images = found.dataset.frames.len();
    let call = move || {
        timed(Device::Cpu, || {
            let dataset = found.dataset.clone();
            let loader = Loader::start(dataset, &config.input, &config.data, options.clone())?;
            let mut loaded = 0;
            for batch in loader {
                loaded += batch?.indices.len();
            }
            ensure!(loaded == num_images, "{loaded} of {num_images} images came");
            Ok(())
        })
    };
    let plural = if workers == 1 { "" } else { "s" };
    let augmented = if augment { "augmented" } else { "not augmented" };
    Subject {
        name: format!("{workers} worker{plural}, {augmented}"),
        details: object([("workers", json!(workers)), ("augment", json!(augment))]),
        per_call: num_images,
        call: Box::new(call),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_go_up_to_the_cpus() {
        let mut request = LoaderBenchRequest {
            run: Request::default(),
            rounds: Rounds { rounds: 1, warm_up: 0 },
            workers: vec![],
            augment: vec![true],
            images: 1,
            batch: None,
            size_px: None,
            image_px: None,
        };
        assert_eq!(workers(&request, 1).unwrap(), [1]);
        assert_eq!(workers(&request, 2).unwrap(), [1, 2]);
        assert_eq!(workers(&request, 6).unwrap(), [1, 2, 4, 6]);
        request.workers = vec![3, 0];
        assert_eq!(workers(&request, 2).unwrap(), [3, 0]);
        request.workers = vec![257];
        assert!(workers(&request, 2).unwrap_err().to_string().contains("--workers: 257"));
    }
}
