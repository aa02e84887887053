//! A state dict as it lies in a file.

use std::path::Path;

use tch::Tensor;

use super::report::OtherMember;

/// A state dict as it lies in a file.
pub(crate) struct StateDict<'a> {
    pub path: &'a Path,
    /// Its tensors, in the file's order.
    pub tensors: Vec<(String, Tensor)>,
    /// The part of a nested file that it is.
    pub member: Option<String>,
    /// The other parts.
    pub other_members: Vec<OtherMember>,
}

impl<'a> StateDict<'a> {
    pub fn of(path: &'a Path) -> Self {
        Self { path, tensors: Vec::new(), member: None, other_members: Vec::new() }
    }
}
