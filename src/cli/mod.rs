//! The command line: arguments, logs, progress bars, what is printed.
//!
//! Start at [`Cli`]; [`run`] hands a parsed command to its file. Results go to stdout, everything else to stderr.

mod again;
mod args;
mod audit;
mod bench;
mod completions;
mod config;
mod dataset;
mod export;
mod failure;
mod import;
mod init;
mod inspect;
mod launch;
mod memory;
mod onnx;
mod pace;
mod plan;
mod predict;
mod print;
mod recalibrate;
mod report;
mod score;
mod search;
mod shared;
mod stop;
mod synth;
mod terminal;
mod test;
mod train;
mod verify;
mod view;
mod world;

pub use crate::run::LIBTORCH_VERSION;
pub use args::Cli;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use args::Command;
use clap::Parser;
use stop::CommandEnd;

/// Runs a parsed command line; errors are printed once, here.
pub fn run(cli: Cli) -> ExitCode {
    memory::keep();
    terminal::start_log(cli.verbose, cli.quiet);
    exit_code(failure::guarded(|| dispatch(cli.command)))
}

fn exit_code(ended: Result<CommandEnd>) -> ExitCode {
    match ended {
        Ok(CommandEnd::Done) => ExitCode::SUCCESS,
        Ok(CommandEnd::Interrupted) => ExitCode::from(130),
        Err(err) => {
            eprintln!("mqat: {}", failure::one_line(&err));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> Result<CommandEnd> {
    if let Some(name) = command.of_one_process() {
        world::ensure_alone(name)?;
    }
    match command {
        Command::Train(args) => train::run(args),
        Command::Launch(args) => launch::run(&args),
        Command::Test(args) => test::run(args).map(|()| CommandEnd::Done),
        Command::Predict(args) => predict::run(*args),
        Command::Search(args) => search::run(*args),
        Command::Report(args) => report::run(args).map(|()| CommandEnd::Done),
        Command::Score(args) => score::run(args).map(|()| CommandEnd::Done),
        Command::Synth(args) => synth::run(&args).map(|()| CommandEnd::Done),
        Command::Init(args) => init::run(args).map(|()| CommandEnd::Done),
        Command::Dataset(args) => dataset::run(args).map(|()| CommandEnd::Done),
        Command::Inspect(args) => inspect::run(args).map(|()| CommandEnd::Done),
        Command::Import(args) => import::run(args).map(|()| CommandEnd::Done),
        Command::Audit(args) => audit::run(args).map(|()| CommandEnd::Done),
        Command::Recalibrate(args) => recalibrate::run(args).map(|()| CommandEnd::Done),
        Command::Plan(args) => plan::run(args).map(|()| CommandEnd::Done),
        Command::Bench(args) => bench::run(args).map(|()| CommandEnd::Done),
        Command::Verify(args) => verify::run(args).map(|()| CommandEnd::Done),
        Command::Export(args) => export::run(args).map(|()| CommandEnd::Done),
        Command::Config(args) => config::run(args).map(|()| CommandEnd::Done),
        Command::Completions { shell } => completions::run(shell).map(|()| CommandEnd::Done),
    }
}

/// Answers help, version, wrong usage, completions and the schema, which need no libtorch: `None` when the command
/// line asks for work.
///
/// For the launcher, which has no libtorch: nothing that is reachable from here may use it (`tests/cli/help.rs` looks).
pub fn answer_without_libtorch(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let args: Vec<OsString> = args.into_iter().collect();
    let text = |arg: &OsString| arg.to_string_lossy().into_owned();
    let is_odd = args.iter().map(text).any(|arg| terminal::visible(&arg) != arg);
    let answered = match Cli::try_parse_from(args) {
        // The message repeats arguments.
        Err(answer) if is_odd => {
            eprint!("{}", terminal::visible(&answer.render().to_string()));
            return Some(ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(1)));
        }
        Err(answer) => {
            // A closed stdout (`mqat --help | head -1`) is no failure.
            drop(answer.print());
            return Some(ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(1)));
        }
        Ok(Cli { command: Command::Completions { shell }, .. }) => completions::run(shell),
        Ok(Cli { command: Command::Config(args), .. }) if args.schema => {
            config::print_schema(&args)
        }
        Ok(Cli { command: Command::Launch(args), .. }) => {
            return Some(exit_code(launch::run(&args)));
        }
        Ok(_) => return None,
    };
    Some(exit_code(answered.map(|()| CommandEnd::Done)))
}
