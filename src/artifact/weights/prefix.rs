//! Keys under a name of someone's own (`net.fpn.out_convs.2.bias`, as a Lightning module with an attribute `net` saves
//! them): the prefix that all keys of the network share is taken off.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use tch::Tensor;

use crate::topology::keys;

/// What stands before the keys of a network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Prefix {
    /// Nothing, or known wrappers alone; also where there is no key of a network.
    #[default]
    Known,
    /// This, with the dot at its end, and it was taken off.
    TakenOff(String),
    /// Several networks: the prefix of each with its number of tensors. Nothing was taken off.
    Several(BTreeMap<String, usize>),
}

/// Takes the one prefix of the network's keys off, in place. Keys of nothing known (a counter, a loss) stay.
pub(super) fn take_off(tensors: &mut [(String, Tensor)]) -> Prefix {
    if tensors.iter().any(|(key, _)| keys::root(keys::bare(key)).is_some()) {
        return Prefix::Known;
    }
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for prefix in tensors.iter().filter_map(|(key, _)| keys::foreign_prefix(key)) {
        *found.entry(prefix.to_owned()).or_default() += 1;
    }
    match found.len() {
        0 => Prefix::Known,
        1 => {
            let (prefix, _) = found.pop_first().unwrap_or_default();
            strip(tensors, &prefix);
            Prefix::TakenOff(prefix)
        }
        _ => Prefix::Several(found),
    }
}

/// Keeps the tensors whose keys begin with `prefix` (with or without the dot at its end), without it; returns the names
/// of the others.
///
/// # Errors
/// If no key begins with it.
pub(super) fn take_off_named(
    tensors: &mut Vec<(String, Tensor)>,
    prefix: &str,
) -> Result<Vec<String>> {
    let prefix = format!("{}.", prefix.trim_end_matches('.'));
    ensure!(prefix != ".", "--strip-prefix is empty, expected what stands before the keys");
    if !tensors.iter().any(|(key, _)| key.starts_with(&prefix)) {
        let first = tensors.first().map_or("it has none", |(key, _)| key);
        bail!("--strip-prefix {prefix}: no key begins with it, for example {first}");
    }
    let mut others = Vec::new();
    tensors.retain(|(key, _)| {
        let is_within = key.starts_with(&prefix);
        if !is_within {
            others.push(key.clone());
        }
        is_within
    });
    strip(tensors, &prefix);
    Ok(others)
}

fn strip(tensors: &mut [(String, Tensor)], prefix: &str) {
    for (key, _) in tensors {
        if let Some(rest) = key.strip_prefix(prefix) {
            *key = rest.to_owned();
        }
    }
}

impl Prefix {
    /// What to tell of it.
    pub(super) fn note(&self) -> Option<String> {
        match self {
            Self::Known => None,
            Self::TakenOff(prefix) => {
                Some(format!("every key of the network begins with {prefix}, which was taken off"))
            }
            Self::Several(found) => Some(several(found)),
        }
    }

    /// Refuses a file of several networks, of which nobody said which one is meant.
    pub(super) fn ensure_one(&self) -> Result<()> {
        if let Self::Several(found) = self {
            bail!(
                "{}; name the one to take with --strip-prefix (of `mqat import` and `mqat test`)",
                several(found)
            );
        }
        Ok(())
    }
}

fn several(found: &BTreeMap<String, usize>) -> String {
    let each: Vec<String> =
        found.iter().map(|(prefix, num)| format!("{prefix} ({num} tensors)")).collect();
    format!("its keys are of several networks: {}", each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(keys: &[&str]) -> Vec<(String, Tensor)> {
        keys.iter().map(|key| ((*key).to_owned(), Tensor::from(1.0f32))).collect()
    }

    fn names(tensors: &[(String, Tensor)]) -> Vec<&str> {
        tensors.iter().map(|(key, _)| key.as_str()).collect()
    }

    #[test]
    fn one_prefix_of_any_name_is_taken_off() {
        for prefix in ["my_model.", "model.detector.", "a.b.c."] {
            let keys = ["backbone.x", "model.fpn.y", "head.z"].map(|key| format!("{prefix}{key}"));
            let keys: Vec<&str> = keys.iter().map(String::as_str).chain(["n_averaged"]).collect();
            let mut tensors = named(&keys);
            assert_eq!(take_off(&mut tensors), Prefix::TakenOff(prefix.to_owned()));
            assert_eq!(names(&tensors), ["backbone.x", "model.fpn.y", "head.z", "n_averaged"]);
        }
    }

    #[test]
    fn known_wrappers_and_other_networks_are_left_alone() {
        for keys in [&["module.model.fpn.a", "net.head.b"][..], &["layer1.conv.weight"], &[]] {
            let mut tensors = named(keys);
            assert_eq!(take_off(&mut tensors), Prefix::Known);
            assert_eq!(names(&tensors), keys);
        }
    }

    #[test]
    fn of_several_networks_one_is_named() {
        let keys = ["teacher.fpn.a", "student.fpn.a", "student.head.b", "student_loss.w"];
        let mut tensors = named(&keys);
        let found = take_off(&mut tensors);
        let error = found.ensure_one().unwrap_err().to_string();
        for part in ["student. (2 tensors)", "teacher. (1 tensors)", "--strip-prefix"] {
            assert!(error.contains(part), "{error}");
        }
        let others = take_off_named(&mut tensors, "student").unwrap();
        assert_eq!(names(&tensors), ["fpn.a", "head.b"]);
        assert_eq!(others, ["teacher.fpn.a", "student_loss.w"]);
        let error = take_off_named(&mut named(&keys), "net.").unwrap_err().to_string();
        assert!(error.contains("no key begins with it, for example teacher.fpn.a"), "{error}");
    }
}
