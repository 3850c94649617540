//! Size classes: the capacities that cells of the arena have.

use std::fmt;

/// One of the capacities that cells have, all multiples of 64 bytes.
///
/// | class | capacities | most that is wasted of an object's length |
/// |---|---|---|
/// | 0 | 0: empty objects, and those that are declared and not yet written | nothing |
/// | 1 to 16 | 64 B to 1 KiB in steps of 64 | 63 B |
/// | 17 to 56 | to 1 MiB, four a doubling | 25 % |
/// | 57 to 440 | to 16 TiB, sixteen a doubling | 6.25 % |
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Class(u16);

impl Class {
    /// How many classes there are: the classes are those with an index below this.
    pub(crate) const COUNT: usize = LARGE + (LARGEST.ilog2() - QUARTERS.ilog2()) as usize * 16;

    /// The class without memory.
    pub(crate) const EMPTY: Self = Self(0);

    /// Returns the smallest class that holds `len` bytes, or `None` above 2^44.
    ///
    /// # Cost
    /// O(1): a shift by the position of the highest bit, no table and no division.
    pub(crate) const fn of(len: u64) -> Option<Self> {
        if len <= LINEAR {
            return Some(Self(len.div_ceil(CELL_UNIT) as u16));
        }
        if len > LARGEST {
            return None;
        }
        // The last byte lies in the interval that the cell has to cover: [2^exponent, 2^(exponent + 1)), cut in equal steps.
        let last = len - 1;
        let exponent = last.ilog2();
        let (first, least, bits) = if last < QUARTERS { (MEDIUM, LINEAR, 2) } else { (LARGE, QUARTERS, 4) };
        let step = (last >> (exponent - bits)) as usize & ((1 << bits) - 1);
        Some(Self((first + (((exponent - least.ilog2()) as usize) << bits) + step) as u16))
    }

    /// Returns the class whose cells have exactly this capacity.
    #[cfg(test)]
    fn of_capacity(capacity: u64) -> Option<Self> {
        Self::of(capacity).filter(|class| class.capacity() == capacity)
    }

    /// Returns the class with this index, as read from memory that others can write.
    pub(crate) fn from_index(index: u16) -> Option<Self> {
        (usize::from(index) < Self::COUNT).then_some(Self(index))
    }

    /// The place of the class in the order of capacities, from 0.
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }

    /// How many bytes a cell holds.
    ///
    /// # Cost
    /// O(1), as [`Class::of`].
    pub(crate) const fn capacity(self) -> u64 {
        let index = self.index();
        if index < MEDIUM {
            return index as u64 * CELL_UNIT;
        }
        let (first, least, bits) = if index < LARGE { (MEDIUM, LINEAR, 2) } else { (LARGE, QUARTERS, 4) };
        let index = index - first;
        let doubling = least << (index >> bits);
        doubling + ((doubling >> bits) * ((index as u64 & ((1 << bits) - 1)) + 1))
    }

    /// How many cells a client leases at once.
    ///
    /// As many as make 256 KiB, between 8 and 1024, for cells up to 1 MiB; then 4 up to 16 MiB, and 1 above. A batch is
    /// thus never more than 64 MiB or one cell. Without memory (class 0) it counts slots alone: 1024.
    pub(crate) const fn batch(self) -> u32 {
        const LEASE: u64 = 256 << 10;
        let capacity = self.capacity();
        if capacity <= LEASE / 1024 {
            1024
        } else if capacity <= LEASE / 8 {
            (LEASE / capacity) as u32
        } else if capacity <= 1 << 20 {
            8
        } else if capacity <= 16 << 20 {
            4
        } else {
            1
        }
    }
}

/// Where a cell lies: `segment << 48 | offset / 64`, in the order of segments and, within one, of offsets.
#[derive(Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place(u64);

impl Place {
    /// The first byte of segment `segment` that is `offset` bytes from its start.
    ///
    /// # Panics
    /// If `offset` is no multiple of 64, or is 2^54 or more: no segment reaches there.
    pub(crate) const fn new(segment: u16, offset: u64) -> Self {
        assert!(offset % CELL_UNIT == 0 && offset >> 54 == 0, "an offset of whole lines within a segment");
        Self(((segment as u64) << 48) | (offset / CELL_UNIT))
    }

    /// The index of the segment.
    pub(crate) const fn segment(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// Bytes from the start of the segment, a multiple of 64.
    pub(crate) const fn offset(self) -> u64 {
        (self.0 & ((1 << 48) - 1)) * CELL_UNIT
    }

    /// The word that stands for it in shared memory.
    pub(crate) const fn to_bits(self) -> u64 {
        self.0
    }

    /// Reads the word back. Every word is some place, not necessarily one within a segment that exists.
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{:#x}", self.segment(), self.offset())
    }
}

/// Cells start at multiples of this, and have multiples of it as capacity: a cache line.
pub(crate) const CELL_UNIT: u64 = 64;
/// The largest capacity of the classes in steps of 64 bytes.
const LINEAR: u64 = 1 << 10;
/// The largest capacity of those with four a doubling.
const QUARTERS: u64 = 1 << 20;
/// The largest capacity of all.
const LARGEST: u64 = 1 << 44;
/// The index of the first class above [`LINEAR`].
const MEDIUM: usize = (LINEAR / CELL_UNIT) as usize + 1;
/// The index of the first class above [`QUARTERS`].
const LARGE: usize = MEDIUM + (QUARTERS.ilog2() - LINEAR.ilog2()) as usize * 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> impl Iterator<Item = Class> {
        (0..Class::COUNT as u16).map(|index| Class::from_index(index).unwrap())
    }

    #[test]
    fn every_class_is_larger_than_the_one_before_and_found_by_its_capacity() {
        assert_eq!((Class::COUNT, MEDIUM, LARGE), (441, 17, 57));
        assert_eq!(Class::EMPTY.capacity(), 0);
        assert_eq!(Class::from_index(Class::COUNT as u16), None);
        let mut before = None;
        for class in all() {
            let capacity = class.capacity();
            assert_eq!(capacity % CELL_UNIT, 0);
            assert!(before.is_none_or(|before| before < capacity), "{class:?}");
            assert_eq!(Class::of(capacity), Some(class));
            assert_eq!(Class::of_capacity(capacity), Some(class));
            // The two ends of what the class holds: the first length above the class before, and its own capacity.
            if let Some(before) = before {
                assert_eq!(Class::of(before + 1), Some(class));
                let wasted = capacity - (before + 1);
                let bound = if capacity <= LINEAR { 63 } else { before / if capacity <= QUARTERS { 4 } else { 16 } };
                assert!(wasted <= bound, "{class:?} wastes {wasted}");
                assert_eq!(Class::of_capacity(capacity - 1), None);
            }
            before = Some(capacity);
        }
        assert_eq!(before, Some(LARGEST));
        assert_eq!(Class::of(LARGEST + 1), None);
        assert_eq!(Class::of(u64::MAX), None);
    }

    #[test]
    fn capacities_that_programs_use_are_classes() {
        for exponent in 6..=44 {
            assert!(Class::of_capacity(1 << exponent).is_some(), "2^{exponent}");
        }
        assert_eq!(Class::of(1025).unwrap().capacity(), 1280);
        assert_eq!(Class::of((1 << 20) + 1).unwrap().capacity(), 17 << 16);
    }

    #[test]
    fn every_length_to_two_mebibytes() {
        let mut expected = 0;
        for len in 0..=2 << 20 {
            let class = Class::of(len).unwrap();
            if class.index() != expected {
                expected += 1;
            }
            assert_eq!(class.index(), expected, "{len}");
            assert!(class.capacity() >= len);
        }
    }

    #[test]
    fn batches_are_bounded_and_shrink() {
        let mut before = u32::MAX;
        for class in all() {
            let batch = class.batch();
            assert!((1..=1024).contains(&batch) && batch <= before, "{class:?}: {batch}");
            let bytes = u64::from(batch) * class.capacity();
            assert!(bytes <= 64 << 20 || batch == 1, "{class:?}: {bytes}");
            before = batch;
        }
        let of = |len| Class::of(len).unwrap().batch();
        assert_eq!([of(64), of(256), of(320), of(4096), of(32 << 10)], [1024, 1024, 819, 64, 8]);
        assert_eq!([of(256 << 10), of(1 << 20), of((1 << 20) + 1), of(16 << 20), of((16 << 20) + 1)], [8, 8, 4, 4, 1]);
    }

    proptest! {
        #[test]
        fn the_smallest_that_fits(exponent in 0u32..45, fill in any::<u64>()) {
            let len = ((1u64 << exponent) | (fill & ((1 << exponent) - 1))).min(LARGEST);
            let class = Class::of(len).unwrap();
            prop_assert!(class.capacity() >= len);
            let before = Class::from_index(class.index() as u16 - 1).unwrap();
            prop_assert!(before.capacity() < len);
        }

        #[test]
        fn places_round_trip(segment in any::<u16>(), line in 0u64..1 << 48, other in any::<(u16, u32)>()) {
            let place = Place::new(segment, line * 64);
            prop_assert_eq!((place.segment(), place.offset()), (segment, line * 64));
            prop_assert_eq!(Place::from_bits(place.to_bits()), place);
            let offset = u64::from(other.1) * 64;
            prop_assert_eq!(place.cmp(&Place::new(other.0, offset)), (segment, line * 64).cmp(&(other.0, offset)));
        }
    }

    #[test]
    #[should_panic(expected = "whole lines")]
    fn a_place_beyond_every_segment() {
        let _ = Place::new(0, 1 << 54);
    }
}
