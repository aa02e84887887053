//! What `mqat predict` is given: images, folders, globs, lists of a dataset, videos, cameras, streams, standard input.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::io;
use crate::io::image_stream::StreamFormat;
use crate::io::video::{VideoSource, is_video};

/// Endings of the pictures that are read, and of others that people have.
const PICTURES: [&str; 3] = ["jpeg", "jpg", "png"];
const OTHER_PICTURES: [&str; 17] = [
    "avif", "bmp", "cr2", "dng", "exr", "heic", "heif", "jp2", "jxl", "nef", "pgm", "ppm", "raw",
    "tga", "tif", "tiff", "webp",
];
/// The argument that means standard input.
const STDIN: &str = "-";
/// The ending of a list of images.
const LIST: &str = "txt";
/// Folders from a list's upwards in which its images are looked for.
const ROOTS: usize = 4;

/// An image of the input.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Picture {
    /// As it is called in results: as given, or as the list has it.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// One of the inputs, in full.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    /// In the order in which they are looked at; at least one.
    Pictures(Vec<Picture>),
    /// Frames of a video, or of something that goes on until it is ended.
    Frames(FrameSource),
}

/// What gives frames, one after the other.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum FrameSource {
    /// For ffmpeg.
    Video(VideoSource),
    /// Images on standard input.
    Stdin(StreamFormat),
}

impl FrameSource {
    /// How it is called in results.
    pub fn name(&self) -> String {
        match self {
            Self::Video(video) => video.name(),
            Self::Stdin(_) => STDIN.to_owned(),
        }
    }

    /// Whether it ends only when somebody ends it: its results are whole then.
    pub fn is_live(&self) -> bool {
        !matches!(self, Self::Video(VideoSource::File { .. }))
    }
}

/// How inputs are to be looked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looking {
    /// Look into the folders of folders.
    pub recursive: bool,
    /// How images stand on standard input.
    pub stdin: StreamFormat,
    /// Videos give their frames at their rate.
    pub paced: bool,
}

/// All inputs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inputs {
    /// In their order.
    pub inputs: Vec<Input>,
    /// The folder that the images of the first list are relative to.
    pub list_root: Option<PathBuf>,
}

/// Finds out what is meant, and which images that are.
///
/// # Errors
/// If an input is not there, is of a kind that is not read, has no image, or stands behind one that is live.
pub(super) fn find(given: &[PathBuf], looking: Looking) -> Result<Inputs> {
    ensure!(!given.is_empty(), "no image, folder, glob, list or video is named");
    let mut found = Inputs { inputs: Vec::new(), list_root: None };
    for path in given {
        found.ensure_ends(path)?;
        if path.as_os_str() == STDIN {
            found.add_stdin(looking.stdin)?;
        } else if let Some(video) = VideoSource::live(path) {
            found.inputs.push(Input::Frames(FrameSource::Video(video)));
        } else if path.is_dir() {
            found.inputs.push(Input::Pictures(pictures_in(path, looking.recursive)?));
        } else if path.exists() {
            found.add_file(path, looking.paced)?;
        } else if let Some(pattern) = path.to_str().filter(|text| is_glob(text)) {
            found.add_glob(pattern, looking.paced)?;
        } else {
            bail!(
                "no such file: {}; expected an image, a folder, a glob, a list (.txt), a video, a camera (/dev/video0), the \
                 address of a stream (rtsp://...) or - for standard input",
                path.display()
            );
        }
    }
    Ok(found)
}

impl Inputs {
    /// Whether one of them goes on until it is ended.
    pub fn are_live(&self) -> bool {
        self.inputs.iter().any(|input| matches!(input, Input::Frames(frames) if frames.is_live()))
    }

    /// Whether ffmpeg is needed.
    pub fn need_ffmpeg(&self) -> bool {
        let is_video = |i: &Input| matches!(i, Input::Frames(FrameSource::Video(_)));
        self.inputs.iter().any(is_video)
    }

    /// Refuses `next` behind an input that goes on until it is ended.
    fn ensure_ends(&self, next: &Path) -> Result<()> {
        if let Some(Input::Frames(last)) = self.inputs.last()
            && last.is_live()
        {
            bail!(
                "{} comes after {}, which goes on until somebody ends it: name it before, or in a run of its own",
                next.display(),
                last.name()
            );
        }
        Ok(())
    }

    fn add_stdin(&mut self, format: StreamFormat) -> Result<()> {
        ensure!(
            !std::io::stdin().is_terminal(),
            "- reads images from standard input, which is a terminal: pipe PNG or JPEG files, or raw RGB with --raw, into it"
        );
        self.inputs.push(Input::Frames(FrameSource::Stdin(format)));
        Ok(())
    }

    fn add_file(&mut self, path: &Path, paced: bool) -> Result<()> {
        let at = path.display();
        if has_ending(path, &[LIST]) {
            let (root, pictures) = listed(path)?;
            self.list_root.get_or_insert(root);
            self.inputs.push(Input::Pictures(pictures));
        } else if is_video(path) {
            self.inputs.push(video(path.to_owned(), paced));
        } else if has_ending(path, &OTHER_PICTURES) {
            bail!("{at} is of a kind of image that is not read: convert it to PNG or JPEG");
        } else if has_ending(path, &PICTURES) || begins_like_a_picture(path)? {
            self.inputs.push(Input::Pictures(vec![Picture::named(path)]));
        } else {
            bail!(
                "{at} is not an image (PNG, JPEG), no list of images (.txt) and has no ending of a video"
            );
        }
        Ok(())
    }

    fn add_glob(&mut self, given: &str, paced: bool) -> Result<()> {
        let pattern = &with_literal_folders(given);
        let hidden = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
        let paths =
            glob::glob_with(pattern, hidden).with_context(|| format!("the glob {pattern}"))?;
        let paths: Result<Vec<PathBuf>, _> = paths.collect();
        let mut paths = paths.with_context(|| format!("reading what the glob {given} matches"))?;
        paths.sort_by(|a, b| natural(&a.to_string_lossy(), &b.to_string_lossy()));
        let (videos, others): (Vec<_>, Vec<_>) = paths.into_iter().partition(|p| is_video(p));
        let pictures: Vec<Picture> = others
            .iter()
            .filter(|p| p.is_file() && has_ending(p, &PICTURES))
            .map(|p| Picture::named(p))
            .collect();
        let hint = match pattern.contains('[') {
            true => {
                "; in a glob [...] is one of the characters in the brackets, and [[] is a bracket"
            }
            false => "",
        };
        ensure!(
            !pictures.is_empty() || !videos.is_empty(),
            "the glob {given} matches no image (PNG, JPEG) or video{hint}"
        );
        if !pictures.is_empty() {
            self.inputs.push(Input::Pictures(pictures));
        }
        self.inputs.extend(videos.into_iter().map(|path| video(path, paced)));
        Ok(())
    }
}

/// A glob in which the leading folders that exist as they are spelled stand for themselves: in `run[1]/*.png` the folder
/// `run[1]` where there is one, else `run1`.
fn with_literal_folders(pattern: &str) -> String {
    let mut known = PathBuf::new();
    let mut parts = Vec::new();
    let mut spelled = pattern.split('/').peekable();
    while let Some(part) = spelled.next_if(|part| {
        known.push(if part.is_empty() { "/" } else { part });
        known.is_dir()
    }) {
        parts.push(glob::Pattern::escape(part));
    }
    parts.extend(spelled.map(str::to_owned));
    parts.join("/")
}

fn video(path: PathBuf, paced: bool) -> Input {
    Input::Frames(FrameSource::Video(VideoSource::File { path, paced }))
}

impl Picture {
    fn named(path: &Path) -> Self {
        Self { name: path.display().to_string(), path: path.to_owned() }
    }
}

fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

fn has_ending(path: &Path, endings: &[&str]) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|e| endings.contains(&e.as_str()))
}

fn begins_like_a_picture(path: &Path) -> Result<bool> {
    use std::io::Read;
    let mut head = Vec::with_capacity(4);
    let reading = || format!("reading {}", path.display());
    let file = fs::File::open(path).with_context(reading)?;
    file.take(4).read_to_end(&mut head).with_context(reading)?;
    Ok(head.starts_with(b"\x89PNG") || head.starts_with(&[0xff, 0xd8, 0xff]))
}

/// The images of a folder, and with `recursive` of those in it, in natural order. Of a scene folder of a dataset only `rgb` is
/// entered.
fn pictures_in(folder: &Path, recursive: bool) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    let mut num_other = 0;
    walk(folder, recursive, &mut Walk::default(), &mut pictures, &mut num_other)?;
    let at = folder.display();
    if num_other > 0 {
        tracing::warn!(
            "{at}: {num_other} images of kinds that are not read (only PNG and JPEG are)"
        );
    }
    if pictures.is_empty() {
        let list = fs::read_dir(folder).ok().and_then(|mut entries| {
            entries.find_map(|e| Some(e.ok()?.path()).filter(|p| has_ending(p, &[LIST])))
        });
        match list {
            Some(list) => bail!(
                "{at} has no image (PNG, JPEG) in it, but a list: did you mean {}?",
                list.display()
            ),
            None if recursive => bail!("{at} and the folders in it have no image (PNG, JPEG)"),
            None => {
                bail!("{at} has no image (PNG, JPEG) in it; --recursive looks into its folders")
            }
        }
    }
    Ok(pictures)
}

/// The folders that were looked at, by device and inode: links may lead to them again.
#[derive(Default)]
struct Walk(HashSet<(u64, u64)>);

impl Walk {
    /// Whether `path` leads somewhere for the first time.
    fn is_new(&mut self, path: &Path) -> Result<bool> {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(self.0.insert((meta.dev(), meta.ino())))
    }
}

fn walk(
    folder: &Path,
    recursive: bool,
    seen: &mut Walk,
    pictures: &mut Vec<Picture>,
    num_other: &mut usize,
) -> Result<()> {
    if !seen.is_new(folder)? {
        return Ok(());
    }
    let reading = || format!("reading the folder {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        paths.push(entry.with_context(reading)?.path());
    }
    paths.sort_by(|a, b| natural(&a.to_string_lossy(), &b.to_string_lossy()));
    let is_scene = folder.join("scene_camera.json").is_file() && folder.join("rgb").is_dir();
    for path in paths {
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            // The other folders of a scene hold masks and depths.
            if recursive && (!is_scene || path.ends_with("rgb")) {
                walk(&path, recursive, seen, pictures, num_other)?;
            }
        } else if has_ending(&path, &PICTURES) {
            // In a folder of links each of them is an image of its own.
            pictures.push(Picture::named(&path));
        } else {
            *num_other += usize::from(has_ending(&path, &OTHER_PICTURES));
        }
    }
    Ok(())
}

/// The images of a list, one a line, and the folder that they are relative to: the list's own, or the nearest above it that
/// has the first image.
fn listed(list: &Path) -> Result<(PathBuf, Vec<Picture>)> {
    let at = list.display();
    let names = io::read_list(list)?;
    let first = names.first();
    let first =
        first.with_context(|| format!("{at}: the list is empty, expected one image a line"))?;
    let folder = list.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // An image that is missing is told as such later: then its folder tells where the images are.
    let holds = |root: &&Path| {
        let path = root.join(first);
        path.is_file() || path.parent().is_some_and(|p| p != *root && p.is_dir())
    };
    let root = folder.ancestors().take(ROOTS).find(holds);
    let root = root.with_context(|| {
        format!(
            "{at}: its first image {first} is not relative to {} or a folder above it",
            folder.display()
        )
    })?;
    let pictures = names.iter().map(|name| Picture { name: name.clone(), path: root.join(name) });
    Ok((root.to_owned(), pictures.collect()))
}

/// The order in which people count: runs of digits by their number.
fn natural(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let digits =
            |text: &str| text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        match (digits(a), digits(b)) {
            (0, _) | (_, 0) => match (a.chars().next(), b.chars().next()) {
                (Some(x), Some(y)) if x == y => {
                    (a, b) = (&a[x.len_utf8()..], &b[y.len_utf8()..]);
                }
                (x, y) => return x.cmp(&y),
            },
            (n, m) => {
                let number = |text: &str, n: usize| text[..n].trim_start_matches('0').to_owned();
                let (x, y) = (number(a, n), number(b, m));
                let order = x.len().cmp(&y.len()).then(x.cmp(&y)).then(n.cmp(&m));
                if order.is_ne() {
                    return order;
                }
                (a, b) = (&a[n..], &b[m..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(folder: &Path, names: &[&str]) {
        for name in names {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    fn looking(recursive: bool) -> Looking {
        Looking { recursive, stdin: StreamFormat::Files, paced: false }
    }

    fn names(inputs: &Inputs, folder: &Path) -> Vec<String> {
        let of = |input: &Input| match input {
            Input::Pictures(pictures) => pictures.iter().map(|p| p.path.clone()).collect(),
            Input::Frames(frames) => vec![frames.name().into()],
        };
        let paths = inputs.inputs.iter().flat_map(of);
        let strip = |p: PathBuf| p.strip_prefix(folder).unwrap().display().to_string();
        paths.map(strip).collect()
    }

    fn found(folder: &Path, given: &[&str], recursive: bool) -> Result<Vec<String>> {
        let given: Vec<PathBuf> = given.iter().map(|g| folder.join(g)).collect();
        Ok(names(&find(&given, looking(recursive))?, folder))
    }

    #[test]
    fn numbers_count_as_numbers() {
        let mut names =
            vec!["a10.png", "a9.png", "b1.png", "a09.png", "a.png", "a1b2.png", "a1b10.png"];
        names.sort_by(|a, b| natural(a, b));
        assert_eq!(
            names,
            ["a.png", "a1b2.png", "a1b10.png", "a9.png", "a09.png", "a10.png", "b1.png"]
        );
    }

    #[test]
    fn folders_globs_and_files_give_their_images_in_natural_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        touch(
            root,
            &["in/2.png", "in/10.JPG", "in/1.jpeg", "in/notes.md", "in/.hidden.png", "in/x.tif"],
        );
        touch(root, &["in/sub/7.png", "in/clip.mp4", "other/3.png"]);
        let in_folder = ["in/1.jpeg", "in/2.png", "in/10.JPG"];
        assert_eq!(found(root, &["in"], false).unwrap(), in_folder);
        assert_eq!(found(root, &["in"], true).unwrap()[3..], ["in/sub/7.png"]);
        assert_eq!(
            found(root, &["in/*.png", "other/3.png"], false).unwrap(),
            ["in/2.png", "other/3.png"]
        );
        assert_eq!(
            found(root, &["*/*.[pm][np][g4]"], false).unwrap(),
            ["in/2.png", "other/3.png", "in/clip.mp4"]
        );
        assert_eq!(
            found(root, &["in/clip.mp4", "in/2.png"], false).unwrap(),
            ["in/clip.mp4", "in/2.png"]
        );
    }

    #[test]
    fn folders_with_brackets_are_found_by_globs() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        touch(root, &["day [2]/cam*/1.png", "day [2]/cam*/2.jpg", "day 2/3.png", "day 4/5.png"]);
        let of = |pattern| found(root, &[pattern], false);
        assert_eq!(of("day [2]/cam*/*.png").unwrap(), ["day [2]/cam*/1.png"]);
        assert_eq!(of("day [2]/*/*").unwrap(), ["day [2]/cam*/1.png", "day [2]/cam*/2.jpg"]);
        // No folder is called that: a set of characters.
        assert_eq!(of("day [34]/*").unwrap(), ["day 4/5.png"]);
        let error = format!("{:#}", of("day [2]/x[1]*.png").unwrap_err());
        assert!(error.contains("day [2]/x[1]*.png matches no image") && error.contains("[[] is"));
        assert_eq!(with_literal_folders("/*/[a]"), "/*/[a]");
    }

    #[test]
    fn links_in_a_circle_give_each_image_once() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        touch(root, &["top/one/1.png", "top/two/2.png"]);
        symlink("../../top", root.join("top/one/up")).unwrap();
        symlink("../one", root.join("top/two/across")).unwrap();
        assert_eq!(found(root, &["top"], true).unwrap(), ["top/one/1.png", "top/two/2.png"]);
    }

    #[test]
    fn names_that_are_no_text_are_read() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        touch(&odd, &["1.png"]);
        let inputs = find(&[odd.clone(), odd.join("1.png")], looking(false)).unwrap();
        assert_eq!(inputs.inputs.len(), 2);
    }

    #[test]
    fn of_a_scene_only_the_pictures_are_taken() {
        let dir = tempfile::tempdir().unwrap();
        let scene = "testing/seq_000000/000000";
        for name in [
            "rgb/000000.png",
            "mask_visib/000000_000000.png",
            "depth/000000.png",
            "scene_camera.json",
        ] {
            touch(dir.path(), &[&format!("{scene}/{name}")]);
        }
        let pictures = found(dir.path(), &["testing"], true).unwrap();
        assert_eq!(pictures, [format!("{scene}/rgb/000000.png")]);
    }

    #[test]
    fn lists_are_relative_to_their_folder_or_one_above() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["data/testing/rgb/000000.png", "data/lists/x"]);
        let text = "testing/rgb/000000.png\r\n\ntesting/rgb/000001.png\n";
        for list in ["data/testing.txt", "data/lists/part.txt"] {
            fs::write(dir.path().join(list), text).unwrap();
            let inputs = find(&[dir.path().join(list)], looking(false)).unwrap();
            assert_eq!(inputs.list_root, Some(dir.path().join("data")));
            let Input::Pictures(pictures) = &inputs.inputs[0] else { panic!() };
            let names: Vec<_> = pictures.iter().map(|p| p.name.as_str()).collect();
            assert_eq!(names, ["testing/rgb/000000.png", "testing/rgb/000001.png"]);
        }
    }

    #[test]
    fn what_is_no_input_says_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        touch(
            dir.path(),
            &["empty/readme.md", "lists/testing.txt", "a.tif", "model.bin", "none.txt"],
        );
        fs::write(dir.path().join("astray.txt"), "no/such/rgb/1.png\n").unwrap();
        fs::write(dir.path().join("unnamed"), b"\x89PNG\r\n").unwrap();
        for (given, expected) in [
            ("nowhere.png", "no such file"),
            ("empty", "--recursive looks into its folders"),
            ("lists", "testing.txt?"),
            ("*.webp", "matches no image"),
            ("a.tif", "convert it to PNG or JPEG"),
            ("model.bin", "is not an image (PNG, JPEG)"),
            ("none.txt", "the list is empty"),
            ("astray.txt", "its first image no/such/rgb/1.png is not relative to"),
        ] {
            let error = format!("{:#}", found(dir.path(), &[given], false).unwrap_err());
            assert!(error.contains(expected), "{given}: {error}");
        }
        assert!(find(&[], looking(false)).is_err());
        assert_eq!(found(dir.path(), &["unnamed"], false).unwrap(), ["unnamed"]);
    }
}
