//! `mqat init`: the problem folder of an unknown BOP folder.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::data::BopFolder;
use crate::io::{self, shell_word};
use crate::run::fit::{Choice, FitWishes, fit};
use crate::run::{Home, Select, config};

/// What `mqat init` is asked.
#[derive(Debug, Clone)]
pub struct InitRequest {
    /// The BOP folder.
    pub data: PathBuf,
    /// Name of the new problem.
    pub problem: String,
    /// The preset whose network is taken: a topology of SwissCube.
    pub topology: String,
    /// Size, seed, fraction of validation images, objects.
    pub wishes: FitWishes,
    /// A file of weights to start from instead of the preset's.
    pub weights: Option<PathBuf>,
    /// Overwrite an existing config.
    pub overwrite: bool,
}

/// What `mqat init` wrote.
#[derive(Debug, Serialize)]
pub struct InitReport {
    /// The BOP folder.
    #[serde(serialize_with = "io::path_text")]
    pub data: PathBuf,
    /// The new config.
    #[serde(serialize_with = "io::path_text")]
    pub config: PathBuf,
    /// The name under which the problem finds its data; none where the data root has something else of that name.
    #[serde(serialize_with = "path_or_null")]
    pub data_link: Option<PathBuf>,
    /// What was chosen and why.
    pub choices: Vec<Choice>,
    /// The commands that come next.
    pub next: Vec<String>,
}

fn path_or_null<S: serde::Serializer>(path: &Option<PathBuf>, out: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => io::path_text(path, out),
        None => out.serialize_none(),
    }
}

/// Writes `problems/PROBLEM/TOPOLOGY/config.json` for a BOP folder.
///
/// # Errors
/// If the folder is none or has nothing to train on, there is no such preset, the config already exists, or a file cannot be
/// written.
pub fn init(request: &InitRequest) -> Result<InitReport> {
    let home = Home::find(None, None)?;
    let folder = BopFolder::find(&request.data).with_context(|| {
        format!(
            "{} is not a BOP folder: expected models/models_info.json and folders of scenes such as train_pbr/000000 with \
             scene_camera.json; `mqat dataset check` tells more",
            request.data.display()
        )
    })?;
    let dir = home.problem_dir(&request.problem, &request.topology);
    let path = dir.join("config.json");
    ensure!(
        request.overwrite || !path.exists(),
        "{} already exists; pass --overwrite to replace it, or choose another --problem",
        path.display()
    );
    let select = Select { topology: Some(request.topology.clone()), ..Select::default() };
    let (mut preset, preset_dir) = select.document(&home)?;
    let start = take_start(&mut preset, (&preset_dir, &dir), request)?;
    let (document, mut choices) = fit(preset, &folder, &request.wishes)?;
    choices.extend(start);
    config::parse(document.clone(), &path.display().to_string())?;
    fs::create_dir_all(&dir).with_context(|| format!("making the folder {}", dir.display()))?;
    io::write_json(&path, &document)?;
    let data_link = link_data(&home, &request.problem, folder.root())?;
    let next = next_commands(request, data_link.is_none());
    Ok(InitReport { data: folder.root().to_owned(), config: path, data_link, choices, next })
}

/// Where the weights lie that the run starts from, as seen from the new config's folder (the second; the first is the
/// preset's): what of them fits is taken.
///
/// # Errors
/// If the weights that are asked for are not there, or the preset keeps modules as its weights have them and has none.
fn take_start(
    preset: &mut Value,
    (preset_dir, dir): (&Path, &Path),
    request: &InitRequest,
) -> Result<Vec<Choice>> {
    let wants = preset["experiment"]["pretrained"] == true;
    let name = preset["experiment"]["url"].as_str().unwrap_or_default().to_owned();
    let file = preset_dir.join(&name);
    let kept = preset.pointer("/training/full_precision/frozen").and_then(Value::as_str);
    let kept = kept.map(str::to_owned);
    let (url, why) = match &request.weights {
        Some(file) => {
            ensure!(file.is_file(), "--weights {}: no such file", file.display());
            let file =
                file.canonicalize().with_context(|| format!("finding {}", file.display()))?;
            (
                file.display().to_string(),
                "--weights: what fits of them is loaded, all other layers keep their initial values",
            )
        }
        None if wants && !name.is_empty() && file.is_file() => (
            from_dir(&file, preset_dir, dir),
            "the preset's weights: what fits of them is loaded, all other layers keep their initial values",
        ),
        None => {
            if let Some(kept) = &kept {
                return Err(no_weights_to_keep(kept, &file, request));
            }
            (
                String::new(),
                "the preset's weights are not at hand: all layers keep their initial values",
            )
        }
    };
    if !wants && url.is_empty() {
        return Ok(Vec::new());
    }
    let experiment = &mut preset["experiment"];
    experiment["pretrained"] = Value::Bool(!url.is_empty());
    experiment["loose"] = Value::Bool(!url.is_empty());
    experiment["url"] = url.clone().into();
    let choice = |key: &str, value: Value, why: String| Choice { key: key.to_owned(), value, why };
    let mut choices = vec![choice("experiment.url", url.into(), why.to_owned())];
    if let Some(kept) = kept {
        let why = format!(
            "the preset's: {kept} stays as the weights have it{}",
            match request.weights {
                Some(_) => "",
                None =>
                    ", which other images made: weights trained on these images are passed by --weights",
            }
        );
        choices.push(choice("training.full_precision.frozen", kept.into(), why));
    }
    Ok(choices)
}

/// A preset's file as seen from another preset's folder, absolute where they have no folder of problems in common.
fn from_dir(file: &Path, preset_dir: &Path, dir: &Path) -> String {
    // The folders are PROBLEM/TOPOLOGY below the same one.
    let found = match (preset_dir.parent().and_then(Path::parent), file.strip_prefix(preset_dir)) {
        (Some(problems), Ok(inner)) if dir.starts_with(problems) => {
            let from = preset_dir.strip_prefix(problems).unwrap_or(preset_dir);
            Path::new("../..").join(from).join(inner)
        }
        _ => std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
    };
    found.display().to_string()
}

fn no_weights_to_keep(kept: &str, file: &Path, request: &InitRequest) -> anyhow::Error {
    let InitRequest { data, problem, topology, .. } = request;
    let base = topology.replace("CaSpaceNet", "Widedepth");
    let data = shell_word(data);
    anyhow!(
        "{topology} keeps {kept} as its weights have it, and {} is not there: a random {kept} would never learn. Train \
         the network that it comes from first and pass its checkpoint: `mqat init --data {} --problem {problem} --topology \
         {base}`, `mqat train --problem {problem} --topology {base}`, then this command with --weights CHECKPOINT",
        file.display(),
        data
    )
}

/// Makes `DATA/PROBLEM` name the folder, so that commands find it by the problem's name; nothing where that name is taken by
/// something else.
fn link_data(home: &Home, problem: &str, root: &Path) -> Result<Option<PathBuf>> {
    let link = home.data.join(problem);
    let target = root.canonicalize().with_context(|| format!("finding {}", root.display()))?;
    let is_there = |path: &Path| path.canonicalize().is_ok_and(|path| path == target);
    if is_there(&link) {
        return Ok(Some(link));
    }
    if link.symlink_metadata().is_ok() {
        return Ok(None);
    }
    let making = || format!("making {} name {}", link.display(), target.display());
    fs::create_dir_all(&home.data).with_context(making)?;
    symlink(&target, &link).with_context(making)?;
    Ok(Some(link))
}

fn next_commands(request: &InitRequest, name_data: bool) -> Vec<String> {
    let words = [&request.problem, &request.topology].map(shell_word);
    let names = format!("--problem {} --topology {}", words[0], words[1]);
    let data = match name_data {
        true => format!(" --data {}", shell_word(&request.data)),
        false => String::new(),
    };
    vec![
        format!("mqat plan {names}{data}"),
        format!("mqat train {names}{data}"),
        format!("mqat test {names}{data}"),
    ]
}

impl InitReport {
    /// The report for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{} for {}\n", self.config.display(), self.data.display());
        if let Some(link) = &self.data_link {
            let _ = writeln!(text, "{} names the data", link.display());
        }
        text.push('\n');
        for Choice { key, value, why } in &self.choices {
            let _ = writeln!(text, "{key} = {}\n    {why}", short(value));
        }
        text.push_str("\nnext:\n");
        for command in &self.next {
            let _ = writeln!(text, "  {command}");
        }
        text
    }
}

/// A value on one line, numbers with at most two decimals.
fn short(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(", "))
        }
        Value::Number(number) if number.is_f64() => {
            let number = number.as_f64().unwrap_or_default();
            if number.abs() < 1.0 { number.to_string() } else { format!("{:.2}", number) }
        }
        other => other.to_string(),
    }
}
