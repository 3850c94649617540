//! The UCX that the linker bound.

use std::env;
use std::ffi::{CStr, c_void};

use crate::library::{Origin, Ucx, file_of};
use crate::load::{Attempt, LoadError, proved};
use crate::newer::Newer;
use crate::symbols::{Symbols, ucp_get_version};

pub(crate) fn find() -> Result<Ucx, LoadError> {
    // SAFETY: the function of that name.
    let version = unsafe { proved(ucp_get_version) }.map_err(|reason| LoadError {
        attempts: vec![Attempt { origin: Origin::Linked, tried: "libucp".to_owned(), reason }],
    })?;
    let lookup = |name: &'static CStr| {
        // SAFETY: a name; what the program was linked with is never unloaded.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    };
    let ucx = Ucx {
        symbols: Symbols::linked(),
        // SAFETY: names of UCX, in a program that is linked with it.
        newer: unsafe { Newer::find(&lookup) },
        version,
        origin: Origin::Linked,
        file: file_of(ucp_get_version as *mut c_void),
    };
    give_back_signals(&ucx);
    Ok(ucx)
}

/// Takes away the handlers that UCX installed before `main`, where the user has not asked for them.
fn give_back_signals(ucx: &Ucx) {
    let errors = [libc::SIGILL, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV];
    for (variable, signals) in [("UCX_HANDLE_ERRORS", &errors[..]), ("UCX_DEBUG_SIGNO", &[libc::SIGHUP])] {
        for &signal in signals.iter().filter(|_| env::var_os(variable).is_none()) {
            // SAFETY: a signal; nothing is done where UCX has no handler.
            unsafe { ucx.ucs_debug_disable_signal(signal) };
        }
    }
}
