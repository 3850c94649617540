//! `Door`: the owner's side. Who has proved the secret on a control connection gets a session, and may ask by RPC.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use super::memory::Memory;
use super::native::{Access, Instance};
use super::protocol;
use super::session::Session;
use super::wire::{Control, KEPT, Welcome};
use crate::error::{Error, Result};
use crate::fabric::{Incoming, Responder, Segments, Service};
use crate::failpoint::failpoint;
use crate::pending::Pending;
use crate::sync::lock;

/// Answers the control connections of a node; Margo is started when the first requester says hello.
pub(in crate::fabric) struct Door(Arc<Inner>);

struct Inner {
    service: Arc<dyn Service>,
    memory: Option<Arc<dyn Segments>>,
    /// Where control connections are answered: Margo uses the same interface, where it uses any.
    own: SocketAddr,
    instances: Mutex<HashMap<String, Running>>,
    /// By the numbers of their connections; nothing while Margo is being started for one.
    sessions: Mutex<HashMap<u64, Option<Arc<Session>>>>,
    /// Whether somebody looks for pins that have expired.
    is_watched: Mutex<bool>,
}

/// An instance, and what is registered with it.
type Running = (Arc<Instance>, Arc<Memory>);

impl Door {
    pub(super) fn new(service: Arc<dyn Service>, memory: Option<Arc<dyn Segments>>, own: SocketAddr) -> Self {
        Self(Arc::new(Inner {
            service,
            memory,
            own,
            instances: Mutex::default(),
            sessions: Mutex::default(),
            is_watched: Mutex::default(),
        }))
    }
}

impl Service for Door {
    fn answer(&self, call: Incoming<'_>) {
        let Incoming { head, from, connection, responder } = call;
        let inner = &self.0;
        match Control::decode(head) {
            Ok(Control::Hello { silence_ms, wanted }) => {
                lock(&inner.sessions).entry(connection).or_default();
                let silence = Duration::from_millis(silence_ms.into()).max(LEAST_SILENCE);
                let inner = Arc::downgrade(inner);
                // Loading and starting take longer than this thread has time for.
                drop(Pending::blocking(move || greet(&inner, connection, from, silence, &wanted, responder)).start());
            }
            Ok(Control::Watch) => {
                if let Some(session) = inner.session(connection) {
                    session.watch(responder);
                }
            }
            Ok(Control::Collect { number }) => {
                if let Some(session) = inner.session(connection) {
                    session.collect(number, responder);
                }
            }
            Ok(Control::Keep { number }) => {
                let is_kept = inner.session(connection).is_some_and(|session| session.keep(number));
                responder.reply(KEPT[usize::from(is_kept)].to_vec(), Vec::new());
            }
            Err(error) => responder.reply(Welcome::Not(error.context().to_owned()).encode(), Vec::new()),
        }
    }

    fn gone(&self, connection: u64) {
        let session = lock(&self.0.sessions).remove(&connection).flatten();
        if let Some(session) = session {
            session.end();
        }
        self.0.service.gone(connection);
    }
}

/// Lets a requester in, and tells it where.
fn greet(
    inner: &Weak<Inner>,
    connection: u64,
    from: u64,
    silence: Duration,
    wanted: &str,
    responder: Responder,
) -> Result<()> {
    let Some(inner) = inner.upgrade() else { return Ok(()) };
    // A panic would leave the requester without a word.
    let admitted = catch_unwind(AssertUnwindSafe(|| inner.admit(connection, from, silence, wanted)));
    let welcome = match admitted {
        Ok(Ok(Some(welcome))) => welcome,
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(error)) => Welcome::Not(error.to_string()),
        Err(_) => Welcome::Not("a panic".to_owned()),
    };
    responder.reply(welcome.encode(), Vec::new());
    failpoint!("margo.met");
    Ok(())
}

impl Inner {
    fn session(&self, connection: u64) -> Option<Arc<Session>> {
        lock(&self.sessions).get(&connection).cloned().flatten()
    }

    /// `None` when the connection has ended meanwhile.
    fn admit(self: &Arc<Self>, connection: u64, from: u64, silence: Duration, wanted: &str) -> Result<Option<Welcome>> {
        let (instance, memory) = self.instance(wanted)?;
        let address = instance.address()?;
        let session = Session::new(&instance, memory, Arc::clone(&self.service), connection, from, silence);
        let token = session.token();
        let mut sessions = lock(&self.sessions);
        match sessions.get_mut(&connection) {
            Some(place) => {
                let former = place.replace(Arc::clone(&session));
                instance.admit(token, Arc::new(Arc::clone(&session)));
                drop(sessions);
                if let Some(former) = former {
                    former.end();
                }
            }
            None => return Ok(None),
        }
        self.watch()?;
        Ok(Some(Welcome::Here { token, address }))
    }

    /// The instance for a protocol, or for the one that is best here.
    fn instance(&self, wanted: &str) -> Result<Running> {
        let mut instances = lock(&self.instances);
        if let Some((instance, memory)) = instances.get(wanted) {
            return Ok((Arc::clone(instance), Arc::clone(memory)));
        }
        let protocol = match wanted {
            "" => protocol::default()?,
            wanted => {
                protocol::check(wanted)?;
                wanted.to_owned()
            }
        };
        let instance = Instance::shared(&protocol::address(&protocol, self.own), true)?;
        let memory = Memory::new(&instance, Access::Parts, self.memory.clone());
        instances.insert(wanted.to_owned(), (Arc::clone(&instance), Arc::clone(&memory)));
        Ok((instance, memory))
    }

    /// Looks now and then for parts that requesters have forgotten, on a thread that ends with this.
    fn watch(self: &Arc<Self>) -> Result<()> {
        let mut is_watched = lock(&self.is_watched);
        if *is_watched {
            return Ok(());
        }
        let inner = Arc::downgrade(self);
        let look = move || {
            while let Some(inner) = inner.upgrade() {
                let sessions: Vec<_> = lock(&inner.sessions).values().flatten().cloned().collect();
                let tick = sessions.iter().map(|session| session.expire()).min();
                drop((sessions, inner));
                thread::sleep(tick.unwrap_or(LONGEST_TICK).clamp(SHORTEST_TICK, LONGEST_TICK));
            }
        };
        let spawned = thread::Builder::new().name("proxystore-margo".to_owned()).spawn(look);
        spawned.map_err(|error| Error::io("listen", "a thread that looks after what is pinned", error))?;
        *is_watched = true;
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for session in lock(&self.sessions).drain().filter_map(|(_, session)| session) {
            session.end();
        }
    }
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Door({} sessions)", lock(&self.0.sessions).len())
    }
}

/// Below, a busy machine's scheduling would look like death.
const LEAST_SILENCE: Duration = Duration::from_millis(100);

/// How often to look for what has expired.
const SHORTEST_TICK: Duration = Duration::from_millis(50);
const LONGEST_TICK: Duration = Duration::from_millis(500);
