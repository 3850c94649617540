//! Settings that UCX has to find in the environment while it is loaded, and nobody after that.

use std::collections::HashSet;
use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What a library must not do to the process that loads it, unless the user wants it.
///
/// The constructors of libucs read these, and act, before anything could be called: by default they take SIGILL, SIGBUS,
/// SIGFPE, SIGSEGV (up to 1.13 or so) and SIGHUP, set an alternative signal stack, and patch `munmap` and its like in memory. They
/// also decide where warnings and errors are printed to: to standard output.
pub(crate) const QUIET: &[(&CStr, &CStr)] = &[
    (c"UCX_HANDLE_ERRORS", c"UCX_HANDLE_ERRORS=none"),
    (c"UCX_DEBUG_SIGNO", c"UCX_DEBUG_SIGNO="),
    (c"UCX_MEM_EVENTS", c"UCX_MEM_EVENTS=n"),
    (c"UCX_LOG_FILE", c"UCX_LOG_FILE=stderr"),
];

/// Runs `load` with those of [`QUIET`] in the environment that are not set there, and takes them out again.
///
/// setenv(3) may free the array that another thread is searching. So nothing that exists is changed here: a longer array is
/// made, and `environ` is pointed at it and back; who reads meanwhile finds the one or the other, and neither is ever freed by
/// us. A thread that *changes* the environment at the very moment when `environ` is pointed elsewhere may lose its change, as
/// with any two writers; one that changes it while `load` runs loses nothing, and the settings stay in the environment then.
/// This thread reads like getenv(3), and shares its one danger: a setenv(3) of another thread while it reads.
pub(crate) fn quietly<R>(load: impl FnOnce() -> R) -> R {
    let before = ENVIRON.load(Ordering::Acquire);
    // SAFETY: `environ` is null or ends in null, and its strings stay as long as they are in it.
    let mut entries = unsafe { entries(before) };
    let set: HashSet<&[u8]> = entries.iter().map(|&entry| name(entry)).collect();
    let missing: Vec<_> = QUIET
        .iter()
        .filter(|(name, _)| !set.contains(name.to_bytes()))
        .map(|(_, line)| line.as_ptr().cast_mut())
        .collect();
    if missing.is_empty() {
        return load();
    }
    entries.extend(missing);
    entries.push(ptr::null_mut());
    // Leaked: some thread may read it for as long as it likes. Some hundred bytes a call.
    let ours = Box::leak(entries.clone().into_boxed_slice()).as_mut_ptr();
    ENVIRON.store(ours, Ordering::Release);
    let result = load();
    // SAFETY: as long as `entries`, by construction; C code writes single pointers to it.
    let untouched = entries.iter().enumerate().all(|(at, &entry)| unsafe { ours.add(at).read_volatile() } == entry);
    if untouched {
        // When somebody has put another array there, that one stays.
        let _ = ENVIRON.compare_exchange(ours, before, Ordering::AcqRel, Ordering::Relaxed);
    }
    result
}

/// # Safety
/// `environ` is null, or an array that ends in null.
unsafe fn entries(environ: *mut *mut c_char) -> Vec<*mut c_char> {
    let mut entries = Vec::new();
    if environ.is_null() {
        return entries;
    }
    loop {
        // SAFETY: the caller's: the null that ends the array was not met yet.
        let entry = unsafe { environ.add(entries.len()).read_volatile() };
        if entry.is_null() {
            return entries;
        }
        entries.push(entry);
    }
}

/// What stands before the `=`.
fn name<'a>(entry: *mut c_char) -> &'a [u8] {
    // SAFETY: entries of `environ` are strings; POSIX forbids to free one that is in it.
    let line = unsafe { CStr::from_ptr(entry) }.to_bytes();
    line.split(|&byte| byte == b'=').next().unwrap_or(line)
}

unsafe extern "C" {
    /// environ(7). A pointer, which others read and write as such.
    #[link_name = "environ"]
    safe static ENVIRON: AtomicPtr<*mut c_char>;
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::ffi::CString;

    use super::*;

    fn seen(name: &CStr) -> Option<CString> {
        // SAFETY: a string that nobody frees before it was copied: tests change the environment in one thread.
        let found = unsafe { libc::getenv(name.as_ptr()) };
        // SAFETY: as above.
        (!found.is_null()).then(|| unsafe { CStr::from_ptr(found) }.to_owned())
    }

    /// One test, because the environment is one.
    #[test]
    fn settings_are_there_while_it_loads_and_what_others_set_stays() {
        let outside = ENVIRON.load(Ordering::Acquire);
        quietly(|| {
            for (name, line) in QUIET {
                let value = seen(name).unwrap();
                assert!(line.to_bytes().ends_with(value.to_bytes()) && line.to_bytes().starts_with(name.to_bytes()));
            }
            assert_eq!(seen(c"PATH"), env::var("PATH").ok().map(|path| CString::new(path).unwrap()));
        });
        assert!(QUIET.iter().all(|(name, _)| seen(name).is_none()));
        assert_eq!(ENVIRON.load(Ordering::Acquire), outside);

        // SAFETY: the only thread that writes; readers use std, which locks.
        unsafe { env::set_var("UCX_MEM_EVENTS", "y") };
        quietly(|| assert_eq!(seen(c"UCX_MEM_EVENTS").unwrap(), c"y".to_owned()));
        assert_eq!(seen(c"UCX_MEM_EVENTS").unwrap(), c"y".to_owned());

        // Somebody else writes meanwhile: a new variable, then one in place, then one is gone.
        // SAFETY: as above.
        quietly(|| unsafe { env::set_var("UCX_SYS_TEST", "new") });
        assert_eq!(seen(c"UCX_SYS_TEST").unwrap(), c"new".to_owned());
        for (name, _) in QUIET {
            // SAFETY: as above.
            unsafe { env::remove_var(name.to_str().unwrap()) };
        }
        // SAFETY: as above.
        quietly(|| unsafe { env::set_var("UCX_SYS_TEST", "changed in place") });
        assert_eq!(seen(c"UCX_SYS_TEST").unwrap(), c"changed in place".to_owned());
        for (name, _) in QUIET {
            // SAFETY: as above.
            unsafe { env::remove_var(name.to_str().unwrap()) };
        }
        // SAFETY: as above.
        quietly(|| unsafe { env::remove_var("UCX_SYS_TEST") });
        assert_eq!(seen(c"UCX_SYS_TEST"), None);
    }
}
