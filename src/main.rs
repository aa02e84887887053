//! `mqat-core`: parses the command line, runs the command, picks the exit code. Users call `mqat` (`bin/mqat.rs`).

use std::process::ExitCode;

use clap::Parser;
use mqat::cli::{self, Cli};

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
