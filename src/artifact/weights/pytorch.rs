//! Which part of a PyTorch file is the network.

use std::path::Path;

use anyhow::{Result, bail};
use tch::Tensor;

use super::report::OtherMember;
use super::state::StateDict;
use crate::io::pth::{self, Value};
use crate::topology::keys;

/// Names that programs give the network's part, those preferred first: the published quantization code, the published
/// training code, and common habits.
const MEMBERS: [&str; 7] =
    ["network", "model", "state_dict", "model_state_dict", "net", "model_ema", "ema"];
/// How deep parts are looked for.
const MAX_DEPTH: usize = 3;
/// Longest text value that is repeated.
const SHOWN_CHARS: usize = 60;

/// Reads a PyTorch file and picks the state dict of the network: the file itself, or the part that holds its tensors.
///
/// # Errors
/// If the file cannot be read, or has no dict of tensors.
pub(super) fn read(path: &Path) -> Result<StateDict<'_>> {
    let file = pth::read(path)?;
    let mut state = StateDict::of(path);
    let Some(member) = find(&file.value) else {
        let Some(parts) = file.value.as_dict() else {
            bail!(
                "{}: it holds {}, expected a state dict{}",
                path.display(),
                describe(&file.value),
                advice([&file.value])
            );
        };
        let listed: Vec<String> = parts
            .iter()
            .map(|(key, value)| format!("{} ({})", name(key), describe(value)))
            .collect();
        bail!(
            "{}: none of its parts is a state dict: {}{}",
            path.display(),
            listed.join(", "),
            advice(parts.iter().map(|(_, value)| value))
        );
    };
    let mut at = &file.value;
    for part in &member {
        for (key, value) in at.as_dict().unwrap_or_default() {
            if name(key) != *part {
                state.other_members.push(OtherMember { name: name(key), what: describe(value) });
            }
        }
        at = at.get(part).unwrap_or(at);
    }
    for (key, value) in at.as_dict().unwrap_or_default() {
        match value.as_tensor() {
            Some(tensor) => state.tensors.push((name(key), tensor.shallow_clone())),
            None => {
                state.other_members.push(OtherMember { name: name(key), what: describe(value) });
            }
        }
    }
    state.member = (!member.is_empty()).then(|| member.join("."));
    Ok(state)
}

/// What to do where the network was saved as an object, with its class.
fn advice<'a>(values: impl IntoIterator<Item = &'a Value>) -> &'static str {
    if values.into_iter().any(|value| matches!(value, Value::Opaque(_))) {
        " (nothing was executed; a network that was saved as an object needs its class: if you trust the file, save its \
         weights alone in Python, torch.save(model.state_dict(), \"weights.pth\"))"
    } else {
        ""
    }
}

/// The path of the network's part: empty for the whole file. Parts with keys of the network come before other dicts
/// of tensors, then go by [`MEMBERS`], then by their order.
fn find(value: &Value) -> Option<Vec<String>> {
    let mut found = Vec::new();
    collect(value, &mut Vec::new(), &mut found);
    let rank = |path: &[String]| {
        let last = path.last().map(String::as_str);
        MEMBERS.iter().position(|m| Some(*m) == last).unwrap_or(MEMBERS.len())
    };
    found
        .into_iter()
        .min_by_key(|(path, known)| {
            (std::cmp::Reverse(*known), path.len().min(1) * (1 + rank(path)))
        })
        .map(|(path, _)| path)
}

/// How well keys are known: as of no network, of this one under a prefix of any name, or of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Known {
    Foreign,
    Prefixed,
    Own,
}

impl Known {
    fn of(key: &Value) -> Self {
        match key.as_str() {
            Some(key) if keys::root(keys::bare(key)).is_some() => Self::Own,
            Some(key) if keys::foreign_prefix(key).is_some() => Self::Prefixed,
            _ => Self::Foreign,
        }
    }
}

/// Dicts that hold tensors, with how well the best of their keys is known.
fn collect(value: &Value, path: &mut Vec<String>, found: &mut Vec<(Vec<String>, Known)>) {
    let Some(items) = value.as_dict() else { return };
    let tensors = items.iter().filter(|(_, v)| v.as_tensor().is_some());
    let (num, known) = tensors
        .fold((0, Known::Foreign), |(n, known), (key, _)| (n + 1, known.max(Known::of(key))));
    if num > 0 {
        found.push((path.clone(), known));
    }
    if path.len() == MAX_DEPTH {
        return;
    }
    for (key, value) in items {
        if let Some(key) = key.as_str() {
            path.push(key.to_owned());
            collect(value, path, found);
            path.pop();
        }
    }
}

fn name(key: &Value) -> String {
    match key {
        Value::Str(text) => text.clone(),
        other => describe(other),
    }
}

/// A value's type, with the value where it is short.
fn describe(value: &Value) -> String {
    match value {
        Value::None => "None".to_owned(),
        Value::Bool(v) => format!("{v}"),
        Value::Int(v) => format!("{v}"),
        Value::Float(v) => format!("{v}"),
        Value::Str(v) | Value::Name(v) if v.chars().count() <= SHOWN_CHARS => format!("{v:?}"),
        Value::Dict(items) => format!("a dict of {}", items.len()),
        Value::List(items) => format!("a list of {}", items.len()),
        Value::Tuple(items) => format!("a tuple of {}", items.len()),
        Value::Tensor(t) => describe_tensor(t),
        Value::Opaque(name) => format!("an object that was not read, {name}"),
        other => other.type_name().to_owned(),
    }
}

fn describe_tensor(t: &Tensor) -> String {
    if t.numel() == 1 {
        return format!("a tensor, {}", t.reshape([-1]).double_value(&[0]));
    }
    format!("a tensor, {} {:?}", super::dtype(t.kind()), t.size())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dict(items: Vec<(&str, Value)>) -> Value {
        Value::Dict(items.into_iter().map(|(k, v)| (Value::Str(k.to_owned()), v)).collect())
    }

    fn weights(key: &str) -> Value {
        dict(vec![(key, Value::Tensor(Tensor::from(1.0f32)))])
    }

    fn found(value: &Value) -> Option<String> {
        find(value).map(|path| path.join("."))
    }

    #[test]
    fn the_published_forms_are_found() {
        let key = "module.fpn.inner_convs.2.bias";
        assert_eq!(found(&weights(key)).unwrap(), "");
        let optim = || {
            dict(vec![(
                "state",
                dict(vec![("momentum_buffer", Value::Tensor(Tensor::from(0.0f32)))]),
            )])
        };
        let wdr = dict(vec![("steps", Value::Int(5)), ("optim", optim()), ("model", weights(key))]);
        assert_eq!(found(&wdr).unwrap(), "model");
        let mqat = dict(vec![
            ("fold", dict(vec![("metrics", weights("train_loss"))])),
            ("network", weights("model.fpn.inner_convs.2.bias")),
            ("training", dict(vec![("optimizer", optim())])),
        ]);
        assert_eq!(found(&mqat).unwrap(), "network");
        let common = dict(vec![("epoch", Value::Int(1)), ("state_dict", weights(key))]);
        assert_eq!(found(&common).unwrap(), "state_dict");
        let deep = dict(vec![("checkpoint", dict(vec![("any_name", weights(key))]))]);
        assert_eq!(found(&deep).unwrap(), "checkpoint.any_name");
    }

    #[test]
    fn keys_of_the_network_come_before_names() {
        let key = "head.cls_logits.bias";
        let value = dict(vec![("model", weights("conv.weight")), ("mine", weights(key))]);
        assert_eq!(found(&value).unwrap(), "mine");
        let value = dict(vec![("model_ema", weights(key)), ("model", weights(key))]);
        assert_eq!(found(&value).unwrap(), "model");
        // Of another network: taken by its name, and refused later with its keys.
        let value = dict(vec![("other", weights("a.b")), ("network", weights("conv.weight"))]);
        assert_eq!(found(&value).unwrap(), "network");
        assert!(found(&dict(vec![("steps", Value::Int(5))])).is_none());
        assert!(found(&Value::List(vec![])).is_none());
    }

    #[test]
    fn parts_are_described_shortly() {
        assert_eq!(describe(&Value::Int(1239)), "1239");
        assert_eq!(describe(&Value::Str("a".repeat(61))), "a text");
        assert_eq!(describe(&Value::Tensor(Tensor::from(2.5f32))), "a tensor, 2.5");
        assert_eq!(describe(&weights("a")), "a dict of 1");
        let t = Tensor::zeros([2, 3], (tch::Kind::Half, tch::Device::Cpu));
        assert_eq!(describe(&Value::Tensor(t)), "a tensor, float16 [2, 3]");
    }
}
