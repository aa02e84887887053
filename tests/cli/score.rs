//! `mqat score`: poses from files.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{dataset, run};

/// The true poses of a split: image, BOP's numbers, R, t.
fn truth(list: &str) -> Vec<(String, u64, u64, Value, Value)> {
    let text = fs::read_to_string(dataset().join(list)).unwrap();
    let pose_of = |image: &str| {
        let scene = dataset().join(image).ancestors().nth(2).unwrap().to_owned();
        let gt: Value =
            serde_json::from_slice(&fs::read(scene.join("scene_gt.json")).unwrap()).unwrap();
        let im_id: u64 = Path::new(image).file_stem().unwrap().to_str().unwrap().parse().unwrap();
        let sequence = image.split('/').find_map(|part| part.strip_prefix("seq_")).unwrap();
        let object = gt[im_id.to_string()][0].clone();
        let (r, t) = (object["cam_R_m2c"].clone(), object["cam_t_m2c"].clone());
        (image.to_owned(), sequence.parse().unwrap(), im_id, r, t)
    };
    text.lines().map(pose_of).collect()
}

fn csv_of(list: &str) -> String {
    let joined = |v: &Value| {
        v.as_array().unwrap().iter().map(Value::to_string).collect::<Vec<_>>().join(" ")
    };
    let rows = truth(list)
        .into_iter()
        .map(|(_, scene, im, r, t)| format!("{scene},{im},1,1,{},{},-1\n", joined(&r), joined(&t)));
    format!("scene_id,im_id,obj_id,score,R,t,time\n{}", rows.collect::<String>())
}

fn jsonl_of(list: &str) -> String {
    let lines = truth(list).into_iter().map(|(image, _, _, r, t)| {
        format!("{}\n", json!({"image": image, "obj_id": 1, "score": 0.5, "R": r, "t": t}))
    });
    lines.collect()
}

/// `mqat score` of a file with this text.
fn score(name: &str, text: &str, more: &[&str]) -> crate::support::Ran {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(name);
    fs::write(&file, text).unwrap();
    let args = ["score", "--predictions", file.to_str().unwrap()];
    run(&[&args[..], &["--data", dataset().to_str().unwrap()], more].concat())
}

#[test]
fn true_poses_score_everything_in_both_formats() {
    for (text, format) in [(csv_of("testing.txt"), "bop-csv"), (jsonl_of("testing.txt"), "jsonl")] {
        // The format is told by the content: no name's ending helps.
        let found = score("poses", &text, &["--json"]).code(0).json();
        let file = &found["evaluations"][0];
        assert_eq!((&file["format"], &file["num_predictions"]), (&json!(format), &json!(6)));
        let report = &file["report"];
        assert_eq!(report["headline_percent"], 100.0, "{report}");
        for row in report["table"]["all"]["rows"].as_array().unwrap() {
            assert_eq!(row["recalls"][3]["percent"], 100.0, "{row}");
        }
        assert!(report["table"]["all"]["median_re_deg"][3].as_f64().unwrap() < 1e-5);
        score("poses", &text, &["--format", format]).code(0);
    }
    let valid = csv_of("validation.txt");
    score("v.csv", &valid, &["--split", "valid"]).code(0);
    score("v.csv", &valid, &["--format", "jsonl", "--split", "valid"]).code(1).says(&["v.csv:1: "]);
}

#[test]
fn a_networks_files_score_as_the_network_did() {
    let dir = tempfile::tempdir().unwrap();
    let data = dataset().to_str().unwrap();
    let weights = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/problems/SwissCube/WidedepthTiny/pretrained.safetensors"
    );
    let (csv, jsonl) = (dir.path().join("a.csv"), dir.path().join("b.jsonl"));
    let (csv, jsonl) = (csv.to_str().unwrap(), jsonl.to_str().unwrap());
    let tested = |file: &str| {
        let args = ["test", "--checkpoint", weights, "--topology", "WidedepthTiny", "--json"];
        let more = ["--device", "cpu", "--data", data, "--predictions", file];
        run(&[&args[..], &more].concat()).code(0).json()
    };
    let (first, second) = (tested(csv), tested(jsonl));
    let out = dir.path().join("out");
    let args = ["score", "--predictions", csv, "--predictions", jsonl, "--data", data];
    let more = ["--topology", "WidedepthTiny", "--out", out.to_str().unwrap(), "--json"];
    let scored = run(&[&args[..], &more].concat()).code(0).json();
    for (i, own) in [first, second].iter().enumerate() {
        let own = &own["evaluations"][0]["report"];
        let file = &scored["evaluations"][i];
        assert_eq!(file["report"]["table"], own["table"]);
        assert_eq!(file["report"]["dataset"], own["dataset"]);
        assert_eq!(file["report"]["timing"], Value::Null);
        let found = own["table"]["all"]["num_found"][3].as_u64().unwrap();
        assert!(found > 0, "{own}");
        assert_eq!(file["num_predictions"], found);
    }
    assert!(scored["evaluations"][0]["mean_time_s"].as_f64().unwrap() > 0.0);
    for file in
        ["metrics.json", "table.txt", "table.md", "accuracy_over_depth.svg", "errors_1.jsonl"]
    {
        assert!(out.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_dir(out.join("overlays_0")).unwrap().count(), 6);
}

#[test]
fn bad_files_are_named_and_bad_lines_counted_on_demand() {
    let good = csv_of("testing.txt");
    let scene = good.lines().nth(1).unwrap().split_once(',').unwrap().0.to_owned();
    let broken = good.replacen(&format!("{scene},0,1,"), &format!("{scene},0,9,"), 1);
    score("p.csv", &broken, &[]).code(1).says(&["p.csv:2: no mesh has obj_id 9, there are 1"]);
    let found = score("p.csv", &broken, &["--skip-bad", "--json"])
        .code(0)
        .says(&["left out: ", "p.csv:2: no mesh"])
        .json();
    let file = &found["evaluations"][0];
    assert_eq!((&file["num_bad_lines"], &file["num_predictions"]), (&json!(1), &json!(5)));
    assert_eq!(file["report"]["table"]["all"]["num_found"][3], 5);

    score("p.csv", "", &[]).code(1).says(&["p.csv is empty"]);
    let none = score("p.csv", "", &["--format", "bop-csv", "--json"]).code(0);
    let none = none.says(&["holds no predictions"]).json();
    assert_eq!(none["evaluations"][0]["report"]["headline_percent"], 0.0);

    let other = csv_of("validation.txt");
    score("p.csv", &other, &[]).code(1).says(&["p.csv:2: ", "is not in the evaluated list of"]);
    // Of a class that is predicted twice in an image the most confident pose counts, wherever it stands.
    let off = good.lines().nth(1).unwrap().replacen(",1,1,", ",1,0.9,", 1).replace(",-1", "");
    let off = format!("{}1e3,-1\n", off.trim_end_matches(|c: char| c != ' '));
    let twice = good.replacen('\n', &format!("\n{off}"), 1);
    let found = score("p.csv", &twice, &["--json"]).code(0).says(&["1 predictions repeat"]).json();
    assert_eq!(found["evaluations"][0]["report"]["headline_percent"], 100.0);
    run(&["score"]).code(2).says(&["--predictions"]);
    run(&["score", "--predictions", "no/such.csv", "--data", dataset().to_str().unwrap()])
        .code(1)
        .says(&["reading predictions no/such.csv"]);
}
