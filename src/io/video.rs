//! Frames of videos, camera devices and network streams, decoded by an installed `ffmpeg` as a child process: raw RGB over a
//! pipe, one frame at a time.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, PipeWriter, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail, ensure};
use image::RgbImage;
use serde::Deserialize;

use super::interruptible::{Interruptible, StopFlags};
use super::video_times::{FrameTimes, Numbers, UNITS_PER_S, equal_rate, rate};

/// Endings of names that are taken for videos.
const ENDINGS: [&str; 16] = [
    "3gp", "avi", "flv", "gif", "m2ts", "m4v", "mjpeg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts",
    "ts", "webm", "wmv",
];
/// Largest side of a frame, px.
pub const MAX_SIDE_PX: u32 = 1 << 15;
/// The first ffmpeg that calls its option `-fps_mode`.
const FPS_MODE_SINCE: (u32, u32) = (5, 1);
/// The first ffmpeg that is asked for the times of frames (`-enc_time_base`).
const TIMES_SINCE: (u32, u32) = (4, 1);
/// What is kept of ffmpeg's complaints, bytes.
const MAX_COMPLAINT: u64 = 1 << 14;

/// Whether a file's name is that of a video.
pub fn is_video(path: &Path) -> bool {
    let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

/// Begins of the addresses of streams that ffmpeg is asked for.
const SCHEMES: [&str; 10] =
    ["http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp"];
/// Begin of the names of camera devices (Video4Linux).
const DEVICES: &str = "/dev/video";

/// What ffmpeg decodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VideoSource {
    /// A file; `paced` gives its frames at the rate at which they were taken, as a camera would.
    File {
        /// The file.
        path: PathBuf,
        /// Whether frames wait for their time.
        paced: bool,
    },
    /// A camera: `/dev/video0`.
    Device(PathBuf),
    /// A stream of the network, by its address.
    Stream(String),
}

impl VideoSource {
    /// The camera device or stream that an argument names; `None` for a file.
    pub fn live(argument: &Path) -> Option<Self> {
        let text = argument.to_str()?;
        if text.starts_with(DEVICES) {
            return Some(Self::Device(argument.to_owned()));
        }
        let (scheme, rest) = text.split_once("://")?;
        let is_known = SCHEMES.contains(&scheme.to_ascii_lowercase().as_str()) && !rest.is_empty();
        is_known.then(|| Self::Stream(text.to_owned()))
    }

    /// How it is called in results: an address without its user and password.
    pub fn name(&self) -> String {
        match self {
            Self::File { path, .. } | Self::Device(path) => path.display().to_string(),
            Self::Stream(address) => without_login(address),
        }
    }

    /// Whether it ends only when somebody ends it.
    fn is_live(&self) -> bool {
        !matches!(self, Self::File { .. })
    }

    /// ffmpeg's options for it as an input.
    fn input(&self) -> Vec<OsString> {
        // What was taken last counts, so nothing is held back in buffers.
        let live = ["-fflags", "nobuffer", "-flags", "low_delay"];
        let of_source: &[&str] = match self {
            // A packet that is damaged gives no picture rather than a wrong one.
            Self::File { paced: true, .. } => &["-fflags", "+discardcorrupt", "-re"],
            Self::File { .. } => &["-fflags", "+discardcorrupt"],
            Self::Device(_) => &["-f", "v4l2"],
            // Over TCP no frame arrives in parts.
            Self::Stream(address) if address.to_ascii_lowercase().starts_with("rtsp") => {
                &["-rtsp_transport", "tcp"]
            }
            Self::Stream(_) => &[],
        };
        let live = live.iter().filter(|_| self.is_live());
        let mut args: Vec<OsString> =
            live.chain(of_source).chain(&["-i"]).map(OsString::from).collect();
        args.push(match self {
            Self::File { path, .. } => as_file(path),
            Self::Device(path) => path.into(),
            Self::Stream(address) => address.into(),
        });
        args
    }
}

/// An address without the user and password before its host.
fn without_login(address: &str) -> String {
    let Some((scheme, rest)) = address.split_once("://") else { return address.to_owned() };
    let host_ends = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..host_ends].rfind('@') {
        Some(at) => format!("{scheme}://{}", &rest[at + 1..]),
        None => address.to_owned(),
    }
}

/// A frame of a source, or why it cannot be read.
#[derive(Debug)]
pub struct VideoFrame {
    /// From 0: by the container's times where a file tells them and its frames come at equal times, else counted.
    pub number: usize,
    /// When it is shown by the container of a file, s from the file's begin; none where ffmpeg does not tell it.
    pub time_s: Option<f64>,
    /// The frame.
    pub image: Result<RgbImage>,
}

/// A video being decoded: an iterator over its frames as they are shown (turned as the file asks), each once.
///
/// Dropping it ends the child process.
#[derive(Debug)]
pub struct Video {
    source: VideoSource,
    stop: StopFlags,
    child: Child,
    frames: BufReader<Interruptible<ChildStdout>>,
    complaints: Option<JoinHandle<String>>,
    times: Option<FrameTimes>,
    numbers: Numbers,
    num_frames: u64,
    ended: bool,
}

impl Video {
    /// Starts decoding. When `stop` is raised there are no more frames, even while it waits for one.
    ///
    /// # Errors
    /// If there is no such file, or `ffmpeg` is not installed; the message says what to do then.
    pub fn open(source: VideoSource, stop: StopFlags) -> Result<Self> {
        let at = source.name();
        if let VideoSource::File { path, .. } = &source {
            ensure!(path.is_file(), "no video {at}");
        }
        let version = version()?;
        let once = every_frame_once(version);
        let mut command = Command::new("ffmpeg");
        command
            .args(["-nostdin", "-v", "error"])
            .args(source.input())
            .args(["-map", "0:v:0"])
            .args(once)
            .args(["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"]);
        let times = match source.is_live() || version.is_some_and(|own| own < TIMES_SINCE) {
            true => None,
            false => Some(ask_for_times(&mut command, once)?),
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0); // Ctrl-C is for this program, which ends its child itself
        let kept = times.as_ref().map(|(_, writer)| writer.as_raw_fd());
        end_with_parent(&mut command, kept);
        let mut child = command.spawn().with_context(|| format!("starting ffmpeg for {at}"))?;
        // Without its writer here the pipe ends with ffmpeg.
        let times = times.map(|(reader, _)| FrameTimes::of(reader));
        let numbers = Numbers::at(times.as_ref().and_then(|_| rate_of(&source)));
        let (Some(frames), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            bail!("starting ffmpeg for {at}: no pipes");
        };
        // Read beside the frames, or a talkative ffmpeg would wait for ever.
        let complaints = std::thread::spawn(move || {
            let mut text = Vec::new();
            let mut errors = BufReader::new(errors);
            // What cannot be read of a complaint is not worth another one.
            drop(errors.by_ref().take(MAX_COMPLAINT).read_to_end(&mut text));
            drop(std::io::copy(&mut errors, &mut std::io::sink()));
            String::from_utf8_lossy(&text).into_owned()
        });
        let frames = Interruptible::new(frames, stop.clone());
        Ok(Self {
            source,
            stop,
            child,
            frames: BufReader::with_capacity(1 << 20, frames),
            complaints: Some(complaints),
            numbers,
            times,
            num_frames: 0,
            ended: false,
        })
    }

    /// How the child process ended, when that is worth telling.
    fn end(&mut self) -> Result<()> {
        let at = self.source.name();
        let status = self.child.wait().with_context(|| format!("waiting for ffmpeg on {at}"))?;
        let complaints = self.complaints.take().and_then(|c| c.join().ok()).unwrap_or_default();
        let last = complaints.lines().rev().find(|line| !line.trim().is_empty());
        let mut why = last.map(|line| format!(": {}", line.trim())).unwrap_or_default();
        if let VideoSource::Stream(address) = &self.source {
            why = why.replace(address, &at);
        }
        ensure!(
            status.success(),
            "{at}: ffmpeg failed after {} frames ({status}){why}",
            self.num_frames
        );
        ensure!(self.num_frames > 0, "{at}: ffmpeg found no frame in it{why}");
        ensure!(
            last.is_none() || self.source.is_live(),
            "{at}: it is damaged or cut off, by what ffmpeg says of it{why}; of {} frames that came out some may be \
             broken or missing, and numbers without a time may be too low",
            self.num_frames
        );
        Ok(())
    }
}

impl Video {
    fn next_image(&mut self) -> Option<Result<RgbImage>> {
        if self.ended {
            return None;
        }
        match read_ppm(&mut self.frames) {
            Ok(Some(frame)) => {
                self.num_frames += 1;
                Some(Ok(frame))
            }
            _ if self.stop.are_raised() => {
                self.ended = true;
                None
            }
            ended => {
                self.ended = true;
                let read = match ended {
                    Err(why) if !is_cut_off(&why) => {
                        // It would wait for ever for somebody who takes its frames.
                        drop(self.child.kill());
                        Err(why)
                    }
                    // Of a frame that is cut off ffmpeg knows the better reason.
                    cut_off => match self.end() {
                        Ok(()) => cut_off.map(|_| ()),
                        Err(why) => return Some(Err(why)),
                    },
                };
                let reading = || format!("reading {}", self.source.name());
                read.with_context(reading).err().map(Err)
            }
        }
    }
}

impl Iterator for Video {
    type Item = VideoFrame;

    fn next(&mut self) -> Option<VideoFrame> {
        let image = self.next_image()?;
        let time_s = match (&image, &mut self.times) {
            (Ok(_), Some(times)) => times.next(&self.stop),
            _ => None,
        };
        Some(VideoFrame { number: self.numbers.of(time_s), time_s, image })
    }
}

impl Drop for Video {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Whether a frame ends too early.
fn is_cut_off(why: &anyhow::Error) -> bool {
    let io = why.downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == ErrorKind::UnexpectedEof)
}

/// Has a child killed when the thread that starts it is gone, as after a crash of this program, and lets it keep a file.
fn end_with_parent(command: &mut Command, kept: Option<RawFd>) {
    let done = |result| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: between fork and exec only fcntl and prctl are called, which are async-signal-safe and touch no memory.
    unsafe {
        command.pre_exec(move || {
            #[cfg(target_os = "linux")]
            done(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            kept.map_or(Ok(()), |file| done(libc::fcntl(file, libc::F_SETFD, 0)))
        });
    }
}

/// Asks ffmpeg for a second output beside the frames: the time of each, on a pipe of its own.
fn ask_for_times(command: &mut Command, once: [&str; 2]) -> Result<(PipeReader, PipeWriter)> {
    let (reader, writer) = std::io::pipe().context("making a pipe for ffmpeg")?;
    command
        .args(["-map", "0:v:0"])
        .args(once)
        .args(["-c:v", "rawvideo", "-enc_time_base", &format!("1/{UNITS_PER_S}")])
        .args(["-flush_packets", "1", "-f", "framecrc", &format!("pipe:{}", writer.as_raw_fd())]);
    Ok((reader, writer))
}

/// Frames a second of a file whose frames come at equal times, as far as `ffprobe` knows.
fn rate_of(source: &VideoSource) -> Option<f64> {
    let VideoSource::File { path, .. } = source else { return None };
    let probe = probe(path)?;
    let stream = probe.streams.first()?;
    equal_rate(stream.r_frame_rate.as_deref()?, stream.avg_frame_rate.as_deref()?)
}

/// Whether videos can be decoded.
///
/// # Errors
/// If `ffmpeg` is not installed or does not start; the message says what to do then.
pub fn check_ffmpeg() -> Result<()> {
    version().map(|_| ())
}

/// The path as ffmpeg takes a file for certain: no protocol, no option.
fn as_file(path: &Path) -> OsString {
    let mut name = OsString::from("file:");
    name.push(path);
    name
}

/// Major and minor version of the installed ffmpeg; none where it does not say (a build of the day).
fn version() -> Result<Option<(u32, u32)>> {
    let output = Command::new("ffmpeg").arg("-version").stdin(Stdio::null()).output();
    let output = match output {
        Ok(output) => output,
        Err(e) if e.kind() == ErrorKind::NotFound => bail!(
            "ffmpeg is not installed, which decodes videos: install it (apt-get install ffmpeg), or extract the frames \
             elsewhere (ffmpeg -i VIDEO frames/%06d.png) and name their folder"
        ),
        Err(e) => return Err(e).context("starting ffmpeg"),
    };
    ensure!(output.status.success(), "`ffmpeg -version` failed: {}", output.status);
    Ok(parse_version(&String::from_utf8_lossy(&output.stdout)))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let word = text.strip_prefix("ffmpeg version ")?.split_whitespace().next()?;
    let mut numbers = word.trim_start_matches('n').split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    Some((major, numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0)))
}

/// The options for frames neither repeated nor left out to keep a rate.
fn every_frame_once(version: Option<(u32, u32)>) -> [&'static str; 2] {
    match version {
        Some(version) if version < FPS_MODE_SINCE => ["-vsync", "0"],
        _ => ["-fps_mode", "passthrough"],
    }
}

/// A binary PPM image; `None` at the end of the stream.
fn read_ppm(reader: &mut impl BufRead) -> Result<Option<RgbImage>> {
    if reader.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let magic = word(reader)?;
    ensure!(magic == "P6", "a frame begins with {magic:?}, expected P6");
    let mut number = || -> Result<u32> {
        let word = word(reader)?;
        word.parse().map_err(|_| anyhow!("a frame's head has {word:?}, expected a number"))
    };
    let (width, height, most) = (number()?, number()?, number()?);
    ensure!(
        (1..=MAX_SIDE_PX).contains(&width) && (1..=MAX_SIDE_PX).contains(&height) && most == 255,
        "a frame of {width} x {height} px with values up to {most}"
    );
    let mut pixels = vec![0; width as usize * height as usize * 3];
    reader.read_exact(&mut pixels).context("a frame is cut off")?;
    RgbImage::from_raw(width, height, pixels).context("a frame's size does not fit").map(Some)
}

/// The next word of a PPM head, with the one blank behind it.
fn word(reader: &mut impl BufRead) -> Result<String> {
    let mut word = String::new();
    loop {
        let mut byte = [0];
        reader.read_exact(&mut byte).context("a frame's head is cut off")?;
        match byte[0] {
            b if b.is_ascii_whitespace() && word.is_empty() => {}
            b if b.is_ascii_whitespace() => return Ok(word),
            b => word.push(b as char),
        }
        ensure!(word.len() < 16, "a frame's head has {word:?}");
    }
}

/// How many frames a video has, as its file says; `None` where `ffprobe` is missing or does not know. An estimate: for
/// progress, not for counting.
pub fn estimated_frames(path: &Path) -> Option<u64> {
    num_frames(&probe(path)?)
}

/// What `ffprobe` says of a video.
fn probe(path: &Path) -> Option<Probe> {
    let output = Command::new("ffprobe")
        .args(["-v", "error", "-select_streams", "v:0", "-show_entries"])
        .args([
            "stream=nb_frames,r_frame_rate,avg_frame_rate,duration:format=duration",
            "-of",
            "json",
        ])
        .arg(as_file(path))
        .stdin(Stdio::null())
        .output()
        .ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

#[derive(Deserialize)]
struct Probe {
    streams: Vec<Stream>,
    format: Option<Format>,
}

#[derive(Deserialize)]
struct Stream {
    nb_frames: Option<String>,
    r_frame_rate: Option<String>,
    avg_frame_rate: Option<String>,
    duration: Option<String>,
}

#[derive(Deserialize)]
struct Format {
    duration: Option<String>,
}

fn num_frames(probe: &Probe) -> Option<u64> {
    let stream = probe.streams.first()?;
    if let Some(frames) = stream.nb_frames.as_ref().and_then(|n| n.parse().ok()) {
        return Some(frames);
    }
    let format = probe.format.as_ref().and_then(|f| f.duration.clone());
    let seconds: f64 = stream.duration.clone().or(format)?.parse().ok()?;
    let frames = (seconds * rate(stream.avg_frame_rate.as_deref()?)?).round();
    (frames.is_finite() && frames >= 1.0).then_some(frames as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_any_size_are_read_one_after_the_other() {
        let mut stream = b"P6\n2 1\n255\n".to_vec();
        stream.extend([1, 2, 3, 4, 5, 6]);
        stream.extend(b"P6 1 1 255\n\n\n\n"); // its pixel is three line ends
        let mut reader = BufReader::with_capacity(5, stream.as_slice());
        let first = read_ppm(&mut reader).unwrap().unwrap();
        assert_eq!(
            (first.dimensions(), first.as_raw().as_slice()),
            ((2, 1), &[1, 2, 3, 4, 5, 6][..])
        );
        let second = read_ppm(&mut reader).unwrap().unwrap();
        assert_eq!(second.as_raw(), &[10, 10, 10]);
        assert!(read_ppm(&mut reader).unwrap().is_none());
    }

    #[test]
    fn cameras_and_streams_are_told_from_files() {
        let live = |text: &str| VideoSource::live(Path::new(text));
        let device = live("/dev/video2").unwrap();
        assert_eq!(device, VideoSource::Device("/dev/video2".into()));
        let text = |source: &VideoSource| -> Vec<String> {
            source.input().iter().map(|arg| arg.to_string_lossy().into_owned()).collect()
        };
        assert!(text(&device).ends_with(&["v4l2", "-i", "/dev/video2"].map(str::to_owned)));
        let stream = live("rtsp://me:pass@word@cam.local:554/live?x=@1").unwrap();
        assert_eq!(stream.name(), "rtsp://cam.local:554/live?x=@1");
        assert!(text(&stream).contains(&"-rtsp_transport".to_owned()));
        assert_eq!(live("http://host/a@b").unwrap().name(), "http://host/a@b");
        for file in ["a.mp4", "dir/http://", "ftp://x/y.mp4", "/dev/null", "file:///a.mp4"] {
            assert_eq!(live(file), None, "{file}");
        }
        let file = VideoSource::File { path: "-x.mp4".into(), paced: true };
        assert_eq!(text(&file), ["-fflags", "+discardcorrupt", "-re", "-i", "file:-x.mp4"]);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for (bytes, expected) in [
            (&b"P6\n2 2\n255\nabc"[..], "cut off"),
            (b"P6\n2", "cut off"),
            (b"P5\n1 1\n255\na", "expected P6"),
            (b"P6\n0 1\n255\na", "0 x 1 px"),
            (b"P6\n70000 70000\n255\n", "70000 x 70000 px"),
            (b"P6\n1 1\n65535\nabcdef", "up to 65535"),
            (b"P6\nx 1\n255\n", "\"x\", expected a number"),
            (b"\x1aE\xdf\xa3 no video at all, nor a frame", "frame"),
        ] {
            let error = format!("{:#}", read_ppm(&mut BufReader::new(bytes)).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn versions_choose_the_option() {
        for (text, version, option) in [
            ("ffmpeg version 4.4.2-0ubuntu0.22.04.1 Copyright", Some((4, 4)), "-vsync"),
            ("ffmpeg version 5.1.6-0+deb12u1 Copyright", Some((5, 1)), "-fps_mode"),
            ("ffmpeg version n7.0 Copyright", Some((7, 0)), "-fps_mode"),
            ("ffmpeg version N-115000-gabcdef Copyright", None, "-fps_mode"),
            ("something else", None, "-fps_mode"),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
            assert_eq!(every_frame_once(version)[0], option);
        }
    }

    #[test]
    fn the_number_of_frames_is_told_or_estimated() {
        let parse_probe = |json: &[u8]| num_frames(&serde_json::from_slice(json).ok()?);
        let told =
            br#"{"streams": [{"nb_frames": "250", "avg_frame_rate": "25/1"}], "format": {}}"#;
        assert_eq!(parse_probe(told), Some(250));
        let rate =
            br#"{"streams": [{"avg_frame_rate": "30000/1001"}], "format": {"duration": "10.01"}}"#;
        assert_eq!(parse_probe(rate), Some(300));
        for unknown in [
            &br#"{"streams": []}"#[..],
            br#"{"streams": [{"avg_frame_rate": "0/0", "duration": "3"}]}"#,
            b"",
        ] {
            assert_eq!(parse_probe(unknown), None);
        }
    }

    #[test]
    fn videos_are_known_by_name() {
        assert!(is_video(Path::new("a/b.MP4")) && is_video(Path::new("c.mkv")));
        assert!(!is_video(Path::new("a.png")) && !is_video(Path::new("mp4")));
    }
}
