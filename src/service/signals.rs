//! `Signals`: signals that are read like data, in a process that waits for other things too.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::error::{Error, Result};

/// Signals that are read instead of delivered, as long as the value lives.
#[derive(Debug)]
pub(super) struct Signals {
    descriptor: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Blocks signals on this thread and all that it starts.
    pub(super) fn block(signals: &[libc::c_int]) -> Result<Self> {
        let set = set_of(signals);
        let before = set_mask(libc::SIG_BLOCK, &set).map_err(|error| Error::io("serve", "blocking signals", error))?;
        // SAFETY: a new descriptor is asked for, and `set` was initialised.
        let raw = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if raw < 0 {
            let error = io::Error::last_os_error();
            let _ = set_mask(libc::SIG_SETMASK, &before);
            return Err(Error::io("serve", "reading signals", error));
        }
        // SAFETY: the kernel made it for this call, so nobody else owns it.
        Ok(Self { descriptor: unsafe { OwnedFd::from_raw_fd(raw) }, before })
    }

    /// The number of the next signal that came.
    pub(super) fn next(&self) -> Option<libc::c_int> {
        let mut record = [0u8; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::retry_on_intr(|| rustix::io::read(&self.descriptor, &mut record));
        // The kernel writes whole records, each with the number in its first four bytes: signalfd(2).
        (read == Ok(record.len())).then(|| bytemuck::pod_read_unaligned(&record[..4]))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Or one that is pending would be delivered now.
        while self.next().is_some() {}
        let _ = set_mask(libc::SIG_SETMASK, &self.before);
    }
}

pub(super) fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, and sigaddset refuses numbers that are no signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Changes the signals that this thread blocks; returns those that it blocked before.
pub(super) fn set_mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<libc::sigset_t> {
    let mut before = set_of(&[]);
    // SAFETY: both sets are initialised and live during the call.
    match unsafe { libc::pthread_sigmask(how, set, &raw mut before) } {
        0 => Ok(before),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
