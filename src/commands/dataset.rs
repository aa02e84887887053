//! `mqat dataset check`: what is in a BOP folder, what is wrong with it, and the command that makes its config; `mqat dataset convert`:
//! other layouts as BOP folders.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::data::{
    BopFolder, ConvertFrom, Converted, FolderCheck, SplitCheck, SplitObject, convert,
};
use crate::io::shell_word;
use crate::run::folder_name;

/// What `mqat dataset check` found.
#[derive(Debug, Serialize)]
pub struct DatasetReport {
    /// The folder.
    #[serde(serialize_with = "crate::io::path_text")]
    pub root: PathBuf,
    /// What is in it.
    #[serde(flatten)]
    pub check: FolderCheck,
    /// The command that writes a config for it; none where there is nothing to train on.
    pub init: Option<String>,
    /// Why there is none; null where there is one.
    pub why_no_init: Option<String>,
}

/// Looks at a BOP folder.
///
/// # Errors
/// If it is none, or its `models_info.json` or a file of targets cannot be read.
pub fn check_dataset(root: &Path) -> Result<DatasetReport> {
    let folder = BopFolder::find(root).with_context(|| {
        format!(
            "{} is not a BOP folder: expected models/models_info.json and folders of scenes such as train_pbr/000000 with \
             scene_camera.json",
            root.display()
        )
    })?;
    let check = FolderCheck::new(&folder)?;
    let (init, why_no_init) = match init_command(root, &check) {
        Ok(command) => (Some(command), None),
        Err(why) => (None, Some(why)),
    };
    Ok(DatasetReport { root: root.to_owned(), check, init, why_no_init })
}

/// The command line of `mqat init` that fits the folder; else a text that says why none does.
fn init_command(root: &Path, check: &FolderCheck) -> Result<String, String> {
    let is_meant = |split: &&SplitCheck| split.name.starts_with("train");
    let can_train = |split: &SplitCheck| split.has_poses && split.has_masks;
    let train: Vec<&SplitCheck> =
        check.splits.iter().filter(is_meant).filter(|split| can_train(split)).collect();
    if train.is_empty() {
        let names: Vec<&str> = check.splits.iter().map(|split| split.name.as_str()).collect();
        return Err(format!(
            "nothing to train on: expected a folder of scenes whose name begins with `train`, each scene with scene_gt.json \
             and mask_visib or mask; there are {}",
            names.join(", ")
        ));
    }
    let objects = || train.iter().flat_map(|split| &split.objects);
    let listed: BTreeSet<u32> = objects().filter(|o| o.is_listed).map(|o| o.obj_id).collect();
    if listed.is_empty() {
        return Err(
            "nothing to train on: no training image shows an object of models_info.json".to_owned()
        );
    }
    let mut command = format!(
        "mqat init --data {} --problem {}",
        shell_word(root),
        shell_word(problem_name(root).unwrap_or_else(|| "Mine".to_owned()))
    );
    if objects().any(|o: &SplitObject| !o.is_listed) {
        let ids: Vec<String> = listed.iter().map(u32::to_string).collect();
        command.push_str(&format!(" --objects {}", ids.join(",")));
    }
    Ok(command)
}

/// The folder's own name, when a problem can have it.
fn problem_name(root: &Path) -> Option<String> {
    let root = root.canonicalize().ok()?;
    folder_name(root.file_name()?.to_str()?).ok()
}

/// What `mqat dataset convert` wrote.
#[derive(Debug, Serialize)]
pub struct ConvertReport {
    /// The layout that was read.
    pub from: ConvertFrom,
    /// What was written.
    #[serde(flatten)]
    pub made: Converted,
    /// The command that comes next.
    pub next: String,
}

/// Writes a dataset of another layout as a BOP folder, or a split of one as its folder of scenes.
///
/// # Errors
/// As [`convert`].
pub fn convert_dataset(from: ConvertFrom, source: &Path, out: &Path) -> Result<ConvertReport> {
    let made = convert(from, source, out)?;
    let is_split = matches!(from, ConvertFrom::Imagewise | ConvertFrom::Webdataset);
    // A split lies in the folder of its dataset, beside the models.
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty());
    let root = if is_split { parent.unwrap_or(Path::new(".")) } else { out };
    let next = format!("mqat dataset check {}", shell_word(root));
    Ok(ConvertReport { from, made, next })
}

impl ConvertReport {
    /// The report for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n", self.made.out.display());
        for (name, num_images) in &self.made.splits {
            let name = if name.is_empty() { String::new() } else { format!("{name}: ") };
            let _ = writeln!(text, "  {name}{num_images} images");
        }
        for note in &self.made.notes {
            let _ = writeln!(text, "  {note}");
        }
        let _ = writeln!(text, "\nnext:\n  {}", self.next);
        text
    }
}

impl DatasetReport {
    /// The report for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}\n\n", self.root.display());
        text.push_str("object   diameter mm   vertices (evaluation)   symmetries\n");
        for o in &self.check.objects {
            let diameter = o.diameter_mm.map_or_else(|| "-".to_owned(), |d| format!("{d:.2}"));
            let [own, eval] = o.num_vertices;
            let [discrete, continuous] = o.num_symmetries;
            let vertices = format!("{own} ({eval})");
            let symmetries = format!("{discrete} discrete, {continuous} continuous");
            let _ =
                writeln!(text, "{:>6}   {diameter:>11}   {vertices:>21}   {symmetries}", o.obj_id);
        }
        for split in &self.check.splits {
            text.push('\n');
            text.push_str(&split_text(split));
        }
        match self.check.num_faults {
            0 => text.push_str("\nno faults found\n"),
            num => {
                let _ = writeln!(text, "\n{num} faults:");
                for fault in &self.check.faults {
                    let _ = writeln!(text, "  {fault}");
                }
                let left = num - self.check.faults.len();
                if left > 0 {
                    let _ = writeln!(text, "  and {left} more");
                }
            }
        }
        let last = self.init.as_ref().or(self.why_no_init.as_ref());
        let head = if self.init.is_some() { "\nnext:\n  " } else { "\n" };
        let _ = writeln!(text, "{head}{}", last.map_or("", String::as_str));
        text
    }
}

fn split_text(split: &SplitCheck) -> String {
    let sum = |count: fn(&crate::data::SceneCheck) -> usize| -> usize {
        split.scenes.iter().map(count).sum()
    };
    let mut text = format!(
        "{}: {} scenes, {} images, {} instances ({} of them cannot be seen), at most {} of an object in an image",
        split.name,
        split.scenes.len(),
        sum(|s| s.num_images),
        sum(|s| s.num_instances),
        sum(|s| s.num_hidden),
        split.most_of_an_object
    );
    if let Some(num) = split.num_targets {
        let _ = write!(text, ", {num} lines of targets");
    }
    text.push_str(
        "\nobject   instances   depth mm           size px          visible: 10 %, 50 %\n",
    );
    for o in &split.objects {
        let range =
            |[low, high]: [f64; 2], digits: usize| format!("{low:.digits$} to {high:.digits$}");
        let visible =
            o.visible.map_or_else(|| "-".to_owned(), |[low, half]| format!("{low:.2}, {half:.2}"));
        let (depth, size) = (range(o.depth_mm, 0), range(o.size_px, 0));
        let _ = writeln!(
            text,
            "{:>6}   {:>9}   {depth:<16}   {size:<14}   {visible}",
            o.obj_id, o.num_visible
        );
    }
    text
}
