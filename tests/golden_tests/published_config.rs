//! The published config.json is accepted as it is. The file is not in the repository: the test says so and skips.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::golden_dir;

fn published() -> Option<PathBuf> {
    let path = golden_dir().join("original_config.json");
    if path.exists() {
        return Some(path);
    }
    eprintln!(
        "SKIPPED: {} is not there; put the published config.json there, or set MQAT_GOLDEN",
        path.display()
    );
    None
}

#[test]
fn the_published_config_becomes_ours() {
    let Some(path) = published() else { return };
    let original: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mqat"))
        .args(["config", "--config", path.to_str().unwrap()])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let ours: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["bs_train", "bs_valid", "CONFIDENCE_TH", "N_CLASS", "MESH_DIAMETERS"] {
        assert_eq!(ours["data"][key], original["data"][key], "{key}");
    }
    let stage = &ours["quantize"]["flow"][0];
    assert_eq!(stage["module"], "fpn");
    assert_eq!(stage["epochs"], original["experiment"]["n_epochs"]);
    let inq = &original["network"]["quantize"]["INQF"];
    for key in ["n_levels", "quant_init_method", "quant_strategy"] {
        assert_eq!(stage["weights"][key], inq[key], "{key}");
    }
    let number = |v: &Value| v.as_f64().unwrap();
    let fractions = original["training"]["quantize"]["INQ"]["schedule"].as_object().unwrap();
    for (epoch, fraction) in fractions {
        assert_eq!(number(&stage["weights"]["schedule"][epoch]), number(fraction), "epoch {epoch}");
    }
    let factors = original["training"]["lr_scheduler"]["params"]["schedule"].as_object().unwrap();
    let epochs = original["experiment"]["n_epochs"].as_u64().unwrap();
    for (epoch, factor) in factors.iter().filter(|(e, _)| e.parse::<u64>().unwrap() < epochs) {
        assert_eq!(number(&stage["lr"]["decay"]["epochs"][epoch]), number(factor), "epoch {epoch}");
    }
    // Nothing is silently dropped.
    for word in ["STE", "INQB", "INQH", "loss_function", "network.params.name"] {
        assert!(stderr.contains(word), "{word} is not in\n{stderr}");
    }
}
