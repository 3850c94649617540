//! `Arena`: the service's own allocator of cells and extents.

use std::collections::BTreeMap;

use crate::service::arena::extents::{Extents, after};
use crate::shm::class::{CELL_UNIT, Class, Place};

mod extents;
#[cfg(test)]
mod model;

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
    /// O(n log n): about 0.1 s for 10^6 cells with a gap behind each.
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
    /// costs, which is little while nothing was freed since the last time, and O(n) if some memory is cold.
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

    /// Gives a cell back: to the list of its class, a quarter of which goes to the extents when it is full.
    ///
    /// Returns whether it was taken back. A cell that is not within a segment is refused, and so is one that overlaps an
    /// extent. That is not every double free: one that meets its twin in a list is not seen, so place and class have to come
    /// from memory that no client can write.
    ///
    /// # Cost
    /// O(1) to the list. Once in a quarter of a list, of at most 4096 cells, O(log n) for each of them: a few milliseconds
    /// among 10^6 extents. Cells that have no list, O(log n).
    pub(crate) fn free(&mut self, place: Place, class: Class) -> bool {
        let capacity = class.capacity();
        if capacity == 0 {
            return true;
        }
        if !self.contains(place, capacity) {
            return false;
        }
        let index = class.index();
        if index >= LISTED {
            return self.give(place, capacity, false);
        }
        let listed = self.lists[index].len();
        if (listed as u64 + 1) * capacity > LIST {
            self.spill(class, listed.div_ceil(4));
        }
        self.lists[index].push(Cell { place, cold: false });
        self.count(place.segment(), capacity, true);
        true
    }

    /// Gives a cell back that was cold, and whose pages could not be reserved. Otherwise as [`Arena::free`].
    pub(crate) fn free_cold(&mut self, place: Place, class: Class) -> bool {
        let capacity = class.capacity();
        capacity == 0 || (self.contains(place, capacity) && self.give(place, capacity, true))
    }

    /// Empties the lists into the extents, where neighbours merge.
    ///
    /// # Cost
    /// O(k log n) for k cells in lists, among n extents: tens of milliseconds when all are full, with 60,000 cells.
    pub(crate) fn coalesce(&mut self) {
        for index in 0..LISTED {
            if let Some(class) = Class::from_index(index as u16) {
                self.spill(class, self.lists[index].len());
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

    /// Gives memory to the extents. Returns `false` if some of it is there.
    fn give(&mut self, place: Place, len: u64, cold: bool) -> bool {
        let given = self.extents.insert(place, len, cold);
        if given {
            self.count(place.segment(), len, true);
        }
        given
    }

    /// Moves the `n` cells that are longest in the list of `class` to the extents, in the order of addresses: neighbours
    /// go as one, and the trees are walked and not jumped about in.
    fn spill(&mut self, class: Class, n: usize) {
        let capacity = class.capacity();
        let mut cells: Vec<Cell> = self.lists[class.index()].drain(..n).collect();
        cells.sort_unstable_by_key(|cell| cell.place);
        for cell in &cells {
            self.count(cell.place.segment(), capacity, false);
        }
        cells.dedup_by_key(|cell| cell.place);
        for run in cells.chunk_by(|a, b| after(a.place, capacity) == b.place && a.cold == b.cold) {
            // What is refused was freed twice: it is in an extent, or in the list of another class. The rest of the run is
            // lost until the next rebuild, which is better than to hand out one cell to two.
            self.give(run[0].place, run.len() as u64 * capacity, run[0].cold);
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
    use super::model::{Model, SEGMENTS, arena};
    use super::*;

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
        assert!(arena.lists[class.index()].len() as u64 * 128 <= LIST);
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
    fn cold_memory_comes_last() {
        let mut arena = Arena::new();
        arena.add_segment(0, 1 << 20);
        assert_eq!(arena.cool(PAGE, 2 << 20), []);
        assert_eq!(arena.cool(PAGE, 1 << 20), [(Place::new(0, 0), 1 << 20)]);
        let (block, page) = (Class::of(RUN).unwrap(), Class::of(PAGE).unwrap());
        let cells = [arena.allocate(block).unwrap(), arena.allocate(block).unwrap()];
        assert!(cells.iter().all(|cell| cell.cold));
        // The first was reserved; the second could not be.
        assert!(arena.free_cold(cells[1].place, block) && arena.free(cells[0].place, block));
        arena.coalesce();
        let warm = (0..RUN / PAGE).map(|_| arena.allocate(page).unwrap());
        assert!(warm.into_iter().all(|cell| !cell.cold && cell.place.offset() < RUN));
        assert!(arena.allocate(page).unwrap().cold);
    }

    #[test]
    fn a_piece_that_is_cold_in_parts_is_one_piece() {
        let mut arena = Arena::new();
        arena.add_segment(0, 1 << 20);
        arena.cool(PAGE, PAGE);
        let (block, whole) = (Class::of(RUN).unwrap(), Class::of(1 << 20).unwrap());
        let place = arena.allocate(block).unwrap().place;
        assert!(arena.allocate(whole).is_none() && arena.free(place, block));
        assert_eq!(arena.allocate(whole), Some(Cell { place: Place::new(0, 0), cold: true }));
        assert_eq!((arena.free_bytes(), arena.largest_free()), (0, 0));
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
        arena.add_segment(4, 63);
        arena.add_segment(5, 100);
        Model::new(&[SEGMENTS[0], SEGMENTS[1], SEGMENTS[2], (5, 64)]).check(&arena);
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

        // Past the lists: what comes from the extents is replaced by a cell somewhere else.
        let start = Instant::now();
        for i in 0..CELLS / 2 {
            let cell = arena.carve_from(class, false).unwrap();
            std::hint::black_box(cell);
            let live = cells[2 * scattered(i) + 1];
            assert!(arena.extents.insert(live, 128, false));
        }
        println!("pair through extents: {:.0} ns", start.elapsed().as_nanos() as f64 / (CELLS / 2) as f64);

        let mut live: Vec<_> = (0..CELLS).map(|i| (cells[2 * scattered(i) + 1], class, i as u32)).collect();
        live.rotate_left(12_345);
        let start = Instant::now();
        let (mut arena, refused) = Arena::rebuild(&[(0, 1 << 30)], live);
        println!("rebuild: {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
        assert!(refused.is_empty() && arena.free_bytes() == (1 << 30) - 128 * CELLS as u64);

        let start = Instant::now();
        for &place in cells.iter().skip(1).step_by(2) {
            assert!(arena.free(place, class));
        }
        println!("free, in order: {:.0} ns", start.elapsed().as_nanos() as f64 / CELLS as f64);
        arena.coalesce();
        assert_eq!(arena.largest_free(), 1 << 30);

        // As a service sees it: 10^6 live cells of mixed classes, of which half are freed at random, and allocated again.
        let mut arena = Arena::new();
        arena.add_segment(0, 40 << 30);
        let class = |i: usize| Class::of(1 + (i * 7919 % 16384) as u64).unwrap();
        let mut live: Vec<_> = (0..CELLS).map(|i| (arena.allocate(class(i)).unwrap().place, class(i))).collect();
        for i in 0..CELLS {
            live.swap(i, scattered(i));
        }
        for round in 0..3 {
            let start = Instant::now();
            for &(place, class) in &live[..CELLS / 2] {
                assert!(arena.free(place, class));
            }
            let freed = start.elapsed();
            let start = Instant::now();
            for (i, cell) in live[..CELLS / 2].iter_mut().enumerate() {
                *cell = (arena.allocate(class(i)).unwrap().place, class(i));
            }
            let half = CELLS as u128 / 2;
            println!(
                "half of 10^6 mixed cells, round {round}: free {} ns, allocate {} ns",
                freed.as_nanos() / half,
                start.elapsed().as_nanos() / half
            );
        }
    }
}
