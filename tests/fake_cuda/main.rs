//! The program on a fake CUDA device (`fake_cuda.cpp`): where tensors are, in which order libraries are loaded, how often the
//! host waits in a step. No GPU is needed; what a GPU computes is not tested here.

mod device;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use device::{Counts, Ran, folder, run};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A network of few weights, on images of 64 px.
const SMALL: &[&str] = &[
    "--topology",
    "WidedepthTiny",
    "--set",
    "experiment.pretrained=false",
    "--set",
    "RUNTIME.NUM_THREADS=1",
    "--set",
    "RUNTIME.NUM_WORKERS=1",
    "--set",
    "INPUT.INTERNAL_WIDTH=64",
    "--set",
    "INPUT.INTERNAL_HEIGHT=64",
    "--set",
    "INPUT.INTERNAL_K=[37.97331451,0,32,0,37.97331451,32,0,0,1]",
    "--set",
    "network.params={\"stem_channels\":4,\"stage_channels\":[8,8,16,16,16],\"stage_units\":[1,1,1,1,1],\
     \"with_output_layer\":false,\"fpn_channels\":16,\"head_channels\":16,\"head_convs\":1,\
     \"group_norm_groups\":4,\"finest_level\":3,\"anchor_sizes\":[8,16,32,64,128]}",
    "--set",
    "data.bs_train=2",
];

/// Full precision, with an average of the weights.
const FLOAT: &[&str] = &[
    "--set",
    "training.full_precision={\"name\":\"full_precision\",\"epochs\":1,\"batch_size\":2}",
    "--set",
    "training.ema={}",
];

/// 2-bit weights by INQ, activations by the straight-through estimator.
const INQ: &[&str] = &[
    "--set",
    "training.full_precision=null",
    "--set",
    "quantize.flow=[{\"module\":\"fpn\",\"epochs\":2,\"weights\":{\"bits\":2,\"schedule\":{\"0\":0.5,\"1\":1}},\
     \"activations\":{\"n_levels\":255,\"quant_start_epoch\":0}}]",
];

/// Learnt steps: 4-bit weights, 8-bit activations that are recorded in one batch.
const LSQ: &[&str] = &[
    "--set",
    "training.full_precision=null",
    "--set",
    "quantize.flow=[{\"module\":\"head\",\"epochs\":1,\"weights\":{\"method\":\"lsq\",\"bits\":4},\
     \"activations\":{\"method\":\"lsq\",\"bits\":8,\"quant_start_epoch\":0,\"calibration\":{\"batches\":1}}}]",
];

/// A synthetic dataset of 16 + 2 + 4 images, made once.
fn dataset() -> &'static str {
    static MADE: OnceLock<String> = OnceLock::new();
    MADE.get_or_init(|| {
        let out = tempfile::tempdir().unwrap().keep().join("data");
        let out = out.to_str().unwrap().to_owned();
        let numbers =
            ["--train", "16", "--val", "2", "--test", "4", "--size", "128", "--seed", "5"];
        let looks = ["--depth", "1.5d:3d", "--attitude", "30", "--format", "png"];
        run(Path::new(""), &[&["synth", "--out", &out], &numbers[..], &looks].concat(), &[])
            .code(0);
        out
    })
}

/// A place for the experiments of one test.
struct Logs(tempfile::TempDir);

impl Logs {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn text(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn checkpoint(&self, name: &str) -> PathBuf {
        let experiment = self.0.path().join("SwissCube/WidedepthTiny/exp000");
        experiment.join(format!("checkpoints/{name}.safetensors"))
    }
}

/// Trains for so many steps; where the checkpoint is.
fn train(folder: &Path, settings: &[&str], device: &str, steps: u32) -> (Counts, Logs) {
    let (logs, steps) = (Logs::new(), steps.to_string());
    let places = ["--data", dataset(), "--logs", logs.text(), "--device", device];
    let args = [&["train"], SMALL, settings, &places, &["--max-steps", &steps]].concat();
    let ran = run(folder, &args, &[]).code(0);
    assert_eq!(ran.was_loaded, device != "cpu", "CUDA's half of libtorch with {device}");
    (ran.counts, logs)
}

/// Goes on with a run.
fn resume(folder: &Path, logs: &Logs, device: &str, steps: u32) -> Ran {
    resume_with(folder, logs, device, steps, &[])
}

fn resume_with(folder: &Path, logs: &Logs, device: &str, steps: u32, more: &[&str]) -> Ran {
    let steps = steps.to_string();
    let places = ["--logs", logs.text(), "--device", device, "--max-steps", &steps];
    let resumed = ["train", "--topology", "WidedepthTiny", "--resume"];
    run(folder, &[&resumed[..], &places, more].concat(), &[]).code(0)
}

/// The f32 tensors of a checkpoint but those that tell its history.
fn floats(file: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let mut all = BTreeMap::new();
    for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        if view.dtype() == Dtype::F32 && !name.starts_with("telemetry.") {
            let chunks = view.data().chunks_exact(4);
            all.insert(name, chunks.map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect());
        }
    }
    all
}

/// Numbers that differ by more than `tolerance` of the largest of their tensor, and all.
fn strays(a: &Path, b: &Path, tolerance: f32) -> (usize, usize) {
    let (a, b) = (floats(a), floats(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let (mut num, mut all) = (0, 0);
    for (a, b) in a.values().zip(b.values()) {
        let largest = a.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        num += a.iter().zip(b).filter(|(x, y)| (*x - *y).abs() > tolerance * largest).count();
        all += a.len();
    }
    (num, all)
}

/// What one step does: trains a step more, after three (LSQ's activations are then quantized). The run is also made on the CPU,
/// and must end with the same numbers, to rounding.
fn step_of(settings: &[&str]) -> Option<Counts> {
    let folder = folder()?;
    let (three, _) = train(folder, settings, "cuda", 3);
    let (four, on_device) = train(folder, settings, "cuda:0", 4);
    let (_, on_cpu) = train(folder, settings, "cpu", 4);
    let last = "ckpt_00000004";
    let (num, all) = strays(&on_device.checkpoint(last), &on_cpu.checkpoint(last), 1e-3);
    assert!(num * 500 <= all && all > 10_000, "{num} of {all} numbers differ from the CPU's");
    let step = four.beyond(&three);
    assert!(num_convolutions(&step) > 10, "{:?}", step.operators);
    Some(step)
}

fn num_convolutions(counts: &Counts) -> i64 {
    let convolutions = counts.operators.iter().filter(|(name, _)| name.contains("conv"));
    convolutions.map(|(_, n)| n).sum()
}

/// Checks what a step costs; says where the host waited if that is too often.
#[track_caller]
fn check(step: &Counts, most_waits: i64, most_operators: i64) {
    let (waits, operators) = (step.num_waits(), step.num_operators());
    assert!(waits <= most_waits, "{waits} waits a step, at most {most_waits}:\n{}", step.places());
    assert!(waits >= 1, "a step fetches its losses");
    assert!(operators <= most_operators, "{operators} operators a step: {:#?}", step.operators);
}

#[test]
fn a_float_step() {
    let Some(step) = step_of(FLOAT) else { return };
    check(&step, 1, 500);
}

#[test]
fn a_step_of_inq() {
    let Some(step) = step_of(INQ) else { return };
    check(&step, 1, 900);
}

#[test]
fn a_step_of_learnt_weights_and_activations() {
    let Some(step) = step_of(LSQ) else { return };
    check(&step, 1, 1400);
}

#[test]
fn a_run_goes_from_the_device_to_the_cpu_and_back() {
    let Some(folder) = folder() else { return };
    let (_, logs) = train(folder, LSQ, "cuda", 3);
    let on_cpu = resume(folder, &logs, "cpu", 5).says(&["device cuda:0, and this run has cpu"]);
    assert!(!on_cpu.was_loaded, "--device cpu loads CUDA");
    let back = resume(folder, &logs, "cuda", 7).says(&["device cpu, and this run has cuda:0"]);
    assert!(back.was_loaded && back.counts.num_operators() > 1000);
    // To the end of the stage: validation, telemetry, the check that weights are on their levels.
    resume(folder, &logs, "cuda", 8);
    assert!(logs.checkpoint("stage_0_head").exists());
}

/// Whether documents are the same but for the last digits of their numbers.
fn agree(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-4 * b.abs().max(1e-3)
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| agree(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| agree(a, b)))
        }
        _ => a == b,
    }
}

#[test]
fn an_evaluation_finds_the_poses_that_the_cpu_finds() {
    let Some(folder) = folder() else { return };
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = home.join("problems/SwissCube/WidedepthTiny/pretrained.safetensors");
    let test = |device: &str| {
        let logs = Logs::new();
        let threads = ["--set", "RUNTIME.NUM_THREADS=1", "--set", "RUNTIME.NUM_WORKERS=1"];
        let places = ["--data", dataset(), "--out", logs.text(), "--device", device, "--json"];
        let args = [&["test", "--checkpoint", file.to_str().unwrap()], &threads[..], &places];
        let ran = run(folder, &args.concat(), &[]).code(0);
        let reports: Value = serde_json::from_str(&ran.stdout()).unwrap();
        let report = &reports["evaluations"][0]["report"];
        assert!(report["table"].is_object(), "{reports}");
        (report["table"].clone(), report["headline_percent"].as_f64(), ran.counts)
    };
    let ((found, percent, counts), (expected, ..)) = (test("cuda"), test("cpu"));
    assert!(agree(&found, &expected), "{found}\n{expected}");
    assert!(percent.unwrap() >= 50.0, "{percent:?}");
    assert!(num_convolutions(&counts) > 10 && counts.num_waits() > 0, "{counts:?}");
}

#[test]
fn devices_that_are_not_there_are_errors_of_one_line() {
    let Some(folder) = folder() else { return };
    let logs = Logs::new();
    let places = ["--data", dataset(), "--logs", logs.text(), "--max-steps", "1", "--device"];
    let train = |device: &str, variables: &[(&str, &str)]| {
        run(folder, &[&["train"], SMALL, FLOAT, &places, &[device]].concat(), variables)
    };
    train("cuda:99", &[]).code(1).says(&["--device cuda:99", "libtorch sees 1 GPU, cuda:0;"]);
    let gpu = ("FAKE_CUDA_GPU", "6.1 Some GPU");
    let old = [("FAKE_CUDA_DRIVER", "12040"), gpu, ("FAKE_CUDA_DEVICES", "0")];
    let driver = "supports CUDA 12.4, GPU 0: Some GPU, compute capability 6.1";
    train("cuda", &old).code(1).says(&["libtorch sees no GPU", driver, "driver 580 or newer"]);
    let told = ["WARN", "computing on the CPU: libtorch sees no GPU", driver];
    train("auto", &old).code(0).says(&told);
    let full = train("cuda", &[("FAKE_CUDA_MEMORY", "300000")]).code(1);
    assert!(!full.stderr().contains("frame #"), "{}", full.stderr());
    full.says(&["CUDA out of memory", "lower the batch size"]);
}

#[test]
fn a_driver_that_libtorch_cannot_use_is_told() {
    let Some(folder) = folder() else { return };
    // The driver alone: the CUDA half of the real libtorch, if there is one, does not get on with it.
    let driver = tempfile::tempdir().unwrap();
    std::fs::copy(folder.join("libcuda.so.1"), driver.path().join("libcuda.so.1")).unwrap();
    let logs = Logs::new();
    let places = ["--data", dataset(), "--logs", logs.text(), "--max-steps", "1", "--device"];
    let train = |device: &str| {
        let args = [&["train"], SMALL, FLOAT, &places, &[device]].concat();
        let gpu = ("FAKE_CUDA_GPU", "9.0 Some GPU");
        run(driver.path(), &args, &[("FAKE_CUDA_DRIVER", "13000"), gpu])
    };
    let told = ["supports CUDA 13.0, GPU 0: Some GPU, compute capability 9.0", "setup.sh"];
    train("cuda").code(1).says(&told);
    train("auto").code(0).says(&told).says(&["WARN", "computing on the CPU"]);
}

#[test]
fn precision_and_determinism_are_set_on_the_device() {
    let Some(folder) = folder() else { return };
    let bf16 = ["--set", "RUNTIME.PRECISION=bf16", "--set", "RUNTIME.DETERMINISTIC=true"];
    let (low, logs) = train(folder, &[FLOAT, &bf16].concat(), "cuda", 3);
    let (full, other) = train(folder, FLOAT, "cuda", 3);
    let (cast, not) = (low.beyond(&full), full.beyond(&low));
    // Inputs, weights and results are converted, and nothing is waited for.
    assert!(cast.num_operators() > 100 && cast.num_waits() <= 0, "{cast:#?}");
    assert!(num_convolutions(&not) == 0, "{not:#?}");
    let last = "ckpt_00000003";
    let off = |tolerance| strays(&logs.checkpoint(last), &other.checkpoint(last), tolerance).0;
    assert!(off(1e-6) > 1000, "bf16 changes nothing");
    // It is in the checkpoint, and another one is told.
    let provenance = logs.0.path().join("SwissCube/WidedepthTiny/exp000/provenance.json");
    assert!(std::fs::read_to_string(provenance).unwrap().contains("\"precision\": \"bf16\""));
    let more = ["--set", "RUNTIME.PRECISION=tf32"];
    resume_with(folder, &logs, "cuda", 4, &more)
        .says(&["written with precision bf16, and this run has tf32"]);
    let file = logs.checkpoint(last);
    let test = ["test", "--checkpoint", file.to_str().unwrap(), "--data", dataset()];
    let refused = [&test[..], &["--device", "cuda", "--set", "RUNTIME.PRECISION=bf16"]].concat();
    run(folder, &refused, &[])
        .code(1)
        .says(&["RUNTIME.PRECISION=bf16 is for the steps of training"]);
    let on_cpu = [&test[..], &["--device", "cpu", "--set", "RUNTIME.PRECISION=tf32"]].concat();
    run(folder, &on_cpu, &[])
        .code(1)
        .says(&["RUNTIME.PRECISION=tf32 is a precision of NVIDIA's GPUs"]);
}
