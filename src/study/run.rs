//! Trials as processes of their own: started, watched, stopped together.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::cut::{Cut, ListedTrial};
use super::request::SearchRequest;
use super::rows::percent;
use super::setup::Setup;
use super::trial::{State, Trial};

/// Between two looks at the running trials.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at trials that other processes run.
const LOOK_ELSEWHERE_EVERY: Duration = Duration::from_secs(2);
/// Looks at a trial whose process failed, for another one that has it.
const LOOKS_FOR_OTHERS: usize = 20;
/// Lines of a failed trial's log that its error shows.
const LOG_LINES: usize = 5;

pub(super) struct Runner<'a> {
    pub request: &'a SearchRequest,
    pub setup: &'a Setup,
    pub stop: &'a AtomicBool,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum RunEnd {
    Complete,
    Interrupted,
}

struct Running {
    trial: Rc<Trial>,
    child: Child,
    since: Instant,
}

impl Runner<'_> {
    /// Runs the trials, and those they start from, as far as they are not complete.
    pub fn run(&self, trials: &[Rc<Trial>]) -> Result<RunEnd> {
        let mut waiting = self.unfinished(trials)?;
        let total = waiting.len();
        let mut running: Vec<Running> = Vec::new();
        let mut looked_elsewhere: Option<Instant> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                stop_all(running);
                return Ok(RunEnd::Interrupted);
            }
            let ended = match take_ended(&mut running) {
                Ok(ended) => ended,
                Err(err) => {
                    stop_all(running);
                    return Err(err);
                }
            };
            if let Some((ended, status)) = ended {
                match self.check(&ended, status) {
                    Ok(true) => waiting.retain(|t| t.id != ended.trial.id),
                    Ok(false) => {}
                    Err(err) => {
                        stop_all(running);
                        return Err(err);
                    }
                }
                continue;
            }
            if waiting.is_empty() {
                return Ok(RunEnd::Complete);
            }
            let mut elsewhere = Vec::new();
            let look_now = looked_elsewhere.is_none_or(|at| at.elapsed() > LOOK_ELSEWHERE_EVERY);
            for trial in waiting.clone() {
                if running.len() >= self.request.jobs {
                    break;
                }
                let runs = running.iter().any(|r| r.trial.id == trial.id);
                let is_waiting = |id: &str| waiting.iter().any(|w| w.id == id);
                if runs || trial.parent.as_ref().is_some_and(|p| is_waiting(&p.id)) {
                    continue;
                }
                if !look_now && running.is_empty() {
                    continue;
                }
                match trial.state()? {
                    State::Complete => {
                        tracing::info!("trial {} was completed by another process", trial.name);
                        waiting.retain(|t| t.id != trial.id);
                    }
                    State::Running => elsewhere.push(trial.name.clone()),
                    State::Waiting | State::Begun => {
                        let number = total - waiting.len() + running.len() + 1;
                        tracing::info!("trial {} ({number} of {total})", trial.name);
                        running.push(self.start(trial)?);
                    }
                }
            }
            if !elsewhere.is_empty() && running.is_empty() && look_now {
                if looked_elsewhere.is_none() {
                    tracing::info!(
                        "waiting for {}, which run in other processes",
                        elsewhere.join(", ")
                    );
                }
                looked_elsewhere = Some(Instant::now());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// What is to be run, with where it stands.
    pub fn list(&self, trials: &[Rc<Trial>]) -> Result<Vec<ListedTrial>> {
        let unfinished = self.unfinished(trials)?;
        let one = |trial: &Rc<Trial>| -> Result<ListedTrial> {
            let is_waiting = |p: &&Rc<Trial>| unfinished.iter().any(|u| u.id == p.id);
            Ok(ListedTrial {
                name: trial.name.clone(),
                folder: trial.dir.clone(),
                state: trial.state()?.name(),
                after: trial.parent.iter().filter(is_waiting).map(|p| p.name.clone()).collect(),
            })
        };
        unfinished.iter().map(one).collect()
    }

    /// Those that are not complete, each once, after those they start from.
    fn unfinished(&self, trials: &[Rc<Trial>]) -> Result<Vec<Rc<Trial>>> {
        let mut all: Vec<Rc<Trial>> = Vec::new();
        for trial in trials {
            let mut line = Vec::new();
            let mut at = Some(trial.clone());
            while let Some(t) = at {
                if all.iter().any(|known| known.id == t.id) || t.state()? == State::Complete {
                    break;
                }
                at = t.parent.clone();
                line.push(t);
            }
            all.extend(line.into_iter().rev());
        }
        Ok(all)
    }

    fn start(&self, trial: Rc<Trial>) -> Result<Running> {
        trial.prepare().with_context(|| format!("preparing trial {}", trial.name))?;
        let log = trial.log();
        let file = fs::OpenOptions::new().create(true).append(true).open(&log);
        let file = file.with_context(|| format!("opening {}", log.display()))?;
        let mut command = self.command(&trial);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        // A terminal's Ctrl-C reaches this process, which hands it on once: a second signal ends a run without a checkpoint.
        command.process_group(0);
        end_with_this_process(&mut command);
        let child = command.spawn().with_context(|| format!("starting trial {}", trial.name))?;
        Ok(Running { trial, child, since: Instant::now() })
    }

    /// `mqat train`, for a new trial or one that was cut off.
    fn command(&self, trial: &Trial) -> Command {
        let run = &self.request.run;
        let mut command = Command::new(&self.request.program);
        command.arg("train");
        command.args(["--problem", run.select.problem(), "--topology", run.select.topology()]);
        command.arg("--logs").arg(&trial.dir).arg("--data").arg(&self.setup.data);
        command.args(["--exp-id", "0", "--device", &run.device.to_string()]);
        if run.skip_bad {
            command.arg("--skip-bad");
        }
        if trial.exp.path.is_dir() {
            command.arg("--resume");
        } else {
            command.arg("--config").arg(trial.config_file());
        }
        command.env("MQAT_HOME", &self.setup.home.root);
        command
    }

    /// Whether a trial is under way or complete by another process, which began it at the same moment.
    fn is_taken(&self, trial: &Trial) -> Result<bool> {
        for _ in 0..LOOKS_FOR_OTHERS {
            if matches!(trial.state()?, State::Running | State::Complete) {
                return Ok(true);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(false)
    }

    /// What a process that ended has left: whether the trial is complete, or else run by another process.
    fn check(&self, ended: &Running, status: ExitStatus) -> Result<bool> {
        let trial = &ended.trial;
        let log = trial.log();
        if !status.success() && self.is_taken(trial)? {
            tracing::info!("trial {} is run by another process", trial.name);
            return Ok(false);
        }
        if !status.success() {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n  ");
            bail!(
                "trial {} failed ({status}); complete trials stay, and the same command goes on after the cause is \
                 removed; the end of {}:\n  {tail}",
                trial.name,
                log.display()
            );
        }
        let result = trial.result()?;
        tracing::info!(
            "trial {}: {} {}, {:.0} s",
            trial.name,
            result.metric,
            percent(&result.score),
            ended.since.elapsed().as_secs_f64()
        );
        Ok(true)
    }
}

impl Runner<'_> {
    /// Runs trials to their ends, or only what the request names; `Err` when the search is to end here.
    pub fn phase(&self, trials: &[std::rc::Rc<Trial>]) -> Result<std::result::Result<(), Cut>> {
        if self.request.list {
            let listed = self.list(trials)?;
            return Ok(if listed.is_empty() { Ok(()) } else { Err(Cut::Listed(listed)) });
        }
        let Some(name) = &self.request.only else {
            return Ok(match self.run(trials)? {
                RunEnd::Complete => Ok(()),
                RunEnd::Interrupted => Err(Cut::Interrupted),
            });
        };
        let Some(trial) = trials.iter().find(|t| t.name == *name) else {
            let unfinished = self.list(trials)?;
            let names: Vec<&str> = trials.iter().map(|t| t.name.as_str()).collect();
            ensure!(
                unfinished.is_empty(),
                "no trial {name:?} can be run now; there are {}",
                names.join(", ")
            );
            return Ok(Ok(())); // it may be one of a later phase
        };
        Ok(match self.run(std::slice::from_ref(trial))? {
            RunEnd::Complete => Err(Cut::Ran(trial.result()?)),
            RunEnd::Interrupted => Err(Cut::Interrupted),
        })
    }
}

/// The first process that has ended.
fn take_ended(running: &mut Vec<Running>) -> Result<Option<(Running, ExitStatus)>> {
    for i in 0..running.len() {
        let status = running[i].child.try_wait();
        let status =
            status.with_context(|| format!("waiting for trial {}", running[i].trial.name))?;
        if let Some(status) = status {
            return Ok(Some((running.remove(i), status)));
        }
    }
    Ok(None)
}

/// Asks all to stop with a checkpoint, and waits until they have.
fn stop_all(mut running: Vec<Running>) {
    for r in &running {
        // SAFETY: kill has no memory effects; the child was not waited for, so its number is still its own.
        unsafe { libc::kill(r.child.id().cast_signed(), libc::SIGTERM) };
    }
    for r in &mut running {
        if let Err(err) = r.child.wait() {
            tracing::warn!("waiting for trial {}: {err}", r.trial.name);
        }
    }
}

/// Has the child asked to stop when this process ends, however it does: a search that was killed leaves no trials behind
/// that nobody watches.
#[cfg(target_os = "linux")]
pub(super) fn end_with_this_process(command: &mut Command) {
    // SAFETY: prctl and getppid are safe to call between fork and exec.
    unsafe {
        let parent = std::process::id();
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            // It may have ended before the call.
            if libc::getppid().cast_unsigned() == parent {
                Ok(())
            } else {
                Err(std::io::Error::other("the search has ended"))
            }
        });
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn end_with_this_process(_command: &mut Command) {}
