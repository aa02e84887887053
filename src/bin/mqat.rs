//! The program that users call: answers what needs no libtorch, and becomes `mqat-core` for everything else.
//!
//! libtorch is 450 MB whose initialisers run before `main` and take longer than any help. Nothing that is reachable
//! from here names it, so that the linker leaves it out of this program (`build.rs` says how).

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use mqat::cli;

/// The program with libtorch in it, in the same folder.
const CORE: &str = "mqat-core";

fn main() -> ExitCode {
    cli::answer_without_libtorch(env::args_os()).unwrap_or_else(become_core)
}

/// Puts [`CORE`] in the place of this process; returns only when that fails.
fn become_core() -> ExitCode {
    let own = match env::current_exe() {
        Ok(own) => own,
        Err(error) => {
            eprintln!("mqat: finding the program's own folder: {error}");
            return ExitCode::FAILURE;
        }
    };
    let core = own.with_file_name(CORE);
    let mut args = env::args_os();
    let name = args.next().unwrap_or_else(|| "mqat".into());
    let error = Command::new(&core).arg0(name).args(args).exec();
    eprintln!(
        "mqat: starting {}: {error}; mqat needs {CORE} of the same build in the same folder",
        core.display()
    );
    ExitCode::FAILURE
}
