//! `Net`: nodes in one process, joined by links whose time is virtual.
//!
//! ```text
//!   Net ── queue of events, by virtual time and then by number
//!    │       Ask ─> Answer ─> Land      each at the time at which its last byte arrives
//!    ├── Node 10.0.0.1 ── Listener 10.0.0.1:40000
//!    └── Node 10.0.0.2 ── End ── requests ── Source: whoever waits for an answer takes events from the queue
//! ```
//!
//! Nothing happens by itself: events are delivered, one at a time, by the thread that waits for an answer or calls
//! [`Net::run`]. Where one thread does everything and the seed is the same, the same things happen at the same times.

use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

mod end;
mod event;
mod state;

pub(crate) use end::Node;
pub(crate) use state::Traffic;

use event::Event;
use state::State;

/// All nodes and links of a simulation.
#[derive(Clone)]
pub(crate) struct Net(Arc<Shared>);

struct Shared {
    time: Time,
    state: Mutex<State>,
    /// Something in the state changed that a waiting thread may want.
    changed: Condvar,
}

/// What passes when no event is left and somebody still waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    /// Real time: another thread will do something. Links still take no real time at all.
    Auto,
    /// Virtual time: one thread does everything, so nothing else will ever happen and deadlines are reached by a jump.
    Virtual,
}

/// How bytes travel from one node to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) latency: Duration,
    /// Each message takes up to so much longer, at random.
    pub(crate) jitter: Duration,
    /// Bytes a second. Parts of answers share it with all others that leave, or reach, the same node.
    pub(crate) bandwidth: u64,
}

impl Default for Link {
    fn default() -> Self {
        Self { latency: Duration::from_micros(5), jitter: Duration::ZERO, bandwidth: 10_000_000_000 }
    }
}

impl Net {
    /// No nodes yet; `seed` decides about jitter.
    pub(crate) fn new(time: Time, seed: u64) -> Self {
        Self(Arc::new(Shared { time, state: Mutex::new(State::new(seed)), changed: Condvar::new() }))
    }

    /// The node with that address, made known by being asked for.
    pub(crate) fn node(&self, host: impl Into<IpAddr>) -> Node {
        Node::new(self.clone(), host.into())
    }

    /// What holds between nodes that have no link of their own.
    pub(crate) fn set_default(&self, link: Link) {
        self.with(|state| state.usual = link);
    }

    /// What holds from one node to another, in this direction.
    pub(crate) fn set_link(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>, link: Link) {
        self.with(|state| state.links.insert((from.into(), to.into()), link));
    }

    /// How long nothing may be heard of a peer before it counts as down.
    pub(crate) fn set_silence(&self, limit: Duration) {
        self.with(|state| state.silence = limit);
    }

    /// Lets no message from one node reach the other. After the silence limit both have lost their connections.
    pub(crate) fn cut(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>) {
        self.with(|state| state.cut(from.into(), to.into()));
    }

    /// Ends a cut. What was held back arrives, where the connection is still up.
    pub(crate) fn heal(&self, from: impl Into<IpAddr>, to: impl Into<IpAddr>) {
        self.with(|state| state.heal(from.into(), to.into()));
    }

    /// Takes the power from a node: no message leaves it or reaches it any more.
    pub(crate) fn kill(&self, host: impl Into<IpAddr>) {
        self.with(|state| state.kill(host.into()));
    }

    /// Virtual time since the beginning.
    pub(crate) fn now(&self) -> Duration {
        lock(&self.0.state).now
    }

    /// What went through a node so far.
    pub(crate) fn traffic(&self, host: impl Into<IpAddr>) -> Traffic {
        lock(&self.0.state).host(host.into()).traffic
    }

    /// A number that is the same for the same events at the same times.
    pub(crate) fn digest(&self) -> u64 {
        lock(&self.0.state).digest
    }

    /// Runs `call` at a virtual time from now, in the thread that gets there.
    pub(crate) fn after(&self, delay: Duration, call: impl FnOnce() + Send + 'static) {
        self.with(|state| state.post(state.now + delay, None, Event::Call(Box::new(call))));
    }

    /// Delivers everything that is on its way, and what comes of it.
    pub(crate) fn run(&self) {
        self.run_to(Duration::MAX);
    }

    /// Delivers what arrives in the next `span`, at the end of which the clock then stands.
    pub(crate) fn advance(&self, span: Duration) {
        let end = self.now() + span;
        self.run_to(end);
        self.with(|state| state.now = state.now.max(end));
    }

    fn run_to(&self, end: Duration) {
        let mut state = lock(&self.0.state);
        while !state.running && state.next().is_some_and(|at| at <= end) {
            state = self.step(state);
        }
        self.release(state);
    }

    /// Changes the state, and then tells everybody whom it may concern.
    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = lock(&self.0.state);
        let result = change(&mut state);
        self.release(state);
        result
    }

    /// Unlocks, and only then does what runs foreign code: wakes tasks, and drops what others own.
    fn release(&self, mut state: MutexGuard<'_, State>) {
        let dropped = std::mem::take(&mut state.dropped);
        let woken = state.take_woken();
        let notify = state.waiting > 0;
        drop(state);
        if notify {
            self.0.changed.notify_all();
        }
        woken.into_iter().for_each(std::task::Waker::wake);
        drop(dropped);
    }

    /// Delivers events until `done`; `None` at the deadline, or when nothing can happen any more.
    fn wait<T>(&self, deadline: Option<Instant>, mut done: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let mut state = lock(&self.0.state);
        let limit = deadline.map(|deadline| state.now.saturating_add(self.left(deadline)));
        let result = loop {
            if let Some(result) = done(&mut state) {
                break Some(result);
            }
            if self.0.time == Time::Auto && deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                // Time went by here too, up to what nobody has delivered yet.
                let next = state.next().unwrap_or(Duration::MAX);
                state.now = state.now.max(limit.unwrap_or_default().min(next));
                break None;
            }
            let within = |at| limit.is_none_or(|limit| at <= limit);
            if !state.running && state.next().is_some_and(within) {
                state = self.step(state);
            } else if !state.running && self.0.time == Time::Virtual {
                state.now = state.now.max(limit.unwrap_or_default());
                break None;
            } else {
                state = self.sleep(state, deadline);
            }
        };
        self.release(state);
        result
    }

    /// Virtual time until a deadline. Real time passes in a simulation too: a deadline's odd milliseconds would differ
    /// from run to run, so they are rounded up.
    fn left(&self, deadline: Instant) -> Duration {
        let left = deadline.saturating_duration_since(Instant::now());
        match self.0.time {
            Time::Auto => left,
            Time::Virtual => {
                let grains = left.as_nanos().div_ceil(GRAIN.as_nanos());
                GRAIN.saturating_mul(u32::try_from(grains).unwrap_or(u32::MAX))
            }
        }
    }

    fn sleep<'a>(&'a self, mut state: MutexGuard<'a, State>, deadline: Option<Instant>) -> MutexGuard<'a, State> {
        state.waiting += 1;
        let mut state = match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
            None => self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(left) => self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
        };
        state.waiting -= 1;
        state
    }

    /// Delivers the next event. One thread does so at a time, or their order would be a matter of luck.
    fn step<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let Some(event) = state.take_next() else { return state };
        state.running = true;
        drop(state);
        let running = Running(self);
        self.deliver(event);
        drop(running);
        lock(&self.0.state)
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Net({:?})", self.0.time)
    }
}

/// A thread delivers an event.
struct Running<'a>(&'a Net);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.0.state);
        state.running = false;
        // A service panicked, and its thread will not look at the queue again.
        if std::thread::panicking() {
            self.0.release(state);
        }
    }
}

/// To what deadlines are rounded where time is virtual.
const GRAIN: Duration = Duration::from_millis(100);

#[cfg(test)]
pub(crate) mod tests;
