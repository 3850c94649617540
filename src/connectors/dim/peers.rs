//! `Peers`: connections to other nodes, made when first needed and again when they broke.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{self, Fabric, Peer};
use crate::key::random_number;
use crate::sync::lock;

/// The peers of a store, by the address of their node service.
pub(super) struct Peers {
    fabric: Arc<dyn Fabric>,
    places: Arc<Mutex<Places>>,
}

#[derive(Default)]
struct Places {
    all: HashMap<SocketAddr, Arc<Place>>,
    /// Whether somebody looks for connections that have ended.
    is_watched: bool,
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
        Self { fabric, places: Arc::default() }
    }

    fn place(&self, contact: SocketAddr) -> Arc<Place> {
        Arc::clone(lock(&self.places).all.entry(contact).or_default())
    }

    /// The peer, if there is a connection.
    pub(super) fn current(&self, contact: SocketAddr) -> Option<Arc<dyn Peer>> {
        let place = Arc::clone(lock(&self.places).all.get(&contact)?);
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
        if reached.is_ok() {
            self.watch();
        }
        reached
    }

    /// Sees to it that connections go which end while nobody asks: they have descriptors.
    fn watch(&self) {
        if !std::mem::replace(&mut lock(&self.places).is_watched, true) {
            watch(Arc::downgrade(&self.places));
        }
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        let places: Vec<_> = lock(&self.places).all.drain().map(|(_, place)| place).collect();
        for place in places {
            if let State::Up(peer) = std::mem::take(&mut *lock(&place.state)) {
                peer.close();
            }
        }
    }
}

/// Lets go of connections that have ended, a look after another as long as there are any.
fn watch(places: Weak<Mutex<Places>>) {
    fabric::after(LOOK, move || {
        let Some(all) = places.upgrade() else { return };
        let (ended, goes_on) = lock(&all).take_ended();
        if goes_on {
            watch(places);
        }
        drop(ended);
    });
}

impl Places {
    /// Connections that have ended, and whether there are others.
    fn take_ended(&mut self) -> (Vec<Arc<dyn Peer>>, bool) {
        let mut ended = Vec::new();
        self.is_watched = false;
        for place in self.all.values() {
            let mut state = lock(&place.state);
            match &*state {
                State::Up(peer) if !peer.is_over() => self.is_watched = true,
                State::Up(peer) => {
                    ended.push(Arc::clone(peer));
                    *state = State::Idle;
                }
                _ => {}
            }
        }
        (ended, self.is_watched)
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

/// How long a connection that has ended may stay.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;
    use std::sync::atomic::{AtomicBool, AtomicUsize};

    use super::*;
    use crate::fabric::{Answer, Call, Listener, Service};
    use crate::pending::Pending;

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

    /// Ends when it is told to.
    #[derive(Debug, Default)]
    struct Mortal(AtomicBool);

    impl Peer for Mortal {
        fn instance(&self) -> u64 {
            1
        }

        fn is_up(&self) -> bool {
            !self.0.load(Relaxed)
        }

        fn request(self: Arc<Self>, _: Call) -> Pending<Answer> {
            unreachable!("nobody asks")
        }

        fn close(&self) {}
    }

    /// Reaches each mortal once.
    #[derive(Debug)]
    struct All(Mutex<Vec<Arc<Mortal>>>);

    impl Fabric for All {
        fn scheme(&self) -> &'static str {
            "none"
        }

        fn listen(&self, _: &[SocketAddr], _: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
            unreachable!("nobody answers")
        }

        fn connect(&self, _: SocketAddr, _: Instant) -> Result<Arc<dyn Peer>> {
            Ok(lock(&self.0).pop().unwrap())
        }
    }

    #[test]
    fn connections_that_ended_go_though_nobody_asks() {
        let mortals: Vec<Arc<Mortal>> = (0..6).map(|_| Arc::default()).collect();
        let peers = Peers::new(Arc::new(All(Mutex::new(mortals.clone()))));
        for port in 1..=5 {
            peers.reach(([192, 0, 2, 1], port).into(), 1, Instant::now() + LOOK).unwrap();
        }
        let counts = || mortals.iter().map(Arc::strong_count).collect::<Vec<_>>();
        let await_counts = |wanted: [usize; 6]| {
            let begun = Instant::now();
            while counts() != wanted {
                assert!(begun.elapsed() < LOOK * 10, "{:?}, and not {wanted:?}", counts());
                std::thread::sleep(LOOK / 50);
            }
        };
        await_counts([2; 6]);
        mortals[1..4].iter().for_each(|mortal| mortal.0.store(true, Relaxed));
        await_counts([2, 1, 1, 1, 2, 2]);
        mortals[4..].iter().for_each(|mortal| mortal.0.store(true, Relaxed));
        // The first is not connected yet.
        await_counts([2, 1, 1, 1, 1, 1]);
        let again = peers.reach(([192, 0, 2, 1], 1).into(), 1, Instant::now() + LOOK).unwrap();
        assert!(again.is_up());
        drop(again);
        await_counts([2, 1, 1, 1, 1, 1]);
        mortals[0].0.store(true, Relaxed);
        await_counts([1; 6]);
    }
}
