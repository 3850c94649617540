//! Who numbered this process, and how.

use std::str::FromStr;

use super::Launcher;
use crate::environment::{self, Variable};
use crate::error::{Error, ErrorKind, Result};

/// The numbers of a process among those started together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ranks {
    pub(super) by: Launcher,
    pub(super) rank: u32,
    pub(super) size: Option<u32>,
    pub(super) local_rank: Option<u32>,
    pub(super) local_size: Option<u32>,
    /// The step of the Slurm job whose tasks these are.
    pub(super) step: Option<u32>,
}

impl Ranks {
    /// The numbers of the innermost launcher: the user, torchrun's, MPI's, PMI's, PMIx's, then those of Flux or Slurm.
    ///
    /// A daemon of `mpirun` in a Slurm job is a task of Slurm's, and the processes below it inherit the daemon's `SLURM_PROCID`,
    /// so Slurm's numbers count only where no other launcher left any, or they agree with them. Flux's likewise.
    ///
    /// # Errors
    /// `Config` for `PROXYSTORE_*` that make no sense. What launchers leave that makes none is passed over.
    pub(super) fn read(read: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        if let Some(ranks) = Self::explicit(read)? {
            return Ok(Some(ranks));
        }
        let torch = read("TORCHELASTIC_RUN_ID").and_then(|_| Self::of(read, Launcher::Torch, TORCH));
        let launched = torch.or_else(|| LAUNCHERS.iter().find_map(|(by, names)| Self::of(read, *by, *names)));
        let system = Self::of(read, Launcher::Flux, FLUX).or_else(|| Self::slurm(read));
        let Some(mut ranks) = launched else { return Ok(system) };
        let is_same = |system: &Self| system.rank == ranks.rank && (ranks.size.is_none() || system.size == ranks.size);
        if let Some(system) = system.filter(is_same) {
            ranks.size = ranks.size.or(system.size);
            ranks.local_rank = ranks.local_rank.or(system.local_rank);
            ranks.local_size = ranks.local_size.or(system.local_size);
            ranks.step = system.step;
        }
        Ok(Some(ranks))
    }

    fn explicit(read: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let rank = number(read, environment::RANK)?;
        let size = number(read, environment::SIZE)?;
        let local_rank = number(read, environment::LOCAL_RANK)?;
        let local_size = number(read, environment::LOCAL_SIZE)?;
        let Some(rank) = rank else {
            return match size.or(local_rank).or(local_size) {
                Some(_) => Err(wrong("PROXYSTORE_RANK is not set, and others of its kind are: set it too")),
                None => Ok(None),
            };
        };
        let ranks = Self { by: Launcher::Explicit, rank, size, local_rank, local_size, step: None };
        match ranks.is_possible() {
            true => Ok(Some(ranks)),
            false => Err(wrong("of PROXYSTORE_RANK, SIZE, LOCAL_RANK and LOCAL_SIZE a rank is not below its size")),
        }
    }

    fn of(read: &dyn Fn(&str) -> Option<String>, by: Launcher, names: [&str; 4]) -> Option<Self> {
        let [rank, size, local_rank, local_size] = names.map(|name| lenient(read, name));
        let ranks = Self { by, rank: rank?, size, local_rank, local_size, step: None };
        ranks.is_possible().then_some(ranks)
    }

    /// Of a task of a step. The shell of a batch job has `SLURM_PROCID` too, and is no task.
    fn slurm(read: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let step = lenient(read, "SLURM_STEP_ID")?;
        let here = lenient(read, "SLURM_NODEID");
        let tasks = read("SLURM_STEP_TASKS_PER_NODE").or_else(|| read("SLURM_TASKS_PER_NODE"));
        let ranks = Self {
            by: Launcher::Slurm,
            rank: lenient(read, "SLURM_PROCID")?,
            size: lenient(read, "SLURM_STEP_NUM_TASKS").or_else(|| lenient(read, "SLURM_NTASKS")),
            local_rank: lenient(read, "SLURM_LOCALID"),
            local_size: here.zip(tasks).and_then(|(here, tasks)| tasks_of(&tasks, here)),
            step: Some(step),
        };
        ranks.is_possible().then_some(ranks)
    }

    fn is_possible(&self) -> bool {
        let is_below = |rank: Option<u32>, size: Option<u32>| rank.zip(size).is_none_or(|(rank, size)| rank < size);
        is_below(Some(self.rank), self.size)
            && is_below(self.local_rank, self.local_size)
            && is_below(self.local_rank, self.size)
    }
}

/// Rank, size, local rank, local size; the innermost first. The variable that does not exist has no name.
const LAUNCHERS: [(Launcher, [&str; 4]); 6] = [
    (
        Launcher::OpenMpi,
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    (
        Launcher::Pmi,
        ["MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"],
    ),
    // How many there are is told by its PMI alone.
    (Launcher::Pals, ["PALS_RANKID", "PMI_SIZE", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE"]),
    (Launcher::Pmi, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    (
        Launcher::Lsf,
        ["JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"],
    ),
    (Launcher::Pmix, ["PMIX_RANK", "", "", ""]),
];

/// Names that others may use too, so they count beside torchrun's own alone.
const TORCH: [&str; 4] = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];

const FLUX: [&str; 4] = ["FLUX_TASK_RANK", "FLUX_JOB_SIZE", "FLUX_TASK_LOCAL_ID", ""];

/// The number in one of our variables.
///
/// # Errors
/// `Config` for what is none.
pub(super) fn number(read: &dyn Fn(&str) -> Option<String>, variable: Variable) -> Result<Option<u32>> {
    let Some(text) = read(variable.name).filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(wrong(format!("{}={text:?} is no number", variable.name))),
    }
}

pub(super) fn lenient<T: FromStr>(read: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<T> {
    read(name)?.parse().ok()
}

pub(super) fn wrong(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, "launch", context)
}

/// The number of tasks on node `node` in a list such as `4,1(x2)`.
fn tasks_of(list: &str, node: u32) -> Option<u32> {
    let mut end = 0u64;
    for item in list.split(',') {
        let (tasks, nodes) = match item.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (item, 1u32),
        };
        end += u64::from(nodes);
        if u64::from(node) < end {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_of_a_node() {
        let list = "4,1(x2),3";
        let tasks: Vec<_> = (0..5).map(|node| tasks_of(list, node)).collect();
        assert_eq!(tasks, [Some(4), Some(1), Some(1), Some(3), None]);
        for list in ["", "x", "2(x", "2(x3", "2(xy)", "2(x0)", "-1"] {
            assert_eq!(tasks_of(list, 0), None, "{list}");
        }
        assert_eq!(tasks_of(&["1(x4294967295)"; 3].join(","), u32::MAX), Some(1));
    }
}
