//! Files that grow line by line and get their name when they are whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A file that is being written under another name, beside its place: `poses.jsonl` grows as `poses.partial.jsonl`.
///
/// What a killed process leaves there is whole up to the last [`PartialFile::flush`]; dropping it leaves it as well.
#[derive(Debug)]
pub struct PartialFile {
    out: BufWriter<File>,
    partial: PathBuf,
    target: PathBuf,
}

impl PartialFile {
    /// Begins `target`, in a folder that is made when it is missing.
    ///
    /// # Errors
    /// If `target` or what an earlier run left of it is there and not to be replaced, or the file cannot be made.
    pub fn create(target: &Path, overwrite: bool) -> Result<Self> {
        let partial = partial_name(target);
        for path in [target, &partial] {
            ensure!(
                overwrite || !path.exists(),
                "{} already exists; pass --overwrite to replace it, or name another folder with --out",
                path.display()
            );
        }
        let making = || format!("making {}", partial.display());
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).with_context(making)?;
        }
        let out = BufWriter::with_capacity(1 << 16, File::create(&partial).with_context(making)?);
        Ok(Self { out, partial, target: target.to_owned() })
    }

    /// Hands everything written so far to the system.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().with_context(|| format!("writing {}", self.partial.display()))
    }

    /// Ends the file before it is whole: it keeps its partial name, which is returned.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn stop(mut self) -> Result<PathBuf> {
        self.sync()?;
        Ok(self.partial)
    }

    /// Ends the file: on the disk and under its name, which is returned.
    ///
    /// # Errors
    /// If it cannot be written or renamed.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.sync()?;
        fs::rename(&self.partial, &self.target).with_context(|| {
            format!("renaming {} to {}", self.partial.display(), self.target.display())
        })?;
        Ok(self.target)
    }

    fn sync(&mut self) -> Result<()> {
        self.flush()?;
        let synced = self.out.get_ref().sync_all();
        synced.with_context(|| format!("writing {}", self.partial.display()))
    }
}

impl Write for PartialFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// `a/poses.partial.jsonl` for `a/poses.jsonl`.
fn partial_name(target: &Path) -> PathBuf {
    let mut name = target.file_stem().unwrap_or_default().to_owned();
    name.push(".partial");
    if let Some(ending) = target.extension() {
        name.push(".");
        name.push(ending);
    }
    target.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_when_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/poses.jsonl");
        let partial = folder.path().join("new/poses.partial.jsonl");
        let mut file = PartialFile::create(&target, false).unwrap();
        file.write_all(b"one\n").unwrap();
        PartialFile::flush(&mut file).unwrap();
        assert_eq!(fs::read_to_string(&partial).unwrap(), "one\n");
        assert!(!target.exists());
        assert_eq!(file.finish().unwrap(), target);
        assert!(!partial.exists() && fs::read_to_string(&target).unwrap() == "one\n");
    }

    #[test]
    fn nothing_is_replaced_unasked_not_even_what_a_killed_run_left() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("poses.csv");
        drop(PartialFile::create(&target, false).unwrap());
        let error = PartialFile::create(&target, false).unwrap_err().to_string();
        assert!(error.contains("poses.partial.csv already exists"), "{error}");
        let stopped = PartialFile::create(&target, true).unwrap().stop().unwrap();
        assert_eq!(stopped, folder.path().join("poses.partial.csv"));
        fs::write(&target, "x").unwrap();
        fs::remove_file(&stopped).unwrap();
        let error = PartialFile::create(&target, false).unwrap_err().to_string();
        assert!(error.contains("poses.csv already exists"), "{error}");
    }
}
