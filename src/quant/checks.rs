//! What quantizers refuse: epochs that go back, weights off their levels.

use anyhow::{Result, bail};
use tch::{Kind, Tensor};

use super::levels::Grid;

/// Refuses an epoch before the last one.
pub(crate) fn check_order(name: &str, last: Option<u32>, epoch: u32) -> Result<()> {
    match last {
        Some(last) if epoch < last => {
            bail!(
                "epoch {epoch} of {name}'s quantizer comes after epoch {last}: epochs must not go back"
            )
        }
        _ => Ok(()),
    }
}

/// Refuses weights (where `of` is true, else all) that have not exactly the bits of a level.
pub(crate) fn check_on_grid(
    name: &str,
    grid: &Grid,
    weight: &Tensor,
    of: Option<&Tensor>,
) -> Result<()> {
    let mut off = grid.on_grid(weight)?.logical_not();
    if let Some(of) = of {
        off = off.logical_and(of);
    }
    if !bool::try_from(off.any())? {
        return Ok(());
    }
    let off = off.reshape([-1]);
    let index = off.nonzero().int64_value(&[0, 0]);
    bail!(
        "{name} holds {:e} at index {index}, which {} lies on none of its {} levels ({} such weights): \
         {}",
        weight.reshape([-1]).double_value(&[index]),
        if of.is_some() { "is frozen but" } else { "is quantized but" },
        grid.spacing().num_levels(),
        off.sum(Kind::Int64).int64_value(&[]),
        if of.is_some() { "something changed frozen weights" } else { "it is not a number" }
    )
}
