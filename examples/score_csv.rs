//! Scores poses of any program, a BOP csv file, against a dataset in the BOP layout.
//!
//! ```sh
//! cargo run --release --example score_csv -- DATASET POSES.csv
//! ```
//!
//! Without arguments it renders a small dataset, writes a csv file with its true poses beside it, and scores that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mqat::commands::{ScoreRequest, score};
use mqat::run::{Request, Select};
use mqat::synth::{SynthOptions, generate};
use serde_json::Value;

fn main() -> Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    match &args[..] {
        [dataset, poses] => print_scores(dataset, poses),
        [] => {
            let folder = tempfile::tempdir()?;
            let dataset = folder.path().join("data");
            render(&dataset)?;
            let poses = folder.path().join("poses.csv");
            fs::write(&poses, true_poses(&dataset)?)?;
            print_scores(&dataset, &poses)
        }
        _ => bail!("expected DATASET POSES.csv, or nothing"),
    }
}

fn print_scores(dataset: &Path, poses: &Path) -> Result<()> {
    let request = ScoreRequest {
        run: Request {
            select: Select { topology: Some("WidedepthTiny".to_owned()), ..Select::default() },
            data: Some(dataset.to_owned()),
            ..Request::default()
        },
        predictions: vec![poses.to_owned()],
        format: None, // told by the file's content
        split: None,
        out: None,
        overlays: false,
    };
    let report = score(&request)?;
    println!("{}", report.text());
    Ok(())
}

/// A dataset of a few small images.
fn render(dataset: &Path) -> Result<()> {
    let options = SynthOptions {
        out: dataset.to_owned(),
        num_train: 1,
        num_val: 1,
        num_test: 4,
        size_px: 64,
        depth_d: (1.5, 3.0),
        ..SynthOptions::default()
    };
    generate(&options, &|_, _| ())?;
    Ok(())
}

/// The poses of the test list, as BOP's csv has them: a row each, R (row-major) and t (mm) as numbers between blanks.
fn true_poses(dataset: &Path) -> Result<String> {
    let list = fs::read_to_string(dataset.join("testing.txt"))?;
    let mut csv = "scene_id,im_id,obj_id,score,R,t,time\n".to_owned();
    for image in list.lines() {
        // `testing/seq_NNNNNN/000000/rgb/IIIIII.jpg`, with `scene_gt.json` beside the folder of images.
        let image = dataset.join(image);
        let scene = image.ancestors().nth(2).context("an image lies in a scene")?;
        let sequence = scene.parent().context("a scene lies in a sequence")?;
        let truth: Value = serde_json::from_slice(&fs::read(scene.join("scene_gt.json"))?)?;
        let number = |path: &Path, prefix: &str| -> Result<u64> {
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            Ok(stem.trim_start_matches(prefix).parse()?)
        };
        let im_id = number(&image, "")?;
        let object = &truth[im_id.to_string()][0];
        let numbers = |key: &str| {
            let all = object[key].as_array().into_iter().flatten();
            all.map(Value::to_string).collect::<Vec<_>>().join(" ")
        };
        csv += &format!(
            "{},{im_id},{},1,{},{},-1\n",
            number(sequence, "seq_")?,
            object["obj_id"],
            numbers("cam_R_m2c"),
            numbers("cam_t_m2c"),
        );
    }
    Ok(csv)
}
