//! Descriptors that a library of this process holds.

use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// A descriptor of our own for what is behind a number, where that is open: the other one may be another file's a moment later.
pub(super) fn duplicate(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: a system call that takes any number.
    let own = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 0) };
    // SAFETY: made by the call above, and nobody else's.
    (own >= 0).then(|| unsafe { OwnedFd::from_raw_fd(own) })
}
