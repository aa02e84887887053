//! `mqat init`: the problem folder of an unknown BOP folder.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::data::BopFolder;
use crate::io;
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
    /// Size, seed, fraction of validation images.
    pub wishes: FitWishes,
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
    let start = take_start(&mut preset, &preset_dir, &dir);
    let (document, mut choices) = fit(preset, &folder, &request.wishes)?;
    choices.extend(start);
    config::parse(document.clone(), &path.display().to_string())?;
    fs::create_dir_all(&dir).with_context(|| format!("making the folder {}", dir.display()))?;
    io::write_json(&path, &document)?;
    let data_link = link_data(&home, &request.problem, folder.root())?;
    let next = next_commands(request, data_link.is_none());
    Ok(InitReport { data: folder.root().to_owned(), config: path, data_link, choices, next })
}

/// Where the weights lie that the preset starts from, as seen from the new config's folder: what of them fits is taken.
fn take_start(preset: &mut Value, preset_dir: &Path, dir: &Path) -> Option<Choice> {
    let experiment = &mut preset["experiment"];
    if experiment["pretrained"] != true {
        return None;
    }
    let name = experiment["url"].as_str().unwrap_or_default();
    let file = preset_dir.join(name);
    let (url, why) = if !name.is_empty() && file.is_file() {
        // The folders are PROBLEM/TOPOLOGY below the same one.
        let url = match (preset_dir.parent().and_then(Path::parent), file.strip_prefix(preset_dir))
        {
            (Some(problems), Ok(inner)) if dir.starts_with(problems) => {
                let from = preset_dir.strip_prefix(problems).unwrap_or(preset_dir);
                Path::new("../..").join(from).join(inner)
            }
            _ => std::path::absolute(&file).unwrap_or(file),
        };
        (
            url.display().to_string(),
            "the preset's weights: what fits of them is loaded, all other layers keep their initial values",
        )
    } else {
        (
            String::new(),
            "the preset's weights are not at hand: all layers keep their initial values",
        )
    };
    experiment["pretrained"] = Value::Bool(!url.is_empty());
    experiment["loose"] = Value::Bool(!url.is_empty());
    experiment["url"] = url.clone().into();
    Some(Choice { key: "experiment.url".to_owned(), value: url.into(), why: why.to_owned() })
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
    let names = format!("--problem {} --topology {}", request.problem, request.topology);
    let data = match name_data {
        true => format!(" --data {}", request.data.display()),
        false => String::new(),
    };
    vec![
        format!("mqat plan {names}{data}"),
        format!("mqat train {names}{data}"),
        format!("mqat test {names}"),
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
