//! Paths in JSON. A path that is not UTF-8 is written with its odd bytes replaced, instead of failing a command whose work
//! is done.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// One or several paths, as a field of something that becomes JSON.
pub trait PathField {
    /// The value that stands in the JSON: texts.
    fn texts(&self) -> impl Serialize;
}

impl PathField for PathBuf {
    fn texts(&self) -> impl Serialize {
        self.to_string_lossy().into_owned()
    }
}

impl PathField for Option<PathBuf> {
    fn texts(&self) -> impl Serialize {
        self.as_ref().map(|path| path.to_string_lossy().into_owned())
    }
}

impl PathField for Vec<PathBuf> {
    fn texts(&self) -> impl Serialize {
        let texts = self.iter().map(|path| path.to_string_lossy().into_owned());
        texts.collect::<Vec<String>>()
    }
}

/// For `#[serde(serialize_with)]` on fields that hold paths.
///
/// # Errors
/// Those of the serializer.
pub fn path_text<P: PathField, S: Serializer>(field: &P, serializer: S) -> Result<S::Ok, S::Error> {
    field.texts().serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[derive(Serialize)]
    struct Report {
        #[serde(serialize_with = "path_text")]
        one: PathBuf,
        #[serde(serialize_with = "path_text")]
        none: Option<PathBuf>,
        #[serde(serialize_with = "path_text")]
        many: Vec<PathBuf>,
    }

    #[test]
    fn odd_names_become_text() {
        let odd = PathBuf::from(OsStr::from_bytes(b"a\xff/b"));
        let report = Report { one: odd.clone(), none: None, many: vec![odd] };
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(json, "{\"one\":\"a\u{fffd}/b\",\"none\":null,\"many\":[\"a\u{fffd}/b\"]}");
    }
}
