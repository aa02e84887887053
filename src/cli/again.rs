//! `mqat train --like EXP` without `--method`: the run of an experiment once more.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::plan::{CONFIG, FlowArgs, experiment};
use super::shared::{ConfigSelect, Places, refuse, request};
use crate::io;

/// Gives the arguments config, problem, topology and dataset of the experiment that `--like` names; what else is given stays.
/// `others` are options that name another start, and whether they are given.
///
/// # Errors
/// If there is no such experiment, or options name another config, flow or start.
pub(super) fn take_over(
    flow: &mut FlowArgs,
    select: &mut ConfigSelect,
    places: &mut Places,
    others: &[(&str, bool)],
) -> Result<()> {
    let is_control = flow.method.is_some();
    let Some(text) = flow.like.take_if(|_| !is_control) else { return Ok(()) };
    let own = "--like takes config and flow of that experiment";
    let given = [("--config", select.names.config.is_some()), ("--flow", flow.flow.is_some())];
    refuse(&given, own)?;
    refuse(others, own)?;
    let folder = experiment(&text, &request(select.clone(), places.clone()))?;
    let names = &mut select.names;
    names.config = Some(first_config(&folder));
    // LOGS/PROBLEM/TOPOLOGY/expNNN
    let whole = folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?;
    let mut above = whole.ancestors().skip(1).filter_map(Path::file_name);
    for name in [&mut names.topology, &mut names.problem] {
        let found = above.next().map(|part| part.to_string_lossy().into_owned());
        *name = name.take().or(found);
    }
    let data = &mut places.reads.data;
    *data = match data.take() {
        Some(given) => Some(given),
        None => dataset(&folder)?,
    };
    Ok(())
}

/// The config that the experiment began with; a resume may have changed its own.
fn first_config(folder: &Path) -> PathBuf {
    let first = folder.join("starts/000.json");
    if first.is_file() { first } else { folder.join(CONFIG) }
}

/// The dataset that the experiment was trained on, as far as it says so.
fn dataset(folder: &Path) -> Result<Option<PathBuf>> {
    let path = folder.join("provenance.json");
    if !path.is_file() {
        return Ok(None);
    }
    let provenance: Value = io::read_json(&path)?;
    let Some(dataset) = provenance["dataset"].as_str().map(PathBuf::from) else { return Ok(None) };
    ensure!(
        dataset.is_dir(),
        "{}: its dataset {} is gone: name where it is now with --data",
        path.display(),
        dataset.display()
    );
    Ok(Some(dataset))
}
