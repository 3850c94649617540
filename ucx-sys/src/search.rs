//! Where a UCX may lie, and what it takes to load it.

use std::env::var_os;
use std::ffi::{CStr, OsStr, OsString, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};

use crate::environment::quietly;
use crate::library::{Origin, Ucx, file_of};
use crate::load::{Attempt, LoadError, proved};
use crate::newer::Newer;
use crate::package;
use crate::symbols::Symbols;

pub(crate) fn find() -> Result<Ucx, LoadError> {
    quietly(|| {
        let mut attempts = Vec::new();
        for (origin, place) in candidates(&mut attempts) {
            let tried = place.to_string();
            match open(&origin, &place) {
                Ok(Some(ucx)) => return Ok(ucx),
                Ok(None) => {}
                Err(reason) => attempts.push(Attempt { origin, tried, reason }),
            }
        }
        Err(LoadError { attempts })
    })
}

#[derive(Debug)]
enum Place {
    /// What is in the process, if anything is.
    Process,
    /// By its name, wherever the loader finds it.
    Name,
    /// A directory that holds all libraries of one UCX, and what `libucp` is called there.
    Directory(PathBuf, OsString),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process | Self::Name => write!(f, "{UCP}"),
            Self::Directory(directory, file) => write!(f, "{}", directory.join(file).display()),
        }
    }
}

/// Where to look, in order. Places that are none are attempts already.
fn candidates(attempts: &mut Vec<Attempt>) -> Vec<(Origin, Place)> {
    let given = |name: &str| var_os(name).filter(|value| !value.is_empty());
    let ucp = || OsString::from(UCP);
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
    for file in package::files(var_os("PKG_CONFIG_PATH")) {
        match package::directory(&file) {
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
fn open(origin: &Origin, place: &Place) -> Result<Option<Ucx>, String> {
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
        let found = unsafe { library.get::<*mut c_void>(name.to_bytes_with_nul()) };
        found.ok().map(|symbol| symbol.into_raw())
    };
    let file = lookup(c"ucp_get_version").and_then(file_of);
    for part in SYMBOLS.into_iter().filter_map(lookup).filter_map(file_of) {
        if let Some(file) = file.as_ref().filter(|file| home(file) != home(&part)) {
            return Err(format!("{} would work with {}, of another UCX", file.display(), part.display()));
        }
    }
    let address = lookup(c"ucp_get_version").filter(|address| !address.is_null()).ok_or("lacks ucp_get_version")?;
    // SAFETY: the function of that name; its type is that of all versions.
    let version = unsafe {
        type GetVersion = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint);
        proved(std::mem::transmute::<*mut c_void, GetVersion>(address))?
    };
    // SAFETY: a UCX of that version, which is given up below and so stays.
    let symbols = unsafe { Symbols::find(&lookup) }.map_err(|missing| {
        let names: Vec<_> = missing.iter().map(|name| name.to_string_lossy()).collect();
        format!("lacks {}", names.join(", "))
    })?;
    // SAFETY: as above.
    let newer = unsafe { Newer::find(&lookup) };
    let ucx = Ucx { symbols, newer, version, origin: origin.clone(), file };
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
fn free_of_others(wanted: Option<&Path>) -> Result<(), String> {
    for (part, symbol) in PARTS.into_iter().chain([UCP]).zip(SYMBOLS) {
        // SAFETY: with RTLD_NOLOAD nothing is loaded and nothing runs.
        let Ok(library) = (unsafe { Library::open(Some(part), RTLD_NOW | libc::RTLD_NOLOAD) }) else { continue };
        // SAFETY: only the address is used.
        let address = unsafe { library.get::<*mut c_void>(symbol.to_bytes_with_nul()) }.map(|symbol| symbol.into_raw());
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
fn home(file: &Path) -> Option<PathBuf> {
    file.canonicalize().ok()?.parent().map(PathBuf::from)
}

/// What the loader said, with its cause.
fn reason(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

const UCP: &str = "libucp.so.0";

/// The other libraries of UCX, each before those that need it.
const PARTS: [&str; 3] = ["libucm.so.0", "libucs.so.0", "libuct.so.0"];

/// A function of each of [`PARTS`] and of `libucp`, by which its file is known.
const SYMBOLS: [&CStr; 4] = [c"ucm_set_event_handler", c"ucs_status_string", c"uct_md_open", c"ucp_get_version"];
