//! `Region` and `RegionMut`: object bytes in aligned memory that somebody else may own.
//!
//! The three states of an object's memory are three types. [`Connector::reserve`](crate::Connector::reserve) lends a
//! `RegionMut`; filling it only appends; [`Connector::commit`](crate::Connector::commit) takes it and the bytes never
//! change again. A `Region` is such finished memory: shared, read-only, released when its last clone goes.
//!
//! ```text
//!  RegionMut                                        Region (clones and slices)
//!  ptr ─┐            len ─┐        capacity ─┐       Bytes ──> owner (heap block, mmap, pinned cell, ...)
//!       ▼                 ▼                  ▼                    released with the last clone
//!       [ written, frozen ][ spare, append   ]
//!       └ 64-byte aligned, owned by Box<dyn Memory>; dropping it gives the memory back
//! ```

use std::alloc::{self, Layout};
use std::any::Any;
use std::fmt;
use std::mem::MaybeUninit;
use std::ops::{Deref, RangeBounds};
use std::ptr::NonNull;

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes};
use rustix::mm::{Advice, madvise};

use crate::error::{Error, ErrorKind, Result};

#[cfg(all(feature = "shm", not(any(loom, shuttle))))]
mod kept;
#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
mod room;
#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
mod view;

#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
pub(crate) use room::{Reuse, Room};
#[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
pub(crate) use view::View;

/// Alignment of the first byte of every region: a cache line, and enough for any plain-data or SIMD type.
pub const ALIGNMENT: usize = 64;

/// Finished object bytes: shared, immutable, 64-byte aligned at the first byte of the object.
///
/// # Cost
/// Cloning is O(1) and allocates nothing. Dropping the last clone releases the owner.
#[derive(Clone)]
pub struct Region(Inner);

#[derive(Clone)]
enum Inner {
    Bytes(Bytes),
    #[cfg(all(feature = "shm", not(any(loom, shuttle))))]
    Kept(kept::Kept),
    /// The first bytes of memory whose holder is used again.
    #[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
    Reused(room::Reused, usize),
}

impl Region {
    /// Wraps memory kept alive by `owner`; the owner is dropped with the last clone.
    ///
    /// `owner.as_ref()` is called once, and must go on returning the same memory while the owner lives.
    ///
    /// # Cost
    /// One small allocation, no copy.
    ///
    /// # Errors
    /// `Invalid` when the memory is not aligned to [`ALIGNMENT`] bytes.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + 'static) -> Result<Self> {
        Self::try_from(Bytes::from_owner(owner))
    }

    /// As [`from_owner`](Self::from_owner), for memory that is known to be aligned.
    ///
    /// # Safety
    /// `len` bytes at `ptr` are valid for reads, and nobody writes to them, until `owner` is dropped.
    #[cfg(all(feature = "shm", not(any(loom, shuttle))))]
    #[inline(always)]
    pub(crate) unsafe fn keep(ptr: NonNull<u8>, len: usize, owner: impl Send + 'static) -> Self {
        debug_assert!(ptr.addr().get() % ALIGNMENT == 0);
        // SAFETY: the caller's promise.
        Self(Inner::Kept(unsafe { kept::Kept::new(ptr, len, owner) }))
    }

    /// Copies `bytes` into fresh aligned memory.
    ///
    /// # Cost
    /// One allocation and one copy.
    ///
    /// # Errors
    /// `NoSpace` when the allocation fails.
    pub fn copy_from_slice(bytes: &[u8]) -> Result<Self> {
        let mut region = RegionMut::heap(bytes.len())?;
        region.put_slice(bytes);
        Ok(region.freeze())
    }

    /// The bytes as [`Bytes`], sharing the owner.
    ///
    /// # Cost
    /// O(1), no copy; of memory that processes share one small allocation.
    pub fn to_bytes(&self) -> Bytes {
        self.clone().into()
    }

    /// A part of the region. It is aligned only as far as its start is.
    ///
    /// # Cost
    /// As [`to_bytes`](Self::to_bytes).
    ///
    /// # Panics
    /// When the range is out of bounds.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Bytes {
        self.to_bytes().slice(range)
    }
}

impl TryFrom<Bytes> for Region {
    type Error = Error;

    /// Takes the bytes without a copy.
    ///
    /// # Errors
    /// `Invalid` when they are not aligned to [`ALIGNMENT`] bytes; [`Region::copy_from_slice`] helps then.
    #[inline]
    fn try_from(bytes: Bytes) -> Result<Self> {
        if bytes.is_empty() || bytes.as_ptr().addr() % ALIGNMENT == 0 {
            Ok(Self(Inner::Bytes(bytes)))
        } else {
            Err(Error::new(ErrorKind::Invalid, "region", "memory is not aligned to 64 bytes"))
        }
    }
}

impl From<Region> for Bytes {
    fn from(region: Region) -> Self {
        match region.0 {
            Inner::Bytes(bytes) => bytes,
            #[cfg(all(feature = "shm", not(any(loom, shuttle))))]
            _ => Self::from_owner(region),
        }
    }
}

impl Default for Region {
    fn default() -> Self {
        Self(Inner::Bytes(Bytes::new()))
    }
}

impl Deref for Region {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Inner::Bytes(bytes) => bytes,
            #[cfg(all(feature = "shm", not(any(loom, shuttle))))]
            Inner::Kept(kept) => kept.as_slice(),
            #[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
            Inner::Reused(memory, len) => {
                // SAFETY: as in `Room::as_slice`; nobody writes any more, because the `Room` was consumed.
                unsafe { std::slice::from_raw_parts(memory.as_ptr().as_ptr(), *len) }
            }
        }
    }
}

impl AsRef<[u8]> for Region {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Region {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Region {}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} B at {:p})", self.len(), self.as_ptr())
    }
}

/// Memory that a connector lends for writing.
///
/// Dropping the box gives the memory back, whether or not anything was written.
///
/// # Safety
/// From construction to drop, wherever the value itself moves: [`as_ptr`](Self::as_ptr) returns the same pointer,
/// aligned to [`ALIGNMENT`]; [`capacity`](Self::capacity) bytes behind it are valid for reads and writes by the holder of
/// the value alone; and the first [`initialized`](Self::initialized) of them hold some value.
pub unsafe trait Memory: AsAny + Send + Sync {
    /// First byte.
    fn as_ptr(&self) -> NonNull<u8>;

    /// Length in bytes, at most `isize::MAX`.
    fn capacity(&self) -> usize;

    /// How many leading bytes hold some value already (all of them for mapped memory), so that they can be handed out
    /// as `&mut [u8]` without being zeroed first.
    fn initialized(&self) -> usize {
        0
    }
}

/// Lets a connector find its own type behind `dyn Memory`; implemented for every type.
// Rust 1.85 cannot convert `dyn Memory` into `dyn Any` by itself.
pub trait AsAny: Any {
    /// The value as [`Any`].
    fn as_any(&self) -> &dyn Any;
    /// The box as [`Any`].
    fn into_any(self: Box<Self>) -> Box<dyn Any>;
}

impl<T: Any> AsAny for T {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

/// Object bytes being written: append-only, one owner, given back when dropped.
///
/// Write through [`BufMut`], through [`std::io::Write`], or in place through
/// [`initialize`](Self::initialize) / [`spare_capacity_mut`](Self::spare_capacity_mut).
pub struct RegionMut {
    memory: Box<dyn Memory>,
    len: usize,
    initialized: usize,
}

impl RegionMut {
    /// Wraps lent memory, empty.
    pub fn new(memory: Box<dyn Memory>) -> Self {
        let initialized = memory.initialized().min(memory.capacity());
        Self { memory, len: 0, initialized }
    }

    /// Allocates `capacity` bytes of process memory.
    ///
    /// # Cost
    /// One allocation. The memory is not touched: fresh pages cost a fault each when they are first written, huge ones
    /// from 4 MiB on where the system has them to give.
    ///
    /// # Errors
    /// `NoSpace` when the allocator refuses, `TooLarge` above `isize::MAX`.
    pub fn heap(capacity: usize) -> Result<Self> {
        Ok(Self::new(Box::new(HeapMemory::allocate(capacity)?)))
    }

    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        self.memory.capacity()
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: `len <= capacity` bytes behind `as_ptr` are valid by the contract of `Memory`, and were written:
        // `len` grows only in `advance_mut` (whose caller vouches for that) and in `initialize`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().as_ptr(), self.len) }
    }

    /// The unwritten rest, for code that writes through raw pointers and then calls [`BufMut::advance_mut`].
    pub fn spare_capacity_mut(&mut self) -> &mut [MaybeUninit<u8>] {
        // The caller may write "uninitialised" here, so nothing past `len` may be believed any more.
        self.initialized = self.initialized.min(self.len);
        // SAFETY: the range `len..capacity` lies in the memory that `Memory` grants to us alone; `MaybeUninit` makes no
        // claim on its content; `&mut self` keeps it exclusive.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.memory.as_ptr().as_ptr().add(self.len).cast::<MaybeUninit<u8>>(),
                self.memory.capacity() - self.len,
            )
        }
    }

    /// Appends what `f` writes: many small pieces without a look at the memory for each.
    pub(crate) fn append<T>(&mut self, f: impl FnOnce(&mut Appender<'_>) -> T) -> T {
        let mut out = Appender { rest: self.spare_capacity_mut(), written: 0 };
        let result = f(&mut out);
        let written = out.written;
        // SAFETY: `Appender` wrote the first `written` bytes of the spare capacity.
        unsafe { self.advance_mut(written) };
        result
    }

    /// Makes the whole capacity part of the object and returns it for writing in place.
    ///
    /// The bytes already written keep their values; the others are zero in process memory, arbitrary in mapped memory
    /// (what an earlier object of the same user left there).
    ///
    /// # Cost
    /// Zeroes what does not hold a value yet; nothing in mapped memory.
    pub fn initialize(&mut self) -> &mut [u8] {
        let capacity = self.memory.capacity();
        let known = self.initialized.max(self.len);
        // Not for nothing: a memset of no bytes is a masked store, which takes 100 ns where the page is not there.
        if known < capacity {
            // SAFETY: `known <= capacity`, so the range lies in our memory; see `spare_capacity_mut`.
            unsafe { self.memory.as_ptr().as_ptr().add(known).write_bytes(0, capacity - known) };
        }
        (self.initialized, self.len) = (capacity, capacity);
        // SAFETY: all bytes hold values now, and `&mut self` keeps them exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr().as_ptr(), capacity) }
    }

    /// Ends writing and keeps the memory, without any connector.
    ///
    /// # Cost
    /// One small allocation, no copy.
    pub fn freeze(self) -> Region {
        Region(Inner::Bytes(Bytes::from_owner(Frozen { len: self.len, memory: self.memory })))
    }

    /// The region itself where it lies in process memory, else a copy there; the lender has its memory back then.
    ///
    /// # Cost
    /// At most one allocation and one copy.
    ///
    /// # Errors
    /// `NoSpace` when the allocation fails.
    #[cfg(any(test, feature = "memory"))]
    pub(crate) fn into_heap(self) -> Result<Self> {
        if self.is_memory::<HeapMemory>() {
            return Ok(self);
        }
        let mut copy = Self::heap(self.len)?;
        copy.put_slice(self.as_slice());
        Ok(copy)
    }

    /// The memory, empty again.
    #[cfg(any(test, feature = "margo"))]
    pub(crate) fn emptied(self) -> Self {
        Self { len: 0, ..self }
    }

    /// Whether the memory behind is an `M`: how a connector recognises its own reservations.
    pub fn is_memory<M: Memory>(&self) -> bool {
        (*self.memory).as_any().is::<M>()
    }

    /// Splits into the memory and the number of bytes written.
    ///
    /// # Errors
    /// Gives the region back unchanged when its memory is not an `M`.
    pub fn into_memory<M: Memory>(self) -> Result<(Box<M>, usize), Self> {
        if !self.is_memory::<M>() {
            return Err(self);
        }
        let len = self.len;
        match self.memory.into_any().downcast::<M>() {
            Ok(memory) => Ok((memory, len)),
            Err(_) => unreachable!("checked by is_memory"),
        }
    }
}

// SAFETY: `chunk_mut` returns exactly the spare memory, and `advance_mut` moves its start by at most its length.
unsafe impl BufMut for RegionMut {
    fn remaining_mut(&self) -> usize {
        self.memory.capacity() - self.len
    }

    unsafe fn advance_mut(&mut self, n: usize) {
        assert!(n <= self.remaining_mut(), "advanced {n} bytes with {} left", self.remaining_mut());
        self.len += n;
        self.initialized = self.initialized.max(self.len);
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        UninitSlice::uninit(self.spare_capacity_mut())
    }
}

impl std::io::Write for RegionMut {
    /// Appends what fits; 0 when the region is full.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = bytes.len().min(self.remaining_mut());
        self.put_slice(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl fmt::Debug for RegionMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionMut({} of {} B at {:p})", self.len, self.capacity(), self.memory.as_ptr())
    }
}

#[cfg(any(test, feature = "conformance"))]
impl RegionMut {
    /// Memory as another connector lends it; the reference dies when the lender has it back.
    pub(crate) fn foreign(capacity: usize) -> Result<(Self, std::sync::Weak<()>)> {
        struct Foreign {
            memory: HeapMemory,
            _lent: std::sync::Arc<()>,
        }
        // SAFETY: delegates to `HeapMemory`.
        unsafe impl Memory for Foreign {
            fn as_ptr(&self) -> NonNull<u8> {
                self.memory.as_ptr()
            }

            fn capacity(&self) -> usize {
                self.memory.capacity()
            }
        }
        let lent = std::sync::Arc::new(());
        let returned = std::sync::Arc::downgrade(&lent);
        Ok((Self::new(Box::new(Foreign { memory: HeapMemory::allocate(capacity)?, _lent: lent })), returned))
    }
}

/// Writes to the spare capacity of a region; `None` when there is too little.
pub(crate) struct Appender<'a> {
    rest: &'a mut [MaybeUninit<u8>],
    written: usize,
}

impl Appender<'_> {
    #[inline]
    pub(crate) fn push(&mut self, byte: u8) -> Option<()> {
        self.rest.get_mut(self.written)?.write(byte);
        self.written += 1;
        Some(())
    }

    #[inline]
    pub(crate) fn extend(&mut self, bytes: &[u8]) -> Option<()> {
        let target = self.rest.get_mut(self.written..)?.get_mut(..bytes.len())?;
        // SAFETY: both are valid for `bytes.len()` bytes, the target exclusively so; bytes need no alignment.
        unsafe { target.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.written += bytes.len();
        Some(())
    }
}

/// Keeps a reservation's memory alive under a `Region`.
struct Frozen {
    len: usize,
    memory: Box<dyn Memory>,
}

impl AsRef<[u8]> for Frozen {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as in `RegionMut::as_slice`; nobody writes any more, because the `RegionMut` was consumed.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().as_ptr(), self.len) }
    }
}

/// Size of the huge pages of x86-64 and of most ARM systems, in bytes.
const HUGE_PAGE: usize = 2 << 20;

/// A zero-sized value with the alignment of a region, for the address of an empty one.
#[repr(align(64))]
struct Aligned;

/// The address of an empty region.
pub(crate) const fn nowhere() -> NonNull<u8> {
    NonNull::<Aligned>::dangling().cast()
}

/// Process memory from the global allocator.
struct HeapMemory {
    ptr: NonNull<u8>,
    layout: Layout,
}

impl HeapMemory {
    fn allocate(capacity: usize) -> Result<Self> {
        // From two huge pages on, whole ones: a fault for each 4 KiB costs more than writing them.
        let align = if capacity >= 2 * HUGE_PAGE { HUGE_PAGE } else { ALIGNMENT };
        let layout = Layout::from_size_align(capacity, align)
            .map_err(|_| Error::new(ErrorKind::TooLarge, "reserve", format!("{capacity} bytes")))?;
        if capacity == 0 {
            // A dangling but aligned pointer, as an empty slice wants; never passed to the allocator.
            return Ok(Self { ptr: nowhere(), layout });
        }
        // SAFETY: the layout has a size other than zero.
        match NonNull::new(unsafe { alloc::alloc(layout) }) {
            Some(ptr) => {
                if cfg!(not(miri)) && align == HUGE_PAGE {
                    // SAFETY: the range lies in the block just allocated, and the advice changes no content. Whether the
                    // kernel has such pages shows in speed alone, so its answer does not matter.
                    let _ = unsafe {
                        madvise(ptr.as_ptr().cast(), capacity / HUGE_PAGE * HUGE_PAGE, Advice::LinuxHugepage)
                    };
                }
                Ok(Self { ptr, layout })
            }
            None => Err(Error::new(ErrorKind::NoSpace, "reserve", format!("{capacity} bytes of process memory"))),
        }
    }
}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        if self.layout.size() > 0 {
            // SAFETY: allocated in `allocate` with this layout, freed only here.
            unsafe { alloc::dealloc(self.ptr.as_ptr(), self.layout) };
        }
    }
}

// SAFETY: the block is owned by this value alone, stays where it is, and was allocated with the layout's size and
// alignment, which is `ALIGNMENT`.
unsafe impl Memory for HeapMemory {
    fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    fn capacity(&self) -> usize {
        self.layout.size()
    }
}

// SAFETY: an owned heap block has no thread affinity, and shared references only read pointer and layout.
unsafe impl Send for HeapMemory {}
// SAFETY: see `Send`.
unsafe impl Sync for HeapMemory {}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn reserve_fill_freeze() {
        let mut region = RegionMut::heap(10).unwrap();
        assert!(region.is_empty() && region.as_ptr_is_aligned());
        region.put_slice(b"hello");
        region.write_all(b"world").unwrap();
        assert_eq!(region.write(b"!").unwrap(), 0, "full");
        assert_eq!(region.as_slice(), b"helloworld");
        let frozen = region.freeze();
        let part = frozen.slice(5..);
        drop(frozen);
        assert_eq!(&part[..], b"world");
    }

    impl RegionMut {
        fn as_ptr_is_aligned(&self) -> bool {
            self.memory.as_ptr().addr().get() % ALIGNMENT == 0
        }
    }

    #[test]
    fn append_writes_what_fits() {
        let mut region = RegionMut::heap(8).unwrap();
        region.put_slice(b"a");
        region.append(|out| {
            assert_eq!((out.push(b'b'), out.extend(b"cdef")), (Some(()), Some(())));
            assert_eq!(
                (out.extend(b"ghi"), out.extend(b"gh"), out.push(b'i'), out.extend(b"")),
                (None, Some(()), None, Some(()))
            );
        });
        assert_eq!(region.as_slice(), b"abcdefgh");
    }

    #[test]
    fn zero_length() {
        let region = RegionMut::heap(0).unwrap().freeze();
        assert!(region.is_empty());
        assert_eq!(Region::copy_from_slice(&[]).unwrap(), Region::default());
    }

    #[test]
    fn initialize_keeps_what_was_written_and_zeroes_the_rest() {
        let mut region = RegionMut::heap(8).unwrap();
        region.put_slice(b"ab");
        assert_eq!(region.initialize(), b"ab\0\0\0\0\0\0");
        region.initialize()[7] = b'z';
        assert_eq!(&*region.freeze(), b"ab\0\0\0\0\0z");
    }

    #[test]
    fn spare_capacity_revokes_initialisation() {
        struct Counted(Vec<u8>);
        // SAFETY: a capacity of 0 grants nothing, so only the alignment of the pointer could matter, and nobody asks here.
        unsafe impl Memory for Counted {
            fn as_ptr(&self) -> NonNull<u8> {
                NonNull::from(&self.0[0])
            }
            fn capacity(&self) -> usize {
                0
            }
            fn initialized(&self) -> usize {
                100
            }
        }
        let region = RegionMut::new(Box::new(Counted(vec![1])));
        assert_eq!(region.initialized, 0, "a claim beyond the capacity is cut");

        let mut region = RegionMut::heap(4).unwrap();
        region.initialize();
        region.len = 1;
        region.spare_capacity_mut()[0] = MaybeUninit::uninit();
        assert_eq!(region.initialized, 1);
        assert_eq!(region.initialize(), [0; 4]);
    }

    #[test]
    fn misaligned_owner_is_refused() {
        let aligned = Region::copy_from_slice(&[1; 128]).unwrap();
        assert_eq!(Region::try_from(aligned.slice(1..)).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Region::try_from(aligned.slice(64..)).unwrap().len(), 64);
    }

    #[test]
    fn too_large_is_an_error() {
        assert_eq!(RegionMut::heap(usize::MAX).unwrap_err().kind(), ErrorKind::TooLarge);
        #[cfg(not(miri))]
        assert_eq!(RegionMut::heap(1 << 62).unwrap_err().kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn owner_is_released_by_the_last_clone() {
        struct Owner(Region, Arc<AtomicUsize>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.0
            }
        }
        impl Drop for Owner {
            fn drop(&mut self) {
                self.1.fetch_add(1, Ordering::Relaxed);
            }
        }
        let drops = Arc::new(AtomicUsize::new(0));
        let owner = Owner(Region::copy_from_slice(&[9; 64]).unwrap(), Arc::clone(&drops));
        let region = Region::from_owner(owner).unwrap();
        let (second, part) = (region.clone(), region.slice(3..5));
        drop((region, second));
        assert_eq!(drops.load(Ordering::Relaxed), 0);
        assert_eq!(&part[..], [9, 9]);
        drop(part);
        assert_eq!(drops.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn connectors_recognise_their_own_memory() {
        struct Own(HeapMemory);
        // SAFETY: delegates to `HeapMemory`.
        unsafe impl Memory for Own {
            fn as_ptr(&self) -> NonNull<u8> {
                self.0.as_ptr()
            }
            fn capacity(&self) -> usize {
                self.0.capacity()
            }
        }
        let mut own = RegionMut::new(Box::new(Own(HeapMemory::allocate(4).unwrap())));
        own.put_slice(b"abc");
        let copy = own.into_heap().unwrap();
        assert_eq!(copy.as_slice(), b"abc");
        assert!(!copy.is_memory::<Own>());
        let mut own = RegionMut::new(Box::new(Own(HeapMemory::allocate(4).unwrap())));
        own.put_slice(b"abc");
        let (_, len) = own.into_memory::<Own>().unwrap();
        assert_eq!(len, 3);
        let foreign = RegionMut::heap(4).unwrap();
        assert!(foreign.into_memory::<Own>().is_err());
    }
}
