//! The anchors of the original generator (`02_anchors`); exact.

use mqat::topology::wdr::{AnchorGrid, NetworkConfig, PoseNet};
use tch::Device;

use super::support::{arrays, json, numbers};

fn config() -> NetworkConfig {
    let file = json("02_anchors/anchors.json");
    let config = NetworkConfig {
        anchor_sizes: numbers(&file["anchor_sizes"]),
        ..NetworkConfig::widedepth_tiny()
    };
    let strides: Vec<f64> = config.strides().into_iter().map(|s| s as f64).collect();
    assert_eq!(strides, numbers(&file["anchor_strides"]));
    config
}

#[test]
fn every_anchor_box_is_the_originals() {
    let config = config();
    let data = arrays("02_anchors/anchors.safetensors");
    let file = json("02_anchors/anchors.json");
    let inputs = file["inputs"].as_array().unwrap();
    assert!(!inputs.is_empty());
    for input in inputs {
        let size = |key: &str| input[key].as_u64().unwrap() as usize;
        let (width, height) = (size("width"), size("height"));
        let grid = AnchorGrid::new(&config, width, height);
        let levels = input["levels"].as_array().unwrap();
        assert_eq!(grid.levels.len(), levels.len());
        for (i, (level, stored)) in grid.levels.iter().zip(levels).enumerate() {
            let what = format!("{height}x{width}.{i}");
            let found = [level.h, level.w, level.num_cells()].map(|v| v as f64);
            let keys = ["grid_h", "grid_w", "count"];
            assert_eq!(found.to_vec(), keys.map(|k| stored[k].as_f64().unwrap()), "{what}");
            let boxes = data[&what].f64();
            assert_eq!(boxes.len(), 4 * level.num_cells(), "{what}");
            for (cell, expected) in boxes.chunks(4).enumerate() {
                let found = level.anchor_box(cell / level.w, cell % level.w);
                assert_eq!(found, expected, "{what} cell {cell}");
                let [x, y] = grid.centers_px[level.offset + cell];
                let center = [(expected[0] + expected[2]) / 2.0, (expected[1] + expected[3]) / 2.0];
                assert_eq!([x, y], center, "{what} cell {cell}");
            }
        }
    }
}

#[test]
fn the_networks_buffers_are_the_anchors_of_the_first_cell() {
    let config = config();
    let data = arrays("02_anchors/anchors.safetensors");
    let net = PoseNet::blank(&config, 1, Device::Cpu).unwrap();
    for i in 0..config.anchor_sizes.len() {
        let stored = &data[&format!("cell.{i}")];
        let buffer = net.store.get(&format!("anchor_generator.cell_anchors.{i}")).unwrap();
        assert!(buffer.equal(&stored.tensor()), "level {i}");
    }
}
