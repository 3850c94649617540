//! `Kept`: bytes and their owner, which the clones share.

use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// A view of bytes that an owner of any type keeps; the owner is dropped with the last clone.
///
/// `Bytes` does the same. It moves the owner through memory three times on its way, in pieces of another width than it was
/// written in, for which a processor waits until the writes have reached its cache: 9 of the 53 ns that a get took.
///
/// ```text
///  ptr ──> bytes      shared ──> [ count | drop | owner ]
///  len                            Shared ───────┘ Owned<T>
/// ```
pub(super) struct Kept {
    ptr: NonNull<u8>,
    len: usize,
    shared: NonNull<Shared>,
}

/// What is known of an owner without its type.
struct Shared {
    clones: AtomicUsize,
    /// Frees the [`Owned`] that this is the start of.
    free: unsafe fn(NonNull<Self>),
}

#[repr(C)]
struct Owned<T> {
    shared: Shared,
    owner: T,
}

// SAFETY: the bytes are read only, the count is an atomic, and `new` takes only owners that any thread may drop.
unsafe impl Send for Kept {}
// SAFETY: as above; nobody reaches the owner through a reference.
unsafe impl Sync for Kept {}

impl Kept {
    /// # Safety
    /// `len` bytes at `ptr` are valid for reads, and nobody writes to them, until `owner` is dropped.
    #[inline(always)]
    pub(super) unsafe fn new<T: Send + 'static>(ptr: NonNull<u8>, len: usize, owner: T) -> Self {
        // Written where it stays.
        let mut place = spares::take::<T>();
        place.write(Owned { shared: Shared { clones: AtomicUsize::new(1), free: free::<T> }, owner });
        Self { ptr, len, shared: NonNull::from(Box::leak(place)).cast() }
    }

    #[inline]
    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: by the promise of `new`: the owner lives while any clone does.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }

    #[inline]
    fn clones(&self) -> &AtomicUsize {
        // SAFETY: it is freed by the last clone, and this is one. Only the count is borrowed: the owner is not touched.
        unsafe { &(*self.shared.as_ptr()).clones }
    }
}

impl Clone for Kept {
    #[inline]
    fn clone(&self) -> Self {
        let before = self.clones().fetch_add(1, Ordering::Relaxed);
        if before > isize::MAX as usize {
            // As `Arc`: so many clones were forgotten that the count would come round and free what is in use.
            std::process::abort();
        }
        Self { ..*self }
    }
}

impl Drop for Kept {
    #[inline]
    fn drop(&mut self) {
        // A single clone cannot become two meanwhile: that takes a reference to it. So there is nothing to count down, which
        // saves a locked instruction.
        // SYNC POINT: the count down of a clone that is gone. It used the bytes before.
        if self.clones().load(Ordering::Acquire) != 1 {
            // SYNC POINT: `load`, `fence`.
            if self.clones().fetch_sub(1, Ordering::Release) != 1 {
                return;
            }
            fence(Ordering::Acquire);
        }
        // SAFETY: this was the last clone, and `new` made the pair.
        unsafe { ((*self.shared.as_ptr()).free)(self.shared) }
    }
}

/// # Safety
/// `shared` is the start of an `Owned<T>` from `new`, and nobody uses it any more.
unsafe fn free<T>(shared: NonNull<Shared>) {
    // SAFETY: the caller's promise; `Owned` begins with `Shared`.
    let mut place = unsafe { Box::from_raw(shared.cast::<MaybeUninit<Owned<T>>>().as_ptr()) };
    // SAFETY: `new` wrote it, and nobody uses it any more.
    unsafe { place.assume_init_drop() };
    spares::put(place);
}

/// Memory of owners that are gone, for those to come: each thread keeps what it freed, some of it.
mod spares {
    use std::cell::RefCell;
    use std::mem::MaybeUninit;

    use super::Owned;

    /// An owner as small as a pin, and what stands before it.
    type Small = MaybeUninit<Owned<[u64; 2]>>;

    thread_local! {
        #[expect(clippy::vec_box, reason = "the boxes are what is spared")]
        static SPARE: RefCell<Vec<Box<Small>>> = const { RefCell::new(Vec::new()) };
    }

    const fn is_small<T>() -> bool {
        size_of::<Owned<T>>() == size_of::<Small>() && align_of::<Owned<T>>() == align_of::<Small>()
    }

    #[inline]
    pub(super) fn take<T>() -> Box<MaybeUninit<Owned<T>>> {
        if is_small::<T>() {
            // At the end of a thread there are none any more.
            if let Ok(Some(spare)) = SPARE.try_with(|spare| spare.try_borrow_mut().ok()?.pop()) {
                // SAFETY: memory that holds nothing, of the same size and alignment.
                return unsafe { Box::from_raw(Box::into_raw(spare).cast()) };
            }
        }
        Box::new_uninit()
    }

    #[inline]
    pub(super) fn put<T>(place: Box<MaybeUninit<Owned<T>>>) {
        if is_small::<T>() {
            // SAFETY: memory that holds nothing, of the same size and alignment.
            let place: Box<Small> = unsafe { Box::from_raw(Box::into_raw(place).cast()) };
            let _ = SPARE.try_with(|spare| {
                if let Ok(mut spare) = spare.try_borrow_mut() {
                    if spare.len() < MOST {
                        spare.push(place);
                    }
                }
            });
        }
    }

    /// How many this thread keeps.
    #[cfg(test)]
    pub(super) fn count() -> usize {
        SPARE.with_borrow(Vec::len)
    }

    /// Most that a thread keeps, of 32 bytes each.
    pub(super) const MOST: usize = 256;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    /// Bytes that are changed once the owner is gone. In a vector, because a box that moves claims its memory anew.
    struct Owner(Vec<u8>, Arc<AtomicUsize>);

    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.fill(0xee);
            self.1.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn kept() -> (Kept, Arc<AtomicUsize>) {
        let drops = Arc::new(AtomicUsize::new(0));
        let mut owner = Owner(vec![7; 64], Arc::clone(&drops));
        let ptr = NonNull::from(owner.0.as_mut_slice()).cast();
        // SAFETY: the vector's memory stays where it is until the owner is dropped.
        (unsafe { Kept::new(ptr, 64, owner) }, drops)
    }

    #[test]
    fn the_last_clone_drops_the_owner_once() {
        let (first, drops) = kept();
        let second = first.clone();
        drop(first);
        assert_eq!((second.as_slice(), drops.load(Ordering::Relaxed)), (&[7; 64][..], 0));
        let third = second.clone();
        drop(second);
        drop(third);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_thread_keeps_some_memory_of_owners_and_not_more() {
        static BYTES: [u8; 64] = [7; 64];
        // SAFETY: static, and never written.
        let kept = || unsafe { Kept::new(NonNull::from(&BYTES).cast(), 64, [1u64, 2]) };
        let one = kept();
        let place = one.shared;
        drop(one);
        let again = kept();
        assert_eq!((again.shared, spares::count()), (place, 0));
        let many: Vec<Kept> = (0..2 * spares::MOST).map(|_| kept()).collect();
        drop(many);
        assert_eq!(spares::count(), spares::MOST);
    }

    #[test]
    fn clones_of_several_threads() {
        for _ in 0..if cfg!(miri) { 8 } else { 500 } {
            let (first, drops) = kept();
            thread::scope(|scope| {
                for _ in 0..3 {
                    let clone = first.clone();
                    scope.spawn(move || {
                        let again = clone.clone();
                        drop(clone);
                        assert_eq!(again.as_slice(), [7; 64]);
                    });
                }
                drop(first);
            });
            assert_eq!(drops.load(Ordering::Relaxed), 1);
        }
    }
}
