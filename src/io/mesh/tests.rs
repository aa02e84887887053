use super::*;

const SQUARE: &str = "ply\nformat ascii 1.0\ncomment a square\nelement vertex 4\nproperty float x\n\
    property float y\nproperty float z\nproperty uchar red\nelement face 1\n\
    property uchar flag\nproperty list uchar int vertex_indices\nproperty list uchar float texcoord\n\
    element edge 1\nproperty int a\nend_header\n\
    0 0 0 9\n1 0 0 9\n1 1 0.5 9\n\n0 1 0 9\n7 4 0 1 2 3 2 0.5 0.5\n3\n";

fn square() -> Mesh {
    let vertices = vec![[0.0; 3], [1.0, 0.0, 0.0], [1.0, 1.0, 0.5], [0.0, 1.0, 0.0]];
    Mesh { vertices, faces: vec![[0, 1, 2], [0, 2, 3]] }
}

/// The same square in binary, with a short for the count of corners and doubles for y.
fn binary_square(big_endian: bool) -> Vec<u8> {
    let order = if big_endian { "big" } else { "little" };
    let mut bytes = format!(
        "ply\r\nformat binary_{order}_endian 1.0\r\nelement vertex 4\r\nproperty float32 x\r\n\
         property double y\r\nproperty float z\r\nelement extra 1\r\nproperty list uchar short v\r\n\
         element face 1\r\nproperty list ushort uint vertex_index\r\nend_header\r\n"
    )
    .into_bytes();
    let mut put = |little: &[u8]| {
        let mut little = little.to_vec();
        if big_endian {
            little.reverse();
        }
        bytes.extend(little);
    };
    for [x, y, z] in square().vertices {
        put(&(x as f32).to_le_bytes());
        put(&y.to_le_bytes());
        put(&(z as f32).to_le_bytes());
    }
    put(&[2]);
    put(&1_i16.to_le_bytes());
    put(&(-2_i16).to_le_bytes());
    put(&4_u16.to_le_bytes());
    (0..4_u32).for_each(|i| put(&i.to_le_bytes()));
    bytes
}

fn error_of(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.ply");
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", read_ply(&path).unwrap_err());
    assert!(error.starts_with("reading mesh ") && error.contains("bad.ply: "), "{error}");
    error
}

#[test]
fn every_format_is_read_and_polygons_become_fans() {
    assert_eq!(parse(SQUARE.as_bytes()).unwrap(), square());
    assert_eq!(parse(SQUARE.replace('\n', "\r\n").as_bytes()).unwrap(), square());
    assert_eq!(parse(SQUARE.trim_end().as_bytes()).unwrap(), square());
    for big_endian in [false, true] {
        assert_eq!(parse(&binary_square(big_endian)).unwrap(), square());
    }
}

#[test]
fn every_scalar_type_is_decoded() {
    let bytes = [0xfe, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    let expected = [-2.0, 254.0, -2.0, 65534.0, -2.0, 4294967294.0];
    let types = [Scalar::I8, Scalar::U8, Scalar::I16, Scalar::U16, Scalar::I32, Scalar::U32];
    assert_eq!(types.map(|t| t.value(bytes)), expected);
    assert_eq!(Scalar::F64.value(1.5_f64.to_le_bytes()), 1.5);
}

#[test]
fn what_is_written_is_read_back_with_and_without_colours() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.ply");
    let mut mesh = square();
    mesh.vertices[3] = [0.1 + 0.2, -1e-7, 12345.678901234567];
    for colors in [None, Some([[1, 2, 3]; 4])] {
        write_ply(&path, &mesh, colors.as_ref().map(|c| c.as_slice())).unwrap();
        assert_eq!(read_ply(&path).unwrap(), mesh);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.contains("1 1 0.5 1 2 3\n"), colors.is_some(), "{text}");
    }
    let error = write_ply(&path, &mesh, Some(&[[0; 3]; 3])).unwrap_err();
    assert!(format!("{error:#}").contains("a.ply: 3 colours for 4 vertices"), "{error:#}");
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_ends() {
    for whole in [SQUARE.trim_end().as_bytes().to_vec(), binary_square(false), binary_square(true)]
    {
        // The very last ascii digit may go without a trace (`12` to `1`), here it is alone on its line.
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_err(), "{end} of {} bytes", whole.len());
        }
    }
}

#[test]
fn damage_is_named() {
    let cases = [
        ("element vertex 4", "element vertex 4000000000000000000", "do not fit into the"),
        ("element vertex 4", "element vertex 99999999999999999999", "line 4: `element vertex 9"),
        ("element vertex 4", "element vertex -1", "the count is not a whole number"),
        ("element vertex 4", "element vertex 5", "vertex 4: `2 3 2 0.5 0.5` is too much"),
        ("0 1 0 9\n", "0 1 0\n", "vertex 3: the line has too few numbers"),
        ("0 1 0 9\n", "0 nan 0 9\n", "vertex 3: the coordinate is NaN"),
        ("0 1 0 9\n", "0 1 x 9\n", "vertex 3: `x` is not a number"),
        ("4 0 1 2 3", "4 0 1 2 4", "a face has the corner 4, and there are 4 vertices"),
        ("4 0 1 2 3", "4 0 1 2 -1", "face 0: a corner: -1 is not a whole number"),
        ("4 0 1 2 3", "4 0 1 2 2.5", "2.5 is not a whole number"),
        ("4 0 1 2 3", "2 0 1", "face 0 has 2 corners, expected 3 or more"),
        ("4 0 1 2 3 2 0.5 0.5", "4000000000 0 1 2 3", "face 0: the line has too few numbers"),
        ("property float z", "property float w", "the vertices have no property z"),
        ("property float z", "property quad z", "`quad` is not a type of PLY"),
        ("vertex_indices", "indices", "the faces have no list vertex_indices"),
        ("element face", "element tristrips", "triangle strips are not supported"),
        ("element edge", "element face", "there are two elements face"),
        ("ascii 1.0", "text 1.0", "expected ascii, binary_little_endian"),
        ("format ascii 1.0\n", "", "the header names no format"),
        ("ply\n", "obj\n", "does not begin with `ply`"),
        ("end_header\n", "", "expected format, element, property or comment"),
    ];
    for (from, to, expected) in cases {
        assert!(SQUARE.contains(from));
        let error = error_of(SQUARE.replacen(from, to, 1).as_bytes());
        assert!(error.contains(expected), "{error}\nexpected {expected}");
    }
    assert!(error_of(b"ply\nformat ascii 1.0\nend_header\n").contains("the mesh has no vertices"));
    assert!(error_of(&[]).contains("does not begin with `ply`"));
    let error = read_ply(Path::new("no/such.ply")).unwrap_err();
    assert!(format!("{error:#}").starts_with("reading mesh no/such.ply: "), "{error:#}");
}

#[test]
fn comments_of_any_encoding_and_nan_of_unused_properties_are_no_fault() {
    let mut latin = SQUARE.replacen("a square", "gr@n", 1).into_bytes();
    let place = latin.iter().position(|&b| b == b'@').unwrap();
    latin[place] = 0xfc;
    assert_eq!(parse(&latin).unwrap(), square());
    for nan in ["-nan(ind)", "NaN", "-1.#IND00", "1.#QNAN"] {
        let text = SQUARE.replacen("0 1 0 9\n", &format!("0 1 0 {nan}\n"), 1);
        assert_eq!(parse(text.as_bytes()).unwrap(), square(), "{nan}");
        let error = error_of(SQUARE.replacen("0 1 0 9\n", &format!("0 1 {nan} 9\n"), 1).as_bytes());
        assert!(error.contains("vertex 3: the coordinate is NaN"), "{error}");
    }
}
