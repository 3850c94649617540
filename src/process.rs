//! What a process is: noticing fork(2), and values that a forked child makes anew.
//!
//! A child of fork has one thread and a copy of everything else: locks that other threads held at that moment stay locked
//! for ever, and pools have threads that do not exist. So nothing of the parent's that threads share may be touched.

use std::sync::atomic::{AtomicPtr, Ordering};

#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
mod listening;

#[cfg(not(any(miri, loom)))]
use fork::detect;
#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
pub(crate) use listening::Withheld;

/// The generation of this process: 1 at first, in a child of fork greater than in its parent.
///
/// Two children of one parent have the same. It tells what a process made itself from what it inherited.
///
/// # Cost
/// About a nanosecond: the kernel empties a page in the child, and this reads a word of it. On kernels before 4.14, which
/// cannot, a system call.
#[inline]
pub(crate) fn generation() -> u32 {
    detect()
}

/// Neither has fork.
#[cfg(any(miri, loom))]
fn detect() -> u32 {
    1
}

/// A value that each process makes when it first needs it, and a forked child makes again.
///
/// The parent's copy is leaked in the child, and so is all it owns: its locks may have been held at the moment of the fork.
pub(crate) struct PerProcess<T> {
    current: AtomicPtr<Owned<T>>,
}

struct Owned<T> {
    generation: u32,
    value: T,
}

impl<T: Send + Sync + 'static> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        Self { current: AtomicPtr::new(std::ptr::null_mut()) }
    }

    /// This process's value. Racing threads may each call `init`; one result is kept, the others are dropped.
    ///
    /// # Cost
    /// That of [`generation`] and two loads; an allocation the first time.
    pub(crate) fn get(&'static self, init: impl FnOnce() -> T) -> &'static T {
        match self.current() {
            Some(value) => value,
            None => self.make(init()),
        }
    }

    /// This process's value, if it has been made.
    pub(crate) fn current(&'static self) -> Option<&'static T> {
        self.load().filter(|owned| owned.generation == generation()).map(|owned| &owned.value)
    }

    fn load(&'static self) -> Option<&'static Owned<T>> {
        // SYNC POINT: the exchange in `make`.
        let owned = self.current.load(Ordering::Acquire);
        // SAFETY: null, or from `Box::into_raw` in `make`, whose boxes are never freed once they are in here.
        unsafe { owned.as_ref() }
    }

    #[cold]
    fn make(&'static self, value: T) -> &'static T {
        let generation = generation();
        let made = Box::into_raw(Box::new(Owned { generation, value }));
        let mut seen = self.current.load(Ordering::Acquire);
        loop {
            // SAFETY: as in `load`.
            if let Some(first) = unsafe { seen.as_ref() }.filter(|owned| owned.generation == generation) {
                // SAFETY: made above, and given to nobody.
                drop(unsafe { Box::from_raw(made) });
                return &first.value;
            }
            // SYNC POINT: `load`.
            match self.current.compare_exchange(seen, made, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: made above, and never freed from here on.
                Ok(_) => return unsafe { &(*made).value },
                Err(other) => seen = other,
            }
        }
    }
}

#[cfg(not(any(miri, loom)))]
mod fork {
    use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

    use rustix::mm::{Advice, MapFlags, ProtFlags};

    /// A word that the kernel sets to zero in a child of fork; null before the first use.
    static WORD: AtomicPtr<AtomicU32> = AtomicPtr::new(std::ptr::null_mut());

    /// The last generation that was given, in this process or before it.
    static LAST: AtomicU32 = AtomicU32::new(0);

    #[inline]
    pub(super) fn detect() -> u32 {
        let word = WORD.load(Ordering::Acquire);
        // SAFETY: null, or a mapped page that is never unmapped and only used as this atomic.
        match unsafe { word.as_ref() } {
            None => first_use(),
            Some(word) if std::ptr::eq(word, &NO_PAGE) => by_process_id(),
            Some(word) => match word.load(Ordering::Relaxed) {
                0 => forked(word),
                generation => generation,
            },
        }
    }

    /// The word was emptied, or never set: this is a new process.
    #[cold]
    fn forked(word: &AtomicU32) -> u32 {
        let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        match word.compare_exchange(0, next, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => next,
            Err(others) => others,
        }
    }

    #[cold]
    fn first_use() -> u32 {
        let word = map_wiped().unwrap_or(&NO_PAGE);
        // The page of a thread that loses the race stays mapped: it happens once.
        let _ = WORD.compare_exchange(
            std::ptr::null_mut(),
            std::ptr::from_ref(word).cast_mut(),
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        detect()
    }

    /// A private page that is empty again after fork.
    fn map_wiped() -> rustix::io::Result<&'static AtomicU32> {
        // The kernel maps a whole page for a smaller length too, and gives advice for whole pages.
        const LEN: usize = 1;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at a place of the kernel's choice.
        let page = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), LEN, protection, MapFlags::PRIVATE) }?;
        // SAFETY: the page mapped above; what it holds, zero, is what the advice makes of it.
        let advised = unsafe { rustix::mm::madvise(page, LEN, Advice::LinuxWipeOnFork) };
        match advised {
            // SAFETY: a page is zeroed, aligned, large enough, never unmapped, and reached as this atomic alone.
            Ok(()) => Ok(unsafe { &*page.cast::<AtomicU32>() }),
            Err(error) => {
                // SAFETY: mapped above, and given to nobody.
                let _ = unsafe { rustix::mm::munmap(page, LEN) };
                Err(error)
            }
        }
    }

    /// Stands for the page where there is none.
    static NO_PAGE: AtomicU32 = AtomicU32::new(u32::MAX);

    /// Asks for the process id each time. A descendant that got the number of a dead ancestor would go unnoticed.
    #[cold]
    pub(super) fn by_process_id() -> u32 {
        /// Process id in the upper half, its generation in the lower.
        static OWNER: AtomicU64 = AtomicU64::new(0);
        let process = rustix::process::getpid().as_raw_nonzero().get() as u64;
        let owner = OWNER.load(Ordering::Acquire);
        if owner >> 32 == process {
            return owner as u32;
        }
        let next = LAST.fetch_add(1, Ordering::Relaxed) + 1;
        match OWNER.compare_exchange(owner, process << 32 | u64::from(next), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => next,
            // Only threads of this process write here.
            Err(others) => others as u32,
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    #[test]
    fn one_generation_in_one_process() {
        let all: Vec<_> = (0..4).map(|_| thread::spawn(generation)).map(|thread| thread.join().unwrap()).collect();
        assert!(all.iter().all(|one| *one == generation() && *one > 0), "{all:?}");
        #[cfg(not(miri))]
        assert_eq!(fork::by_process_id(), fork::by_process_id());
    }

    #[test]
    fn one_value_in_one_process() {
        static VALUE: PerProcess<AtomicUsize> = PerProcess::new();
        assert!(VALUE.current().is_none());
        let places: Vec<usize> = thread::scope(|scope| {
            let make = || std::ptr::from_ref(VALUE.get(|| AtomicUsize::new(7))).addr();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(places.windows(2).all(|pair| pair[0] == pair[1]));
        assert_eq!(VALUE.current().unwrap().load(Ordering::Relaxed), 7);
    }
}
