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
    let has = |root: &str| sizes.keys().any(|name| is_below(name, root));
    has(FPN_SUB).then_some(())?;
    // Without levels on top, no layers are shared whatever the config says.
    let shared_top = match (has("fpn.top_blocks"), has("fpn_sub.top_blocks")) {
        (true, own_top) => !own_top || base.shared_top,
        (false, _) => base.shared_top,
    };
    Some(NetworkConfig { wdr: wdr::shape_of(sizes, &base.wdr)?, shared_top, ..base.clone() })
}

fn is_below(name: &str, root: &str) -> bool {
    name.strip_prefix(root).is_some_and(|rest| rest.starts_with('.'))
}

/// What to change for the tensors to fit, where that can be told from them; ends with `": "` or is empty. `mismatched` are
/// those of another shape than the network's.
pub(super) fn advise(
    ours: &NetworkConfig,
    num_classes: i64,
    tensors: &[(String, Tensor)],
    mismatched: &[&str],
) -> String {
    let sizes = wdr::sizes_of(tensors);
    let Some(theirs) = shape_of(&sizes, ours) else {
        return match wdr::shape_of(&sizes, &ours.wdr) {
            Some(_) => NO_SECOND_PYRAMID.to_owned(),
            None => String::new(),
        };
    };
    if theirs == *ours {
        return wdr::advise_classes(&sizes, num_classes, mismatched);
    }
    let same_but_for_the_top = theirs.wdr == ours.wdr;
    let topology = topology_of(&theirs).filter(|_| !same_but_for_the_top);
    wdr::advise_shape(ours, &theirs, topology)
}

const NO_SECOND_PYRAMID: &str = "it has no second pyramid (fpn_sub): it is a Wide-Depth-Range network, which can be tested with its own topology, \
     and with which training can begin (experiment.url with experiment.loose true): ";

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::nn::Network;
    use crate::topology::caspacenet::CaSpaceNet;
    use crate::topology::{Topology, wdr};

    fn five_levels() -> NetworkConfig {
        let tiny = wdr::NetworkConfig::widedepth_tiny();
        NetworkConfig::of(wdr::NetworkConfig {
            anchor_sizes: vec![32.0, 64.0, 128.0, 256.0, 512.0],
            ..tiny
        })
    }

    fn state(config: &NetworkConfig, num_classes: i64) -> Vec<(String, Tensor)> {
        CaSpaceNet::blank(config, num_classes, Device::Cpu).unwrap().state()
    }

    #[test]
    fn a_file_tells_whether_its_pyramids_share_their_top() {
        let own = five_levels();
        let shared = NetworkConfig { shared_top: true, ..own.clone() };
        for config in [&own, &shared] {
            let state = state(config, 1);
            assert_eq!(&shape_of(&wdr::recognise::sizes_of(&state), &own).unwrap(), config);
        }
        // A published file has the tensors under both names: either form reads it.
        let state = state(&own, 1);
        assert_eq!(shape_of(&wdr::recognise::sizes_of(&state), &shared).unwrap(), shared);
    }

    #[test]
    fn topologies_are_told_by_the_second_pyramid() {
        let name = |state: &[(String, Tensor)]| {
            Topology::of(&wdr::recognise::sizes_of(state)).and_then(|topology| topology.name())
        };
        let tiny = NetworkConfig::preset("CaSpaceNetTiny").unwrap();
        assert_eq!(name(&state(&tiny, 1)), Some("CaSpaceNetTiny"));
        let first = wdr::PoseNet::blank(&tiny.wdr, 1, Device::Cpu).unwrap();
        assert_eq!(name(&first.state()), Some("WidedepthTiny"));
        assert_eq!(name(&state(&five_levels(), 1)), None, "the preset has three levels");
    }

    #[test]
    fn what_does_not_fit_is_told_with_what_to_change() {
        let ours = five_levels();
        let shared = NetworkConfig { shared_top: true, ..ours.clone() };
        let text = advise(&ours, 1, &state(&shared, 1), &[]);
        let expected = "it is another topology; for its own set network.params.shared_top=true: ";
        assert_eq!(text, expected);
        let tiny = NetworkConfig::preset("CaSpaceNetTiny").unwrap();
        let text = advise(&ours, 1, &state(&tiny, 1), &[]);
        assert!(text.contains("name it with --topology CaSpaceNetTiny"), "{text}");
        let text = advise(&ours, 1, &state(&ours, 3), &["head.cls_logits.weight"]);
        assert!(text.contains("knows 3 object class(es)"), "{text}");
        let first = wdr::PoseNet::blank(&ours.wdr, 1, Device::Cpu).unwrap();
        let text = advise(&ours, 1, &first.state(), &[]);
        assert!(text.starts_with("it has no second pyramid (fpn_sub)"), "{text}");
        // The other way round, the other family's name is for the reader of the file to tell.
        assert_eq!(first.advise(&state(&ours, 1), &[]), "");
    }
}
