//! `Model`: an arena as a map of lines, and random steps on both.

use proptest::prelude::*;

use super::*;

/// One entry for each 64 bytes of each segment.
pub(super) struct Model {
    used: Vec<Vec<bool>>,
    holes: Vec<Vec<bool>>,
    live: Vec<(Place, Class)>,
}

impl Model {
    pub(super) fn new(segments: &[(u16, u64)]) -> Self {
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
        let solid = Self::set(&mut self.holes, place, capacity, true);
        assert!(cold || solid, "{class:?} at {place:?} is not known to be cold");
        Self::set(&mut self.holes, place, capacity, false);
        self.live.push((place, class));
        Some(cell)
    }

    fn free(&mut self, arena: &mut Arena, index: usize) {
        let (place, class) = self.live.swap_remove(index);
        assert!(arena.free(place, class));
        assert!(Self::set(&mut self.used, place, class.capacity(), false));
    }

    /// All memory is either in use or free in exactly one place, and all counts say so.
    pub(super) fn check(&self, arena: &Arena) {
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

/// Segment, line and class of a cell anywhere, or of one that likely meets others.
fn forged() -> impl Strategy<Value = (u16, u64, u16)> {
    prop_oneof![(0u16..6, 0u64..20_000, 0u16..40), (0u16..1, 0u64..20, 0u16..4)]
}

pub(super) const SEGMENTS: [(u16, u64); 3] = [(0, 1 << 20), (3, (4 << 20) + 192), (2, 600 << 10)];

pub(super) fn arena() -> Arena {
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
    fn rebuild_keeps_the_first(cells in prop::collection::vec(forged(), 0..60)) {
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
