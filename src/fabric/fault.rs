//! `Fault`: a fabric whose messages are lost, late, doubled or damaged, as a plan says.
//!
//! ```text
//!   requester                                             owner
//!   connect ─ request ─> ·· sent                          question ─> service
//!   answer <─ land <───────────────────────────────────── reply <──── responder ·· replied
//! ```
//!
//! A plan names places and the number of the pass at which something happens there. Both nodes are wrapped with one plan, which
//! is text: the plan of a test that failed can be run again.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{
    Answer, Call, Fabric, Incoming, Land, Lander, Landing, Landings, Listener, Outgoing, Peer, Respond, Responder,
    Segments, Service,
};
use crate::error::{Error, ErrorKind, Result};
use crate::pending::Pending;

mod plan;
mod tests;

pub(crate) use plan::Plan;
pub(crate) use tests::Between;

use plan::{Act, Place};

/// What faults can do beyond the messages that pass through the wrapper.
pub(crate) trait World: Send + Sync + 'static {
    /// Calls later.
    fn after(&self, delay: Duration, call: Box<dyn FnOnce() + Send>);

    /// Stops all messages between the nodes, for so long, or for good.
    fn cut(&self, span: Option<Duration>);

    /// Ends the requester's node, or the owner's, without a word to the other.
    fn kill(&self, side: Side);
}

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Requester,
    Owner,
}

/// Real time, and this process, which stands for either side.
pub(crate) struct ThisProcess;

impl World for ThisProcess {
    fn after(&self, delay: Duration, call: Box<dyn FnOnce() + Send>) {
        thread::spawn(move || {
            thread::sleep(delay);
            call();
        });
    }

    /// A process cannot cut its own messages off: nothing happens.
    fn cut(&self, _: Option<Duration>) {}

    fn kill(&self, _: Side) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

/// A fabric with faults.
pub(crate) struct Fault {
    inner: Arc<dyn Fabric>,
    hand: Hand,
}

/// Carries a plan out.
#[derive(Clone)]
struct Hand {
    plan: Plan,
    world: Arc<dyn World>,
}

impl Fault {
    pub(crate) fn new(inner: Arc<dyn Fabric>, plan: Plan, world: Arc<dyn World>) -> Arc<Self> {
        Arc::new(Self { inner, hand: Hand { plan, world } })
    }
}

impl Hand {
    /// Does what the plan has for this pass of a place that is not about the message itself, and gives the rest.
    fn pass(&self, place: Place) -> Vec<Act> {
        let mut acts = self.plan.pass(place);
        acts.retain(|act| match act {
            Act::Close => {
                self.plan.close();
                false
            }
            Act::Cut => {
                self.world.cut(None);
                false
            }
            Act::Pause(span) => {
                self.world.cut(Some(*span));
                false
            }
            Act::Kill => {
                self.world.kill(place.side());
                false
            }
            _ => true,
        });
        acts
    }
}

impl Fabric for Fault {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn register(&self, memory: Arc<dyn Segments>) {
        self.inner.register(memory);
    }

    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
        self.inner.listen(addresses, Arc::new(Faulty { service, hand: self.hand.clone() }))
    }

    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        if self.hand.pass(Place::Connect).contains(&Act::Drop) {
            return Err(Error::new(ErrorKind::PeerDown, "open", format!("{contact}: a fault refuses")));
        }
        let inner = self.inner.connect(contact, deadline)?;
        self.hand.plan.connected(&inner);
        Ok(Arc::new(FaultyPeer { inner, hand: self.hand.clone() }))
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault({:?}, {})", self.inner, self.hand.plan)
    }
}

struct FaultyPeer {
    inner: Arc<dyn Peer>,
    hand: Hand,
}

impl Peer for FaultyPeer {
    fn instance(&self) -> u64 {
        self.inner.instance()
    }

    fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    fn lanes(&self) -> usize {
        self.inner.lanes()
    }

    fn request(self: Arc<Self>, call: Call) -> Pending<Answer> {
        self.hand.pass(Place::Request);
        let Call { head, land, lane } = call;
        let land = Box::new(FaultyLand { inner: land, hand: self.hand.clone() }).into();
        let pending = Arc::clone(&self.inner).request(Call { head, land, lane });
        self.hand.pass(Place::Sent);
        // Holds the peer until the end, as any operation does.
        pending.then(move |result| {
            if result.is_ok() {
                self.hand.pass(Place::Answer);
            }
            result
        })
    }

    fn close(&self) {
        self.inner.close();
    }
}

impl fmt::Debug for FaultyPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultyPeer({:?})", self.inner)
    }
}

struct FaultyLand {
    inner: Lander,
    hand: Hand,
}

impl Land for FaultyLand {
    fn land(&mut self, head: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        match self.hand.pass(Place::Land).contains(&Act::Refuse) {
            true => Err(Error::new(ErrorKind::NoSpace, "get", "a fault leaves no room")),
            false => self.inner.land(head, parts).map(Landings::into_vec),
        }
    }
}

struct Faulty {
    service: Arc<dyn Service>,
    hand: Hand,
}

impl Service for Faulty {
    fn answer(&self, call: Incoming<'_>) {
        let Incoming { head, from, connection, responder } = call;
        let (mut head, mut delay, mut times) = (head.to_vec(), Duration::ZERO, 1);
        for act in self.hand.pass(Place::Question) {
            match act {
                Act::Drop => return self.hand.plan.keep(responder),
                Act::Refuse => return drop(responder),
                Act::Delay(span) => delay += span,
                Act::Flip(bit) => flip(&mut head, bit),
                Act::Duplicate => times += 1,
                _ => {}
            }
        }
        let service = Arc::clone(&self.service);
        let respond = FaultyRespond { inner: responder, hand: self.hand.clone() };
        let ask = move || {
            service.answer(Incoming { head: &head, from, connection, responder: Responder::new(Box::new(respond)) });
            for _ in 1..times {
                service.answer(Incoming {
                    head: &head,
                    from,
                    connection,
                    responder: Responder::new(Box::new(Nowhere)),
                });
            }
        };
        match delay.is_zero() {
            true => ask(),
            false => self.hand.world.after(delay, Box::new(ask)),
        }
    }
}

struct FaultyRespond {
    inner: Responder,
    hand: Hand,
}

impl Respond for FaultyRespond {
    fn respond(self: Box<Self>, reply: Option<Outgoing>) {
        let Self { inner, hand } = *self;
        // A responder that is dropped refuses, here as inside.
        let Some((mut head, mut parts)) = reply.map(Outgoing::into_bytes) else { return };
        let mut delay = Duration::ZERO;
        for act in hand.pass(Place::Reply) {
            match act {
                Act::Drop => return hand.plan.keep(inner),
                Act::Delay(span) => delay += span,
                Act::Flip(bit) => flip(&mut head, bit),
                Act::Truncate => drop(parts.pop()),
                Act::Shorten => {
                    if let Some(last) = parts.last_mut() {
                        last.truncate(last.len().saturating_sub(1));
                    }
                }
                _ => {}
            }
        }
        let send = {
            let hand = hand.clone();
            move || {
                inner.reply(head, parts);
                hand.pass(Place::Replied);
            }
        };
        match delay.is_zero() {
            true => send(),
            false => hand.world.after(delay, Box::new(send)),
        }
    }

    fn is_wanted(&self) -> bool {
        self.inner.is_wanted()
    }
}

/// Takes the answer to the copy of a question.
struct Nowhere;

impl Respond for Nowhere {
    fn respond(self: Box<Self>, _: Option<Outgoing>) {}

    fn is_wanted(&self) -> bool {
        true
    }
}

fn flip(bytes: &mut [u8], bit: usize) {
    if !bytes.is_empty() {
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}
