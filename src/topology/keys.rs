//! Keys of published state dicts, of any family: the one table of renames.
//!
//! What a family calls its modules is in its `FamilyKeys`, which `FAMILIES` lists.

use super::family::FamilyKeys;
use super::{caspacenet, wdr};

/// The keys of every family.
static FAMILIES: [&FamilyKeys; 2] = [&wdr::KEYS, &caspacenet::KEYS];

/// What programs put before the keys of the network they wrap, with the wrapper's name.
pub const WRAPPERS: [(&str, &str); 3] = [
    ("module.", "DataParallel"),
    ("model.", "the quantization wrapper"),
    ("_orig_mod.", "torch.compile"),
];

/// What the published INQ layers keep beside a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InqExtra {
    /// `weight_frozen`: the values that are quantized, NaN where a weight is not frozen yet; shape of the weight.
    Frozen,
    /// `weight_s`: the scale that was found, 1 where the stored weights were divided by it; shape `[1]`.
    Scale,
}

/// The key without the wrappers before it: `module.model.fpn.out_convs.2.bias` is `fpn.out_convs.2.bias`.
pub fn bare(key: &str) -> &str {
    let mut rest = key;
    while let Some((prefix, _)) = WRAPPERS.iter().find(|(prefix, _)| rest.starts_with(prefix)) {
        rest = &rest[prefix.len()..];
    }
    rest
}

/// What stands before the bare key: `module.model.`, or nothing.
pub fn wrapping(key: &str) -> &str {
    &key[..key.len() - bare(key).len()]
}

/// What stands before the keys in the network where a file holds a module alone: `backbone.` for a ResNet of
/// torchvision (ImageNet weights). `None` for any other file.
pub fn module_alone<'a>(keys: impl Iterator<Item = &'a str>) -> Option<&'static str> {
    let keys: Vec<&str> = keys.collect();
    FAMILIES.iter().find_map(|family| (family.module_alone)(&keys))
}

/// The module that a bare key belongs to; `None` for keys of another network.
pub fn root(bare: &str) -> Option<&'static str> {
    let first = bare.split('.').next()?;
    roots().find(|root| *root == first)
}

fn roots() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().flat_map(|family| family.roots.iter().copied())
}

/// What stands before the network's part of a key under a name of someone's own: `student.` of
/// `student.model.fpn.a`; `None` where the bare key is the network's already, or of another network. Known wrappers
/// right before the network's part are none of it.
pub fn foreign_prefix(key: &str) -> Option<&str> {
    let mut begin = 0;
    for part in key.split_inclusive('.') {
        if part.ends_with('.') && roots().any(|root| root == part.trim_end_matches('.')) {
            break;
        }
        begin += part.len();
    }
    let mut prefix = key.get(..begin).filter(|prefix| prefix.len() < key.len())?;
    while let Some((wrapper, _)) = WRAPPERS.iter().find(|(wrapper, _)| {
        prefix.strip_suffix(wrapper).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }) {
        prefix = &prefix[..prefix.len() - wrapper.len()];
    }
    (!prefix.is_empty()).then_some(prefix)
}

/// The key of the weight that an extra of an INQ layer belongs to.
pub fn inq_extra(bare: &str) -> Option<(String, InqExtra)> {
    let (layer, leaf) = bare.rsplit_once('.')?;
    let extra = match leaf {
        "weight_frozen" => InqExtra::Frozen,
        "weight_s" => InqExtra::Scale,
        _ => return None,
    };
    Some((format!("{layer}.weight"), extra))
}

/// Whether a tensor is learnt: no running statistic, counter or anchor.
pub fn is_parameter(bare: &str) -> bool {
    let leaf = bare.rsplit('.').next().unwrap_or(bare);
    !matches!(leaf, "running_mean" | "running_var" | "num_batches_tracked")
        && follows_from(bare).is_none()
}

/// The settings that a tensor follows from: it is compared with the config's, not taken. `None` for all others.
pub fn follows_from(bare: &str) -> Option<&'static str> {
    let root = root(bare)?;
    let mut all = FAMILIES.iter().flat_map(|family| family.derived);
    all.find(|(module, _)| *module == root).map(|(_, settings)| *settings)
}

/// Last parts of the names of counters that programs register beside the weights: of averages of weights
/// (`torch.optim.swa_utils`, `torch_ema`, `timm`) and of profilers (`thop`, `fvcore`).
const COUNTERS: [&str; 9] = [
    "n_averaged",
    "num_averaged",
    "num_updates",
    "total_ops",
    "total_params",
    "total_flops",
    "total_macs",
    "__flops__",
    "__params__",
];

/// Why the network's outputs do not depend on a tensor; `None` if they do.
pub fn harmless(bare: &str) -> Option<&'static str> {
    let leaf = bare.rsplit('.').next().unwrap_or(bare);
    if COUNTERS.contains(&leaf) {
        Some("a counter that other programs keep beside the weights, which nothing reads")
    } else if bare.ends_with(".num_batches_tracked") {
        Some("counts batches, which nothing reads; files from before PyTorch 0.4.1 have none")
    } else {
        let mut all = FAMILIES.iter().flat_map(|family| family.harmless);
        all.find(|(begin, _)| bare.starts_with(begin)).map(|(_, why)| *why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_the_table_renames() {
        for (prefix, _) in WRAPPERS {
            let key = format!("{prefix}fpn.inner_convs.2.weight");
            assert_eq!(bare(&key), "fpn.inner_convs.2.weight");
            assert_eq!(wrapping(&key), prefix);
        }
        assert_eq!(bare("module.model.head.scales.0.scale"), "head.scales.0.scale");
        assert_eq!(wrapping("module.model.backbone.x"), "module.model.");
        assert_eq!((bare("modules.fpn.a"), wrapping("fpn.a")), ("modules.fpn.a", ""));
    }

    #[test]
    fn prefixes_of_any_name_are_told_from_the_network() {
        for (key, prefix) in [
            ("net.backbone.features.x", Some("net.")),
            ("model.pose.fpn.a.bias", Some("model.pose.")),
            ("pose.module.model.head.a", Some("pose.")),
            ("supermodel.fpn.a", Some("supermodel.")),
            ("model.fpn.a", None),
            ("fpn.head.a", None),
            ("net.conv.weight", None),
            ("net.fpn", None),
            ("n_averaged", None),
        ] {
            assert_eq!(foreign_prefix(key), prefix, "{key}");
        }
    }

    #[test]
    fn modules_are_whole_components() {
        assert_eq!(root("head.cls_logits.bias"), Some("head"));
        assert_eq!(root("head2.cls_logits.bias"), None);
        assert_eq!(root("backbone"), Some("backbone"));
    }

    #[test]
    fn a_resnet_of_torchvision_is_a_backbone() {
        let keys = ["conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight", "fc.bias"];
        assert_eq!(module_alone(keys.into_iter()), Some("backbone."));
        assert_eq!(module_alone(keys[..2].iter().copied()), None);
        assert_eq!(module_alone(keys.into_iter().chain(["head.x.weight"])), None);
    }

    #[test]
    fn extras_name_their_weight() {
        let frozen = inq_extra("fpn.out_convs.2.weight_frozen").unwrap();
        assert_eq!(frozen, ("fpn.out_convs.2.weight".to_owned(), InqExtra::Frozen));
        let scale = inq_extra("fpn.out_convs.2.weight_s").unwrap();
        assert_eq!(scale, ("fpn.out_convs.2.weight".to_owned(), InqExtra::Scale));
        assert!(inq_extra("fpn.out_convs.2.weight").is_none());
    }

    #[test]
    fn what_no_output_depends_on_is_known() {
        for key in [
            "backbone.features.init_block.bn.num_batches_tracked",
            "backbone.output.weight",
            "backbone.fc.bias",
            "anchor_generator.cell_anchors.0",
            "n_averaged",
            "head.cls_tower.0.total_ops",
        ] {
            assert!(harmless(key).is_some(), "{key}");
        }
        assert!(harmless("backbone.features.init_block.bn.running_mean").is_none());
        assert!(is_parameter("fpn.inner_convs.2.bias") && !is_parameter("a.bn.running_var"));
    }
}
