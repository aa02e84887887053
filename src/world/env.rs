//! The place of a process among those that work together, as its launcher's environment says it.

use anyhow::{Context, Result, bail, ensure};

/// The place of a process among those that work together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// How many there are, 2 or more.
    pub size: usize,
    /// Its number among those on this machine.
    pub local_rank: usize,
    /// Those on this machine.
    pub local_size: usize,
    /// The machine of rank 0.
    pub address: String,
    /// Where they meet there.
    pub port: u16,
    /// Whether the launcher keeps the meeting point; otherwise rank 0 does.
    pub launcher_meets: bool,
    /// What tells this attempt from earlier ones at the same meeting point.
    pub attempt: String,
}

/// The variables of a launcher for rank and size, and for both on the machine.
#[derive(Clone, Copy)]
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

const TORCHRUN: Launcher = Launcher {
    name: "torchrun, or `mqat launch`",
    rank: "RANK",
    size: "WORLD_SIZE",
    local_rank: "LOCAL_RANK",
    local_size: "LOCAL_WORLD_SIZE",
};

const MPIRUN: Launcher = Launcher {
    name: "mpirun",
    rank: "OMPI_COMM_WORLD_RANK",
    size: "OMPI_COMM_WORLD_SIZE",
    local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    local_size: "OMPI_COMM_WORLD_LOCAL_SIZE",
};

/// Of the tasks that `srun` starts. The script of a job has SLURM_PROCID and SLURM_NTASKS too, and is one process.
const SRUN: Launcher = Launcher {
    name: "srun",
    rank: "SLURM_PROCID",
    size: "SLURM_STEP_NUM_TASKS",
    local_rank: "SLURM_LOCALID",
    local_size: "SLURM_STEP_TASKS_PER_NODE",
};

/// What else libtorch's launchers set.
const ADDRESS: &str = "MASTER_ADDR";
const PORT: &str = "MASTER_PORT";

impl Place {
    /// The place that the environment says, read by `var`; `None` for a process that works alone. Where several launchers
    /// are nested the innermost counts: torchrun's variables, then mpirun's, then srun's.
    ///
    /// # Errors
    /// If a variable is missing, is no number, or contradicts another one: names it.
    pub fn of_env(var: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let is_set = |launcher: &Launcher| {
            var(launcher.size).is_some()
                || (launcher.name != SRUN.name && var(launcher.rank).is_some())
        };
        let Some(launcher) = [TORCHRUN, MPIRUN, SRUN].into_iter().find(is_set) else {
            return Ok(None);
        };
        let number = |name: &str| number(var, name);
        let needed = |name: &str| {
            number(name)?.with_context(|| {
                format!(
                    "{} or {} is set (by {}), and {name} is not: set both, or none for one process",
                    launcher.rank, launcher.size, launcher.name
                )
            })
        };
        let (rank, size) = (needed(launcher.rank)?, needed(launcher.size)?);
        ensure!(size > 0, "{} is 0, expected at least 1", launcher.size);
        ensure!(
            rank < size,
            "{} is {rank}, expected less than {} = {size}",
            launcher.rank,
            launcher.size
        );
        if launcher.name == TORCHRUN.name {
            contradicts(var, &MPIRUN, rank, size)?;
        }
        if size == 1 {
            return Ok(None);
        }
        // Without a word of machines all are taken to be on this one.
        let (local_rank, all_here) = match number(launcher.local_rank)? {
            Some(local_rank) => (local_rank, None),
            None => (rank, Some(size)),
        };
        let local_size = match launcher.name == SRUN.name {
            true => tasks_of_node(var(launcher.local_size).as_deref()),
            false => number(launcher.local_size)?,
        };
        let address = var(ADDRESS).with_context(|| missing(ADDRESS, size))?;
        let port = number(PORT)?.with_context(|| missing(PORT, size))?;
        Ok(Some(Self {
            rank,
            size,
            local_rank,
            local_size: local_size.or(all_here).unwrap_or(1).max(local_rank + 1),
            address,
            port: u16::try_from(port)
                .ok()
                .filter(|port| *port > 0)
                .with_context(|| format!("{PORT} is {port}, expected 1 to 65535"))?,
            launcher_meets: var("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True"),
            attempt: var("TORCHELASTIC_RESTART_COUNT").unwrap_or_else(|| "0".to_owned()),
        }))
    }
}

fn number(var: &dyn Fn(&str) -> Option<String>, name: &str) -> Result<Option<usize>> {
    let Some(text) = var(name) else { return Ok(None) };
    match text.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => bail!("the environment variable {name} is {text:?}, expected a number"),
    }
}

fn missing(name: &str, size: usize) -> String {
    format!(
        "the environment variable {name} is missing, and there are {size} processes: it says where they meet (the machine of \
         rank 0 and a free port there); in a Slurm job: export {ADDRESS}=$(scontrol show hostnames \"$SLURM_JOB_NODELIST\" | \
         head -n 1) {PORT}=29500"
    )
}

/// Refuses ranks of two launchers that count the same processes and disagree.
fn contradicts(
    var: &dyn Fn(&str) -> Option<String>,
    other: &Launcher,
    rank: usize,
    size: usize,
) -> Result<()> {
    let (other_rank, other_size) = (number(var, other.rank)?, number(var, other.size)?);
    let same_processes = other_size == Some(size) && size > 1;
    ensure!(
        !same_processes || other_rank == Some(rank),
        "{} is {rank} and {} is {}, of {size} processes both: unset {} and {}, or set them from {}'s",
        TORCHRUN.rank,
        other.rank,
        other_rank.map_or("not set".to_owned(), |rank| rank.to_string()),
        TORCHRUN.rank,
        TORCHRUN.size,
        other.name
    );
    Ok(())
}

/// The most tasks of a machine, in Slurm's form: `4`, `4(x2)`, `3(x2),1`.
fn tasks_of_node(text: Option<&str>) -> Option<usize> {
    let machines = text?.split(',');
    let tasks = |part: &str| part.split_once("(x").map_or(part, |(tasks, _)| tasks).parse().ok();
    machines.map(tasks).collect::<Option<Vec<usize>>>()?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(vars: &[(&str, &str)]) -> Result<Option<Place>> {
        Place::of_env(&|name| {
            vars.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    const MEET: [(&str, &str); 2] = [("MASTER_ADDR", "node0"), ("MASTER_PORT", "29500")];

    #[test]
    fn each_launcher_is_understood() {
        let torchrun = [
            ("RANK", "3"),
            ("WORLD_SIZE", "4"),
            ("LOCAL_RANK", "1"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("TORCHELASTIC_USE_AGENT_STORE", "True"),
            ("TORCHELASTIC_RESTART_COUNT", "2"),
            // torchrun in a Slurm job: one task a machine
            ("SLURM_PROCID", "1"),
            ("SLURM_STEP_NUM_TASKS", "2"),
        ];
        let found = place(&[&torchrun[..], &MEET].concat()).unwrap().unwrap();
        let expected = Place {
            rank: 3,
            size: 4,
            local_rank: 1,
            local_size: 2,
            address: "node0".to_owned(),
            port: 29500,
            launcher_meets: true,
            attempt: "2".to_owned(),
        };
        assert_eq!(found, expected);
        let mpirun = [
            ("OMPI_COMM_WORLD_RANK", "3"),
            ("OMPI_COMM_WORLD_SIZE", "4"),
            ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
            ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
        ];
        let alone = Place { launcher_meets: false, attempt: "0".to_owned(), ..expected };
        assert_eq!(place(&[&mpirun[..], &MEET].concat()).unwrap().unwrap(), alone);
        let srun = [
            ("SLURM_PROCID", "3"),
            ("SLURM_STEP_NUM_TASKS", "4"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "2(x2)"),
        ];
        assert_eq!(place(&[&srun[..], &MEET].concat()).unwrap().unwrap(), alone);
    }

    #[test]
    fn every_process_of_a_machine_knows_how_many_there_are() {
        for rank in ["0", "2"] {
            let by_hand = [("RANK", rank), ("WORLD_SIZE", "3")];
            assert_eq!(place(&[&by_hand[..], &MEET].concat()).unwrap().unwrap().local_size, 3);
        }
        assert_eq!(tasks_of_node(Some("4")), Some(4));
        assert_eq!(tasks_of_node(Some("3(x2),2")), Some(3));
        assert_eq!(tasks_of_node(Some("many")), None);
    }

    #[test]
    fn one_process_is_alone_and_needs_no_meeting_point() {
        assert_eq!(place(&[]).unwrap(), None);
        assert_eq!(place(&[("RANK", "0"), ("WORLD_SIZE", "1")]).unwrap(), None);
        // The script of a Slurm job.
        assert_eq!(place(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap(), None);
    }

    #[test]
    fn what_is_missing_or_contradicts_is_named() {
        let error = |vars: &[(&str, &str)]| place(vars).unwrap_err().to_string();
        for (vars, parts) in [
            (&[("RANK", "1")][..], ["RANK or WORLD_SIZE is set", "WORLD_SIZE is not"]),
            (&[("WORLD_SIZE", "2")], ["RANK or WORLD_SIZE is set", "RANK is not"]),
            (&[("WORLD_SIZE", "2"), ("RANK", "2")], ["RANK is 2", "less than WORLD_SIZE = 2"]),
            (&[("WORLD_SIZE", "0"), ("RANK", "0")], ["WORLD_SIZE is 0", "at least 1"]),
            (&[("WORLD_SIZE", "two"), ("RANK", "0")], ["WORLD_SIZE is \"two\"", "a number"]),
            (&[("WORLD_SIZE", "2"), ("RANK", "0")], ["MASTER_ADDR is missing", "scontrol"]),
            (
                &[("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "a")],
                ["MASTER_PORT is missing", "2 processes"],
            ),
            (
                &[("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "0")],
                ["MASTER_PORT is 0", "65535"],
            ),
            (
                &[
                    ("WORLD_SIZE", "2"),
                    ("RANK", "0"),
                    ("OMPI_COMM_WORLD_SIZE", "2"),
                    ("OMPI_COMM_WORLD_RANK", "1"),
                ],
                ["RANK is 0 and OMPI_COMM_WORLD_RANK is 1", "unset RANK"],
            ),
        ] {
            let text = error(vars);
            assert!(parts.iter().all(|part| text.contains(part)), "{vars:?}: {text}");
        }
    }
}
