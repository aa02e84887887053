//! `mqat report` over a small study: methods, seeds, a search's folder.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{dataset, run, small};

const FLOW: &str = "quantize.flow=[{\"module\":\"fpn\",\"epochs\":1,\"weights\":{\"bits\":2,\"schedule\":{\"0\":1}}}]";

fn train(logs: &Path, more: &[&str]) {
    let own = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let short = ["--set", "training.full_precision=null", "--set", FLOW];
    run(&small("train", &[&short, &own, more].concat())).code(0);
}

fn row<'a>(report: &'a Value, family: &str) -> &'a Value {
    let groups = report["groups"].as_array().unwrap();
    let found: Vec<&Value> = groups.iter().filter(|g| g["family"] == family).collect();
    assert_eq!(found.len(), 1, "{family} in {report:#}");
    found[0]
}

#[test]
fn a_study_becomes_one_table_one_chart_and_one_page() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    train(&logs, &["--seed", "1"]);
    train(&logs, &["--seed", "2"]);
    // The same run again is not a third sample.
    train(&logs, &["--seed", "2"]);
    train(&logs, &["--method", "lsq", "--bits", "4"]);
    train(&logs, &["--method", "full-precision"]);
    let text = logs.to_str().unwrap();
    let out = dir.path().join("report");
    let data = ["--device", "cpu", "--data", dataset().to_str().unwrap()];
    let more = [text, "--evaluate", "--title", "A <study>", "--out", out.to_str().unwrap()];
    let report = run(&[&["report", "--json"], &data[..], &more].concat()).code(0).json();

    assert_eq!(report["synthetic_data"], true);
    assert_eq!(report["points"].as_array().unwrap().len(), 5);
    let fpn = row(&report, "modular");
    assert_eq!(fpn["seeds"], serde_json::json!([1, 2]));
    let of_run = |i: usize| {
        let path = logs.join(format!("SwissCube/WidedepthTiny/exp00{i}/eval/test/metrics.json"));
        let all: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        let text = all[0]["table"].to_string();
        assert!(text.contains("ADI-0.1d"), "{text}");
        report["points"][i]["report"]["table"].clone()
    };
    assert_ne!(of_run(0), Value::Null);
    assert_eq!(of_run(1), of_run(2));
    for spread in fpn["headline"].as_array().unwrap() {
        assert!(spread["std_dev"].is_number() && spread["interval_95"].is_null(), "{spread}");
    }
    assert_eq!(row(&report, "uniform")["sizes"]["paper_compression"], 8.0);
    assert_eq!(row(&report, "full-precision")["sizes"]["paper_compression"], 1.0);
    assert!(row(&report, "uniform")["headline"][0]["interval_95"].is_array());

    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let table = read("table.md");
    for part in ["| modular (MQAT) |", "| uniform |", "| full precision |", "synthetic data", "±"]
    {
        assert!(table.contains(part), "{part:?} is missing in\n{table}");
    }
    assert_eq!(read("table.csv").lines().count(), 1 + 3 * 4);
    let page = read("index.html");
    assert!(
        page.contains("A &lt;study&gt;")
            && page.contains("data:image/svg+xml;base64,")
            && !page.contains("src=\"http")
    );
    assert!(read("accuracy_over_compression.svg").contains("uniform"));
    assert!(fs::read(out.join("accuracy_over_compression.png")).unwrap().starts_with(b"\x89PNG"));

    // What is not evaluated is said and left out; nothing evaluated is an error.
    let no_eval = dir.path().join("none");
    train(&no_eval, &[]);
    let args = ["report", "--topology", "WidedepthTiny", "--json"];
    let places = ["--logs", text];
    let both = [&args[..], &places, &[text, no_eval.to_str().unwrap()]].concat();
    let report = run(&both).code(0).says(&["has no evaluation", "--evaluate"]).json();
    assert_eq!(report["left_out"].as_array().unwrap().len(), 1);
    let alone = [&args[..], &places, &[no_eval.to_str().unwrap()]].concat();
    run(&alone).code(1).says(&["mqat test --all-stages"]);
    run(&[&args[..], &places, &["77"]].concat()).code(1).says(&["77"]);
    run(&[&args[..], &places, &["nowhere"]].concat()).code(1).says(&["nowhere"]);
}
