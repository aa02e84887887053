//! `mqat verify`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, Reads, reading};
use super::terminal::JobProgress;
use crate::commands::{Limits, Rule, VerifyRequest, verify};
use crate::data::Split;

/// Arguments of `mqat verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The reference: a file of weights of any kind (checkpoint, packed, safetensors, PyTorch), or an ONNX file.
    #[arg(value_name = "A")]
    pub first: PathBuf,

    /// What is held against it, likewise.
    #[arg(value_name = "B")]
    pub second: PathBuf,

    /// Compare on so many images of the split, from the first on; 0 takes all.
    #[arg(long, default_value_t = 64, value_name = "N")]
    pub images: usize,

    /// The split.
    #[arg(long, default_value = "test", value_name = "train|valid|test")]
    pub split: Split,

    /// By what they are judged: the same numbers up to rounding, or whether B is as good as A on the same objects [default:
    /// as-good where a file computes with integers, else same-numbers].
    #[arg(long, value_enum)]
    pub rule: Option<Rule>,

    /// How far logits and offsets of a level may lie apart, as a fraction of their largest magnitude in A [default: 1e-4; none
    /// for --rule as-good].
    #[arg(long, value_name = "FRACTION", value_parser = limit)]
    pub tolerance: Option<f64>,

    /// Largest detection mismatch rate: fraction of the detections that only one of the two makes [default: 0.01; none for --rule
    /// as-good].
    #[arg(long, value_name = "FRACTION", value_parser = limit)]
    pub max_changed: Option<f64>,

    /// How far ADD-0.1d (published as ADI) may differ, percentage points [default: 1; none for --rule as-good].
    #[arg(long, value_name = "POINTS", value_parser = limit)]
    pub max_adi: Option<f64>,

    /// By how many diameters the mean ADD of B may be larger: fails when the whole 95 % interval of the difference lies
    /// above [default: 0.01 for --rule as-good, else none].
    #[arg(long, value_name = "DIAMETERS", value_parser = limit)]
    pub max_add: Option<f64>,

    /// Fails when B loses more objects of ADD-0.1d than it gains, and so uneven a change is less probable than this
    /// (McNemar's exact test) [default: 0.05 for --rule as-good, else none].
    #[arg(long, value_name = "P", value_parser = limit)]
    pub min_chance: Option<f64>,

    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub reads: Reads,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

fn limit(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if value >= 0.0 { Ok(value) } else { Err(format!("{text}: must be at least 0")) }
}

pub(super) fn run(args: VerifyArgs) -> Result<()> {
    let request = VerifyRequest {
        run: reading(args.select, args.reads),
        files: [args.first, args.second],
        split: args.split,
        images: (args.images > 0).then_some(args.images),
        rule: args.rule,
        limits: Limits {
            outputs: args.tolerance,
            changed: args.max_changed,
            adi_points: args.max_adi,
            add_diameters: args.max_add,
            chance: args.min_chance,
        },
    };
    let mut bar: Option<JobProgress> = None;
    let report = verify(&request, &mut |at| {
        let bar = bar
            .get_or_insert_with(|| JobProgress::start("verify", "images", at.num_images as u64, 0));
        bar.at(at.num_done as u64, "");
    })?;
    if let Some(bar) = bar {
        bar.finish();
    }
    if args.json {
        print_json(&report)?
    } else {
        print_text(&report.text())?
    }
    // The text has said all of it; a program that reads JSON may show stderr alone.
    let why = match args.json {
        true => report.failures.join("; "),
        false => format!("{} of the limits are exceeded (FAILED)", report.failures.len()),
    };
    ensure!(
        report.passed,
        "{} and {} differ: {why}",
        request.files[0].display(),
        request.files[1].display()
    );
    Ok(())
}
