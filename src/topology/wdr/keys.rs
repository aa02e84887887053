//! What the network calls its modules, and what published files hold besides.

use crate::topology::family::FamilyKeys;

/// The backbone.
pub(in crate::topology) const BACKBONE: &str = "backbone";
/// The feature pyramid.
pub(in crate::topology) const FPN: &str = "fpn";
/// The head.
pub(in crate::topology) const HEAD: &str = "head";
/// The anchors that published checkpoints hold.
pub(in crate::topology) const ANCHORS: &str = "anchor_generator";

/// The keys of the family; the network is built with the same names.
pub(crate) const KEYS: FamilyKeys = FamilyKeys {
    roots: &[BACKBONE, FPN, HEAD, ANCHORS],
    derived: &[(ANCHORS, "network.params.anchor_sizes and finest_level")],
    harmless: &[
        ("backbone.output.", CLASSIFIER),
        ("backbone.fc.", CLASSIFIER),
        ("anchor_generator.", "anchors follow from the config"),
    ],
    module_alone,
};

const CLASSIFIER: &str = "the backbone's classifier, which the network does not use";

/// A ResNet of torchvision (ImageNet weights) is the backbone alone.
fn module_alone(keys: &[&str]) -> Option<&'static str> {
    let is_resnet = |key: &&str| {
        let first = key.split('.').next().unwrap_or_default();
        matches!(first, "conv1" | "bn1" | "layer1" | "layer2" | "layer3" | "layer4" | "fc")
    };
    (keys.contains(&"layer1.0.conv1.weight") && keys.iter().all(is_resnet)).then_some("backbone.")
}
