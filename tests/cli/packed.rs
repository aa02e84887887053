//! Packed files: written, read by every command that takes weights, verified, damaged.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{dataset, run, small};

/// What makes the tiny network with its pretrained weights a quantized one within seconds.
const TRAIN: &[&str] = &[
    "train",
    "--topology",
    "WidedepthTiny",
    "--device",
    "cpu",
    "--set",
    "RUNTIME.NUM_THREADS=1",
    "--set",
    "training.full_precision=null",
    "--set",
    "data.bs_train=8",
];

struct Trained {
    dir: tempfile::TempDir,
    checkpoint: PathBuf,
}

impl Trained {
    /// Two layers of the FPN at 2 bits, then the head at 5 bits (32 levels) with quantized inputs.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
        let changes = [
            "--set",
            "quantize.flow=[{\"name\":\"outputs\",\"module\":\"fpn.out_convs.[23]\",\"epochs\":1,\"lr\":{\"base\":1e-5},\
             \"weights\":{\"bits\":2,\"schedule\":{\"0\":1}}},\
             {\"module\":\"head\",\"epochs\":1,\"lr\":{\"base\":1e-5},\
             \"weights\":{\"bits\":5,\"levels\":\"full\",\"schedule\":{\"0\":1}},\
             \"activations\":{\"bits\":8,\"quant_start_epoch\":0}}]",
        ];
        run(&[TRAIN, &places[..], &changes[..]].concat()).code(0);
        let folder = logs.join("SwissCube/WidedepthTiny/exp000/checkpoints");
        Self { dir, checkpoint: folder.join("stage_1_head.safetensors") }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn checkpoint(&self) -> &str {
        self.checkpoint.to_str().unwrap()
    }
}

/// Poses and scores of a file that needs no config besides.
fn test(file: &str, predictions: &str) -> (Value, String) {
    let data = dataset().to_str().unwrap();
    let args = ["test", "--device", "cpu", "--json", "--data", data, "--checkpoint", file];
    let wanted = ["--predictions", predictions];
    let report = run(&[&args[..], &wanted].concat()).code(0).json();
    (report["evaluations"][0]["report"].clone(), fs::read_to_string(predictions).unwrap())
}

#[test]
fn a_packed_file_gives_the_same_poses_and_is_refused_when_damaged() {
    let trained = Trained::new();
    let (packed, folded) = (trained.path("net.mqat"), trained.path("folded.mqat"));
    let report =
        run(&["export", trained.checkpoint(), "--format", "packed", "--out", &packed, "--json"])
            .code(0)
            .json();
    let bytes = fs::read(&packed).unwrap();
    assert_eq!(report["bytes"], bytes.len());
    assert_eq!(report["quantized"].as_array().unwrap().len(), 2);
    let sizes = &report["packed"]["theoretical"];
    assert!(sizes["paper_compression"].as_f64().unwrap() > 1.25, "{report}");
    assert!(sizes["file_bytes"].as_u64().unwrap() < bytes.len() as u64, "{report}");

    let (expected, poses) = test(trained.checkpoint(), &trained.path("a.jsonl"));
    assert!(poses.lines().count() > 2, "{poses}");
    let (found, same_poses) = test(&packed, &trained.path("b.jsonl"));
    assert_eq!(same_poses, poses);
    assert_eq!((&found["table"], &found["name"]), (&expected["table"], &expected["name"]));

    // the same input gives the same file, whatever it replaces is kept
    run(&["export", trained.checkpoint(), "--format", "packed", "--out", &packed])
        .code(1)
        .says(&["already exists"]);
    let again = trained.path("again.mqat");
    run(&["export", trained.checkpoint(), "--format", "packed", "--out", &again]).code(0);
    assert_eq!(fs::read(&again).unwrap(), bytes);
    let options = ["--ternary", "2bit", "--fold-bn"];
    let base = ["export", trained.checkpoint(), "--format", "packed", "--out", &folded];
    run(&[&base[..], &options].concat()).code(0);
    assert_eq!(test(&folded, &trained.path("c.jsonl")).1, poses);

    let seen = run(&["inspect", &packed, "--json"]).code(0).json();
    assert_eq!((&seen["kind"], &seen["quantized"]), (&"packed".into(), &report["quantized"]));
    let note = "2 layers with 3 levels at 1.6 bits";
    assert!(seen["notes"].to_string().contains(note), "{}", seen["notes"]);

    refusals(&trained, &packed, &bytes);
    verified(&trained, &packed, &folded);
}

/// What a packed file is not a start for, and files that are not packed files any more.
fn refusals(trained: &Trained, packed: &str, bytes: &[u8]) {
    let out = trained.path("out");
    let short = ["export", packed, "--out", &out, "--format", "packed"];
    run(&short).code(1).says(&["is packed already"]);
    run(&["import", packed, "--out", &out]).code(1).says(&["is packed, without"]);
    run(&["export", trained.checkpoint(), "--out", &out, "--fold-bn"])
        .code(1)
        .says(&["--format packed"]);
    let float = ["--format", "packed", "--weights", "float", "--out", &out];
    run(&[&["export", trained.checkpoint()][..], &float].concat()).code(1).says(&["--weights"]);
    let damaged = trained.path("damaged.mqat");
    let mut flipped = bytes.to_vec();
    flipped[bytes.len() / 2] ^= 4;
    for (content, word) in [
        (&bytes[..bytes.len() / 2], "truncated"),
        (&bytes[..20], "truncated"),
        (&flipped[..], "CRC-32C"),
    ] {
        fs::write(&damaged, content).unwrap();
        run(&["inspect", &damaged]).code(1).says(&["damaged.mqat", word]);
        let args = ["test", "--device", "cpu", "--checkpoint", &damaged];
        let ran = run(&[&args[..], &["--data", dataset().to_str().unwrap()]].concat()).code(1);
        let ran = ran.says(&[word, "damaged.mqat"]);
        assert_eq!(
            ran.stderr().lines().filter(|l| l.starts_with("mqat: ")).count(),
            1,
            "{}",
            ran.stderr()
        );
    }
    assert!(!Path::new(&out).exists());
}

fn verified(trained: &Trained, packed: &str, folded: &str) {
    let checkpoint = trained.checkpoint();
    let places = ["--device", "cpu", "--data", dataset().to_str().unwrap()];
    let verify =
        |a: &str, b: &str, more: &[&str]| run(&[&["verify", a, b][..], &places, more].concat());
    let report = verify(checkpoint, packed, &["--tolerance", "0", "--json"]).code(0).json();
    assert_eq!((&report["passed"], &report["num_images"]), (&Value::from(true), &Value::from(6)));
    assert_eq!(report["levels"].as_array().unwrap().len(), 3);
    for level in report["levels"].as_array().unwrap() {
        assert_eq!(
            (&level["logits"]["max_abs"], &level["offsets"]["max_abs"]),
            (&0.0.into(), &0.0.into())
        );
        assert!(level["offsets"]["scale"].as_f64().unwrap() > 0.0);
    }
    assert_eq!(report["adi_difference_points"], 0.0);
    assert!(report["detections"]["both"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["poses"]["translation_mm"]["max"], 0.0);
    assert_eq!(report["artefacts"][1]["kind"], "packed");
    let ran = verify(packed, folded, &["--images", "2", "--tolerance", "0"]).code(0);
    assert!(
        ran.stdout().contains("2 images") && ran.stdout().contains("passed"),
        "{}",
        ran.stdout()
    );

    // an earlier stage is another function
    let earlier = checkpoint.replace("stage_1_head", "stage_0_outputs");
    let ran = verify(&earlier, packed, &[]).code(1).says(&["differ", "of the limits are exceeded"]);
    assert!(
        ran.stdout().contains("FAILED") && ran.stdout().contains("above 1e-4"),
        "{}",
        ran.stdout()
    );
    assert!(!ran.stderr().contains("above 1e-4"), "{}", ran.stderr());
    verify(&earlier, packed, &["--json"]).code(1).says(&["differ", "above 1e-4"]);
    verify(&earlier, packed, &["--tolerance", "1e9", "--max-changed", "1", "--max-adi", "100"])
        .code(0);
    // a file of weights alone takes the config of the other one
    let bare = trained.path("bare.safetensors");
    let float =
        ["export", "problems/SwissCube/WidedepthTiny/pretrained.safetensors", "--out", &bare];
    run(&[&float[..], &["--topology", "WidedepthTiny"]].concat()).code(0);
    let report = verify(&bare, packed, &["--images", "1", "--json"]).code(1).json();
    assert_eq!(report["artefacts"][0]["name"], "full precision");
    assert!(report["failures"].as_array().unwrap().len() >= 2, "{report}");
    other_networks(trained, packed);
}

/// Files of networks with other outputs are not a pair.
fn other_networks(trained: &Trained, packed: &str) {
    let data = dataset().to_str().unwrap();
    let wide = trained.path("wide");
    let args = ["--data", data, "--logs", &wide, "--max-steps", "1"];
    let changed =
        ["--set", "training.full_precision=null", "--set", "network.params.anchor_sizes=[8,16,32]"];
    run(&small("train", &[&args[..], &changed].concat())).code(0);
    let folder = Path::new(&wide).join("SwissCube/WidedepthTiny/exp000/checkpoints");
    let other = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).next().unwrap();
    run(&["verify", packed, other.to_str().unwrap(), "--data", data, "--device", "cpu"])
        .code(1)
        .says(&["different networks", "levels of strides"]);
}
