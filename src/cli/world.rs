//! Processes that work together, on the command line: how long they wait for each other, and where the others than the first
//! write their log.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use super::terminal;
use crate::train::{EpochRecord, Observer, StageStart};
use crate::world::{Place, World};

/// Arguments of commands that several processes run together.
#[derive(Debug, Clone, Args)]
pub struct WorldArgs {
    /// With several processes (`mqat launch`, torchrun, srun, mpirun): how long one waits for the others before it ends with
    /// an error.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u32).range(1..))]
    pub world_timeout: u32,
}

impl WorldArgs {
    /// Meets the other processes of the environment's launcher, if there are any.
    pub(super) fn meet(&self) -> Result<World> {
        let world = World::from_env(Duration::from_secs(u64::from(self.world_timeout)))?;
        if !world.is_first() {
            terminal::hold_log();
        }
        Ok(world)
    }
}

/// Refuses several processes for a command that one does alone.
pub(super) fn ensure_alone(command: &str) -> Result<()> {
    let place = Place::of_env(&|name| std::env::var(name).ok());
    // What is wrong with variables that nobody needs is nobody's concern.
    match place.ok().flatten() {
        Some(Place { rank, size, .. }) => bail!(
            "mqat {command} works in one process, and this is process {rank} of {size} by the environment (train and test work \
             in several): start it without the launcher"
        ),
        None => Ok(()),
    }
}

/// The view of a process other than the first: its log goes to a file of the run's folder.
pub(super) struct RankLog {
    pub rank: usize,
}

impl Observer for RankLog {
    fn folder(&mut self, path: &Path) -> Result<()> {
        terminal::log_to(&path.join(format!("rank_{}.log", self.rank)))
    }

    fn stage_start(&mut self, start: &StageStart) -> Result<()> {
        tracing::info!("stage {} ({}) from step {}", start.stage, start.name, start.global_step);
        Ok(())
    }

    fn epoch(&mut self, epoch: &EpochRecord) -> Result<()> {
        tracing::info!(
            "epoch {} of stage {}: loss {:.4}",
            epoch.epoch + 1,
            epoch.stage,
            epoch.loss
        );
        Ok(())
    }

    fn message(&mut self, text: &str) -> Result<()> {
        tracing::info!("{text}");
        Ok(())
    }
}
