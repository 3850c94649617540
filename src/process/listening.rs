//! Descriptors that a child of fork must not hold open.
//!
//! A child that lives on after its parent was killed would keep the parent's listening socket and its port: connections to it
//! would be accepted by the kernel and answered by nobody, and a successor would have to listen elsewhere.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Once;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Keeps a descriptor from children of fork until it is dropped, which has to be before the descriptor is closed.
#[derive(Debug)]
pub(crate) struct Withheld(Option<&'static AtomicI32>);

impl Withheld {
    /// In a child of fork(2), the descriptor's number leads to nothing, from the child's first instruction on.
    ///
    /// Beyond [`MOST`] descriptors, and where no handler can be registered, children keep them.
    pub(crate) fn new(descriptor: BorrowedFd<'_>) -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: makes a descriptor, which stays open.
            let nothing = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
            NOTHING.store(nothing, Relaxed);
            // SAFETY: the handler is a function of this program; it takes no lock, and calls what may be called after a fork.
            unsafe { libc::pthread_atfork(None, None, Some(withhold)) };
        });
        let number = descriptor.as_raw_fd();
        Self(ALL.iter().find(|place| place.compare_exchange(FREE, number, AcqRel, Relaxed).is_ok()))
    }
}

impl Drop for Withheld {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.store(FREE, Release);
        }
    }
}

/// Runs in the child. Another open file takes the number's place, so that whoever owns the number may close it as ever.
extern "C" fn withhold() {
    let nothing = NOTHING.load(Relaxed);
    for number in ALL.iter().map(|place| place.load(Acquire)).filter(|number| *number != FREE && nothing >= 0) {
        // SAFETY: dup3 is async-signal-safe; both numbers are open, the second by what `Withheld::new` asks for.
        unsafe { libc::dup3(nothing, number, libc::O_CLOEXEC) };
    }
}

static ALL: [AtomicI32; MOST] = [const { AtomicI32::new(FREE) }; MOST];
static NOTHING: AtomicI32 = AtomicI32::new(FREE);
const FREE: i32 = -1;

/// A process has one for each namespace whose node it answers for.
const MOST: usize = 64;
