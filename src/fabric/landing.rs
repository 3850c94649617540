//! `Landing`: a part of a reservation that one transfer writes.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use bytes::BufMut;

use crate::error::{Error, ErrorKind, Result};
use crate::region::RegionMut;

/// Memory for some bytes of an answer, the transfer's alone until it is dropped or joined.
///
/// ```text
///   RegionMut ── Parts::of ──> Landing Landing Landing      each written by one transfer, perhaps side by side
///       ^                          │      │       │
///       └────── Parts::join <──────┴──────┴───────┘         only with all of them, written to the end
/// ```
///
/// It counts what was written, so that a region is joined only from landings that are full.
pub(crate) struct Landing {
    start: *mut u8,
    len: usize,
    filled: usize,
    /// Which of the ranges it is.
    range: usize,
    region: Arc<Whole>,
}

/// The reservation behind some landings.
pub(crate) struct Parts {
    whole: Arc<Whole>,
    /// Where each range begins, and its length.
    ranges: Each<(*mut u8, usize)>,
}

/// Holds the region while nobody looks at it: its bytes are the landings'.
struct Whole {
    region: RegionMut,
    /// Which ranges are somebody's.
    lent: Each<AtomicBool>,
}

/// Something of each range; of one, as almost always, without memory of its own.
enum Each<T> {
    One(T),
    All(Box<[T]>),
}

impl<T> Deref for Each<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::All(all) => all,
        }
    }
}

// SAFETY: the memory behind belongs to the holder of the `RegionMut`, which is `Send` and lives in the `Arc`; ranges of
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
    /// One or two allocations; touches no byte of the memory.
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
        let (ranges, lent) = (Each::All(ranges.collect()), Each::All(lent));
        Ok(Self { whole: Arc::new(Whole { region, lent }), ranges })
    }

    /// A range that nobody has, empty: it may have been lent before, to a transfer that failed.
    pub(crate) fn lend(&self, range: usize) -> Option<Landing> {
        let (start, len) = *self.ranges.get(range)?;
        // SYNC POINT: `Landing::drop`. Who had it writes to it no more.
        if self.whole.lent[range].swap(true, Acquire) {
            return None;
        }
        Some(Landing { start, len, filled: 0, range, region: Arc::clone(&self.whole) })
    }

    /// The region with the bytes of its only landing.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub(crate) fn join_one(self, landing: Landing) -> Result<RegionMut> {
        let is_whole = landing.is_full() && Arc::ptr_eq(&landing.region, &self.whole);
        let (len, is_all) = (landing.len, self.ranges.len() == 1);
        drop(landing);
        self.end(is_whole && is_all, len)
    }

    /// The region with the bytes of all its landings.
    ///
    /// # Errors
    /// `Corrupt` when one is missing, another's, or not full; the memory is released with the last of them.
    pub(crate) fn join(self, landings: Vec<Landing>) -> Result<RegionMut> {
        let whole = landings.iter().all(|landing| landing.is_full() && Arc::ptr_eq(&landing.region, &self.whole));
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
            _ => Err(Error::new(ErrorKind::Corrupt, "get", "parts of an answer are missing")),
        }
    }
}

impl Landing {
    /// A landing that is all of a region.
    ///
    /// # Cost
    /// One allocation; touches no byte of the memory.
    ///
    /// # Errors
    /// As [`Parts::of`].
    pub(crate) fn whole(mut region: RegionMut, len: usize) -> Result<(Parts, Self)> {
        if len > region.capacity() || !region.is_empty() {
            let context = format!("a landing of {len} bytes does not fit into {region:?}");
            return Err(Error::new(ErrorKind::TooLarge, "get", context));
        }
        let start = region.spare_capacity_mut().as_mut_ptr().cast::<u8>();
        let whole = Arc::new(Whole { region, lent: Each::One(AtomicBool::new(true)) });
        let landing = Self { start, len, filled: 0, range: 0, region: Arc::clone(&whole) };
        Ok((Parts { whole, ranges: Each::One((start, len)) }, landing))
    }

    pub(crate) fn len(&self) -> usize {
        self.len
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
        // SYNC POINT: `Parts::lend`.
        self.region.lent[self.range].store(false, Release);
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
        let (parts, _) = Landing::whole(RegionMut::heap(2).unwrap(), 2).unwrap();
        let (_others, mut other) = Landing::whole(RegionMut::heap(2).unwrap(), 2).unwrap();
        other.write(b"xy");
        assert_eq!(parts.join(vec![other]).unwrap_err().kind(), ErrorKind::Corrupt);
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
    fn one_landing_is_joined_when_it_is_written_and_the_region_s_own() {
        let whole = |len: usize| Landing::whole(RegionMut::heap(4).unwrap(), len).unwrap();
        let ((parts, mut landing), (others, mut other)) = (whole(3), whole(3));
        landing.write(b"abc");
        other.write(b"xyz");
        assert_eq!(others.join_one(landing).unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(parts.lend(0).is_some() && other.is_full());
        let (parts, mut half) = whole(3);
        half.write(b"ab");
        assert!(parts.lend(0).is_none());
        assert_eq!(parts.join_one(half).unwrap_err().kind(), ErrorKind::Corrupt);
        let (parts, mut landing) = whole(3);
        landing.write(b"abc");
        assert_eq!(parts.join_one(landing).unwrap().as_slice(), b"abc");
        let (parts, mut landings) = Parts::of(RegionMut::heap(4).unwrap(), &[2, 2]).unwrap();
        assert!(landings.iter_mut().all(|landing| landing.write(b"ab") == 2));
        assert_eq!(parts.join_one(landings.remove(0)).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(Landing::whole(RegionMut::heap(4).unwrap(), 5).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn writes_end_at_the_landing() {
        let (parts, mut landing) = Landing::whole(RegionMut::heap(4).unwrap(), 3).unwrap();
        assert_eq!(landing.write(b"abcd"), 3);
        assert_eq!(landing.write(b"e"), 0);
        assert_eq!(parts.join(vec![landing]).unwrap().as_slice(), b"abc");
    }
}
