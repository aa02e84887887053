//! What a dataset is read for.

/// What a dataset is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Masks are needed; an image may be named several times to be seen more often.
    Training,
    /// True poses are needed, masks are not; an image counts once however often it is named.
    Evaluation,
    /// As [`Purpose::Evaluation`], of poses from a file: no network looks at the images.
    Scoring,
    /// Images alone: there need be no objects and no masks.
    Images,
}
