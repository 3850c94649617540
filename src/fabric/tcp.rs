//! `Tcp`: the fabric that every machine has, in pure Rust.
//!
//! ```text
//!   requester                                              owner
//!   TcpPeer ─ lanes ─ Stream ═══ one TCP connection ═══ Connection ─ Worker (a thread, many connections) ─ Service
//!               │       └ Calls: who waits reads for all      └ answers go from pinned memory into the socket
//!               └ Reactor: reads for tasks, one thread a process
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::fabric::handshake::{Identity, Purpose};
use crate::fabric::{Fabric, Listener, Peer, Service};

mod calls;
mod connection;
mod door;
#[cfg(test)]
#[expect(unsafe_code, reason = "fork has no safe form")]
pub(crate) mod fork;
mod frame;
mod listener;
mod peer;
mod reactor;
mod reader;
#[expect(unsafe_code, reason = "the kernel writes to memory that is not initialised")]
mod scatter;
mod socket;
mod stream;
#[cfg(test)]
mod tests;
mod worker;

#[doc(hidden)]
pub use frame::check_frames;

/// The fabric of TCP connections.
#[derive(Debug)]
pub(crate) struct Tcp {
    identity: Identity,
    options: Options,
}

/// What may be chosen.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How long a peer may show no sign of life before it counts as dead. At least 100 ms.
    pub(crate) silence: Duration,
    /// Streams to one peer, connected when they are first used.
    pub(crate) lanes: usize,
    /// Bytes of answers that may wait for one requester to read, on all its streams; beyond, its questions wait. The answer
    /// that goes beyond is whole.
    pub(crate) queued: u64,
    /// Answers that one requester may have held back; questions beyond are refused.
    pub(crate) held: usize,
    /// Handshakes at once.
    pub(crate) handshakes: usize,
    /// How long a handshake may take.
    pub(crate) handshake: Duration,
    /// Whether parts carry checksums, which costs both sides a pass over the bytes. TCP has its own, of 16 bits.
    pub(crate) checksums: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            silence: crate::environment::timeout(),
            lanes: 4,
            queued: 64 << 20,
            held: 1 << 16,
            handshakes: 64,
            handshake: Duration::from_secs(5),
            checksums: false,
        }
    }
}

impl Tcp {
    pub(crate) fn new(identity: Identity, options: Options) -> Self {
        let options = Options { silence: options.silence.max(LEAST_SILENCE), ..options };
        Self { identity, options }
    }

    /// As [`Fabric::listen`], with a service for each purpose that a connection may have: those of other fabrics are their
    /// control connections.
    pub(crate) fn listen_for(
        &self,
        addresses: &[SocketAddr],
        services: Vec<(Purpose, Arc<dyn Service>)>,
    ) -> Result<Box<dyn Listener>> {
        Ok(Box::new(listener::TcpListener::new(&self.identity, &self.options, addresses, services)?))
    }

    /// As [`Fabric::connect`], for one stream on which another fabric's peers agree.
    #[allow(dead_code, reason = "for fabrics over native libraries")]
    pub(crate) fn control(&self, purpose: Purpose, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let options = Options { lanes: 1, ..self.options.clone() };
        Ok(peer::TcpPeer::connect(&self.identity, &options, purpose, contact, deadline)?)
    }
}

impl Fabric for Tcp {
    fn scheme(&self) -> &'static str {
        "tcp"
    }

    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
        self.listen_for(addresses, vec![(Purpose::Tcp, service)])
    }

    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        Ok(peer::TcpPeer::connect(&self.identity, &self.options, Purpose::Tcp, contact, deadline)?)
    }
}

/// Below, a busy machine's scheduling would look like death.
pub(super) const LEAST_SILENCE: Duration = Duration::from_millis(100);
