//! `mqat synth`.

use std::sync::Mutex;

use anyhow::Result;
use serde_json::json;

use super::args::SynthArgs;
use super::terminal::Progress;
use super::{print_json, print_text};
use crate::synth::{self, SynthOptions};

pub(super) fn run(args: &SynthArgs) -> Result<()> {
    let mut options = SynthOptions {
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
        tracing::info!(folder = %args.out.display(), "the dataset is there with these settings, nothing to do");
        return if args.json { print_json(&json!({ "kept": args.out })) } else { Ok(()) };
    }
    // With --keep a rendering that was cut off is begun anew; a finished dataset with other settings is left alone.
    options.overwrite |= args.keep && synth::unfinished(&args.out);
    let total = options.num_images() as u64;
    let progress = Mutex::new(Progress::start("rendering", "images", total, 0));
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
