//! Images one after the other in a stream of bytes: PNG and JPEG files, or raw RGB.
//!
//! A file's end is found by its structure (PNG chunks, JPEG segments), so that one that cannot be decoded does not take the
//! next one with it. Where that structure breaks, the bytes from the break on are looked at again: the next image may begin
//! among them. Bytes between images (headers of a multipart stream, padding) are skipped, and so are the smaller copies of an
//! image that its file holds: thumbnails in its segments, and what a JPEG's multi-picture format lists behind it.

use std::io::{BufRead, Read};
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::RgbImage;

use super::jpeg_copies::{Copies, listed, thumbnail};
use super::picture::rgb_upright_of_bytes;

/// Largest file of an image, bytes.
const MAX_IMAGE_BYTES: usize = 1 << 28;
/// Bytes in which the first image has to begin.
const MAX_BYTES_BEFORE: usize = 1 << 20;
/// Bytes of a PNG's chunk that is no image data: a colour profile, text.
const MAX_CHUNK_BYTES: usize = 1 << 22;
const PNG: [u8; 8] = *b"\x89PNG\r\n\x1a\n";
/// Marker of a JPEG: start of image, and the beginning of the marker behind it.
const JPEG: [u8; 3] = [0xff, 0xd8, 0xff];
/// What is said where a JPEG begins within another one.
const BREAKS_OFF: &str = "a JPEG of the stream breaks off where the next one begins";
/// What is said where bytes are no image.
const HINT: &str = "raw RGB needs --raw WIDTHxHEIGHT";

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
    reader: Again<R>,
    format: StreamFormat,
    ended: bool,
    between: Between,
    /// Of the image before.
    copies: Copies,
}

/// What is known of the bytes that are no image.
#[derive(Default)]
struct Between {
    num_bytes: usize,
    /// An image has begun.
    has_image: bool,
    /// They are the rest of an image that is told as broken.
    is_rest: bool,
    is_told: bool,
}

impl<R: BufRead> ImageStream<R> {
    /// Reads `reader` to its end.
    pub fn new(reader: R, format: StreamFormat) -> Self {
        let reader = Again { reader, bytes: Vec::new(), at: 0 };
        Self {
            reader,
            format,
            ended: false,
            between: Between::default(),
            copies: Copies::default(),
        }
    }

    fn next_image(&mut self) -> Result<Option<RgbImage>> {
        match self.format {
            StreamFormat::Raw(width, height) => raw(&mut self.reader.reader, width, height),
            StreamFormat::Files => match self.next_file()? {
                None => Ok(None),
                Some(file) => rgb_upright_of_bytes(&file).map(Some),
            },
        }
    }

    /// The next file, behind what is none.
    fn next_file(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let mut file = Vec::new();
            let found = next_file(&mut self.reader, &mut file);
            let between = &mut self.between;
            match found {
                Ok(Found::Other(num)) if self.copies.pass(num) || between.is_rest => {}
                Ok(Found::Other(num)) => between.num_bytes += num,
                Ok(Found::Image(_)) if self.copies.take(file.len()) => {}
                Ok(Found::Image(_)) | Err(_) => {
                    between.has_image = true;
                    between.tell();
                    between.is_rest = found.is_err();
                    self.copies = match &found {
                        Ok(Found::Image(listed)) => Copies::behind(file.len(), listed),
                        _ => Copies::default(),
                    };
                    return found.map(|_| Some(file));
                }
                Ok(Found::Nothing) => {
                    self.ended = true;
                    between.tell();
                    return between.ensure_an_image().map(|()| None);
                }
            }
            if between.num_bytes > MAX_BYTES_BEFORE && !between.has_image {
                self.ended = true;
                return between.ensure_an_image().map(|()| None);
            }
        }
    }
}

impl Between {
    /// Says once that bytes are skipped.
    fn tell(&mut self) {
        if self.has_image && self.num_bytes > 0 && !self.is_told {
            self.is_told = true;
            tracing::warn!(
                "{} bytes of the stream are no PNG or JPEG and were skipped, as all such are from here on ({HINT})",
                self.num_bytes
            );
        }
    }

    fn ensure_an_image(&self) -> Result<()> {
        ensure!(
            self.has_image || self.num_bytes == 0,
            "no PNG or JPEG begins in the first {} bytes of the stream ({HINT})",
            self.num_bytes
        );
        Ok(())
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
        self.ended |= image.as_ref().err().is_some_and(is_io);
        image.transpose()
    }
}

/// A reader to which bytes can be given back.
struct Again<R> {
    reader: R,
    bytes: Vec<u8>,
    /// Of the bytes, those that were read again.
    at: usize,
}

impl<R> Again<R> {
    fn give_back(&mut self, bytes: &[u8]) {
        drop(self.bytes.splice(..self.at, bytes.iter().copied()));
        self.at = 0;
    }
}

impl<R: BufRead> Read for Again<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let num = self.fill_buf()?.read(buffer)?;
        self.consume(num);
        Ok(num)
    }
}

impl<R: BufRead> BufRead for Again<R> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        match self.at < self.bytes.len() {
            true => Ok(&self.bytes[self.at..]),
            false => self.reader.fill_buf(),
        }
    }

    fn consume(&mut self, num: usize) {
        match self.at < self.bytes.len() {
            true => self.at += num,
            false => self.reader.consume(num),
        }
    }
}

/// What was in the stream.
enum Found {
    Nothing,
    /// A file, in the buffer, and where in the stream copies of it are to follow, counted from its begin.
    Image(Vec<Range<usize>>),
    /// So many bytes that begin no image.
    Other(usize),
}

/// Takes the bytes of the next image, or some of those before its beginning.
///
/// # Errors
/// If an image begins and breaks off; what may belong to the next one is given back.
fn next_file<R: BufRead>(reader: &mut Again<R>, file: &mut Vec<u8>) -> Result<Found> {
    let mut stream =
        Bytes { reader, taken: file, again: usize::MAX, own: Vec::new(), listed: Vec::new() };
    let found = stream.image();
    let again = if found.is_err() { stream.rest().concat() } else { Vec::new() };
    stream.reader.give_back(&again);
    match found? {
        true => Ok(Found::Image(stream.listed)),
        false if file.is_empty() => Ok(Found::Nothing),
        false => skip(reader, file.len()),
    }
}

/// Leaves bytes out up to what may be the beginning of an image, as far as is known.
fn skip(reader: &mut impl BufRead, skipped: usize) -> Result<Found> {
    let buffer = reader.fill_buf()?;
    let begins = |bytes: &[u8]| {
        let agree = |magic: &[u8]| bytes.iter().zip(magic).all(|(a, b)| a == b);
        agree(&PNG) || agree(&JPEG)
    };
    let num = (0..buffer.len()).find(|at| begins(&buffer[*at..])).unwrap_or(buffer.len());
    reader.consume(num);
    Ok(Found::Other(skipped + num))
}

/// A stream of which the bytes that were looked at are kept.
struct Bytes<'a, R> {
    reader: &'a mut Again<R>,
    taken: &'a mut Vec<u8>,
    /// From where on the taken bytes may belong to the next image, should this one be broken.
    again: usize,
    /// Of those bytes the ones that belong to this image nevertheless, ascending.
    own: Vec<Range<usize>>,
    /// Where the image says that copies of it follow.
    listed: Vec<Range<usize>>,
}

impl<R: BufRead> Bytes<'_, R> {
    /// The taken bytes that may belong to the next image, in pieces.
    fn rest(&self) -> Vec<&[u8]> {
        let ends = self.own.iter().map(|own| own.start).chain([self.taken.len()]);
        let begins = [self.again].into_iter().chain(self.own.iter().map(|own| own.end));
        begins.zip(ends).filter_map(|(begin, end)| self.taken.get(begin..end)).collect()
    }

    /// Refuses a JPEG in which another one begins.
    fn ensure_one_jpeg(&self) -> Result<()> {
        let mut windows = self.rest().into_iter().flat_map(|piece| piece.windows(JPEG.len()));
        ensure!(windows.all(|bytes| bytes != JPEG), BREAKS_OFF);
        Ok(())
    }

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

    fn u32(&mut self) -> Result<usize> {
        Ok(self.u16()? << 16 | self.u16()?)
    }

    /// Takes an image, or what begins none; whether it is one.
    fn image(&mut self) -> Result<bool> {
        match self.next()? {
            Some(0x89) if self.goes_on(&PNG[1..])? => png(self)?,
            Some(0xff) if self.goes_on(&JPEG[1..])? => jpeg(self)?,
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the next bytes of the stream are these; consumes them as far as they are.
    fn goes_on(&mut self, expected: &[u8]) -> Result<bool> {
        for (num, &expected) in expected.iter().enumerate() {
            match self.reader.fill_buf()?.first() {
                // One byte at the end may be padding.
                None if num == 0 => return Ok(false),
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

    /// The marker of a JPEG behind its 0xff, and behind fill bytes.
    fn marker(&mut self) -> Result<u8> {
        loop {
            let marker = self.byte()?;
            if marker != 0xff {
                return Ok(marker);
            }
        }
    }

    /// Length and content of a JPEG's segment.
    fn segment(&mut self) -> Result<()> {
        let length = self.u16()?;
        ensure!(length >= 2, "a JPEG of the stream has a segment of {length} bytes");
        self.take(length - 2)
    }

    /// A JPEG's segment outside of a scan, and the begin of the marker behind it.
    fn segment_before_marker(&mut self, marker: u8) -> Result<()> {
        self.segment()?;
        ensure!(
            self.byte()? == 0xff,
            "a JPEG of the stream is damaged: no marker behind its segment {marker:#04x}"
        );
        Ok(())
    }

    /// What an application or a comment says; an image in it, a thumbnail, is none of the stream's.
    fn said(&mut self, marker: u8) -> Result<()> {
        self.ensure_one_jpeg()?;
        let begin = self.taken.len() - 2;
        let content = begin + 4; // behind marker and length
        let ended = self.segment_before_marker(marker);
        let said = self.taken.get(content..).unwrap_or_default();
        let at = |range: Range<usize>| content + range.start..content + range.end;
        match &ended {
            Ok(()) => {
                self.listed.extend(listed(said).into_iter().map(at));
                self.own.push(begin..self.taken.len() - 1);
            }
            // Of a segment that breaks off the rest may be another image's, but not what it says itself to be its thumbnail.
            Err(_) => self.own.extend(thumbnail(said).map(at)),
        }
        ended
    }

    /// Coded data of a JPEG: the marker behind them that is neither a restart nor a stuffed zero (ITU-T T.81, B.1.1).
    fn marker_behind_scan(&mut self) -> Result<u8> {
        loop {
            match self.byte()? {
                0xff => match self.marker()? {
                    0 | 0xd0..=0xd7 => {}
                    marker => return Ok(marker),
                },
                b'\n' if self.taken.ends_with(&PNG) => {
                    bail!("a JPEG of the stream breaks off where a PNG begins");
                }
                _ => {}
            }
        }
    }
}

fn cut_off() -> anyhow::Error {
    anyhow!("the stream ends within an image")
}

/// Chunks up to `IEND`: length, name, data, checksum (PNG, third edition, section 5.3).
fn png<R: BufRead>(stream: &mut Bytes<R>) -> Result<()> {
    let mut most = 13; // of the header, which is the first one
    loop {
        stream.again = stream.taken.len();
        let length = stream.u32()?;
        let begin = stream.taken.len();
        stream.take(4)?;
        let name = String::from_utf8_lossy(&stream.taken[begin..]).into_owned();
        ensure!(
            name.bytes().all(|byte| byte.is_ascii_alphabetic()) && length <= most,
            "a PNG of the stream is damaged: a chunk {name:?} of {length} bytes"
        );
        stream.take(length)?;
        let chunk = &stream.taken[begin..];
        let sum = crc32fast::hash(chunk);
        if name == "IHDR" {
            most = most_bytes(chunk);
        }
        ensure!(
            stream.u32()? == sum as usize,
            "a PNG of the stream is damaged: the checksum of its chunk {name} does not fit"
        );
        if name == "IEND" {
            return Ok(());
        }
    }
}

/// Most bytes of a chunk of a PNG, by its `IHDR`: pixels of 8 bytes and their rows' filters, which do not grow noticeably.
fn most_bytes(header: &[u8]) -> usize {
    let side = |at: usize| {
        let bytes = header.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes) as usize)
    };
    let pixels = side(4).saturating_mul(side(8));
    pixels.saturating_mul(10).saturating_add(MAX_CHUNK_BYTES).min(MAX_IMAGE_BYTES)
}

/// Segments up to EOI, those of a scan with coded data behind them (ITU-T T.81, B.1.1). The marker's 0xff behind SOI is taken
/// already.
fn jpeg<R: BufRead>(stream: &mut Bytes<R>) -> Result<()> {
    stream.again = stream.taken.len() - 1;
    let mut marker = stream.marker()?;
    loop {
        match marker {
            0xd8 => bail!(BREAKS_OFF),
            // One that breaks off within a segment may go on with another's bytes.
            0xd9 => return stream.ensure_one_jpeg(),
            0xda => {
                stream.segment()?;
                marker = stream.marker_behind_scan()?;
                continue;
            }
            0xe0..=0xef | 0xfe => stream.said(marker)?,
            0xc0..=0xcf | 0xdb..=0xdf | 0xf0..=0xfd => stream.segment_before_marker(marker)?,
            _ => bail!("a JPEG of the stream has the marker {marker:#04x} where none may be"),
        }
        marker = stream.marker()?;
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

    /// Coded in bytes of all values.
    fn noise(side: u32, format: ImageFormat) -> Vec<u8> {
        let mut state = 1_u32;
        let image = RgbImage::from_fn(side, side + 1, |_, _| {
            image::Rgb([(); 3].map(|()| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 24) as u8
            }))
        });
        let mut out = Cursor::new(Vec::new());
        match format {
            ImageFormat::Jpeg => {
                let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 100);
                image.write_with_encoder(encoder).unwrap();
            }
            _ => image.write_to(&mut out, format).unwrap(),
        }
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
    fn a_jpeg_that_breaks_off_anywhere_takes_no_other_image_with_it() {
        let whole = noise(12, ImageFormat::Jpeg);
        let stuffed = whole.windows(2).filter(|pair| pair == &[0xff, 0]).count();
        assert!(stuffed > 2, "bytes of 0xff in the scan");
        let next = [noise(9, ImageFormat::Jpeg), file(8, ImageFormat::Png), whole.clone()];
        let other = [next[1].clone(), next[0].clone(), next[2].clone()];
        let good = [9, 8, 12].map(|side| Ok((side, side + 1)));
        let app0 = 20; // its end
        for cut in app0..whole.len() {
            let found = read(&[&whole[..cut], &next.concat()].concat());
            assert!(found[0].is_err() && found[1..] == good, "cut at {cut}: {found:?}");
            let found = read(&[&whole[..cut], &other.concat()].concat());
            let good = [&good[1], &good[0], &good[2]];
            assert!(found[0].is_err() && found[1..].iter().eq(good), "cut at {cut}: {found:?}");
        }
        // An image that lacks its first segment's end alone takes it from the next one and is that one then.
        for cut in 3..app0 {
            let found = read(&[&whole[..cut], &next.concat()].concat());
            assert!(found.ends_with(&good), "cut at {cut}: {found:?}");
        }
    }

    #[test]
    fn a_png_whose_length_is_damaged_takes_no_other_image_with_it() {
        let whole = noise(12, ImageFormat::Png);
        let next = [file(9, ImageFormat::Jpeg), file(8, ImageFormat::Png)].concat();
        let good = [9, 8].map(|side| Ok((side, side + 1)));
        let data = whole.windows(4).position(|name| name == b"IDAT").unwrap();
        for (at, value) in [(data - 3, 0x3f), (data - 4, 0x0f), (data - 1, 0), (data + 2, 0)] {
            let mut broken = whole.clone();
            broken[at] = value;
            let found = read(&[&broken[..], &next].concat());
            assert!(found[0].is_err() && found[1..] == good, "byte {at}: {found:?}");
        }
        for cut in 2..whole.len() {
            let found = read(&[&whole[..cut], &next].concat());
            assert!(found[0].is_err() || cut < 8, "cut at {cut}: {found:?}");
            assert_eq!(found[found.len() - 2..], good, "cut at {cut}");
        }
    }

    /// A JPEG with a segment behind its SOI, or behind its first table.
    fn with_segment(whole: &[u8], marker: u8, said: &[u8], behind_table: bool) -> Vec<u8> {
        let table = whole.windows(2).position(|pair| pair == [0xff, 0xdb]).unwrap();
        let length = |at: usize| usize::from(whole[at + 2]) << 8 | usize::from(whole[at + 3]);
        let at = if behind_table { table + 2 + length(table) } else { 2 };
        let head = [0xff, marker, ((said.len() + 2) >> 8) as u8, (said.len() + 2) as u8];
        [&whole[..at], &head, said, &whole[at..]].concat()
    }

    #[test]
    fn a_thumbnail_is_no_image_of_the_stream() {
        let (small, next) = (noise(4, ImageFormat::Jpeg), file(9, ImageFormat::Png));
        let photoshop = [b"Photoshop 3.0\0", &small[..]].concat();
        for (marker, said) in [(0xe1, exif(&small)), (0xed, photoshop), (0xfe, small.clone())] {
            for behind_table in [false, true] {
                let whole =
                    with_segment(&noise(12, ImageFormat::Jpeg), marker, &said, behind_table);
                let found = read(&[&whole[..], &whole, &next].concat());
                let expected = [12, 12, 9].map(|side| Ok((side, side + 1)));
                assert_eq!(found, expected, "{marker:#x} {behind_table}");
                // One that breaks off behind the thumbnail does not give it either.
                let end = whole.len() - 10;
                let found = read(&[&whole[..end], &whole, &next].concat());
                assert!(found[0].is_err() && found[1..] == expected[1..], "{marker:#x}: {found:?}");
            }
        }
    }

    #[test]
    fn a_jpeg_that_breaks_off_in_what_its_camera_says_gives_no_thumbnail() {
        let (small, next) = (noise(4, ImageFormat::Jpeg), noise(9, ImageFormat::Jpeg));
        // Of the next image less than its header of 39 bytes may be taken for the segment's end: without it that one is lost.
        let said = [&exif(&small)[..], &[7; 38]].concat();
        let whole = with_segment(&noise(12, ImageFormat::Jpeg), 0xe1, &said, false);
        for cut in 6 + said.len() - 38..6 + said.len() {
            for behind in [&next[..], &[]] {
                let found = read(&[&whole[..cut], behind].concat());
                // Where the segment ends at a marker of the next image it is that one's.
                let good: Vec<_> = found.iter().flatten().collect();
                let expected = if behind.is_empty() { vec![] } else { vec![&(9, 10)] };
                assert_eq!(good, expected, "cut at {cut}: {found:?}");
            }
        }
    }

    #[test]
    fn the_smaller_copies_behind_an_image_are_skipped() {
        let (main, copy) = (noise(12, ImageFormat::Jpeg), noise(4, ImageFormat::Jpeg));
        let next = file(9, ImageFormat::Jpeg);
        let whole = multi_picture(&main, copy.len(), 3);
        let expected = [12, 12, 9].map(|side| Ok((side, side + 1)));
        let behind = [&[0; 3], &copy[..]].concat();
        assert_eq!(read(&[&whole[..], &behind, &whole, &behind, &next].concat()), expected);
        // Where no copy follows, what stands there is an image of the stream.
        assert_eq!(read(&[&whole[..], &whole, &next].concat()), expected);
        let at_once = multi_picture(&main, copy.len(), 0);
        assert_eq!(read(&[&at_once[..], &at_once, &next].concat()), expected);
    }

    /// A TIFF with one IFD of these entries (tag, type, count, value) and `data` behind it.
    fn tiff(entries: &[(u16, u16, u32, u32)], link: u32, data: &[u8]) -> Vec<u8> {
        let mut out = b"MM\0*\0\0\0\x08".to_vec();
        out.extend((entries.len() as u16).to_be_bytes());
        for (tag, kind, count, value) in entries {
            out.extend([tag.to_be_bytes(), kind.to_be_bytes()].concat());
            out.extend([count.to_be_bytes(), value.to_be_bytes()].concat());
        }
        out.extend(link.to_be_bytes());
        out.extend(data);
        out
    }

    /// What a camera says in APP1, with a thumbnail in the second IFD.
    fn exif(thumbnail: &[u8]) -> Vec<u8> {
        // The first IFD is empty and ends at 14, the second one ends at 44.
        let mut said = b"Exif\0\0".to_vec();
        said.extend(tiff(&[], 14, &[]));
        let second = [(0x0201, 4, 1, 44), (0x0202, 4, 1, thumbnail.len() as u32)];
        said.extend(&tiff(&second, 0, thumbnail)[8..]);
        said
    }

    /// `main` with a list that names a copy so many bytes behind it.
    fn multi_picture(main: &[u8], copy: usize, gap: u32) -> Vec<u8> {
        let build = |size: u32| {
            // Entries of 16 bytes: attributes, size, offset from the TIFF, two numbers.
            let from = 2 + 4 + 4; // SOI, marker, length, "MPF\0"
            let entries = [[0, size, 0, 0], [0, copy as u32, (size + gap).saturating_sub(from), 0]];
            let bytes: Vec<u8> =
                entries.as_flattened().iter().flat_map(|v| v.to_be_bytes()).collect();
            let list = tiff(&[(0xb002, 7, bytes.len() as u32, 26)], 0, &bytes);
            with_segment(main, 0xe2, &[b"MPF\0", &list[..]].concat(), false)
        };
        build(build(0).len() as u32)
    }

    #[test]
    fn bytes_between_images_are_skipped() {
        let good = file(9, ImageFormat::Png);
        let (header, padding) = (b"--frame\xff\x89\r\nContent-Length: 9\r\n\r\n", [0xff; 9]);
        let all = [header, &good[..], header, &good, &padding, &good, b"tail\xff"].concat();
        assert_eq!(read(&all), [(); 3].map(|()| Ok((9, 10))));
    }

    #[test]
    fn a_stream_without_an_image_is_an_error() {
        let found = read(b"no image at all");
        let [Err(why)] = &found[..] else { panic!("{found:?}") };
        assert!(why.contains("the first 15 bytes") && why.contains("--raw"), "{why}");
        // Of one that never ends no more is read than may stand before the first image.
        let endless = BufReader::new(std::io::repeat(0x80));
        let mut stream = ImageStream::new(endless, StreamFormat::Files);
        assert!(stream.next().unwrap().is_err() && stream.next().is_none());
    }

    #[test]
    fn a_stream_that_breaks_off_ends_with_one_error() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let whole = file(20, format);
            for cut in [2, 5, 12, whole.len() / 2, whole.len() - 1] {
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
