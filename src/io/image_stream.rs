//! Images one after the other in a stream of bytes: PNG and JPEG files without anything between them, or raw RGB.
//!
//! A file's end is found by its structure (PNG chunks, JPEG segments), so that one that cannot be decoded does not take the
//! next one with it; after bytes that are no image the next beginning of one is looked for.

use std::io::BufRead;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::RgbImage;

use super::picture::rgb_upright_of_bytes;

/// Largest file of an image, bytes.
const MAX_IMAGE_BYTES: usize = 1 << 28;
const PNG: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Marker of a JPEG: start of image, and the beginning of the marker behind it.
const JPEG: [u8; 3] = [0xff, 0xd8, 0xff];

/// How a stream holds its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamFormat {
    /// Whole PNG and JPEG files.
    Files,
    /// Pixels of 3 bytes, row by row, of images of this width and height.
    Raw(u32, u32),
}

/// An iterator over the images of a stream; an error is one image that cannot be read, and others may follow.
pub struct ImageStream<R> {
    reader: R,
    format: StreamFormat,
    ended: bool,
}

impl<R: BufRead> ImageStream<R> {
    /// Reads `reader` to its end.
    pub fn new(reader: R, format: StreamFormat) -> Self {
        Self { reader, format, ended: false }
    }

    fn next_image(&mut self) -> Result<Option<RgbImage>> {
        match self.format {
            StreamFormat::Raw(width, height) => raw(&mut self.reader, width, height),
            StreamFormat::Files => {
                let mut file = Vec::new();
                match next_file(&mut self.reader, &mut file)? {
                    Found::Nothing => Ok(None),
                    Found::Image => rgb_upright_of_bytes(&file).map(Some),
                    Found::Other(skipped) => bail!(
                        "{skipped} bytes of the stream are no PNG or JPEG and were skipped (raw RGB needs --raw WIDTHxHEIGHT)"
                    ),
                }
            }
        }
    }
}

impl<R: BufRead> Iterator for ImageStream<R> {
    type Item = Result<RgbImage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        // Nothing behind an image is looked at before it is handed on: the next one may be long in coming.
        let image = self.next_image();
        let is_io = |e: &anyhow::Error| e.downcast_ref::<std::io::Error>().is_some();
        self.ended = image.as_ref().err().is_some_and(is_io);
        image.transpose()
    }
}

/// What was in the stream.
enum Found {
    Nothing,
    /// A file, in the buffer.
    Image,
    /// So many bytes that begin no image.
    Other(usize),
}

/// Takes the bytes of the next image, or those before its beginning.
fn next_file(reader: &mut impl BufRead, file: &mut Vec<u8>) -> Result<Found> {
    let mut stream = Bytes { reader, taken: file };
    let Some(first) = stream.next()? else { return Ok(Found::Nothing) };
    match first {
        0x89 if stream.goes_on(&PNG[1..])? => png(&mut stream)?,
        0xff if stream.goes_on(&JPEG[1..])? => jpeg(&mut stream)?,
        _ => return skip(stream.reader, stream.taken.len()),
    }
    Ok(Found::Image)
}

/// Leaves bytes out up to what may be the beginning of an image.
fn skip(reader: &mut impl BufRead, mut skipped: usize) -> Result<Found> {
    loop {
        let buffer = reader.fill_buf()?;
        let begin = buffer.iter().position(|byte| matches!(byte, 0x89 | 0xff));
        let num = begin.unwrap_or(buffer.len());
        let (is_end, is_image) = (buffer.is_empty(), begin.is_some_and(|at| begins(&buffer[at..])));
        // A byte that begins nothing is one of those that are left out.
        let num = num + usize::from(begin.is_some() && !is_image);
        reader.consume(num);
        skipped += num;
        if is_end || is_image {
            return Ok(Found::Other(skipped));
        }
    }
}

/// Whether an image may begin here, as far as is known.
fn begins(bytes: &[u8]) -> bool {
    let agree = |magic: &[u8]| bytes.iter().zip(magic).all(|(a, b)| a == b);
    agree(&PNG) || agree(&JPEG)
}

/// A stream of which the bytes that were looked at are kept.
struct Bytes<'a, R> {
    reader: &'a mut R,
    taken: &'a mut Vec<u8>,
}

impl<R: BufRead> Bytes<'_, R> {
    fn next(&mut self) -> Result<Option<u8>> {
        let Some(&byte) = self.reader.fill_buf()?.first() else { return Ok(None) };
        self.reader.consume(1);
        ensure!(
            self.taken.len() < MAX_IMAGE_BYTES,
            "an image of the stream has more than {MAX_IMAGE_BYTES} bytes"
        );
        self.taken.push(byte);
        Ok(Some(byte))
    }

    fn byte(&mut self) -> Result<u8> {
        self.next()?.ok_or_else(cut_off)
    }

    fn u16(&mut self) -> Result<usize> {
        Ok(usize::from(self.byte()?) << 8 | usize::from(self.byte()?))
    }

    /// Whether the stream goes on with these bytes; takes those that do.
    fn goes_on(&mut self, expected: &[u8]) -> Result<bool> {
        for &expected in expected {
            match self.reader.fill_buf()?.first() {
                None => return Err(cut_off()),
                Some(&byte) if byte != expected => return Ok(false),
                Some(_) => drop(self.next()?),
            }
        }
        Ok(true)
    }

    fn take(&mut self, num: usize) -> Result<()> {
        ensure!(
            num <= MAX_IMAGE_BYTES - self.taken.len().min(MAX_IMAGE_BYTES),
            "an image of the stream has more than {MAX_IMAGE_BYTES} bytes"
        );
        let mut missing = num;
        while missing > 0 {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Err(cut_off());
            }
            let num = missing.min(buffer.len());
            self.taken.extend_from_slice(&buffer[..num]);
            self.reader.consume(num);
            missing -= num;
        }
        Ok(())
    }
}

fn cut_off() -> anyhow::Error {
    anyhow!("the stream ends within an image")
}

/// Chunks up to `IEND`: length, name, data, checksum (PNG, third edition, section 5.3).
fn png<R: BufRead>(stream: &mut Bytes<R>) -> Result<()> {
    loop {
        let length = stream.u16()? << 16 | stream.u16()?;
        let name = stream.taken.len();
        stream.take(4)?;
        let is_end = &stream.taken[name..] == b"IEND";
        stream.take(length)?;
        stream.take(4)?;
        if is_end {
            return Ok(());
        }
    }
}

/// Segments up to EOI; coded data behind SOS go on to the next marker that is neither a restart nor a stuffed zero
/// (ITU-T T.81, B.1.1). The marker's 0xff behind SOI is taken already.
fn jpeg<R: BufRead>(stream: &mut Bytes<R>) -> Result<()> {
    let mut marker = stream.byte()?;
    loop {
        while marker == 0xff {
            marker = stream.byte()?; // fill bytes
        }
        match marker {
            0xd9 => return Ok(()),
            0x01 | 0xd0..=0xd7 => {}
            _ => {
                let length = stream.u16()?;
                ensure!(length >= 2, "a JPEG of the stream has a segment of {length} bytes");
                stream.take(length - 2)?;
            }
        }
        // To the next marker: at once, or behind coded data.
        loop {
            while stream.byte()? != 0xff {}
            marker = stream.byte()?;
            if marker != 0 {
                break;
            }
        }
    }
}

fn raw(reader: &mut impl BufRead, width: u32, height: u32) -> Result<Option<RgbImage>> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut pixels = vec![0; width as usize * height as usize * 3];
    reader.read_exact(&mut pixels).map_err(|_| cut_off())?;
    RgbImage::from_raw(width, height, pixels).context("a frame's size does not fit").map(Some)
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Cursor};

    use image::ImageFormat;

    use super::*;

    fn file(side: u32, format: ImageFormat) -> Vec<u8> {
        let image = RgbImage::from_fn(side, side + 1, |x, y| {
            image::Rgb([(x * 40) as u8, (y * 30) as u8, ((x * y) % 255) as u8])
        });
        let mut out = Cursor::new(Vec::new());
        image.write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    /// Of small buffers, so that images lie across their ends.
    fn read(bytes: &[u8]) -> Vec<Result<(u32, u32), String>> {
        let reader = BufReader::with_capacity(7, bytes);
        ImageStream::new(reader, StreamFormat::Files)
            .take(20)
            .map(|image| image.map(|i| i.dimensions()).map_err(|e| format!("{e:#}")))
            .collect()
    }

    #[test]
    fn files_follow_each_other_without_anything_between() {
        let all = [
            file(5, ImageFormat::Jpeg),
            file(6, ImageFormat::Png),
            file(40, ImageFormat::Jpeg),
            file(8, ImageFormat::Jpeg),
        ];
        let sizes = [5, 6, 40, 8].map(|side| Ok((side, side + 1)));
        assert_eq!(read(&all.concat()), sizes);
        assert!(read(b"").is_empty());
    }

    #[test]
    fn a_broken_image_leaves_the_next_one_alone() {
        let mut broken = file(30, ImageFormat::Png);
        let middle = broken.len() / 2;
        broken[middle] ^= 0x55;
        let good = file(9, ImageFormat::Jpeg);
        let found = read(&[&broken[..], &good].concat());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].is_err() && found[1] == Ok((9, 10)), "{found:?}");
    }

    #[test]
    fn other_bytes_are_skipped_to_the_next_beginning() {
        let good = file(9, ImageFormat::Png);
        let found = read(&[b"--frame\xff\x89\r\n", &good[..], b"tail"].concat());
        let [Err(first), Ok((9, 10)), Err(last)] = &found[..] else { panic!("{found:?}") };
        assert!(first.contains("11 bytes") && first.contains("--raw"), "{first}");
        assert!(last.contains("4 bytes"), "{last}");
    }

    #[test]
    fn a_stream_that_breaks_off_ends_with_one_error() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let whole = file(20, format);
            for cut in [1, 5, 12, whole.len() / 2, whole.len() - 1] {
                let found = read(&[&whole[..], &whole[..cut]].concat());
                assert_eq!((found.len(), &found[0]), (2, &Ok((20, 21))), "{format:?} {cut}");
                assert!(found[1].is_err());
            }
        }
    }

    #[test]
    fn raw_frames_are_cut_by_their_size() {
        let bytes: Vec<u8> = (0..2 * 18 + 4).collect();
        let stream = ImageStream::new(bytes.as_slice(), StreamFormat::Raw(3, 2));
        let found: Vec<_> = stream.collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[1].as_ref().unwrap().as_raw()[..2], [18, 19]);
        assert!(found[2].as_ref().unwrap_err().to_string().contains("ends within an image"));
    }
}
