//! `Reader`: the requester's other worker, by which it reads owners' memory without their processes.
//!
//! ```text
//!   requester                                                owner
//!   Reading ── Hello::Segment, on the control connection ──> Desk: registers it, if it was not     once a segment
//!           <── Welcome::Segment: where it lies, its key ───
//!   Reader ── Worker ══ read by an adapter, or the kernel ══ memory; its process does nothing
//! ```
//!
//! It has a context of its own: of the transports that can do that, without emulation, and for reading alone.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ucx_sys::{UCS_OK, Version};

use super::Options;
use super::context::{self, Aim, Context, Setting, failed};
use super::devices;
use super::exit::{EXIT, exiting};
use super::greeting;
use super::message::{Hello, Welcome};
use super::operation::{About, Body, Event, Finished, Operation};
use super::spin::Spin;
use super::worker::{Events, Worker};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Landing, Peer, Segment, Segments, Spot};
use crate::region::RegionMut;
use crate::sync::lock;

/// A worker that reads. Whoever reads drives it, a step at a time.
pub(super) struct Reader {
    desk: Mutex<Desk>,
    context: Arc<Context>,
    events: Events,
    silence: Duration,
    /// As in `UCX_TLS`.
    transports: String,
    generation: u32,
}

struct Desk {
    worker: Worker,
    last: u64,
    /// Reads that somebody waits for; their ends, when these have come.
    reads: HashMap<u64, Option<Finished>>,
    /// What sleeps were like.
    spin: Spin,
}

impl Reader {
    /// # Errors
    /// `Unavailable` where nothing here reads memory without its owner, or it is not certain that it would.
    pub(super) fn new(options: &Options) -> Result<Arc<Self>> {
        let ucx = context::load()?;
        if ucx.version() < CERTAIN {
            let context = format!(
                "UCX {} may emulate reading by messages and cannot be told not to, {CERTAIN} and newer can",
                ucx.version()
            );
            return Err(Error::new(ErrorKind::Unavailable, "open", context));
        }
        let set = context::user_setting("TLS").map(|set| set.to_string_lossy().into_owned());
        let transports = Transports::of(set.as_deref().or(options.transports.as_deref()))?;
        // UCX would complain on standard error.
        if transports.need_an_adapter() && !devices::has_adapter() {
            return Err(Error::new(ErrorKind::Unavailable, "open", "this node has no RDMA adapter that is up"));
        }
        Self::over(options, &transports)
    }

    fn over(options: &Options, transports: &Transports) -> Result<Arc<Self>> {
        let names = transports.0.join(",");
        let fixed = [("TLS", names.as_str()), ("PROTO_ENABLE", "y"), ("PROTO_EMULATION_ENABLE", "n")];
        let fixed = fixed.map(|(name, value)| Setting { name, value: value.to_owned() });
        let aim = Aim::Reads { tells_failures: !transports.are_within_a_node() };
        let context = Context::of(aim, &super::settings(options), &fixed).map_err(|error| {
            let context = format!("nothing reads memory by {names}: {}", error.context());
            Error::new(ErrorKind::Unavailable, "open", context)
        })?;
        let context = Arc::new(context);
        let worker = Worker::new(&context)?;
        let events = worker.events();
        let spin = Spin::new(options.spin);
        let desk = Mutex::new(Desk { worker, last: 0, reads: HashMap::new(), spin });
        let silence = options.silence;
        let generation = crate::process::generation();
        Ok(Arc::new(Self { desk, context, events, silence, transports: names, generation }))
    }

    /// By transports that [`Transports`] would not choose.
    #[cfg(test)]
    pub(super) fn over_these(options: &Options, names: &[&str]) -> Result<Arc<Self>> {
        Self::over(options, &Transports(names.iter().map(|name| name.to_string()).collect()))
    }

    /// Memory that is read into.
    pub(super) fn register(&self, segments: Arc<dyn Segments>) {
        self.context.memory.add(segments);
    }

    fn is_ours(&self) -> bool {
        self.generation == crate::process::generation()
    }

    /// Reads an address of a segment that the link has learnt.
    fn read(&self, link: u64, number: u16, address: u64, into: Landing, deadline: Instant) -> Result<Landing> {
        let deadline = deadline.min(Instant::now() + self.silence);
        let (read, mut spin) = {
            let mut desk = lock(&self.desk);
            desk.last += 1;
            let read = desk.last;
            let about = About::Read { number: read };
            let operation = Operation { about, header: Vec::new(), body: Body::Landing(into) };
            if let Some(finished) = desk.worker.read(link, number, address, operation) {
                return self.landed(finished);
            }
            desk.reads.insert(read, None);
            (read, desk.spin)
        };
        spin.begin(Instant::now());
        loop {
            let (moved, ended, now) = {
                let mut desk = lock(&self.desk);
                let moved = desk.step();
                let ended = desk.reads.get_mut(&read).and_then(Option::take);
                // One look at the clock: who gives up has nothing left here.
                let now = Instant::now();
                if ended.is_some() || now >= deadline {
                    desk.reads.remove(&read);
                }
                (moved, ended, now)
            };
            match ended {
                Some(finished) => return self.landed(finished),
                // The operation keeps its memory until it ends.
                None if now >= deadline => {
                    return Err(Error::new(ErrorKind::Timeout, "get", "memory was not read in time"));
                }
                None if EXIT.has_begun() => {
                    lock(&self.desk).reads.remove(&read);
                    return Err(exiting());
                }
                None if moved => spin.begin(now),
                None if spin.goes_on(now, false) => std::hint::spin_loop(),
                None => {
                    self.sleep();
                    spin.slept(now, Instant::now());
                    lock(&self.desk).spin = spin;
                }
            }
        }
    }

    /// Ends a link, and what is on its way over it; nobody else may call for long.
    fn close(&self, link: u64) {
        let mut desk = lock(&self.desk);
        desk.worker.close(link);
        let until = Instant::now() + CLOSING;
        while Instant::now() < until {
            desk.step();
        }
    }

    fn landed(&self, finished: Finished) -> Result<Landing> {
        match (finished.operation.body, finished.status) {
            (Body::Landing(landing), UCS_OK) => Ok(landing),
            (_, status) => Err(failed(self.context.ucx(), "read memory of the owner", status)),
        }
    }

    /// Waits for something to do, and no longer than it takes to see what another one's step has brought.
    fn sleep(&self) {
        if !matches!(lock(&self.desk).worker.arm(), Ok(true)) {
            return;
        }
        let moment = Timespec { tv_sec: 0, tv_nsec: MOMENT.as_nanos() as i64 };
        let _ = poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&moment));
    }
}

/// Reads memory of this process as if it were another's; by which transports.
///
/// # Errors
/// As [`Reader::new`]; `Unavailable` with the reason why it was not read.
pub(super) fn probe(options: &Options) -> Result<String> {
    let reader = Reader::new(options)?;
    let context = Arc::new(Context::new(&super::settings(options))?);
    let memory = Arc::new(Probe((0..4096u32).map(|i| (i * 31) as u8).collect()));
    context.memory.add(Arc::clone(&memory) as Arc<dyn Segments>);
    let mut owner = Worker::new(&context)?;
    let address = owner.address()?;
    let packed = context.memory.packed(context.ucx(), context.raw(), 0)?;
    let landing = Landing::whole(RegionMut::heap(memory.0.len())?, memory.0.len())?;
    let is_over = AtomicBool::new(false);
    let read = std::thread::scope(|scope| {
        // Adapters meet by messages.
        scope.spawn(|| {
            while !is_over.load(Acquire) {
                owner.progress(&mut |_, _| true);
                std::thread::yield_now();
            }
        });
        let read = || {
            {
                let mut desk = lock(&reader.desk);
                desk.worker.connect(0, &address, Vec::new())?;
                desk.worker.learn(0, 0, &packed.key)?;
            }
            reader.read(0, 0, packed.base, landing, Instant::now() + PROBE)
        };
        let read = read();
        is_over.store(true, Release);
        read
    });
    let unavailable = |error: Error| Error::new(ErrorKind::Unavailable, "open", error.context().to_owned());
    match read.map_err(unavailable)?.into_room()?.as_slice() == memory.0 {
        true => Ok(reader.transports.clone()),
        false => Err(Error::new(ErrorKind::Unavailable, "open", "other bytes were read than there are")),
    }
}

struct Probe(Vec<u8>);

impl Segments for Probe {
    fn segment_of(&self, _: usize) -> Option<Segment> {
        None
    }

    fn numbered(&self, _: u16) -> Option<Segment> {
        let start = self.0.as_ptr().expose_provenance();
        Some(Segment { addresses: start..start + self.0.len(), views: None })
    }
}

impl Desk {
    /// One step of UCX; whether there was anything.
    fn step(&mut self) -> bool {
        let moved = self.worker.progress(&mut |_, _| true);
        while let Some(event) = self.worker.event() {
            match event {
                Event::Finished(finished) => {
                    // Of a read that nobody waits for any more, its memory goes with it.
                    if let About::Read { number } = finished.operation.about {
                        if let Some(place) = self.reads.get_mut(&number) {
                            *place = Some(finished);
                        }
                    }
                }
                Event::Message { data, .. } => self.worker.release(data),
                // Reads of a broken link end in errors, and so does the link.
                Event::Broken { .. } | Event::Closed | Event::Met => {}
            }
        }
        moved
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({:?})", self.context)
    }
}

/// What a connection's owner lets be read.
pub(super) struct Reading {
    reader: Arc<Reader>,
    link: u64,
    /// The owner's worker.
    address: Vec<u8>,
    control: Arc<dyn Peer>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_connected: bool,
    /// First address in the owner's process and length of those that were described.
    segments: HashMap<u16, (u64, u64)>,
    /// Why nothing is read any more.
    failed: Option<String>,
}

impl Reading {
    pub(super) fn new(reader: Arc<Reader>, link: u64, address: Vec<u8>, control: Arc<dyn Peer>) -> Self {
        Self { reader, link, address, control, state: Mutex::default() }
    }

    pub(super) fn is_possible(&self) -> bool {
        lock(&self.state).failed.is_none() && self.reader.is_ours()
    }

    /// As [`Peer::read`].
    pub(super) fn read(&self, spot: Spot, into: Landing, deadline: Instant) -> Result<Landing> {
        let result = self.try_read(spot, into, deadline);
        result.map_err(|error| {
            let mut state = lock(&self.state);
            #[cfg(feature = "tracing")]
            if state.failed.is_none() {
                tracing::debug!(target: "proxystore", reason = error.context(), "owners' memory is read by answers");
            }
            let reason = state.failed.get_or_insert_with(|| error.context().to_owned()).clone();
            if std::mem::take(&mut state.is_connected) && self.reader.is_ours() {
                self.reader.close(self.link);
            }
            Error::new(ErrorKind::Unavailable, "get", reason)
        })
    }

    fn try_read(&self, spot: Spot, into: Landing, deadline: Instant) -> Result<Landing> {
        if !self.is_possible() {
            return Err(Error::new(ErrorKind::Unavailable, "get", "nothing is read any more"));
        }
        let known = lock(&self.state).segments.get(&spot.segment).copied();
        let (base, len) = match known {
            Some(known) => known,
            None => self.learn(spot.segment, deadline)?,
        };
        if spot.offset.checked_add(into.len() as u64).is_none_or(|end| end > len) {
            return Err(Error::new(ErrorKind::Corrupt, "get", "a place outside of the owner's memory"));
        }
        self.reader.read(self.link, spot.segment, base + spot.offset, into, deadline)
    }

    /// Has the owner describe a segment.
    fn learn(&self, number: u16, deadline: Instant) -> Result<(u64, u64)> {
        let packed = match greeting::say(&self.control, &Hello::Segment(number), deadline)? {
            Welcome::Segment(packed) => packed,
            other => return Err(greeting::unexpected("get", other)),
        };
        let mut state = lock(&self.state);
        let mut desk = lock(&self.reader.desk);
        if !std::mem::replace(&mut state.is_connected, true) {
            desk.worker.connect(self.link, &self.address, Vec::new()).inspect_err(|_| state.is_connected = false)?;
        }
        desk.worker.learn(self.link, number, &packed.key)?;
        state.segments.insert(number, (packed.base, packed.len));
        Ok((packed.base, packed.len))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let is_connected = lock(&self.state).is_connected;
        if is_connected && self.reader.is_ours() {
            self.reader.close(self.link);
        }
    }
}

/// How long the end of a link is driven.
const CLOSING: Duration = Duration::from_millis(2);

/// Names of transports that read memory without the process whose it is, and of what they need beside that.
#[derive(Debug, PartialEq, Eq)]
struct Transports(Vec<String>);

impl Transports {
    /// Those among what the user allows, as in `UCX_TLS`.
    ///
    /// # Errors
    /// `Unavailable` where there are none.
    fn of(allowed: Option<&str>) -> Result<Self> {
        let allowed = allowed.unwrap_or("all").trim();
        // What is excluded is mostly what serves within a node.
        if allowed == "all" || allowed.starts_with('^') {
            return Ok(Self(vec!["ib".to_owned()]));
        }
        let names = allowed.split(',').map(str::trim).filter(|name| !name.is_empty());
        let chosen: Vec<String> = names.filter(|name| reads(name) || carries(name)).map(str::to_owned).collect();
        match chosen.iter().any(|name| reads(name)) {
            true => Ok(Self(chosen)),
            false => {
                let context = format!("of the transports {allowed} none reads memory without its owner");
                Err(Error::new(ErrorKind::Unavailable, "open", context))
            }
        }
    }

    fn need_an_adapter(&self) -> bool {
        !self.0.iter().any(|name| ["cma", "xpmem", "knem"].iter().any(|one| name.starts_with(one)))
    }

    fn are_within_a_node(&self) -> bool {
        self.0.iter().any(|name| WITHIN_A_NODE.iter().any(|one| name.starts_with(one)))
    }
}

fn reads(name: &str) -> bool {
    ["ib", "rc", "dc", "srd", "gga", "cma", "xpmem", "knem"].iter().any(|one| name.starts_with(one))
}

/// Whether those that read may need it to meet the owner.
fn carries(name: &str) -> bool {
    ["ud", "sysv", "posix", "self"].iter().any(|one| name.starts_with(one))
}

/// UCX tells no failures of peers over these.
const WITHIN_A_NODE: [&str; 6] = ["cma", "xpmem", "knem", "sysv", "posix", "self"];

/// Since when UCX can be told to read itself, or not at all.
const CERTAIN: Version = Version { major: 1, minor: 21, release: 0 };

/// How long a probe may take.
const PROBE: Duration = Duration::from_secs(2);

/// How long who waits sleeps at most.
const MOMENT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_those_that_read() {
        let of = |allowed: Option<&str>| Transports::of(allowed).map(|transports| transports.0.join(","));
        assert_eq!(of(None).unwrap(), "ib");
        assert_eq!(of(Some("^sm")).unwrap(), "ib");
        assert_eq!(of(Some("rc,ud,tcp")).unwrap(), "rc,ud");
        assert_eq!(of(Some(" tcp, sysv, cma")).unwrap(), "sysv,cma");
        for none in ["tcp", "", "tcp,sysv,posix", "ud_verbs"] {
            assert_eq!(of(Some(none)).unwrap_err().kind(), ErrorKind::Unavailable, "{none}");
        }
        let is_within = |allowed| Transports::of(Some(allowed)).unwrap().are_within_a_node();
        assert!(is_within("sysv,cma") && !is_within("rc_mlx5,ud"));
        let needs = |allowed| Transports::of(Some(allowed)).unwrap().need_an_adapter();
        assert!(needs("^sm") && needs("rc,tcp") && !needs("tcp,sysv,cma"));
    }
}
