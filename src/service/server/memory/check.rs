//! What holds whatever a table says, for fuzzers and tests.

use super::*;
use crate::key::Format;
use crate::shm::table::{BOUND, FoundReplica, Label, Origin, REPLICA};

/// Writes anything over a table in use, and makes a new service take it over.
///
/// The first byte counts objects, three bytes each; then come words to write, eleven bytes each.
///
/// # Panics
/// When two slots get the same memory, or the service panics.
#[doc(hidden)]
pub fn check_rebuild(bytes: &[u8]) {
    let Ok(mut memory) = Memory::create(64 << 20, true) else { return };
    let Ok(page) = memory.page(STAYS) else { return };
    let cell = page * memory.table.layout().cells;
    let (count, rest) = bytes.split_first().map_or((0, bytes), |(count, rest)| (usize::from(*count) % 64, rest));
    let (objects, words) = rest.split_at(rest.len().min(count * 3));
    for object in objects.chunks_exact(3) {
        fill(&mut memory, cell, object[0], u16::from_le_bytes([object[1], object[2]]));
    }
    for word in words.chunks_exact(11) {
        let value = word[3..].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        scribble(&memory, word[0], u32::from(u16::from_le_bytes([word[1], word[2]])), value);
    }
    let Ok(ctl) = memory.ctl.try_clone() else { return };
    let segments =
        memory.segments.iter().filter_map(|(index, segment)| Some((*index, segment.try_clone().ok()?))).collect();
    let budget = memory.budget;
    drop(memory);
    let Ok(mut memory) = Memory::rebuild(ctl, segments, budget, |tag| tag != ENDED) else { return };
    assert_disjoint(memory.cells());
    for len in [0, 100, 5000, 1 << 20] {
        if let Some(class) = Class::of(len) {
            let _ = memory.lease(STAYS, class, 50, 1, Effort::Free);
        }
    }
    memory.sweep(|owner| owner == ENDED);
    memory.bury(ENDED);
    memory.expire();
    memory.trim_replicas();
    memory.displace_replicas(1 << 20);
    memory.displace(1 << 20);
    look_for_replicas(&memory, cell);
    let _ = memory.collect();
    assert_disjoint(memory.cells());
}

/// Cells of memory, none of which may reach into another.
pub(super) fn assert_disjoint(mut cells: Vec<(Place, Class)>) {
    cells.retain(|(_, class)| *class != NO_MEMORY);
    cells.sort_unstable();
    for pair in cells.windows(2) {
        let end = pair[0].0.offset() + pair[0].1.capacity();
        assert!(pair[0].0.segment() != pair[1].0.segment() || end <= pair[1].0.offset(), "{pair:?}");
    }
}

impl Memory {
    /// The cells that somebody has, by the record.
    pub(super) fn cells(&self) -> Vec<(Place, Class)> {
        self.slots.iter().filter(|held| held.owner != 0).map(|held| (held.place, held.class)).collect()
    }
}

/// A client looks for all that it could have landed: nothing, or an object of which the slot says that it is a replica.
fn look_for_replicas(memory: &Memory, cell: u32) {
    for n in 0..ORIGINS {
        if let FoundReplica::Landed(object, _) = memory.table.find_replica(cell, origin(n)) {
            assert!(object.label.flags & REPLICA != 0, "{object:?}");
        }
        memory.table.unpin(cell);
    }
}

fn origin(n: u32) -> Origin {
    Origin { instance: 7, id: Id { slot: n % ORIGINS, generation: 1 } }
}

/// A slot in some state.
fn fill(memory: &mut Memory, cell: u32, what: u8, len: u16) {
    let len = if what & 8 == 0 { u64::from(len) } else { 0 };
    let owner = if what & 1 == 0 { ENDED } else { STAYS };
    let Some(Ok((slots, _))) = Class::of(len).map(|class| memory.lease(owner, class, 1, 1, Effort::Grow)) else {
        return;
    };
    let id = Id { slot: slots[0], generation: memory.slots[slots[0] as usize].generation };
    let format = Format { codec: 1, fingerprint: 1 };
    let label = Label { len, format, flags: u16::from(what >> 4), expires: u64::from(what >> 7) };
    match what >> 1 & 3 {
        0 => {}
        1 => memory.table.publish(id, &label, 0),
        2 if len == 0 && what & 1 << 6 == 0 => memory.table.declare(id, format),
        2 if len == 0 => replicate(memory, cell, owner, id, what),
        _ => {
            memory.table.publish(id, &label, 0);
            memory.table.pin(cell + u32::from(what >> 3), id);
            memory.table.retire(id);
        }
    }
}

/// A replica that has landed, is on its way, or was never entered.
fn replicate(memory: &mut Memory, cell: u32, owner: u64, declared: Id, what: u8) {
    let origin = origin(declared.slot);
    memory.table.header(word::REPLICAS).store(1, Relaxed);
    memory.table.declare_replica(declared, origin);
    if what & 1 << 7 == 0 {
        memory.table.claim_replica(cell, origin, declared, |_| {});
    }
    let Some(Ok((slots, _))) = Class::of(100).map(|class| memory.lease(owner, class, 1, 1, Effort::Grow)) else {
        return;
    };
    let object = Id { slot: slots[0], generation: memory.slots[slots[0] as usize].generation };
    let label = Label { len: 100, format: Format { codec: 1, fingerprint: 1 }, flags: BOUND | REPLICA, expires: 0 };
    memory.table.publish(object, &label, 0);
    if what & 1 << 5 == 0 {
        let _ = memory.table.land_replica(cell, declared, object, 1);
    }
}

/// Writes a word where processes write: near what is there, or far from it.
fn scribble(memory: &Memory, what: u8, at: u32, value: u64) {
    let layout = memory.table.layout();
    let field = usize::from(what / 8) % 8;
    let index = match what % 8 {
        0..=3 => layout.slot(at % 64) + field,
        4 => layout.cell(at % 1024),
        5 => layout.owner(at % 64),
        6 => [word::SLOTS, word::PAGES, word::SEED, word::EPOCH, word::POLICY, word::EXPIRES][at as usize % 6],
        _ if at % 2 == 0 => layout.entry(0, 0) + usize::from(value as u16) % (layout.sets * layout.ways) as usize,
        _ => layout.client(at / 2 % 64) + field % 2,
    };
    let written = memory.table.header(index);
    let (kind, value) = (value % 5, value / 5);
    let value = match kind {
        0 => value % 16,
        1 => written.load(Relaxed) ^ 1 << (value % 64),
        // What another slot says.
        2 => memory.table.header(layout.slot((value % 64) as u32) + field).load(Relaxed),
        3 => value % 4096,
        _ => value,
    };
    // The table walks as many slots and pages as it has: a few will do.
    written.store(if matches!(index, word::SLOTS | word::PAGES) { value % (1 << 14) } else { value }, Relaxed);
}

/// Objects of another node that there are.
const ORIGINS: u32 = 32;

/// Tags of two clients, one of which is not there any more when the service takes over.
const ENDED: u64 = 1 << 12;
const STAYS: u64 = 2 << 12 | 1;
