//! The invariant check: what is in the namespace when all but one have ended.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use proxystore::connectors::ShmConnector;
use proxystore::service::{Namespace, ServiceStats, inspect};
use proxystore::{Connector, Key};

use crate::chaos::{NAMESPACE, expected_slots};
use crate::content::verify;
use crate::ledger::{Count, Kind, Ledger, kind};

/// The auditor: attaches while others are there, so that the memory stays, and looks when they have gone.
pub(crate) fn main(ledger: &'static Ledger, url: &str, number: usize) -> i32 {
    let before = Footprint::now();
    let store = match ShmConnector::open(&url.parse().expect("a URL of ours")) {
        Ok(store) => Arc::new(store),
        Err(error) => {
            ledger.violate(Count::Lost, format_args!("the auditor cannot open the namespace: {error}"));
            ledger.workers[number].attached.store(2, Release);
            return 0;
        }
    };
    ledger.workers[number].attached.store(2, Release);
    while ledger.phase.load(Acquire) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let leak = |how: String| ledger.violate(Count::Leaked, how);
    match settled(NAMESPACE) {
        Ok(stats) => {
            let (least, most) = expected_slots(ledger);
            // A replica has two slots; what was on its way ended with whoever fetched it.
            let live = stats.live.count - 2 * stats.replicas.count;
            if live < least {
                ledger.violate(Count::Lost, format_args!("{live} slots live, {least} to {most} are in the ledger"));
            }
            if live > most {
                leak(format!("{live} slots live, {least} to {most} are in the ledger"));
            }
        }
        Err(how) => leak(how),
    }
    for entry in &ledger.entries {
        let state = entry.state.load(Acquire);
        if !matches!(kind(state), Kind::Live | Kind::Declared | Kind::Maybe) {
            continue;
        }
        let Some((key, seed, len)) = entry.read(state) else { continue };
        let key: Key = key.parse().expect("a key of ours");
        match store.get(&key).wait() {
            Ok(Some(region)) if region.len() != len => ledger.violate(Count::Corrupt, format_args!("{key:?}: length")),
            Ok(Some(region)) => {
                if let Err(how) = verify(&region, seed) {
                    ledger.violate(Count::Corrupt, format_args!("{key:?}: {how}"));
                }
            }
            Ok(None) if kind(state) == Kind::Live => ledger.violate(Count::Lost, format_args!("{key:?} at the end")),
            Ok(None) => {}
            Err(error) => ledger.violate(Count::OtherErrors, format_args!("the auditor's get: {error}")),
        }
        if let Err(error) = store.evict(&key).wait() {
            ledger.violate(Count::OtherErrors, format_args!("the auditor's evict: {error}"));
        }
    }
    look_at_unacknowledged(ledger, &store);
    match settled(NAMESPACE) {
        Ok(stats) => {
            if stats.live.count > 0 {
                leak(format!("{} slots live after all that can be listed was evicted", stats.live.count));
            }
            let after = Footprint::now();
            if let Err(how) = after.fits(&before, stats.segments.len()) {
                leak(how);
            }
        }
        Err(how) => leak(how),
    }
    0
}

/// What is left was put by processes that were killed before they told anybody: whole, or not there.
fn look_at_unacknowledged(ledger: &Ledger, store: &ShmConnector) {
    let namespace = match Namespace::find(NAMESPACE) {
        Ok(Some(namespace)) => namespace,
        other => return ledger.violate(Count::Lost, format_args!("no namespace to list: {other:?}")),
    };
    let keys: Vec<Key> = match namespace.objects() {
        Ok(objects) => objects.map(|object| object.key).collect(),
        Err(error) => return ledger.violate(Count::OtherErrors, format_args!("the auditor's list: {error}")),
    };
    for key in keys {
        if let Ok(Some(region)) = store.get(&key).wait() {
            // The content tells its seed.
            if let Some(seed) = region.get(..8) {
                let seed = seed.iter().rev().fold(0, |seed, byte| seed << 8 | u64::from(*byte));
                if let Err(how) = verify(&region, seed) {
                    ledger.violate(Count::Torn, format_args!("a put that nobody was told of: {how}"));
                }
            }
        }
        if let Err(error) = store.evict(&key).wait() {
            ledger.violate(Count::OtherErrors, format_args!("the auditor's evict: {error}"));
        }
    }
}

/// The figures of a namespace in which this process is alone and idle, once they are as they must be; what is wrong with
/// them otherwise.
pub(crate) fn settled(namespace: &str) -> Result<ServiceStats, String> {
    let begun = Instant::now();
    loop {
        let stats = inspect::stats(namespace).map_err(|error| format!("no figures: {error}"))?;
        match wrong(&stats) {
            None => return Ok(stats),
            Some(how) if begun.elapsed() > SETTLES => return Err(how),
            Some(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn wrong(stats: &ServiceStats) -> Option<String> {
    let total: u64 = stats.segments.iter().map(|segment| segment.len).sum();
    let used = stats.live.bytes + stats.reserved.bytes + stats.dying.bytes;
    if used + stats.free_bytes != total {
        return Some(format!("{used} bytes used and {} free are not the {total} of the segments", stats.free_bytes));
    }
    let leased: u64 = stats.clients.iter().map(|client| client.leased.count).sum();
    if leased != stats.reserved.count {
        return Some(format!("{} leases, of which {leased} are of those who live", stats.reserved.count));
    }
    if stats.slots_used != stats.live.count + stats.reserved.count + stats.dying.count {
        return Some(format!(
            "{} slots used, and {:?} {:?} {:?}",
            stats.slots_used, stats.live, stats.reserved, stats.dying
        ));
    }
    if stats.clients.len() != 1 {
        return Some(format!("clients that are not there: {:?}", stats.clients));
    }
    if stats.dying.count != 0 {
        return Some(format!("evicted and not reclaimed: {:?}, pins: {:?}", stats.dying, stats.clients));
    }
    None
}

/// What a process holds of the kernel's.
#[derive(Debug)]
pub(crate) struct Footprint {
    descriptors: Vec<String>,
    maps: usize,
    threads: usize,
}

impl Footprint {
    pub(crate) fn now() -> Self {
        let names = |directory: &str| {
            let entries = std::fs::read_dir(directory).expect("/proc").flatten();
            entries
                .map(|entry| std::fs::read_link(entry.path()).map_or(String::new(), |to| to.display().to_string()))
                .collect()
        };
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self {
            descriptors: names("/proc/self/fd"),
            maps: maps.lines().filter(|line| line.contains("memfd:proxystore")).count(),
            threads: std::fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count()),
        }
    }

    /// Whether it is what one attachment with that many segments needs, hosting included.
    pub(crate) fn fits(&self, before: &Self, segments: usize) -> Result<(), String> {
        // Attached: control, segments, socket, doorbell, two lock files. Hosting: control and segments again, listener,
        // epoll, stop, its own connection and pidfd.
        let descriptors = before.descriptors.len() + 2 * (1 + segments) + 12;
        // Control and segments for reading and writing, the control segment again for the service.
        let maps = 3 + 3 * segments;
        if self.descriptors.len() > descriptors || self.maps > maps || self.threads > before.threads + 4 {
            return Err(format!(
                "{segments} segments, at most {descriptors} descriptors and {maps} maps: {self:?}, before {before:?}"
            ));
        }
        Ok(())
    }
}

/// How long what nobody uses may take to be free.
const SETTLES: Duration = Duration::from_secs(10);
