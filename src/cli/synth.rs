//! `mqat synth`.

use std::path::PathBuf;
use std::sync::Mutex;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::print::{print_json, print_text};
use super::shared::refuse;
use super::terminal::JobProgress;
use crate::synth::{
    self, Attitude, Format, Layout, SynthOptions, parse_depth_range, parse_instances,
};

/// Arguments of `mqat synth`.
#[derive(Debug, Clone, Args)]
pub struct SynthArgs {
    /// The dataset's folder; must be empty or not there.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Number of training images; with --layout bop in train_pbr, else named by training.txt.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub train: usize,

    /// Number of validation images; in val or validation.txt.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub val: usize,

    /// Number of test images; in test or testing.txt.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub test: usize,

    /// Side of the square images, px; the camera is SwissCube's, scaled.
    #[arg(long, default_value_t = 1024, value_name = "PX")]
    pub size: u32,

    /// Range of depths in diameters of the object (the satellite's is 178.46 mm; with --layout bop each object's own), as
    /// NEAR:FAR.
    #[arg(long, default_value = "1d:10d", value_name = "NEAR:FAR", value_parser = parse_depth_range)]
    pub depth: (f64, f64),

    /// Attitudes: `full`, or within so many degrees of one nominal attitude; with --layout bop as seen along the ray to the
    /// object.
    #[arg(long, default_value = "full", value_name = "full|DEG")]
    pub attitude: Attitude,

    /// Seed of everything random.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,

    /// Worker threads; the result does not depend on it [default: all cores].
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,

    /// Image format: jpeg (quality 95), jpeg:QUALITY or png.
    #[arg(long, default_value = "jpeg", value_name = "FORMAT")]
    pub format: Format,

    /// Write 16-bit depth images as well (BOP: depth/), in units of 0.1 mm, or of 1 mm where a surface may be 6.5 m away or
    /// more: depth_scale in scene_camera.json. Beyond 65.5 m there are none.
    #[arg(long = "depth-png")]
    pub depth_images: bool,

    /// swisscube: the satellite, with lists of images. bop: several objects in numbered scenes, a BOP folder with masks,
    /// visible fractions and test_targets_bop19.json.
    #[arg(long, default_value = "swisscube", value_name = "LAYOUT")]
    pub layout: Layout,

    /// With --layout bop: the first so many of the built-in objects, of which the third and the fourth are symmetric
    /// [default: 3].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=5), conflicts_with = "meshes")]
    pub objects: Option<u8>,

    /// With --layout bop: objects of your own, obj_000001.ply ... with vertex colours (mm), symmetries of a models_info.json
    /// beside them.
    #[arg(long, value_name = "DIR")]
    pub meshes: Option<PathBuf>,

    /// With --layout bop: fewest and most objects in an image, of any kind [default: 1:3].
    #[arg(long, value_name = "A:B", value_parser = parse_instances)]
    pub instances: Option<(usize, usize)>,

    /// With --layout bop: so many boxes and cylinders of random sizes and colours in each image, which are not annotated
    /// [default: 0].
    #[arg(long, value_name = "N")]
    pub clutter: Option<usize>,

    /// With --layout bop: at most this fraction of an object is hidden by others or outside of the image [default: 0.7].
    #[arg(long, value_name = "F")]
    pub occlusion: Option<f64>,

    /// With --layout bop: at most this fraction of an object is outside of the image [default: 0.7].
    #[arg(long, value_name = "F")]
    pub truncation: Option<f64>,

    /// Replace an existing synthetic dataset.
    #[arg(long)]
    pub overwrite: bool,

    /// Do nothing when a finished dataset with these very settings is there, and make one anew whose rendering was cut
    /// off.
    #[arg(long)]
    pub keep: bool,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: &SynthArgs) -> Result<()> {
    let is_bop = args.layout == Layout::Bop;
    if !is_bop {
        let options = [
            ("--objects", args.objects.is_some()),
            ("--meshes", args.meshes.is_some()),
            ("--instances", args.instances.is_some()),
            ("--clutter", args.clutter.is_some()),
            ("--occlusion", args.occlusion.is_some()),
            ("--truncation", args.truncation.is_some()),
        ];
        refuse(&options, "--layout swisscube shows the satellite alone")?;
    }
    let bare = SynthOptions::default();
    let objects = args.objects.map_or(3, usize::from);
    let mut options = SynthOptions {
        layout: args.layout,
        objects: if is_bop && args.meshes.is_none() { objects } else { 0 },
        meshes: args.meshes.clone(),
        instances: if is_bop { args.instances.unwrap_or((1, 3)) } else { (0, 0) },
        clutter: args.clutter.unwrap_or(bare.clutter),
        occlusion: args.occlusion.unwrap_or(bare.occlusion),
        truncation: args.truncation.unwrap_or(bare.truncation),
        out: args.out.clone(),
        num_train: args.train,
        num_val: args.val,
        num_test: args.test,
        size_px: args.size,
        depth_d: args.depth,
        attitude: args.attitude,
        seed: args.seed,
        jobs: args.jobs.map_or(0, usize::from),
        format: args.format,
        depth_png: args.depth_images,
        overwrite: args.overwrite,
    };
    let same = |there: SynthOptions| there.same_data(&options);
    if args.keep && synth::finished(&args.out)?.is_some_and(same) {
        tracing::info!(folder = %args.out.display(), "the dataset already exists with these settings, nothing to do");
        return if args.json { print_json(&json!({ "kept": args.out })) } else { Ok(()) };
    }
    // With --keep a rendering that was cut off is begun anew; a finished dataset with other settings is left alone.
    options.overwrite |= args.keep && synth::unfinished(&args.out);
    let total = options.num_images() as u64;
    let progress = Mutex::new(JobProgress::start("rendering", "images", total, 0));
    let report = synth::generate(&options, &|done, _| {
        // A poisoned lock means another thread panicked, which ends the run anyway.
        if let Ok(mut progress) = progress.lock() {
            progress.at(done as u64, "");
        }
    })?;
    if let Ok(progress) = progress.into_inner() {
        progress.finish();
    }
    if args.json {
        return print_json(
            &json!({ "out": args.out, "synthetic": true, "options": options, "report": report }),
        );
    }
    print_text(&format!(
        "{} synthetic images in {}: {:.0} s, {:.2} images/s and core, {:.1} MB",
        report.images,
        args.out.display(),
        report.seconds,
        report.images_per_second_per_core,
        report.bytes as f64 / 1e6
    ))
}
