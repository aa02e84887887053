//! Tensors into a network: what matches, what does not and why, and the error that says what to change.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use tch::{Kind, Tensor};

use super::report::{Conversion, LoadReport, Unmatched, first_few};
use crate::artifact::kind::Strictness;
use crate::nn::{Network, Var};
use crate::topology::{Topology, keys};

/// How far an anchor of the file may be off the config's, as a fraction of its size: half-precision files round them.
const ANCHOR_TOLERANCE: f64 = 0.01;

/// Copies tensors (under bare keys) into the network and fills the report. Nothing is copied when it fails.
///
/// Floating-point tensors of any width become f32, integers int64. Anchors are compared with the config's, not taken.
///
/// # Errors
/// With [`Strictness::Strict`] if a tensor that an output depends on is missing, left over or of another shape; always
/// if nothing at all fits, or a value is not finite.
pub(super) fn assign(
    net: &dyn Network,
    tensors: &[(String, Tensor)],
    strictness: Strictness,
    report: &mut LoadReport,
) -> Result<()> {
    let by_name: HashMap<&str, &Tensor> = tensors.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let vars = net.store().vars();
    let mut copies: Vec<(&Var, Tensor)> = Vec::with_capacity(vars.len());
    let mut converted: BTreeMap<(String, String), usize> = BTreeMap::new();
    for var in &vars {
        let Some(&value) = by_name.get(var.name.as_str()) else {
            report.missing.push(missing(&var.name));
            continue;
        };
        match fit(var, value) {
            Err(why) => report.mismatched.push(Unmatched {
                harmless: keys::follows_from(&var.name).is_none()
                    && keys::harmless(&var.name).is_some(),
                name: var.name.clone(),
                why,
            }),
            Ok(fitting) => {
                if value.kind() != var.tensor.kind() {
                    let kinds = (dtype(value.kind()), dtype(var.tensor.kind()));
                    *converted.entry(kinds).or_default() += 1;
                }
                copies.push((var, fitting));
            }
        }
    }
    let known: HashSet<&str> = vars.iter().map(|v| v.name.as_str()).collect();
    let aliases: HashMap<String, String> = net.aliases().into_iter().collect();
    for (name, tensor) in tensors.iter().filter(|(name, _)| !known.contains(name.as_str())) {
        let same = aliases.get(name).map(|key| (key, by_name.get(key.as_str())));
        report.left_over.push(match same {
            Some((key, Some(value))) => alias(name, tensor, key, value),
            _ => left_over(name, tensor),
        });
    }
    let conversions = converted.into_iter();
    report.converted =
        conversions.map(|((from, to), num_tensors)| Conversion { from, to, num_tensors }).collect();
    report.num_matched = copies.len();
    judge(net, tensors, strictness, report)?;
    for (var, value) in copies {
        ensure_finite(&var.name, &value, &report.file)?;
        tch::no_grad(|| var.tensor.shallow_clone().copy_(&value));
    }
    Ok(())
}

fn missing(name: &str) -> Unmatched {
    let harmless = keys::harmless(name);
    let why = harmless.unwrap_or("the file has no such tensor").to_owned();
    Unmatched { name: name.to_owned(), why, harmless: harmless.is_some() }
}

fn left_over(name: &str, tensor: &Tensor) -> Unmatched {
    // A single number outside of every module of the network is one of the training's.
    let number = (keys::root(name).is_none() && tensor.numel() <= 1)
        .then_some("a single number beside the network, which nothing reads");
    let harmless = keys::harmless(name).or(number);
    let why = match (harmless, keys::root(name)) {
        (Some(why), _) => why.to_owned(),
        (None, Some(root)) => format!("the {root} of the network has no such tensor"),
        (None, None) => "it belongs to no module of the network".to_owned(),
    };
    Unmatched { name: name.to_owned(), why, harmless: harmless.is_some() }
}

/// A tensor that the network has under another key, which the file must hold equal.
fn alias(name: &str, tensor: &Tensor, key: &str, value: &Tensor) -> Unmatched {
    let harmless = tensor.size() == value.size() && tensor.equal(value);
    let why = if harmless { format!("is {key} once more") } else { format!("differs from {key}") };
    Unmatched { name: name.to_owned(), why, harmless }
}

/// The value as the variable's shape and kind; how it differs if it cannot be.
fn fit(var: &Var, value: &Tensor) -> Result<Tensor, String> {
    let (expected, found) = (var.tensor.size(), value.size());
    // A scalar is stored with one dimension or with none.
    let scalar = var.tensor.numel() == 1 && value.numel() == 1;
    if expected != found && !scalar {
        return Err(format!("{found:?} in the file, expected {expected:?}"));
    }
    let is_float = |t: &Tensor| t.is_floating_point();
    let fits = match var.tensor.kind() {
        Kind::Float => is_float(value),
        _ => !is_float(value) && value.kind() != Kind::Bool,
    };
    if !fits {
        return Err(format!(
            "{} in the file, expected {}",
            dtype(value.kind()),
            dtype(var.tensor.kind())
        ));
    }
    let value = tch::no_grad(|| value.detach().to_kind(var.tensor.kind()).reshape(&expected));
    if let Some(settings) = keys::follows_from(&var.name) {
        let corners = |t: &Tensor| -> Vec<f64> {
            Vec::try_from(t.to_kind(Kind::Double).reshape([-1])).unwrap_or_default()
        };
        let (ours, theirs) = (corners(&var.tensor), corners(&value));
        let size = ours.iter().fold(0.0f64, |m, c| m.max(c.abs()));
        // NaN is near nothing.
        let near = |(a, b): (&f64, &f64)| (a - b).abs() <= ANCHOR_TOLERANCE * size;
        if !ours.iter().zip(&theirs).all(near) {
            return Err(format!(
                "{theirs:?} in the file, and the config's are {ours:?}: set {settings}"
            ));
        }
        return Ok(var.tensor.copy());
    }
    Ok(value)
}

/// The name of an element type, as PyTorch has it.
pub(crate) fn dtype(kind: Kind) -> String {
    match kind {
        Kind::Double => "float64".to_owned(),
        Kind::Float => "float32".to_owned(),
        Kind::Half => "float16".to_owned(),
        Kind::Int => "int32".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    }
}

fn ensure_finite(name: &str, value: &Tensor, file: &Path) -> Result<()> {
    if !value.is_floating_point() || bool::try_from(value.isfinite().all())? {
        return Ok(());
    }
    let bad = value.isfinite().logical_not().reshape([-1]);
    let index = bad.nonzero().int64_value(&[0, 0]);
    bail!(
        "{}: {name} holds {} at index {index} ({} values that are not finite): the network cannot compute with it",
        file.display(),
        value.reshape([-1]).double_value(&[index]),
        bad.sum(Kind::Int64).int64_value(&[])
    )
}

/// Refuses what does not fit, as far as asked.
fn judge(
    net: &dyn Network,
    tensors: &[(String, Tensor)],
    strictness: Strictness,
    report: &LoadReport,
) -> Result<()> {
    let at = report.file.display();
    let (matched, all) = (report.num_matched, tensors.len());
    if strictness == Strictness::Loose {
        ensure!(
            matched > 0,
            "{at}: none of its {all} tensors fits the network{}",
            examples(net, tensors)
        );
        return Ok(());
    }
    if report.troubles().next().is_none() {
        return Ok(());
    }
    let bad: Vec<&str> = report.mismatched.iter().map(|u| u.name.as_str()).collect();
    let mut advice = net.advise(tensors, &bad);
    let known: BTreeSet<String> = net.store().vars().into_iter().map(|v| v.name).collect();
    if advice.is_empty() {
        advice = another_family(net, tensors);
    }
    if advice.is_empty() && !tensors.iter().any(|(name, _)| known.contains(name)) {
        advice = format!("its keys are not those of this network{}: ", examples(net, tensors));
    }
    let aliases: HashSet<String> = net.aliases().into_iter().map(|(alias, _)| alias).collect();
    let mut parts = Vec::new();
    for (what, list) in [
        ("missing", &report.missing),
        ("left over", &report.left_over),
        ("of another shape or kind", &report.mismatched),
    ] {
        let bad: Vec<&Unmatched> = list.iter().filter(|u| !u.harmless).collect();
        let describe = |u: &&Unmatched| match what {
            "of another shape or kind" => format!("{} ({})", u.name, u.why),
            _ if aliases.contains(&u.name) => format!("{} ({})", u.name, u.why),
            _ => u.name.clone(),
        };
        let names: Vec<String> = bad.iter().map(describe).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        if !names.is_empty() {
            parts.push(format!("{} {what}: {}", names.len(), first_few(&names, 3)));
        }
    }
    bail!("{at} does not fit the network: {advice}{}", parts.join("; "))
}

/// The advice to name the topology of tensors that are of another family than the network; empty for the same one.
fn another_family(net: &dyn Network, tensors: &[(String, Tensor)]) -> String {
    let topology = |tensors: &[(String, Tensor)]| {
        Topology::of(&tensors.iter().map(|(name, t)| (name.as_str(), t.size())).collect())
    };
    let (own, theirs) = (topology(&net.state()), topology(tensors));
    let name = theirs.as_ref().and_then(Topology::name);
    match (own, theirs, name) {
        (Some(own), Some(theirs), Some(name)) if !own.is_kin_of(&theirs) => {
            format!("it is of topology {name}: name it with --topology {name}: ")
        }
        _ => String::new(),
    }
}

/// An example of a file's keys, behind what the network's are like.
fn examples(net: &dyn Network, tensors: &[(String, Tensor)]) -> String {
    match tensors.first() {
        None => ": it has none".to_owned(),
        Some((name, tensor)) => format!(
            ", whose keys begin with {}; the file has for example {name} {:?}",
            net.store().modules().join(", "),
            tensor.size()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::caspacenet::{self, CaSpaceNet};
    use crate::topology::wdr::{NetworkConfig, PoseNet};
    use tch::Device;

    fn tiny(num_classes: i64) -> PoseNet {
        PoseNet::new(&NetworkConfig::widedepth_tiny(), num_classes, Device::Cpu, 3).unwrap()
    }

    fn copies(net: &PoseNet) -> Vec<(String, Tensor)> {
        net.state().into_iter().map(|(n, t)| (n, t.detach().copy())).collect()
    }

    fn load(
        net: &dyn Network,
        tensors: &[(String, Tensor)],
        strictness: Strictness,
    ) -> Result<LoadReport> {
        let mut report = LoadReport { file: "w.pth".into(), ..Default::default() };
        assign(net, tensors, strictness, &mut report).map(|()| report)
    }

    fn error(net: &dyn Network, tensors: &[(String, Tensor)]) -> String {
        load(net, tensors, Strictness::Strict).unwrap_err().to_string()
    }

    #[test]
    fn other_element_types_are_converted_and_told() {
        let source = tiny(1);
        let cast = |(name, t): (String, Tensor)| match t.kind() {
            Kind::Float if name.starts_with("fpn.") => (name, t.to_kind(Kind::Half)),
            Kind::Float if name.starts_with("head.") => (name, t.to_kind(Kind::Double)),
            Kind::Int64 => (name, t.to_kind(Kind::Int)),
            _ => (name, t),
        };
        let tensors: Vec<_> = copies(&source).into_iter().map(cast).collect();
        let net = PoseNet::blank(source.config(), 1, Device::Cpu).unwrap();
        let report = load(&net, &tensors, Strictness::Strict).unwrap();
        let found: Vec<_> =
            report.converted.iter().map(|c| (c.from.as_str(), c.to.as_str())).collect();
        assert_eq!(found, [("float16", "float32"), ("float64", "float32"), ("int32", "int64")]);
        let name = "head.cls_logits.weight";
        assert!(net.store.get(name).unwrap().equal(&source.store.get(name).unwrap()));
        assert!(report.missing.is_empty() && report.left_over.is_empty());
    }

    #[test]
    fn what_no_output_depends_on_may_be_missing_or_left_over() {
        let source = tiny(1);
        let mut tensors = copies(&source);
        tensors.retain(|(n, _)| {
            !n.ends_with("num_batches_tracked") && !n.starts_with("anchor_generator")
        });
        tensors.push((
            "backbone.output.weight".to_owned(),
            Tensor::zeros([10, 3], (Kind::Float, Device::Cpu)),
        ));
        let net = PoseNet::blank(source.config(), 1, Device::Cpu).unwrap();
        let report = load(&net, &tensors, Strictness::Strict).unwrap();
        assert!(report.missing.iter().chain(&report.left_over).all(|u| u.harmless));
        assert_eq!(report.left_over.len(), 1);
        assert!(report.missing.len() > 5 && report.not_loaded().is_empty());
    }

    /// The tiny network with five levels and a second pyramid.
    fn second_pyramid(shared_top: bool) -> CaSpaceNet {
        let anchor_sizes = NetworkConfig::widedepth().anchor_sizes;
        let shape = NetworkConfig { anchor_sizes, ..NetworkConfig::widedepth_tiny() };
        let shape =
            caspacenet::NetworkConfig { shared_top, ..caspacenet::NetworkConfig::of(shape) };
        CaSpaceNet::new(&shape, 1, Device::Cpu, 3).unwrap()
    }

    #[test]
    fn tensors_under_two_names_must_be_equal() {
        let (net, key) = (second_pyramid(true), "fpn_sub.top_blocks.p6.weight");
        let mut tensors = second_pyramid(true).state();
        for (alias, of) in net.aliases() {
            let (_, value) = tensors.iter().find(|(name, _)| *name == of).unwrap();
            tensors.push((alias, value.copy()));
        }
        let report = load(&net, &tensors, Strictness::Strict).unwrap();
        assert_eq!(report.left_over.len(), 4);
        assert_eq!(report.left_over[0].why, "is fpn.top_blocks.p6.weight once more");
        // The form with layers of its own takes both.
        let unshared = load(&second_pyramid(false), &tensors, Strictness::Strict).unwrap();
        assert!(unshared.left_over.is_empty() && unshared.missing.is_empty());
        let (_, value) = tensors.iter_mut().find(|(name, _)| name == key).unwrap();
        *value = &*value + 1.0;
        let text = error(&net, &tensors);
        assert!(
            text.ends_with(&format!("1 left over: {key} (differs from fpn.top_blocks.p6.weight)")),
            "{text}"
        );
    }

    #[test]
    fn another_number_of_classes_names_the_tensor_and_the_key() {
        let (net, tensors) = (tiny(1), copies(&tiny(3)));
        let text = error(&net, &tensors);
        for part in
            ["w.pth", "head.cls_logits.weight knows 3", "data.N_CLASS to 4", "[3, 64, 3, 3]"]
        {
            assert!(text.contains(part), "{part:?} is not in {text}");
        }
        let before = net.store.get("fpn.inner_convs.2.weight").unwrap().copy();
        assert!(before.equal(&net.store.get("fpn.inner_convs.2.weight").unwrap()));
        let report = load(&net, &tensors, Strictness::Loose).unwrap();
        assert_eq!(
            report.not_loaded(),
            [
                "head.cls_logits.weight",
                "head.cls_logits.bias",
                "head.pose_pred.weight",
                "head.pose_pred.bias"
            ]
        );
    }

    #[test]
    fn another_topology_is_named() {
        let config = NetworkConfig { fpn_channels: 32, ..NetworkConfig::widedepth_tiny() };
        let net = PoseNet::blank(&config, 1, Device::Cpu).unwrap();
        let text = error(&net, &copies(&tiny(1)));
        assert!(text.contains("--topology WidedepthTiny"), "{text}");
        let text = error(&tiny(1), &copies(&net));
        assert!(text.contains("set network.params.fpn_channels=32"), "{text}");
        let shape = caspacenet::NetworkConfig::preset("CaSpaceNetTiny").unwrap();
        let second = CaSpaceNet::blank(&shape, 1, Device::Cpu).unwrap();
        let text = error(&tiny(1), &second.state());
        assert!(text.contains("it is of topology CaSpaceNetTiny: name it with"), "{text}");
        let text = error(&second, &copies(&tiny(1)));
        assert!(text.contains("it has no second pyramid (fpn_sub)"), "{text}");
        let text = error(&tiny(1), &[("conv.weight".to_owned(), Tensor::from(1.0f32))]);
        assert!(text.contains("its keys are not those of this network"), "{text}");
        assert!(text.contains("conv.weight"), "{text}");
        let foreign = [("conv.weight".to_owned(), Tensor::from(1.0f32))];
        let text = load(&tiny(1), &foreign, Strictness::Loose).unwrap_err().to_string();
        assert!(text.contains("none of its 1 tensors fits"), "{text}");
    }

    #[test]
    fn anchors_of_other_sizes_are_refused() {
        let config = NetworkConfig {
            anchor_sizes: vec![16.0, 32.0, 64.0, 128.0, 256.0],
            ..NetworkConfig::widedepth_tiny()
        };
        let net = PoseNet::blank(&config, 1, Device::Cpu).unwrap();
        let text = error(&net, &copies(&tiny(1)));
        assert!(text.contains("network.params.anchor_sizes"), "{text}");
        // Rounded to 8 bits of mantissa they still are the config's.
        let net = tiny(1);
        let mut tensors = copies(&net);
        for (name, tensor) in &mut tensors {
            if name.starts_with("anchor_generator") {
                *tensor = tensor.to_kind(Kind::BFloat16);
            }
        }
        load(&net, &tensors, Strictness::Strict).unwrap();
    }

    #[test]
    fn values_that_are_not_finite_are_refused() {
        let net = tiny(1);
        let mut tensors = copies(&net);
        let (name, bias) = tensors.iter_mut().find(|(n, _)| n == "fpn.inner_convs.2.bias").unwrap();
        let _ = bias.get(5).fill_(f64::NAN);
        let name = name.clone();
        for strictness in [Strictness::Strict, Strictness::Loose] {
            let text = load(&net, &tensors, strictness).unwrap_err().to_string();
            assert!(text.contains(&name) && text.contains("NaN at index 5"), "{text}");
        }
    }
}
