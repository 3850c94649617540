//! `Margo`: the fabric over Mochi Margo and Mercury: Slingshot by libfabric's `cxi`, InfiniBand, TCP.
//!
//! ```text
//!   requester                                                       owner
//!   MargoPeer ─ Link ══ control connection (TCP, proved) ══ Door ─ Session ─ Service
//!     Ask ── RPC: token, question ──────────────────────────────────> │ answers in the progress thread
//!      │  <── description: small parts are in it ──────────────────── │ pins the others
//!      └─ Transfer ══ pulls from registered memory ═══════════════════╡
//!      └─ RPC without an answer: released ──────────────────────────> │ unpins
//! ```
//!
//! The control connection carries the proof of the secret, Margo's address, signs of life, and the descriptions of answers
//! that were held back: no RPC stays open. Who has a session's token was let in there. No user-level thread runs code of
//! this crate but the progress loop's own, by callbacks.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::config::ConnectorConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::handshake::{Identity, Purpose};
use crate::fabric::tcp::{self, Tcp};
use crate::fabric::{Call, Fabric, Listener, Peer, Segments, Service};
use crate::sync::lock;

mod ask;
mod memory;
#[expect(unsafe_code, reason = "calls into Margo")]
mod native;
mod owner;
mod peer;
mod protocol;
mod session;
#[cfg(test)]
mod tests;
mod wire;

use memory::Memory;
use native::{Access, Address, Instance};
use peer::MargoPeer;
#[doc(hidden)]
pub use wire::check_margo;
use wire::{Control, Welcome};

/// The fabric of Margo.
pub(crate) struct Margo {
    /// Carries the control connections.
    tcp: Tcp,
    options: Options,
    segments: OnceLock<Arc<dyn Segments>>,
    /// Instances that requests go out by, with what is registered for their answers.
    memories: Mutex<Vec<(Arc<Instance>, Arc<Memory>)>>,
}

/// What may be chosen.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Mercury's name of what moves the bytes, such as `ofi+cxi`; without it, what the owner thinks best.
    pub(crate) protocol: Option<String>,
    /// How long a peer may show no sign of life before it counts as dead.
    pub(crate) silence: Duration,
    /// How long a thread looks for its answer before it sleeps.
    pub(crate) spin: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { protocol: None, silence: crate::environment::timeout(), spin: Duration::from_micros(100) }
    }
}

impl Options {
    /// What a URL says, which has to be what this machine can do.
    ///
    /// # Errors
    /// `Unavailable` without a usable Margo, naming every place that was tried; `Config` for a protocol that is none, or that
    /// Mercury does not have here, naming those that it has.
    pub(crate) fn of(config: &ConnectorConfig) -> Result<Self> {
        let name = |text: &str| protocol::is_one(text).then(|| text.to_owned());
        let protocol = config.parse_option("protocol", "one of Mercury, such as ofi+tcp", name)?;
        let spin = config.parse_option("spin", "a duration such as 100us", crate::environment::parse_duration)?;
        native::load()?;
        if let Some(protocol) = &protocol {
            protocol::check(protocol)?;
        }
        let default = Self::default();
        Ok(Self { protocol, spin: spin.unwrap_or(default.spin), ..default })
    }
}

impl Margo {
    /// Nothing is started yet.
    pub(crate) fn new(identity: Identity, options: Options) -> Self {
        let control = tcp::Options { silence: options.silence, ..tcp::Options::default() };
        Self { tcp: Tcp::new(identity, control), options, segments: OnceLock::new(), memories: Mutex::default() }
    }

    /// Asks on a control connection where Margo is, and makes a peer of both.
    fn meet(&self, control: &Arc<dyn Peer>, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let silence_ms = u32::try_from(self.options.silence.as_millis()).unwrap_or(u32::MAX);
        let wanted = self.options.protocol.clone().unwrap_or_default();
        // A device is this node's affair.
        let kind = wanted.split("://").next().unwrap_or_default().to_owned();
        let hello = Call::small(Control::Hello { silence_ms, wanted: kind }.encode());
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = Arc::clone(control).request(hello).deadline(left).wait()?;
        let corrupt = |error: Error| Error::new(ErrorKind::Corrupt, "connect", error.context().to_owned());
        let (token, there) = match Welcome::decode(&answer.head).map_err(corrupt)? {
            Welcome::Here { token, address } => (token, address),
            Welcome::Not(reason) => {
                let context = format!("{contact} does not answer over Margo: {reason}");
                return Err(Error::new(ErrorKind::Unavailable, "connect", context));
            }
        };
        let protocol = protocol::of(&there);
        protocol::check(protocol)?;
        let here = match protocol::of(&wanted) == protocol {
            true => wanted.as_str(),
            false => protocol,
        };
        let instance = Instance::shared(&protocol::address(here, source(contact)), false)?;
        let address = Address::lookup(&instance, &there)?;
        let memory = self.memory(&instance);
        Ok(MargoPeer::new(Arc::clone(control), contact, (instance, address), memory, token, &self.options))
    }

    fn memory(&self, instance: &Arc<Instance>) -> Arc<Memory> {
        let mut memories = lock(&self.memories);
        if let Some((_, memory)) = memories.iter().find(|(known, _)| Arc::ptr_eq(known, instance)) {
            return Arc::clone(memory);
        }
        let memory = Memory::new(instance, Access::Landings, self.segments.get().cloned());
        memories.push((Arc::clone(instance), Arc::clone(&memory)));
        memory
    }
}

/// What answers the control connections of a node, for `service`; `own` is where they are answered.
pub(crate) fn door(service: Arc<dyn Service>, memory: Option<Arc<dyn Segments>>, own: SocketAddr) -> Arc<dyn Service> {
    Arc::new(owner::Door::new(service, memory, own))
}

impl Fabric for Margo {
    fn scheme(&self) -> &'static str {
        "margo"
    }

    fn register(&self, memory: Arc<dyn Segments>) {
        let _ = self.segments.set(memory);
    }

    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
        let own = addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let door = door(service, self.segments.get().cloned(), own);
        self.tcp.listen_for(addresses, vec![(Purpose::Margo, door)])
    }

    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        native::exits()?;
        if native::is_forked() {
            // Every owner answers over TCP as well.
            return self.tcp.connect(contact, deadline);
        }
        native::load()?;
        loop {
            let control = self.tcp.control(Purpose::Margo, contact, deadline)?;
            match self.meet(&control, contact, deadline) {
                // Whoever let this in and ended before the greeting was there, however long that took: a service that is started
                // again, for which `control` waits. It may end so more than once.
                Err(error)
                    if error.kind() == ErrorKind::PeerDown && !control.is_up() && Instant::now() + PAUSE < deadline =>
                {
                    std::thread::sleep(PAUSE);
                }
                met => return met,
            }
        }
    }
}

impl std::fmt::Debug for Margo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Margo({:?})", self.options)
    }
}

/// This node's address on the way to another one; nothing is sent to find out.
fn source(contact: SocketAddr) -> SocketAddr {
    let any: IpAddr = if contact.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let found = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(contact)?;
        socket.local_addr()
    });
    found.unwrap_or(contact)
}

/// Before somebody is looked for again who has just ended.
const PAUSE: Duration = Duration::from_millis(20);
