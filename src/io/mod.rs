//! Files: JSON, tensors, pictures, meshes, TensorBoard events, charts, and how to write them whole.
//!
//! Start at [`write_atomic`]: everything here that a later run may read goes through it, so that a reader finds
//! either the old file or the new one ([`PartialFile`]: what grows over a long run). Readers refuse what is truncated, oversized or mistyped with an error
//! that names the file; none of them panics or allocates by a number that a file merely claims.
//!
//! - [`tensors`]: safetensors files of `tch` tensors, and strict copying into a network's own tensors
//! - [`pth`]: PyTorch files, read without Python
//! - [`picture`]: RGB images and masks (PNG, JPEG)
//! - [`video`]: frames of videos, camera devices and network streams by way of an installed ffmpeg
//! - [`image_stream`]: images one after the other on a pipe
//! - [`mesh`]: PLY meshes
//! - [`events`]: TensorBoard event files
//! - [`chart`]: line charts as SVG and PNG

mod atomic;
pub mod chart;
pub mod events;
pub mod image_stream;
mod interruptible;
mod jpeg_copies;
mod json;
pub mod mesh;
mod mistaken;
mod open;
mod partial;
mod paths;
pub mod picture;
pub mod pth;
mod shell;
pub mod tensors;
mod text;
pub mod video;
mod video_times;

pub use atomic::{remove_leftovers, write_atomic};
pub use interruptible::{Interruptible, StopFlags};
pub use json::{differing_keys, name_keys, parse_json, read_json, read_json_lines, write_json};
pub use mistaken::{mistaken, mistaken_for_a_file};
pub use open::{checksum, open_file, open_stream, read_file};
pub use partial::PartialFile;
pub use paths::{PathField, path_text};
pub use shell::shell_word;
pub use text::{read_list, read_text, without_mark};
