//! Where a Margo may lie, and what it takes to load it.

use std::env::{split_paths, var_os};
use std::ffi::{CStr, OsStr, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use crate::environment;
use crate::library::{Margo, Origin, file_of};
use crate::load::{Attempt, LoadError, proved};
use crate::package;
use crate::symbols::Symbols;

pub(crate) fn find() -> Result<Margo, LoadError> {
    let mut attempts = Vec::new();
    for (origin, place) in candidates(&mut attempts) {
        let tried = place.to_string();
        match environment::with(QUIET, || open(&origin, &place)) {
            Ok(Some(margo)) => return Ok(margo),
            Ok(None) => {}
            Err(reason) => attempts.push(Attempt { origin, tried, reason }),
        }
    }
    Err(LoadError { attempts })
}

#[derive(Debug)]
enum Place {
    /// What is in the process, if anything is.
    Process,
    /// By its name, wherever the loader finds it.
    Name(&'static str),
    File(PathBuf),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process => write!(f, "{}", NAMES[0]),
            Self::Name(name) => write!(f, "{name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Where to look, in order. Places that are none are attempts already.
fn candidates(attempts: &mut Vec<Attempt>) -> Vec<(Origin, Place)> {
    let given = |name: &str| var_os(name).filter(|value| !value.is_empty());
    if let Some(named) = given("PROXYSTORE_MARGO_LIB") {
        let path = PathBuf::from(&named);
        let origin = Origin::Variable("PROXYSTORE_MARGO_LIB");
        let place = match (path.is_dir(), path.is_file()) {
            (true, _) => Place::File(within(&path)),
            (_, true) => Place::File(path),
            _ => {
                let reason = "is neither a file nor a directory".to_owned();
                attempts.push(Attempt { origin, tried: path.display().to_string(), reason });
                return Vec::new();
            }
        };
        return vec![(origin, place)];
    }
    let mut found = vec![(Origin::Process, Place::Process)];
    found.extend(NAMES.map(|name| (Origin::Loader, Place::Name(name))));
    for file in package::files(var_os("PKG_CONFIG_PATH")) {
        match package::directory(&file) {
            Ok(directory) => found.push((Origin::Package(file), Place::File(within(&directory)))),
            Err(reason) => {
                let tried = file.display().to_string();
                attempts.push(Attempt { origin: Origin::Package(file), tried, reason });
            }
        }
    }
    for prefix in given("CMAKE_PREFIX_PATH").as_deref().map(split_paths).into_iter().flatten() {
        // The variable holds the prefix of every package that is loaded: only those with a Margo are attempts.
        let libraries = ["lib", "lib64"].map(|part| within(&prefix.join(part)));
        let there = libraries.into_iter().filter(|file| file.is_file());
        found.extend(there.map(|file| (Origin::Variable("CMAKE_PREFIX_PATH"), Place::File(file))));
    }
    found
}

/// The library in a directory: the first name that is there.
fn within(directory: &Path) -> PathBuf {
    let files = NAMES.map(|name| directory.join(name));
    files.iter().find(|file| file.is_file()).unwrap_or(&files[0]).clone()
}

/// Loads what is at a place, or says why it cannot be used; `None` when nothing was to be expected there.
fn open(origin: &Origin, place: &Place) -> Result<Option<Margo>, String> {
    let load = |name: &OsStr, flags| {
        // SAFETY: constructors of Margo and of what it needs run, as its users expect.
        unsafe { Library::open(Some(name), RTLD_LOCAL | RTLD_NOW | flags) }.map_err(|error| reason(&error))
    };
    let library = match place {
        Place::Process => {
            let resident = NAMES.iter().find_map(|name| load(OsStr::new(name), libc::RTLD_NOLOAD).ok());
            let Some(library) = resident else { return Ok(None) };
            library
        }
        Place::Name(name) => load(OsStr::new(name), 0)?,
        Place::File(path) => {
            if !path.is_file() {
                return Err("there is no such file".to_owned());
            }
            let path = std::path::absolute(path).map_err(|error| error.to_string())?;
            load(path.as_os_str(), 0)?
        }
    };
    // Found in what Margo was linked with, too.
    let lookup = |name: &'static CStr| {
        // SAFETY: only the address is used here.
        let found = unsafe { library.get::<*mut c_void>(name.to_bytes_with_nul()) };
        found.ok().map(|symbol| symbol.into_raw())
    };
    let address = lookup(c"HG_Version_get").filter(|address| !address.is_null()).ok_or("lacks HG_Version_get")?;
    // SAFETY: the function of that name; its type is that of all versions.
    let mercury = unsafe {
        type GetVersion = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint) -> c_uint;
        proved(std::mem::transmute::<*mut c_void, GetVersion>(address))?
    };
    // SAFETY: Margo and what it brought, which are given up below and so stay.
    let symbols = unsafe { Symbols::find(&lookup) }.map_err(|missing| {
        let names: Vec<_> = missing.iter().map(|name| name.to_string_lossy()).collect();
        format!("lacks {}: margo {} or newer has all", names.join(", "), crate::MINIMUM_MARGO)
    })?;
    let files = [c"margo_init_ext", c"HG_Version_get", c"ABT_init"].map(|name| lookup(name).and_then(file_of));
    let margo = Margo { symbols, mercury, origin: origin.clone(), files };
    // The handle is given up: Margo stays until the process ends.
    let _ = library.into_raw();
    Ok(Some(margo))
}

/// What the loader said, with its cause.
fn reason(error: &libloading::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => source.to_string(),
        None => error.to_string(),
    }
}

/// What the library is called, by versions and packagers.
const NAMES: [&str; 2] = ["libmargo.so", "libmargo.so.0"];

/// libfabric brings the libraries of PSM and PSM2, which take SIGSEGV, SIGBUS, SIGILL, SIGABRT, SIGINT and SIGTERM as soon as
/// they are loaded, unless the user, or we, say no.
const QUIET: &[(&CStr, &CStr)] =
    &[(c"IPATH_NO_BACKTRACE", c"IPATH_NO_BACKTRACE=1"), (c"HFI_NO_BACKTRACE", c"HFI_NO_BACKTRACE=1")];
