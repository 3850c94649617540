use std::ffi::{CStr, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use crate::bindings::ucs_status_t;
use crate::newer::Newer;
use crate::symbols::Symbols;

/// A UCX that was found, proved and bound: its functions are methods, by their names in C.
///
/// Got from [`load`](crate::load), once a process, and never unloaded.
pub struct Ucx {
    pub(crate) symbols: Symbols,
    pub(crate) newer: Newer,
    pub(crate) version: Version,
    pub(crate) origin: Origin,
    pub(crate) file: Option<PathBuf>,
}

impl Ucx {
    /// What the library says of itself, which may be newer than the declarations.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How it was found.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The file of `libucp` that is in the process, as the loader knows it.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Functions that UCX 1.12 lacks, where the library has them.
    pub fn newer(&self) -> &Newer {
        &self.newer
    }

    /// The library's text for a status; of a status that it does not know, too.
    pub fn describe(&self, status: ucs_status_t) -> &'static str {
        // SAFETY: takes any number, and returns a literal.
        let text = unsafe { self.ucs_status_string(status) };
        if text.is_null() {
            return "no text";
        }
        // SAFETY: a literal of the library, or its buffer for unknown ones; the library is never unloaded.
        unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("text that is not UTF-8")
    }
}

impl fmt::Debug for Ucx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ucx")
            .field("version", &self.version)
            .field("origin", &self.origin)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// How a library was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The program was linked with it (feature `link`).
    Linked,
    /// Somebody else, an MPI for example, had brought it into the process.
    Process,
    /// A variable names it: `PROXYSTORE_UCX_LIB` or `UCX_HOME`.
    Variable(&'static str),
    /// The loader's own search: `LD_LIBRARY_PATH`, run path, the system's cache and directories.
    Loader,
    /// The directory that this file `ucx.pc` names.
    Package(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linked => write!(f, "linked"),
            Self::Process => write!(f, "already in the process"),
            Self::Variable(name) => write!(f, "{name}"),
            Self::Loader => write!(f, "the loader's path"),
            Self::Package(file) => write!(f, "{}", file.display()),
        }
    }
}

/// Version of a library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// 1 for all that this crate can bind.
    pub major: u32,
    /// What features depend on.
    pub minor: u32,
    /// Corrections.
    pub release: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.release)
    }
}

/// The file whose code or data lies at an address.
pub(crate) fn file_of(address: *mut c_void) -> Option<PathBuf> {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for; `info` is written when the result is not 0.
    if unsafe { libc::dladdr(address, info.as_mut_ptr()) } == 0 {
        return None;
    }
    // SAFETY: written, or zero, which is valid too.
    let name = unsafe { info.assume_init() }.dli_fname;
    // SAFETY: a string of the loader's that lives as long as the file is mapped; it is copied at once.
    (!name.is_null()).then(|| PathBuf::from(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())))
}
