//! The truth table of the soak: what was acknowledged, in memory that survives every process that writes it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Shared by the director and its forked workers; anonymous, so it is nobody's when all have ended.
pub(crate) struct Ledger {
    /// 0 while the soak runs, 1 when workers end, 2 when the auditor looks.
    pub(crate) phase: AtomicU64,
    pub(crate) counters: [AtomicU64; Count::ALL.len()],
    pub(crate) workers: [WorkerSlot; WORKERS],
    pub(crate) entries: [Entry; ENTRIES],
}

/// One place of a worker; the next one gets it after what the former left was settled.
pub(crate) struct WorkerSlot {
    /// 1 once it has opened the connector.
    pub(crate) attached: AtomicU64,
}

/// One object that somebody put, or is about to.
///
/// The state is `sequence << 16 | worker << 8 | kind`; a sequence is used for one object.
pub(crate) struct Entry {
    pub(crate) state: AtomicU64,
    pub(crate) seed: AtomicU64,
    pub(crate) len: AtomicU64,
    /// Whether the object came by a declared key.
    pub(crate) deferred: AtomicU64,
    key_len: AtomicU64,
    key: [AtomicU64; KEY_WORDS],
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Empty = 0,
    /// Being put or declared: nobody but the worker knows a key.
    Putting = 1,
    /// The put was acknowledged.
    Live = 2,
    /// Being evicted or taken by the worker.
    Ending = 3,
    /// A declared key.
    Declared = 4,
    /// Being committed to its declared key.
    Binding = 5,
    /// Its worker died, or was refused, before a put to a declared key, an evict or a take was acknowledged.
    Maybe = 6,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Puts,
    Gets,
    Evicts,
    Takes,
    Declares,
    Binds,
    Waits,
    Exists,
    GoneKeys,
    Replicas,
    Unavailable,
    NoSpace,
    OtherErrors,
    Unacknowledged,
    Corrupt,
    Lost,
    Torn,
    Resurrected,
    Leaked,
    Died,
}

impl Count {
    pub(crate) const ALL: [Self; 20] = [
        Self::Puts,
        Self::Gets,
        Self::Evicts,
        Self::Takes,
        Self::Declares,
        Self::Binds,
        Self::Waits,
        Self::Exists,
        Self::GoneKeys,
        Self::Replicas,
        Self::Unavailable,
        Self::NoSpace,
        Self::OtherErrors,
        Self::Unacknowledged,
        Self::Corrupt,
        Self::Lost,
        Self::Torn,
        Self::Resurrected,
        Self::Leaked,
        Self::Died,
    ];

    /// What must not happen.
    pub(crate) const VIOLATIONS: [Self; 7] =
        [Self::Corrupt, Self::Lost, Self::Torn, Self::Resurrected, Self::Leaked, Self::Died, Self::OtherErrors];
}

impl Ledger {
    /// In memory that forked children share.
    pub(crate) fn new() -> &'static Self {
        let len = size_of::<Self>();
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping, page-aligned and never unmapped; all fields are atomics, of which zero is a value.
        unsafe {
            let memory = libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0);
            assert!(memory != libc::MAP_FAILED, "no memory for the truth table");
            &*memory.cast::<Self>()
        }
    }

    pub(crate) fn count(&self, what: Count) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: Count, n: u64) {
        self.counters[what as usize].fetch_add(n, Relaxed);
    }

    pub(crate) fn total(&self, what: Count) -> u64 {
        self.counters[what as usize].load(Relaxed)
    }

    /// A violation, with the circumstances on standard error.
    pub(crate) fn violate(&self, what: Count, how: impl std::fmt::Display) {
        self.count(what);
        if self.total(what) <= 20 {
            // In one piece: others write there too.
            let text = format!("VIOLATION {what:?} in process {}: {how}\n", std::process::id());
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        }
    }

    pub(crate) fn violations(&self) -> u64 {
        Count::VIOLATIONS.iter().map(|what| self.total(*what)).sum()
    }

    pub(crate) fn operations(&self) -> u64 {
        Count::ALL[..9].iter().map(|what| self.total(*what)).sum()
    }

    /// Settles what a worker that is no more left half-done.
    pub(crate) fn settle(&self, worker: usize) {
        for entry in &self.entries {
            let state = entry.state.load(Acquire);
            if (state >> 8 & 0xff) as usize != worker {
                continue;
            }
            match kind(state) {
                Kind::Putting => {
                    self.count(Count::Unacknowledged);
                    entry.state.store(empty_after(state), Release);
                }
                Kind::Ending | Kind::Binding => entry.state.store(with(state, 0, Kind::Maybe), Release),
                _ => {}
            }
        }
    }
}

impl Entry {
    /// Takes the entry for one step of a worker.
    pub(crate) fn claim(&self, seen: u64, worker: usize, to: Kind) -> Option<u64> {
        let claimed = with(seen, worker, to);
        self.state.compare_exchange(seen, claimed, AcqRel, Relaxed).ok().map(|_| claimed)
    }

    pub(crate) fn set(&self, state: u64, kind: Kind) {
        self.state.store(with(state, 0, kind), Release);
    }

    pub(crate) fn clear(&self, state: u64) {
        self.state.store(empty_after(state), Release);
    }

    pub(crate) fn write_key(&self, key: &str) {
        let bytes = key.as_bytes();
        assert!(bytes.len() <= KEY_WORDS * 8, "a key of {} bytes", bytes.len());
        for (word, chunk) in self.key.iter().zip(bytes.chunks(8)) {
            word.store(chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)), Relaxed);
        }
        self.key_len.store(bytes.len() as u64, Relaxed);
    }

    /// Key, seed and length, if the state has stayed the same meanwhile.
    pub(crate) fn read(&self, seen: u64) -> Option<(String, u64, usize)> {
        let len = self.key_len.load(Relaxed) as usize;
        let mut bytes: Vec<u8> = self.key.iter().flat_map(|word| word.load(Relaxed).to_le_bytes()).take(len).collect();
        bytes.truncate(len);
        let (seed, object_len) = (self.seed.load(Relaxed), self.len.load(Relaxed) as usize);
        std::sync::atomic::fence(Acquire);
        (self.state.load(Acquire) == seen).then(|| (String::from_utf8_lossy(&bytes).into_owned(), seed, object_len))
    }
}

pub(crate) fn kind(state: u64) -> Kind {
    match state & 0xff {
        1 => Kind::Putting,
        2 => Kind::Live,
        3 => Kind::Ending,
        4 => Kind::Declared,
        5 => Kind::Binding,
        6 => Kind::Maybe,
        _ => Kind::Empty,
    }
}

fn with(state: u64, worker: usize, kind: Kind) -> u64 {
    state & !0xffff | (worker as u64) << 8 | kind as u64
}

fn empty_after(state: u64) -> u64 {
    ((state >> 16) + 1) << 16
}

pub(crate) const WORKERS: usize = 64;
pub(crate) const ENTRIES: usize = 2048;
const KEY_WORDS: usize = 24;
