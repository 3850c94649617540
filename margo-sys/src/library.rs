use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::ptr;

use crate::declarations::{HG_SUCCESS, hg_diag_counters, hg_return_t, margo_instance_id, na_protocol_info};
use crate::symbols::Symbols;

/// A Margo that was found, proved and bound, with its Mercury and Argobots: their functions are methods, by their names in C.
///
/// Got from [`load`](crate::load), once a process, and never unloaded.
pub struct Margo {
    pub(crate) symbols: Symbols,
    pub(crate) mercury: Version,
    pub(crate) origin: Origin,
    pub(crate) files: [Option<PathBuf>; 3],
}

impl Margo {
    /// The version of Mercury. Margo itself tells none; it is known by what it has.
    pub fn mercury_version(&self) -> Version {
        self.mercury
    }

    /// How it was found.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The file of `libmargo` that is in the process, as the loader knows it.
    pub fn file(&self) -> Option<&Path> {
        self.files[0].as_deref()
    }

    /// The files of `libmercury` and `libabt` that it brought, or found in the process.
    pub fn parts(&self) -> impl Iterator<Item = &Path> {
        self.files[1..].iter().flatten().map(PathBuf::as_path)
    }

    /// Mercury's name of an outcome; of a number that it does not know, too.
    pub fn describe(&self, outcome: hg_return_t) -> &'static str {
        // SAFETY: takes any number, and returns a literal or null.
        let text = unsafe { self.HG_Error_to_string(outcome) };
        if text.is_null() {
            return "an outcome without a name";
        }
        // SAFETY: a literal of the library, which is never unloaded.
        unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("text that is not UTF-8")
    }

    /// What Mercury offers on this machine, as its plugins say; `None` where it is older than 2.2 and cannot tell.
    ///
    /// # Cost
    /// Plugins look at the machine's devices: milliseconds.
    pub fn protocols(&self) -> Option<Vec<Protocol>> {
        let (get, free) = (self.symbols.HG_Core_get_na_protocol_info?, self.symbols.HG_Core_free_na_protocol_info?);
        let mut list: *mut na_protocol_info = ptr::null_mut();
        // SAFETY: a place to write to; no string means all.
        if unsafe { get(ptr::null(), &mut list) } != HG_SUCCESS {
            return Some(Vec::new());
        }
        let mut found = Vec::new();
        let mut next = list;
        while !next.is_null() {
            // SAFETY: an entry of the list, which is freed below.
            let entry = unsafe { &*next };
            // SAFETY: its strings are null or end in zero, and are copied at once.
            let (plugin, name, device) =
                unsafe { (text(entry.class_name), text(entry.protocol_name), text(entry.device_name)) };
            found.push(Protocol { plugin, name, device });
            next = entry.next;
        }
        // SAFETY: the list, once.
        unsafe { free(list) };
        found.sort();
        found.dedup();
        Some(found)
    }

    /// The protocol that reaches other nodes best, of those that Mercury offers here; `ofi+tcp` where it cannot tell. `na+sm` is none
    /// of them: it does not leave the node.
    pub fn preferred(&self) -> Option<&'static str> {
        match self.protocols() {
            None => Some("ofi+tcp"),
            Some(all) => PREFERRED.into_iter().find(|wanted| all.iter().any(|one| one.serves(wanted))),
        }
    }

    /// How much Mercury writes to standard error, of all instances: `none`, `fatal`, `error`, `warning`, `min_debug`, `debug`.
    /// Margo sets it as well when an instance starts: to `warning`, or to the `log_level` of [`Options::mercury`](crate::Options::mercury).
    pub fn set_log_level(&self, level: &CStr) {
        if let Some(set) = self.symbols.HG_Set_log_level {
            // SAFETY: a string, which is copied or compared before it returns.
            unsafe { set(level.as_ptr()) };
        }
    }

    /// Mercury's own counts of an instance; `None` where it is older than 2.4 or keeps none.
    ///
    /// # Safety
    /// The instance lives.
    pub unsafe fn counters(&self, mid: margo_instance_id) -> Option<hg_diag_counters> {
        let get = self.symbols.HG_Class_get_counters?;
        let mut counters = hg_diag_counters::default();
        // SAFETY: the caller's; there is room for more fields than any version has.
        let outcome = unsafe { get(self.margo_get_class(mid), &mut counters) };
        (outcome == HG_SUCCESS).then_some(counters)
    }
}

impl fmt::Debug for Margo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Margo")
            .field("mercury", &self.mercury)
            .field("origin", &self.origin)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

/// A way to other nodes that Mercury offers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Protocol {
    /// Mercury's plugin, such as `ofi`, `ucx` or `na`.
    pub plugin: String,
    /// Such as `tcp`, `verbs`, `cxi` or `sm`.
    pub name: String,
    /// The device that it was found on, where the plugin says so.
    pub device: String,
}

impl Protocol {
    /// Whether an address such as `ofi+tcp` or `ofi+tcp://eth0` asks for it.
    ///
    /// libfabric's own names may say more, as `tcp;ofi_rxm` does.
    pub fn serves(&self, address: &str) -> bool {
        let asked = address.split("://").next().unwrap_or(address);
        let short = |name: &str| name.split(';').next().unwrap_or(name).to_owned();
        asked.split_once('+').is_some_and(|(plugin, name)| plugin == self.plugin && short(name) == short(&self.name))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.plugin, self.name)
    }
}

/// How a library was found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Somebody else had brought it into the process.
    Process,
    /// A variable names it: `PROXYSTORE_MARGO_LIB`, or a directory of `CMAKE_PREFIX_PATH`.
    Variable(&'static str),
    /// The loader's own search: `LD_LIBRARY_PATH`, run path, the system's cache and directories.
    Loader,
    /// The directory that this file `margo.pc` names.
    Package(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
    /// 2 for every Mercury that this crate can bind.
    pub major: u32,
    /// What features depend on.
    pub minor: u32,
    /// Corrections.
    pub patch: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// In the order of what they can do.
const PREFERRED: [&str; 7] = ["ofi+cxi", "ofi+verbs", "ofi+opx", "ofi+psm2", "ucx+all", "ofi+tcp", "ofi+sockets"];

/// # Safety
/// Null, or a string.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: the caller's.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_serve_addresses() {
        let tcp = Protocol { plugin: "ofi".to_owned(), name: "tcp;ofi_rxm".to_owned(), device: String::new() };
        for (address, serves) in [
            ("ofi+tcp", true),
            ("ofi+tcp://eth0:0", true),
            ("ofi+tcp;ofi_rxm://192.0.2.1", true),
            ("ofi+tcp_rxd", false),
            ("ucx+tcp", false),
            ("ofi", false),
            ("", false),
        ] {
            assert_eq!(tcp.serves(address), serves, "{address}");
        }
    }
}
