//! An image of a dataset, and what is seen in it.

use std::path::PathBuf;

use crate::geom::{Camera, Pose};

/// An object in an image.
#[derive(Debug, Clone)]
pub struct Annotation {
    /// 0-based, without the background.
    pub class: usize,
    /// Under the frame's camera, mm.
    pub pose: Pose,
    /// File of its visible mask, not 0 inside; none where masks were not wanted.
    pub mask: Option<PathBuf>,
}

/// An image of the list.
#[derive(Debug, Clone)]
pub struct Frame {
    /// Path as in the list, relative to the root.
    pub image: String,
    /// Camera that took it, px.
    pub camera: Camera,
    /// Objects with a mesh; none is allowed.
    pub objects: Vec<Annotation>,
}

impl Frame {
    /// Most objects of one class.
    pub fn most_of_a_class(&self) -> usize {
        let of = |class| self.objects.iter().filter(|object| object.class == class).count();
        self.objects.iter().map(|object| of(object.class)).max().unwrap_or(0)
    }

    /// Objects of which one pose a class can be right: the classes that are seen.
    pub fn num_findable(&self) -> usize {
        let mut classes: Vec<usize> = self.objects.iter().map(|object| object.class).collect();
        classes.sort_unstable();
        classes.dedup();
        classes.len()
    }
}
