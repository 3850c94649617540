//! `Extents`: free memory in pieces, by address and by length.

use std::collections::{BTreeMap, BTreeSet};

use crate::shm::class::{CELL_UNIT, Place};

/// Pieces of free memory, each warm or cold. Those that touch and have one temperature are one.
#[derive(Default)]
pub(crate) struct Extents {
    by_place: BTreeMap<Place, Extent>,
    /// The same by length, and then by place: the warm ones, the cold ones.
    by_len: [BTreeSet<(u64, Place)>; 2],
}

/// A piece, which starts where its key says.
#[derive(Copy, Clone)]
struct Extent {
    len: u64,
    cold: bool,
}

impl Extents {
    /// Makes warm extents of pieces in the order of places, none of which touch.
    ///
    /// # Cost
    /// O(n log n) for the order of lengths; both trees are then built from the leaves up.
    pub(crate) fn from_pieces(pieces: Vec<(Place, u64)>) -> Self {
        let by_place = pieces.iter().map(|&(place, len)| (place, Extent { len, cold: false })).collect();
        let by_len = [pieces.into_iter().map(|(place, len)| (len, place)).collect(), BTreeSet::new()];
        Self { by_place, by_len }
    }

    /// Adds an extent, merged with neighbours of its temperature. Returns `false` if some of it is in an extent already.
    ///
    /// # Cost
    /// O(log n).
    pub(crate) fn insert(&mut self, place: Place, len: u64, cold: bool) -> bool {
        let end = after(place, len);
        let mut around = self.by_place.range(..=end).rev().map(|(&start, &extent)| (start, extent));
        let mut before = around.next();
        let behind = before.filter(|&(start, _)| start == end);
        if behind.is_some() {
            before = around.next();
        }
        if before.is_some_and(|(start, extent)| after(start, extent.len) > place) {
            return false;
        }
        let by_len = &mut self.by_len[usize::from(cold)];
        let mut merged = len;
        if let Some((start, extent)) = behind.filter(|(_, extent)| extent.cold == cold) {
            self.by_place.remove(&start);
            by_len.remove(&(extent.len, start));
            merged += extent.len;
        }
        let mut first = place;
        if let Some((start, extent)) =
            before.filter(|&(start, extent)| extent.cold == cold && after(start, extent.len) == place)
        {
            by_len.remove(&(extent.len, start));
            merged += extent.len;
            first = start;
        }
        by_len.insert((merged, first));
        self.by_place.insert(first, Extent { len: merged, cold });
        true
    }

    /// Takes a cell of `capacity` from the extent that fits best, and as many of those that follow as make `run` bytes.
    ///
    /// Returns the first and how many there are. It lies at a multiple of `align` if such a place is found, of 2 MiB if it
    /// is that large and an end of the extent is one.
    ///
    /// # Cost
    /// O(log n).
    pub(crate) fn carve(&mut self, capacity: u64, align: u64, run: u64, cold: bool) -> Option<(Place, u64)> {
        let (len, extent) = best_fit(&self.by_len[usize::from(cold)], capacity, align)?;
        let start = start_within(extent.offset(), len, capacity, align);
        let room = extent.offset() + len - start;
        let count = (room.min(run) / capacity).max(1);
        let place = Place::new(extent.segment(), start);
        self.cut(extent, place, count * capacity);
        Some((place, count))
    }

    /// Cuts out `[from, from + len)`, which is all in extents, possibly in several.
    pub(crate) fn take(&mut self, from: Place, len: u64) {
        let end = after(from, len);
        let mut at = from;
        while at < end {
            let Some((&start, extent)) = self.by_place.range(..=at).next_back() else { return };
            let stop = after(start, extent.len).min(end);
            self.cut(start, at, stop.offset() - at.offset());
            at = stop;
        }
    }

    /// Whether all of `[from, from + len)`, which is in extents, is cold.
    pub(crate) fn is_cold(&self, from: Place, len: u64) -> bool {
        let first = self.by_place.range(..=from).next_back();
        // Cold extents that touch are one.
        first.is_some_and(|(&start, extent)| extent.cold && after(start, extent.len) >= after(from, len))
    }

    /// Pieces of contiguous memory in the extents, whatever their temperature.
    pub(crate) fn spans(&self) -> impl Iterator<Item = (Place, u64)> {
        let mut extents = self.by_place.iter().map(|(&place, extent)| (place, extent.len)).peekable();
        std::iter::from_fn(move || {
            let (place, mut len) = extents.next()?;
            while let Some((_, more)) = extents.next_if(|&(next, _)| next == after(place, len)) {
                len += more;
            }
            Some((place, len))
        })
    }

    /// Whether some of it is cold.
    pub(crate) fn any_cold(&self) -> bool {
        !self.by_len[1].is_empty()
    }

    /// The longest of `spans`.
    ///
    /// # Cost
    /// O(log n); O(n) if some of it is cold.
    pub(crate) fn longest(&self) -> u64 {
        if self.any_cold() {
            self.spans().map(|(_, len)| len).max().unwrap_or(0)
        } else {
            self.by_len[0].last().map_or(0, |&(len, _)| len)
        }
    }

    /// Cuts `[from, from + len)` out of the extent that starts at `extent` and holds it.
    fn cut(&mut self, extent: Place, from: Place, len: u64) {
        let Some(Extent { len: whole, cold }) = self.by_place.remove(&extent) else { return };
        let by_len = &mut self.by_len[usize::from(cold)];
        by_len.remove(&(whole, extent));
        let head = from.offset() - extent.offset();
        let tail = whole - head - len;
        for (place, len) in [(extent, head), (after(from, len), tail)] {
            if len > 0 {
                by_len.insert((len, place));
                self.by_place.insert(place, Extent { len, cold });
            }
        }
    }
}

/// The shortest extent that holds a cell; where extents are too many to look at all, one that is long enough wherever it
/// starts; if there is none, the shortest that holds the cell without its alignment.
fn best_fit(by_len: &BTreeSet<(u64, Place)>, capacity: u64, align: u64) -> Option<(u64, Place)> {
    let mut fitting = by_len.range((capacity, Place::from_bits(0))..);
    let shortest = *fitting.next()?;
    let aligned = |&(len, place): &(u64, Place)| {
        let start = place.offset();
        start.next_multiple_of(align) + capacity <= start + len
    };
    if aligned(&shortest) {
        return Some(shortest);
    }
    let found = fitting.take(LOOKED_AT).find(|extent| aligned(extent));
    let found = found.or_else(|| by_len.range((capacity + align - CELL_UNIT, Place::from_bits(0))..).next());
    Some(found.copied().unwrap_or(shortest))
}

/// Where in the extent `[start, start + len)` a cell is put.
fn start_within(start: u64, len: u64, capacity: u64, align: u64) -> u64 {
    let end = start + len;
    let front = start.next_multiple_of(align);
    if front + capacity > end {
        return start;
    }
    let back = end - capacity;
    if capacity >= HUGE_PAGE && front % HUGE_PAGE != 0 && back % HUGE_PAGE == 0 { back } else { front }
}

/// The place `len` bytes behind `place`.
pub(crate) fn after(place: Place, len: u64) -> Place {
    Place::from_bits(place.to_bits() + len / CELL_UNIT)
}

const HUGE_PAGE: u64 = 2 << 20;
/// How many extents that are long enough, but start badly, a search passes before it looks for longer ones.
const LOOKED_AT: usize = 16;

#[cfg(test)]
impl Extents {
    /// First byte, length and whether it is cold.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Place, u64, bool)> {
        self.by_place.iter().map(|(&place, extent)| (place, extent.len, extent.cold))
    }

    /// Both trees hold the same, and neighbours are merged.
    pub(crate) fn check(&self) {
        for (&place, extent) in &self.by_place {
            assert!(self.by_len[usize::from(extent.cold)].contains(&(extent.len, place)), "{place:?} by its length");
            let next = self.by_place.get(&after(place, extent.len));
            assert!(next.is_none_or(|next| next.cold != extent.cold), "{place:?} is not merged");
        }
        assert_eq!(self.by_place.len(), self.by_len.iter().map(BTreeSet::len).sum::<usize>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_that_fits_is_used_first() {
        let mut extents = Extents::default();
        for (offset, len) in [(0, 4096), (1 << 20, 128), (2 << 20, 64), (3 << 20, 256)] {
            assert!(extents.insert(Place::new(0, offset), len, false));
        }
        let mut next = |capacity| extents.carve(capacity, 64, 64, false).map(|(place, _)| place.offset());
        assert_eq!([next(64), next(128), next(64), next(256)], [2 << 20, 1 << 20, 3 << 20, 0].map(Some));
    }

    #[test]
    fn a_place_that_is_aligned_is_found_behind_many_that_are_not() {
        for misplaced in [1, LOOKED_AT as u64 - 1, 3 * LOOKED_AT as u64] {
            let mut extents = Extents::default();
            for i in 0..misplaced {
                assert!(extents.insert(Place::new(0, (i << 20) + 64), 4096 + i * 64, false));
            }
            assert!(extents.insert(Place::new(1, 64), 8192, false));
            assert_eq!(extents.carve(4096, 4096, 4096, false), Some((Place::new(1, 4096), 1)));
            // None is left that is aligned, and memory is not refused for that.
            assert_eq!(extents.carve(4096, 4096, 4096, false), Some((Place::new(0, 64), 1)));
        }
    }
}
