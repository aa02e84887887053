//! A tensor of a file, without its numbers.

use serde::Serialize;

/// One tensor.
#[derive(Debug, Serialize)]
pub struct TensorReport {
    /// Key.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<i64>,
    /// Bytes of its numbers.
    pub bytes: usize,
}
