//! `mqat dataset check`: what is in a BOP folder, what is wrong with it, and the config that fits it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use crate::data::{BopFolder, FolderCheck, SplitCheck};

/// What `mqat dataset check` found.
#[derive(Debug, Serialize)]
pub struct DatasetReport {
    /// The folder.
    #[serde(serialize_with = "crate::io::path_text")]
    pub root: PathBuf,
    /// What is in it.
    #[serde(flatten)]
    pub check: FolderCheck,
    /// The section `data` of a config that trains on it, where it is not as by default.
    pub data: Value,
    /// Keys of `data` that no folder of scenes fits, with why; they are left out above.
    pub missing: Vec<String>,
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
    let (data, missing) = fitting_config(&check);
    Ok(DatasetReport { root: root.to_owned(), check, data, missing })
}

/// Keys of `data` that the folder decides about, and those that no folder of scenes fits.
fn fitting_config(check: &FolderCheck) -> (Value, Vec<String>) {
    let names: Vec<&str> = check.splits.iter().map(|split| split.name.as_str()).collect();
    let of = |start: &str| -> Vec<&str> {
        names.iter().copied().filter(|name| name.starts_with(start)).collect()
    };
    let (train, valid, test) = (of("train"), of("val"), of("test"));
    let first = |names: &[&str]| names.first().map(|name| (*name).to_owned());
    let symmetric: Vec<usize> = (check.objects.iter().enumerate())
        .filter_map(|(class, object)| (object.num_symmetries != [0, 0]).then_some(class))
        .collect();
    let mut data = json!({
        "N_CLASS": check.objects.len() + 1,
        "MESH_DIAMETERS": [],
        "SYMMETRIC_CLASSES": symmetric,
    });
    let mut missing = Vec::new();
    for (key, list, starts) in [
        ("TRAIN", (!train.is_empty()).then(|| train.join(" + ")), "`train`"),
        ("VALID", first(&valid).or_else(|| first(&test)), "`val` or `test`"),
        ("TEST", first(&test), "`test`"),
    ] {
        match list {
            Some(list) => data[key] = list.into(),
            None => missing.push(format!("{key}: no folder of scenes begins with {starts}")),
        }
    }
    (data, missing)
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
        let _ = write!(text, "\nconfig that fits, section data:\n{:#}\n", self.data);
        for missing in &self.missing {
            let _ = writeln!(text, "  without {missing}");
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
