//! Pictures: RGB images and instance masks, read as the published code reads them, and written whole.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
pub use image::metadata::Orientation;
use image::{
    DynamicImage, GrayImage, ImageBuffer, ImageDecoder, ImageEncoder, ImageFormat, ImageReader,
    Limits, Pixel, PixelWithColorType, RgbImage,
};

use super::atomic::{Durability, replace};

/// Reads a PNG, JPEG or TIFF (told apart by content) as 8-bit RGB.
///
/// 16-bit channels are scaled by 255 / 65535 and rounded, grey is repeated, and pixels whose alpha is 0 become
/// white; other alpha is ignored.
///
/// # Errors
/// If the file cannot be read, is truncated, damaged or no PNG, JPEG or TIFF; names the file.
pub fn read_rgb(path: &Path) -> Result<RgbImage> {
    let (decoded, _) = decode(path).with_context(|| format!("reading image {}", path.display()))?;
    Ok(rgb_of(decoded))
}

/// As [`read_rgb`], and which way the picture's EXIF tag says that it is to be turned; the pixels are as stored.
///
/// # Errors
/// As [`read_rgb`].
pub fn read_rgb_with_orientation(path: &Path) -> Result<(RgbImage, Orientation)> {
    let (decoded, orientation) =
        decode(path).with_context(|| format!("reading image {}", path.display()))?;
    Ok((rgb_of(decoded), orientation))
}

/// As [`read_rgb`], turned as its EXIF tag says: what OpenCV's `imread` and image viewers show.
///
/// # Errors
/// As [`read_rgb`].
pub fn read_rgb_upright(path: &Path) -> Result<RgbImage> {
    let (mut decoded, orientation) =
        decode(path).with_context(|| format!("reading image {}", path.display()))?;
    decoded.apply_orientation(orientation);
    Ok(rgb_of(decoded))
}

/// As [`read_rgb_upright`], of the bytes of a file.
///
/// # Errors
/// As [`read_rgb`], without a name.
pub fn rgb_upright_of_bytes(bytes: &[u8]) -> Result<RgbImage> {
    let (mut decoded, orientation) = decode_bytes(bytes)?;
    decoded.apply_orientation(orientation);
    Ok(rgb_of(decoded))
}

/// Width and height of a picture as stored, px, and how its EXIF tag says that it is to be turned; only the beginning of the
/// file is read.
///
/// # Errors
/// If the file cannot be read or is not a PNG, JPEG or TIFF.
pub fn size_and_orientation(path: &Path) -> Result<((u32, u32), Orientation)> {
    let reading = || format!("reading image {}", path.display());
    let reader = ImageReader::open(path).with_context(reading)?;
    let reader = reader.with_guessed_format().with_context(reading)?;
    let mut decoder = reader.into_decoder().with_context(reading)?;
    Ok((decoder.dimensions(), orientation_of(&mut decoder)))
}

/// Width and height after turning.
pub fn upright_size((width, height): (u32, u32), orientation: Orientation) -> (u32, u32) {
    match orientation {
        Orientation::Rotate90
        | Orientation::Rotate270
        | Orientation::Rotate90FlipH
        | Orientation::Rotate270FlipH => (height, width),
        _ => (width, height),
    }
}

/// A tag that cannot be read turns nothing, as in OpenCV.
fn orientation_of(decoder: &mut impl ImageDecoder) -> Orientation {
    decoder.orientation().unwrap_or(Orientation::NoTransforms)
}

fn rgb_of(decoded: DynamicImage) -> RgbImage {
    if !decoded.color().has_alpha() {
        return decoded.into_rgb8(); // of 16 bits: (v + 128) / 257, which is v * 255 / 65535 rounded
    }
    let rgba = decoded.into_rgba8();
    ImageBuffer::from_fn(rgba.width(), rgba.height(), |x, y| {
        let [r, g, b, alpha] = rgba.get_pixel(x, y).0;
        image::Rgb(if alpha == 0 { [255; 3] } else { [r, g, b] })
    })
}

/// Reads a mask: one byte a pixel, 0 outside.
///
/// Of colour the largest channel counts, alpha is ignored, and 16-bit values above 255 become 255, so that no
/// pixel of an object is lost.
///
/// # Errors
/// As [`read_rgb`].
pub fn read_mask(path: &Path) -> Result<GrayImage> {
    let (decoded, _) = decode(path).with_context(|| format!("reading mask {}", path.display()))?;
    let is_16_bit = decoded.color().bytes_per_pixel() > decoded.color().channel_count();
    Ok(match decoded {
        DynamicImage::ImageLuma8(mask) => mask,
        wide if is_16_bit => largest_channel(&wide.into_rgb16(), |v| v.min(255) as u8),
        color => largest_channel(&color.into_rgb8(), |v| v),
    })
}

/// Reads a depth image: width and height, px, and a value a pixel, row by row, of 8 or 16 bits.
///
/// # Errors
/// If the file cannot be read, is damaged, or has colours; names the file.
pub fn read_depth(path: &Path) -> Result<([usize; 2], Vec<u16>)> {
    let reading = || format!("reading depth image {}", path.display());
    let (decoded, _) = decode(path).with_context(reading)?;
    let size = [decoded.width() as usize, decoded.height() as usize];
    let values = match decoded {
        DynamicImage::ImageLuma16(depth) => depth.into_raw(),
        DynamicImage::ImageLuma8(depth) => depth.into_raw().into_iter().map(u16::from).collect(),
        other => bail!("{}: it is {:?}, expected one channel", reading(), other.color()),
    };
    Ok((size, values))
}

/// Writes a depth image, 16 bits a pixel, as a PNG of `size` (width and height, px), whole or not at all. Not synced to the
/// disk: pictures can be made again.
///
/// # Errors
/// If there are not as many values as pixels, or the file cannot be written; names the file.
pub fn write_depth(path: &Path, size: [u32; 2], values: Vec<u16>) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    let [width, height] = size;
    let num = values.len();
    ensure!(
        num as u64 == u64::from(width) * u64::from(height),
        "{}: {num} values for {width} x {height} px",
        path.display()
    );
    let image: Option<ImageBuffer<image::Luma<u16>, _>> =
        ImageBuffer::from_raw(width, height, values);
    let image = image.with_context(writing)?;
    let mut bytes = Vec::new();
    image.write_with_encoder(PngEncoder::new(&mut bytes)).with_context(writing)?;
    replace(path, Durability::Unsynced, |out| Ok(out.write_all(&bytes)?))
}

fn largest_channel<T: image::Primitive>(
    image: &ImageBuffer<image::Rgb<T>, Vec<T>>,
    narrow: impl Fn(T) -> u8,
) -> GrayImage
where
    image::Rgb<T>: Pixel<Subpixel = T>,
{
    ImageBuffer::from_fn(image.width(), image.height(), |x, y| {
        let channels = image.get_pixel(x, y).0;
        image::Luma([channels.into_iter().map(&narrow).max().unwrap_or(0)])
    })
}

fn decode(path: &Path) -> Result<(DynamicImage, Orientation)> {
    decode_bytes(&fs::read(path)?)
}

fn decode_bytes(bytes: &[u8]) -> Result<(DynamicImage, Orientation)> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    match reader.format() {
        Some(ImageFormat::Png) => ensure!(png_is_complete(bytes), "the PNG is truncated"),
        Some(ImageFormat::Jpeg) => ensure!(jpeg_is_complete(bytes), "the JPEG is truncated"),
        // Its decoder refuses what is cut off.
        Some(ImageFormat::Tiff) => {}
        _ if bytes.is_empty() => bail!("the file is empty"),
        _ => bail!("the content is neither PNG nor JPEG nor TIFF"),
    }
    let mut decoder = reader.into_decoder()?;
    Limits::default().reserve(decoder.total_bytes())?; // 512 MiB
    let orientation = orientation_of(&mut decoder);
    Ok((DynamicImage::from_decoder(decoder)?, orientation))
}

/// Whether the chunks (length, name, data, checksum) reach as far as `IEND`.
fn png_is_complete(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(8..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let Some(end) = (u32::from_be_bytes(*length) as usize).checked_add(8) else { return false };
        if after.len() < end {
            return false;
        }
        if after.starts_with(b"IEND") {
            return true;
        }
        rest = &after[end..];
    }
    false
}

/// Whether the segments and scans reach as far as the end-of-image marker.
///
/// The decoder itself fills what is missing with grey and says nothing.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const START_OF_IMAGE: u8 = 0xd8;
    const END_OF_IMAGE: u8 = 0xd9;
    const START_OF_SCAN: u8 = 0xda;
    let mut at = 2; // after start-of-image
    loop {
        // To the next marker: inside a scan 0xff is followed by 0 or by a restart marker, else it is one.
        while bytes.get(at).is_some_and(|&b| b != 0xff) {
            at += 1;
        }
        let Some(&marker) = bytes.get(at + 1) else { return false };
        match marker {
            END_OF_IMAGE => return true,
            START_OF_IMAGE => return false, // of another one: this one breaks off
            0xff => at += 1,
            0 | 0x01 | 0xd0..=0xd7 => at += 2,
            _ => {
                let Some(length) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]]));
                if marker == START_OF_SCAN && at >= bytes.len() {
                    return false;
                }
            }
        }
    }
}

/// Writes a PNG, whole or not at all. Not synced to the disk: pictures can be made again.
///
/// # Errors
/// If the file cannot be written; names it.
pub fn write_png<P>(path: &Path, image: &ImageBuffer<P, Vec<u8>>) -> Result<()>
where
    P: Pixel<Subpixel = u8> + PixelWithColorType,
{
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(image.as_raw(), image.width(), image.height(), P::COLOR_TYPE)
        .with_context(|| format!("writing {}", path.display()))?;
    replace(path, Durability::Unsynced, |out| Ok(out.write_all(&bytes)?))
}

/// Writes a JPEG of that quality (1..=100), whole or not at all. Not synced to the disk: pictures can be made again.
///
/// # Errors
/// If the quality is outside its range, or the file cannot be written; names it.
pub fn write_jpeg(path: &Path, image: &RgbImage, quality: u8) -> Result<()> {
    let at = path.display();
    ensure!(
        (1..=100).contains(&quality),
        "writing {at}: JPEG quality {quality} is outside 1..=100"
    );
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode_image(image)
        .with_context(|| format!("writing {at}"))?;
    replace(path, Durability::Unsynced, |out| Ok(out.write_all(&bytes)?))
}

#[cfg(test)]
mod tests;
