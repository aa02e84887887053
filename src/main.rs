//! Parses the command line, runs the command, picks the exit code.

use std::process::ExitCode;

use clap::Parser;
use mqat::cli::{self, Cli};

/// What has to happen before libtorch is initialised.
///
/// The linker puts a pointer where the loader calls it after relocating the libraries and before starting them up. There
/// help and usage errors are answered, which saves the half second that registering a few thousand operators takes,
/// and OpenMP is told how to wait.
#[cfg(all(target_os = "linux", target_env = "gnu", not(test)))]
mod early {
    use std::ffi::{CStr, c_char, c_int};

    #[used]
    #[unsafe(link_section = ".preinit_array")]
    static ANSWER: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = answer;

    extern "C" fn answer(argc: c_int, argv: *const *const c_char, _envp: *const *const c_char) {
        let argc = usize::try_from(argc).unwrap_or(0);
        // SAFETY: the loader hands over the process's own argument vector: argc valid, terminated strings.
        let args = (0..argc).map(|i| unsafe { CStr::from_ptr(*argv.add(i)) });
        // Arguments that are no UTF-8 take the ordinary way.
        let Some(args) = args.map(|a| a.to_str().ok().map(str::to_owned)).collect() else { return };
        if let Some(code) = mqat::cli::answer_without_libtorch(args) {
            std::process::exit(code);
        }
        sleep_while_waiting();
    }

    /// Lets the threads of libtorch's OpenMP sleep when they wait, unless the user says otherwise: by default they spin,
    /// which beside the loader's threads, or any busy process, makes small operators many times slower. OpenMP
    /// reads the variable when it is initialised, right after this.
    fn sleep_while_waiting() {
        const POLICY: &str = "OMP_WAIT_POLICY";
        if std::env::var_os(POLICY).is_none() {
            // SAFETY: the loader has not started any thread yet.
            unsafe { std::env::set_var(POLICY, "PASSIVE") };
        }
    }
}

fn main() -> ExitCode {
    cli::run(Cli::parse())
}
