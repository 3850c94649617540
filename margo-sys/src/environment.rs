//! Settings that Margo's parts have to find in the environment when they are loaded or started, and nobody after that.

use std::collections::HashSet;
use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Runs `call` with those of `settings`, each a name and a line, in the environment that are not set there, and takes them out
/// again.
///
/// setenv(3) may free the array that another thread is searching. So nothing that exists is changed here: a longer array is
/// made, and `environ` is pointed at it and back; who reads meanwhile finds the one or the other, and neither is ever freed by
/// us. A thread that *changes* the environment at the very moment when `environ` is pointed elsewhere may lose its change, as
/// with any two writers; one that changes it while `call` runs loses nothing, and the settings stay in the environment then.
/// This thread reads like getenv(3), and shares its one danger: a setenv(3) of another thread while it reads.
pub(crate) fn with<R>(settings: &[(&CStr, &'static CStr)], call: impl FnOnce() -> R) -> R {
    let before = ENVIRON.load(Ordering::Acquire);
    // SAFETY: `environ` is null or ends in null, and its strings stay as long as they are in it.
    let mut entries = unsafe { entries(before) };
    let set: HashSet<&[u8]> = entries.iter().map(|&entry| name(entry)).collect();
    let missing: Vec<_> = settings
        .iter()
        .filter(|(name, _)| !set.contains(name.to_bytes()))
        .map(|(_, line)| line.as_ptr().cast_mut())
        .collect();
    if missing.is_empty() {
        return call();
    }
    entries.extend(missing);
    entries.push(ptr::null_mut());
    // Leaked: some thread may read it for as long as it likes. Some hundred bytes a call.
    let ours = Box::leak(entries.clone().into_boxed_slice()).as_mut_ptr();
    ENVIRON.store(ours, Ordering::Release);
    let result = call();
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
    fn settings_are_there_for_the_call_and_what_others_set_stays() {
        let settings = [(c"MARGO_SYS_TEST", c"MARGO_SYS_TEST=ours")];
        let outside = ENVIRON.load(Ordering::Acquire);
        with(&settings, || {
            assert_eq!(seen(c"MARGO_SYS_TEST").unwrap(), c"ours".to_owned());
            assert_eq!(seen(c"PATH"), env::var("PATH").ok().map(|path| CString::new(path).unwrap()));
        });
        assert_eq!(seen(c"MARGO_SYS_TEST"), None);
        assert_eq!(ENVIRON.load(Ordering::Acquire), outside);

        // SAFETY: the only thread that writes; readers use std, which locks.
        unsafe { env::set_var("MARGO_SYS_TEST", "theirs") };
        with(&settings, || assert_eq!(seen(c"MARGO_SYS_TEST").unwrap(), c"theirs".to_owned()));
        // Somebody else writes meanwhile.
        // SAFETY: as above.
        unsafe { env::remove_var("MARGO_SYS_TEST") };
        // SAFETY: as above.
        with(&settings, || unsafe { env::set_var("MARGO_SYS_OTHER", "new") });
        assert_eq!(seen(c"MARGO_SYS_OTHER").unwrap(), c"new".to_owned());
    }
}
