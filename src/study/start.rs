//! The full-precision network as it is, on the validation split: what the paper's rule compares with.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::request::SearchRequest;
use super::run::end_with_this_process;
use super::setup::Setup;
use crate::data::sequence_of;
use crate::io;
use crate::pose::{Outcomes, TargetErrors};
use crate::seed::fnv1a;
use crate::train::StageConfig;

/// Between two looks at the running evaluation.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What `mqat test` writes of the network's objects.
const ERRORS_FILE: &str = "errors_0.jsonl";

/// Right and wrong of every object; evaluated by a process of its own where that was not done. `None` when it was asked to
/// stop.
///
/// # Errors
/// If the evaluation fails, or what it wrote cannot be read.
pub(super) fn outcomes(
    request: &SearchRequest,
    setup: &Setup,
    stop: &AtomicBool,
) -> Result<Option<Outcomes>> {
    let folder = folder(setup)?;
    let errors = folder.join(ERRORS_FILE);
    if !errors.is_file() && !evaluate(request, setup, &folder, stop)? {
        return Ok(None);
    }
    let errors: Vec<TargetErrors> = io::read_json_lines(&errors)?;
    Ok(Some(Outcomes::new(errors.iter().map(|e| (sequence_of(&e.image), e.is_right())))))
}

/// `SEARCH/start-ID`: the ID tells weights, lists and settings of the evaluation apart.
fn folder(setup: &Setup) -> Result<PathBuf> {
    let config = &setup.config;
    let settings = serde_json::to_string(&(
        &setup.place.inputs,
        &config.network,
        &config.data,
        &config.input,
        &config.evaluation,
        config.experiment.loose,
    ));
    let settings = settings.context("writing the settings of the evaluation of the start")?;
    Ok(setup.place.dir.join(format!("start-{:016x}", fnv1a(settings.as_bytes()))))
}

/// Runs `mqat test` on the validation split; whether it came to its end.
fn evaluate(
    request: &SearchRequest,
    setup: &Setup,
    folder: &std::path::Path,
    stop: &AtomicBool,
) -> Result<bool> {
    fs::create_dir_all(folder)
        .with_context(|| format!("making the folder {}", folder.display()))?;
    let config = folder.join("config.json");
    // A config has a stage; an evaluation trains none.
    let mut written = setup.config.clone();
    written.training.full_precision.get_or_insert_with(StageConfig::full_precision);
    io::write_json(&config, &written)?;
    let log = folder.join("log.txt");
    let file = fs::File::create(&log).with_context(|| format!("opening {}", log.display()))?;
    let run = &request.run;
    let mut command = Command::new(&request.program);
    command.args(["test", "--split", "valid", "--problem", run.select.problem()]);
    command.arg("--checkpoint").arg(&setup.config.experiment.url);
    command.arg("--config").arg(&config).arg("--out").arg(folder);
    command.arg("--data").arg(&setup.data).args(["--device", &run.device.to_string()]);
    if run.skip_bad {
        command.arg("--skip-bad");
    }
    if setup.config.experiment.loose {
        command.arg("--loose");
    }
    command.env("MQAT_HOME", &setup.home.root);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
    end_with_this_process(&mut command);
    tracing::info!("evaluating the full-precision network as it is");
    let mut child = command.spawn().context("starting the evaluation of the start")?;
    loop {
        if let Some(status) = child.try_wait().context("waiting for the evaluation of the start")? {
            if status.success() {
                return Ok(true);
            }
            let said = fs::read_to_string(&log).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it said nothing");
            bail!(
                "evaluating the full-precision network failed ({status}): {last}; all of it is in {}",
                log.display()
            )
        }
        if stop.load(Ordering::Relaxed) {
            // It has nothing to save: the next search evaluates anew.
            child.kill().context("stopping the evaluation of the start")?;
            child.wait().context("waiting for the evaluation of the start")?;
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
