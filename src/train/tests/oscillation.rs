//! Freezing of weights that oscillate, within runs.

use super::*;

/// Thresholds so low and rates so high that weights are frozen within some steps.
fn watched() -> TrainConfig {
    let stage = |module: &str, weights: serde_json::Value, epochs| StageConfig {
        epochs,
        lr: LrConfig { base: 0.3, warmup_steps: 0, decay: Decay::Constant },
        afterwards: Afterwards::Train,
        ..StageConfig::mqat(module, serde_json::from_value(weights).unwrap())
    };
    let watched = |method: &str| {
        serde_json::json!({
            "method": method, "bits": 4, "oscillation": {"freeze_above": 0.1, "momentum": 0.2},
        })
    };
    let mut lsq = watched("lsq");
    lsq["granularity"] = "channel".into();
    let stages = vec![stage("fpn", lsq, 3), stage("head", watched("dorefa"), 2)];
    let ema = Some(EmaConfig { decay: 0.5, from: 0 });
    TrainConfig { stages, ema, ..TrainConfig::default() }
}

fn num_frozen(recorder: &Recorder) -> Vec<usize> {
    let of = |t: &TelemetryRecord| t.module.numbers.num_frozen_by_oscillation.unwrap();
    recorder.telemetry.iter().filter(|t| t.module.module == "fpn").map(of).collect()
}

#[test]
fn what_oscillates_is_frozen_on_its_code_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut trained = trainer(&watched(), folder.path());
    let mut recorder = Recorder::default();
    run(&mut trained, &mut recorder).unwrap();
    let frozen = num_frozen(&recorder);
    assert_eq!(frozen.len(), 5);
    assert!(frozen.windows(2).all(|pair| pair[0] <= pair[1]), "{frozen:?}");
    assert!(frozen[4] > frozen[0], "{frozen:?}");
    // between two ends of a stage what is frozen neither moves nor changes its code, and the others do
    let [first, last] = [0, 1].map(|i| Checkpoint::read(&recorder.ends[i].checkpoint).unwrap());
    let (mut kept, mut moved) = (0, 0);
    for (name, mask) in first.quant.iter().filter(|(name, _)| name.ends_with(".osc_frozen")) {
        let layer = name.strip_prefix("quant.").unwrap().strip_suffix(".osc_frozen").unwrap();
        let value = |c: &Checkpoint, name: &str| {
            let all = c.weights.iter().chain(&c.quant);
            bits(&all.into_iter().find(|(n, _)| n == name).unwrap().1)
        };
        let (weight, code) = (format!("{layer}.weight"), format!("quant.{layer}.osc_code"));
        let pairs = |name: &str| -> Vec<(u64, u64)> {
            value(&first, name).into_iter().zip(value(&last, name)).collect()
        };
        for ((is_frozen, weight), code) in
            bits(mask).into_iter().zip(pairs(&weight)).zip(pairs(&code))
        {
            if f64::from_bits(is_frozen) == 1.0 {
                assert!(weight.0 == weight.1 && code.0 == code.1, "{layer}");
                kept += 1;
            } else {
                moved += usize::from(weight.0 != weight.1);
            }
        }
    }
    assert!(kept > 0 && moved > 0, "{kept} {moved}");
}

#[test]
fn stops_change_no_bit_and_no_count() {
    let config = watched();
    let whole = tempfile::tempdir().unwrap();
    let mut reference = Recorder::default();
    let mut undisturbed = trainer(&config, whole.path());
    run(&mut undisturbed, &mut reference).unwrap();
    let expected = everything(&undisturbed);
    for stop in [2, 5, 6, 8, 9, 11, 14] {
        let (found, recorder) = stopped_and_resumed(&config, stop);
        assert_eq!(found, expected, "after {stop} steps");
        assert_eq!(recorder.telemetry, reference.telemetry, "after {stop} steps");
    }
}

#[test]
fn the_file_has_the_codes_that_were_frozen() {
    let folder = tempfile::tempdir().unwrap();
    let mut trained = trainer(&watched(), folder.path());
    let mut recorder = Recorder::default();
    let Outcome::Finished { checkpoint } = run(&mut trained, &mut recorder).unwrap() else {
        panic!("not finished")
    };
    let blank = blank_net(1);
    let loaded = load_for_evaluation(&checkpoint, blank.as_ref()).unwrap();
    let saved = Checkpoint::read(&checkpoint).unwrap();
    let mut compared = 0;
    for layer in loaded.quantizers.iter().flat_map(|q| q.codes().unwrap()) {
        let name = layer.name.strip_suffix(".weight").unwrap();
        let of = |field: &str| {
            let name = format!("quant.{name}.{field}");
            saved.quant.iter().find(|(n, _)| *n == name).unwrap().1.shallow_clone()
        };
        let frozen = of("osc_frozen").to_kind(Kind::Bool);
        let differs = layer.codes.not_equal_tensor(&of("osc_code")).logical_and(&frozen);
        assert!(!bool::try_from(differs.any()).unwrap(), "{name}");
        compared += frozen.sum(Kind::Int64).int64_value(&[]);
    }
    assert!(compared > 0);
}

#[test]
fn a_method_that_freezes_by_itself_is_refused() {
    let mut problems = Vec::new();
    let mut stage = StageConfig::mqat("fpn", weights(&[(29, 1.0)]));
    stage.weights.as_mut().unwrap().oscillation = Some(Default::default());
    TrainConfig { stages: vec![stage], ..TrainConfig::default() }.check("t", &mut problems);
    let text = problems.join("; ");
    assert!(text.starts_with("t.stages.0.weights.oscillation: is for fake quantization"), "{text}");
    let json = r#"{"method": "lsq", "bits": 4, "oscillation": {"freeze_above": 1.5}}"#;
    let stage = StageConfig::mqat("fpn", serde_json::from_str(json).unwrap());
    let mut problems = Vec::new();
    TrainConfig { stages: vec![stage], ..TrainConfig::default() }.check("t", &mut problems);
    assert!(
        problems[0].starts_with("t.stages.0.weights.oscillation.freeze_above: 1.5"),
        "{problems:?}"
    );
}
