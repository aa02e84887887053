//! Words of command lines that are printed to be run.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

/// A word as a shell reads it back, quoted where it must be.
pub fn shell_word(text: impl AsRef<OsStr>) -> String {
    let Some(text) = text.as_ref().to_str() else { return of_bytes(text.as_ref().as_bytes()) };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=@%+".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Of what is not UTF-8: every odd byte by its number.
fn of_bytes(bytes: &[u8]) -> String {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'\'' && b != b'\\';
    let one = |&b: &u8| if plain(b) { char::from(b).to_string() } else { format!("\\x{b:02x}") };
    format!("$'{}'", bytes.iter().map(one).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(shell_word("--set"), "--set");
        assert_eq!(shell_word("a b"), "'a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
        assert_eq!(shell_word(""), "''");
        assert_eq!(shell_word(OsStr::from_bytes(b"a \xff'")), r"$'a\x20\xff\x27'");
    }
}
