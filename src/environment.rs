//! Every `PROXYSTORE_*` variable: one table that the code reads and `proxystore info` prints.

use std::env;
#[cfg(feature = "shm")]
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

/// One variable of the environment.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Variable {
    /// Full name.
    pub name: &'static str,
    /// What applies when it is not set.
    pub default: &'static str,
    /// Meaning, in one sentence.
    pub doc: &'static str,
}

/// All variables that this version reads.
pub const VARIABLES: &[Variable] = &[
    STORE,
    TIMEOUT,
    CACHE_BYTES,
    BLOCKING_THREADS,
    RUNTIME_DIR,
    SHM_BYTES,
    REPLICA_BYTES,
    JOB,
    NODES,
    NODE_ID,
    RANK,
    SIZE,
    LOCAL_RANK,
    LOCAL_SIZE,
    SECRET,
    SECRET_FILE,
    NET_DEVICES,
    PORT,
    UCX_LIB,
    MARGO_LIB,
    #[cfg(feature = "failpoints")]
    FAILPOINT,
];

const STORE: Variable = Variable {
    name: "PROXYSTORE_STORE",
    default: DEFAULT_STORE,
    doc: "URL of the store that Store::open_default and the program use",
};
const TIMEOUT: Variable = Variable {
    name: "PROXYSTORE_TIMEOUT",
    default: "10s",
    doc: "deadline of operations whose store sets none (ms, s, m)",
};
const CACHE_BYTES: Variable = Variable {
    name: "PROXYSTORE_CACHE_BYTES",
    default: "256MiB",
    doc: "byte budget of the cache of resolved objects, for stores that set none; 0 disables it",
};
const BLOCKING_THREADS: Variable = Variable {
    name: "PROXYSTORE_BLOCKING_THREADS",
    default: "4 a core, at least 8",
    doc: "most threads that run blocking calls for awaited and detached operations",
};
const SHM_BYTES: Variable = Variable {
    name: "PROXYSTORE_SHM_BYTES",
    default: "half of the memory that this process may use",
    doc: "most memory for the objects of a shm:// namespace on this node, read by the process that hosts it",
};
const REPLICA_BYTES: Variable = Variable {
    name: "PROXYSTORE_REPLICA_BYTES",
    default: "a quarter of the memory of the namespace",
    doc: "most memory for objects of other nodes that this one's processes share, read by the process that hosts it; 0: none",
};
#[cfg(feature = "failpoints")]
const FAILPOINT: Variable = Variable {
    name: "PROXYSTORE_FAILPOINT",
    default: "none",
    doc: "NAME[:N]: the process kills itself at its Nth pass of that place; for tests",
};
const RUNTIME_DIR: Variable = Variable {
    name: "PROXYSTORE_RUNTIME_DIR",
    default: "$XDG_RUNTIME_DIR/proxystore, or $TMPDIR/proxystore-UID/shm",
    doc: "directory of this node where the processes of shm:// stores meet; yours alone, mode 0700",
};
pub(crate) const JOB: Variable = Variable {
    name: "PROXYSTORE_JOB",
    default: "slurm-JOBID in a Slurm job, mpi-ID under mpirun, else pbs-, lsf- or flux-ID, else \"default\"",
    doc: "name of the job, which shm:// without a name opens: 1 to 64 of A-Z a-z 0-9 . _ -",
};
pub(crate) const NODES: Variable = Variable {
    name: "PROXYSTORE_NODES",
    default: "those of the Slurm or LSF job",
    doc: "host names of the job's nodes in one order for all processes, as n[01-04],login",
};
pub(crate) const NODE_ID: Variable = Variable {
    name: "PROXYSTORE_NODE_ID",
    default: "where this host stands among the nodes",
    doc: "number of this node among the job's nodes, from 0",
};
pub(crate) const RANK: Variable = Variable {
    name: "PROXYSTORE_RANK",
    default: "the MPI launcher's or torchrun's, else the batch system's",
    doc: "number of this process among those started together, from 0",
};
pub(crate) const SIZE: Variable = Variable {
    name: "PROXYSTORE_SIZE",
    default: "unknown, if PROXYSTORE_RANK is set",
    doc: "number of processes started together",
};
pub(crate) const LOCAL_RANK: Variable = Variable {
    name: "PROXYSTORE_LOCAL_RANK",
    default: "unknown, if PROXYSTORE_RANK is set",
    doc: "number of this process among those of them on its node, from 0",
};
pub(crate) const LOCAL_SIZE: Variable = Variable {
    name: "PROXYSTORE_LOCAL_SIZE",
    default: "unknown, if PROXYSTORE_RANK is set",
    doc: "number of those processes on this node",
};
pub(crate) const SECRET: Variable = Variable {
    name: "PROXYSTORE_SECRET",
    default: "that of PROXYSTORE_SECRET_FILE",
    doc: "secret of the job, by which its nodes know each other: 64 hexadecimal digits",
};
pub(crate) const SECRET_FILE: Variable = Variable {
    name: "PROXYSTORE_SECRET_FILE",
    default: "derived from $XDG_CONFIG_HOME/proxystore/secret or ~/.config/proxystore/secret and the job's name",
    doc: "file of yours, mode 0600, that holds the secret of the job",
};
pub(crate) const NET_DEVICES: Variable = Variable {
    name: "PROXYSTORE_NET_DEVICES",
    default: "that of the host name's address, else of the default route, else lo",
    doc: "network interfaces on which a node listens for others, as ib0,eth0",
};
pub(crate) const PORT: Variable = Variable {
    name: "PROXYSTORE_PORT",
    default: "from job, namespace and user, one of 10000 to 29999",
    doc: "port at which a node listens for others; 0: any that is free",
};

/// Read by the crate `ucx-sys`, which every program with a UCX connector has.
const UCX_LIB: Variable = Variable {
    name: "PROXYSTORE_UCX_LIB",
    default: "UCX_HOME/lib, the loader's path, the files ucx.pc",
    doc: "libucp.so.0 of the UCX that ucx:// loads, or its directory; nothing else is tried then",
};

/// Read by the crate `margo-sys`.
const MARGO_LIB: Variable = Variable {
    name: "PROXYSTORE_MARGO_LIB",
    default: "the loader's path, the files margo.pc, CMAKE_PREFIX_PATH/lib",
    doc: "libmargo.so of the Margo that margo:// loads, or its directory; nothing else is tried then",
};

impl Variable {
    /// Whether its value is nobody's business: tools say that it is set, and no more.
    pub fn is_secret(&self) -> bool {
        self.name == SECRET.name
    }

    /// The value set in the environment, where there is one and it is text.
    pub fn value(&self) -> Option<String> {
        env::var(self.name).ok()
    }
}

/// The `PROXYSTORE_*` variables that are set but mean nothing to this version: almost always typing errors.
pub fn unknown() -> Vec<String> {
    let mut names: Vec<String> = env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("PROXYSTORE_") && VARIABLES.iter().all(|known| known.name != name))
        .collect();
    names.sort();
    names
}

/// Warns once per process, on standard error, about variables that nobody reads.
pub(crate) fn warn_of_unknown() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| {
        for name in unknown() {
            warn(&format!("{name} is not a variable of this version, see `proxystore info`"));
        }
    });
}

/// URL of the store that [`Store::open_default`](crate::Store::open_default) opens: `PROXYSTORE_STORE`, else the memory of this
/// node, else, in builds without the feature `shm`, a directory.
pub fn default_store() -> String {
    STORE.value().filter(|url| !url.is_empty()).unwrap_or_else(|| DEFAULT_STORE.to_owned())
}

const DEFAULT_STORE: &str = if cfg!(all(feature = "shm", not(any(loom, shuttle)))) { "shm://" } else { "file://" };

/// Deadline of operations whose store sets none.
pub(crate) fn timeout() -> Duration {
    static VALUE: OnceLock<Duration> = OnceLock::new();
    *VALUE.get_or_init(|| read(TIMEOUT, parse_duration).unwrap_or(Duration::from_secs(10)))
}

/// Cache budget of stores that set none, in bytes.
pub(crate) fn cache_bytes() -> u64 {
    static VALUE: OnceLock<u64> = OnceLock::new();
    *VALUE.get_or_init(|| read(CACHE_BYTES, parse_bytes).unwrap_or(256 << 20))
}

/// Upper bound of the pool of blocking threads.
pub(crate) fn blocking_threads() -> usize {
    static VALUE: OnceLock<usize> = OnceLock::new();
    *VALUE.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(2, usize::from);
        read(BLOCKING_THREADS, |text| usize::from_str(text).ok().filter(|n| *n > 0)).unwrap_or((4 * cores).max(8))
    })
}

/// Budget of the objects in shared memory, in bytes.
#[cfg(feature = "shm")]
pub(crate) fn shm_bytes() -> Option<u64> {
    read(SHM_BYTES, |text| parse_bytes(text).filter(|bytes| *bytes > 0))
}

/// Budget of the objects of other nodes in it, in bytes.
#[cfg(feature = "shm")]
pub(crate) fn replica_bytes() -> Option<u64> {
    read(REPLICA_BYTES, parse_bytes)
}

/// Where the process is to be killed.
#[cfg(feature = "failpoints")]
pub(crate) fn failpoint() -> Option<String> {
    FAILPOINT.value()
}

/// Directory of the sockets and locks of node services.
#[cfg(feature = "shm")]
pub(crate) fn runtime_dir() -> Option<PathBuf> {
    env::var_os(RUNTIME_DIR.name).filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Reads a number of bytes: `4096`, `64KiB`, `1 GiB`, `10MB` (powers of 1024 with the `i`, of 1000 without).
pub fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let factor: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "TB" => 1_000_000_000_000,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(factor)
}

/// Reads a duration: `250ms`, `10s`, `2m`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim() {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

fn read<T>(variable: Variable, parse: impl FnOnce(&str) -> Option<T>) -> Option<T> {
    let text = variable.value()?;
    let value = parse(&text);
    if value.is_none() {
        warn(&format!("{}={text:?} is malformed, using the default ({})", variable.name, variable.default));
    }
    value
}

/// A warning must reach the person at the terminal even where nobody installed a subscriber.
fn warn(message: &str) {
    #[cfg(feature = "tracing")]
    tracing::warn!(target: "proxystore", "{message}");
    if !cfg!(feature = "tracing") || cfg!(feature = "cli") {
        eprintln!("proxystore: warning: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_durations() {
        for (text, value) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64KiB", Some(65536)),
            (" 1 GiB ", Some(1 << 30)),
            ("10MB", Some(10_000_000)),
            ("16777216T", None),
            ("-1", None),
            ("1.5G", None),
            ("", None),
            ("GiB", None),
            ("5 apples", None),
        ] {
            assert_eq!(parse_bytes(text), value, "{text:?}");
        }
        assert_eq!(parse_duration("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse_duration("10"), Some(Duration::from_secs(10)));
        assert_eq!(parse_duration("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse_duration("2 weeks"), None);
        assert_eq!(parse_duration(&format!("{}h", u64::MAX)), None);
    }

    #[test]
    fn names_are_unique_and_prefixed() {
        for (i, variable) in VARIABLES.iter().enumerate() {
            assert!(variable.name.starts_with("PROXYSTORE_"));
            assert!(VARIABLES[..i].iter().all(|other| other.name != variable.name));
        }
    }
}
