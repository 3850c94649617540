//! Which launcher started this process, told by the variables that it leaves.

use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Launcher {
    pub(super) name: &'static str,
    /// Names only: some values are long, and some are nobody's business.
    pub(super) variables: Vec<&'static str>,
}

/// The launchers of which at least one variable is set.
pub(super) fn seen() -> Vec<Launcher> {
    let seen = LAUNCHERS.iter().map(|(name, variables)| Launcher {
        name,
        variables: variables.iter().copied().filter(|name| std::env::var_os(name).is_some()).collect(),
    });
    seen.filter(|launcher| !launcher.variables.is_empty()).collect()
}

const LAUNCHERS: &[(&str, &[&str])] = &[
    (
        "Slurm",
        &[
            "SLURM_JOB_ID",
            "SLURM_STEP_ID",
            "SLURM_NODEID",
            "SLURM_PROCID",
            "SLURM_LOCALID",
            "SLURM_NTASKS",
            "SLURM_JOB_NUM_NODES",
            "SLURM_JOB_NODELIST",
        ],
    ),
    (
        "Open MPI",
        &["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    ("PMIx", &["PMIX_RANK", "PMIX_NAMESPACE", "PMIX_SERVER_URI2", "PMIX_VERSION"]),
    ("PMI", &["PMI_RANK", "PMI_SIZE", "PMI_FD"]),
    ("Flux", &["FLUX_JOB_ID", "FLUX_TASK_RANK", "FLUX_JOB_SIZE"]),
    ("PBS", &["PBS_JOBID", "PBS_NODEFILE"]),
    ("LSF", &["LSB_JOBID", "LSB_HOSTS"]),
];
