//! Pictures of predicted and true poses: the projected box and axes drawn over the image.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use rayon::prelude::*;

use super::draw;
use super::prediction::Prediction;
use crate::data::{Dataset, Frame};
use crate::geom::{Camera, Corners, Lens, Pose, Vec2, Vec3};
use crate::io::picture::{read_rgb, write_png};
use crate::pose::TargetErrors;

/// Side of a panel, px; a picture has two, the image and the object enlarged.
const PANEL_PX: u32 = 640;
/// Room for an object's number, px.
const NUMBER_PX: u32 = 40;
/// The enlarged view is this many times as wide as the boxes in it.
const ZOOM_MARGIN: f64 = 1.4;
/// Smallest side of the enlarged view, px of the image.
const ZOOM_LEAST_PX: f64 = 16.0;
/// What is nearer to the camera than this is cut off, mm.
const NEAR_MM: f64 = 1.0;

/// Parts that an edge is drawn in where the lens bends straight lines.
const BENT_PARTS: u32 = 24;

/// Colour of the true box.
pub const TRUTH_COLOR: Rgb<u8> = Rgb([60, 220, 90]);
/// Colour of the predicted box.
pub const PREDICTION_COLOR: Rgb<u8> = Rgb([255, 140, 20]);
/// Colours of the x, y and z axes.
const AXIS_COLORS: [Rgb<u8>; 3] = [Rgb([240, 60, 60]), Rgb([90, 240, 90]), Rgb([90, 130, 255])];
const CAPTION_COLOR: Rgb<u8> = Rgb([235, 235, 235]);
const OUTSIDE_COLOR: Rgb<u8> = Rgb([24, 24, 24]);

/// The pairs of corners that a box's 12 edges join: those whose numbers differ in one bit.
const EDGES: [(usize, usize); 12] = [
    (0, 1),
    (2, 3),
    (4, 5),
    (6, 7),
    (0, 2),
    (1, 3),
    (4, 6),
    (5, 7),
    (0, 4),
    (1, 5),
    (2, 6),
    (3, 7),
];

/// What is drawn of one pose.
#[derive(Debug, Clone, Copy)]
pub struct Outline<'a> {
    /// Object to camera.
    pub pose: Pose,
    /// The box, mm.
    pub corners: &'a Corners,
    /// Length of an axis, mm.
    pub axis_mm: f64,
    /// The object's number, written at its middle; none where there is but one.
    pub number: Option<u32>,
}

/// A square part of the image and the panel it is shown on.
#[derive(Debug, Clone, Copy)]
struct PanelView {
    /// Top-left corner (of the pixel's area, so 0 is the image's edge), px of the image.
    origin: Vec2,
    /// Panel px per image px.
    scale: f64,
}

impl PanelView {
    /// The square of `side_px` about `center` (px, as areas), on a whole panel.
    fn about(center: Vec2, side_px: f64) -> Self {
        let half = Vec2::new(side_px / 2.0, side_px / 2.0);
        Self { origin: center - half, scale: f64::from(PANEL_PX) / side_px }
    }

    /// From image to panel, both with pixel centres at whole numbers.
    fn to_panel(self, p: Vec2) -> Vec2 {
        let half = Vec2::new(0.5, 0.5);
        (p + half - self.origin) * self.scale - half
    }

    /// The panel's picture, bilinear, dark outside the image.
    fn picture(&self, image: &RgbImage) -> RgbImage {
        let (w, h) = (f64::from(image.width()), f64::from(image.height()));
        RgbImage::from_fn(PANEL_PX, PANEL_PX, |i, j| {
            let area = Vec2::new(f64::from(i) + 0.5, f64::from(j) + 0.5) / self.scale + self.origin;
            if area.x < 0.0 || area.y < 0.0 || area.x >= w || area.y >= h {
                return OUTSIDE_COLOR;
            }
            let x = (area.x - 0.5).clamp(0.0, w - 1.0);
            let y = (area.y - 0.5).clamp(0.0, h - 1.0);
            let (x0, y0) = (x.floor() as u32, y.floor() as u32);
            let (x1, y1) = ((x0 + 1).min(image.width() - 1), (y0 + 1).min(image.height() - 1));
            let (fx, fy) = (x.fract(), y.fract());
            let at = |x, y, c: usize| f64::from(image.get_pixel(x, y).0[c]);
            Rgb(std::array::from_fn(|c| {
                let top = at(x0, y0, c) * (1.0 - fx) + at(x1, y0, c) * fx;
                let bottom = at(x0, y1, c) * (1.0 - fx) + at(x1, y1, c) * fx;
                (top * (1.0 - fy) + bottom * fy).round() as u8
            }))
        })
    }
}

/// The image beside an enlarged view of the object, each with the true boxes (green) and the predicted ones
/// (orange) and their x, y, z axes in red, green, blue: dim and thin for the truth, bright for the prediction.
///
/// `camera` is the image's own. `caption` is written at the bottom (capitals, digits and ` .-:/%=`). Parts behind the
/// camera are cut off. The result is 1280 x 640 px; an image without pixels gives two dark panels.
pub fn overlay(
    image: &RgbImage,
    camera: &Camera,
    truth: &[Outline],
    predicted: &[Outline],
    caption: &str,
) -> RgbImage {
    let mut picture = panels(image, &Lens::from(*camera), truth, predicted);
    let y = PANEL_PX - 2 * (draw::GLYPH_HEIGHT + 2) - 6;
    let mut x = 6;
    x += draw::text(&mut picture, [x, y], 2, TRUTH_COLOR, "truth") + 6;
    x += draw::text(&mut picture, [x, y], 2, PREDICTION_COLOR, "prediction") + 6;
    draw::text(&mut picture, [x, y], 2, CAPTION_COLOR, caption);
    picture
}

/// As [`overlay`], of a picture without true poses that `lens` took: the boxes are bent as the picture is.
pub fn prediction_overlay(
    image: &RgbImage,
    lens: &Lens,
    predicted: &[Outline],
    caption: &str,
) -> RgbImage {
    let mut picture = panels(image, lens, &[], predicted);
    let y = PANEL_PX - 2 * (draw::GLYPH_HEIGHT + 2) - 6;
    let x = 6 + draw::text(&mut picture, [6, y], 2, PREDICTION_COLOR, "prediction") + 6;
    draw::text(&mut picture, [x, y], 2, CAPTION_COLOR, caption);
    picture
}

/// The whole image that `camera` took with the boxes and axes of its labels, 640 x 640 px.
pub fn labelled(image: &RgbImage, camera: &Camera, truth: &[Outline]) -> RgbImage {
    let (view, lens) = (whole_view(image), Lens::from(*camera));
    let mut panel = Panel { picture: view.picture(image), view, lens: &lens };
    for outline in truth {
        panel.draw_box(outline, 2.0, TRUTH_COLOR);
        panel.draw_axes(outline, 2.2, 1.0);
    }
    panel.picture
}

/// Both panels, without a legend.
fn panels(image: &RgbImage, lens: &Lens, truth: &[Outline], predicted: &[Outline]) -> RgbImage {
    let whole = whole_view(image);
    let views = [whole, zoom_view(lens, truth, predicted).unwrap_or(whole)];
    let mut picture = RgbImage::new(2 * PANEL_PX, PANEL_PX);
    for (i, view) in views.iter().enumerate() {
        let mut panel = Panel { picture: view.picture(image), view: *view, lens };
        for outline in truth {
            panel.draw_axes(outline, 1.5, 0.6);
            panel.draw_box(outline, 2.5, TRUTH_COLOR);
            panel.draw_number(outline, 0, TRUTH_COLOR);
        }
        for outline in predicted {
            panel.draw_box(outline, 1.6, PREDICTION_COLOR);
            panel.draw_axes(outline, 2.2, 1.0);
            panel.draw_number(outline, 2 * (draw::GLYPH_HEIGHT + 2), PREDICTION_COLOR);
        }
        image::imageops::replace(&mut picture, &panel.picture, i64::from(i as u32 * PANEL_PX), 0);
    }
    picture
}

/// Writes [`overlay`]s of at most `num` of the scored images, spread evenly from the nearest to the farthest object, and
/// returns their paths: `folder/00_IMAGE.png`, numbered by depth.
///
/// Of each class as many predictions are drawn as it has true objects there, at least one, the most confident ones. The caption
/// is about the image's nearest object.
///
/// # Errors
/// If an image cannot be read, a prediction holds no pose, or a file cannot be written.
pub fn write_overlays(
    folder: &Path,
    dataset: &Dataset,
    predictions: &[Prediction],
    errors: &[TargetErrors],
    num: usize,
) -> Result<Vec<PathBuf>> {
    let chosen = spread_over_depth(errors, num);
    let places: BTreeMap<&str, usize> =
        chosen.iter().enumerate().map(|(i, e)| (e.image.as_str(), i)).collect();
    let mut predicted: Vec<Vec<&Prediction>> = vec![Vec::new(); chosen.len()];
    for p in predictions {
        if let Some(&i) = places.get(p.image.as_str()) {
            predicted[i].push(p);
        }
    }
    let mut frames: Vec<Option<&Frame>> = vec![None; chosen.len()];
    for frame in &dataset.frames {
        if let Some(&i) = places.get(frame.image.as_str()) {
            frames[i] = Some(frame);
        }
    }
    (0..chosen.len())
        .into_par_iter()
        .map(|i| {
            let error = chosen[i];
            let frame = frames[i].with_context(|| {
                format!("drawing image {}: it is not in the dataset", error.image)
            })?;
            let picture = overlay_of(dataset, frame, &predicted[i], error)?;
            let name: String = (error.image.chars())
                .map(|c| if c.is_alphanumeric() || "-_".contains(c) { c } else { '_' })
                .collect();
            let path = folder.join(format!("{i:02}_{name}.png"));
            write_png(&path, &picture)?;
            Ok(path)
        })
        .collect()
}

/// The nearest object of each image, then `num` of these at equal steps of rank, the nearest and farthest among them.
fn spread_over_depth(errors: &[TargetErrors], num: usize) -> Vec<&TargetErrors> {
    let mut nearest: BTreeMap<&str, &TargetErrors> = BTreeMap::new();
    for e in errors {
        let kept = nearest.entry(&e.image).or_insert(e);
        if e.depth_diameters < kept.depth_diameters {
            *kept = e;
        }
    }
    let mut sorted: Vec<&TargetErrors> = nearest.into_values().collect();
    sorted.sort_by(|a, b| a.depth_diameters.total_cmp(&b.depth_diameters));
    let num = num.min(sorted.len());
    let last = sorted.len().saturating_sub(1);
    (0..num).map(|i| sorted[i * last / num.saturating_sub(1).max(1)]).collect()
}

fn overlay_of(
    dataset: &Dataset,
    frame: &Frame,
    predicted: &[&Prediction],
    error: &TargetErrors,
) -> Result<RgbImage> {
    let has_several = dataset.models.len() > 1 || frame.objects.len() > 1;
    let outline = |class: usize, pose: Pose| {
        let model = dataset.models.get(class)?;
        let number = has_several.then_some(model.obj_id);
        Some(Outline { pose, corners: &model.corners, axis_mm: model.diameter_mm / 2.0, number })
    };
    let truth: Vec<Outline> =
        frame.objects.iter().filter_map(|o| outline(o.class, o.pose)).collect();
    let mut sorted = predicted.to_vec();
    sorted.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut guesses = Vec::new();
    let mut drawn: BTreeMap<usize, usize> = BTreeMap::new();
    for prediction in sorted {
        let num_drawn = drawn.entry(prediction.class).or_default();
        let num_true = frame.objects.iter().filter(|o| o.class == prediction.class).count();
        if *num_drawn < num_true.max(1) {
            *num_drawn += 1;
            guesses.extend(outline(prediction.class, prediction.pose()?));
        }
    }
    let image = read_rgb(&dataset.root.join(&frame.image))?;
    let which = match (has_several, dataset.models.get(error.class)) {
        (true, Some(model)) => format!("nearest of {}: {}  ", frame.objects.len(), model.obj_id),
        _ => String::new(),
    };
    let caption = if error.found {
        format!(
            "{which}Z={:.1}D  ADD={:.3}D  REP={:.1}PX",
            error.depth_diameters, error.add_diameters, error.reproj_px
        )
    } else {
        format!("{which}Z={:.1}D  not found", error.depth_diameters)
    };
    Ok(overlay(&image, &frame.camera, &truth, &guesses, &caption))
}

fn whole_view(image: &RgbImage) -> PanelView {
    let (w, h) = (f64::from(image.width()), f64::from(image.height()));
    PanelView::about(Vec2::new(w, h) / 2.0, w.max(h).max(1.0))
}

/// The square that holds the true boxes, or the predicted ones when there is no true one.
fn zoom_view(lens: &Lens, truth: &[Outline], predicted: &[Outline]) -> Option<PanelView> {
    let outlines = if truth.is_empty() { predicted } else { truth };
    let points: Vec<Vec2> = outlines
        .iter()
        .flat_map(|o| o.corners.iter().map(|x| o.pose.apply(x)))
        .filter(|x| x.z > NEAR_MM)
        .filter_map(|x| lens.project(&x))
        .filter(|p| p.x.is_finite() && p.y.is_finite())
        .collect();
    let first = *points.first()?;
    let low = points.iter().fold(first, |a, b| a.inf(b));
    let high = points.iter().fold(first, |a, b| a.sup(b));
    let side = ((high - low).max() * ZOOM_MARGIN).max(ZOOM_LEAST_PX);
    Some(PanelView::about((low + high) / 2.0 + Vec2::new(0.5, 0.5), side))
}

/// A view being drawn on.
struct Panel<'a> {
    picture: RgbImage,
    view: PanelView,
    lens: &'a Lens,
}

impl Panel<'_> {
    fn draw_box(&mut self, outline: &Outline, width_px: f64, color: Rgb<u8>) {
        let corners = outline.corners.map(|x| outline.pose.apply(&x));
        for (a, b) in EDGES {
            self.draw_edge(corners[a], corners[b], width_px, color);
        }
    }

    /// The number at the middle, so far `below` it, px.
    fn draw_number(&mut self, outline: &Outline, below: u32, color: Rgb<u8>) {
        let Some(number) = outline.number.filter(|_| outline.pose.t_mm.z > NEAR_MM) else { return };
        let Some(middle) = self.lens.project(&outline.pose.t_mm) else { return };
        let at = self.view.to_panel(middle);
        let inside = 0.0..f64::from(PANEL_PX - NUMBER_PX);
        if inside.contains(&at.x) && inside.contains(&at.y) {
            let at = [at.x as u32, at.y as u32 + below];
            draw::text(&mut self.picture, at, 2, color, &number.to_string());
        }
    }

    fn draw_axes(&mut self, outline: &Outline, width_px: f64, brightness: f64) {
        let origin = outline.pose.apply(&Vec3::zeros());
        for (axis, color) in AXIS_COLORS.iter().enumerate() {
            let mut tip = Vec3::zeros();
            tip[axis] = outline.axis_mm;
            let color = Rgb(color.0.map(|c| (f64::from(c) * brightness) as u8));
            self.draw_edge(origin, outline.pose.apply(&tip), width_px, color);
        }
    }

    /// Draws the segment between two points of the camera frame, mm.
    fn draw_edge(&mut self, a: Vec3, b: Vec3, width_px: f64, color: Rgb<u8>) {
        let Some((a, b)) = in_front(a, b) else { return };
        let parts = if self.lens.distortion().is_none() { 1 } else { BENT_PARTS };
        let at = |i: u32| a + (b - a) * (f64::from(i) / f64::from(parts));
        let mut from = self.lens.project(&a);
        for i in 1..=parts {
            let to = self.lens.project(&if i == parts { b } else { at(i) });
            if let (Some(from), Some(to)) = (from, to) {
                let [from, to] = [from, to].map(|p| self.view.to_panel(p));
                draw::line(&mut self.picture, from, to, width_px, color);
            }
            from = to;
        }
    }
}

/// The part of a segment that lies in front of the camera.
fn in_front(a: Vec3, b: Vec3) -> Option<(Vec3, Vec3)> {
    let cut = |inside: Vec3, outside: Vec3| {
        inside + (outside - inside) * ((inside.z - NEAR_MM) / (inside.z - outside.z))
    };
    match (a.z >= NEAR_MM, b.z >= NEAR_MM) {
        (true, true) => Some((a, b)),
        (true, false) => Some((a, cut(a, b))),
        (false, true) => Some((cut(b, a), b)),
        (false, false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::Rotation3;

    use crate::geom::box_corners;

    fn scene() -> (RgbImage, Camera, Corners, Pose) {
        let image = RgbImage::from_fn(320, 240, |x, y| Rgb([(x / 4) as u8, (y / 3) as u8, 40]));
        let camera = Camera::new(300.0, 300.0, 160.0, 120.0).unwrap();
        let corners = box_corners(&[[-50.0, -50.0, -57.0], [50.0, 50.0, 57.0]]);
        let r = *Rotation3::from_euler_angles(0.5, 0.4, 0.2).matrix();
        (image, camera, corners, Pose { r, t_mm: Vec3::new(60.0, -20.0, 600.0) })
    }

    fn count(picture: &RgbImage, color: Rgb<u8>) -> usize {
        picture.pixels().filter(|p| **p == color).count()
    }

    #[test]
    fn the_true_corner_is_green_where_it_projects_to() {
        let (image, camera, corners, pose) = scene();
        let outline = Outline { pose, corners: &corners, axis_mm: 80.0, number: None };
        let picture = overlay(&image, &camera, &[outline], &[], "");
        for corner in &corners {
            let p = whole_view(&image).to_panel(camera.project(&pose.apply(corner)));
            let pixel = picture.get_pixel(p.x.round() as u32, p.y.round() as u32);
            assert_eq!(*pixel, TRUTH_COLOR, "{p}");
        }
    }

    #[test]
    fn an_objects_number_stands_at_its_middle() {
        let (image, camera, corners, pose) = scene();
        let outline = Outline { pose, corners: &corners, axis_mm: 80.0, number: None };
        let of = |number| overlay(&image, &camera, &[Outline { number, ..outline }], &[], "");
        let (without, with) = (of(None), of(Some(7)));
        let middle = whole_view(&image).to_panel(camera.project(&pose.t_mm));
        let near = |x: u32, y: u32| {
            let (dx, dy) = (f64::from(x) - middle.x, f64::from(y) - middle.y);
            x < PANEL_PX && (-1.0..40.0).contains(&dx) && (-1.0..40.0).contains(&dy)
        };
        let changed: Vec<_> =
            with.enumerate_pixels().filter(|(x, y, p)| without.get_pixel(*x, *y) != *p).collect();
        let in_whole: Vec<_> = changed.iter().filter(|(x, _, _)| *x < PANEL_PX).collect();
        assert!(!in_whole.is_empty() && in_whole.iter().all(|(x, y, _)| near(*x, *y)));
        assert!(changed.len() > in_whole.len(), "in the enlarged view, too");
    }

    #[test]
    fn a_lens_bends_the_boxes_it_sees() {
        use crate::geom::Distortion;
        let (image, camera, corners, pose) = scene();
        let near = Pose { t_mm: Vec3::new(60.0, -20.0, 320.0), ..pose };
        let outline = Outline { pose: near, corners: &corners, axis_mm: 80.0, number: None };
        let distortion = Distortion::polynomial(&[-0.4, 0.1, 0.0, 0.0]).unwrap();
        let lens = Lens::new(camera, distortion);
        let bent = prediction_overlay(&image, &lens, &[outline], "");
        let straight = prediction_overlay(&image, &camera.into(), &[outline], "");
        assert_ne!(bent, straight);
        for (a, b) in EDGES {
            let x = near.apply(&((corners[a] + corners[b]) / 2.0));
            let p = whole_view(&image).to_panel(lens.project(&x).unwrap());
            let pixel = bent.get_pixel(p.x.round() as u32, p.y.round() as u32);
            assert!(pixel.0[0] > 120, "{p}: {pixel:?}"); // an axis may be drawn over it
        }
    }

    #[test]
    fn both_poses_show_and_a_missing_prediction_shows_only_in_the_legend() {
        let (image, camera, corners, pose) = scene();
        let truth = Outline { pose, corners: &corners, axis_mm: 80.0, number: None };
        let mut guess = truth;
        guess.pose.t_mm.x += 25.0;
        let with = overlay(&image, &camera, &[truth], &[guess], "ADD 0.14D  Z 3.4D");
        let without = overlay(&image, &camera, &[truth], &[], "no prediction  Z 3.4D");
        assert_eq!(with.dimensions(), (1280, 640));
        assert!(count(&with, PREDICTION_COLOR) > 4 * count(&without, PREDICTION_COLOR));
        assert!(count(&without, TRUTH_COLOR) > 1000);
    }

    #[test]
    fn a_box_around_the_camera_and_an_empty_image_are_drawn_without_harm() {
        let (image, camera, corners, pose) = scene();
        let inside = Pose { t_mm: Vec3::zeros(), ..pose };
        let outline = Outline { pose: inside, corners: &corners, axis_mm: 80.0, number: None };
        overlay(&image, &camera, &[outline], &[outline], "");
        let behind =
            Outline { pose: Pose { t_mm: Vec3::new(0.0, 0.0, -900.0), ..pose }, ..outline };
        let picture = overlay(&image, &camera, &[behind], &[], "");
        assert_eq!(
            count(&picture, TRUTH_COLOR),
            count(&overlay(&image, &camera, &[], &[], ""), TRUTH_COLOR)
        );
        overlay(&RgbImage::new(0, 0), &camera, &[], &[], "");
    }

    #[test]
    fn overlays_of_a_run_reach_from_the_nearest_to_the_farthest_image() {
        use crate::data::DataConfig;
        use crate::eval::testing::{dataset, predictions_of};
        use crate::eval::{EvalConfig, EvaluationInfo, evaluate};

        let folder = tempfile::tempdir().unwrap();
        let mut dataset = dataset();
        dataset.root = folder.path().to_owned();
        let image = RgbImage::from_pixel(64, 64, Rgb([9, 9, 9]));
        for name in ["0.png", "14.png", "29.png"] {
            image.save(dataset.root.join(name)).unwrap();
        }
        let mut predictions = predictions_of(&dataset);
        predictions.remove(14);
        let config = EvalConfig::default();
        let info = EvaluationInfo { name: "", list: "", left_out: &[], timing: None };
        let errors =
            evaluate(&dataset, &DataConfig::default(), &predictions, &config, info).unwrap().errors;
        let out = folder.path().join("overlays");
        let paths = write_overlays(&out, &dataset, &predictions, &errors, 3).unwrap();
        let names: Vec<_> =
            paths.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["00_0_png.png", "01_14_png.png", "02_29_png.png"]);
        let orange = |i: usize| count(&image::open(&paths[i]).unwrap().to_rgb8(), PREDICTION_COLOR);
        assert!(orange(0) > 2 * orange(1), "{} {}", orange(0), orange(1));
        let error = write_overlays(&out, &dataset, &predictions, &errors, 30).unwrap_err();
        assert!(format!("{error:#}").contains(".png"), "{error:#}");
        assert!(write_overlays(&out, &dataset, &predictions, &errors, 0).unwrap().is_empty());
    }
}
