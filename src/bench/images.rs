//! Images to measure with: a dataset's, or some that are rendered for the occasion.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::report::object;
use super::rounds::{BenchProgress, Progress};
use crate::data::{DataConfig, Dataset, Split};
use crate::run::config::Config;
use crate::run::home::Home;
use crate::run::request::{Request, is_synthetic, thinned};
use crate::synth::{self, SynthOptions};

/// A dataset, and the folder that goes with it when it was rendered here.
pub(super) struct Images {
    pub dataset: Arc<Dataset>,
    /// Where its images come from, for the report.
    pub settings: Map<String, Value>,
    /// What is to be said about them.
    pub note: Option<String>,
    _folder: Option<TempDir>,
}

/// So many training images: of the dataset that the request names, else of the machine's, else rendered into a folder
/// that is removed afterwards, `side_px` wide and high.
///
/// # Errors
/// If a dataset is named or there, and cannot be read; or if nothing can be rendered for this config.
pub(super) fn open(
    request: &Request,
    config: &mut Config,
    num_images: usize,
    side_px: usize,
    progress: &mut Progress<'_>,
) -> Result<Images> {
    let home = request.home()?;
    let there = home.dataset(request.select.problem(), config.data.list(Split::Train));
    if request.data.is_some() || there.is_ok() {
        return of_dataset(request, &home, config, num_images);
    }
    let classes = config.data.num_classes();
    ensure!(
        classes == 1,
        "no dataset was found, and for {classes} classes none can be rendered (the synthetic scene has 1): name one \
         with --data"
    );
    let folder = tempfile::Builder::new().prefix("mqat-bench-").tempdir()?;
    let out = folder.path().join("data");
    let options = SynthOptions {
        out: out.clone(),
        num_train: num_images,
        num_val: 1,
        num_test: 1,
        size_px: u32::try_from(side_px).unwrap_or(u32::MAX),
        depth_d: (1.2, 6.0),
        seed: 1,
        ..SynthOptions::default()
    };
    let told = Mutex::new(progress);
    synth::generate(&options, &|num_done, num_all| {
        let mut progress = told.lock().unwrap_or_else(PoisonError::into_inner);
        progress(BenchProgress { doing: "rendering", unit: "images", num_done, num_all });
    })?;
    let DataConfig { train, valid, test, mesh_dir, bbox_file, mesh_diameters_mm, .. } =
        DataConfig::default();
    let own = std::mem::take(&mut config.data);
    config.data = DataConfig { train, valid, test, mesh_dir, bbox_file, mesh_diameters_mm, ..own };
    let list = config.data.list(Split::Train);
    let dataset = Dataset::open(&out, list, &config.data, &config.input, false)?;
    let text = format!(
        "the images are synthetic: {num_images} of {side_px} x {side_px} px, rendered for this and removed (no dataset \
         was found; name one with --data)"
    );
    Ok(Images {
        settings: object([
            ("dataset", Value::Null),
            ("synthetic_data", json!(true)),
            ("images", json!(dataset.frames.len())),
            ("image_px", json!(side_px)),
        ]),
        dataset: Arc::new(dataset),
        note: Some(text),
        _folder: Some(folder),
    })
}

fn of_dataset(
    request: &Request,
    home: &Home,
    config: &Config,
    num_images: usize,
) -> Result<Images> {
    let dataset = request.open_split(home, config, Split::Train)?;
    let dataset = thinned(dataset, Some(num_images));
    let synthetic = is_synthetic(&dataset.root);
    let note = synthetic.then(|| format!("the images of {} are synthetic", dataset.root.display()));
    Ok(Images {
        settings: object([
            ("dataset", json!(dataset.root)),
            ("synthetic_data", json!(synthetic)),
            ("images", json!(dataset.frames.len())),
        ]),
        dataset: Arc::new(dataset),
        note,
        _folder: None,
    })
}
