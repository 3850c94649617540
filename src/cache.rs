//! The cache of resolved objects: bounded in bytes and in count, sharded, with single flight for misses.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard};

use serde::Serialize;

use crate::flight::Flight;
use crate::key::Key;
use crate::pending::Pending;
use crate::sync::lock;

/// Figures of a store's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CacheStats {
    /// Look-ups that found the object.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Objects now in the cache.
    pub objects: u64,
    /// Bytes they stand for, as stored.
    pub bytes: u64,
    /// The budget in bytes.
    pub max_bytes: u64,
    /// Most objects, `u64::MAX` without a limit.
    pub max_objects: u64,
}

/// Resolved views by key.
///
/// Each shard is a table with a CLOCK hand: a hit sets a bit under a read lock, eviction clears bits and takes the first
/// that was clear. The budget is global, so one object may fill it; eviction goes round the shards. A view that was handed
/// out stays alive after its eviction, as any clone does.
pub(crate) struct Cache {
    shards: Box<[Shard]>,
    max_bytes: u64,
    max_objects: u64,
    bytes: AtomicU64,
    objects: AtomicU64,
    hand: AtomicUsize,
    closed: AtomicBool,
}

#[derive(Default)]
struct Shard {
    table: RwLock<Table>,
    flights: Mutex<Flights>,
    // Counted per shard, so that threads on different keys do not share a cache line for it.
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Default)]
struct Table {
    index: HashMap<Key, usize>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    hand: usize,
}

struct Slot {
    key: Key,
    view: Box<dyn Any + Send + Sync>,
    weight: u64,
    used: AtomicBool,
}

impl Cache {
    pub(crate) fn new(max_bytes: u64, max_objects: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            max_bytes,
            max_objects,
            bytes: AtomicU64::new(0),
            objects: AtomicU64::new(0),
            hand: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Whether anything can ever be in it.
    pub(crate) fn is_enabled(&self) -> bool {
        self.max_bytes > 0 && self.max_objects > 0
    }

    /// The view of `key`, where it is cached as a `V`.
    ///
    /// # Cost
    /// A read lock of one shard, one look-up, one clone of the view.
    pub(crate) fn get<V: Clone + 'static>(&self, key: &Key) -> Option<V> {
        let shard = self.shard(key);
        let found = self.peek(shard, key);
        let counter = if found.is_some() { &shard.hits } else { &shard.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn peek<V: Clone + 'static>(&self, shard: &Shard, key: &Key) -> Option<V> {
        let table = shard.table.read().unwrap_or_else(PoisonError::into_inner);
        let slot = table.slots[*table.index.get(key)?].as_ref()?;
        let view = slot.view.downcast_ref::<V>()?.clone();
        if !slot.used.load(Ordering::Relaxed) {
            slot.used.store(true, Ordering::Relaxed);
        }
        Some(view)
    }

    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.shard(key).table.read().unwrap_or_else(PoisonError::into_inner).index.contains_key(key)
    }

    /// Fetches the view of a key that [`get`](Self::get) missed: joins a fetch in flight or starts one, and caches what
    /// it finds, unless the key was evicted meanwhile.
    pub(crate) fn load<V: Clone + Send + Sync + 'static>(
        self: &Arc<Self>,
        key: &Key,
        fetch: impl FnOnce() -> Pending<Option<V>>,
    ) -> Pending<Option<V>> {
        let shard = self.shard(key);
        let id = (*key, TypeId::of::<V>());
        let flight = {
            let mut flights = lock(&shard.flights);
            // A flight that landed since the miss: looked for under the lock, for an entry that no landing clears stays.
            if let Some(view) = self.peek(shard, key) {
                return Pending::ready(Ok(Some(view)));
            }
            let flight = flights.entry(id).or_insert_with(|| Flight::<Option<V>>::new());
            Arc::clone(flight).downcast::<Flight<Option<V>>>()
        };
        let Ok(flight) = flight else { return fetch() };
        let known = || self.peek(shard, key).map(Some);
        let start = || {
            let landing = Landing { cache: Arc::clone(self), id, flight: Arc::clone(&flight) as Arc<_> };
            let land = move |found: &Option<V>| {
                if let Some(view) = found {
                    landing.land(view.clone());
                }
            };
            (fetch(), land)
        };
        flight.join(known, start)
    }

    /// Announces a fetch of `key` by other means than [`load`](Self::load), to be landed when the view is there.
    pub(crate) fn expect(self: &Arc<Self>, key: &Key) -> Landing {
        struct Expected;
        let id = (*key, TypeId::of::<Expected>());
        let flight: Arc<dyn Any + Send + Sync> = Arc::new(Expected);
        if self.is_enabled() {
            lock(&self.shard(key).flights).insert(id, Arc::clone(&flight));
        }
        Landing { cache: Arc::clone(self), id, flight }
    }

    /// What an object weighs in the budget, if it may be cached at all.
    fn weight(&self, key: &Key) -> Option<u64> {
        // A deferred key does not say what its object weighs. Any object weighs something.
        let weight = if key.is_len_known() { key.len().max(1) } else { return None };
        (weight <= self.max_bytes).then_some(weight)
    }

    /// Evicts others than `key`, which has just come, until the limits hold.
    fn make_room(&self, key: &Key) {
        while self.bytes.load(Ordering::Relaxed) > self.max_bytes
            || self.objects.load(Ordering::Relaxed) > self.max_objects
        {
            if !self.evict_one(key) {
                break;
            }
        }
    }

    /// Drops the view of `key`, and keeps a fetch in flight from bringing it back.
    pub(crate) fn remove(&self, key: &Key) {
        let shard = self.shard(key);
        lock(&shard.flights).retain(|(flying, _), _| flying != key);
        let removed = self.write(shard).remove(key);
        self.forget(removed);
    }

    /// Drops everything and caches nothing more.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for shard in &self.shards {
            let table = std::mem::take(&mut *self.write(shard));
            for slot in table.slots {
                self.forget(slot);
            }
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let sum = |counter: fn(&Shard) -> &AtomicU64| {
            self.shards.iter().map(|shard| counter(shard).load(Ordering::Relaxed)).sum()
        };
        CacheStats {
            hits: sum(|shard| &shard.hits),
            misses: sum(|shard| &shard.misses),
            objects: self.objects.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            max_bytes: self.max_bytes,
            max_objects: self.max_objects,
        }
    }

    /// Evicts the first object from the hand on that was not used lately; in the second round all bits are clear.
    fn evict_one(&self, keep: &Key) -> bool {
        let start = self.hand.load(Ordering::Relaxed);
        for turn in (0..2 * SHARDS).map(|step| start.wrapping_add(step)) {
            let victim = self.write(&self.shards[turn % SHARDS]).evict_one(keep);
            if victim.is_some() {
                self.hand.store(turn.wrapping_add(1), Ordering::Relaxed);
                self.forget(victim);
                return true;
            }
        }
        false
    }

    /// Takes a removed slot off the books and drops it, outside every lock: its drop may run foreign code.
    fn forget(&self, slot: Option<Slot>) {
        if let Some(slot) = slot {
            self.bytes.fetch_sub(slot.weight, Ordering::Relaxed);
            self.objects.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn write<'a>(&self, shard: &'a Shard) -> RwLockWriteGuard<'a, Table> {
        shard.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn shard(&self, key: &Key) -> &Shard {
        // Locators end in counters or random bytes, either of which spreads.
        let mix = key.locator().iter().rev().take(8).fold(0u64, |mix, byte| (mix << 8) | u64::from(*byte));
        let mix = mix.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        &self.shards[(mix >> 32) as usize % SHARDS]
    }
}

impl Table {
    fn insert(&mut self, slot: Slot) -> Option<Slot> {
        let key = slot.key;
        if let Some(at) = self.index.get(&key) {
            return self.slots[*at].replace(slot);
        }
        let at = self.free.pop().unwrap_or(self.slots.len());
        match self.slots.get_mut(at) {
            Some(hole) => *hole = Some(slot),
            None => self.slots.push(Some(slot)),
        }
        self.index.insert(key, at);
        None
    }

    fn remove(&mut self, key: &Key) -> Option<Slot> {
        let at = self.index.remove(key)?;
        self.free.push(at);
        self.slots[at].take()
    }

    /// Moves the hand to the first slot that was not used since the hand last passed, and removes it; once round at most.
    fn evict_one(&mut self, keep: &Key) -> Option<Slot> {
        for _ in 0..self.slots.len() {
            self.hand = (self.hand + 1) % self.slots.len();
            if let Some(slot) = &self.slots[self.hand] {
                if slot.key != *keep && !slot.used.swap(false, Ordering::Relaxed) {
                    let key = slot.key;
                    return self.remove(&key);
                }
            }
        }
        None
    }
}

/// A fetch in flight, entered in the table of its shard: an eviction strikes the entry out, and the fetch caches nothing.
///
/// Dropping it clears the entry, however the fetch ended.
pub(crate) struct Landing {
    cache: Arc<Cache>,
    id: (Key, TypeId),
    flight: Arc<dyn Any + Send + Sync>,
}

impl Landing {
    /// Caches `view`, unless the key was evicted since, making room as needed; an object heavier than the budget is not
    /// cached.
    pub(crate) fn land<V: Send + Sync + 'static>(&self, view: V) {
        let (cache, key) = (&self.cache, &self.id.0);
        let Some(weight) = cache.weight(key) else { return };
        let slot = Slot { key: *key, view: Box::new(view), weight, used: AtomicBool::new(true) };
        let shard = cache.shard(key);
        // One critical section: an eviction comes before, and strikes the entry, or after, and removes the view.
        let flights = lock(&shard.flights);
        if !self.is_current(&flights) {
            return;
        }
        cache.bytes.fetch_add(weight, Ordering::Relaxed);
        cache.objects.fetch_add(1, Ordering::Relaxed);
        let replaced = cache.write(shard).insert(slot);
        drop(flights);
        cache.forget(replaced);
        cache.make_room(key);
        // `close` sweeps after it has said so: one of the two sees the other.
        if cache.closed.load(Ordering::Acquire) {
            cache.remove(key);
        }
    }

    fn is_current(&self, flights: &Flights) -> bool {
        flights.get(&self.id).is_some_and(|current| Arc::ptr_eq(current, &self.flight))
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.cache.shard(&self.id.0).flights);
        if self.is_current(&flights) {
            flights.remove(&self.id);
        }
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stats().fmt(f)
    }
}

/// Fetches in flight, by key and by the view that they will bring.
type Flights = HashMap<(Key, TypeId), Arc<dyn Any + Send + Sync>>;

/// Enough that threads of one node rarely meet on a lock.
const SHARDS: usize = 32;

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::key::Format;

    #[test]
    fn flights_leave_no_entry_behind() {
        let cache = Arc::new(Cache::new(100, 10));
        let key = Key::new("memory", &[1; 16], 4, Format::RAW).unwrap();
        let entries = || cache.shards.iter().map(|shard| lock(&shard.flights).len()).sum::<usize>();
        let (completer, fetch) = Pending::channel();
        let first = cache.load(&key, || fetch);
        let expected = cache.expect(&key);
        assert_eq!(entries(), 2);
        completer.complete(Ok(Some(7u32)));
        assert_eq!(first.wait().unwrap(), Some(7));
        assert_eq!(entries(), 1);
        drop(expected);
        // As one who missed before the first flight landed, and comes after.
        assert_eq!(cache.load(&key, || -> Pending<Option<u32>> { unreachable!() }).wait().unwrap(), Some(7));
        assert_eq!(entries(), 0);
        drop(cache.load(&key, || Pending::ready(Ok(None::<u64>))));
        cache.expect(&key).land(8u32);
        cache.expect(&key);
        cache.remove(&key);
        assert_eq!((entries(), cache.stats().objects), (0, 0));
    }
}
