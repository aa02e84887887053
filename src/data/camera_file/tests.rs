use super::*;
use crate::geom::Distortion;

const OPENCV: &str = "%YAML:1.0\n---\ncalibration_time: \"Mon 01 Jan 2024 10:00:00\"\nimage_width: 640\nimage_height: 480\n\
    flags: 0\ncamera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n   data: [ 5.3e+02, 0., 3.2e+02, 0., 531., \
    2.4e+02, 0.,\n       0., 1. ]\ndistortion_coefficients: !!opencv-matrix\n   rows: 5\n   cols: 1\n   dt: d\n   \
    data: [ -2.8e-01, 7.0e-02, 1.0e-04, -2.0e-04, 0. ]\navg_reprojection_error: 2.1e-01\n";
const ROS: &str = "image_width: 640\nimage_height: 480\ncamera_name: narrow_stereo\ncamera_matrix:\n  rows: 3\n  cols: 3\n  \
    data: [530, 0, 320, 0, 531, 240, 0, 0, 1]\ndistortion_model: plumb_bob\ndistortion_coefficients:\n  rows: 1\n  cols: 5\n  \
    data: [-0.28, 0.07, 0.0001, -0.0002, 0]\nrectification_matrix:\n  rows: 3\n  cols: 3\n  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]\n\
    projection_matrix:\n  rows: 3\n  cols: 4\n  data: [500, 0, 320, 0, 0, 500, 240, 0, 0, 0, 1, 0]\n";

fn read(text: &str) -> Result<CameraFile> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cam.txt");
    fs::write(&path, text).unwrap();
    read_camera(&path)
}

fn error_of(text: &str) -> String {
    let error = format!("{:#}", read(text).expect_err(text));
    assert!(error.contains("cam.txt") && !error.contains('\n'), "{error}");
    error
}

fn expected(distortion: Distortion, size: Option<Size>) -> CameraFile {
    let camera = Camera::new(530.0, 531.0, 320.0, 240.0).unwrap();
    CameraFile { lens: Lens::new(camera, distortion), size }
}

#[test]
fn every_form_of_the_same_camera_is_read_alike() {
    let plain = expected(Distortion::None, None);
    let sized = expected(Distortion::None, Some((640, 480)));
    let k = "[530, 0, 320, 0, 531, 240, 0, 0, 1]";
    let four = r#""fx": 530.0, "fy": 531, "cx": 320, "cy": 240"#;
    for (text, camera) in [
        (format!("{{{four}}}"), plain.clone()),
        (
            format!("{{{four}, \"depth_scale\": 0.1, \"width\": 640, \"height\": 480}}"),
            sized.clone(),
        ),
        (format!("{{\"K\": {k}}}"), plain.clone()),
        (format!("\u{feff}{{\"cam_K\": {k}, \"depth_scale\": 1.0}}"), plain.clone()),
        ("{\"K\": [[530, 0, 320], [0, 531, 240], [0, 0, 1]]}".to_owned(), plain.clone()),
        (format!("K: {k}\nwidth: 640\nheight: 480\n"), sized.clone()),
        ("fx: 530\nfy: 531.0\ncx: 3.2e2\ncy: 240.\n".to_owned(), plain.clone()),
        (
            format!(
                "height: 480\nwidth: 640\ndistortion_model: ''\nd: []\nk: {k}\nbinning_x: 0\nroi: {{x_offset: 0}}"
            ),
            sized.clone(),
        ),
        (
            format!("{{\"K\": {k}, \"D\": [0, 0, 0, 0, 0], \"width\": 0, \"height\": 0}}"),
            plain.clone(),
        ),
    ] {
        assert_eq!(read(&text).unwrap(), camera, "{text}");
    }
    let distortion = Distortion::polynomial(&[-0.28, 0.07, 1e-4, -2e-4, 0.0]).unwrap();
    let lens = expected(distortion, Some((640, 480)));
    let json = r#"{"image_width": 640, "image_height": 480,
        "camera_matrix": {"type_id": "opencv-matrix", "rows": 3, "cols": 3, "dt": "d", "data": [530,0,320,0,531,240,0,0,1]},
        "distortion_coefficients": {"type_id": "opencv-matrix", "rows": 1, "cols": 5, "dt": "d", "data": [-0.28, 0.07, 1e-4, -2e-4, 0]}}"#;
    for text in [OPENCV, &OPENCV.replace('\n', "\r\n"), ROS, json] {
        assert_eq!(read(text).unwrap(), lens, "{text}");
    }
    let named = format!(
        "{{{four}, \"width\": 640, \"height\": 480, \"k1\": -0.28, \"k2\": 0.07, \"p1\": 1e-4, \"p2\": -2e-4}}"
    );
    assert_eq!(read(&named).unwrap(), lens);
}

#[test]
fn models_of_distortion_are_told_by_name_and_count() {
    let with = |model: &str, d: &str| {
        ROS.replace("plumb_bob", model)
            .replace("cols: 5", "")
            .replace("[-0.28, 0.07, 0.0001, -0.0002, 0]", d)
    };
    let of = |text: &str| *read(text).unwrap().lens.distortion();
    let fisheye = Distortion::equidistant(&[0.1, 0.2, 0.3, 0.4]).unwrap();
    assert_eq!(of(&with("equidistant", "[0.1, 0.2, 0.3, 0.4]")), fisheye);
    let opencv = OPENCV
        .replace("rows: 5", "rows: 4")
        .replace("[ -2.8e-01, 7.0e-02, 1.0e-04, -2.0e-04, 0. ]", "[0.1, 0.2, 0.3, 0.4]");
    assert_eq!(of(&opencv.replace("flags: 0", "fisheye_model: 1")), fisheye);
    assert!(matches!(
        of(&opencv.replace("flags: 0", "fisheye_model: 0")),
        Distortion::Polynomial { .. }
    ));
    let eight = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
    let rational = Distortion::polynomial(&eight).unwrap();
    assert_eq!(of(&with("rational_polynomial", &format!("{eight:?}"))), rational);
    assert_eq!(of(&with("plumb_bob", "[]")), Distortion::None);

    for (model, d, expected) in [
        ("plumb_bob", "[0, 1, 2]", "has 3 numbers, but distortion_model \"plumb_bob\" has 4 or 5"),
        ("plumb_bob", "[1, 1, 1, 1, 1, 1, 1, 1]", "has 8 numbers"),
        ("equidistant", "[0, 1, 2]", "3 distortion coefficients of a fisheye lens"),
        (
            "inverse_brown",
            "[0, 1, 2, 3]",
            "distortion_model is \"inverse_brown\", expected plumb_bob",
        ),
        ("none", "[0, 1]", "distortion_model is \"none\", but"),
        ("plumb_bob", "[0, .nan, 0, 0]", "is null, expected a number"),
        ("plumb_bob", "[0, x, 0, 0]", "is \"x\", expected a number"),
    ] {
        let error = error_of(&with(model, d));
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_file_that_is_no_camera_says_why() {
    let good = r#"{"fx": 530, "fy": 531, "cx": 320, "cy": 240, "width": 640, "height": 480}"#;
    for (find, put, expected) in [
        (good, "", "is empty"),
        (good, "[1, 2]", "not a map"),
        (good, "hello", "not a map"),
        (good, "a: [1,\nb: }", "line "),
        (
            good,
            "{\"depth_scale\": 1, \"w\": 2}",
            "neither K (camera_matrix) nor fx, fy, cx, cy; its keys are depth_scale, w",
        ),
        (good, "{}", "its keys are none"),
        (good, "<?xml version=\"1.0\"?>", "is XML"),
        (good, "{\"K\": [1, 2, 3]}", "K has 3 numbers, expected 9"),
        (good, "{\"K\": {\"rows\": 3}}", "K is a map without data"),
        (good, "{\"K\": 7}", "K is 7, expected a list"),
        (
            good,
            "{\"K\": [530, 0, 320, 0, 0, 240, 0, 0, 1]}",
            "focal lengths 530 and 0 px, expected more than 0",
        ),
        ("\"fy\": 531, ", "", "fy is missing"),
        ("530", "-530", "expected more than 0"),
        ("531", "\"531\"", "fy is \"531\", expected a number"),
        ("530", "null", "fx is null"),
        ("\"height\": 480", "\"h\": 480", "width stands without height"),
        ("480", "480.5", "height is 480.5, expected a whole number"),
        ("480", "0", "expected more than 0"),
        ("480", "200", "the middle (320, 240) px lies outside of its images of 640 x 200 px"),
        ("480", "480, \"binning_x\": 2", "binning_x is 2"),
        ("480", "480, \"roi\": {\"x_offset\": 8}", "roi.x_offset is 8"),
        ("}", "", "line 1"),
    ] {
        let error = error_of(&good.replacen(find, put, 1));
        assert!(error.contains(expected), "{put:?}: {error}");
    }
    let rows = OPENCV.replacen("rows: 3", "rows: 4", 1);
    assert!(error_of(&rows).contains("camera_matrix.rows is 4, expected 3"));
    let count = OPENCV.replacen("rows: 5", "rows: 4", 1);
    assert!(error_of(&count).contains("has 5 numbers, but rows and cols are 4 and 1"));
    let error = format!("{:#}", read_camera(Path::new("no/such.json")).unwrap_err());
    assert!(error.starts_with("reading camera no/such.json"), "{error}");
}

#[test]
fn damaged_files_are_errors_not_crashes() {
    for text in [OPENCV, ROS] {
        for end in 0..text.len() {
            drop(read(&text[..end]));
        }
    }
    assert!(error_of(&"[".repeat(100_000)).contains("cam.txt"));
    assert!(error_of(&format!("a: {}", "[".repeat(100_000))).contains("lists in lists"));
    assert!(error_of(&"x".repeat(5 << 20)).contains("bytes"));
}

/// K and size in the words of different programs.
#[test]
fn cameras_of_many_programs_are_read_alike() {
    let radtan = Distortion::polynomial(&[-0.28, 0.07, 1e-4, -2e-4]).unwrap();
    let fisheye = Distortion::equidistant(&[-0.28, 0.07, 1e-4, -2e-4]).unwrap();
    let four = "-0.28, 0.07, 0.0001, -0.0002";
    let sized = Some((640, 480));
    let kalibr = format!(
        "cam0:\n  cam_overlaps: []\n  camera_model: pinhole\n  distortion_coeffs: [{four}]\n  distortion_model: radtan\n  \
         intrinsics: [530, 531, 320, 240]\n  resolution: [640, 480]\n  rostopic: /cam0/image_raw\n"
    );
    let euroc = format!(
        "sensor_type: camera\ncomment: VI-Sensor cam0\nT_BS:\n  cols: 4\n  rows: 4\n  data: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]\n\
         rate_hz: 20\nresolution: [640, 480]\ncamera_model: pinhole\nintrinsics: [530, 531, 320, 240]\n\
         distortion_model: radial-tangential\ndistortion_coefficients: [{four}]\n"
    );
    let vins = "%YAML:1.0\n---\nmodel_type: PINHOLE\ncamera_name: camera\nimage_width: 640\nimage_height: 480\n\
        distortion_parameters:\n   k1: -2.8e-01\n   k2: 7.0e-02\n   p1: 1.0e-04\n   p2: -2.0e-04\n\
        projection_parameters:\n   fx: 530\n   fy: 531\n   cx: 320\n   cy: 240\n";
    let vins_fisheye = "%YAML:1.0\n---\nmodel_type: KANNALA_BRANDT\nimage_width: 640\nimage_height: 480\n\
        projection_parameters:\n   k2: -2.8e-01\n   k3: 7.0e-02\n   k4: 1.0e-04\n   k5: -2.0e-04\n   mu: 530\n   mv: 531\n   \
        u0: 320\n   v0: 240\n";
    let realsense = |model: &str, coeffs: &str| {
        format!(
            "{{\"width\": 640, \"height\": 480, \"ppx\": 320, \"ppy\": 240, \"fx\": 530, \"fy\": 531, \
             \"model\": \"{model}\", \"coeffs\": [{coeffs}]}}"
        )
    };
    let orb = "%YAML:1.0\n---\nCamera.type: \"KannalaBrandt8\"\nCamera.fx: 530.0\nCamera.fy: 531.0\nCamera.cx: 320.0\n\
        Camera.cy: 240.0\nCamera.k1: -0.28\nCamera.k2: 0.07\nCamera.k3: 0.0001\nCamera.k4: -0.0002\nCamera.width: 640\n\
        Camera.height: 480\nCamera.fps: 20.0\nCamera.bf: 40.0\n";
    let nerf = "{\"fl_x\": 530, \"fl_y\": 531, \"cx\": 320, \"cy\": 240, \"w\": 640, \"h\": 480, \"k1\": -0.28, \
        \"k2\": 0.07, \"p1\": 1e-4, \"p2\": -2e-4, \"camera_model\": \"OPENCV\", \"is_fisheye\": false, \
        \"frames\": [{\"file_path\": \"a.png\", \"transform_matrix\": [[1, 0], [0, 1]]}]}";
    let speed = format!(
        "{{\"Nu\": 640, \"Nv\": 480, \"ppx\": 5.86e-6, \"ppy\": 5.86e-6, \"fx\": 0.0031, \"fy\": 0.0031, \"ccx\": 320, \
         \"ccy\": 240, \"cameraMatrix\": [[530, 0, 320], [0, 531, 240], [0, 0, 1]], \"distCoeffs\": [{four}]}}"
    );
    let open3d = "{\"width\": 640, \"height\": 480, \"intrinsic_matrix\": [530, 0, 0, 0, 531, 0, 320, 240, 1]}";
    let colmap = format!(
        "# Camera list\r\n1 OPENCV 640 480 530 531 320.5 240.5 {}\r\n",
        four.replace(',', "")
    );
    let matlab = "{\"ImageSize\": [640, 480], \"K\": [[530, 0, 320], [0, 531, 240], [0, 0, 1]], \
        \"RadialDistortion\": [-0.28, 0.07], \"TangentialDistortion\": [1e-4, -2e-4]}";
    let nested = format!(
        "{{\"cameras\": [{{\"intrinsics\": {{\"fx\": 530, \"fy\": 531, \"cx\": 320, \"cy\": 240}}, \
         \"image_size\": {{\"width\": 640, \"height\": 480}}, \"distortion\": {{\"type\": \"plumb bob\", \"params\": [{four}]}}}}]}}"
    );
    for (text, distortion) in [
        (kalibr.clone(), radtan),
        (kalibr.replace("radtan", "equidistant"), fisheye),
        (euroc, radtan),
        (vins.to_owned(), radtan),
        (vins_fisheye.to_owned(), fisheye),
        (realsense("Brown Conrady", &format!("{four}, 0")), radtan),
        (realsense("distortion.kannala_brandt4", &format!("{four}, 0")), fisheye),
        (realsense("Inverse Brown Conrady", "0, 0, 0, 0, 0"), Distortion::None),
        (orb.to_owned(), fisheye),
        (nerf.to_owned(), radtan),
        (
            nerf.replace("p1", "k3")
                .replace("p2", "k4")
                .replace("false, \"fr", "true, \"fr")
                .replace("OPENCV", "PINHOLE"),
            fisheye,
        ),
        (speed, radtan),
        (open3d.to_owned(), Distortion::None),
        (colmap.clone(), radtan),
        (colmap.replace("OPENCV", "OPENCV_FISHEYE"), fisheye),
        (matlab.to_owned(), radtan),
        (nested, radtan),
    ] {
        assert_eq!(read(&text).unwrap(), expected(distortion, sized), "{text}");
    }
    let radial = read("7 SIMPLE_RADIAL 640 480 530 320.5 240.5 -0.1").unwrap();
    assert_eq!(radial.lens.camera().focal_px(), (530.0, 530.0));
    assert_eq!(*radial.lens.distortion(), Distortion::polynomial(&[-0.1, 0.0, 0.0, 0.0]).unwrap());
}

/// A camera with more keys.
fn with(more: &str) -> String {
    format!("{{\"K\": [530, 0, 320, 0, 531, 240, 0, 0, 1], {more}}}")
}

#[test]
fn coefficients_are_found_whatever_their_key_is_called() {
    let four = "-0.28, 0.07, 1e-4, -2e-4";
    let lens = Distortion::polynomial(&[-0.28, 0.07, 1e-4, -2e-4]).unwrap();
    for key in [
        "distortion_coeffs",
        "DistCoeff",
        "dist-coef",
        "distortionCoefficients",
        "distortion_params",
        "lens_distortion",
        "coeffs",
        "DIST",
        "d",
        "distortion_vector",
        "radial_tangential",
    ] {
        let text = with(&format!("\"{key}\": [{four}]"));
        assert_eq!(*read(&text).unwrap().lens.distortion(), lens, "{key}");
    }
    for more in [
        "\"distortion\": {\"k1\": -0.28, \"k2\": 0.07, \"p1\": 1e-4, \"p2\": -2e-4}".to_owned(),
        "\"dist_k1\": -0.28, \"dist_k2\": 0.07, \"dist_p1\": 1e-4, \"dist_p2\": -2e-4".to_owned(),
        format!(
            "\"lens\": {{\"distortion\": {{\"coefficients\": [[{four}]], \"model\": \"radtan\"}}}}"
        ),
        format!("\"dist\": [{four}], \"D\": [[{four}]], \"k1\": 0"),
        format!("\"dist\": [{four}], \"num_dist_coeffs\": 4, \"distortion_std\": [1, 1, 1, 1]"),
        format!("\"dist\": [{four}], \"focus_distance\": 2.5, \"undistort\": false"),
    ] {
        let text = with(&more);
        assert_eq!(*read(&text).unwrap().lens.distortion(), lens, "{more}");
    }
}

#[test]
fn fisheye_lenses_are_told_by_many_keys() {
    let lens = Distortion::equidistant(&[0.1, 0.2, 0.3, 0.4]).unwrap();
    let d = "\"D\": [0.1, 0.2, 0.3, 0.4]";
    for model in [
        "\"model\": \"fisheye\"",
        "\"camera_model\": \"KANNALA_BRANDT\"",
        "\"cameraModel\": \"OPENCV_FISHEYE\"",
        "\"lens_type\": \"fisheye\"",
        "\"type\": \"equidistant\"",
        "\"projection\": \"equidistant\"",
        "\"camera\": {\"model\": \"pinhole-equi\"}",
        "\"fisheye\": true",
        "\"is_fisheye\": 1",
        "\"camera_model\": \"pinhole\", \"distortion_model\": \"equidistant\"",
    ] {
        let text = with(&format!("{model}, {d}"));
        assert_eq!(*read(&text).unwrap().lens.distortion(), lens, "{model}");
    }
    let own = with("\"fisheye\": {\"k1\": 0.1, \"k2\": 0.2, \"k3\": 0.3, \"k4\": 0.4}");
    assert_eq!(*read(&own).unwrap().lens.distortion(), lens);
    let flat = with(&format!("\"type\": \"monocular\", \"name\": \"dist\", \"fisheye\": 0, {d}"));
    assert!(matches!(read(&flat).unwrap().lens.distortion(), Distortion::Polynomial { .. }));
}

#[test]
fn what_speaks_of_a_lens_and_is_not_understood_is_an_error() {
    for (more, parts) in [
        ("\"distortion_center\": [1, 2]", &["distortion_center", "is not understood"][..]),
        ("\"inverse_distortion\": [0.1, 0, 0, 0]", &["inverse_distortion", "is not understood"]),
        ("\"lens\": {\"dist\": 0.3}", &["lens.dist (0.3)", "is not understood"]),
        ("\"k1\": 0.1, \"k9\": 0.2", &["k9"]),
        ("\"xi\": 0.8", &["xi (0.8)"]),
        ("\"undistorted_K\": [1, 2, 3]", &["undistorted_K"]),
        ("\"model\": \"double sphere\"", &["model is \"double sphere\", expected plumb_bob"]),
        (
            "\"model\": 4, \"coeffs\": [0, 0, 0, 0, 0]",
            &["model is 4, expected the name of a model"],
        ),
        ("\"camera_type\": \"omnidirectional\"", &["camera_type is \"omnidirectional\""]),
        ("\"camera_model\": \"C920\"", &["camera_model is \"C920\""]),
        ("\"model\": \"Inverse Brown Conrady\", \"coeffs\": [0.1, 0, 0, 0, 0]", &["not supported"]),
        ("\"model\": \"fisheye\"", &["0 distortion coefficients of a fisheye lens"]),
        (
            "\"model\": \"fisheye\", \"distortion_model\": \"plumb_bob\"",
            &["model is \"fisheye\", but distortion_model is \"plumb_bob\""],
        ),
        ("\"D\": [0.1, 0, 0, 0], \"dist\": [0.2, 0, 0, 0]", &["D and dist differ"]),
        ("\"D\": [0.1, 0, 0, 0], \"k1\": 0.2", &["D and k1, k2, ... contradict each other"]),
        ("\"a\": {\"k1\": 0.1}, \"b\": {\"k1\": 0.2}", &["b.k1 has two values"]),
        ("\"fx\": 600", &["fx is 600 px, but K has 530 px"]),
        (
            "\"cam1\": {\"K\": [1, 0, 1, 0, 1, 1, 0, 0, 1]}",
            &["K and cam1.K differ", "several cameras"],
        ),
        (
            "\"width\": 640, \"height\": 480, \"resolution\": [1280, 960]",
            &["width says 640 x 480 px, but resolution 1280 x 960 px"],
        ),
    ] {
        let error = error_of(&with(more));
        assert!(parts.iter().all(|part| error.contains(part)), "{more}: {error}");
    }
    let error = error_of("{\"fx\": 0.0176, \"fy\": 0.0176, \"cx\": 0.01, \"cy\": 0.01}");
    assert!(error.contains("0.0176 and 0.0176 px: are they in metres"), "{error}");
    for (line, expected) in [
        ("1 FOV 640 480 530 531 320 240 0.9", "COLMAP's model FOV is not supported"),
        (
            "1 OPENCV 640 480 530 531 320 240 0.9",
            "5 parameters of COLMAP's model OPENCV, expected 8",
        ),
        ("1 PINHOLE 640 480 1 1 1 1\n2 PINHOLE 640 480 1 1 1 1", "2 cameras"),
        ("1 PINHOLE 640 480 a 1 1 1", "\"a\" is not a number"),
    ] {
        let error = error_of(line);
        assert!(error.contains(expected), "{error}");
    }
}
