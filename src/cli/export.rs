//! `mqat export`.

use anyhow::Result;

use super::args::ExportArgs;
use super::{print_json, print_text, select};
use crate::experiment::export_weights;

pub(super) fn run(args: ExportArgs) -> Result<()> {
    let report = export_weights(&args.checkpoint, &select(args.select), &args.out)?;
    if args.json {
        return print_json(&report);
    }
    print_text(&format!(
        "{}: {} tensors, {:.2} MB",
        report.path.display(),
        report.num_tensors,
        report.bytes as f64 / 1e6
    ))
}
