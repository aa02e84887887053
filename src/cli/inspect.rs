//! `mqat inspect`.

use anyhow::Result;

use super::args::InspectArgs;
use super::{print_json, print_text, select};
use crate::commands::{inspect_file, inspect_network};

pub(super) fn run(args: InspectArgs) -> Result<()> {
    match &args.file {
        Some(file) => {
            let found = inspect_file(file)?;
            if args.json { print_json(&found) } else { print_text(&found.text(args.layers)) }
        }
        None => {
            let found = inspect_network(&select(args.select))?;
            if args.json { print_json(&found) } else { print_text(&found.text(args.layers)) }
        }
    }
}
