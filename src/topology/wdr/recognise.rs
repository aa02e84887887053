//! Which network tensors are of, by their keys and shapes, and what to change where it is another one.

use std::collections::{HashMap, HashSet};

use serde::Serialize;
use tch::Tensor;

use super::config::{Backbone, NetworkConfig};
use super::keys::KEYS;
use crate::topology::keys;

/// Shapes by bare key.
pub type Sizes<'a> = HashMap<&'a str, Vec<i64>>;

/// Object classes of the network that the tensors are of, if both prediction layers agree on them.
pub fn num_classes_of(sizes: &Sizes) -> Option<i64> {
    let channels = |name: &str| sizes.get(name).and_then(|s| s.first()).copied();
    let classes = channels("head.cls_logits.weight")?;
    (channels("head.pose_pred.weight")? == 16 * classes).then_some(classes)
}

/// The topology of that shape, if it is one with a name.
pub fn topology_of(shape: &NetworkConfig) -> Option<&'static str> {
    let is_it = |name: &&str| NetworkConfig::preset(name).is_some_and(|p| same_widths(&p, shape));
    ["Widedepth", "WidedepthTiny"].into_iter().find(is_it)
}

/// The shape of the network that the tensors are of, as far as they tell it; the rest is that of `base`.
pub fn shape_of(sizes: &Sizes, base: &NetworkConfig) -> Option<NetworkConfig> {
    let out = |name: &str| sizes.get(name).and_then(|s| s.first()).copied();
    let mut config = darknet_of(sizes, base).or_else(|| resnet_of(sizes, base))?;
    let is_inner = |name: &&&str| name.starts_with("fpn.inner_convs.") && name.ends_with(".weight");
    if let Some(width) = sizes.keys().find(is_inner).and_then(|name| out(name)) {
        config.fpn_channels = width;
    }
    let is_tower = |name: &&&str| {
        name.starts_with("head.cls_tower.") && name.ends_with(".weight") && sizes[**name].len() == 4
    };
    config.head_convs = sizes.keys().filter(is_tower).count() as i64;
    config.head_channels = out("head.cls_tower.0.weight").unwrap_or(config.head_channels);
    config.anchor_sizes =
        anchors_of(num_children(sizes, "head.scales.") as usize, config.anchor_sizes);
    Some(config)
}

/// Anchor sizes, px, for that many levels: `base`'s, shortened, or doubled onward; `base` itself for a file without a head.
fn anchors_of(num_levels: usize, base: Vec<f64>) -> Vec<f64> {
    let Some(&finest) = base.first().filter(|_| num_levels > 0) else { return base };
    let size = |level| base.get(level).copied().unwrap_or(finest * 2f64.powi(level as i32));
    (0..num_levels).map(size).collect()
}

/// The config with the Darknet that the tensors are of.
fn darknet_of(sizes: &Sizes, base: &NetworkConfig) -> Option<NetworkConfig> {
    let out = |name: &str| sizes.get(name).and_then(|s| s.first()).copied();
    let mut config = NetworkConfig {
        backbone: Backbone::Darknet53,
        resnet_width: NetworkConfig::default().resnet_width,
        stem_channels: out("backbone.features.init_block.conv.weight")?,
        ..base.clone()
    };
    for stage in 0..config.stage_channels.len() {
        let prefix = format!("backbone.features.stage{}.", stage + 1);
        config.stage_units[stage] = num_children(sizes, &prefix);
        config.stage_channels[stage] =
            out(&format!("{prefix}unit1.conv.weight")).unwrap_or(config.stage_channels[stage]);
    }
    Some(config)
}

/// The config with the ResNet that the tensors are of.
fn resnet_of(sizes: &Sizes, base: &NetworkConfig) -> Option<NetworkConfig> {
    let resnet_width = *sizes.get("backbone.conv1.weight")?.first()?;
    let blocks = num_children(sizes, "backbone.layer3.");
    let backbone = match blocks {
        2 => Backbone::Resnet18,
        _ if sizes.contains_key("backbone.layer1.0.conv3.weight") => Backbone::Resnet50,
        6 => Backbone::Resnet34,
        _ => return None,
    };
    // What only Darknet reads is the base's, if that is a ResNet too.
    let darknet = match base.backbone {
        Backbone::Darknet53 => NetworkConfig::default(),
        _ => base.clone(),
    };
    Some(NetworkConfig {
        backbone,
        resnet_width,
        stem_channels: darknet.stem_channels,
        stage_channels: darknet.stage_channels,
        stage_units: darknet.stage_units,
        ..base.clone()
    })
}

/// How many different components follow a prefix.
fn num_children(sizes: &Sizes, prefix: &str) -> i64 {
    let rest = sizes.keys().filter_map(|name| name.strip_prefix(prefix)?.split('.').next());
    rest.collect::<HashSet<&str>>().len() as i64
}

fn same_widths(a: &NetworkConfig, b: &NetworkConfig) -> bool {
    (
        a.backbone,
        a.stem_channels,
        a.stage_channels,
        a.stage_units,
        a.fpn_channels,
        a.head_channels,
        a.head_convs,
        a.anchor_sizes.len(),
    ) == (
        b.backbone,
        b.stem_channels,
        b.stage_channels,
        b.stage_units,
        b.fpn_channels,
        b.head_channels,
        b.head_convs,
        b.anchor_sizes.len(),
    )
}

/// What to change for the tensors to fit, where that can be told from them; ends with `": "` or is empty. `mismatched` are
/// those of another shape than the network's.
pub(super) fn advise(
    ours: &NetworkConfig,
    num_classes: i64,
    tensors: &[(String, Tensor)],
    mismatched: &[&str],
) -> String {
    let sizes = sizes_of(tensors);
    // With modules of another family, this family's part of it says little.
    let is_foreign = |name: &&str| keys::root(name).is_some_and(|root| !KEYS.roots.contains(&root));
    match shape_of(&sizes, ours).filter(|_| !sizes.keys().any(is_foreign)) {
        Some(theirs) if theirs != *ours => {
            advise_shape(ours, &theirs, topology_of(&theirs))
                + &advise_classes(&sizes, num_classes, mismatched)
        }
        Some(_) => advise_classes(&sizes, num_classes, mismatched),
        None => String::new(),
    }
}

/// Shapes by name.
pub(in crate::topology) fn sizes_of(tensors: &[(String, Tensor)]) -> Sizes<'_> {
    tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect()
}

/// What to set in a config of shape `ours` for tensors of shape `theirs`, which may be that of a named topology.
pub(in crate::topology) fn advise_shape<T: Serialize>(
    ours: &T,
    theirs: &T,
    topology: Option<&str>,
) -> String {
    if let Some(topology) = topology {
        return format!(
            "it is of topology {topology}, and the config's network is another: name it with --topology {topology}, or keep the \
             config and take what fits with --loose: "
        );
    }
    let difference = differences(ours, theirs);
    format!("it is another topology; for its own set network.params.{difference}: ")
}

/// `stem_channels=16, network.params.fpn_channels=64`: what of `theirs` is not as in `ours`.
fn differences<T: Serialize>(ours: &T, theirs: &T) -> String {
    let value = |config: &T| serde_json::to_value(config).unwrap_or_default();
    let (ours, theirs) = (value(ours), value(theirs));
    let empty = serde_json::Map::new();
    let all = theirs.as_object().unwrap_or(&empty).iter();
    let parts: Vec<String> = all
        .filter(|(key, value)| ours.get(key.as_str()) != Some(value))
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    parts.join(", network.params.")
}

/// What to set for a head that knows another number of classes than the network's `num_classes`.
pub(in crate::topology) fn advise_classes(
    sizes: &Sizes,
    num_classes: i64,
    mismatched: &[&str],
) -> String {
    let bad = mismatched.iter().any(|name| name.starts_with("head."));
    match num_classes_of(sizes) {
        Some(found) if bad && found != num_classes => format!(
            "head.cls_logits.weight knows {found} object class(es), and the config has {}: set data.N_CLASS to {} \
             (classes and the background) with its MESH_DIAMETERS to use these, or fine-tune to your own classes with \
             `mqat train --loose`, which keeps all layers but those that predict classes: ",
            num_classes,
            found + 1
        ),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Network;
    use crate::topology::wdr::PoseNet;
    use tch::Device;

    #[test]
    fn the_levels_of_a_file_are_told_by_its_heads_scales() {
        let told = |anchors: Vec<f64>| {
            let config = NetworkConfig { anchor_sizes: anchors, ..NetworkConfig::widedepth_tiny() };
            let net = PoseNet::blank(&config, 2, Device::Cpu).unwrap();
            let tensors = net.state();
            let sizes = tensors.iter().map(|(name, t)| (name.as_str(), t.size())).collect();
            shape_of(&sizes, &NetworkConfig::widedepth_tiny()).unwrap()
        };
        assert_eq!(topology_of(&told(vec![32.0, 64.0, 128.0])), Some("WidedepthTiny"));
        let five = told(vec![32.0, 64.0, 128.0, 256.0, 512.0]);
        assert_eq!(five.anchor_sizes, [32.0, 64.0, 128.0, 256.0, 512.0]);
        assert_eq!(topology_of(&five), None, "the preset has three");
    }
}
