//! Data flows one way: no room reads from one above or beside it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may use, as `src/lib.rs` tells it.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    BTreeMap::from([
        (
            "cli",
            &[
                "commands", "study", "bench", "artifact", "run", "train", "eval", "export",
                "synth", "data", "quant", "io", "schema",
            ] as &[&str],
        ),
        (
            "commands",
            &[
                "artifact", "run", "train", "eval", "export", "model", "quant", "data", "pose",
                "nn", "geom", "io", "seed", "schema",
            ],
        ),
        (
            "study",
            &["artifact", "run", "train", "model", "quant", "data", "pose", "nn", "io", "seed"],
        ),
        (
            "bench",
            &[
                "artifact", "run", "train", "eval", "export", "synth", "model", "quant", "data",
                "pose", "geom", "seed",
            ],
        ),
        ("artifact", &["run", "train", "eval", "export", "model", "quant", "nn", "io"]),
        ("run", &["train", "eval", "model", "quant", "data", "io", "schema"]),
        ("train", &["model", "quant", "data", "nn", "io", "seed", "geom", "schema"]),
        ("eval", &["model", "data", "pose", "io", "seed", "geom", "schema"]),
        ("export", &["model", "quant", "nn", "io", "seed", "schema"]),
        ("synth", &["data", "io", "geom", "seed", "schema"]),
        ("model", &["nn", "geom", "seed", "schema"]),
        ("quant", &["nn", "seed", "schema"]),
        ("data", &["geom", "io", "seed", "schema"]),
        ("pose", &["geom", "seed", "schema"]),
        ("nn", &["seed"]),
        ("geom", &[]),
        ("io", &["schema"]),
        ("schema", &[]),
        ("seed", &[]),
    ])
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// The rooms that a line names after `crate::`.
fn rooms_named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or("");
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            // `use crate::{a::X, b}`: the first word of each item outside inner braces.
            Some(list) => {
                let mut depth = 0;
                let mut items = vec![String::new()];
                for c in list.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => items.push(String::new()),
                        c if depth == 0 => items.last_mut().unwrap().push(c),
                        _ => {}
                    }
                }
                items.iter().map(|i| first_word(i.trim())).collect()
            }
            None => vec![first_word(rest)],
        })
        .filter(|w| !w.is_empty())
        .collect()
}

fn first_word(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn rooms_named_are_found_in_lists_and_paths() {
    assert_eq!(rooms_named("use crate::geom::{Pose, Vec3};"), ["geom"]);
    assert_eq!(rooms_named("use crate::{geom::{A, B}, io};"), ["geom", "io"]);
    assert_eq!(rooms_named("    crate::seed::stream(crate::nn::x())"), ["seed", "nn"]);
    assert!(rooms_named("// see crate::cli").is_empty());
}

#[test]
fn no_room_reads_from_above_or_beside() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let allowed = allowed();
    let mut wrong = Vec::new();
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    for file in files {
        let relative = file.strip_prefix(&src).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        if room == "main" || room == "lib" {
            continue;
        }
        let may = allowed.get(room).unwrap_or_else(|| panic!("{room} is no room of src/lib.rs"));
        for (i, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            for named in rooms_named(line) {
                if allowed.contains_key(named.as_str())
                    && named != room
                    && !may.contains(&named.as_str())
                {
                    wrong.push(format!("{}:{}: {room} uses {named}", relative.display(), i + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "arrows up or sideways:\n{}", wrong.join("\n"));
}
