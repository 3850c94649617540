//! `Arena`: the service's own allocator of cells and extents.

use std::collections::BTreeMap;
use std::mem;

use crate::service::arena::extents::{Extents, after};
use crate::shm::class::{CELL_UNIT, Class, Place};

mod extents;

/// Which memory of the data segments is free.
///
/// Nothing of it is shared: it is derived from the slot table, and [rebuilt](Arena::rebuild) from that. Free memory is in
/// one of two places:
/// ```text
/// lists     class 1: [cell, cell, ..]     cells up to 1 MiB, last freed first out (its lines are still in the caches),
///           class 2: [cell, ..] ..        at most 1 MiB a class
/// extents   [0x0, 0x4000) [0x5000, ..)    everything else, neighbours merged; by address and by length
/// ```
/// An empty list is filled by one run of up to 64 KiB, in the order of addresses, from the extent that fits best: the
/// smallest one that holds a cell, so that holes are filled before large extents are broken.
///
/// A cell is aligned to 64 bytes always; one whose capacity is a multiple of 4096, to that, unless only another place is
/// left; one of 2 MiB and more to 2 MiB where either end of its extent allows it. The five classes between 4 KiB and
/// 16 KiB that are no multiples of 4096 are aligned to the 1 or 2 KiB that their capacity is a multiple of: on pages they
/// would leave up to 37 % of the memory in gaps.
///
/// Cold memory is free memory whose pages were given back to the system ([`Arena::cool`]). It is never merged with warm
/// memory and comes last.
pub(crate) struct Arena {
    segments: Vec<Space>,
    extents: Extents,
    /// Free cells by the index of their class.
    lists: Vec<Vec<Cell>>,
    free: u64,
    total: u64,
}

/// A cell that was allocated.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cell {
    /// Its first byte.
    pub(crate) place: Place,
    /// Whether pages under it may be missing: reserve those that it touches before anyone else learns of it, or hand it
    /// back with [`Arena::free_cold`]. Reserving pages that are there is harmless.
    pub(crate) cold: bool,
}

/// A segment; one that does not exist has no length.
#[derive(Copy, Clone, Default)]
struct Space {
    len: u64,
    free: u64,
}

impl Arena {
    /// An arena without memory.
    pub(crate) fn new() -> Self {
        let lists = vec![Vec::new(); LISTED];
        Self { segments: Vec::new(), extents: Extents::default(), lists, free: 0, total: 0 }
    }

    /// Rebuilds an arena from its segments, as `(index, length)`, and the cells in use, each with a number of the caller's.
    ///
    /// Cells come in any order. One that overlaps another, or reaches out of its segment, is refused: of two the one that
    /// starts first is kept, or the one with the lower number. Returns the numbers of those refused; their memory is free
    /// where no kept cell has it. Cells of class 0 have no memory and are never refused.
    ///
    /// # Cost
    /// O(n log n), about 0.1 s for 10^6 cells.
    pub(crate) fn rebuild(segments: &[(u16, u64)], mut occupied: Vec<(Place, Class, u32)>) -> (Self, Vec<u32>) {
        let mut arena = Self::new();
        let mut spaces = BTreeMap::new();
        for &(segment, len) in segments {
            if arena.register(segment, len) {
                spaces.insert(segment, arena.segments[usize::from(segment)].len);
            }
        }
        occupied.sort_unstable_by_key(|&(place, _, slot)| (place, slot));
        let mut refused = Vec::new();
        let mut gaps = Vec::new();
        let mut cells = occupied.into_iter().filter(|(_, class, _)| *class != Class::EMPTY).peekable();
        for (segment, len) in spaces {
            let mut end = 0;
            let mut used = 0;
            while let Some((place, class, slot)) = cells.next_if(|(place, ..)| place.segment() <= segment) {
                let capacity = class.capacity();
                if place.segment() < segment || place.offset() < end || place.offset() + capacity > len {
                    refused.push(slot);
                    continue;
                }
                if place.offset() > end {
                    gaps.push((Place::new(segment, end), place.offset() - end));
                }
                end = place.offset() + capacity;
                used += capacity;
            }
            if end < len {
                gaps.push((Place::new(segment, end), len - end));
            }
            arena.count(segment, used, false);
        }
        refused.extend(cells.map(|(.., slot)| slot));
        arena.extents = Extents::from_pieces(gaps);
        (arena, refused)
    }

    /// Adds the segment with this index, all free. One that is there already stays as it is.
    pub(crate) fn add_segment(&mut self, segment: u16, len: u64) {
        if self.register(segment, len) {
            let added = self.extents.insert(Place::new(segment, 0), self.segments[usize::from(segment)].len, false);
            debug_assert!(added, "a new segment has no extents");
        }
    }

    /// Takes a cell of `class`: from its list, else from the extent that fits best, warm before cold, else after
    /// [`Arena::coalesce`]. `None` only if no free memory of that length is contiguous.
    ///
    /// Class 0 has no memory: its cells are all at place 0.
    ///
    /// # Cost
    /// O(1) from the list, O(log n) from n extents, once for each run of 64 KiB. When memory runs out also what `coalesce`
    /// costs, and O(n) if some memory is cold.
    pub(crate) fn allocate(&mut self, class: Class) -> Option<Cell> {
        let capacity = class.capacity();
        if capacity == 0 {
            return Some(Cell { place: Place::from_bits(0), cold: false });
        }
        let cell = match self.lists.get_mut(class.index()).and_then(Vec::pop) {
            Some(cell) => cell,
            None => self.carve(class)?,
        };
        self.count(cell.place.segment(), capacity, false);
        Some(cell)
    }

    /// Gives a cell back: to the list of its class while that is short, else to the extents.
    ///
    /// Returns whether it was taken back. A cell that is not within a segment is refused, and so is one that overlaps an
    /// extent. That is not every double free: one that meets its twin in a list is not seen, so place and class have to come
    /// from memory that no client can write.
    ///
    /// # Cost
    /// O(1) to the list, else O(log n).
    pub(crate) fn free(&mut self, place: Place, class: Class) -> bool {
        let capacity = class.capacity();
        if capacity == 0 {
            return true;
        }
        if !self.contains(place, capacity) {
            return false;
        }
        let list = self.lists.get_mut(class.index()).filter(|list| (list.len() as u64 + 1) * capacity <= LIST);
        let taken = match list {
            Some(list) => {
                list.push(Cell { place, cold: false });
                true
            }
            None => self.extents.insert(place, capacity, false),
        };
        if taken {
            self.count(place.segment(), capacity, true);
        }
        taken
    }

    /// Gives a cell back that was cold, and whose pages could not be reserved. Otherwise as [`Arena::free`].
    pub(crate) fn free_cold(&mut self, place: Place, class: Class) -> bool {
        let capacity = class.capacity();
        if capacity == 0 {
            return true;
        }
        let taken = self.contains(place, capacity) && self.extents.insert(place, capacity, true);
        if taken {
            self.count(place.segment(), capacity, true);
        }
        taken
    }

    /// Empties the lists into the extents, where neighbours merge.
    ///
    /// # Cost
    /// O(k log k) for k cells in lists: a few milliseconds when all are full.
    pub(crate) fn coalesce(&mut self) {
        for index in 0..self.lists.len() {
            let mut cells = mem::take(&mut self.lists[index]);
            let Some(class) = Class::from_index(index as u16) else { continue };
            let capacity = class.capacity();
            cells.sort_unstable_by_key(|cell| cell.place);
            cells.dedup_by(|twin, cell| {
                let freed_twice = twin.place == cell.place;
                if freed_twice {
                    self.count(cell.place.segment(), capacity, false);
                }
                freed_twice
            });
            for run in cells.chunk_by(|a, b| after(a.place, capacity) == b.place && a.cold == b.cold) {
                let len = run.len() as u64 * capacity;
                if !self.extents.insert(run[0].place, len, run[0].cold) {
                    // Some of it is in an extent, or in the list of another class. The rest is lost until the next rebuild,
                    // which is better than to hand out one cell to two.
                    self.count(run[0].place.segment(), len, false);
                }
            }
        }
    }

    /// Declares free memory cold: whole multiples of `granule`, at least `min_len` at a time. It stays free.
    ///
    /// The caller gives the pages of the ranges returned, `(first byte, length)`, back to the system. Ranges that are cold
    /// already are not returned again, except as parts of longer ones: memory that was used in between.
    ///
    /// # Cost
    /// O(n) over the extents, after [`Arena::coalesce`].
    ///
    /// # Panics
    /// If `granule` is not a power of two of at least 64.
    pub(crate) fn cool(&mut self, granule: u64, min_len: u64) -> Vec<(Place, u64)> {
        assert!(granule.is_power_of_two() && granule >= CELL_UNIT, "a granule of whole pages");
        self.coalesce();
        let mut ranges = Vec::new();
        for (place, len) in self.extents.spans() {
            let start = place.offset().next_multiple_of(granule);
            let end = (place.offset() + len) & !(granule - 1);
            if start < end && end - start >= min_len {
                ranges.push((Place::new(place.segment(), start), end - start));
            }
        }
        ranges.retain(|&(from, len)| !self.extents.is_cold(from, len));
        for &(from, len) in &ranges {
            self.extents.take(from, len);
            let cooled = self.extents.insert(from, len, true);
            debug_assert!(cooled, "just taken out");
        }
        ranges
    }

    /// Bytes that are free, in lists and extents, warm and cold.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free
    }

    /// Bytes of all segments.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.total
    }

    /// Bytes of one segment that are free: 0 if it does not exist.
    pub(crate) fn segment_free(&self, segment: u16) -> u64 {
        self.segments.get(usize::from(segment)).map_or(0, |space| space.free)
    }

    /// The most bytes that are free in one piece outside the lists: after [`Arena::coalesce`], what `allocate` can give.
    ///
    /// # Cost
    /// O(log n); O(n) if some memory is cold.
    pub(crate) fn largest_free(&self) -> u64 {
        self.extents.longest()
    }

    /// Notes a segment as all free, without its extent. Returns whether it is new.
    fn register(&mut self, segment: u16, len: u64) -> bool {
        // Shorter than what a place can name, so that a segment's end is never the start of the next.
        let len = len.min(LONGEST) & !(CELL_UNIT - 1);
        let index = usize::from(segment);
        if self.segments.len() <= index {
            self.segments.resize(index + 1, Space::default());
        }
        if len == 0 || self.segments[index].len != 0 {
            return false;
        }
        self.segments[index].len = len;
        self.total += len;
        self.count(segment, len, true);
        true
    }

    fn contains(&self, place: Place, len: u64) -> bool {
        self.segments.get(usize::from(place.segment())).is_some_and(|space| place.offset() + len <= space.len)
    }

    /// Counts bytes as free, or as no longer free.
    fn count(&mut self, segment: u16, bytes: u64, free: bool) {
        let space = &mut self.segments[usize::from(segment)];
        if free {
            space.free += bytes;
            self.free += bytes;
        } else {
            space.free -= bytes;
            self.free -= bytes;
        }
    }

    /// A cell from the extents, which leaves the rest of its run in the list.
    fn carve(&mut self, class: Class) -> Option<Cell> {
        for cold in [false, true] {
            if let Some(cell) = self.carve_from(class, cold) {
                return Some(cell);
            }
        }
        self.coalesce();
        for cold in [false, true] {
            if let Some(cell) = self.carve_from(class, cold) {
                return Some(cell);
            }
        }
        // What is left is warm in parts and cold in others.
        if !self.extents.any_cold() {
            return None;
        }
        let (place, _) = self.extents.spans().find(|&(_, len)| len >= class.capacity())?;
        self.extents.take(place, class.capacity());
        Some(Cell { place, cold: true })
    }

    fn carve_from(&mut self, class: Class, cold: bool) -> Option<Cell> {
        let capacity = class.capacity();
        let align = if capacity < PAGE { CELL_UNIT } else { PAGE.min(1 << capacity.trailing_zeros()) };
        let (place, count) = self.extents.carve(capacity, align, RUN, cold)?;
        if count > 1 {
            let rest = (1..count).rev().map(|i| Cell { place: after(place, i * capacity), cold });
            self.lists[class.index()].extend(rest);
        }
        Some(Cell { place, cold })
    }
}

const PAGE: u64 = 4096;
/// What an empty list is filled with at once.
const RUN: u64 = 64 << 10;
/// The most bytes in one list, and thus the largest cells that have a list.
const LIST: u64 = 1 << 20;
/// How many classes have a list.
const LISTED: usize = match Class::of(LIST) {
    Some(class) => class.index() + 1,
    None => 0,
};
/// The longest segment.
const LONGEST: u64 = 1 << 48;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One entry for each 64 bytes of each segment.
    struct Model {
        used: Vec<Vec<bool>>,
        holes: Vec<Vec<bool>>,
        live: Vec<(Place, Class)>,
    }

    impl Model {
        fn new(segments: &[(u16, u64)]) -> Self {
            let mut used = Vec::new();
            for &(segment, len) in segments {
                used.resize(used.len().max(usize::from(segment) + 1), Vec::new());
                used[usize::from(segment)] = vec![false; (len / 64) as usize];
            }
            Self { holes: used.clone(), used, live: Vec::new() }
        }

        /// Sets the lines of a piece. Returns whether there are such lines and all were the other way.
        fn set(map: &mut [Vec<bool>], place: Place, len: u64, to: bool) -> bool {
            let at = (place.offset() / 64) as usize;
            let lines = map.get_mut(usize::from(place.segment())).and_then(|s| s.get_mut(at..at + (len / 64) as usize));
            lines.is_some_and(|lines| {
                let other = lines.iter().all(|&line| line != to);
                lines.fill(to);
                other
            })
        }

        fn longest_free(&self) -> u64 {
            let runs = self.used.iter().flat_map(|s| s.chunk_by(|a, b| a == b));
            runs.filter(|run| !run[0]).map(|run| run.len() as u64 * 64).max().unwrap_or(0)
        }

        fn allocate(&mut self, arena: &mut Arena, class: Class) -> Option<Cell> {
            let capacity = class.capacity();
            let roomy = arena.extents.pieces().any(|(_, len, cold)| !cold && len >= capacity + PAGE - 64)
                && arena.lists.get(class.index()).is_none_or(Vec::is_empty);
            let Some(cell) = arena.allocate(class) else {
                assert!(self.longest_free() < capacity, "{class:?} was refused");
                return None;
            };
            let Cell { place, cold } = cell;
            assert!(Self::set(&mut self.used, place, capacity, true), "{class:?} at {place:?} overlaps or is outside");
            if roomy && capacity % PAGE == 0 {
                assert_eq!(place.offset() % PAGE, 0, "{class:?} at {place:?} with room to be aligned");
            }
            let whole = self.holes.clone();
            Self::set(&mut self.holes, place, capacity, false);
            assert!(cold || self.holes == whole, "{class:?} at {place:?} is not known to be cold");
            self.live.push((place, class));
            Some(cell)
        }

        fn free(&mut self, arena: &mut Arena, index: usize) {
            let (place, class) = self.live.swap_remove(index);
            assert!(arena.free(place, class));
            assert!(Self::set(&mut self.used, place, class.capacity(), false));
        }

        /// All memory is either in use or free in exactly one place, and all counts say so.
        fn check(&self, arena: &Arena) {
            let mut all = self.used.clone();
            arena.extents.check();
            for (place, len, _) in arena.extents.pieces() {
                assert!(Self::set(&mut all, place, len, true), "extent {place:?}, {len:#x}");
            }
            for (index, list) in arena.lists.iter().enumerate() {
                let capacity = Class::from_index(index as u16).unwrap().capacity();
                assert!(list.len() as u64 * capacity <= LIST);
                for cell in list {
                    assert!(Self::set(&mut all, cell.place, capacity, true), "listed {cell:?}, {capacity:#x}");
                }
            }
            let lost = all.iter().flatten().filter(|line| !**line).count();
            assert_eq!(lost, 0, "lines that nobody has");
            let mut free = 0;
            for (index, lines) in self.used.iter().enumerate() {
                let lines = lines.iter().filter(|used| !**used).count() as u64 * 64;
                assert_eq!(arena.segment_free(index as u16), lines, "segment {index}");
                free += lines;
            }
            assert_eq!(arena.free_bytes(), free);
            assert_eq!(arena.total_bytes(), self.used.iter().map(|s| s.len() as u64 * 64).sum::<u64>());
            assert_eq!(arena.total_bytes(), free + self.live.iter().map(|(_, class)| class.capacity()).sum::<u64>());
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Allocate { len: u64, times: usize },
        Free { index: prop::sample::Index, times: usize },
        Unreserved { len: u64 },
        Coalesce,
        Cool { granule: u64, min_len: u64 },
        Rebuild,
    }

    fn len() -> impl Strategy<Value = u64> {
        (0u32..22, any::<u64>()).prop_map(|(bits, fill)| 1 + (fill & ((1 << bits) - 1)))
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (len(), 1usize..40).prop_map(|(len, times)| Step::Allocate { len, times }),
            6 => (any::<prop::sample::Index>(), 1usize..40).prop_map(|(index, times)| Step::Free { index, times }),
            1 => len().prop_map(|len| Step::Unreserved { len }),
            1 => Just(Step::Coalesce),
            1 => (6u32..20, 0u64..1 << 18).prop_map(|(bits, min_len)| Step::Cool { granule: 1 << bits, min_len }),
            1 => Just(Step::Rebuild),
        ]
    }

    const SEGMENTS: [(u16, u64); 3] = [(0, 1 << 20), (3, (4 << 20) + 192), (2, 600 << 10)];

    fn arena() -> Arena {
        let mut arena = Arena::new();
        for (segment, len) in SEGMENTS {
            arena.add_segment(segment, len);
        }
        arena
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn as_the_map_of_lines_says(steps in prop::collection::vec(step(), 1..60)) {
            let (mut arena, mut model) = (arena(), Model::new(&SEGMENTS));
            for step in steps {
                match step {
                    Step::Allocate { len, times } => {
                        let class = Class::of(len).unwrap();
                        for _ in 0..times {
                            if model.allocate(&mut arena, class).is_none() {
                                prop_assert!(arena.largest_free() < class.capacity());
                                break;
                            }
                        }
                    }
                    Step::Free { index, times } => {
                        for _ in 0..times.min(model.live.len()) {
                            let index = index.index(model.live.len());
                            model.free(&mut arena, index);
                        }
                    }
                    Step::Unreserved { len } => {
                        let holes = model.holes.clone();
                        if let Some(cell) = model.allocate(&mut arena, Class::of(len).unwrap()) {
                            let (place, class) = model.live.pop().unwrap();
                            Model::set(&mut model.used, place, class.capacity(), false);
                            model.holes = holes;
                                                        let back = if cell.cold { Arena::free_cold } else { Arena::free };
                            prop_assert!(back(&mut arena, place, class));
                        }
                    }
                    Step::Coalesce => {
                        arena.coalesce();
                        prop_assert!(arena.lists.iter().all(Vec::is_empty));
                        prop_assert_eq!(arena.largest_free(), model.longest_free());
                    }
                    Step::Cool { granule, min_len } => {
                        for (place, len) in arena.cool(granule, min_len) {
                            prop_assert!(place.offset() % granule == 0 && len % granule == 0 && len >= min_len && len > 0);
                            let before = model.holes.clone();
                            Model::set(&mut model.holes, place, len, true);
                            prop_assert!(before != model.holes, "all of it was cold");
                        }
                        prop_assert_eq!(arena.cool(granule, min_len), []);
                    }
                    Step::Rebuild => {
                        let live = model.live.iter().map(|&(place, class)| (place, class, 0)).collect();
                        let (rebuilt, refused) = Arena::rebuild(&SEGMENTS, live);
                        prop_assert!(refused.is_empty());
                        arena = rebuilt;
                        model.holes.iter_mut().for_each(|lines| lines.fill(false));
                    }
                }
                model.check(&arena);
            }
            while !model.live.is_empty() {
                model.free(&mut arena, 0);
            }
            arena.coalesce();
            model.check(&arena);
            let whole: Vec<_> = arena.extents.spans().map(|(place, len)| (place.segment(), len)).collect();
            prop_assert_eq!(whole, [SEGMENTS[0], SEGMENTS[2], SEGMENTS[1]]);
            if !model.holes.iter().flatten().any(|hole| *hole) {
                prop_assert_eq!(arena.extents.pieces().count(), 3);
            }
        }

        #[test]
        fn rebuild_keeps_the_first(cells in prop::collection::vec((0u16..6, 0u64..20_000, 0u16..40), 0..60)) {
            let mut cells: Vec<_> = (0u32..).zip(cells).map(|(slot, (segment, line, class))| {
                (Place::new(segment, line * 64), Class::from_index(class).unwrap(), slot)
            }).collect();
            let (arena, mut refused) = Arena::rebuild(&SEGMENTS, cells.clone());
            let mut model = Model::new(&SEGMENTS);
            let mut expected = Vec::new();
            cells.sort_by_key(|&(place, _, slot)| (place, slot));
            for (place, class, slot) in cells {
                let before = model.used.clone();
                if Model::set(&mut model.used, place, class.capacity(), true) {
                    model.live.push((place, class));
                } else if class != Class::EMPTY {
                    model.used = before;
                    expected.push(slot);
                }
            }
            refused.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(refused, expected);
            model.check(&arena);
        }
    }

    /// What a bump slab would do: one object of 126 bytes in each 64 KiB keeps the rest from everyone.
    #[test]
    fn a_survivor_in_each_run_holds_only_itself() {
        const LEN: u64 = 32 << 20;
        let mut arena = Arena::new();
        arena.add_segment(0, LEN);
        let class = Class::of(126).unwrap();
        let places: Vec<Place> = std::iter::from_fn(|| arena.allocate(class)).map(|cell| cell.place).collect();
        assert_eq!(places.len() as u64, LEN / 128);
        assert!(places.is_sorted(), "runs are carved in the order of addresses");
        for place in places.iter().filter(|place| place.offset() % RUN != 0) {
            assert!(arena.free(*place, class));
        }
        let survivors = LEN / RUN;
        assert_eq!(arena.free_bytes(), LEN - survivors * 128);
        let page = Class::of(PAGE).unwrap();
        let pages = std::iter::from_fn(|| arena.allocate(page)).count() as u64;
        assert_eq!(pages, survivors * 15, "all but the page of the survivor");
        while arena.allocate(class).is_some() {}
        assert_eq!(arena.free_bytes(), 0);
    }

    #[test]
    fn a_lease_of_small_cells_is_one_piece_and_the_last_freed_is_first_out() {
        let mut arena = arena();
        let class = Class::of(1).unwrap();
        let lease: Vec<Place> = (0..class.batch()).map(|_| arena.allocate(class).unwrap().place).collect();
        assert!(lease.windows(2).all(|pair| pair[1] == after(pair[0], 64)));
        assert!(arena.free(lease[7], class) && arena.free(lease[3], class));
        assert_eq!(arena.allocate(class).unwrap().place, lease[3]);
        assert_eq!(arena.allocate(class).unwrap().place, lease[7]);
    }

    #[test]
    fn large_cells_start_on_huge_pages_where_an_end_allows_it() {
        let mut arena = Arena::new();
        arena.add_segment(0, 64 << 20);
        arena.allocate(Class::of(1).unwrap()).unwrap();
        let large = Class::of(4 << 20).unwrap();
        for expected in [60 << 20, 56 << 20] {
            assert_eq!(arena.allocate(large).unwrap().place, Place::new(0, expected));
        }
        assert_eq!(arena.largest_free(), (56 << 20) - RUN, "still one piece");
    }

    #[test]
    fn what_was_never_allocated_is_not_taken_back() {
        let mut arena = arena();
        let (small, large) = (Class::of(64).unwrap(), Class::of(2 << 20).unwrap());
        for place in [Place::new(0, 1 << 20), Place::new(1, 0), Place::new(9, 0), Place::from_bits(u64::MAX)] {
            assert!(!arena.free(place, small) && !arena.free_cold(place, small), "{place:?} is in no segment");
        }
        let place = arena.allocate(large).unwrap().place;
        assert!(!arena.free(Place::new(3, 3 << 20), Class::of(1 << 20).and(Class::of(1100 << 10)).unwrap()));
        assert!(arena.free(place, large));
        assert!(!arena.free(place, large) && !arena.free_cold(place, large), "freed twice");
        let place = arena.allocate(small).unwrap().place;
        assert!(arena.free(place, small) && arena.free(place, small), "not seen in a list");
        arena.coalesce();
        assert!(arena.free(Place::from_bits(u64::MAX), Class::EMPTY), "nothing is given back");
        arena.add_segment(3, 8 << 20);
        Model::new(&SEGMENTS).check(&arena);
    }

    /// `cargo test --release --lib -- --ignored --nocapture arena_figures`
    #[test]
    #[ignore = "prints times; for release builds"]
    fn arena_figures() {
        use std::time::Instant;
        const CELLS: usize = 1_000_000;
        let class = Class::of(128).unwrap();
        let mut arena = Arena::new();
        arena.add_segment(0, 1 << 30);
        let start = Instant::now();
        let cells: Vec<Place> = (0..2 * CELLS).map(|_| arena.allocate(class).unwrap().place).collect();
        println!("first allocation: {:.0} ns a cell", start.elapsed().as_nanos() as f64 / cells.len() as f64);

        let start = Instant::now();
        for _ in 0..CELLS {
            let cell = arena.allocate(class).unwrap();
            assert!(arena.free(std::hint::black_box(cell.place), class));
        }
        println!("pair through the list: {:.1} ns", start.elapsed().as_nanos() as f64 / CELLS as f64);

        // Every second one, in a scattered order, so that nothing merges: 10^6 live cells and as many extents.
        let scattered = |i: usize| i * 611_953 % CELLS;
        let start = Instant::now();
        for i in 0..CELLS {
            assert!(arena.free(cells[2 * scattered(i)], class));
        }
        println!(
            "free into extents: {:.0} ns, now {}",
            start.elapsed().as_nanos() as f64 / CELLS as f64,
            arena.extents.pieces().count()
        );
        arena.coalesce();

        let start = Instant::now();
        for i in 0..CELLS {
            let place = cells[2 * scattered(i)];
            arena.extents.take(place, 128);
            assert!(arena.extents.insert(place, 128, false));
        }
        println!("pair through extents, any place: {:.0} ns", start.elapsed().as_nanos() as f64 / CELLS as f64);
        let start = Instant::now();
        for _ in 0..CELLS {
            let cell = arena.carve_from(class, false).unwrap();
            assert!(arena.extents.insert(cell.place, 128, false));
        }
        println!("pair through extents, best fit: {:.0} ns", start.elapsed().as_nanos() as f64 / CELLS as f64);

        let mut live: Vec<_> = (0..CELLS).map(|i| (cells[2 * scattered(i) + 1], class, i as u32)).collect();
        live.rotate_left(12_345);
        let start = Instant::now();
        let (rebuilt, refused) = Arena::rebuild(&[(0, 1 << 30)], live);
        println!("rebuild: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        assert!(refused.is_empty() && rebuilt.free_bytes() == arena.free_bytes());
    }
}
