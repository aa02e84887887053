//! `mqat launch`: starts the processes that work together on this machine, and sees that none is left. It needs no libtorch.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::search::own_program;
use super::stop::{CommandEnd, is_ignored};
use super::world::ensure_alone;

/// Arguments of `mqat launch`.
#[derive(Debug, Clone, Args)]
pub struct LaunchArgs {
    /// How many processes; with GPUs as many as there are.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub procs: u16,

    /// The command of each, after `--`, without `mqat`: train or test with their options.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// How long the others have after the end of the first process that failed: to say what they see, and to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(8);
/// How often is looked whether a process has ended.
const EVERY: Duration = Duration::from_millis(20);
/// Exit code of a command that was stopped by a signal and has saved.
const INTERRUPTED: i32 = 130;

/// A process that was started.
struct Rank {
    child: Child,
    ended: Option<ExitStatus>,
}

/// The processes; whatever happens, none is left when this is dropped.
struct Ranks(Vec<Rank>);

pub(super) fn run(args: &LaunchArgs) -> Result<CommandEnd> {
    ensure_alone("launch")?;
    let mut handled = vec![SIGINT, SIGTERM, SIGUSR1];
    if !is_ignored(SIGHUP) {
        handled.push(SIGHUP);
    }
    let mut signals = Signals::new(handled).context("installing the signal handlers")?;
    let mut ranks = Ranks::start(args)?;
    let mut failed: Option<(usize, ExitStatus, Instant)> = None;
    while !ranks.have_ended()? {
        for signal in signals.pending() {
            ranks.send(signal);
        }
        let first = ranks.0.iter().position(|r| r.ended.is_some_and(|ended| !ended.success()));
        if let Some(rank) = first {
            let status = ranks.0[rank].ended.unwrap_or_default();
            let (_, _, since) = failed.get_or_insert((rank, status, Instant::now()));
            if since.elapsed() > 2 * GRACE {
                ranks.send(libc::SIGKILL);
            } else if since.elapsed() > GRACE {
                ranks.send(libc::SIGTERM);
            }
        }
        std::thread::sleep(EVERY);
    }
    let failed = failed.map(|(rank, status, _)| (rank, status)).or_else(|| ranks.first_failure());
    match failed {
        None => Ok(CommandEnd::Done),
        Some((_, status)) if status.code() == Some(INTERRUPTED) => Ok(CommandEnd::Interrupted),
        Some((rank, status)) => match status.signal() {
            Some(signal) => bail!("process {rank} was ended by signal {signal}"),
            None => bail!("process {rank} ended with exit code {}", status.code().unwrap_or(1)),
        },
    }
}

impl Ranks {
    fn start(args: &LaunchArgs) -> Result<Self> {
        let program = own_program()?;
        let launcher = std::process::id();
        let port = free_port()?;
        let mut ranks = Self(Vec::new());
        for rank in 0..args.procs {
            let mut command = Command::new(&program);
            command.args(&args.command);
            for (name, value) in [
                ("RANK", rank.to_string()),
                ("LOCAL_RANK", rank.to_string()),
                ("WORLD_SIZE", args.procs.to_string()),
                ("LOCAL_WORLD_SIZE", args.procs.to_string()),
                ("MASTER_ADDR", "127.0.0.1".to_owned()),
                ("MASTER_PORT", port.to_string()),
            ] {
                command.env(name, value);
            }
            for name in ["TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"] {
                command.env_remove(name);
            }
            // Ctrl-C goes to this process alone, which hands it on once: a second one would end them without a checkpoint.
            command.process_group(0);
            // SAFETY: both calls are async-signal-safe, and nothing else runs between fork and exec.
            unsafe {
                command.pre_exec(move || {
                    // If the launcher is killed none of them is left; it may have been killed before this.
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    let is_orphan = u32::try_from(libc::getppid()) != Ok(launcher);
                    if is_orphan { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
                });
            }
            let child = command.spawn();
            let child = child.with_context(|| format!("starting {}", program.display()))?;
            ranks.0.push(Rank { child, ended: None });
        }
        Ok(ranks)
    }

    fn have_ended(&mut self) -> Result<bool> {
        for rank in self.0.iter_mut().filter(|rank| rank.ended.is_none()) {
            rank.ended = rank.child.try_wait().context("waiting for a process")?;
        }
        Ok(self.0.iter().all(|rank| rank.ended.is_some()))
    }

    fn first_failure(&self) -> Option<(usize, ExitStatus)> {
        let mut ended = self.0.iter().enumerate().filter_map(|(i, rank)| Some((i, rank.ended?)));
        ended.find(|(_, status)| !status.success())
    }

    /// To those that have not ended.
    fn send(&self, signal: i32) {
        for rank in self.0.iter().filter(|rank| rank.ended.is_none()) {
            if let Ok(pid) = i32::try_from(rank.child.id()) {
                // SAFETY: the child was not waited for, so that the number is still its own.
                unsafe { libc::kill(pid, signal) };
            }
        }
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for rank in self.0.iter_mut().filter(|rank| rank.ended.is_none()) {
            drop(rank.child.kill());
            drop(rank.child.wait());
        }
    }
}

/// A port that nobody listens at.
fn free_port() -> Result<u16> {
    let looked = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    Ok(looked.context("looking for a free port")?.port())
}
