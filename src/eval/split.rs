//! Networks over a dataset's split: images to predicted poses.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::deviation::{OutputComparison, OutputDeviation};
use super::options::{InferOptions, preprocess};
use super::pipeline::{PictureBatch, PictureInfo, Pipeline, SolvedPicture};
use super::prediction::Prediction;
use super::solver::{ImageResult, Solver};
use super::timing::Timing;
use crate::data::{BadSample, Batch, Dataset, Loader, LoaderOptions};
use crate::nn::{Decode, Engine, HostOutputs};

/// How far an inference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Images whose outputs are there.
    pub num_done: usize,
    /// Images of the split.
    pub num_images: usize,
}

/// What [`infer`] found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Inference {
    /// In the order of the images, then of the classes, then by falling confidence; at most `evaluation.instances` of a class in an
    /// image.
    pub predictions: Vec<Prediction>,
    /// The image of each, by its place in the split.
    pub places: Vec<usize>,
    /// With `skip_bad`: the images that could not be read.
    pub left_out: Vec<BadSample>,
    /// Where the time went.
    pub timing: Timing,
}

impl Inference {
    /// What processes found that shared the images of a split ([`InferOptions::share`]): each image is there once, and all is
    /// as one process gives it. Times are summed, but the total is the longest.
    pub fn merged(parts: Vec<Self>) -> Self {
        let mut found = Vec::new();
        let mut left_out = Vec::new();
        let mut timing = Timing::default();
        for part in parts {
            found.extend(part.places.into_iter().zip(part.predictions));
            left_out.extend(part.left_out);
            timing.add(&part.timing);
        }
        found.sort_by_key(|(place, _)| *place); // stable: the classes of an image stay in order
        left_out.sort_by_key(|bad| bad.index);
        let (places, predictions) = found.into_iter().unzip();
        Self { predictions, places, left_out, timing }
    }
}

/// What [`infer_pair`] found.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The predictions of the first and the second network, as [`infer`] makes them.
    pub predictions: [Vec<Prediction>; 2],
    /// How far each output of the second lies from that of the first.
    pub outputs: Vec<OutputDeviation>,
    /// With `skip_bad`: the images that could not be read.
    pub left_out: Vec<BadSample>,
}

/// Predicts the poses in every image of `dataset`: engine, `decoder`, one PnP for each
/// instance of a class.
///
/// The PnP is solved under the internal camera; the image was warped by `K_internal K^-1`, so that the pose holds
/// under the image's own camera as it is. Results do not depend on threads or timing
/// (on the batch size by what the network's own rounding does). An object that
/// was not found, or whose PnP has no solution, is simply absent.
///
/// # Errors
/// If an image cannot be loaded (unless `skip_bad`), the engine fails, or its outputs are not those that the decoder reads.
pub fn infer(
    engine: &dyn Engine,
    decoder: &dyn Decode,
    dataset: &Arc<Dataset>,
    options: &InferOptions,
    progress: impl FnMut(Progress),
) -> Result<Inference> {
    let split = SplitRun { engines: &[engine], decoder, dataset, options };
    let (mut predictions, mut places) = (Vec::new(), Vec::new());
    let (timing, left_out) = split.run(
        progress,
        |_| (),
        |place, results| {
            predictions.extend(results.into_iter().flat_map(predictions_of));
            places.resize(predictions.len(), place);
        },
    )?;
    Ok(Inference { predictions, places, left_out, timing })
}

/// Runs two engines over the images of `dataset`, each image loaded once.
///
/// The predictions are those of [`infer`] for each engine alone.
///
/// # Errors
/// As [`infer`].
pub fn infer_pair(
    engines: [&dyn Engine; 2],
    decoder: &dyn Decode,
    dataset: &Arc<Dataset>,
    options: &InferOptions,
    progress: impl FnMut(Progress),
) -> Result<Pair> {
    let split = SplitRun { engines: &engines, decoder, dataset, options };
    let mut comparison = OutputComparison::default();
    let mut predictions = [Vec::new(), Vec::new()];
    let compare = |outputs: &[HostOutputs]| {
        if let [first, second] = outputs {
            comparison.add(first, second);
        }
    };
    let (_, left_out) = split.run(progress, compare, |_, results| {
        for (own, result) in predictions.iter_mut().zip(results) {
            own.extend(predictions_of(result));
        }
    })?;
    Ok(Pair { predictions, outputs: comparison.finish(), left_out })
}

/// Engines and the images that they are to see.
struct SplitRun<'a> {
    engines: &'a [&'a dyn Engine],
    decoder: &'a dyn Decode,
    dataset: &'a Arc<Dataset>,
    options: &'a InferOptions,
}

impl SplitRun<'_> {
    /// Goes through the images: `on_outputs` sees the outputs of each engine for a batch, `on_image` the poses that each engine
    /// gives in the image of a place. Returns where the time went and the images that were left out.
    fn run(
        &self,
        mut progress: impl FnMut(Progress),
        mut on_outputs: impl FnMut(&[HostOutputs]),
        mut on_image: impl FnMut(usize, Vec<ImageResult>) + Send,
    ) -> Result<(Timing, Vec<BadSample>)> {
        let Self { engines, decoder, dataset, options } = self;
        let obj_ids = dataset.models.iter().map(|model| model.obj_id).collect();
        let solver = Solver::new(*decoder, obj_ids, options)?;
        let pipeline = Pipeline::new(engines, preprocess(&options.input), options.device);
        let mut loader = split_loader(dataset, options)?;
        let (mut num_done, num_images) = (0, loader.num_images());
        let timing = pipeline.solve(
            &solver,
            loader.by_ref().map(|batch| Ok(pictures_of(batch?))),
            |num_pictures, outputs| {
                on_outputs(outputs);
                num_done += num_pictures;
                progress(Progress { num_done, num_images });
            },
            |SolvedPicture { results, picture, .. }| {
                on_image(picture.place, results);
                Ok(())
            },
        )?;
        Ok((timing, loader.bad().to_vec()))
    }
}

/// Loads the images in the list's order, nothing augmented or replaced.
fn split_loader(dataset: &Arc<Dataset>, options: &InferOptions) -> Result<Loader> {
    let loader_options = LoaderOptions {
        seed: options.seed,
        batch_size: options.data.bs_valid,
        workers: options.workers,
        skip_bad: options.skip_bad,
        share: options.share,
        ..LoaderOptions::default()
    };
    Loader::start(dataset.clone(), &options.input, &options.data, loader_options)
}

/// A loader's batch for the pipeline.
pub fn pictures_of(batch: Batch) -> PictureBatch<()> {
    let pictures = batch.indices.into_iter().zip(batch.names);
    let pictures =
        pictures.map(|(place, name)| PictureInfo { place, name, readable: true, item: () });
    PictureBatch { pictures: pictures.collect(), pixels: batch.pixels }
}

/// The poses that were found in an image.
fn predictions_of(result: ImageResult) -> impl Iterator<Item = Prediction> {
    result.classes.into_iter().filter_map(|class| Some(class.outcome.ok()?.prediction))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{
        CornerDecoder, CornerEngine, dataset, options, pictures, see_corners,
    };
    use crate::geom::Vec2;
    use tch::{Device, Tensor};

    #[test]
    fn a_pose_solved_under_the_internal_camera_holds_in_the_image() {
        let (dataset, options) = (dataset(), options());
        let decoder = CornerDecoder::new(dataset.models[0].corners);
        let solver = Solver::new(&decoder, vec![1], &options).unwrap();
        for index in [0, 12, 29] {
            let frame = &dataset.frames[index];
            let engine = CornerEngine { pixels: see_corners(&options, index) };
            let image = Tensor::zeros([1, 3, 8, 8], (tch::Kind::Float, Device::Cpu));
            let outputs = engine.forward(&image).unwrap().to_host(solver.outputs(), 1).unwrap();
            let result = solver.solve(index, &frame.image, &outputs, 0);
            let [p] = predictions_of(result).collect::<Vec<_>>().try_into().unwrap();
            let (pose, truth) = (p.pose().unwrap(), frame.objects[0].pose);
            assert!((pose.t_mm - truth.t_mm).norm() < 1e-3 * truth.t_mm.norm(), "{pose:?}");
            assert!((pose.r - truth.r).norm() < 1e-2 && p.residual_px < 1e-3);
            assert_eq!((p.image.as_str(), p.obj_id), (frame.image.as_str(), Some(1)));
            assert_eq!((p.inliers, p.score), (8, 0.75));
        }
    }

    #[test]
    fn an_engine_runs_over_a_split_whatever_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let mut options = options();
        let engine = CornerEngine { pixels: see_corners(&options, 1) };
        let dataset = pictures(folder.path());
        let decoder = CornerDecoder::new(dataset.models[0].corners);
        let run = |dataset: &Dataset, options: &InferOptions| {
            let mut seen = Vec::new();
            let dataset = Arc::new(dataset.clone());
            let found = infer(&engine, &decoder, &dataset, options, |p| seen.push(p.num_done));
            (found, seen)
        };
        let (found, seen) = run(&dataset, &options);
        let found = found.unwrap();
        assert_eq!((seen, found.timing.num_images), (vec![3, 5], 5));
        assert_eq!(found.predictions.len(), 5);
        assert!(found.predictions[0].t_mm != found.predictions[1].t_mm);
        options.workers = 0;
        let (again, _) = run(&dataset, &options);
        assert_eq!(found.predictions, again.unwrap().predictions);

        std::fs::remove_file(folder.path().join("3.png")).unwrap();
        let error = run(&dataset, &options).0.unwrap_err();
        assert!(format!("{error:#}").contains("3.png"), "{error:#}");
        options.skip_bad = true;
        let skipped = run(&dataset, &options).0.unwrap();
        assert_eq!((skipped.left_out[0].index, skipped.timing.num_images), (3, 4));
        let mut expected = found.predictions.clone();
        expected.remove(3);
        assert_eq!(skipped.predictions, expected);
    }

    #[test]
    fn a_pair_of_the_same_engine_does_not_deviate_and_another_one_does() {
        let folder = tempfile::tempdir().unwrap();
        let options = options();
        let pixels = see_corners(&options, 1);
        let dataset = Arc::new(pictures(folder.path()));
        let (engine, decoder) =
            (CornerEngine { pixels }, CornerDecoder::new(dataset.models[0].corners));
        let moved = CornerEngine { pixels: pixels.map(|p| p + Vec2::new(0.5, 0.0)) };
        let run = |second: &CornerEngine| {
            infer_pair([&engine, second], &decoder, &dataset, &options, |_| ()).unwrap()
        };
        let alone = infer(&engine, &decoder, &dataset, &options, |_| ()).unwrap().predictions;
        let same = run(&engine);
        assert_eq!(same.predictions, [alone.clone(), alone.clone()]);
        let [output] = same.outputs.as_slice() else { panic!("{:?}", same.outputs) };
        assert_eq!((output.name.as_str(), output.deviation.num_values), ("corners", 5 * 16));
        assert_eq!((output.deviation.max_abs, output.deviation.num_not_finite), (0.0, 0));
        let other = run(&moved);
        assert_eq!(other.predictions[0], alone);
        assert!(other.predictions[1] != alone);
        assert!((other.outputs[0].deviation.max_abs - 0.5).abs() < 1e-4);
    }

    #[test]
    fn engines_that_do_not_fit_the_decoder_are_refused_before_anything_loads() {
        struct Other;
        impl Engine for Other {
            fn outputs(&self, width: usize, _height: usize) -> Vec<crate::nn::OutputShape> {
                let shape = vec![width as i64];
                vec![crate::nn::OutputShape { name: "corners".to_owned(), shape }]
            }
            fn forward(&self, _images: &Tensor) -> Result<crate::nn::Outputs> {
                anyhow::bail!("not reached")
            }
        }
        let dataset = Arc::new(dataset()); // its images are not there
        let decoder = CornerDecoder::new(dataset.models[0].corners);
        let error = infer(&Other, &decoder, &dataset, &options(), |_| ()).unwrap_err().to_string();
        assert!(
            error.contains("output corners") && error.contains("[128], expected [16]"),
            "{error}"
        );
    }
}
