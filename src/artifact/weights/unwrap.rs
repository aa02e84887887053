//! From the keys of wrapped networks to those of the bare one: prefixes, doubled tensors, INQ layers.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor};

use super::report::Unmatched;
use crate::artifact::kind::Strictness;
use crate::topology::keys::{self, InqExtra, WRAPPERS};

/// A state dict under bare keys.
pub(super) struct Unwrapped {
    /// Tensors in the file's order, each once; the weights of INQ layers are assembled.
    pub tensors: Vec<(String, Tensor)>,
    /// The form that the keys had.
    pub key_form: String,
    /// Tensors that were there twice.
    pub num_doubled: usize,
    /// The layers with INQ state.
    pub inq: Vec<InqLayer>,
    /// Tensors that belong to no weight.
    pub left_over: Vec<Unmatched>,
    /// What else is to be said.
    pub notes: Vec<String>,
}

/// An INQ layer of the published code.
pub(super) struct InqLayer {
    /// The layer's path.
    pub name: String,
    /// Where its weight is frozen; bool, shape of the weight.
    pub frozen: Tensor,
    /// The weight the layer computes with: frozen values, and stored ones where there is none.
    pub weight: Tensor,
    /// `weight_s`, where it is one finite, positive number.
    pub scale: Option<f32>,
}

/// Takes the wrappers off the keys, joins doubled tensors, and assembles the weights of INQ layers.
///
/// The assembled weight of an INQ layer is `weight_frozen` where that is not NaN and the stored `weight` elsewhere,
/// without the factor `weight_s`: the published layer computes with exactly that. (Its `-opt` methods divide the
/// stored weights by the scale once, and the levels are then in `[-1, 1]`.)
///
/// # Errors
/// If two tensors of one bare key differ (with [`Strictness::Loose`] the one in `model.` is taken, with which the
/// published wrapper computes), or the extras of an INQ layer do not fit its weight.
pub(super) fn unwrap(tensors: Vec<(String, Tensor)>, strictness: Strictness) -> Result<Unwrapped> {
    let mut notes = Vec::new();
    let key_form = key_form(tensors.iter().map(|(key, _)| key.as_str()));
    let (mut merged, num_doubled) = merge(tensors, strictness, &mut notes)?;
    let mut extras: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    merged.retain(|(key, tensor)| match keys::inq_extra(key) {
        None => true,
        Some((weight, extra)) => {
            let slot = &mut extras.entry(weight).or_default()[extra as usize];
            *slot = Some(tensor.shallow_clone());
            false
        }
    });
    let mut left_over = Vec::new();
    let mut inq = Vec::new();
    for (key, tensor) in &mut merged {
        let Some(pair) = extras.remove(key) else { continue };
        let layer = InqLayer::assemble(key, tensor, &pair)?;
        *tensor = layer.weight.shallow_clone();
        inq.push(layer);
    }
    for (weight, pair) in extras {
        for (leaf, tensor) in ["_frozen", "_s"].iter().zip(pair) {
            if tensor.is_some() {
                left_over.push(Unmatched {
                    name: format!("{weight}{leaf}"),
                    why: format!("the file has no {weight}"),
                    harmless: false,
                });
            }
        }
    }
    Ok(Unwrapped { tensors: merged, key_form, num_doubled, inq, left_over, notes })
}

/// The form of keys, for people: the wrappers before those that belong to the network.
pub(super) fn key_form<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    let mut forms: Vec<&str> = Vec::new();
    let mut seen: HashMap<&str, u8> = HashMap::new();
    let mut doubled = false;
    for key in keys {
        let (bare, wrapping) = (keys::bare(key), keys::wrapping(key));
        if keys::root(bare).is_none() {
            continue;
        }
        let count = seen.entry(bare).or_insert(0);
        *count = count.saturating_add(1);
        doubled |= *count > 1;
        if !forms.contains(&wrapping) {
            forms.push(wrapping);
        }
    }
    forms.sort_by_key(|form| form.len());
    let name = |form: &str| match form {
        "" => "bare".to_owned(),
        form => {
            let wrappers: Vec<&str> = (WRAPPERS.iter())
                .filter(|(prefix, _)| form.split_inclusive('.').any(|part| part == *prefix))
                .map(|(_, name)| *name)
                .collect();
            format!("{form} ({})", wrappers.join(" in "))
        }
    };
    let named: Vec<String> = forms.into_iter().map(name).collect();
    let text = named.join(" and ");
    if doubled { format!("{text}, doubled") } else { text }
}

/// Tensors by bare key, in the file's order, each once; and how many there were twice.
fn merge(
    tensors: Vec<(String, Tensor)>,
    strictness: Strictness,
    notes: &mut Vec<String>,
) -> Result<(Vec<(String, Tensor)>, usize)> {
    let mut merged: Vec<(String, Tensor)> = Vec::with_capacity(tensors.len());
    let mut places: HashMap<String, (usize, String)> = HashMap::with_capacity(tensors.len());
    let mut num_doubled = 0;
    for (key, tensor) in tensors {
        let bare = keys::bare(&key).to_owned();
        let Some((at, former)) = places.get(&bare) else {
            places.insert(bare.clone(), (merged.len(), key));
            merged.push((bare, tensor));
            continue;
        };
        num_doubled += 1;
        let Some(how) = first_difference(&merged[*at].1, &tensor)? else { continue };
        let both = format!(
            "{former} and {key} are one tensor in the network and differ in the file: {how}"
        );
        if strictness == Strictness::Strict {
            bail!(
                "{both}; pass --loose to take the one of model.*, with which the published code computes"
            );
        }
        let inner = |key: &str| keys::wrapping(key).ends_with("model.");
        if inner(&key) && !inner(former) {
            merged[*at].1 = tensor;
        }
        notes.push(format!("{both}; the one of model.* is taken"));
    }
    Ok((merged, num_doubled))
}

/// Where two tensors first differ in their bits; `None` if nowhere.
pub(super) fn first_difference(a: &Tensor, b: &Tensor) -> Result<Option<String>> {
    if (a.size(), a.kind()) != (b.size(), b.kind()) {
        return Ok(Some(format!(
            "{:?} {:?} and {:?} {:?}",
            a.kind(),
            a.size(),
            b.kind(),
            b.size()
        )));
    }
    if a.data_ptr() == b.data_ptr() && a.stride() == b.stride() {
        return Ok(None);
    }
    let bytes = |t: &Tensor| t.detach().reshape([-1]).contiguous().view_dtype(Kind::Uint8);
    let (x, y) = (bytes(a), bytes(b));
    if x.equal(&y) {
        return Ok(None);
    }
    let byte = x.ne_tensor(&y).nonzero().int64_value(&[0, 0]);
    let index = byte / a.kind().elt_size_in_bytes() as i64;
    let value = |t: &Tensor| t.detach().reshape([-1]).double_value(&[index]);
    Ok(Some(format!("{} and {} at index {index}", value(a), value(b))))
}

/// The weight that a published INQ layer computes with: `frozen` where it is a number, else the stored `weight`.
///
/// # Errors
/// If shapes or kinds do not fit each other.
pub fn assembled_weight(weight: &Tensor, frozen: &Tensor) -> Result<Tensor> {
    tch::no_grad(|| {
        let is_frozen = frozen.isnan().logical_not();
        let frozen = frozen.f_to_kind(weight.kind())?;
        Ok(frozen.f_where_self(&is_frozen, weight)?)
    })
}

impl InqLayer {
    fn assemble(key: &str, stored: &Tensor, extras: &[Option<Tensor>; 2]) -> Result<Self> {
        let name = key.strip_suffix(".weight").unwrap_or(key).to_owned();
        let values = extras[InqExtra::Frozen as usize].as_ref();
        let values = values.with_context(|| {
            format!("{key}_s is there without {key}_frozen: which weights are frozen is not known")
        })?;
        ensure!(
            values.size() == stored.size(),
            "{key}_frozen has shape {:?}, expected that of its weight, {:?}",
            values.size(),
            stored.size()
        );
        ensure!(
            values.is_floating_point() && stored.is_floating_point(),
            "{key} and {key}_frozen are {:?} and {:?}, expected floating point",
            stored.kind(),
            values.kind()
        );
        let scale = match &extras[InqExtra::Scale as usize] {
            Some(s) if s.numel() == 1 => Some(s.reshape([-1]).double_value(&[0]) as f32),
            _ => None,
        };
        let weight =
            assembled_weight(stored, values).with_context(|| format!("assembling {key}"))?;
        Ok(Self {
            name,
            frozen: values.isnan().logical_not(),
            weight,
            scale: scale.filter(|s| s.is_finite() && *s > 0.0),
        })
    }

    /// Fraction of the weight that is frozen, 0 to 1.
    pub fn frozen_fraction(&self) -> f64 {
        let frozen = self.frozen.sum(Kind::Int64).int64_value(&[]);
        if self.frozen.numel() == 0 { 0.0 } else { frozen as f64 / self.frozen.numel() as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn named(list: &[(&str, &[f32])]) -> Vec<(String, Tensor)> {
        list.iter().map(|(name, values)| ((*name).to_owned(), floats(values))).collect()
    }

    fn values(t: &Tensor) -> Vec<f32> {
        Vec::try_from(t).unwrap()
    }

    #[test]
    fn a_wrapper_with_a_doubled_backbone_becomes_bare() {
        let nan = f32::NAN;
        let file = named(&[
            ("backbone.a.weight", &[1.0, nan]),
            ("model.backbone.a.weight", &[1.0, nan]),
            ("model.fpn.b.bias", &[3.0]),
        ]);
        let u = unwrap(file, Strictness::Strict).unwrap();
        let names: Vec<&str> = u.tensors.iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!((names, u.num_doubled), (vec!["backbone.a.weight", "fpn.b.bias"], 1));
        assert_eq!(u.key_form, "bare and model. (the quantization wrapper), doubled");
    }

    #[test]
    fn doubles_that_differ_are_named_with_the_first_difference() {
        let file = || {
            named(&[
                ("module.model.backbone.a.weight", &[1.0, 2.5, 7.0]),
                ("module.backbone.a.weight", &[1.0, 2.0, 3.0]),
            ])
        };
        let error = unwrap(file(), Strictness::Strict).map(|_| ()).unwrap_err().to_string();
        for part in ["module.backbone.a.weight", "2.5 and 2 at index 1", "--loose"] {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
        for reversed in [false, true] {
            let mut file = file();
            if reversed {
                file.reverse();
            }
            let u = unwrap(file, Strictness::Loose).unwrap();
            assert_eq!(values(&u.tensors[0].1), [1.0, 2.5, 7.0], "reversed: {reversed}");
            assert_eq!(u.notes.len(), 1);
        }
        // -0 and 0 are equal numbers and different bits.
        let file = named(&[("fpn.a", &[0.0]), ("model.fpn.a", &[-0.0])]);
        assert!(unwrap(file, Strictness::Strict).is_err());
    }

    #[test]
    fn the_weight_of_an_inq_layer_is_frozen_where_that_is_a_number_and_never_rescaled() {
        let nan = f32::NAN;
        let file = named(&[
            ("model.fpn.a.weight", &[0.9, -0.2, 0.3]),
            ("model.fpn.a.weight_frozen", &[1.0, nan, nan]),
            ("model.fpn.a.weight_s", &[0.5]),
        ]);
        let u = unwrap(file, Strictness::Strict).unwrap();
        assert_eq!(values(&u.tensors[0].1), [1.0, -0.2, 0.3]);
        assert_eq!((u.tensors.len(), u.inq.len()), (1, 1));
        assert_eq!((u.inq[0].name.as_str(), u.inq[0].scale), ("fpn.a", Some(0.5)));
        assert!((u.inq[0].frozen_fraction() - 1.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn extras_that_fit_no_weight_are_told() {
        let file = named(&[("fpn.a.weight_frozen", &[1.0]), ("fpn.a.weight_s", &[1.0])]);
        let u = unwrap(file, Strictness::Strict).unwrap();
        assert_eq!(u.left_over.len(), 2);
        let file = named(&[("fpn.a.weight", &[1.0]), ("fpn.a.weight_s", &[1.0])]);
        let error = unwrap(file, Strictness::Strict).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("fpn.a.weight_s is there without"), "{error}");
        let file = named(&[("fpn.a.weight", &[1.0]), ("fpn.a.weight_frozen", &[1.0, 2.0])]);
        let error = unwrap(file, Strictness::Strict).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("shape [2], expected that of its weight, [1]"), "{error}");
    }
}
