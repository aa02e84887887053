//! Whether the descriptions of one thing agree: boxes, meshes, diameters and `models_info.json` of an object, the distances
//! of objects, the cameras of images. What no sensible result can come of is an error, the rest a warning with both numbers.

use std::path::Path;

use anyhow::{Result, bail, ensure};

use super::InputConfig;
use super::frame::Frame;
use super::models_info::ModelInfos;
use super::object::ObjectModel;
use super::warp::Size;
use crate::geom::{Camera, Corners, Vec3, box_corners};

/// From this ratio on two sizes of one object are in different units, or of different things.
const OTHER_UNIT: f64 = 5.0;
/// Largest distance between corners of a box and of its mesh's, diagonals of the mesh.
const BOX_TOLERANCE: f64 = 0.05;
/// Largest difference of numbers that should be equal, relative.
const TOLERANCE: f64 = 0.01;
/// Below this side a mesh is hardly in millimetres.
const SMALLEST_MM: f64 = 1.0;
/// An object whose centre is closer than so many diameters has the camera inside.
const INSIDE_DIAMETERS: f64 = 0.5;
/// An object that is seen smaller than this cannot be found, px.
const SMALLEST_PX: f64 = 1.0;
/// Largest distance of a camera's middle from that of its image, fractions of width and height.
const OFF_CENTER: f64 = 0.08;
/// The internal camera cuts images off when its field is below this fraction of theirs, and wastes its pixels above that one.
const FIELD_RANGE: (f64, f64) = (0.9, 1.25);

/// Warnings for an object whose diameter is configured, and whose mesh or box has that size, against `models_info.json`.
fn info_warnings(
    infos: &ModelInfos,
    obj_id: u32,
    diameter_mm: f64,
    what: &str,
    size: &Vec3,
) -> Vec<String> {
    let Some(info) = infos.of(obj_id) else { return Vec::new() };
    let at = format!("{}: object {obj_id}", infos.path().display());
    let mut found = Vec::new();
    if let Some(info) = info.diameter.filter(|d| (d / diameter_mm - 1.0).abs() > TOLERANCE) {
        found.push(format!(
            "{at} has a diameter of {info} mm, data.MESH_DIAMETERS {diameter_mm} mm{}",
            unit_hint(("the file", info), ("data.MESH_DIAMETERS", diameter_mm))
        ));
    }
    if let Some(info) = info.size().filter(|info| (info - size).amax() > TOLERANCE * size.norm()) {
        found.push(format!(
            "{at} has a size of {}, {what} {}{}",
            size_text(&info),
            size_text(size),
            unit_hint(("the file", info.norm()), (what, size.norm()))
        ));
    }
    found
}

/// Compares the descriptions of an object of a dataset and warns where they differ.
///
/// # Errors
/// If box, mesh and diameter differ so much that they are in different units or of different objects; names the files.
pub(super) fn check_model(
    model: &ObjectModel,
    (mesh_file, box_file): (&Path, &Path),
    class: usize,
    infos: &ModelInfos,
) -> Result<()> {
    let mesh = box_corners(&model.mesh.vertices);
    let (mesh_size, box_size) = (size_of(&mesh), size_of(&model.corners));
    let mesh_text = format!("the mesh {}", mesh_file.display());
    let box_text = format!("the box of class {class} in {}", box_file.display());
    ensure!(
        same_unit(box_size.norm(), mesh_size.norm()),
        "{box_text} is {}, but {mesh_text} is {}{}",
        size_text(&box_size),
        size_text(&mesh_size),
        unit_hint((&box_text, box_size.norm()), (&mesh_text, mesh_size.norm()))
    );
    let apart = bounds(&mesh).into_iter().zip(bounds(&model.corners)).map(|(a, b)| (a - b).amax());
    if apart.fold(0.0, f64::max) > BOX_TOLERANCE * mesh_size.norm() {
        tracing::warn!(
            "{box_text} is {} {}, but {mesh_text} is {} {}: is it the box of another object, or are the boxes in another \
             order than the meshes?",
            size_text(&box_size),
            place_text(&model.corners),
            size_text(&mesh_size),
            place_text(&mesh)
        );
    }
    check_diameter(model.diameter_mm, &mesh_text, &mesh_size)?;
    for warning in info_warnings(infos, model.obj_id, model.diameter_mm, &mesh_text, &mesh_size) {
        tracing::warn!("{warning}");
    }
    if mesh_size.amax() < SMALLEST_MM {
        tracing::warn!("{mesh_text} is {}: is it in metres? expected mm", size_text(&mesh_size));
    }
    Ok(())
}

/// As [`check_model`] without a mesh: compares box, diameter and `models_info.json`.
///
/// # Errors
/// As [`check_model`].
pub(super) fn check_box(
    corners: &Corners,
    (diameter_mm, obj_id): (f64, u32),
    (class, file): (usize, &Path),
    infos: Option<&ModelInfos>,
) -> Result<()> {
    let text = format!("the box of class {class} in {}", file.display());
    let size = size_of(corners);
    check_diameter(diameter_mm, &text, &size)?;
    for warning in infos.iter().flat_map(|i| info_warnings(i, obj_id, diameter_mm, &text, &size)) {
        tracing::warn!("{warning}");
    }
    Ok(())
}

/// A diameter lies between the longest side and the diagonal of the object's box.
fn check_diameter(diameter_mm: f64, what: &str, size: &Vec3) -> Result<()> {
    let (longest, diagonal) = (size.amax(), size.norm());
    if (longest * (1.0 - TOLERANCE)..=diagonal * (1.0 + TOLERANCE)).contains(&diameter_mm) {
        return Ok(());
    }
    let text = format!(
        "data.MESH_DIAMETERS has a diameter of {diameter_mm} mm for {what}, which is {}: expected {longest:.2} mm (its \
         longest side) to {diagonal:.2} mm (its diagonal){}",
        size_text(size),
        unit_hint(("data.MESH_DIAMETERS", diameter_mm), (what, diagonal))
    );
    if !same_unit(diameter_mm, diagonal) {
        bail!(text);
    }
    tracing::warn!("{text}");
    Ok(())
}

fn same_unit(a: f64, b: f64) -> bool {
    a > 0.0 && b > 0.0 && a < OTHER_UNIT * b && b < OTHER_UNIT * a
}

/// The likely cause of two sizes that differ by a power of ten.
pub(super) fn unit_hint((a, a_mm): (&str, f64), (b, b_mm): (&str, f64)) -> String {
    let (small, ratio) = if a_mm < b_mm { (a, b_mm / a_mm) } else { (b, a_mm / b_mm) };
    let unit = match ratio {
        5.0..20.0 => "centimetres",
        300.0..3000.0 => "metres",
        _ => return String::new(),
    };
    format!(" ({ratio:.0} times): is {small} in {unit}? expected mm")
}

fn bounds(corners: &Corners) -> [Vec3; 2] {
    let first = corners[0];
    let low = corners.iter().fold(first, |low, c| low.inf(c));
    [low, corners.iter().fold(first, |high, c| high.sup(c))]
}

fn size_of(corners: &Corners) -> Vec3 {
    let [low, high] = bounds(corners);
    high - low
}

/// `104.2 x 109.3 x 114.75 mm`; at least 3 digits that count.
fn size_text(size: &Vec3) -> String {
    let digits = if size.amax() < 10.0 { 5 } else { 2 };
    let [x, y, z]: [f64; 3] = (*size).into();
    format!("{x:.digits$} x {y:.digits$} x {z:.digits$} mm")
}

fn place_text(corners: &Corners) -> String {
    let [low, high] = bounds(corners).map(|v| format!("({:.1}, {:.1}, {:.1})", v.x, v.y, v.z));
    format!("from {low} to {high}")
}

/// Checks the distances of a list's objects against their diameters.
///
/// # Errors
/// If most of the objects hold the camera inside, or are seen smaller than a pixel: translations or meshes in metres.
pub(super) fn check_distances(at: &Path, frames: &[Frame], models: &[ObjectModel]) -> Result<()> {
    let at = at.display();
    let objects = || {
        frames.iter().flat_map(|frame| {
            frame.objects.iter().map(move |object| {
                let diameter_mm = models[object.class].diameter_mm;
                (frame, object.pose.t_mm.norm(), diameter_mm)
            })
        })
    };
    let num = objects().count();
    let is_inside = |(_, distance, d): &(&Frame, f64, f64)| *distance < INSIDE_DIAMETERS * d;
    let num_inside = objects().filter(is_inside).count();
    if let Some((frame, distance, diameter)) = objects().find(is_inside) {
        let text = format!(
            "{at}: {num_inside} of {num} objects are closer to the camera than half their diameter, such as that in {}, \
             {distance:.3} mm from the camera with a diameter of {diameter} mm",
            frame.image
        );
        ensure!(
            2 * num_inside <= num,
            "{text}: is cam_t_m2c in scene_gt.json in metres? expected mm"
        );
        tracing::warn!("{text}");
    }
    let seen_px = |(frame, distance, d): (&Frame, f64, f64)| {
        let (fx, fy) = frame.camera.focal_px();
        fx.max(fy) * d / distance
    };
    let num_tiny = objects().filter(|o| seen_px(*o) < SMALLEST_PX).count();
    if let Some((frame, distance, diameter)) = objects().find(|o| seen_px(*o) < SMALLEST_PX)
        && 2 * num_tiny > num
    {
        bail!(
            "{at}: {num_tiny} of {num} objects are seen smaller than a pixel, such as that in {}, {distance:.0} mm from the \
             camera with a diameter of {diameter} mm: are the meshes, boxes and data.MESH_DIAMETERS in metres? expected mm",
            frame.image
        );
    }
    Ok(())
}

/// What is odd about the middle of a camera for an image of that size; none where it is near the image's.
pub(crate) fn off_center(camera: &Camera, (width, height): Size) -> Option<String> {
    let c = camera.center_px();
    let (x, y) = (c.x / width as f64, c.y / height as f64);
    let far = |fraction: f64| (fraction - 0.5).abs() > OFF_CENTER;
    (far(x) || far(y)).then(|| {
        format!(
            "the middle of the camera, ({:.1}, {:.1}) px, is at {:.0} % of the width and {:.0} % of the height of an image \
             of {width} x {height} px: is the camera for images of {:.0} x {:.0} px?",
            c.x,
            c.y,
            100.0 * x,
            100.0 * y,
            2.0 * c.x,
            2.0 * c.y
        )
    })
}

/// Warns when the internal camera's field of view is another than that of most images' cameras.
pub(super) fn warn_of_field(frames: &[Frame], input: &InputConfig) {
    let Ok(internal) = input.camera() else { return };
    let own = field_of(&internal, (input.width as f64, input.height as f64));
    // An image's size is not known before it is loaded: its middle is near half of it.
    let of = |camera: &Camera| {
        let c = camera.center_px();
        field_of(camera, (2.0 * c.x, 2.0 * c.y))
    };
    let misfits = |camera: &Camera| {
        let theirs = of(camera);
        let ratios = [own[0] / theirs[0], own[1] / theirs[1]];
        let least = ratios[0].min(ratios[1]);
        !(FIELD_RANGE.0..=FIELD_RANGE.1).contains(&least)
    };
    let num = frames.iter().filter(|frame| misfits(&frame.camera)).count();
    let Some(first) = frames.iter().find(|frame| misfits(&frame.camera)) else { return };
    if 2 * num <= frames.len() {
        return;
    }
    let degrees = |field: [f64; 2]| field.map(|tan| 2.0 * tan.atan().to_degrees());
    let ([w, h], [x, y]) = (degrees(own), degrees(of(&first.camera)));
    let what =
        if w < x || h < y { "what lies outside is cut off" } else { "its border stays empty" };
    let cause = match input.k == InputConfig::default().k {
        true => "it is SwissCube's: ",
        false => "",
    };
    tracing::warn!(
        "INPUT.INTERNAL_K sees {w:.1} x {h:.1} degrees, the camera of {num} of {} images {x:.1} x {y:.1} degrees ({}): \
         {what}; {cause}set it to the images' K scaled to INTERNAL_WIDTH and INTERNAL_HEIGHT",
        frames.len(),
        first.image
    );
}

/// Tangents of half the field of view, horizontal and vertical.
fn field_of(camera: &Camera, (width, height): (f64, f64)) -> [f64; 2] {
    let (fx, fy) = camera.focal_px();
    [width / (2.0 * fx), height / (2.0 * fy)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints_name_the_smaller_description() {
        let hint = unit_hint(("the box", 0.18), ("the mesh", 180.0));
        assert_eq!(hint, " (1000 times): is the box in metres? expected mm");
        let hint = unit_hint(("the box", 180.0), ("the mesh", 18.0));
        assert_eq!(hint, " (10 times): is the mesh in centimetres? expected mm");
        assert_eq!(unit_hint(("the box", 180.0), ("the mesh", 90.0)), "");
    }

    #[test]
    fn a_diameter_lies_between_longest_side_and_diagonal() {
        let size = Vec3::new(30.0, 40.0, 120.0); // diagonal 130
        for fine in [119.0, 125.0, 131.0] {
            assert!(check_diameter(fine, "it", &size).is_ok());
        }
        // Warned of.
        assert!(check_diameter(60.0, "it", &size).is_ok());
        let error = check_diameter(0.125, "it", &size).unwrap_err().to_string();
        assert!(error.contains("diameter of 0.125 mm for it, which is 30.00 x 40.00 x 120.00 mm"));
        assert!(error.contains("(1040 times): is data.MESH_DIAMETERS in metres?"), "{error}");
    }

    #[test]
    fn a_camera_of_larger_images_has_its_middle_elsewhere() {
        let camera = Camera::new(500.0, 500.0, 320.0, 240.0).unwrap();
        assert_eq!(off_center(&camera, (640, 480)), None);
        assert_eq!(off_center(&camera, (600, 460)), None);
        let text = off_center(&camera, (480, 360)).unwrap();
        assert!(text.contains("67 % of the width and 67 % of the height"), "{text}");
        assert!(text.contains("is the camera for images of 640 x 480 px?"), "{text}");
    }
}
