//! Object bytes in memory: mapped files, and their copies where files cannot be mapped.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::BufMut;
use memmap2::{Mmap, MmapOptions, MmapRaw};

use super::draft::Draft;
use crate::region::{Memory, Region, RegionMut};

/// Maps an object; `None` when this process has so many mapped that the rest of its mappings are better left to others.
///
/// # Cost
/// One system call; pages are read in when they are touched.
pub(super) fn map(file: &File, len: usize) -> io::Result<Option<Region>> {
    let Some(place) = Place::take() else { return Ok(None) };
    // SAFETY: the mapping is shared memory that must not change while a region shows it. Only published objects are
    // mapped here, and those are never written or truncated again: `Directory::publish` consumes the last writable
    // handle, the mode of 0400 refuses another, and removal leaves the bytes to whoever has them open.
    let map = unsafe { MmapOptions::new().len(len).map(file)? };
    Ok(Some(Region::from_owner(Object { map, _place: place })?))
}

/// Reads an object of `len` bytes into process memory; `None` when the file is shorter.
///
/// # Cost
/// One allocation and one copy.
pub(super) fn read(file: &File, len: usize) -> io::Result<Option<Region>> {
    let mut region = RegionMut::heap(len)?;
    while region.has_remaining_mut() {
        let n = match rustix::io::read(file, region.spare_capacity_mut()) {
            Ok((filled, _)) => filled.len(),
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if n == 0 {
            return Ok(None);
        }
        // SAFETY: the kernel has just written the first `n` spare bytes.
        unsafe { region.advance_mut(n) };
    }
    Ok(Some(region.freeze()))
}

struct Object {
    map: Mmap,
    _place: Place,
}

impl AsRef<[u8]> for Object {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

/// One of [`MAX_MAPPED`].
struct Place;

impl Place {
    fn take() -> Option<Self> {
        let place = Self;
        // A place too many goes back at once.
        (MAPPED.fetch_add(1, Ordering::Relaxed) < MAX_MAPPED).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        MAPPED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A reservation: an unpublished file, mapped for writing.
pub(super) struct DraftMemory {
    /// Before the draft, so that the mapping goes first.
    map: MmapRaw,
    draft: Draft,
}

impl DraftMemory {
    /// Maps the first `len` bytes of `draft`, which must have as many.
    pub(super) fn map(draft: Draft, len: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len).map_raw(draft.file())?;
        Ok(Self { map, draft })
    }

    pub(super) fn draft(&self) -> &Draft {
        &self.draft
    }

    /// The first `len` bytes.
    pub(super) fn written(&self, len: usize) -> &[u8] {
        assert!(len <= self.map.len(), "{len} bytes of a reservation of {}", self.map.len());
        // SAFETY: the range lies in the mapping, which `&self` keeps, and all bytes of a file hold a value. Nobody writes:
        // whoever holds this value apart from its `RegionMut` has taken it out of one.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr(), len) }
    }

    /// Unmaps, and cuts the file to the `len` bytes that were written.
    pub(super) fn into_draft(self, len: usize) -> io::Result<Draft> {
        let Self { map, draft } = self;
        let capacity = map.len();
        drop(map);
        if len < capacity {
            draft.file().set_len(len as u64)?;
        }
        Ok(draft)
    }
}

// SAFETY: the mapping stays in place until this value is dropped and begins at a page. It spans bytes that `Draft::reserve`
// gave the file, so no access can end in SIGBUS; the file has no name, or one that nobody else opens, so the holder is
// alone; all bytes of a file hold a value.
unsafe impl Memory for DraftMemory {
    fn as_ptr(&self) -> NonNull<u8> {
        NonNull::new(self.map.as_mut_ptr()).expect("the kernel maps nothing at address zero unless it is asked to")
    }

    fn capacity(&self) -> usize {
        self.map.len()
    }

    fn initialized(&self) -> usize {
        self.map.len()
    }
}

/// Objects that this process has mapped.
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Half of the mappings that Linux grants a process (`vm.max_map_count`, 65530): at the limit not even `malloc` works.
const MAX_MAPPED: usize = 32_768;
