//! What lies in the place of a file when fetching it went wrong: a pointer of Git LFS, a web page, a server's answer.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result};

use super::open_file;

/// How much of a file is looked at, bytes.
const HEAD_BYTES: u64 = 512;

/// Says what the beginning of a file is that stands in another one's place, and what to do; `None` for anything else.
/// Reads as the end of a sentence that begins with the file's name.
pub fn mistaken(head: &[u8]) -> Option<&'static str> {
    let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
    let lower = text[..text.len().min(64)].to_ascii_lowercase();
    let begins = |starts: &[&str]| starts.iter().any(|start| lower.starts_with(start.as_bytes()));
    if begins(&["version https://git-lfs", "version http://git-media"]) {
        Some("is a pointer of Git LFS, not the file itself: run `git lfs pull` where it came from")
    } else if begins(&["/annex/objects/"]) {
        Some(
            "is a pointer of git-annex, not the file itself: run `git annex get` where it came from",
        )
    } else if begins(&["<!doctype html", "<html", "<head", "<!--", "<script"]) {
        Some(
            "is a web page, not the file itself: the download went wrong (a page to log in or to confirm, or the page \
             about the file); open the link in a browser and fetch the file itself",
        )
    } else if begins(&[
        "<?xml",
        "<error",
        "404",
        "403",
        "not found",
        "entry not found",
        "access denied",
    ]) {
        Some("is a server's answer, not the file itself: the download went wrong")
    } else {
        None
    }
}

/// As [`mistaken`], of a file.
///
/// # Errors
/// If it cannot be read.
pub fn mistaken_for_a_file(path: &Path) -> Result<Option<&'static str>> {
    let mut head = Vec::new();
    let read = open_file(path)?.take(HEAD_BYTES).read_to_end(&mut head);
    read.with_context(|| format!("reading {}", path.display()))?;
    Ok(mistaken(&head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_downloads_leave_is_named() {
        for (text, what) in [
            ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "git lfs pull"),
            ("\n\n<!DOCTYPE HTML PUBLIC \"-//W3C//DTD\">", "web page"),
            ("\u{feff}<html lang=en>", "web page"),
            ("<?xml version=\"1.0\"?><Error><Code>NoSuchKey", "server's answer"),
            ("Entry not found", "server's answer"),
            ("/annex/objects/SHA256E-s12--ab.pth", "git annex get"),
        ] {
            assert!(mistaken(text.as_bytes()).is_some_and(|found| found.contains(what)), "{text}");
        }
        for text in ["PK\x03\x04", "{\"fx\": 1}", "%YAML:1.0", "", "ply\nformat"] {
            assert_eq!(mistaken(text.as_bytes()), None, "{text}");
        }
    }
}
