//! `Landing`: a part of a reservation that one transfer writes.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use bytes::BufMut;

use super::Landings;
use crate::error::{Error, ErrorKind, Result};
use crate::region::{RegionMut, Room};

/// Memory for some bytes of an answer, the transfer's alone until it is dropped or joined.
///
/// ```text
///   RegionMut ── Parts::of ──> Landing Landing Landing      each written by one transfer, perhaps side by side
///    ^  ^ │                        │      │       │
///    │  │ │      Parts::join <─────┴──────┴───────┘         only with all of them, written to the end
///    │  └─┼───────────┘
///    │    └── Landing::whole ──> Landing                    the only one, which has the region
///    └──────────────────────────────┘ into_room             when it is written to the end
/// ```
///
/// It counts what was written, so that a region is joined only from landings that are full.
pub(crate) struct Landing {
    start: *mut u8,
    len: usize,
    filled: usize,
    memory: Memory,
}

/// What keeps a landing's memory.
enum Memory {
    /// It is all of that.
    Own(Room),
    /// It is this range of the region.
    Range(usize, Arc<Whole>),
    /// It was given out.
    Gone,
}

/// The reservation behind some landings.
pub(crate) struct Parts {
    whole: Arc<Whole>,
    /// Where each range begins, and its length.
    ranges: Box<[(*mut u8, usize)]>,
}

/// Holds the region while nobody looks at it: its bytes are the landings'.
struct Whole {
    region: RegionMut,
    /// Which ranges are somebody's.
    lent: Box<[AtomicBool]>,
}

// SAFETY: the memory behind belongs to the holder of the `RegionMut`, which is `Send` and lives here or in the `Arc`; ranges of
// different landings do not overlap (`Parts::of` checks that), so no two threads reach the same byte.
unsafe impl Send for Landing {}
// SAFETY: a shared landing tells only its length and how much of it is written.
unsafe impl Sync for Landing {}

// SAFETY: it reaches no byte by itself, and lends each range to one landing at a time.
unsafe impl Send for Parts {}
// SAFETY: as above; who borrows a range is decided by an atomic.
unsafe impl Sync for Parts {}

impl Parts {
    /// Lends the first bytes of an empty region's memory as landings of these lengths, one after the other.
    ///
    /// # Cost
    /// Three allocations; touches no byte of the memory.
    ///
    /// # Errors
    /// `TooLarge` when they do not fit.
    pub(crate) fn of(region: RegionMut, lens: &[usize]) -> Result<(Self, Vec<Landing>)> {
        let parts = Self::cut(region, lens)?;
        let landings = (0..lens.len()).filter_map(|range| parts.lend(range)).collect();
        Ok((parts, landings))
    }

    /// As [`of`](Self::of), without landings: [`lend`](Self::lend) gives them.
    ///
    /// # Errors
    /// As `of`.
    pub(crate) fn cut(mut region: RegionMut, lens: &[usize]) -> Result<Self> {
        let total = lens.iter().try_fold(0usize, |total, len| total.checked_add(*len));
        if total.is_none_or(|total| total > region.capacity()) || !region.is_empty() {
            let context = format!("{} landings do not fit into {region:?}", lens.len());
            return Err(Error::new(ErrorKind::TooLarge, "get", context));
        }
        let base = region.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        let lent = lens.iter().map(|_| AtomicBool::new(false)).collect();
        let mut offset = 0;
        let ranges = lens.iter().map(|len| {
            // SAFETY: `offset + len` is at most the capacity, by the check above.
            let start = unsafe { base.add(offset) };
            offset += len;
            (start, *len)
        });
        Ok(Self { ranges: ranges.collect(), whole: Arc::new(Whole { region, lent }) })
    }

    /// A range that nobody has, empty: it may have been lent before, to a transfer that failed.
    pub(crate) fn lend(&self, range: usize) -> Option<Landing> {
        let (start, len) = *self.ranges.get(range)?;
        // SYNC POINT: `Landing::drop`. Who had it writes to it no more.
        if self.whole.lent[range].swap(true, Acquire) {
            return None;
        }
        Some(Landing { start, len, filled: 0, memory: Memory::Range(range, Arc::clone(&self.whole)) })
    }

    /// The region with the bytes of all its landings.
    ///
    /// # Errors
    /// `Corrupt` when one is missing, another's, or not full; the memory is released with the last of them.
    pub(crate) fn join(self, landings: impl Into<Landings>) -> Result<RegionMut> {
        let landings = landings.into();
        let is_ours =
            |landing: &Landing| matches!(&landing.memory, Memory::Range(_, whole) if Arc::ptr_eq(whole, &self.whole));
        let whole = landings.iter().all(|landing| landing.is_full() && is_ours(landing));
        let len: usize = landings.iter().map(|landing| landing.len).sum();
        // All are lent and each to one: as many as there are is all of them.
        let complete = whole && landings.len() == self.ranges.len();
        drop(landings);
        self.end(complete, len)
    }

    fn end(self, is_complete: bool, len: usize) -> Result<RegionMut> {
        match Arc::try_unwrap(self.whole) {
            Ok(Whole { mut region, .. }) if is_complete => {
                // SAFETY: the landings covered the first `len` bytes one after the other, and all of them are written.
                unsafe { region.advance_mut(len) };
                Ok(region)
            }
            _ => Err(incomplete()),
        }
    }
}

impl Landing {
    /// A landing that is all of a region.
    ///
    /// # Cost
    /// Allocates nothing; touches no byte of the memory.
    ///
    /// # Errors
    /// As [`Parts::of`].
    pub(crate) fn whole(room: impl Into<Room>, len: usize) -> Result<Self> {
        let mut room = room.into();
        if len > room.capacity() || room.len() > 0 {
            let context = format!("a landing of {len} bytes does not fit into {room:?}");
            return Err(Error::new(ErrorKind::TooLarge, "get", context));
        }
        Ok(Self { start: room.spare(), len, filled: 0, memory: Memory::Own(room) })
    }

    /// The memory with its bytes, where it is all of that.
    ///
    /// # Errors
    /// `Corrupt` where it is not full, or a part; then the memory is released.
    pub(crate) fn into_room(mut self) -> Result<Room> {
        match std::mem::replace(&mut self.memory, Memory::Gone) {
            Memory::Own(mut room) if self.is_full() => {
                // SAFETY: all `len` bytes were written, which lie at its beginning.
                unsafe { room.advance(self.len) };
                Ok(room)
            }
            memory => {
                self.memory = memory;
                Err(incomplete())
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether it has all of its memory, and not a range of that.
    #[cfg(feature = "margo")]
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.memory, Memory::Own(_))
    }

    /// Whether every byte was written.
    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.len
    }

    /// How many bytes are missing.
    pub(crate) fn missing(&self) -> usize {
        self.len - self.filled
    }

    /// Addresses of the memory, to find out in which registered segment it lies.
    #[allow(dead_code, reason = "for fabrics over adapters, which register memory; tcp has nothing to register")]
    pub(crate) fn addresses(&self) -> Range<usize> {
        self.start.addr()..self.start.addr() + self.len
    }

    /// First byte, for a mechanism that fills the landing by itself and then calls [`filled`](Self::filled).
    pub(crate) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    /// The unwritten rest, for a call that writes to its start; [`filled`](Self::filled) says how much.
    pub(crate) fn rest(&mut self) -> &mut [std::mem::MaybeUninit<u8>] {
        // SAFETY: `filled <= len` bytes behind `start` are this landing's alone; `MaybeUninit` makes no claim on the content.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(self.filled).cast(), self.len - self.filled) }
    }

    /// Notes that the next `bytes` are written.
    ///
    /// # Safety
    /// They are.
    pub(crate) unsafe fn filled(&mut self, bytes: usize) {
        self.filled = (self.filled + bytes).min(self.len);
    }

    /// Writes the next bytes; what does not fit is left.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.missing());
        // SAFETY: `count` bytes are missing, so they lie in this landing's memory, which is no part of `bytes`: that was
        // borrowed from elsewhere while this is borrowed mutably.
        unsafe {
            self.start.add(self.filled).copy_from_nonoverlapping(bytes.as_ptr(), count);
            self.filled(count);
        }
        count
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Memory::Range(range, whole) = &self.memory {
            // SYNC POINT: `Parts::lend`.
            whole.lent[*range].store(false, Release);
        }
    }
}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Landing({} of {} B)", self.filled, self.len)
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Parts({} of {:?})", self.ranges.len(), self.whole.region)
    }
}

fn incomplete() -> Error {
    Error::new(ErrorKind::Corrupt, "get", "parts of an answer are missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_joined_when_all_are_written() {
        let (parts, mut landings) = Parts::of(RegionMut::heap(8).unwrap(), &[3, 0, 5]).unwrap();
        for (landing, bytes) in landings.iter_mut().zip([&b"abc"[..], b"", b"defgh"]) {
            assert_eq!(landing.write(bytes), bytes.len());
        }
        assert_eq!(parts.join(landings).unwrap().as_slice(), b"abcdefgh");
    }

    #[test]
    fn what_is_not_full_is_not_shown() {
        let (parts, mut landings) = Parts::of(RegionMut::heap(8).unwrap(), &[4, 4]).unwrap();
        landings[0].write(b"abcd");
        landings[1].write(b"efg");
        assert_eq!(parts.join(landings).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn landings_of_another_region_are_refused() {
        let one = || Parts::of(RegionMut::heap(2).unwrap(), &[2]).unwrap();
        let (_others, mut others) = one();
        others[0].write(b"xy");
        assert_eq!(one().0.join(others).unwrap_err().kind(), ErrorKind::Corrupt);
        let mut whole = Landing::whole(RegionMut::heap(2).unwrap(), 2).unwrap();
        whole.write(b"xy");
        assert_eq!(one().0.join(vec![whole]).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn landings_missing_are_noticed() {
        let (parts, mut landings) = Parts::of(RegionMut::heap(4).unwrap(), &[2, 2]).unwrap();
        let kept = landings.pop();
        landings[0].write(b"ab");
        assert!(parts.join(landings).is_err());
        drop(kept);
    }

    #[test]
    fn a_range_that_came_back_is_lent_again() {
        let (parts, mut landings) = Parts::of(RegionMut::heap(4).unwrap(), &[2, 2]).unwrap();
        landings[0].write(b"ab");
        landings[1].write(b"x");
        assert!(parts.lend(1).is_none());
        landings.pop();
        let mut again = parts.lend(1).unwrap();
        assert!(parts.lend(1).is_none() && parts.lend(2).is_none());
        assert_eq!(again.write(b"cd"), 2);
        landings.push(again);
        assert_eq!(parts.join(landings).unwrap().as_slice(), b"abcd");
    }

    #[test]
    fn more_than_fits_is_refused() {
        assert_eq!(Parts::of(RegionMut::heap(4).unwrap(), &[3, 2]).unwrap_err().kind(), ErrorKind::TooLarge);
        assert_eq!(Parts::of(RegionMut::heap(4).unwrap(), &[usize::MAX, 2]).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_whole_landing_is_a_region_when_it_is_written() {
        let whole = |len| Landing::whole(RegionMut::heap(4).unwrap(), len).unwrap();
        let (mut half, mut landing) = (whole(3), whole(3));
        half.write(b"ab");
        landing.write(b"abc");
        assert_eq!(half.into_room().unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(landing.into_room().unwrap().as_slice(), b"abc");
        assert!(whole(0).into_room().unwrap().as_slice().is_empty());
        let (_parts, mut landings) = Parts::of(RegionMut::heap(4).unwrap(), &[2, 2]).unwrap();
        assert!(landings.iter_mut().all(|landing| landing.write(b"ab") == 2));
        assert_eq!(landings.remove(0).into_room().unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(Landing::whole(RegionMut::heap(4).unwrap(), 5).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn writes_end_at_the_landing() {
        let mut landing = Landing::whole(RegionMut::heap(4).unwrap(), 3).unwrap();
        assert_eq!(landing.write(b"abcd"), 3);
        assert_eq!(landing.write(b"e"), 0);
        assert_eq!(landing.into_room().unwrap().as_slice(), b"abc");
    }
}
