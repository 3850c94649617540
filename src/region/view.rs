//! `View`: bytes and their owner, which is so small that it lies beside them.

use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::ptr::NonNull;

use super::Region;
use super::kept::Kept;

/// Finished bytes, as a [`Region`], but with one holder: it cannot be cloned, and so takes no memory of its own.
pub(crate) struct View {
    ptr: NonNull<u8>,
    len: usize,
    owner: Owner,
    /// Drops the owner.
    release: unsafe fn(*mut Owner),
}

/// Room for an owner.
type Owner = MaybeUninit<[u64; 2]>;

// SAFETY: the bytes are read only, and `new` takes only owners that any thread may drop.
unsafe impl Send for View {}
// SAFETY: as above; nobody reaches the owner through a reference.
unsafe impl Sync for View {}

impl View {
    /// # Safety
    /// `len` bytes at `ptr` are valid for reads, and nobody writes to them, until `owner` is dropped.
    #[inline]
    pub(crate) unsafe fn new<T: Send + 'static>(ptr: NonNull<u8>, len: usize, owner: T) -> Self {
        const { assert!(size_of::<T>() <= size_of::<Owner>() && align_of::<T>() <= align_of::<Owner>()) };
        let mut place = Owner::uninit();
        // SAFETY: the place has room for a `T`, by the assertion above.
        unsafe { place.as_mut_ptr().cast::<T>().write(owner) };
        Self { ptr, len, owner: place, release: release::<T> }
    }

    /// Only these bytes of it; `None` where it does not have them.
    pub(crate) fn narrow(mut self, range: Range<usize>) -> Option<Self> {
        let len = self.get(range.clone())?.len();
        // SAFETY: the range lies within the bytes, or `get` would have found none.
        self.ptr = unsafe { self.ptr.add(range.start) };
        self.len = len;
        Some(self)
    }
}

impl Deref for View {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: by the promise of `new`: the owner lives as long as this.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View({} B at {:p})", self.len, self.ptr)
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<View> for Region {
    /// # Cost
    /// One small allocation.
    fn from(view: View) -> Self {
        // SAFETY: the bytes are the view's, which is their owner from here on.
        Self(super::Inner::Kept(unsafe { Kept::new(view.ptr, view.len, view) }))
    }
}

impl Drop for View {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the owner was written by `new`, which chose `release` for its type, and is dropped once.
        unsafe { (self.release)(&raw mut self.owner) }
    }
}

/// # Safety
/// `owner` holds a `T`, which nobody uses any more.
unsafe fn release<T>(owner: *mut Owner) {
    // SAFETY: the caller's promise.
    unsafe { owner.cast::<T>().drop_in_place() }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    struct Owned(Arc<AtomicUsize>);

    impl Drop for Owned {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_owner_goes_with_the_view_or_what_it_becomes() {
        static BYTES: [u8; 64] = [7; 64];
        let drops = Arc::new(AtomicUsize::new(0));
        // SAFETY: static, and never written.
        let view = || unsafe { View::new(NonNull::from(&BYTES).cast(), 64, Owned(Arc::clone(&drops))) };
        let part = view().narrow(3..10).unwrap();
        assert_eq!((&part[..], drops.load(Ordering::Relaxed)), (&[7; 7][..], 0));
        drop(part);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
        assert!(view().narrow(3..65).is_none() && view().narrow(usize::MAX..usize::MAX).is_none());
        assert_eq!(drops.load(Ordering::Relaxed), 3);
        let region = Region::from(view());
        let clone = region.clone();
        drop(region);
        assert_eq!((&clone[..], drops.load(Ordering::Relaxed)), (&BYTES[..], 3));
        drop(clone);
        assert_eq!(drops.load(Ordering::Relaxed), 4);
    }
}
