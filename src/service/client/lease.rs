//! Leases: cells that this process may write to, fetched ahead of need.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::agent::Answer;
use super::{Client, corrupt};
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::process;
use crate::service::message::Request;
use crate::shm::class::{Class, Place};
use crate::shm::layout::word;
use crate::shm::table::{Id, Label, State};
use crate::sync::lock;

/// The leases of one size class that nobody uses yet.
///
/// The last one in is the first one out: its lines may still be in a cache. How many are fetched at once follows the demand: it doubles whenever somebody had to wait, and falls back when the service
/// wants leases returned.
pub(super) struct Pool {
    slots: Mutex<Vec<u32>>,
    /// So many it may always have.
    least: usize,
    batch: AtomicU32,
    /// More are on their way.
    asked: AtomicBool,
}

/// A slot and its cell, this process's until it is published or dropped.
pub(crate) struct Lease {
    client: Arc<Client>,
    id: Id,
    place: u64,
    ptr: NonNull<u8>,
    class: Class,
    used: bool,
}

// SAFETY: the cell belongs to whoever owns the lease; nothing in it is bound to a thread.
unsafe impl Send for Lease {}
// SAFETY: a shared lease only tells where it is.
unsafe impl Sync for Lease {}

impl Client {
    fn pool(&self, class: Class) -> &Pool {
        self.pools[class.index()].get_or_init(|| Pool {
            slots: Mutex::default(),
            least: least(class),
            batch: AtomicU32::new(class.batch()),
            asked: AtomicBool::new(false),
        })
    }

    /// A cell for an object of `len` bytes.
    ///
    /// # Cost
    /// A queue's pop; when it is empty, a round trip to the service.
    ///
    /// # Errors
    /// `TooLarge`, `NoSpace` with the numbers, `Unavailable` when the service does not answer.
    pub(crate) fn lease(self: &Arc<Self>, len: u64) -> Result<Lease> {
        let (id, place, ptr, class) = self.pop(len)?;
        Ok(Lease { client: Arc::clone(self), id, place, ptr, class, used: false })
    }

    /// As [`lease`](Self::lease), without anything that would give it back.
    #[inline]
    pub(super) fn pop(&self, len: u64) -> Result<(Id, u64, NonNull<u8>, Class)> {
        let Some(class) = Class::of(len) else {
            let context = format!("{len} bytes, more than any machine has");
            return Err(Error::new(ErrorKind::TooLarge, "reserve", context).with_connector("shm"));
        };
        let pool = self.pool(class);
        loop {
            let (slot, next, left) = {
                let mut slots = lock(&pool.slots);
                (slots.pop(), slots.last().copied(), slots.len())
            };
            let Some(slot) = slot else {
                self.fetch(class, pool)?;
                continue;
            };
            // Of `knows` slots only. One transfer from the service's processor, where a read and the write of a commit would be
            // two; and that of the next one goes on beside what is done with this one.
            self.table.anticipate(slot);
            if let Some(next) = next {
                self.table.anticipate(next);
            }
            if left <= pool.batch.load(Relaxed) as usize / 4 && !pool.asked.load(Relaxed) {
                self.prefetch(class, pool);
            }
            // What somebody scribbled on is the service's to mend.
            if let Some((generation, State::Reserved)) = self.table.state(slot) {
                let id = Id { slot, generation };
                let leased = self.table.read(id);
                if leased.owner != self.tag && !mutant!("pop_owner")
                    || leased.class != class.index() as u64 && !mutant!("pop_class")
                {
                    continue;
                }
                let ptr = match self.cell_of(&leased, class) {
                    // Scribbled on, or taken back with a segment that nobody holds any more: another one will do.
                    Err(error) if error.kind() == ErrorKind::Corrupt => continue,
                    found => found?,
                };
                failpoint!("client.leased");
                return Ok((id, leased.place, ptr, class));
            }
        }
    }

    #[cold]
    fn prefetch(&self, class: Class, pool: &Pool) {
        if pool.asked.swap(true, AcqRel) {
            return;
        }
        let count = pool.batch.load(Relaxed);
        let request = |id| Request::Lease { id, class: class.index() as u16, count, urgent: false, again: false };
        self.begin(request, None);
    }

    #[cold]
    fn fetch(&self, class: Class, pool: &Pool) -> Result<()> {
        // Memory for large objects takes the service its time.
        let limit = self.options.timeout + Duration::from_secs(class.capacity() >> 29);
        let deadline = Instant::now() + limit;
        let count = pool.batch.load(Relaxed);
        pool.batch.store((count * 2).min(most(class)), Relaxed);
        let request = |id| Request::Lease { id, class: class.index() as u16, count, urgent: true, again: false };
        loop {
            match self.ask_within(limit, request, "reserve") {
                Ok(Answer::Leased) => return Ok(()),
                Ok(_) => return Err(corrupt("the service answered something else")),
                // Somebody else's lease came meanwhile.
                Err(_) if !lock(&pool.slots).is_empty() => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Cancelled && Instant::now() < deadline => {}
                Err(error) => return Err(error.with_connector("shm")),
            }
        }
    }

    /// Leases that came.
    pub(super) fn leased(&self, class: Class, slots: Vec<u32>) {
        let pool = self.pool(class);
        let (mut usable, mut excess) = (Vec::with_capacity(slots.len()), Vec::new());
        for slot in slots {
            if class.capacity() >= POPULATE && self.knows(slot) {
                if let Some((generation, State::Reserved)) = self.table.state(slot) {
                    let place = Place::from_bits(self.table.read(Id { slot, generation }).place);
                    // Not waited for: this is the thread that segments come to.
                    if let Some(held) = self.segments.get(usize::from(place.segment())).and_then(OnceLock::get) {
                        if class.capacity() <= POPULATE_MOST {
                            held.populate(place.offset(), class.capacity());
                        }
                    }
                }
            }
            match self.knows(slot) {
                true => usable.push(slot),
                false => excess.push(slot),
            }
        }
        lock(&pool.slots).extend(usable);
        if !excess.is_empty() {
            self.tell(Request::Return { slots: excess });
        }
    }

    /// Leases that came without being asked for: memory of objects of ours that were evicted. What is too much goes back.
    pub(super) fn recycled(&self, class: Class, mut slots: Vec<u32>) {
        let pool = self.pool(class);
        let room = self.room(class).saturating_sub(lock(&pool.slots).len());
        let excess = slots.split_off(room.min(slots.len()));
        self.leased(class, slots);
        if !excess.is_empty() {
            self.tell(Request::Return { slots: excess });
        }
    }

    /// Most leases of a class that this process keeps unused.
    fn room(&self, class: Class) -> usize {
        let bytes = (self.table.header(word::BUDGET).load(Relaxed) / 64).min(RECYCLED);
        // And what has to be left, or whoever takes the last of them asks for more.
        let left = class.batch() as usize / 4 + 1;
        least(class).max((bytes / class.capacity().max(CELL)) as usize + left)
    }

    /// What was asked for came, ahead of need or not: asking ahead makes sense again. Where it was refused it does not.
    pub(super) fn prefetched(&self, class: Class) {
        self.pool(class).asked.store(false, Release);
    }

    /// Gives back all that is not in use.
    pub(super) fn return_leases(&self) {
        let mut slots = Vec::new();
        for pool in self.pools.iter().filter_map(|pool| pool.get()) {
            slots.append(&mut lock(&pool.slots));
            pool.batch.store(1, Relaxed);
        }
        for slots in slots.chunks(8192) {
            self.tell(Request::Return { slots: slots.to_vec() });
        }
        // The service waits for this one.
        self.tell(Request::Return { slots: Vec::new() });
    }
}

impl Lease {
    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Where the cell lies, as its slot says.
    pub(crate) fn place(&self) -> u64 {
        self.place
    }

    pub(super) fn slot(&self) -> u32 {
        self.id.slot
    }

    /// Length of the cell.
    pub(super) fn capacity(&self) -> u64 {
        self.class.capacity()
    }

    /// First byte of the cell, aligned to 64.
    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Writes to the beginning of the cell what fits into it.
    #[cfg(feature = "failpoints")]
    pub(crate) fn fill(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(self.class.capacity() as usize);
        // SAFETY: the cell has at least `len` bytes, nobody else has it, and it is no part of `bytes`: views lie in other
        // mappings, and in cells that are not leased.
        unsafe { self.ptr.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), len) };
    }

    /// Makes what was written an object.
    pub(crate) fn publish(mut self, label: Label) -> Id {
        self.used = true;
        self.client.publish(self.id, &label);
        self.id
    }

    /// Keeps the slot for another use than an object.
    pub(super) fn keep(mut self) -> Id {
        self.used = true;
        self.id
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.used || process::generation() != self.client.generation {
            return;
        }
        // Unused: the next one may have it, unless there are many already.
        let pool = self.client.pool(self.class);
        let mut slots = lock(&pool.slots);
        if slots.len() < pool.least || slots.len() < self.client.room(self.class) {
            slots.push(self.id.slot);
        } else {
            drop(slots);
            self.client.tell(Request::Return { slots: vec![self.id.slot] });
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:?} of {} B)", self.id, self.class.capacity())
    }
}

/// Most leases of a class that are fetched at once.
fn most(class: Class) -> u32 {
    let most = AHEAD / class.capacity().max(64);
    class.batch().max(most.min(4096) as u32)
}

/// How many of a class this process may keep unused whatever the budget is.
fn least(class: Class) -> usize {
    2 * most(class) as usize
}

/// Most bytes of one class that are fetched at once, beyond [`Class::batch`].
const AHEAD: u64 = 4 << 20;

/// Most bytes of one class that come back to who evicted them, where the budget is much more: a process that puts and evicts
/// no more at a time never asks for any. Others get them by a recall.
const RECYCLED: u64 = 64 << 20;

/// Cells down to this size count as bytes.
const CELL: u64 = 16 << 10;

/// Cells from this size on have pages that they share with few others.
const POPULATE: u64 = 4096;

/// Larger ones are populated by whoever writes to them: it takes as long, and nobody else waits.
const POPULATE_MOST: u64 = 16 << 20;

#[cfg(all(test, not(miri)))]
mod tests {
    use super::super::Options;
    use super::*;
    use crate::shm::layout::slot;

    /// Attached to a namespace of its own, hosted here.
    fn client(name: &str) -> Arc<Client> {
        let options = Options {
            namespace: format!("test-{name}-{}", std::process::id()),
            budget: Some(1 << 30),
            displace: None,
            timeout: Duration::from_secs(20),
            may_host: true,
        };
        Client::attach(&options).expect("a service of its own")
    }

    #[test]
    fn what_somebody_scribbled_on_is_not_leased() {
        let client = client("scribbled");
        for (at, word) in [(slot::OWNER, client.tag + 1), (slot::CLASS, Class::of(9000).unwrap().index() as u64)] {
            // Unused, so the next one would get it.
            let lease = client.lease(100).unwrap();
            let (slot, place) = (lease.id.slot, lease.place);
            drop(lease);
            let word_of_slot = client.table.header(client.table.layout().slot(slot) + at);
            let before = word_of_slot.swap(word, Relaxed);
            let next = client.lease(100).unwrap();
            assert!(next.id.slot != slot && next.place != place);
            word_of_slot.store(before, Relaxed);
        }
    }

    #[test]
    fn what_comes_back_is_enough_to_go_on_with() {
        let client = client("going-on");
        let len = 1 << 20;
        let at_once = client.table.header(word::BUDGET).load(Relaxed) / 64 / len;
        let lease = |count| (0..count).map(|_| client.lease(len).unwrap()).collect::<Vec<Lease>>();
        let class = Class::of(len).unwrap();
        // With no more than are taken at once it does ask.
        for (kept, asks) in [(at_once, true), (client.room(class) as u64, false)] {
            let leases = lease(kept);
            while !client.has_no_requests() || client.pool(class).asked.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(1));
            }
            // What came ahead of need, so that there are these.
            client.return_leases();
            drop(leases);
            let before = client.next_request();
            drop(lease(at_once));
            assert_eq!(client.next_request() != before, asks, "with {kept} of its own");
        }
    }

    #[test]
    fn the_service_answers_while_it_makes_memory() {
        let client = client("growing");
        let client = &client;
        let answers = std::thread::scope(|scope| {
            let large = scope.spawn(|| client.lease(600 << 20));
            let mut answers = 0;
            while !large.is_finished() {
                client.stats().unwrap();
                answers += 1;
            }
            assert_eq!(large.join().unwrap().unwrap().class.capacity(), 608 << 20);
            answers
        });
        // Zeroing takes 200 ms, an answer less than one; without a thread for it there are two, the first and the last.
        assert!(answers > 10, "{answers} answers");
    }
}
