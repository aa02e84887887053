//! `mqat completions`.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use super::print::print_text;

pub(super) fn run(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "mqat", &mut script);
    print_text(&String::from_utf8_lossy(&script))
}
