//! What an export is made from.

use std::path::Path;

use crate::artifact::LoadedNetwork;
use crate::nn::Network;
use crate::train::ObjectInfo;

/// A network to write, with what was loaded beside it.
pub(super) struct Exported<'a> {
    /// The file that it was loaded from.
    pub from: &'a Path,
    /// The file to write.
    pub out: &'a Path,
    /// The problem whose dataset calibrates.
    pub problem: &'a str,
    pub net: Box<dyn Network>,
    pub loaded: LoadedNetwork,
    /// Those that the file is to carry, by class; empty where nobody tells them.
    pub objects: Vec<ObjectInfo>,
}
