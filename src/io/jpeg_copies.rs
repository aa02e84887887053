//! Smaller copies of a JPEG's image within its file: a thumbnail in what its camera says, whole images behind it.

use std::ops::Range;

/// The begin of what a camera says of an image (EXIF 2.32, section 4.5.2).
const EXIF: &[u8] = b"Exif\0\0";
/// The begin of the list of a file's images (CIPA DC-007, multi-picture format, section 5.2).
const MULTI_PICTURE: &[u8] = b"MPF\0";
/// TIFF tags: offset of a thumbnail.
const THUMBNAIL_AT: u16 = 0x0201;
/// Bytes of a thumbnail.
const THUMBNAIL_BYTES: u16 = 0x0202;
/// List of images.
const IMAGES: u16 = 0xb002;

/// Copies that are expected behind an image, by where they begin and how long they are.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Counted from the image's begin.
    expected: Vec<Range<usize>>,
    /// Where the stream is.
    at: usize,
}

impl Copies {
    /// Those that an image of so many bytes lists.
    pub fn behind(num_bytes: usize, listed: &[Range<usize>]) -> Self {
        Self { expected: listed.to_vec(), at: num_bytes }
    }

    /// Goes on by bytes that are no image; whether they stand before a copy.
    pub fn pass(&mut self, num_bytes: usize) -> bool {
        self.at = self.at.saturating_add(num_bytes);
        self.expected.iter().any(|copy| copy.start >= self.at)
    }

    /// Goes on by an image; whether it is one of the copies: at its place, and of its size (CIPA DC-007, section 5.2.3.3: that
    /// from SOI to EOI).
    pub fn take(&mut self, num_bytes: usize) -> bool {
        let begins = self.at;
        self.at = self.at.saturating_add(num_bytes);
        self.expected.iter().any(|copy| copy.start == begins && num_bytes == copy.len())
    }
}

/// The byte range of the thumbnail in the content of an EXIF segment, cut at the content's end; `None` without a thumbnail.
pub(super) fn thumbnail(said: &[u8]) -> Option<Range<usize>> {
    let tiff = Tiff::of(said.strip_prefix(EXIF)?)?;
    let (_, second) = tiff.directory(tiff.number(4, 4)?)?;
    let (entries, _) = tiff.directory(second)?;
    let value = |tag| entries.iter().find(|entry| entry.tag == tag).map(|entry| entry.value);
    let begin = value(THUMBNAIL_AT)?.checked_add(EXIF.len())?;
    let end = begin.checked_add(value(THUMBNAIL_BYTES)?)?.min(said.len());
    (begin < end).then_some(begin..end)
}

/// Where the other images of a file lie by the list in a segment, counted from what it says; none of a segment without.
pub(super) fn listed(said: &[u8]) -> Vec<Range<usize>> {
    images(said).unwrap_or_default()
}

fn images(said: &[u8]) -> Option<Vec<Range<usize>>> {
    const ENTRY: usize = 16; // attributes, bytes, offset, two numbers of other images
    let tiff = Tiff::of(said.strip_prefix(MULTI_PICTURE)?)?;
    let (entries, _) = tiff.directory(tiff.number(4, 4)?)?;
    let list = entries.iter().find(|entry| entry.tag == IMAGES)?;
    let of = |at: usize| {
        let (bytes, offset) = (tiff.number(at + 4, 4)?, tiff.number(at + 8, 4)?);
        let begin = offset.checked_add(MULTI_PICTURE.len())?;
        // The first one is the file's own, with the offset 0.
        (offset > 0).then_some(begin..begin.checked_add(bytes)?)
    };
    let places = (0..list.count / ENTRY).map_while(|i| list.value.checked_add(i * ENTRY));
    Some(places.take_while(|at| *at < tiff.bytes.len()).filter_map(of).collect())
}

/// Directories of tags (TIFF 6.0, section 2).
struct Tiff<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
}

struct Entry {
    tag: u16,
    count: usize,
    /// The value, or where it is.
    value: usize,
}

impl<'a> Tiff<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let is_big_endian = match bytes.get(..4)? {
            b"MM\0*" => true,
            b"II*\0" => false,
            _ => return None,
        };
        Some(Self { bytes, is_big_endian })
    }

    /// The number of `num` bytes at a place.
    fn number(&self, at: usize, num: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(num)?)?;
        let add = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
        Some(match self.is_big_endian {
            true => bytes.iter().fold(0, add),
            false => bytes.iter().rev().fold(0, add),
        })
    }

    /// The entries of the directory at a place, and where the next one is.
    fn directory(&self, at: usize) -> Option<(Vec<Entry>, usize)> {
        const ENTRY: usize = 12; // tag, type, count, value
        let num = self.number(at, 2)?;
        let entry = |i: usize| {
            let at = at + 2 + i * ENTRY;
            let tag = u16::try_from(self.number(at, 2)?).ok()?;
            Some(Entry { tag, count: self.number(at + 4, 4)?, value: self.number(at + 8, 4)? })
        };
        let entries: Option<Vec<Entry>> = (0..num).map(entry).collect();
        Some((entries?, self.number(at + 2 + num * ENTRY, 4)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian file's two directories: none, and these (tag, value).
    fn exif(entries: &[(u16, u32)]) -> Vec<u8> {
        let mut out = [EXIF, b"II*\0\x08\0\0\0", &[0, 0, 14, 0, 0, 0]].concat();
        out.extend((entries.len() as u16).to_le_bytes());
        for (tag, value) in entries {
            out.extend(tag.to_le_bytes());
            out.extend([4, 0, 1, 0, 0, 0]);
            out.extend(value.to_le_bytes());
        }
        out.extend([0; 4]);
        out
    }

    #[test]
    fn a_thumbnail_is_where_the_second_directory_says() {
        let said = [exif(&[(0x0201, 44), (0x0202, 5)]), b"hello, world".to_vec()].concat();
        let found = thumbnail(&said).unwrap();
        assert_eq!(&said[found], b"hello");
        // As far as it is there.
        assert_eq!(thumbnail(&said[..said.len() - 9]).unwrap().len(), 3);
        assert_eq!(thumbnail(&exif(&[(0x0201, 44)])), None);
    }

    #[test]
    fn damaged_directories_name_nothing() {
        let said = exif(&[(0x0201, u32::MAX), (0x0202, u32::MAX)]);
        assert_eq!(thumbnail(&said), None);
        for cut in 0..said.len() {
            assert_eq!(thumbnail(&said[..cut]), None, "cut at {cut}");
            assert!(listed(&[MULTI_PICTURE, &said[..cut]].concat()).is_empty());
        }
        assert_eq!(thumbnail(b"Exif\0\0MM\0*\xff\xff\xff\xff"), None);
        assert!(listed(b"ICC_PROFILE\0").is_empty());
    }

    #[test]
    fn copies_are_known_by_place_and_size() {
        let mut copies = Copies::behind(100, &[110..150, 150..160]);
        assert!(copies.pass(10) && copies.take(40) && copies.take(10));
        assert!(!copies.pass(1) && !copies.take(10));
        let mut copies = Copies::behind(100, &[100..150, 0..0]);
        assert!(!copies.take(51));
        let mut copies = Copies::behind(100, &[100..150, 0..0]);
        assert!(!copies.take(49));
    }
}
