//! Files that are there whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::NamedTempFile;

/// End of the names of unfinished files; they begin with a dot.
const UNFINISHED: &str = ".unfinished";

/// Whether a file must survive a power cut, or only the end of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// Contents and name reach the disk before the call returns.
    Synced,
    /// The system writes back when it likes: for files that can be made again, since syncing thousands is slow.
    Unsynced,
}

/// Writes `path` so that a reader, now or after a crash, finds the former file or the complete new one.
///
/// `write` fills a temporary file in the same folder, which is synced, renamed to `path`, and the folder synced.
/// Missing folders are made.
///
/// # Errors
/// Whatever `write` returns, and failures of the file system; the former file is then untouched and the
/// temporary one removed. A process that is killed leaves the temporary one: see [`remove_leftovers`].
pub fn write_atomic(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    replace(path, Durability::Synced, write)
}

pub(super) fn replace(
    path: &Path,
    durability: Durability,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    replace_inner(path, durability, write).with_context(|| format!("writing {}", path.display()))
}

fn replace_inner(
    path: &Path,
    durability: Durability,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    // A symbolic link stays one: what it points to is replaced.
    let linked = path.is_symlink().then(|| fs::canonicalize(path)).transpose();
    let linked = linked.context("following the symbolic link")?;
    let path = linked.as_deref().unwrap_or(path);
    ensure!(!path.is_dir(), "a directory of that name already exists");
    if path.exists() && !path.is_file() {
        return write_through(path, write);
    }
    let name = path.file_name().context("the path has no file name")?;
    let folder = folder_of(path);
    fs::create_dir_all(folder).with_context(|| format!("making folder {}", folder.display()))?;
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    let temporary = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(UNFINISHED)
        .permissions(Permissions::from_mode(0o666)) // less the umask, as for any new file
        .tempfile_in(folder)
        .with_context(|| format!("making a temporary file in {}", folder.display()))?;
    fill(&temporary, durability, write)?;
    temporary.persist(path).context("renaming the temporary file")?;
    if durability == Durability::Synced {
        let opened = File::open(folder).and_then(|folder| folder.sync_all());
        opened.with_context(|| format!("syncing folder {}", folder.display()))?;
    }
    Ok(())
}

/// Pipes and devices cannot be replaced: they get the bytes as they come.
fn write_through(path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::new(fs::OpenOptions::new().write(true).open(path)?);
    write(&mut out)?;
    Ok(out.flush()?)
}

fn fill(
    temporary: &NamedTempFile,
    durability: Durability,
    write: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let mut buffered = BufWriter::with_capacity(1 << 16, temporary.as_file());
    write(&mut buffered)?;
    buffered.flush()?;
    if durability == Durability::Synced {
        temporary.as_file().sync_all()?;
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes the temporary files that a killed process left in `folder`, and returns how many.
///
/// Call it where one process owns the folder: another's file being written would vanish.
///
/// # Errors
/// If `folder` cannot be listed or a file not removed.
pub fn remove_leftovers(folder: &Path) -> Result<usize> {
    let doing = || format!("removing unfinished files in {}", folder.display());
    let mut num_removed = 0;
    for entry in fs::read_dir(folder).with_context(doing)? {
        let entry = entry.with_context(doing)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(UNFINISHED) {
            fs::remove_file(entry.path()).with_context(doing)?;
            num_removed += 1;
        }
    }
    Ok(num_removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_a_link_and_a_device_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write_atomic(&link, |w| Ok(w.write_all(b"new")?)).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        let null = dir.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        write_atomic(&null, |w| Ok(w.write_all(b"gone")?)).unwrap();
        assert!(null.is_symlink() && !Path::new("/dev/null").is_file());
    }
    use anyhow::bail;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_former_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomic(&path, |out| Ok(out.write_all(b"first")?)).unwrap();
        let error = write_atomic(&path, |out| {
            out.write_all(b"second")?;
            bail!("no more")
        })
        .unwrap_err();
        assert!(format!("{error:#}").contains("a.txt: no more"), "{error:#}");
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_file_is_replaced_folders_are_made_and_others_may_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/folder/a.txt");
        for text in ["first", "second"] {
            write_atomic(&path, |out| Ok(out.write_all(text.as_bytes())?)).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let plain = folder.path().join("plain");
        fs::write(&plain, "").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
    }

    #[test]
    fn a_folder_in_the_way_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_atomic(folder.path(), |_| Ok(())).unwrap_err();
        assert!(
            format!("{error:#}").contains("a directory of that name already exists"),
            "{error:#}"
        );
    }

    #[test]
    fn only_leftovers_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".a.txt.Xy12.unfinished", ".hidden", "b.unfinished"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        assert_eq!(names(folder.path()), [".hidden", "b.unfinished"]);
    }
}
