use std::fmt;
#[cfg(not(linked))]
use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::library::{Origin, Ucx, Version, file_of};

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
/// `UCX_HANDLE_ERRORS=none`, `UCX_DEBUG_SIGNO=` and `UCX_MEM_EVENTS=n` in the environment for the time of loading, where the
/// user has not set them. Other threads may read the environment meanwhile, and see them; who writes to it loses nothing once
/// loading has begun. With the feature `link` UCX starts before `main`: the signals are given back here, the functions stay patched
/// unless the user sets `UCX_MEM_EVENTS=n`. What somebody else loaded is left as it is.
///
/// # Cost
/// Some 10 ms the first time, a lock and a load after that. A failure is not remembered: the next call looks again.
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
    attempts: Vec<Attempt>,
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

#[cfg(linked)]
fn find() -> Result<Ucx, LoadError> {
    use std::ffi::CStr;

    use crate::newer::Newer;
    use crate::symbols::Symbols;

    let failed = |reason: String| LoadError {
        attempts: vec![Attempt { origin: Origin::Linked, tried: "libucp".to_owned(), reason }],
    };
    let mut ucx = Ucx {
        symbols: Symbols::linked(),
        // SAFETY: names of UCX, looked for where the program's own libraries are; these are never unloaded.
        newer: unsafe {
            Newer::find(&|name: &'static CStr| {
                let found = libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr());
                (!found.is_null()).then_some(found)
            })
        },
        version: MINIMUM_VERSION,
        origin: Origin::Linked,
        file: None,
    };
    // SAFETY: as above.
    let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"ucp_get_version".as_ptr()) };
    ucx.file = file_of(address);
    ucx.version = version(&ucx);
    check(ucx.version).map_err(failed)?;
    if !crate::environment::is_set(c"UCX_HANDLE_ERRORS") {
        for signal in [libc::SIGILL, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV] {
            // SAFETY: a valid signal; does nothing where UCX has no handler.
            unsafe { ucx.ucs_debug_disable_signal(signal) };
        }
    }
    if !crate::environment::is_set(c"UCX_DEBUG_SIGNO") {
        // SAFETY: as above.
        unsafe { ucx.ucs_debug_disable_signal(libc::SIGHUP) };
    }
    Ok(ucx)
}

#[cfg(not(linked))]
fn find() -> Result<Ucx, LoadError> {
    let mut attempts = Vec::new();
    for (origin, place) in candidates(&mut attempts) {
        let tried = place.to_string();
        match crate::environment::quietly(|| open(&origin, &place)) {
            Ok(Some(ucx)) => return Ok(ucx),
            Ok(None) => {}
            Err(reason) => attempts.push(Attempt { origin, tried, reason }),
        }
    }
    Err(LoadError { attempts })
}

#[cfg(not(linked))]
#[derive(Debug)]
enum Place {
    /// What is in the process, if anything is.
    Process,
    /// By its name, wherever the loader finds it.
    Name,
    /// A directory that holds all libraries of one UCX, and what `libucp` is called there.
    Directory(PathBuf, std::ffi::OsString),
}

#[cfg(not(linked))]
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process | Self::Name => write!(f, "{UCP}"),
            Self::Directory(directory, file) => write!(f, "{}", directory.join(file).display()),
        }
    }
}

/// Where to look, in order. Places that are none are attempts already.
#[cfg(not(linked))]
fn candidates(attempts: &mut Vec<Attempt>) -> Vec<(Origin, Place)> {
    use std::env::var_os;
    use std::path::Path;

    let given = |name: &str| var_os(name).filter(|value| !value.is_empty());
    let ucp = || std::ffi::OsString::from(UCP);
    if let Some(named) = given("PROXYSTORE_UCX_LIB") {
        let path = Path::new(&named);
        let origin = Origin::Variable("PROXYSTORE_UCX_LIB");
        let place = match (path.is_dir(), path.is_file(), path.parent(), path.file_name()) {
            (true, ..) => Place::Directory(path.to_owned(), ucp()),
            (_, true, Some(parent), Some(file)) => Place::Directory(parent.to_owned(), file.to_owned()),
            _ => {
                let reason = "is neither a file nor a directory".to_owned();
                attempts.push(Attempt { origin, tried: path.display().to_string(), reason });
                return Vec::new();
            }
        };
        return vec![(origin, place)];
    }
    let mut found = vec![(Origin::Process, Place::Process)];
    if let Some(home) = given("UCX_HOME") {
        for part in ["lib", "lib64"] {
            found.push((Origin::Variable("UCX_HOME"), Place::Directory(Path::new(&home).join(part), ucp())));
        }
    }
    found.push((Origin::Loader, Place::Name));
    for file in crate::package::files(var_os("PKG_CONFIG_PATH")) {
        match crate::package::directory(&file) {
            Ok(directory) => found.push((Origin::Package(file), Place::Directory(directory, ucp()))),
            Err(reason) => {
                let tried = file.display().to_string();
                attempts.push(Attempt { origin: Origin::Package(file), tried, reason });
            }
        }
    }
    found
}

/// Loads what is at a place, or says why it cannot be used; `None` when nothing was to be expected there.
#[cfg(not(linked))]
fn open(origin: &Origin, place: &Place) -> Result<Option<Ucx>, String> {
    use std::ffi::{CStr, OsStr};

    use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};

    use crate::newer::Newer;
    use crate::symbols::Symbols;

    let load = |name: &OsStr, flags| {
        // SAFETY: constructors of UCX run, as its users expect; `quietly` keeps them from changing the process.
        unsafe { Library::open(Some(name), RTLD_LOCAL | flags) }.map_err(|error| reason(&error))
    };
    let mut parts = Vec::new();
    let library = match place {
        Place::Process => match load(OsStr::new(UCP), RTLD_NOW | libc::RTLD_NOLOAD) {
            Ok(library) => library,
            Err(_) => return Ok(None),
        },
        Place::Name => {
            free_of_others(None)?;
            load(OsStr::new(UCP), RTLD_NOW)?
        }
        Place::Directory(directory, file) => {
            let path = directory.join(file);
            if !path.is_file() {
                return Err("there is no such file".to_owned());
            }
            let path = std::path::absolute(&path).map_err(|error| error.to_string())?;
            free_of_others(Some(&path))?;
            // `libucp` names its parts without a path, and a run path that leads to its own directory is not always there. What
            // is in the process already is taken for a part, so the parts come first, in the order of their dependencies.
            // Lazily: libucm calls libucs without naming it. Where one cannot be loaded alone, `libucp` brings it or another one,
            // which is seen below.
            for part in PARTS.map(|part| path.with_file_name(part)) {
                parts.extend(load(part.as_os_str(), RTLD_LAZY));
            }
            load(path.as_os_str(), RTLD_NOW)?
        }
    };
    let lookup = |name: &'static CStr| {
        // SAFETY: only the address is used here.
        let found = unsafe { library.get::<*mut libc::c_void>(name.to_bytes_with_nul()) };
        found.ok().map(|symbol| symbol.into_raw())
    };
    let file = lookup(c"ucp_get_version").and_then(file_of);
    for part in SYMBOLS.into_iter().filter_map(lookup).filter_map(file_of) {
        if let Some(file) = file.as_ref().filter(|file| home(file) != home(&part)) {
            return Err(format!("{} would work with {}, of another UCX", file.display(), part.display()));
        }
    }
    // SAFETY: functions of libucp, if it is one; that it is 1.12 or newer is checked before any but the first is called, and it
    // is forgotten below, never closed, if it is used.
    let symbols = unsafe { Symbols::find(&lookup) };
    // SAFETY: as above.
    let newer = unsafe { Newer::find(&lookup) };
    // An older library lacks names: its version says more than they do.
    if let Some(address) = lookup(c"ucp_get_version") {
        // SAFETY: `ucp/api/ucp.h:1930`, in all versions.
        let get: unsafe extern "C" fn(*mut u32, *mut u32, *mut u32) = unsafe { std::mem::transmute(address) };
        check(version_by(get))?;
    }
    let symbols = symbols.map_err(|missing| {
        let names: Vec<_> = missing.iter().map(|name| name.to_string_lossy()).collect();
        format!("lacks {}", names.join(", "))
    })?;
    let mut ucx = Ucx { symbols, newer, version: MINIMUM_VERSION, origin: origin.clone(), file };
    ucx.version = version(&ucx);
    // Handles are given up: UCX stays until the process ends.
    for part in parts {
        let _ = part.into_raw();
    }
    let _ = library.into_raw();
    Ok(Some(ucx))
}

/// Refuses to load a UCX into a process that has parts of another one.
///
/// By its name the loader would take the other one's parts for those of the new one.
#[cfg(not(linked))]
fn free_of_others(wanted: Option<&std::path::Path>) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_NOW};

    for (part, symbol) in PARTS.into_iter().chain([UCP]).zip(SYMBOLS) {
        // SAFETY: with RTLD_NOLOAD nothing is loaded and nothing runs.
        let Ok(library) = (unsafe { Library::open(Some(part), RTLD_NOW | libc::RTLD_NOLOAD) }) else { continue };
        // SAFETY: only the address is used.
        let address =
            unsafe { library.get::<*mut libc::c_void>(symbol.to_bytes_with_nul()) }.map(|symbol| symbol.into_raw());
        let resident = address.ok().and_then(file_of);
        if let (Some(resident), Some(wanted)) = (&resident, wanted) {
            if home(resident) == home(wanted) {
                continue;
            }
        }
        let resident = resident.map_or_else(|| part.to_owned(), |file| file.display().to_string());
        return Err(format!("{resident} is in the process already, and two UCX cannot be mixed"));
    }
    Ok(())
}

/// The directory of a file, whatever links lead to it.
#[cfg(not(linked))]
fn home(file: &std::path::Path) -> Option<PathBuf> {
    file.canonicalize().ok()?.parent().map(PathBuf::from)
}

/// What the loader said, with its cause.
#[cfg(not(linked))]
fn reason(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

fn version(ucx: &Ucx) -> Version {
    let mut version = Version { major: 0, minor: 0, release: 0 };
    // SAFETY: three places to write to.
    unsafe { ucx.ucp_get_version(&mut version.major, &mut version.minor, &mut version.release) };
    version
}

#[cfg(not(linked))]
fn version_by(get: unsafe extern "C" fn(*mut u32, *mut u32, *mut u32)) -> Version {
    let mut version = Version { major: 0, minor: 0, release: 0 };
    // SAFETY: three places to write to.
    unsafe { get(&mut version.major, &mut version.minor, &mut version.release) };
    version
}

fn check(version: Version) -> Result<(), String> {
    if version < MINIMUM_VERSION {
        return Err(format!("is UCX {version}, older than {MINIMUM_VERSION}"));
    }
    if version.major != MINIMUM_VERSION.major {
        return Err(format!("is UCX {version}, whose interface is another one than that of UCX 1"));
    }
    Ok(())
}

#[cfg(not(linked))]
const UCP: &str = "libucp.so.0";

/// The other libraries of UCX, each before those that need it.
#[cfg(not(linked))]
const PARTS: [&str; 3] = ["libucm.so.0", "libucs.so.0", "libuct.so.0"];

/// A function of each of [`PARTS`] and of `libucp`, by which its file is known.
#[cfg(not(linked))]
const SYMBOLS: [&std::ffi::CStr; 4] =
    [c"ucm_set_event_handler", c"ucs_status_string", c"uct_md_open", c"ucp_get_version"];
