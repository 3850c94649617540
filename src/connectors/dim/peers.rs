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
    /// Nobody tries again before that time: who asks meanwhile is told what the last attempt was. It was for objects of this
    /// instance of the peer's memory; keys of another one tell that there is a new process since, which is tried at once.
    Down {
        until: Instant,
        instance: u64,
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

    /// The peer, for objects of an instance of its memory; connects to it where there is no connection.
    ///
    /// # Errors
    /// As [`Fabric::connect`]; a peer that could not be reached a moment ago, for that instance, is not tried again at once.
    pub(super) fn reach(&self, contact: SocketAddr, instance: u64, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let place = self.place(contact);
        let mut state = lock(&place.state);
        let former = loop {
            match &*state {
                State::Up(peer) if peer.is_up() => return Ok(Arc::clone(peer)),
                State::Down { until, instance: tried, error, .. } if *tried == instance && Instant::now() < *until => {
                    return Err(error.clone());
                }
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
                State::Down { until: Instant::now() + jitter, instance, pause, error: error.clone() }
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::fabric::{Listener, Service};

    /// Nobody is there; counts who looks.
    #[derive(Debug, Default)]
    struct Nobody(AtomicUsize);

    impl Fabric for Nobody {
        fn scheme(&self) -> &'static str {
            "none"
        }

        fn listen(&self, _: &[SocketAddr], _: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
            unreachable!("nobody answers")
        }

        fn connect(&self, _: SocketAddr, _: Instant) -> Result<Arc<dyn Peer>> {
            self.0.fetch_add(1, Relaxed);
            Err(Error::new(ErrorKind::PeerDown, "connect", "nobody"))
        }
    }

    #[test]
    fn who_is_down_is_left_alone_until_a_key_tells_of_another_process() {
        let nobody = Arc::new(Nobody::default());
        let peers = Peers::new(Arc::clone(&nobody) as Arc<dyn Fabric>);
        let contact = SocketAddr::from(([192, 0, 2, 1], 1));
        let reach = |instance| {
            let down = peers.reach(contact, instance, Instant::now() + Duration::from_secs(9)).unwrap_err();
            assert_eq!(down.kind(), ErrorKind::PeerDown);
            nobody.0.load(Relaxed)
        };
        // Until the pause is longer than this takes, however busy the machine is.
        let tried = loop {
            let tried = reach(1);
            if reach(1) == tried {
                break tried;
            }
        };
        assert_eq!(reach(2), tried + 1);
    }
}
