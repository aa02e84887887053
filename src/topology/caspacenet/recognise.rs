//! Which network tensors are of, by their keys and shapes, and what to change where it is another one.

use tch::Tensor;

use super::config::NetworkConfig;
use super::keys::FPN_SUB;
use crate::topology::wdr::recognise::{self as wdr, Sizes};

/// The topology of that shape, if it is one with a name.
pub fn topology_of(shape: &NetworkConfig) -> Option<&'static str> {
    match wdr::topology_of(&shape.wdr)? {
        "Widedepth" => Some("CaSpaceNet"),
        "WidedepthTiny" => Some("CaSpaceNetTiny"),
        _ => None,
    }
}

/// The shape of the network that the tensors are of, as far as they tell it; the rest is that of `base`. `None` for networks without
/// a second pyramid.
pub fn shape_of(sizes: &Sizes, base: &NetworkConfig) -> Option<NetworkConfig> {
    let is_second = |name: &&str| name.split('.').next() == Some(FPN_SUB);
    sizes.keys().any(is_second).then_some(())?;
    Some(NetworkConfig { wdr: wdr::shape_of(sizes, &base.wdr)?, ..base.clone() })
}

/// As [`wdr::advise`], for this family.
pub(super) fn advise(
    ours: &NetworkConfig,
    num_classes: i64,
    tensors: &[(String, Tensor)],
    mismatched: &[&str],
) -> String {
    let sizes: Sizes =
        tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.size())).collect();
    if shape_of(&sizes, ours).is_none() && wdr::shape_of(&sizes, &ours.wdr).is_some() {
        return "it has no second pyramid (fpn_sub): it is a Wide-Depth-Range network, with which training can begin \
                (experiment.url with experiment.loose true): "
            .to_owned();
    }
    wdr::advise(&ours.wdr, num_classes, tensors, mismatched)
}
