//! `mqat dataset preview`: training images as the network gets them, with the boxes of their labels.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use image::imageops::replace;
use serde::Serialize;

use crate::data::{Batch, Dataset, Loader, LoaderOptions, Purpose, Split};
use crate::eval::{Outline, overlay};
use crate::geom::Camera;
use crate::io::{self, picture};
use crate::run::config::{Config, Names};
use crate::run::options::loader_options;
use crate::run::request::Request;

/// Most images of a preview.
const MOST_IMAGES: usize = 100;
/// Length of an axis, diameters.
const AXIS_DIAMETERS: f64 = 0.4;

/// What `mqat dataset preview` is asked.
#[derive(Debug, Clone)]
pub struct PreviewRequest {
    /// Config and dataset.
    pub run: Request,
    /// The file to write, a PNG.
    pub out: PathBuf,
    /// How many images.
    pub images: usize,
    /// Epoch whose order and augmentations are shown.
    pub epoch: u64,
}

/// What `mqat dataset preview` wrote.
#[derive(Debug, Serialize)]
pub struct PreviewReport {
    /// The picture.
    #[serde(serialize_with = "io::path_text")]
    pub out: PathBuf,
    /// Columns and rows of it.
    pub columns_rows: [usize; 2],
    /// Paths of the images in it, row by row.
    pub images: Vec<String>,
    /// Labelled objects in them.
    pub num_objects: usize,
    /// Whether they are augmented: `data.augment`.
    pub augmented: bool,
}

/// Writes a mosaic of the first training images of an epoch, augmented as in training, with the projected boxes and axes of the poses
/// that are learnt.
///
/// # Errors
/// If the config or the dataset cannot be read, the number of images is out of range, or the file cannot be written.
pub fn preview(request: &PreviewRequest) -> Result<PreviewReport> {
    ensure!(
        (1..=MOST_IMAGES).contains(&request.images),
        "--images: {} is outside 1..={MOST_IMAGES}",
        request.images
    );
    let is_png = request.out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("png"));
    ensure!(is_png, "--out {}: expected a name that ends in .png", request.out.display());
    let home = request.run.home()?;
    request.run.select.ensure_names_act(Names::Dataset)?;
    let config = request.run.select.resolve(&home)?;
    let dataset = request.run.open_split(&home, &config, Split::Train, Purpose::Training)?;
    let dataset = Arc::new(dataset);
    let num = request.images.min(dataset.frames.len());
    if num < request.images {
        tracing::warn!("there are {num} training images: all of them are shown");
    }
    let batch = first_images(request, &config, &dataset, num)?;
    let camera = config.input.camera()?;
    let panels: Vec<RgbImage> = (0..batch.names.len())
        .map(|i| panel(&batch, i, &dataset, &camera))
        .collect::<Result<_>>()?;
    let (mosaic, columns_rows) = mosaic(&panels);
    picture::write_png(&request.out, &mosaic)?;
    Ok(PreviewReport {
        out: request.out.clone(),
        columns_rows,
        num_objects: batch.objects.iter().map(Vec::len).sum(),
        images: batch.names,
        augmented: config.data.augment,
    })
}

/// The first `num` images of the epoch, as a batch.
fn first_images(
    request: &PreviewRequest,
    config: &Config,
    dataset: &Arc<Dataset>,
    num: usize,
) -> Result<Batch> {
    let options = LoaderOptions {
        epoch: request.epoch,
        workers: 0,
        skip_bad: request.run.skip_bad,
        ..loader_options(config, num)
    };
    let mut loader = Loader::start(dataset.clone(), &config.input, &config.data, options)?;
    loader.next().context("no training image")?
}

/// An image of a batch with its labels.
fn panel(batch: &Batch, index: usize, dataset: &Dataset, camera: &Camera) -> Result<RgbImage> {
    let num_bytes = batch.width * batch.height * 3;
    let pixels = batch.pixels[index * num_bytes..(index + 1) * num_bytes].to_vec();
    let image = RgbImage::from_raw(batch.width as u32, batch.height as u32, pixels);
    let image = image.context("the batch has another size")?;
    let outlines: Vec<Outline> = (batch.objects[index].iter())
        .map(|object| {
            let model = &dataset.models[object.class];
            let axis_mm = AXIS_DIAMETERS * model.diameter_mm;
            // What a network learns of a symmetric object.
            Outline { pose: model.symmetries.label(&object.pose), corners: &model.corners, axis_mm }
        })
        .collect();
    Ok(overlay::labelled(&image, camera, &outlines))
}

/// Panels of one size in as many columns as rows, or one more.
fn mosaic(panels: &[RgbImage]) -> (RgbImage, [usize; 2]) {
    let columns = (panels.len() as f64).sqrt().ceil() as usize;
    let rows = panels.len().div_ceil(columns.max(1));
    let (width, height) = panels.first().map_or((0, 0), |panel| (panel.width(), panel.height()));
    let mut picture = RgbImage::new(columns as u32 * width, rows as u32 * height);
    for (i, panel) in panels.iter().enumerate() {
        let (x, y) = ((i % columns) as i64, (i / columns) as i64);
        replace(&mut picture, panel, x * i64::from(width), y * i64::from(height));
    }
    (picture, [columns, rows])
}

impl PreviewReport {
    /// The report for a terminal.
    pub fn text(&self) -> String {
        let [columns, rows] = self.columns_rows;
        let mut text = format!(
            "{}: {columns} x {rows} training images{}, {} objects\n",
            self.out.display(),
            if self.augmented { ", augmented" } else { " (data.augment is false)" },
            self.num_objects
        );
        for images in self.images.chunks(columns.max(1)) {
            text.push_str(&format!("  {}\n", images.join("  ")));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panels_stand_in_rows() {
        let panels: Vec<RgbImage> =
            (0..5).map(|i| RgbImage::from_pixel(4, 2, image::Rgb([i * 10 + 1; 3]))).collect();
        let (picture, size) = mosaic(&panels);
        assert_eq!((size, picture.width(), picture.height()), ([3, 2], 12, 4));
        let at = |x, y| picture.get_pixel(x, y).0[0];
        assert_eq!((at(0, 0), at(11, 1), at(0, 2), at(5, 3), at(8, 2)), (1, 21, 31, 41, 0));
    }
}
