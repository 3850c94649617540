//! `Job`: what launchers say of this process.

use std::collections::HashSet;
use std::env;
use std::fmt;
use std::net::IpAddr;

use super::expand;
use super::ranks::{Ranks, lenient, number, wrong};
use crate::environment;
use crate::error::Result;

/// A job and this process's place in it.
///
/// Each fact comes from the first of these that tells it: `PROXYSTORE_*`, then for the job Slurm, Open MPI, Flux, LSF, PBS, PMIx,
/// torchrun; for the numbers of processes torchrun, Open MPI, PALS, PMI (MPICH and its kin), JSM (`jsrun`), PMIx, Flux, Slurm, since
/// what was started last knows them, and a batch system knows only its daemons.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Job {
    /// Name of the job, the same in all its processes and no other job of this user's on its nodes: `slurm-4711`, `pbs-4711.head`,
    /// `mpi-426770432-9f3a2b1c`, what `PROXYSTORE_JOB` says, else `default`. It is the namespace of stores whose URL names
    /// none.
    ///
    /// A Slurm job that is requeued keeps its name; see [`restart`](Self::restart).
    pub id: String,
    /// Who named it.
    pub kind: Launcher,
    /// Host names of the nodes, in the order of the job; empty where nobody tells.
    pub nodes: Vec<String>,
    /// Which of [`nodes`](Self::nodes) this is. `None` where that is unknown, as on the login node of an interactive job.
    pub node_id: Option<u32>,
    /// Who numbered the processes; `None` where nobody did, as in the shell of a batch job.
    pub numbered_by: Option<Launcher>,
    /// Number of this process among those started together.
    pub rank: Option<u32>,
    /// How many were started together.
    pub size: Option<u32>,
    /// Number of this process among those of them on its node.
    pub local_rank: Option<u32>,
    /// How many of them are on its node.
    pub local_size: Option<u32>,
    /// The step of the Slurm job of which this process is a task.
    pub step: Option<u32>,
    /// How often Slurm has started the job anew, 0 at first. Not in the name, because Slurm does not tell it to all processes
    /// of a job; what must not be taken for the former run's needs an instance number of its own.
    pub restart: u32,
}

/// Whose word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Launcher {
    /// The user, by `PROXYSTORE_*`.
    Explicit,
    /// Slurm.
    Slurm,
    /// `mpirun` of Open MPI.
    OpenMpi,
    /// Another launcher with PMIx, as `prun`.
    Pmix,
    /// A launcher with PMI, as `mpiexec` of MPICH and of Intel MPI, `mpirun_rsh` of MVAPICH2, or `srun --mpi=pmi2`. It numbers
    /// processes and does not name the job.
    Pmi,
    /// `mpiexec` or `aprun` of HPE Cray's application launch service. It numbers processes and does not name the job.
    Pals,
    /// PBS. It names the job, and does not tell its nodes where processes see it.
    Pbs,
    /// LSF, or its `jsrun`.
    Lsf,
    /// Flux. It does not tell the nodes.
    Flux,
    /// `torchrun`.
    Torch,
    /// None: the user's session.
    Session,
}

impl Job {
    /// What the environment of this process tells.
    ///
    /// # Cost
    /// Some tens of reads of the environment, and a list of the nodes.
    ///
    /// # Errors
    /// `Config` for `PROXYSTORE_*` that make no sense, `Invalid` and `TooLarge` for a list of nodes that is none. Other things that
    /// launchers leave and that make no sense count as absent.
    pub fn discover() -> Result<Self> {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self::from_environment(&process_environment, &host)
    }

    /// What an environment tells a process on `host`.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    ///
    /// # Examples
    /// ```
    /// use proxystore::launch::{Job, Launcher};
    ///
    /// # fn main() -> proxystore::Result<()> {
    /// let environment = [("PMI_RANK", "3"), ("PMI_SIZE", "4")];
    /// let read = |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
    /// let job = Job::from_environment(&read, "n1")?;
    /// assert_eq!((job.rank, job.size, job.kind), (Some(3), Some(4), Launcher::Pmi));
    /// # Ok(())
    /// # }
    /// ```
    pub fn from_environment(read: &dyn Fn(&str) -> Option<String>, host: &str) -> Result<Self> {
        let (id, kind) = name(read)?;
        let ranks = Ranks::read(read)?;
        let mut nodes = nodes(read)?;
        if nodes.is_empty() && ranks.is_some_and(|ranks| ranks.size.is_some() && ranks.size == ranks.local_size) {
            // All are here.
            nodes.push(host.to_owned());
        }
        let node_id = match number(read, environment::NODE_ID)? {
            Some(id) if !nodes.is_empty() && id as usize >= nodes.len() => {
                return Err(wrong(format!("PROXYSTORE_NODE_ID={id}, and the job has {} nodes", nodes.len())));
            }
            Some(id) => Some(id),
            None => node_id(read, &nodes, host, ranks.as_ref()),
        };
        Ok(Self {
            id,
            kind,
            nodes,
            node_id,
            numbered_by: ranks.map(|ranks| ranks.by),
            rank: ranks.map(|ranks| ranks.rank),
            size: ranks.and_then(|ranks| ranks.size),
            local_rank: ranks.and_then(|ranks| ranks.local_rank),
            local_size: ranks.and_then(|ranks| ranks.local_size),
            step: ranks.and_then(|ranks| ranks.step),
            restart: lenient(read, "SLURM_RESTART_COUNT").unwrap_or(0),
        })
    }

    /// The name of the job of this process, without the rest.
    ///
    /// # Cost
    /// Some reads of the environment.
    ///
    /// # Errors
    /// `Config` when `PROXYSTORE_JOB` is no name.
    pub fn discover_id() -> Result<String> {
        Ok(name(&process_environment)?.0)
    }

    /// The host name of this node, as other nodes of the job know it, where that is known.
    pub fn node(&self) -> Option<&str> {
        Some(self.nodes.get(self.node_id? as usize)?)
    }
}

impl fmt::Display for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Explicit => "PROXYSTORE_*",
            Self::Slurm => "Slurm",
            Self::OpenMpi => "Open MPI",
            Self::Pmix => "PMIx",
            Self::Pmi => "PMI",
            Self::Pals => "PALS",
            Self::Pbs => "PBS",
            Self::Lsf => "LSF",
            Self::Flux => "Flux",
            Self::Torch => "torchrun",
            Self::Session => "session",
        })
    }
}

/// Longest name of a job and of a namespace, in bytes.
pub(crate) const MAX_ID: usize = 64;

/// Whether this may name a job, and so a namespace: it is a file name, a part of a URL and a word on a command line.
pub(crate) fn is_id(name: &str) -> bool {
    (1..=MAX_ID).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(is_of_id)
}

fn is_of_id(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// Text that is no UTF-8 is not passed over: it reads as text that is refused.
pub(super) fn process_environment(name: &str) -> Option<String> {
    env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

/// The name of the job, and who gave it.
fn name(read: &dyn Fn(&str) -> Option<String>) -> Result<(String, Launcher)> {
    if let Some(id) = read(environment::JOB.name).filter(|id| !id.is_empty()) {
        return match is_id(&id) {
            true => Ok((id, Launcher::Explicit)),
            false => Err(wrong(format!(
                "PROXYSTORE_JOB={id:?} is no name of a job: 1 to {MAX_ID} of A-Z a-z 0-9 . _ -, the first not a dot"
            ))),
        };
    }
    // No part of the cluster's name: few share a node, and the name has to be the same without that variable.
    let job = read("SLURM_JOB_ID").or_else(|| read("SLURM_JOBID"));
    let namespace = read("PMIX_NAMESPACE").filter(|namespace| !namespace.is_empty());
    // Of a task whose environment lost Slurm's variables: slurm.pmix.JOB.STEP.
    let step = namespace.as_deref().and_then(|namespace| namespace.strip_prefix("slurm.pmix."));
    let job = job.as_deref().filter(|job| is_slurm_job(job)).or(step.and_then(|step| step.split('.').next()));
    if let Some(job) = job.filter(|job| is_slurm_job(job)) {
        return Ok((format!("slurm-{job}"), Launcher::Slurm));
    }
    let some = |name: &str| read(name).filter(|text| !text.is_empty());
    let by = if read("OMPI_COMM_WORLD_RANK").is_some() { Launcher::OpenMpi } else { Launcher::Pmix };
    // Up to version 4 the namespace is a number of 16 random bits, and processes that were spawned later have another one; the
    // address of mpirun is one for all.
    if let Some(uri) = read("OMPI_MCA_orte_hnp_uri").filter(|uri| !uri.is_empty()) {
        let number = uri.split(['.', ';']).next().unwrap_or_default();
        return Ok((word("mpi", number, &uri), by));
    }
    let by_mpirun = namespace.as_deref().is_some_and(|namespace| namespace.starts_with("prterun-"));
    // After mpirun: what it starts by ssh has its variables and none of the batch system's.
    if let Some(job) = batch(&some).filter(|_| !by_mpirun) {
        return Ok(job);
    }
    if let Some(namespace) = namespace {
        // prterun-HOST-PID@N; N counts what was spawned.
        let launcher = namespace.split('@').next().unwrap_or_default();
        return Ok((word("mpi", launcher, launcher), by));
    }
    // `none` unless the user gives one, which is then the same on all nodes.
    if let Some(id) = some("TORCHELASTIC_RUN_ID").filter(|id| id != "none") {
        return Ok((word("torch", &id, &id), Launcher::Torch));
    }
    let unnamed = [
        ("OMPI_COMM_WORLD_RANK", Launcher::OpenMpi),
        ("PALS_RANKID", Launcher::Pals),
        ("PMI_RANK", Launcher::Pmi),
        ("MV2_COMM_WORLD_RANK", Launcher::Pmi),
        ("TORCHELASTIC_RUN_ID", Launcher::Torch),
    ];
    let by = unnamed.into_iter().find(|(name, _)| some(name).is_some()).map_or(Launcher::Session, |(_, by)| by);
    Ok((SESSION.to_owned(), by))
}

/// The name of a job of a batch system other than Slurm.
fn batch(some: &dyn Fn(&str) -> Option<String>) -> Option<(String, Launcher)> {
    // What `flux run` starts in a batch job is a job of the batch job's own Flux, as a step is.
    if let Some(id) = some("FLUX_ENCLOSING_ID").or_else(|| some("FLUX_JOB_ID")) {
        // An f, with a hook where the locale has one.
        let id = id.strip_prefix(['\u{192}', 'f']).unwrap_or(&id);
        return Some((word("flux", id, id), Launcher::Flux));
    }
    if let Some(id) = some("LSB_JOBID") {
        // 0 but in an array.
        let id = match some("LSB_JOBINDEX").filter(|index| index != "0") {
            Some(index) => format!("{id}-{index}"),
            None => id,
        };
        return Some((word("lsf", &id, &id), Launcher::Lsf));
    }
    // 4711.head, or 4711[3].head in an array.
    let id = some("PBS_JOBID")?;
    Some((word("pbs", &id, &id), Launcher::Pbs))
}

/// Name of what belongs to no job.
const SESSION: &str = "default";

fn is_slurm_job(job: &str) -> bool {
    (1..=32).contains(&job.len()) && job.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A name that goes on with `text`, as far as it may stand in one, and differs where `all` differs.
fn word(kind: &str, text: &str, all: &str) -> String {
    let is_whole = text == all && text.len() <= 48 && !text.is_empty() && text.bytes().all(is_of_id);
    if is_whole {
        return format!("{kind}-{text}");
    }
    let letters: String = text.bytes().filter(|byte| is_of_id(*byte)).take(40).map(char::from).collect();
    format!("{kind}-{letters}-{:08x}", crc32fast::hash(all.as_bytes()))
}

/// The nodes of the job; none where nobody tells.
fn nodes(read: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>> {
    let some = |name: &str| read(name).filter(|list| !list.is_empty());
    if let Some(list) = some(environment::NODES.name) {
        return expand(&list).map_err(|error| wrong("PROXYSTORE_NODES").with_source(error));
    }
    let mut nodes: Vec<String> = Vec::new();
    // A heterogeneous job has a list for each group, and the usual variable is of one group or of the step's. What a job
    // submitted from within another one inherits is the other one's.
    let job = some("SLURM_JOB_ID");
    let groups = match some("SLURM_JOB_ID_HET_GROUP_0") == job {
        true => lenient(read, "SLURM_HET_SIZE").unwrap_or(0),
        false => 0,
    };
    for group in 0..groups.min(MAX_GROUPS) {
        let Some(list) = some(&format!("SLURM_JOB_NODELIST_HET_GROUP_{group}")) else { continue };
        let more = expand(&list)?;
        // Groups may share nodes.
        let known: HashSet<&String> = nodes.iter().collect();
        let new: Vec<String> = more.into_iter().filter(|node| !known.contains(node)).collect();
        nodes.extend(new);
    }
    if nodes.is_empty() {
        if let Some(list) = some("SLURM_JOB_NODELIST").or_else(|| some("SLURM_NODELIST")) {
            nodes = expand(&list)?;
        }
    }
    if nodes.is_empty() {
        nodes = lsf_nodes(&some)?;
    }
    Ok(nodes)
}

/// The hosts of a job of LSF's: a name and a number of slots each, or where these are few a name for each slot.
///
/// # Errors
/// As [`expand`].
fn lsf_nodes(some: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>> {
    let (list, words) = match some("LSB_MCPU_HOSTS") {
        Some(list) => (list, 2),
        None => (some("LSB_HOSTS").unwrap_or_default(), 1),
    };
    let mut names: Vec<&str> = list.split_whitespace().step_by(words).collect();
    // The first one runs the script, and jsrun starts nothing there.
    if some("JSM_NAMESPACE_RANK").is_some() && names.len() > 1 {
        let first = names[0];
        names.retain(|name| *name != first);
    }
    let mut known = HashSet::new();
    names.retain(|name| known.insert(*name));
    if names.is_empty() { Ok(Vec::new()) } else { expand(&names.join(",")) }
}

/// Most groups of a heterogeneous job that are looked at; Slurm's own limit is 128.
const MAX_GROUPS: u32 = 128;

/// Where this host stands among the nodes.
fn node_id(read: &dyn Fn(&str) -> Option<String>, nodes: &[String], host: &str, ranks: Option<&Ranks>) -> Option<u32> {
    // mpiexec of MPICH passes its own environment on to all nodes, this variable included.
    let is_own = ranks.is_none_or(|ranks| ranks.by != Launcher::Pmi || ranks.step.is_some());
    let slurmd = read("SLURMD_NODENAME").filter(|_| is_own);
    let names = [Some(host.to_owned()), read("PMIX_HOSTNAME"), slurmd];
    names.into_iter().flatten().find_map(|name| position(nodes, &name))
}

/// The node of that name; of two that differ in their domains alone, neither.
fn position(nodes: &[String], name: &str) -> Option<u32> {
    let at = match nodes.iter().position(|node| node.eq_ignore_ascii_case(name)) {
        Some(at) => at,
        None => {
            let label = first_label(name)?;
            let is_same = |node: &String| first_label(node).is_some_and(|other| other.eq_ignore_ascii_case(label));
            let mut same = nodes.iter().enumerate().filter(|(_, node)| is_same(node)).map(|(at, _)| at);
            let at = same.next()?;
            if same.next().is_some() {
                return None;
            }
            at
        }
    };
    u32::try_from(at).ok()
}

/// `n1` of `n1.cluster`; addresses have none.
fn first_label(name: &str) -> Option<&str> {
    if name.parse::<IpAddr>().is_ok() {
        return None;
    }
    name.split('.').next().filter(|label| !label.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn job(environment: &[(&str, &str)]) -> Result<Job> {
        let read =
            |name: &str| environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        Job::from_environment(&read, "n2")
    }

    #[test]
    fn explicit_wins() {
        let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_NODELIST", "n[1-3]"), ("OMPI_COMM_WORLD_RANK", "5")];
        let own = [
            ("PROXYSTORE_JOB", "beam.1"),
            ("PROXYSTORE_NODES", "n[2-3]"),
            ("PROXYSTORE_NODE_ID", "1"),
            ("PROXYSTORE_RANK", "0"),
            ("PROXYSTORE_SIZE", "2"),
        ];
        let job = job(&[&slurm[..], &own].concat()).unwrap();
        assert_eq!(
            (job.id.as_str(), job.kind, job.numbered_by),
            ("beam.1", Launcher::Explicit, Some(Launcher::Explicit))
        );
        assert_eq!((job.nodes.len(), job.node_id, job.node()), (2, Some(1), Some("n3")));
        assert_eq!((job.rank, job.size, job.local_rank), (Some(0), Some(2), None));
    }

    #[test]
    fn explicit_nonsense_is_an_error() {
        let long = "x".repeat(MAX_ID + 1);
        for environment in [
            &[("PROXYSTORE_JOB", "a b")][..],
            &[("PROXYSTORE_JOB", ".hidden")],
            &[("PROXYSTORE_JOB", "../up")],
            &[("PROXYSTORE_JOB", &long)],
            &[("PROXYSTORE_RANK", "-1")],
            &[("PROXYSTORE_RANK", "4294967296")],
            &[("PROXYSTORE_SIZE", "4")],
            &[("PROXYSTORE_RANK", "4"), ("PROXYSTORE_SIZE", "4")],
            &[("PROXYSTORE_RANK", "0"), ("PROXYSTORE_LOCAL_RANK", "1"), ("PROXYSTORE_LOCAL_SIZE", "1")],
            &[("PROXYSTORE_RANK", "0"), ("PROXYSTORE_SIZE", "1"), ("PROXYSTORE_LOCAL_RANK", "1")],
            &[("PROXYSTORE_NODES", "n[1-")],
            &[("PROXYSTORE_NODES", "n[1-2]"), ("PROXYSTORE_NODE_ID", "2")],
            &[("PROXYSTORE_NODE_ID", "first")],
        ] {
            assert_eq!(job(environment).unwrap_err().kind(), ErrorKind::Config, "{environment:?}");
        }
        // Set to nothing is not set.
        assert_eq!(job(&[("PROXYSTORE_JOB", ""), ("PROXYSTORE_RANK", "")]).unwrap().id, SESSION);
    }

    #[test]
    fn nonsense_of_launchers_is_absent() {
        for environment in [
            &[("SLURM_JOB_ID", "")][..],
            &[("SLURM_JOB_ID", "7;rm")],
            &[("SLURM_JOB_ID", "../7")],
            &[("PMIX_NAMESPACE", "")],
            &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "-1")],
            &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "3"), ("SLURM_NTASKS", "3")],
            &[("OMPI_COMM_WORLD_RANK", "x")],
            &[("SLURM_RESTART_COUNT", "often")],
        ] {
            let job = job(environment).unwrap();
            assert_eq!((job.id.as_str(), job.rank, job.restart), (SESSION, None, 0), "{environment:?}");
        }
        // A list of nodes would be missed.
        for list in ["n[1-1000000000]", "n[", "n1;n2"] {
            assert!(job(&[("SLURM_JOB_ID", "7"), ("SLURM_JOB_NODELIST", list)]).is_err(), "{list}");
        }
        // Inherited by a job that was submitted from within a heterogeneous one.
        let stale = [
            ("SLURM_JOB_ID", "9"),
            ("SLURM_JOB_NODELIST", "n[1-2]"),
            ("SLURM_HET_SIZE", "4294967295"),
            ("SLURM_JOB_ID_HET_GROUP_0", "7"),
            ("SLURM_JOB_NODELIST_HET_GROUP_0", "x1"),
        ];
        assert_eq!(job(&stale).unwrap().nodes, ["n1", "n2"]);
        let shared = [
            ("SLURM_JOB_ID", "7"),
            ("SLURM_HET_SIZE", "3"),
            ("SLURM_JOB_ID_HET_GROUP_0", "7"),
            ("SLURM_JOB_NODELIST_HET_GROUP_0", "n[2-3]"),
            ("SLURM_JOB_NODELIST_HET_GROUP_2", "n[1-2]"),
        ];
        assert_eq!(job(&shared).unwrap().nodes, ["n2", "n3", "n1"]);
    }

    #[test]
    fn a_step_without_slurms_variables_belongs_to_its_job() {
        assert_eq!(job(&[("PMIX_NAMESPACE", "slurm.pmix.7.0")]).unwrap().id, "slurm-7");
        assert_eq!(job(&[("SLURM_JOBID", "7"), ("SLURM_RESTART_COUNT", "2")]).unwrap().restart, 2);
    }

    #[test]
    fn names_of_jobs() {
        for text in ["prterun-n1-4711", "ünder", "a b", "", "..", &"x".repeat(500)] {
            assert!(is_id(&word("torch", text, text)), "{}", word("torch", text, text));
        }
        let mpi = |text, all| word("mpi", text, all);
        assert_eq!(mpi("prterun-n1-4711", "prterun-n1-4711"), "mpi-prterun-n1-4711");
        assert_ne!(mpi("7", "7.0;tcp://a:1"), mpi("7", "7.0;tcp://a:2"));
        assert_ne!(mpi("a b", "a b"), mpi("ab", "ab"));
        let namespace = |text| job(&[("PMIX_NAMESPACE", text), ("PMIX_RANK", "0")]).unwrap();
        assert_eq!(namespace("prterun-n1-4711@1").id, namespace("prterun-n1-4711@2").id);
        assert_eq!(namespace("prterun-n1-4711@1").kind, Launcher::Pmix);
    }

    #[test]
    fn names_of_batch_jobs() {
        let id = |environment: &[(&str, &str)]| job(environment).unwrap().id;
        assert_eq!(id(&[("PBS_JOBID", "4711.head")]), "pbs-4711.head");
        assert_ne!(id(&[("PBS_JOBID", "4711[1].head")]), id(&[("PBS_JOBID", "4711[2].head")]));
        assert_eq!(id(&[("LSB_JOBID", "7"), ("LSB_JOBINDEX", "0")]), "lsf-7");
        assert_eq!(id(&[("LSB_JOBID", "7"), ("LSB_JOBINDEX", "3")]), "lsf-7-3");
        for id in [id(&[("FLUX_JOB_ID", "\u{192}2oLkTLb")]), id(&[("FLUX_JOB_ID", "f2oLkTLb")])] {
            assert_eq!(id, "flux-2oLkTLb");
        }
        // mpirun by ssh: only the first node has the batch system's variables.
        let mpirun = [("PMIX_NAMESPACE", "prterun-n1-4711@1"), ("PMIX_RANK", "0"), ("OMPI_COMM_WORLD_RANK", "0")];
        assert_eq!(id(&mpirun), id(&[&mpirun[..], &[("PBS_JOBID", "4711.head")]].concat()));
        assert_eq!(id(&[("TORCHELASTIC_RUN_ID", "none"), ("RANK", "0")]), SESSION);
    }

    #[test]
    fn hosts_of_lsf() {
        let nodes = |environment: &[(&str, &str)]| job(environment).unwrap().nodes;
        assert_eq!(nodes(&[("LSB_HOSTS", "n1 n1 n2 n2")]), ["n1", "n2"]);
        assert_eq!(nodes(&[("LSB_MCPU_HOSTS", "n1 2 n2 2 "), ("LSB_HOSTS", "x")]), ["n1", "n2"]);
        let jsrun = ("JSM_NAMESPACE_RANK", "0");
        assert_eq!(nodes(&[("LSB_MCPU_HOSTS", "login 1 n1 42 n2 42"), jsrun]), ["n1", "n2"]);
        assert_eq!(nodes(&[("LSB_MCPU_HOSTS", "n1 42"), jsrun]), ["n1"]);
        assert!(job(&[("LSB_HOSTS", "n[1")]).is_err());
    }

    #[test]
    fn the_name_of_mpiexecs_node_is_not_ours() {
        let slurm = [("SLURM_JOB_ID", "7"), ("SLURM_JOB_NODELIST", "x[1-3]"), ("SLURMD_NODENAME", "x1")];
        assert_eq!(job(&slurm).unwrap().node(), Some("x1"));
        let hydra = [("PMI_RANK", "2"), ("PMI_SIZE", "6"), ("SLURM_STEP_ID", "1"), ("SLURM_PROCID", "1")];
        assert_eq!(job(&[&slurm[..], &hydra].concat()).unwrap().node(), None);
        // srun --mpi=pmi2: the task of Slurm's is the process.
        let pmi2 = [
            ("PMI_RANK", "1"),
            ("PMI_SIZE", "6"),
            ("SLURM_STEP_ID", "1"),
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "6"),
        ];
        assert_eq!(job(&[&slurm[..], &pmi2].concat()).unwrap().node(), Some("x1"));
    }

    #[test]
    fn places_among_the_nodes() {
        let nodes: Vec<String> = ["n1", "n2.a", "N3.a", "n4.a", "n4.b", "10.0.0.1"].map(String::from).to_vec();
        for (name, place) in [
            ("n1", Some(0)),
            ("n1.cluster", Some(0)),
            ("n2", Some(1)),
            ("n2.b", Some(1)),
            ("n3.A", Some(2)),
            ("n4", None),
            ("n4.b", Some(4)),
            ("10.0.0.1", Some(5)),
            ("10.0.0.2", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(position(&nodes, name), place, "{name}");
        }
    }
}
