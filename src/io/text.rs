//! Text files as other programs write them: byte order marks, UTF-16, Windows line ends.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

/// `bytes` as UTF-8 without a byte order mark; UTF-16 (as `>` of Windows PowerShell writes it) is told by its mark and
/// converted. Without a mark the bytes are returned as they are.
///
/// # Errors
/// If a UTF-16 mark is followed by what is not UTF-16.
pub fn without_mark(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    if let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        return Ok(Cow::Borrowed(rest));
    }
    let read: fn([u8; 2]) -> u16 = match bytes {
        [0xff, 0xfe, ..] => u16::from_le_bytes,
        [0xfe, 0xff, ..] => u16::from_be_bytes,
        _ => return Ok(Cow::Borrowed(bytes)),
    };
    let (units, rest) = bytes[2..].as_chunks::<2>();
    ensure!(rest.is_empty(), "its byte order mark says UTF-16, but it ends within a character");
    let units: Vec<u16> = units.iter().map(|unit| read(*unit)).collect();
    let text = String::from_utf16(&units)
        .map_err(|_| anyhow!("its byte order mark says UTF-16, which it is not"))?;
    Ok(Cow::Owned(text.into_bytes()))
}

/// The text of a file without its byte order mark, see [`without_mark`].
///
/// # Errors
/// If the file cannot be read or is neither UTF-8 nor marked UTF-16; names the file.
pub fn read_text(path: &Path) -> Result<String> {
    text_of(path).with_context(|| format!("reading {}", path.display()))
}

fn text_of(path: &Path) -> Result<String> {
    let bytes = fs::read(path)?;
    let text = without_mark(&bytes)?.into_owned();
    String::from_utf8(text).map_err(|_| anyhow!("the file is not UTF-8 text"))
}

/// The lines of a list of files: without blank ones, spaces around them and a byte order mark. Separators of Windows
/// (`\`) become `/` in lines that have no `/`.
///
/// # Errors
/// As [`read_text`].
pub fn read_list(path: &Path) -> Result<Vec<String>> {
    let text = text_of(path).with_context(|| format!("reading the list {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    Ok(lines
        .map(|line| if line.contains('/') { line.to_owned() } else { line.replace('\\', "/") })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
        std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(unit).collect()
    }

    #[test]
    fn lists_are_read_alike_whatever_program_wrote_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        let text = "a/ä 1.png\r\n\r\n  b/2.png \r\n";
        for bytes in [
            text.as_bytes().to_vec(),
            [b"\xef\xbb\xbf", text.as_bytes()].concat(),
            utf16(text, u16::to_le_bytes),
            utf16(text, u16::to_be_bytes),
            text.replace('/', "\\").into_bytes(),
            text.replace('\r', "").into_bytes(),
        ] {
            fs::write(&path, &bytes).unwrap();
            assert_eq!(read_list(&path).unwrap(), ["a/ä 1.png", "b/2.png"], "{bytes:?}");
        }
    }

    #[test]
    fn what_is_not_text_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list.txt");
        for (bytes, expected) in [
            (&b"\xff\xfea\0b"[..], "ends within a character"),
            (b"\xff\xfe\0\xd8a\0", "UTF-16, which it is not"),
            (b"a\xffb", "not UTF-8"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = format!("{:#}", read_text(&path).unwrap_err());
            assert!(error.contains("list.txt") && error.contains(expected), "{error}");
        }
        let error = format!("{:#}", read_list(&folder.path().join("none.txt")).unwrap_err());
        assert!(error.starts_with("reading the list") && error.contains("none.txt"), "{error}");
    }
}
