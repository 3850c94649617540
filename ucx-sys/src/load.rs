use std::ffi::c_uint;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::library::{Origin, Ucx, Version};
#[cfg(linked)]
use crate::linked::find;
#[cfg(not(linked))]
use crate::search::find;

/// The UCX of this process, found and bound by the first call that succeeds.
///
/// # Which one
/// 1. One that somebody else, an MPI for example, has brought into the process. A second copy beside it would share half of its
///    libraries with the first, so it is never loaded, and a variable that names another one is an error.
/// 2. The one that `PROXYSTORE_UCX_LIB` names, a file `libucp.so.0` or its directory. Nothing else is tried then.
/// 3. `UCX_HOME/lib` and `UCX_HOME/lib64`.
/// 4. The loader's path.
/// 5. Directories that files `ucx.pc` name, in `PKG_CONFIG_PATH` and the usual places.
///
/// It must be of version 1.12 or a later 1, whose parts come from one directory. With the feature `link` it is the one that
/// the program was linked with.
///
/// # What it does to the process
/// UCX takes signals and patches functions of the C library as soon as it is loaded. It is told not to, by
/// `UCX_HANDLE_ERRORS=none`, `UCX_DEBUG_SIGNO=`, `UCX_MEM_EVENTS=n` and `UCX_LOG_FILE=stderr` in the environment for the time of loading, where the
/// user has not set them. Other threads may read the environment meanwhile, and see them; who writes to it loses nothing once
/// loading has begun. With the feature `link` UCX starts before `main`: the signals are given back here, the functions stay patched
/// unless the user sets `UCX_MEM_EVENTS=n`. What somebody else loaded is left as it is.
///
/// # Cost
/// Some milliseconds the first time, an atomic load after that. A failure is not remembered: the next call looks again, and each leaks
/// some hundred bytes.
///
/// # Errors
/// Every place that was tried, and why it would not do.
pub fn load() -> Result<&'static Ucx, LoadError> {
    static LOADED: OnceLock<Ucx> = OnceLock::new();
    static LOADING: Mutex<()> = Mutex::new(());

    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    let _one = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = LOADED.get() {
        return Ok(loaded);
    }
    let found = find()?;
    Ok(LOADED.get_or_init(|| found))
}

/// The oldest library that has all functions.
pub const MINIMUM_VERSION: Version = Version { major: 1, minor: 12, release: 0 };

/// Why there is no UCX: every place that was tried.
#[derive(Debug, Clone)]
pub struct LoadError {
    pub(crate) attempts: Vec<Attempt>,
}

impl LoadError {
    /// In the order in which they were made.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no usable UCX")?;
        for (at, attempt) in self.attempts.iter().enumerate() {
            write!(f, "{} {attempt}", if at == 0 { ':' } else { ';' })?;
        }
        write!(
            f,
            "; install UCX {}.{} or newer (packages libucx0 or ucx, wheel libucx-cu12), or name its directory in PROXYSTORE_UCX_LIB",
            MINIMUM_VERSION.major, MINIMUM_VERSION.minor
        )
    }
}

impl std::error::Error for LoadError {}

/// A place that was tried, and why it would not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Why it was tried.
    pub origin: Origin,
    /// The file, directory or name.
    pub tried: String,
    /// What was wrong with it.
    pub reason: String,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}): {}", self.tried, self.origin, self.reason)
    }
}

/// The version that a library has, if it will do.
///
/// # Safety
/// `get` is `ucp_get_version`, which is at `ucp/api/ucp.h:1930` in all versions.
pub(crate) unsafe fn proved(
    get: unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint),
) -> Result<Version, String> {
    let mut version = Version { major: 0, minor: 0, release: 0 };
    // SAFETY: three places to write to.
    unsafe { get(&mut version.major, &mut version.minor, &mut version.release) };
    if version < MINIMUM_VERSION {
        return Err(format!("is UCX {version}, older than {MINIMUM_VERSION}"));
    }
    if version.major != MINIMUM_VERSION.major {
        return Err(format!("is UCX {version}, whose interface is another one than that of UCX 1"));
    }
    Ok(version)
}
