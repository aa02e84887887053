//! The HTML page: chart, tables, curves and overlays, with the pictures beside it or in it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::gather::{GatheredExperiment, Point};
use super::summary::ReportSummary;
use super::tables::{self, TableFormat, escape};
use crate::io;

/// Overlays shown of each network.
const MOST_OVERLAYS: usize = 4;
/// Folder of the pictures beside the page.
const FOLDER: &str = "pictures";
/// Experiments whose curves and overlays are shown; more make the page too large to open.
const MOST_DETAILED: usize = 40;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;color:#262b33;max-width:70rem;margin:2rem auto;padding:0 1rem}\
    table{border-collapse:collapse;margin:1rem 0;display:block;overflow-x:auto}\
    th,td{padding:.25rem .7rem;border-bottom:1px solid #e4e7eb;text-align:right;white-space:nowrap}\
    th:first-child,td:first-child,table.wide th:nth-child(2),table.wide td:nth-child(2){text-align:left}\
    th{border-bottom:2px solid #969da6}figure{margin:1rem 0}img{max-width:100%;height:auto}\
    .row{display:flex;flex-wrap:wrap;gap:1rem}.row>*{flex:1 1 20rem;min-width:0}\
    .overlays img{flex:0 1 15rem}.note{color:#5f6772}.synthetic{background:#fff4d6;padding:.5rem 1rem}\
    summary{cursor:pointer;font-weight:600;margin:.8rem 0}";

/// The whole page; it loads nothing but pictures of the folder that it lies in.
///
/// # Errors
/// If an existing chart or overlay cannot be read.
pub(super) fn page(
    title: &str,
    summary: &ReportSummary,
    experiments: &[GatheredExperiment],
    chart: &Path,
    pictures: &mut Pictures,
) -> Result<String> {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{0}</title><style>{STYLE}</style></head><body>\n<h1>{0}</h1>\n",
        escape(title)
    );
    if summary.synthetic_data {
        html.push_str(
            "<p class=\"synthetic\">Synthetic data: the images were rendered. None of these numbers is a result on \
             SwissCube.</p>\n",
        );
    }
    let _ = writeln!(html, "<figure>{}</figure>", pictures.chart(chart)?);
    html.push_str(&summary.formatted(TableFormat::Html));
    for note in tables::notes(summary) {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(&note));
    }
    for folder in &summary.left_out {
        let at = escape(&folder.display().to_string());
        let _ = writeln!(html, "<p class=\"note\">Not evaluated, left out: {at}</p>");
    }
    html.push_str("<h2>Experiments</h2>\n");
    for experiment in experiments.iter().take(MOST_DETAILED) {
        html.push_str(&details(experiment, pictures)?);
    }
    if experiments.len() > MOST_DETAILED {
        let _ = writeln!(
            html,
            "<p class=\"note\">Details of the first {MOST_DETAILED} of {} experiments.</p>",
            experiments.len()
        );
    }
    html.push_str("</body></html>\n");
    Ok(html)
}

/// Curves, tables over depth and overlays of an experiment.
fn details(experiment: &GatheredExperiment, pictures: &mut Pictures) -> Result<String> {
    let at = escape(&experiment.folder.path.display().to_string());
    let mut html = format!("<details><summary>{at}</summary>\n<div class=\"row\">");
    let plots = experiment.folder.plots();
    for name in ["loss", "validation", "frozen"] {
        if let Some(drawn) = pictures.svg(&plots.join(format!("{name}.svg")))? {
            let _ = write!(html, "<figure>{drawn}</figure>");
        }
    }
    html.push_str("</div>\n");
    let mut shown: Option<&PathBuf> = None;
    for point in &experiment.points {
        if shown != Some(&point.place.0)
            && let Some(drawn) = pictures.svg(&point.place.0.join("accuracy_over_depth.svg"))?
        {
            let _ = writeln!(html, "<figure>{drawn}</figure>");
        }
        shown = Some(&point.place.0);
        html.push_str(&network(point, pictures)?);
    }
    html.push_str("</details>\n");
    Ok(html)
}

fn network(point: &Point, pictures: &mut Pictures) -> Result<String> {
    let mut html = format!("<h3>{}</h3>\n", escape(&point.network));
    let _ = writeln!(
        html,
        "<p class=\"note\">{}, seed {}, {} steps, {:.2}x (paper), {:.2}x (file)</p>",
        escape(&point.checkpoint.display().to_string()),
        point.seed,
        point.global_step,
        point.sizes.paper_compression,
        point.sizes.file_compression
    );
    let table_of = &point.report.table;
    let mut head = vec!["percent".to_owned()];
    head.extend(table_of.bins.iter().map(|b| b.name.clone()));
    let rows: Vec<Vec<String>> = table_of
        .all
        .rows
        .iter()
        .map(|row| {
            let cells =
                row.recalls.iter().map(|r| r.percent.map_or("-".to_owned(), |p| format!("{p:.1}")));
            std::iter::once(row.name.clone()).chain(cells).collect()
        })
        .collect();
    html.push_str(&tables::html("", &head, &rows));
    html.push_str("<div class=\"row overlays\">");
    for path in overlays(&point.place.0.join(format!("overlays_{}", point.place.1)))? {
        html.push_str(&pictures.picture(&path, "image/png")?);
    }
    html.push_str("</div>\n");
    Ok(html)
}

/// Some of a folder's pictures, spread evenly; none where there is no folder.
fn overlays(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let reading = || format!("reading the folder {}", folder.display());
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.extension().is_some_and(|e| e == "png") {
            all.push(path);
        }
    }
    all.sort();
    let num = all.len().min(MOST_OVERLAYS);
    Ok((0..num).map(|i| all[i * all.len() / num].clone()).collect())
}

/// The pictures of a page: in it, or in a folder beside it.
pub(super) struct Pictures {
    /// The report's folder; none keeps them in the page.
    beside: Option<PathBuf>,
    num: usize,
}

impl Pictures {
    /// In the page, or beside the page in `out`.
    pub fn new(out: &Path, self_contained: bool) -> Self {
        Self { beside: (!self_contained).then(|| out.to_owned()), num: 0 }
    }

    /// The report's own chart, which lies beside the page in any case.
    fn chart(&mut self, path: &Path) -> Result<String> {
        match (&self.beside, path.file_name()) {
            (Some(_), Some(name)) => Ok(img(path, &escape(&name.to_string_lossy()))),
            _ => self.picture(path, "image/svg+xml"),
        }
    }

    /// A chart to stand in the page, as a picture: scripts in a drawing from elsewhere do not run in one. `None` where
    /// the file does not exist.
    fn svg(&mut self, path: &Path) -> Result<Option<String>> {
        path.is_file().then(|| self.picture(path, "image/svg+xml")).transpose()
    }

    /// A picture that the page shows.
    fn picture(&mut self, path: &Path, kind: &str) -> Result<String> {
        let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let source = match &self.beside {
            None => format!("data:{kind};base64,{}", STANDARD.encode(bytes)),
            Some(out) => {
                let ending = if kind == "image/png" { "png" } else { "svg" };
                let name = format!("{FOLDER}/{:04}.{ending}", self.num);
                self.num += 1;
                io::write_atomic(&out.join(&name), |w| Ok(w.write_all(&bytes)?))?;
                name
            }
        };
        Ok(img(path, &source))
    }
}

/// A picture of the page, named as its file.
fn img(path: &Path, source: &str) -> String {
    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    format!("<img alt=\"{}\" src=\"{source}\">", escape(&stem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_from_elsewhere_is_a_picture_without_its_script() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a\"onload=\"x.svg");
        fs::write(&path, "<svg onload='a()'><script>b()</script></svg>").unwrap();
        let html = Pictures::new(dir.path(), true).svg(&path).unwrap().unwrap();
        assert!(
            html.starts_with("<img alt=\"a&quot;onload=&quot;x\" src=\"data:image/svg+xml;base64,")
        );
        assert!(!html.contains("<script") && !html.contains("a()"), "{html}");
        let mut beside = Pictures::new(dir.path(), false);
        assert!(beside.svg(&dir.path().join("none.svg")).unwrap().is_none());
        let html = beside.svg(&path).unwrap().unwrap();
        assert!(html.ends_with("src=\"pictures/0000.svg\">"), "{html}");
        assert!(dir.path().join("pictures/0000.svg").is_file());
    }

    #[test]
    fn overlays_are_spread_over_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        assert!(overlays(&dir.path().join("none")).unwrap().is_empty());
        for i in 0..8 {
            fs::write(dir.path().join(format!("{i:02}_x.png")), "").unwrap();
        }
        fs::write(dir.path().join("notes.txt"), "").unwrap();
        let names: Vec<_> = overlays(dir.path()).unwrap();
        let expected = [0, 2, 4, 6].map(|i| dir.path().join(format!("{i:02}_x.png")));
        assert_eq!(names, expected);
    }
}
