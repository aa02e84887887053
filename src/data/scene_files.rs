//! The JSON files of a BOP scene folder, read as other programs write them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::bop::SceneCamera;
use crate::io;

/// The file's map with its keys, plain or zero padded, as numbers.
pub(super) fn by_number<T, M: IntoIterator<Item = (String, T)>>(
    path: &Path,
    read: impl Fn(&Path) -> Result<M>,
) -> Result<HashMap<u32, T>> {
    let at = path.display();
    let mut map = HashMap::new();
    for (key, value) in read(path)? {
        let number: u32 = key
            .parse()
            .ok()
            .with_context(|| format!("{at}: key {key:?}, expected an image number"))?;
        ensure!(map.insert(number, value).is_none(), "{at}: image {number} is in it twice");
    }
    Ok(map)
}

/// Reads a JSON file in which NaN and infinities may stand bare, as Python writes them.
pub(super) fn read_lenient<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let at = path.display();
    let text = fs::read(path).with_context(|| format!("reading {at}"))?;
    io::parse_json(&without_non_finite(text), &at.to_string())
}

/// Reads `scene_camera.json`, in which no camera may have a lens that would be passed over.
pub(super) fn read_cameras(path: &Path) -> Result<SceneCamera> {
    /// Parts of keys that speak of one; other keys are not looked at.
    const PARTS: [&[u8]; 5] = [b"dist", b"Dist", b"coef", b"fisheye", b"cam_model"];
    let at = path.display();
    let text = fs::read(path).with_context(|| format!("reading {at}"))?;
    let text = without_non_finite(text);
    if PARTS.iter().any(|part| text.windows(part.len()).any(|w| w == *part)) {
        let cameras: BTreeMap<String, Map<String, Value>> = io::parse_json(&text, &at.to_string())?;
        for (image, camera) in cameras {
            let speaks = |key: &str| {
                let key = key.to_ascii_lowercase();
                ["dist", "coef", "fisheye", "cam_model"].iter().any(|part| key.contains(part))
            };
            let lens = camera.iter().find(|(key, value)| speaks(key) && !says_nothing(value));
            if let Some((key, _)) = lens {
                bail!(
                    "{at}: image {image}: {key} tells a lens, but images of a dataset are taken for undistorted ones: \
                     undistort them first, and remove the key"
                );
            }
        }
    }
    io::parse_json(&text, &at.to_string())
}

/// Null, zeros, an empty list or `none`.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(v) => !v,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => matches!(text.as_str(), "" | "none" | "pinhole"),
        Value::Array(items) => items.iter().all(says_nothing),
        Value::Object(map) => map.values().all(says_nothing),
    }
}

/// `NaN`, `Infinity` and `-Infinity` outside strings replaced by `null`.
fn without_non_finite(text: Vec<u8>) -> Vec<u8> {
    const TOKENS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    let contains = |token: &[u8]| text.windows(token.len()).any(|w| w == token);
    if !contains(TOKENS[0]) && !contains(TOKENS[2]) {
        return text;
    }
    let mut out = Vec::with_capacity(text.len());
    let (mut in_string, mut i) = (false, 0);
    while i < text.len() {
        let rest = &text[i..];
        let token = TOKENS.iter().find(|t| !in_string && rest.starts_with(t));
        if let Some(token) = token {
            out.extend_from_slice(b"null");
            i += token.len();
            continue;
        }
        out.push(text[i]);
        match text[i] {
            b'\\' if in_string && i + 1 < text.len() => {
                i += 1;
                out.push(text[i]);
            }
            b'"' => in_string = !in_string,
            _ => {}
        }
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_non_finite_numbers_become_null_outside_strings() {
        let text = br#"{"NaN \" NaN": [NaN, -Infinity, Infinity, 1.0]}"#.to_vec();
        let clean = without_non_finite(text);
        assert_eq!(
            std::str::from_utf8(&clean).unwrap(),
            r#"{"NaN \" NaN": [null, null, null, 1.0]}"#
        );
    }
}
