//! Inference that processes share.

use std::sync::Arc;

use anyhow::Result;

use crate::data::{Dataset, Share};
use crate::eval::{InferOptions, Inference, Progress, infer};
use crate::nn::{Decode, Engine};
use crate::world::World;

/// As [`infer`], shared by the processes of `world`: each takes every so-manieth batch, and all of them get all that was found.
/// Batches are those of one process, so that results are too, bit for bit.
///
/// # Errors
/// As [`infer`], in any of the processes; if one is lost.
pub(super) fn infer_together(
    world: &World,
    engine: &dyn Engine,
    decoder: &dyn Decode,
    dataset: &Arc<Dataset>,
    options: &InferOptions,
    progress: impl FnMut(Progress),
) -> Result<Inference> {
    if world.is_alone() {
        return infer(engine, decoder, dataset, options, progress);
    }
    let share = Share::Batches { first: world.rank(), of: world.size() };
    let options = InferOptions { share, ..options.clone() };
    let own = infer(engine, decoder, dataset, &options, progress);
    Ok(Inference::merged(world.gather(world.all_succeeded(own)?)?))
}
