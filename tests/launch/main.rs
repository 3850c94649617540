//! Discovery of the job on environments that launchers left, recorded from them or, where we have none, put together from what is
//! published of them. Each `*.env` says what it is of, and which.
#![cfg(feature = "shm")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proxystore::launch::{Job, Launcher};

/// Name of the recording, and what the process was.
const EXPECTED: &[(&str, Expected)] = &[
    ("srun", Expected { rank: 2, size: 6, local: (0, 2), step: Some(0), ..SLURM }),
    ("srun-part", Expected { rank: 2, size: 3, local: (0, 1), step: Some(2), id: "slurm-7", ..SLURM }),
    ("srun-pmi2", Expected { by: Launcher::Pmi, rank: 3, size: 6, local: (1, 2), step: Some(1), ..SLURM }),
    ("srun-pmix", Expected { by: Launcher::Pmix, rank: 2, size: 6, local: (2, 4), step: Some(0), node_id: 0, ..SLURM }),
    ("salloc-srun", Expected { rank: 1, size: 2, step: Some(0), id: "slurm-6", nodes: "n1 n2", ..SLURM }),
    ("array", Expected { rank: 0, size: 1, step: Some(0), id: "slurm-5", nodes: "n1", node_id: 0, ..SLURM }),
    ("het-all", Expected { rank: 3, size: 5, local: (0, 2), step: Some(0), id: "slurm-2", node_id: 2, ..SLURM }),
    // Nodes n2 and n3 of the step are 1 and 2 of the job.
    ("het-one", Expected { rank: 3, size: 4, local: (1, 2), step: Some(1), id: "slurm-2", node_id: 2, ..SLURM }),
    // Slurm's numbers are those of the daemon: task 1 of 2 on nodes n2 and n3.
    ("mpirun-in-slurm", Expected { by: Launcher::OpenMpi, rank: 4, size: 6, local: (0, 2), node_id: 2, ..SLURM }),
    ("mpirun-in-slurm-first", Expected { by: Launcher::OpenMpi, rank: 1, size: 6, local: (1, 2), node_id: 0, ..SLURM }),
    // Slurm's numbers are those of the proxy, and SLURMD_NODENAME that of mpiexec's node.
    (
        "hydra-in-slurm",
        Expected { by: Launcher::Pmi, rank: 4, size: 6, local: (0, 2), id: "slurm-7", node_id: 2, ..SLURM },
    ),
    ("mpirun", Expected { kind: Launcher::OpenMpi, by: Launcher::OpenMpi, id: "mpi-978911232-b72e2113", ..ONE_HOST }),
    ("hydra", Expected { kind: Launcher::Pmi, by: Launcher::Pmi, id: "default", ..ONE_HOST }),
];

/// Recordings of shells, which are no tasks.
const SHELLS: &[&str] = &["batch-shell", "salloc-shell", "het-shell"];

const SLURM: Expected = Expected {
    kind: Launcher::Slurm,
    by: Launcher::Slurm,
    id: "slurm-1",
    nodes: "n1 n2 n3",
    node_id: 1,
    rank: 0,
    size: 1,
    local: (0, 1),
    step: None,
};
const ONE_HOST: Expected = Expected { nodes: "n0", node_id: 0, rank: 1, size: 2, local: (1, 2), ..SLURM };

struct Expected {
    kind: Launcher,
    by: Launcher,
    id: &'static str,
    /// Separated by spaces.
    nodes: &'static str,
    node_id: u32,
    rank: u32,
    size: u32,
    /// Rank and size on the node.
    local: (u32, u32),
    step: Option<u32>,
}

#[test]
fn tasks() {
    for (name, expected) in EXPECTED {
        let job = recorded(name);
        assert_eq!(
            (job.id.as_str(), job.kind, job.numbered_by),
            (expected.id, expected.kind, Some(expected.by)),
            "{name}"
        );
        assert_eq!(job.nodes.join(" "), expected.nodes, "{name}");
        assert_eq!(job.node_id, Some(expected.node_id), "{name}");
        assert_eq!((job.rank, job.size), (Some(expected.rank), Some(expected.size)), "{name}");
        let (local_rank, local_size) = expected.local;
        assert_eq!((job.local_rank, job.local_size), (Some(local_rank), Some(local_size)), "{name}");
        assert_eq!((job.step, job.restart), (expected.step, 0), "{name}");
    }
}

/// Where not everything is told: name, id and who gave it, who numbered, nodes and which of them this is, rank, size, and both on
/// the node.
type Told = (&'static str, &'static str, Launcher, Option<Launcher>, &'static [&'static str], Option<u32>, Numbers);
type Numbers = [Option<u32>; 4];

const OTHERS: &[Told] = {
    use Launcher::{Flux, Lsf, OpenMpi, Pals, Pbs, Pmi, Slurm, Torch};
    const N: &[&str] = &["n1", "n2"];
    const fn numbers(rank: u32, size: u32, local_rank: u32, local_size: u32) -> Numbers {
        [Some(rank), Some(size), Some(local_rank), Some(local_size)]
    }
    &[
        ("openmpi5", "mpi-prterun-n1-220913", OpenMpi, Some(OpenMpi), &[], None, numbers(2, 4, 0, 2)),
        ("openmpi5-in-pbs", "mpi-prterun-n1-220913", OpenMpi, Some(OpenMpi), &[], None, numbers(0, 4, 0, 2)),
        ("hydra-in-pbs", "pbs-4711.head", Pbs, Some(Pmi), &[], None, numbers(6, 8, 3, 4)),
        ("pals", "pbs-4711.polaris-pbs-01", Pbs, Some(Pals), &[], None, numbers(5, 8, 1, 4)),
        // PALS tells the rank alone, and Slurm, of the same rank, the rest.
        ("srun-cray", "slurm-7", Slurm, Some(Pals), N, Some(1), numbers(3, 4, 1, 2)),
        ("jsrun", "lsf-4711", Lsf, Some(Lsf), &["h1", "h2"], Some(1), numbers(3, 4, 1, 2)),
        ("lsf-array", "lsf-4711-2", Lsf, None, &["h1"], Some(0), [None; 4]),
        ("flux", "flux-D2e73NP", Flux, Some(Pmi), &[], None, [Some(5), Some(8), Some(1), None]),
        ("torchrun", "torch-train-7", Torch, Some(Torch), &[], None, numbers(3, 4, 1, 2)),
        ("torchrun-in-slurm", "slurm-7", Slurm, Some(Torch), N, Some(1), numbers(6, 8, 2, 4)),
        ("mvapich2", "default", Pmi, Some(Pmi), &[], None, numbers(2, 4, 0, 2)),
    ]
};

#[test]
fn others() {
    for (name, id, kind, by, nodes, node_id, numbers) in OTHERS {
        let job = recorded(name);
        assert_eq!((job.id.as_str(), job.kind, job.numbered_by), (*id, *kind, *by), "{name}");
        assert_eq!((job.nodes.join(" "), job.node_id), (nodes.join(" "), *node_id), "{name}");
        assert_eq!([job.rank, job.size, job.local_rank, job.local_size], *numbers, "{name}");
    }
}

#[test]
fn shells_have_no_rank() {
    for name in SHELLS {
        let job = recorded(name);
        assert_eq!((job.rank, job.size, job.step, job.numbered_by), (None, None, None, None), "{name}");
        assert_eq!(job.kind, Launcher::Slurm, "{name}");
    }
    assert_eq!(recorded("batch-shell").node(), Some("n1"));
    // The login node is none of the job's.
    assert_eq!((recorded("salloc-shell").node(), recorded("salloc-shell").nodes.len()), (None, 2));
    // SLURM_JOB_NODELIST is n1 alone.
    assert_eq!(recorded("het-shell").nodes, ["n1", "n2", "n3"]);
}

#[test]
fn processes_of_a_job_agree() {
    for same in [
        &["het-shell", "het-all", "het-one"][..],
        &["srun-part", "hydra-in-slurm"],
        &["salloc-shell", "salloc-srun"],
        &["openmpi5", "openmpi5-in-pbs"],
        &["batch-shell", "srun", "srun-pmi2", "mpirun-in-slurm", "mpirun-in-slurm-first"],
    ] {
        let answers: BTreeSet<_> = same.iter().map(|name| (recorded(name).id, recorded(name).nodes)).collect();
        assert_eq!(answers.len(), 1, "{same:?}: {answers:?}");
    }
}

#[test]
fn every_variable_may_be_missing_or_nonsense() {
    for name in names() {
        let (whole, host) = recording(name);
        for broken in whole.keys() {
            for value in [None, Some(""), Some("-1"), Some("99999999999999999999"), Some("\u{fffd}[1-"), Some("0")] {
                let read = |name: &str| match name == broken {
                    true => value.map(str::to_owned),
                    false => whole.get(name).cloned(),
                };
                if let Ok(job) = Job::from_environment(&read, &host) {
                    assert!(
                        job.rank.zip(job.size).is_none_or(|(rank, size)| rank < size),
                        "{name}: {broken}={value:?}"
                    );
                    assert!(job.node_id.is_none_or(|id| (id as usize) < job.nodes.len()), "{name}: {broken}={value:?}");
                }
            }
        }
    }
}

#[test]
fn every_recording_is_tested() {
    let files = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let recorded: BTreeSet<String> = files
        .filter(|path| path.extension().is_some_and(|end| end == "env"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(recorded, names().map(str::to_owned).collect());
}

/// Of all recordings.
fn names() -> impl Iterator<Item = &'static str> {
    let tasks = EXPECTED.iter().map(|(name, _)| *name).chain(OTHERS.iter().map(|told| told.0));
    tasks.chain(SHELLS.iter().copied())
}

fn recorded(name: &str) -> Job {
    let (environment, host) = recording(name);
    Job::from_environment(&|name| environment.get(name).cloned(), &host).unwrap()
}

/// The variables, and the host name.
fn recording(name: &str) -> (BTreeMap<String, String>, String) {
    let text = fs::read_to_string(folder().join(name).with_extension("env")).unwrap();
    let host = text.lines().find_map(|line| line.strip_prefix("# host ")).unwrap();
    let variables = text.lines().filter(|line| !line.starts_with('#')).map(|line| line.split_once('=').unwrap());
    (variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), host.to_owned())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/launch")
}
