use std::ffi::c_uint;
use std::fmt;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::library::{Margo, Origin, Version};
use crate::search::find;

/// The Margo of this process, found and bound by the first call that succeeds.
///
/// # Which one
/// 1. The one that `PROXYSTORE_MARGO_LIB` names, a file `libmargo.so` or its directory. Nothing else is tried then.
/// 2. One that somebody else has brought into the process.
/// 3. The loader's path.
/// 4. Directories that files `margo.pc` name, in `PKG_CONFIG_PATH` and the usual places. Spack's modules set that.
/// 5. `lib` and `lib64` of the directories in `CMAKE_PREFIX_PATH`.
///
/// Mercury must be 2.1 or a later 2, and Margo 0.19.2 or newer, which is told by the functions that it has.
///
/// # Cost
/// 2 to 230 ms the first time, most of it for what libfabric brings along; an atomic load after that. A failure is not
/// remembered: the next call looks again.
///
/// # Errors
/// Every place that was tried, and why it would not do.
pub fn load() -> Result<&'static Margo, LoadError> {
    static LOADED: OnceLock<Margo> = OnceLock::new();
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

/// The oldest Margo that has all functions.
pub const MINIMUM_MARGO: Version = Version { major: 0, minor: 19, patch: 2 };

/// The oldest Mercury whose outcomes have the numbers that this crate knows.
pub const MINIMUM_MERCURY: Version = Version { major: 2, minor: 1, patch: 0 };

/// Why there is no Margo: every place that was tried.
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
        write!(f, "no usable Margo")?;
        for (at, attempt) in self.attempts.iter().enumerate() {
            write!(f, "{} {attempt}", if at == 0 { ':' } else { ';' })?;
        }
        write!(
            f,
            "; install margo {MINIMUM_MARGO} or newer (spack install mochi-margo), load its module, or name its directory in \
             PROXYSTORE_MARGO_LIB"
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

/// The version that Mercury has, if it will do.
///
/// # Safety
/// `get` is `HG_Version_get`, which is the same in all versions.
pub(crate) unsafe fn proved(
    get: unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint) -> c_uint,
) -> Result<Version, String> {
    let mut version = Version { major: 0, minor: 0, patch: 0 };
    // SAFETY: three places to write to.
    let outcome = unsafe { get(&mut version.major, &mut version.minor, &mut version.patch) };
    if outcome != 0 {
        return Err(format!("has a Mercury that does not tell its version ({outcome})"));
    }
    if version < MINIMUM_MERCURY {
        return Err(format!("has Mercury {version}, older than {MINIMUM_MERCURY}"));
    }
    if version.major != MINIMUM_MERCURY.major {
        return Err(format!("has Mercury {version}, whose interface is another one than that of Mercury 2"));
    }
    Ok(version)
}
