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
    let report = run(&[&["report", "--json"], &data[..], &more].concat()).code(0);
    let report = report.says(&["exp002 has the same config and seed as", "exp001"]).json();

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
            && page.contains("src=\"accuracy_over_compression.svg\"")
            && page.contains("src=\"pictures/0000.svg\"")
            && !page.contains("src=\"http")
            && !page.contains("base64")
    );
    assert!(out.join("pictures/0000.svg").is_file());
    assert!(
        read("table.tex").contains("modular (MQAT) & fpn 2-bit (3 levels)"),
        "{}",
        read("table.tex")
    );
    assert!(read("accuracy_over_compression.svg").contains("uniform"));
    assert!(fs::read(out.join("accuracy_over_compression.png")).unwrap().starts_with(b"\x89PNG"));

    // Without experiments it takes those of the topology; one file, chosen columns, another form.
    let all = ["report", "--topology", "WidedepthTiny", "--logs", text, "--self-contained"];
    let chosen = ["--columns", "network,all,seeds", "--format", "csv"];
    let csv =
        run(&[&all[..], &chosen, &["--out", out.to_str().unwrap()]].concat()).code(0).stdout();
    let lines: Vec<&str> = csv.lines().collect();
    assert_eq!(lines[0], "network,all,all_std_dev,all_low_95,all_high_95,seeds");
    assert_eq!((lines.len(), lines[1].rsplit(',').next()), (4, Some("1; 2")));
    assert_eq!(read("table.csv"), csv);
    let page = read("index.html");
    assert!(page.contains("data:image/svg+xml;base64,") && !page.contains("src=\"pictures"));
    let idle = [&all[..], &["--columns", "network,p"]].concat();
    run(&idle).code(1).says(&["p compares with a base", "--paired"]);

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

/// Rewrites the errors of an evaluation: object `i` is right where `right(i)` is.
fn judge(folder: &Path, right: impl Fn(usize) -> bool) {
    let path = folder.join("errors_0.jsonl");
    let mut lines = String::new();
    for (i, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
        let mut error: Value = serde_json::from_str(line).unwrap();
        error["headline_diameters"] = (if right(i) { 0.05 } else { 0.5 }).into();
        lines += &format!("{error}\n");
    }
    fs::write(path, lines).unwrap();
}

#[test]
fn rows_are_compared_with_a_base_on_the_same_objects() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    train(&logs, &["--method", "full-precision"]);
    let exp = |i: u32| logs.join(format!("SwissCube/WidedepthTiny/exp00{i}"));
    let files = fs::read_dir(exp(0).join("checkpoints")).unwrap().map(|e| e.unwrap().path());
    let end = files.filter(|f| f.extension().is_some_and(|e| e == "safetensors")).max().unwrap();
    let url = format!("experiment.url={}", end.display());
    let from = ["--set", "experiment.pretrained=true", "--set", &url];
    // exp000 is put aside: the runs that are compared begin with its network.
    let runs = dir.path().join("runs");
    for (seed, method) in [("1", None), ("2", None), ("1", Some("full-precision"))] {
        let method: Vec<&str> = method.iter().flat_map(|m| ["--method", m]).collect();
        train(&runs, &[&from[..], &["--seed", seed], &method].concat());
    }
    let data = ["--device", "cpu", "--data", dataset().to_str().unwrap()];
    let text = runs.to_str().unwrap();
    let args = ["report", "--topology", "WidedepthTiny", "--logs", text];
    run(&[&args[..], &["--paired", "start"]].concat()).code(1).says(&["none of the experiments"]);
    let report = run(&[&args[..], &data, &["--evaluate", "--paired", "start", "--json"]].concat());
    let report = report.code(0).json();
    assert_eq!(report["groups"][0]["family"], "start");
    assert_eq!(report["paired"]["base"], 0);
    assert_eq!(report["groups"][0]["sizes"]["paper_compression"], 1.0);

    // Six objects in two sequences: the start has all right, the float control none, the others four.
    let run_of = |i: u32| runs.join(format!("SwissCube/WidedepthTiny/exp00{i}/eval"));
    judge(&run_of(0).join("test_start"), |_| true);
    judge(&run_of(0).join("test"), |i| i != 2 && i != 5);
    judge(&run_of(1).join("test"), |i| i != 2 && i != 5);
    judge(&run_of(2).join("test"), |_| false);
    let compare = |more: &[&str]| run(&[&args[..], &data, &["--evaluate"], more].concat());
    let ran = compare(&["--paired", "start", "--json"]).code(0);
    let ran = ran.says(&["float training made the network worse", "(p < 0.001)"]);
    let paired = &ran.json()["paired"];
    let base = &paired["rows"];
    assert!(base[0].is_null(), "{paired:#}");
    assert_eq!(paired["num_objects"], 6);
    let fpn = base[1]["difference"]["percent"].as_f64().unwrap();
    assert!((fpn + 100.0 / 3.0).abs() < 1e-9, "{paired:#}");
    // Both seeds against the only start: none better, two worse, p = 2 x 0.5^2.
    assert_eq!(base[1]["runs"].as_array().unwrap().len(), 2);
    assert_eq!((&base[1]["runs"][1]["seed"], &base[1]["runs"][1]["worse"]), (&2.into(), &2.into()));
    assert_eq!(base[1]["runs"][1]["p"], 0.5);
    assert_eq!(base[2]["difference"]["interval_95"], serde_json::json!([-100.0, -100.0]));
    assert!((base[2]["runs"][0]["p"].as_f64().unwrap() - 2.0 / 64.0).abs() < 1e-12);
    // No draw of 10,000 is at or above 0, of two rows.
    let p = base[2]["p_holm"].as_f64().unwrap();
    assert!((p - 2.0 * 2.0 / 10_001.0).abs() < 1e-12, "{p}");

    // The same from the other side, and again: a report is a function of its evaluations.
    let other = ["--paired", "2:float_fpn", "--columns", "network,difference,discordant,holm"];
    let table = compare(&other).code(0).stdout();
    assert!(table.contains("+66.7  +4 -0; +4 -0") && table.contains("+100.0"), "{table}");
    assert_eq!(compare(&other).code(0).stdout(), table);
    compare(&["--paired", "2:nope"]).code(1).says(&["no evaluated stage \"nope\"", "float_fpn"]);
    compare(&["--paired", "7"]).code(1).says(&["exp007"]);

    // A folder of the user's own as the start; what is no evaluation is refused.
    let own = run_of(1).join("test");
    let started = compare(&["--start", own.to_str().unwrap(), "--paired", "start", "--json"]);
    assert_eq!(started.code(0).json()["paired"]["rows"][1]["difference"]["percent"], 0.0);
    compare(&["--start", dir.path().to_str().unwrap()]).code(1).says(&["no metrics.json"]);

    // Runs are paired by their seeds, whatever the order of the arguments.
    judge(&run_of(1).join("test"), |i| i != 2);
    let of_order = |runs: [&str; 3]| {
        compare(&[&["--paired", "start", "--json"], &runs[..]].concat()).code(0).json()["paired"]["rows"]
            .clone()
    };
    assert_eq!(of_order(["0", "1", "2"]), of_order(["1", "0", "2"]));

    // As csv the comparison is there without columns being chosen.
    let csv = compare(&["--paired", "start", "--format", "csv"]).code(0).stdout();
    let (head, rows) = csv.split_once('\n').unwrap();
    assert!(
        head.ends_with("difference_low_95,difference_high_95,discordant,mcnemar_p,p,p_holm"),
        "{head}"
    );
    assert_eq!(rows.lines().count(), 3);

    // Objects that only one of them has are an error with both counts.
    let errors = run_of(1).join("test/errors_0.jsonl");
    let lines = fs::read_to_string(&errors).unwrap();
    fs::write(&errors, lines.replacen("testing/seq", "testing/other", 1)).unwrap();
    compare(&["--paired", "start"]).code(1).says(&["6 objects", "of which 5 are the same"]);
}
