//! Datasets of other layouts, written as BOP folders, so that one reader remains.
//!
//! Start at [`convert`]. SPEED and SPEED+ (`speed`) become a folder with all their labelled domains as splits and a stand-in mesh
//! (`tango`); BOP's own layouts for whole images, as files or in tar archives (`imagewise`), become one folder of scenes.

mod imagewise;
mod speed;
mod tango;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::io;

/// The layout of a dataset that is converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ConvertFrom {
    /// SPEED: train.json and real.json with images/train and images/real.
    Speed,
    /// SPEED+: synthetic, lightbox and sunlamp, and camera.json.
    Speedplus,
    /// BOP imagewise: KEY.rgb.png, KEY.camera.json, KEY.gt.json ... in one folder.
    Imagewise,
    /// BOP webdataset: the same files in shard-000000.tar ...
    Webdataset,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Converted {
    /// The new folder.
    #[serde(serialize_with = "io::path_text")]
    pub out: PathBuf,
    /// Its splits: name (empty for a single folder of scenes) and number of images.
    pub splits: Vec<(String, usize)>,
    /// What is to be known about it.
    pub notes: Vec<String>,
}

/// Writes the dataset in `source` as a BOP folder `out`, or, of one split, as its folder of scenes.
///
/// # Errors
/// If `out` is there, or what is read is not of that layout or cannot be read; names file and image. Nothing is left behind then.
pub fn convert(from: ConvertFrom, source: &Path, out: &Path) -> Result<Converted> {
    ensure!(source.is_dir(), "{} is not a directory", source.display());
    ensure!(!out.exists(), "{} already exists; choose another --out", out.display());
    let name = out.file_name().with_context(|| format!("{} names no folder", out.display()))?;
    let work = out.with_file_name(format!(".{}.unfinished", name.to_string_lossy()));
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("removing {}", work.display()))?;
    }
    fs::create_dir_all(&work).with_context(|| format!("making the folder {}", work.display()))?;
    let made = match from {
        ConvertFrom::Speed => speed::convert(speed::SPEED, source, &work),
        ConvertFrom::Speedplus => speed::convert(speed::SPEED_PLUS, source, &work),
        ConvertFrom::Imagewise => imagewise::convert_files(source, &work),
        ConvertFrom::Webdataset => imagewise::convert_shards(source, &work),
    };
    let moved = made.and_then(|made| {
        fs::rename(&work, out).with_context(|| format!("making the folder {}", out.display()))?;
        Ok(Converted { out: out.to_owned(), ..made })
    });
    if moved.is_err() {
        // The error that is told is the first one.
        let _ = fs::remove_dir_all(&work);
    }
    moved
}
