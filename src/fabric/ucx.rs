//! `Ucx`: the fabric of RDMA adapters, over libucp.
//!
//! ```text
//!   requester                                                owner
//!   UcxPeer ── Driver ── Worker ══ active messages ══ Worker ── Desk (a thread) ── Service
//!      │         └ who waits drives                                │ answers go from pinned, registered memory
//!      └─────── control connection: TCP, proved; its end is the first sign of death ── Owner
//! ```
//!
//! The control connection carries the workers' addresses and two random names by which messages are known. A question is one
//! active message, an answer another: short ones come whole, long ones are fetched by the requester's worker into the
//! landings that it chose (rendezvous). Contexts are made for active messages alone, see [`context::Context`].

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use ucx_sys::Version;

use super::handshake::{Identity, Purpose};
use super::tcp::{self, Tcp};
use super::{Fabric, Listener, Peer, Segments, Service};
use crate::config::ConnectorConfig;
use crate::environment;
use crate::error::{Error, Result};
use crate::sync::lock;

#[expect(unsafe_code, reason = "filters of the kernel at descriptors of UCX")]
mod admission;
mod calls;
#[expect(unsafe_code, reason = "descriptors of UCX")]
mod connections;
#[expect(unsafe_code, reason = "calls of UCX")]
mod context;
mod devices;
mod driver;
#[expect(unsafe_code, reason = "calls of UCX")]
mod endpoint;
#[expect(unsafe_code, reason = "a function of the C library")]
mod exit;
mod greeting;
#[expect(unsafe_code, reason = "calls of UCX")]
mod memory;
mod message;
mod numbered;
#[expect(unsafe_code, reason = "memory that UCX has, and gives")]
mod operation;
mod owner;
mod peer;
mod reader;
mod spin;
#[cfg(test)]
mod tests;
#[expect(unsafe_code, reason = "calls of UCX")]
mod worker;

use context::{Context, Setting};
use driver::Driver;
#[doc(hidden)]
pub use message::check_messages;
pub(crate) use owner::Owner;
use reader::Reader;

/// The fabric of UCX's transports.
pub(crate) struct Ucx {
    control: Tcp,
    options: Options,
    segments: Mutex<Vec<Arc<dyn Segments>>>,
    /// Made with the first connection: it costs some ten milliseconds.
    driver: Mutex<Option<Arc<Driver>>>,
    /// The same, where owners' memory is to be read; `None` inside where that is impossible here.
    reader: OnceLock<Option<Arc<Reader>>>,
}

/// What may be chosen.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long a peer may show no sign of life before it counts as dead. At least 100 ms.
    pub(crate) silence: Duration,
    /// How long a thread looks for events before it sleeps, at most.
    pub(crate) spin: Duration,
    /// For how long a task drives at its first look, at most; no longer than `spin`.
    pub(crate) look: Duration,
    /// A connection of which nothing was asked for so long is closed, within twice the time; zero for never.
    pub(crate) idle: Duration,
    /// Bytes of answers on their way to one requester; the answer that goes beyond waits, unless it is the only one.
    pub(crate) flying: u64,
    /// Bytes of answers that may be on their way to one requester or wait behind those; beyond, its questions wait. The answer that
    /// goes beyond is whole.
    pub(crate) queued: u64,
    /// Small parts go together, in messages of so many bytes at most.
    pub(crate) packed: u64,
    /// Answers that may be held back, of all requesters; that may wait for one of them to take those before; and questions of one that
    /// wait for it to do so.
    pub(crate) held: usize,
    /// Devices that may be used, as in `UCX_NET_DEVICES`; where there are none, those on which this node listens.
    pub(crate) devices: Vec<String>,
    /// Transports, as in `UCX_TLS`.
    pub(crate) transports: Option<String>,
    /// From how many bytes on a message is fetched by its receiver, as in `UCX_RNDV_THRESH`.
    pub(crate) rendezvous: Option<u64>,
    /// From how many bytes on that is so whatever UCX would choose, where nobody said anything.
    pub(crate) fetched: Option<u64>,
    pub(crate) one_sided: OneSided,
}

/// Whether owners' memory is read without their processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OneSided {
    Off,
    /// Where an adapter, or the kernel, does it.
    Auto,
    /// Or the store is not opened.
    On,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            silence: crate::environment::timeout(),
            spin: Duration::from_micros(100),
            look: spin::FIRST,
            idle: Duration::from_secs(300),
            flying: 8 << 20,
            queued: 64 << 20,
            packed: PACKED,
            held: 1 << 16,
            devices: Vec::new(),
            transports: None,
            rendezvous: None,
            fetched: Some(FETCHED),
            one_sided: OneSided::Off,
        }
    }
}

impl Options {
    /// What a URL says.
    ///
    /// # Errors
    /// `Config` for values that are none.
    pub(crate) fn of(config: &ConnectorConfig) -> Result<Self> {
        let list = |text: &str| Some(text.split(',').map(str::to_owned).collect()).filter(|_| !text.is_empty());
        let text = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let default = Self::default();
        Ok(Self {
            devices: config.parse_option("devices", "names as in UCX_NET_DEVICES", list)?.unwrap_or_default(),
            transports: config.parse_option("tls", "names as in UCX_TLS", text)?,
            rendezvous: config.parse_option("rndv", "a number of bytes such as 64KiB", environment::parse_bytes)?,
            one_sided: config
                .parse_option("one_sided", "auto, on or off", |text| match text {
                    "off" => Some(OneSided::Off),
                    "auto" => Some(OneSided::Auto),
                    "on" => Some(OneSided::On),
                    _ => None,
                })?
                .unwrap_or(default.one_sided),
            spin: config
                .parse_option("spin", "a duration such as 20us", environment::parse_duration)?
                .unwrap_or(default.spin),
            idle: config
                .parse_option("idle", "a duration such as 5m, or 0s for never", environment::parse_duration)?
                .unwrap_or(default.idle),
            ..default
        })
    }
}

impl Ucx {
    /// # Errors
    /// `Unavailable` where there is no UCX, with all places that were tried; where memory has to be read one-sided, and cannot.
    pub(crate) fn new(identity: Identity, options: Options) -> Result<Self> {
        context::load()?;
        let options = Options { silence: options.silence.max(tcp::LEAST_SILENCE), ..options };
        let control = Tcp::new(identity, tcp::Options { silence: options.silence, ..tcp::Options::default() });
        let reader = OnceLock::new();
        if options.one_sided == OneSided::On {
            let _ = reader.set(Some(Reader::new(&options)?));
        }
        Ok(Self { control, options, segments: Mutex::default(), driver: Mutex::default(), reader })
    }

    fn reader(&self) -> Option<Arc<Reader>> {
        let make = || {
            let reader = match self.options.one_sided {
                OneSided::Off => return None,
                OneSided::Auto | OneSided::On => Reader::new(&self.options).ok()?,
            };
            lock(&self.segments).iter().for_each(|segments| reader.register(Arc::clone(segments)));
            Some(reader)
        };
        self.reader.get_or_init(make).clone()
    }

    fn has_begun(&self) -> bool {
        lock(&self.driver).as_ref().is_some_and(|driver| driver.check_process().is_ok())
    }

    fn driver(&self) -> Result<Arc<Driver>> {
        let mut driver = lock(&self.driver);
        match &*driver {
            // A forked child has none of the parent's.
            Some(driver) if driver.check_process().is_ok() => Ok(Arc::clone(driver)),
            _ => {
                let context = Arc::new(Context::new(&settings(&self.options))?);
                lock(&self.segments).iter().for_each(|segments| context.memory.add(Arc::clone(segments)));
                let made = Driver::new(context, &self.options)?;
                *driver = Some(Arc::clone(&made));
                Ok(made)
            }
        }
    }
}

impl Fabric for Ucx {
    fn scheme(&self) -> &'static str {
        "ucx"
    }

    fn register(&self, memory: Arc<dyn Segments>) {
        if let Some(Some(reader)) = self.reader.get() {
            reader.register(Arc::clone(&memory));
        }
        lock(&self.segments).push(memory);
    }

    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
        let owner = owner(&self.options, service)?;
        lock(&self.segments).iter().for_each(|segments| owner.register(Arc::clone(segments)));
        self.control.listen_for(addresses, vec![(Purpose::Ucx, owner)])
    }

    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let reach = || {
            let control = self.control.control(Purpose::Ucx, contact, deadline)?;
            let hosts = greeting::hosts(&control, contact, deadline)?;
            Ok((control, hosts))
        };
        let begin = || (self.driver(), self.reader());
        let (reached, (driver, reader)) =
            if self.has_begun() { (reach(), begin()) } else { side_by_side(reach, begin) };
        let (control, hosts) = reached?;
        Ok(Arc::new(peer::UcxPeer::meet(&driver?, reader, control, contact, hosts, deadline)?))
    }
}

impl fmt::Debug for Ucx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ucx({:?})", self.control)
    }
}

/// Both; the second on a thread of its own, if there is one to be had.
fn side_by_side<A, B: Send>(first: impl FnOnce() -> A, second: impl Fn() -> B + Sync) -> (A, B) {
    std::thread::scope(|scope| {
        let second = &second;
        let other = std::thread::Builder::new().name("proxystore-ucx".to_owned()).spawn_scoped(scope, second);
        let done = first();
        let other = match other {
            Ok(other) => other.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload)),
            Err(_) => second(),
        };
        (done, other)
    })
}

/// The answering side, for a listener's connections of [`Purpose::Ucx`].
///
/// # Errors
/// `Io` for want of descriptors.
pub(crate) fn owner(options: &Options, service: Arc<dyn Service>) -> Result<Arc<Owner>> {
    let is_chosen = options.rendezvous.is_some() || context::is_set_by_user("RNDV_THRESH");
    let fetched = options.fetched.filter(|_| !is_chosen);
    let options = Options { silence: options.silence.max(tcp::LEAST_SILENCE), fetched, ..options.clone() };
    Owner::new(&options, service)
}

/// By which transports memory of other nodes would be read from this one.
///
/// # Errors
/// `Unavailable` where nothing does that, with the reason.
pub(crate) fn one_sided() -> Result<String> {
    reader::probe(&Options::default())
}

/// Whether hosts that proved nothing are kept out of UCX's ports here, found out by having it listen.
///
/// # Cost
/// As that of a first connection.
pub(crate) fn is_guarded() -> bool {
    let context = Context::new(&settings(&Options::default())).map(Arc::new);
    context.and_then(|context| worker::Worker::new(&context)).is_ok_and(|worker| worker.is_guarded())
}

/// What holds where the user does not say otherwise by `UCX_NAME`.
fn settings(options: &Options) -> Vec<Setting> {
    let ports = admission::some_ports();
    let mut settings = vec![
        // Segments of 8 KiB, UCX's choice, cost a factor of four to ten from 64 KiB on.
        Setting { name: "TCP_TX_SEG_SIZE", value: "256k".to_owned() },
        Setting { name: "TCP_RX_SEG_SIZE", value: "256k".to_owned() },
        // Within a node memory is mapped, and nothing of UCX is used; its transports for that lack peer failures.
        Setting { name: "TLS", value: options.transports.clone().unwrap_or_else(|| "^sm".to_owned()) },
        // The control connection notices dead and silent peers.
        Setting { name: "KEEPALIVE_INTERVAL", value: "inf".to_owned() },
        Setting { name: context::PORTS, value: format!("{}-{}", ports.start(), ports.end()) },
    ];
    // Or a step of UCX, and with it everything of this process, waits two minutes for a host that does not answer.
    if context::load().is_ok_and(|ucx| ucx.version() >= CONNECTS_ASIDE) {
        settings.push(Setting { name: "TCP_CONN_NB", value: "y".to_owned() });
    }
    let devices = if options.devices.is_empty() { devices::of_this_node() } else { options.devices.clone() };
    // Named as `mlx5_0:1`, where interfaces are named as `eth0`. Those that read keep the right to write to the landings where it
    // belongs; UCX would now and then have the owner write. Over TCP, where it is all the same, reading is slower.
    if devices.iter().any(|device| device.contains(':')) {
        settings.push(Setting { name: "RNDV_SCHEME", value: "get_zcopy".to_owned() });
    }
    if !devices.is_empty() {
        settings.push(Setting { name: "NET_DEVICES", value: devices.join(",") });
    }
    if let Some(bytes) = options.rendezvous {
        settings.push(Setting { name: "RNDV_THRESH", value: bytes.to_string() });
    }
    settings
}

/// Since when a connection that fails later does not end the process by an assertion (`ucp_request_send_state_ff`).
const CONNECTS_ASIDE: Version = Version { major: 1, minor: 14, release: 0 };

/// With what TCP and UCX put before it this is less than the 64 KiB that go through a network's layers at once; a little more would go
/// through them twice.
const PACKED: u64 = 60 << 10;

/// What no longer fits into one segment of UCX's TCP, with what goes before it. From there on UCX 1.22 would still send it in many
/// of them, up to 25 MB, for the receiver to put together and copy.
const FETCHED: u64 = 255 << 10;

fn event() -> Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .map_err(|errno| Error::io("connect", "an eventfd", errno.into()))
}

fn ring(event: &OwnedFd) {
    let _ = rustix::io::write(event, bytemuck::bytes_of(&1u64));
}
