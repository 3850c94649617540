//! `Peers`: connections to other nodes, made when first needed and again when they broke.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Fabric, Peer};
use crate::key::random_number;
use crate::sync::lock;

/// The peers of a store, by the address of their node service.
pub(super) struct Peers {
    fabric: Arc<dyn Fabric>,
    places: Mutex<HashMap<SocketAddr, Arc<Place>>>,
}

/// One peer: one thread at a time connects, the others wait for it.
#[derive(Default)]
struct Place {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
enum State {
    #[default]
    Idle,
    Connecting,
    Up(Arc<dyn Peer>),
    /// Nobody tries again before that time: who asks meanwhile is told what the last attempt was.
    Down {
        until: Instant,
        pause: Duration,
        error: Error,
    },
}

impl Peers {
    pub(super) fn new(fabric: Arc<dyn Fabric>) -> Self {
        Self { fabric, places: Mutex::default() }
    }

    fn place(&self, contact: SocketAddr) -> Arc<Place> {
        Arc::clone(lock(&self.places).entry(contact).or_default())
    }

    /// The peer, if there is a connection.
    pub(super) fn current(&self, contact: SocketAddr) -> Option<Arc<dyn Peer>> {
        let place = Arc::clone(lock(&self.places).get(&contact)?);
        match &*lock(&place.state) {
            State::Up(peer) if peer.is_up() => Some(Arc::clone(peer)),
            _ => None,
        }
    }

    /// The peer; connects to it where there is no connection.
    ///
    /// # Errors
    /// As [`Fabric::connect`]; a peer that could not be reached a moment ago is not tried again at once.
    pub(super) fn reach(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let place = self.place(contact);
        let mut state = lock(&place.state);
        let former = loop {
            match &*state {
                State::Up(peer) if peer.is_up() => return Ok(Arc::clone(peer)),
                State::Down { until, error, .. } if Instant::now() < *until => return Err(error.clone()),
                State::Down { pause, .. } => break *pause,
                State::Up(_) | State::Idle => break Duration::ZERO,
                State::Connecting => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        let context = format!("{contact} has not answered yet");
                        return Err(Error::new(ErrorKind::Timeout, "connect", context));
                    }
                    state = place.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        };
        *state = State::Connecting;
        drop(state);
        let reached = self.fabric.connect(contact, deadline);
        let next = match &reached {
            Ok(peer) => State::Up(Arc::clone(peer)),
            // The caller's time was over, which says nothing of the peer.
            Err(error) if error.kind() == ErrorKind::Timeout => State::Idle,
            Err(error) => {
                let pause = (former * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
                // Between a half and all of it, so that those who lost the same peer do not come back together.
                let jitter = pause.mul_f64(0.5 + 0.5 * (random_number() >> 11) as f64 / (1u64 << 53) as f64);
                State::Down { until: Instant::now() + jitter, pause, error: error.clone() }
            }
        };
        let former = std::mem::replace(&mut *lock(&place.state), next);
        place.changed.notify_all();
        drop(former);
        reached
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        let places: Vec<_> = lock(&self.places).drain().map(|(_, place)| place).collect();
        for place in places {
            if let State::Up(peer) = std::mem::take(&mut *lock(&place.state)) {
                peer.close();
            }
        }
    }
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peers({:?})", self.fabric)
    }
}

/// How long a peer that could not be reached is left alone, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(2);
