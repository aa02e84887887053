use super::*;
use image::{DynamicImage, Luma, LumaA, Rgb, Rgba};

/// Files with those contents, one after the other, at one path.
fn saved<T>(image: DynamicImage, read: impl FnOnce(&Path) -> Result<T>) -> T {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    image.save(&path).unwrap();
    read(&path).unwrap()
}

fn row<P: Pixel>(pixels: &[P]) -> ImageBuffer<P, Vec<P::Subpixel>> {
    ImageBuffer::from_fn(pixels.len() as u32, 1, |x, _| pixels[x as usize])
}

fn error_of(name: &str, bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", read_rgb(&path).unwrap_err());
    assert!(error.starts_with("reading image ") && error.contains(name), "{error}");
    let mask_error = format!("{:#}", read_mask(&path).unwrap_err());
    assert!(mask_error.starts_with("reading mask ") && mask_error.contains(name), "{mask_error}");
    error
}

/// A picture with enough detail that its scan has several hundred bytes.
fn detailed() -> RgbImage {
    ImageBuffer::from_fn(40, 24, |x, y| Rgb([(x * 6) as u8, (y * 10) as u8, (x * y % 251) as u8]))
}

#[test]
fn sixteen_bits_are_scaled_and_rounded() {
    let values = [0_u16, 128, 129, 257, 32767, 32768, 65406, 65407, 65535];
    let wide = row(&values.map(|v| Rgb([v, 0, 65535])));
    let read = saved(DynamicImage::ImageRgb16(wide), read_rgb);
    let expected = values.map(|v| Rgb([(f64::from(v) * 255.0 / 65535.0).round() as u8, 0, 255]));
    assert_eq!(read, row(&expected));
}

#[test]
fn grey_is_repeated() {
    let read = saved(DynamicImage::ImageLuma8(row(&[Luma([0]), Luma([77])])), read_rgb);
    assert_eq!(read, row(&[Rgb([0; 3]), Rgb([77; 3])]));
    let read = saved(DynamicImage::ImageLuma16(row(&[Luma([257 * 77])])), read_rgb);
    assert_eq!(read, row(&[Rgb([77; 3])]));
}

#[test]
fn transparent_becomes_white_and_half_transparent_stays() {
    let image = row(&[Rgba([1, 2, 3, 0]), Rgba([1, 2, 3, 1]), Rgba([1, 2, 3, 255])]);
    let read = saved(DynamicImage::ImageRgba8(image), read_rgb);
    assert_eq!(read, row(&[Rgb([255; 3]), Rgb([1, 2, 3]), Rgb([1, 2, 3])]));
    let image = row(&[LumaA([9, 0]), LumaA([9, 200])]);
    assert_eq!(
        saved(DynamicImage::ImageLumaA8(image), read_rgb),
        row(&[Rgb([255; 3]), Rgb([9; 3])])
    );
}

#[test]
fn masks_keep_small_values_whatever_their_type() {
    let expected = row(&[Luma([0]), Luma([1]), Luma([2]), Luma([255])]);
    let grey = DynamicImage::ImageLuma8(expected.clone());
    assert_eq!(saved(grey, read_mask), expected);
    let wide = row(&[Luma([0_u16]), Luma([1]), Luma([2]), Luma([65535])]);
    assert_eq!(saved(DynamicImage::ImageLuma16(wide), read_mask), expected);
    let colored = row(&[Rgb([0, 0, 0]), Rgb([0, 0, 1]), Rgb([2, 1, 0]), Rgb([255; 3])]);
    assert_eq!(saved(DynamicImage::ImageRgb8(colored), read_mask), expected);
    let alpha = row(&[Rgba([0, 0, 0, 9]), Rgba([1, 0, 0, 0]), Rgba([2; 4]), Rgba([255; 4])]);
    assert_eq!(saved(DynamicImage::ImageRgba8(alpha), read_mask), expected);
}

#[test]
fn a_png_comes_back_exactly_and_a_jpeg_nearly() {
    let folder = tempfile::tempdir().unwrap();
    let image = detailed();
    let png = folder.path().join("new/a.png");
    write_png(&png, &image).unwrap();
    assert_eq!(read_rgb(&png).unwrap(), image);
    let mask: GrayImage = ImageBuffer::from_fn(5, 4, |x, y| Luma([(x * y) as u8]));
    write_png(&png, &mask).unwrap();
    assert_eq!(read_mask(&png).unwrap(), mask);

    let smooth: RgbImage =
        ImageBuffer::from_fn(64, 48, |x, y| Rgb([(x * 3) as u8, (y * 5) as u8, 90]));
    // Named .png on purpose: the content decides.
    let jpeg = folder.path().join("b.png");
    let size_of = |quality| {
        write_jpeg(&jpeg, &smooth, quality).unwrap();
        fs::metadata(&jpeg).unwrap().len()
    };
    assert!(size_of(10) < size_of(95));
    let read = read_rgb(&jpeg).unwrap();
    let worst = read.iter().zip(smooth.iter()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(worst <= Some(8), "a value is off by {worst:?}");
    for quality in [0, 101] {
        let error = format!("{:#}", write_jpeg(&jpeg, &smooth, quality).unwrap_err());
        assert!(
            error.ends_with(&format!("b.png: JPEG quality {quality} is outside 1..=100")),
            "{error}"
        );
    }
}

#[test]
fn a_truncated_picture_is_an_error_wherever_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    write_png(&path, &detailed()).unwrap();
    let png = fs::read(&path).unwrap();
    write_jpeg(&path, &detailed(), 90).unwrap();
    let jpeg = fs::read(&path).unwrap();
    for (name, whole) in [("a.png", png), ("a.jpg", jpeg)] {
        decode_bytes(&whole).unwrap();
        for end in 0..whole.len() {
            assert!(decode_bytes(&whole[..end]).is_err(), "{end} bytes of {name}");
        }
        // Of the PNG's last checksum, and of the JPEG's end marker, nothing may be missing either.
        let error = error_of(name, &whole[..whole.len() - 1]);
        assert!(error.contains("truncated"), "{error}");
        let mut longer = whole.clone();
        longer.extend([1, 2, 3]);
        decode_bytes(&longer).unwrap();
    }
}

#[test]
fn jpegs_with_thumbnails_restarts_and_filled_markers_are_complete() {
    let segment = |marker: u8, body: &[u8]| {
        let length = (body.len() as u16 + 2).to_be_bytes();
        [&[0xff, marker], &length[..], body].concat()
    };
    let scan = [0x12, 0xff, 0x00, 0x34, 0xff, 0xd0, 0x56];
    // The thumbnail's own end marker lies inside a segment, and must not count.
    let parts = [
        vec![0xff, 0xd8],
        segment(0xe1, &[0xff, 0xd8, 0xff, 0xd9]),
        segment(0xda, &[0]),
        scan.to_vec(),
        vec![0xff, 0xff, 0xd9],
    ];
    let whole = parts.concat();
    assert!(jpeg_is_complete(&whole));
    for end in 0..whole.len() {
        assert!(!jpeg_is_complete(&whole[..end]), "{end} bytes");
    }
}

#[test]
fn other_files_and_huge_claims_are_refused() {
    assert!(error_of("a.png", b"").contains("the file is empty"));
    assert!(error_of("a.png", b"GIF89a....").contains("neither PNG nor JPEG"));
    let error = format!("{:#}", read_rgb(Path::new("no/such.png")).unwrap_err());
    assert!(error.starts_with("reading image no/such.png: "), "{error}");
    // A PNG that claims 60,000 x 60,000 pixels, its checksum right (by zlib's crc32).
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.png");
    write_png(&path, &detailed()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
    bytes[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
    let crc = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.to_be_bytes());
    let error = error_of("a.png", &bytes);
    assert!(error.to_lowercase().contains("limit"), "{error}");
}

/// The checksum of PNG chunks (ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 * (crc & 1)))
    })
}

/// A JPEG with that EXIF orientation, 1 to 8.
fn with_orientation(jpeg: &[u8], tag: u8) -> Vec<u8> {
    let exif =
        [&b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..], &[tag], &[0; 6]]
            .concat();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

#[test]
fn orientation_is_told_and_obeyed_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jpg");
    // Four areas of one colour each: red and green above, blue and white below, wider than high.
    let of = |x: u32, y: u32| match (x < 32, y < 16) {
        (true, true) => [255, 0, 0],
        (false, true) => [0, 255, 0],
        (true, false) => [0, 0, 255],
        (false, false) => [255; 3],
    };
    let image = RgbImage::from_fn(64, 32, |x, y| Rgb(of(x, y)));
    write_jpeg(&path, &image, 95).unwrap();
    let jpeg = fs::read(&path).unwrap();
    let stored = read_rgb(&path).unwrap();
    let name = |p: &Rgb<u8>| match p.0.map(|v| v > 128) {
        [true, false, false] => 'r',
        [false, true, false] => 'g',
        [false, false, true] => 'b',
        _ => 'w',
    };
    // The corners of the upright picture, row by row, by the EXIF standard (what is the 0th row and column).
    for (tag, corners) in [
        (1, "rgbw"),
        (2, "grwb"),
        (3, "wbgr"),
        (4, "bwrg"),
        (5, "rbgw"),
        (6, "brwg"),
        (7, "wgbr"),
        (8, "gwrb"),
    ] {
        fs::write(&path, with_orientation(&jpeg, tag)).unwrap();
        let upright = read_rgb_upright(&path).unwrap();
        let (w, h) = upright.dimensions();
        let seen: String = [(4, 4), (w - 5, 4), (4, h - 5), (w - 5, h - 5)]
            .iter()
            .map(|&(x, y)| name(upright.get_pixel(x, y)))
            .collect();
        assert_eq!(seen, corners, "tag {tag}");
        let (size, orientation) = size_and_orientation(&path).unwrap();
        assert_eq!((size, upright_size(size, orientation)), ((64, 32), (w, h)), "tag {tag}");
        let (as_stored, told) = read_rgb_with_orientation(&path).unwrap();
        assert_eq!((as_stored, told), (stored.clone(), orientation));
        assert_eq!(tag == 1, orientation == Orientation::NoTransforms);
    }
    // A tag that means nothing turns nothing.
    fs::write(&path, with_orientation(&jpeg, 99)).unwrap();
    assert_eq!(read_rgb_upright(&path).unwrap(), stored);
}

#[test]
fn tiff_is_read_as_other_pictures_are_and_depth_as_it_stands() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tif");
    let wide: ImageBuffer<Luma<u16>, Vec<u16>> =
        ImageBuffer::from_fn(5, 3, |x, y| Luma([257 * (10 * x + y) as u16]));
    wide.save(&path).unwrap();
    assert_eq!(size_and_orientation(&path).unwrap().0, (5, 3));
    assert_eq!(read_rgb(&path).unwrap().get_pixel(4, 2).0, [42; 3]);
    let (size, depth) = read_depth(&path).unwrap();
    assert_eq!((size, depth.len(), depth[14]), ([5, 3], 15, 257 * 42));
    let bytes = fs::read(&path).unwrap();
    error_of("b.tif", &bytes[..bytes.len() / 2]);
    let color = folder.path().join("c.png");
    detailed().save(&color).unwrap();
    let error = format!("{:#}", read_depth(&color).unwrap_err());
    assert!(error.contains("c.png: it is Rgb8, expected one channel"), "{error}");
}
