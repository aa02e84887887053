//! The program that users call: answers what needs no libtorch, and becomes `mqat-core` for everything else.
//!
//! libtorch is 450 MB whose initialisers run before `main` and take longer than any help. Nothing that is reachable
//! from here names it, so that the linker leaves it out of this program (`build.rs` says how).

use std::env;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use mqat::cli;

/// The program with libtorch in it, in the same folder.
const CORE: &str = "mqat-core";

fn main() -> ExitCode {
    cli::answer_without_libtorch(env::args_os()).unwrap_or_else(become_core)
}

/// The library of libtorch without which [`CORE`] does not start.
const TORCH: &str = "libtorch_cpu.so";
/// Where the libtorch was that the program was built with.
const TORCH_LIB: &str = env!("MQAT_TORCH_LIB");

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
    if lacks_torch(&core) {
        eprintln!(
            "mqat: {TORCH} of libtorch was not found, neither in {} nor in {TORCH_LIB}: run ./setup.sh in the source folder \
             of mqat; or set LD_LIBRARY_PATH to the lib folder of a libtorch {}; to carry mqat to another machine, make a \
             folder with all that it needs by ./setup.sh --bundle DIR",
            own.with_file_name("lib").display(),
            cli::LIBTORCH_VERSION
        );
        return ExitCode::FAILURE;
    }
    let mut args = env::args_os();
    let name = args.next().unwrap_or_else(|| "mqat".into());
    let error = Command::new(&core).arg0(name).args(args).exec();
    eprintln!(
        "mqat: starting {}: {error}; mqat needs {CORE} of the same build in the same folder",
        core.display()
    );
    ExitCode::FAILURE
}

/// Whether the loader would not find libtorch. It is asked only where the usual places have none: LD_LIBRARY_PATH and the
/// system's folders are its business.
fn lacks_torch(core: &Path) -> bool {
    let usual = [core.with_file_name("lib"), TORCH_LIB.into()];
    if usual.iter().any(|folder| folder.join(TORCH).exists()) {
        return false;
    }
    let listed = Command::new(core).env("LD_TRACE_LOADED_OBJECTS", "1").output();
    let missing = format!("{TORCH} => not found");
    listed.is_ok_and(|list| String::from_utf8_lossy(&list.stdout).contains(&missing))
}
