//! `Objects`: operations on objects of any node, and what follows from one node's answer on another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use smallvec::smallvec;

use super::gets::{self, Get};
use super::landings;
use super::relayed;
use super::remote::{Begun, Found, Limit, Remote, origin, refused, want};
use super::slots::Slots;
use crate::error::{Error, ErrorKind, Result};
use crate::key::random_number;
use crate::mutant::mutant;
use crate::pending::Pending;
use crate::region::Region;
use crate::service::address::{Address, Signer};
use crate::service::client::{Client, Expected, Look, Replica, Sight};
use crate::service::locator::NO_PLACE;
use crate::service::question::{Pointer, Question, Verdict};

/// The objects of a job, as a process of it sees them.
pub(super) struct Objects {
    pub(super) scheme: &'static str,
    pub(super) client: Arc<Client>,
    pub(super) closed: Arc<AtomicBool>,
    pub(super) signer: Signer,
    pub(super) remote: Arc<Remote>,
    pub(super) gets: Slots<Get>,
}

impl Objects {
    #[inline(always)]
    pub(super) fn check_open(&self, op: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, op, "").with_connector(self.scheme));
        }
        self.client.check(op).map_err(|error| error.with_connector(self.scheme))
    }

    #[inline]
    pub(super) fn is_here(&self, address: &Address) -> bool {
        address.instance == self.client.instance()
    }

    pub(super) fn get(self: &Arc<Self>, object: Pointer) -> Pending<Option<Region>> {
        self.get_through(object, HOPS)
    }

    /// Reads an object, or what was committed to a declaration, which may lie elsewhere.
    pub(super) fn get_through(self: &Arc<Self>, object: Pointer, hops: u32) -> Pending<Option<Region>> {
        let found = match self.is_here(&object.address) {
            true => Pending::ready(self.find(&object)),
            false if object.address.place != NO_PLACE => return self.get_remote(object),
            false => self.look_up(object),
        };
        let all = Arc::clone(self);
        found.chain(move |found| match found {
            Found::Object(region) => Pending::ready(Ok(Some(region))),
            Found::Missing => Pending::ready(Ok(None)),
            Found::Elsewhere(pointer) if hops > 0 && pointer.address.place != NO_PLACE => {
                all.get_through(pointer, hops - 1)
            }
            Found::Elsewhere(_) => Pending::ready(Err(all.corrupt("a declared object leads in circles"))),
        })
    }

    /// Reads an object of another node: here, if a process of this node has fetched it, or there.
    fn get_remote(self: &Arc<Self>, object: Pointer) -> Pending<Option<Region>> {
        let Pointer { address, len, .. } = object;
        if !self.remote.shares {
            return match self.remote.begin(address, len) {
                Begun::Asked(fetching) => self.getting(Get::Asked(fetching)),
                Begun::Otherwise(fetched) => {
                    let remote = Arc::clone(&self.remote);
                    fetched.and_then(move |fetched| gets::shown(&remote, fetched))
                }
            };
        }
        match self.client.find_replica(origin(&address)) {
            Ok(Some(Replica::Landed { region, fresh: true })) => {
                Pending::ready(self.whole(region, len).and_then(gets::region_of))
            }
            Err(error) => Pending::ready(Err(error)),
            Ok(_) => self.getting(Get::Shared(object)),
        }
    }

    /// Finds what was committed to a declaration of another node.
    fn look_up(self: &Arc<Self>, Pointer { address, len, .. }: Pointer) -> Pending<Found> {
        let asked = self.remote.ask(address, Question::Exists(smallvec![want(&address, len)]));
        asked.and_then(|verdict| match verdict {
            Verdict::Bound(pointer) => Ok(Found::Elsewhere(*pointer)),
            Verdict::Missing | Verdict::Declared => Ok(Found::Missing),
            _ => Err(landings::mismatch()),
        })
    }

    /// Fetches an object for all processes of this node, or waits for the one that does.
    pub(super) fn fetch_shared(self: &Arc<Self>, object: Pointer, limit: Limit) -> Result<Found> {
        let Pointer { address, len, format } = object;
        loop {
            let claim = match self.client.replica(origin(&address))? {
                Replica::Landed { region, fresh: true } => return self.whole(region, len),
                Replica::Landed { region, fresh: false } => {
                    return match limit.wait(self.exists(object, 0))? {
                        true => self.whole(region, len),
                        false => Ok(Found::Missing),
                    };
                }
                Replica::InFlight(id) => match limit.half().wait(self.client.await_replica(id, &self.closed)) {
                    Ok(Some(region)) => return self.whole(region, len),
                    Ok(None) => continue,
                    // Who fetches it for all is stopped, or slow: there is time left to fetch it for oneself.
                    Err(error) if error.kind() == ErrorKind::Timeout => None,
                    Err(error) => return Err(error),
                },
                Replica::Claimed(claim) => Some(claim),
                Replica::Unshared => None,
            };
            return match claim {
                Some(claim) if self.relays(len) => self.fetch_relayed(object, claim, limit),
                claim => self.remote.found(limit.wait(self.remote.fetch(address, len))?, format, claim),
            };
        }
    }

    /// Whether nodes pass an object of this length on to each other.
    pub(super) fn relays(&self, len: u64) -> bool {
        self.remote.relays && len >= relayed::LEAST
    }

    /// A copy that another process of this node made, if it is as long as the key says.
    pub(super) fn whole(&self, region: Region, len: u64) -> Result<Found> {
        match region.len() as u64 == len {
            true => Ok(Found::Object(region)),
            false => Err(self.corrupt("this node's copy of the object has another length than the key says")),
        }
    }

    /// Finds an object of this node.
    pub(super) fn find(self: &Arc<Self>, object: &Pointer) -> Result<Found> {
        let Address { id, place, .. } = object.address;
        if place != NO_PLACE {
            return Ok(match self.client.get(id, Expected::new(object.len, place))? {
                Look::Object(region) => Found::Object(region),
                Look::Declared | Look::Missing => Found::Missing,
            });
        }
        Ok(match self.client.find(id, Expected::ANY)? {
            Sight::Object(view, slot) if Sight::is_redirect(&slot) => Found::Elsewhere(Pointer::from_bytes(&view)?),
            Sight::Object(view, _) => Found::Object(view.into()),
            Sight::Declared | Sight::Missing => Found::Missing,
        })
    }

    pub(super) fn exists(self: &Arc<Self>, object: Pointer, hops: u32) -> Pending<bool> {
        let Address { id, place, .. } = object.address;
        let asked = Instant::now();
        let verdict = match self.is_here(&object.address) {
            true if place != NO_PLACE => {
                return Pending::ready(self.client.exists(id, Expected::new(object.len, place)));
            }
            true => Pending::ready(self.find(&object).map(|found| match found {
                Found::Object(_) => Verdict::Yes { expires_in: 0 },
                Found::Elsewhere(pointer) => Verdict::Bound(Box::new(pointer)),
                Found::Missing => Verdict::Missing,
            })),
            false => self.remote.ask(object.address, Question::Exists(smallvec![want(&object.address, object.len)])),
        };
        let all = Arc::clone(self);
        verdict.chain(move |verdict| all.exists_as(&object, verdict, asked, hops))
    }

    /// Whether an object exists of which a node that was asked at that time says so much.
    pub(super) fn exists_as(
        self: &Arc<Self>,
        object: &Pointer,
        verdict: Verdict,
        asked: Instant,
        hops: u32,
    ) -> Pending<bool> {
        if !self.is_here(&object.address) {
            self.note(&object.address, &verdict, asked);
        }
        Pending::ready(match verdict {
            Verdict::Yes { .. } => Ok(true),
            // Of its own memory the node would not say so if it were not there.
            Verdict::Bound(pointer) if pointer.address.instance == object.address.instance => Ok(true),
            Verdict::Bound(pointer) if hops > 0 => return self.exists(*pointer, hops - 1),
            Verdict::Bound(_) => Err(self.corrupt("a declared object leads in circles")),
            Verdict::Missing | Verdict::Declared => Ok(false),
            Verdict::Refused { kind } => Err(refused("exists", kind, self.scheme)),
            Verdict::Taken | Verdict::From { .. } => Err(landings::mismatch()),
        })
    }

    pub(super) fn evict(self: &Arc<Self>, object: Pointer) -> Pending<()> {
        let verdict = match self.is_here(&object.address) {
            true => Pending::ready(self.evict_here(&object)),
            false => self.remote.ask(object.address, Question::Evict(smallvec![want(&object.address, object.len)])),
        };
        let all = Arc::clone(self);
        verdict.chain(move |verdict| {
            all.forget(&object.address);
            all.evict_target(verdict)
        })
    }

    /// Takes what a node that was asked at that time says of its object for news of this node's copy.
    pub(super) fn note(&self, at: &Address, verdict: &Verdict, asked: Instant) {
        match verdict {
            Verdict::Yes { .. } => {
                // Without it, the next one asks again.
                let _ = self.client.refresh_replica(origin(at), self.remote.fresh_for(asked));
            }
            Verdict::Missing => self.forget(at),
            _ => {}
        }
    }

    /// Ends this node's copy of an object that another node has no more.
    pub(super) fn forget(&self, at: &Address) {
        if !mutant!("read_forgotten") {
            self.remote.known.forget(at);
        }
        if !self.is_here(at) && at.place != NO_PLACE {
            // What stays is stale no longer than its lease.
            let _ = self.client.forget_replica(origin(at));
        }
    }

    /// Evicts what an evicted declaration led to.
    pub(super) fn evict_target(self: &Arc<Self>, verdict: Verdict) -> Pending<()> {
        match verdict {
            Verdict::Bound(pointer) if pointer.address.place != NO_PLACE => self.evict(*pointer),
            Verdict::Refused { kind } => Pending::ready(Err(refused("evict", kind, self.scheme))),
            _ => Pending::ready(Ok(())),
        }
    }

    pub(super) fn evict_here(self: &Arc<Self>, object: &Pointer) -> Result<Verdict> {
        let Address { id, place, .. } = object.address;
        if place != NO_PLACE {
            self.client.evict(id, Expected::new(object.len, place))?;
            return Ok(Verdict::Yes { expires_in: 0 });
        }
        let target = match self.find(object)? {
            Found::Elsewhere(pointer) => Verdict::Bound(Box::new(pointer)),
            Found::Object(_) | Found::Missing => Verdict::Yes { expires_in: 0 },
        };
        if self.client.evict(id, Expected::ANY)? {
            // Those who wait for it must learn that it does not come.
            self.client.wake(id);
            return Ok(target);
        }
        Ok(Verdict::Missing)
    }

    /// Reads an object and ends it, for the one of all callers that is first.
    ///
    /// The bytes come first, so that a connection that breaks loses none: what decides is a message without bytes, which
    /// is repeated under its own number until it is answered.
    pub(super) fn take(self: &Arc<Self>, object: Pointer) -> Pending<Option<Region>> {
        let Address { id, place, .. } = object.address;
        if self.is_here(&object.address) && place != NO_PLACE {
            let taken = self.client.take(id, Expected::new(object.len, place));
            return Pending::ready(taken.map(|look| match look {
                Look::Object(region) => Some(region),
                Look::Declared | Look::Missing => None,
            }));
        }
        let all = Arc::clone(self);
        self.get(object).chain(move |region| {
            let Some(region) = region else { return Pending::ready(Ok(None)) };
            all.retire(&object).and_then(move |won| Ok(won.then_some(region)))
        })
    }

    fn ended_by_somebody(&self) -> Error {
        let context = "the connection broke while the object was being taken: it is gone, and it is not known whether this \
                       call or another one took it";
        Error::new(ErrorKind::PeerDown, "take", context).with_connector(self.remote.scheme)
    }

    /// Ends an object; whether it was this call that did.
    pub(super) fn retire(self: &Arc<Self>, object: &Pointer) -> Pending<bool> {
        if self.is_here(&object.address) {
            return match self.evict_here(object) {
                Ok(Verdict::Missing) => Pending::ready(Ok(false)),
                // Its target is nobody's any more: a failure to evict it has nobody to tell.
                Ok(verdict) => self.evict_target(verdict).then(|_| Ok(true)),
                Err(error) => Pending::ready(Err(error)),
            };
        }
        let wanted = want(&object.address, object.len);
        let all = Arc::clone(self);
        // What a declaration leads to is asked for before it is ended: afterwards nobody knows.
        let target = match object.address.place {
            NO_PLACE => self.remote.ask(object.address, Question::Exists(smallvec![wanted])),
            _ => Pending::ready(Ok(Verdict::Missing)),
        };
        let address = object.address;
        target.chain(move |target| {
            let question = Question::Retire { want: wanted, number: random_number() };
            let retired = all.remote.ask_counting(address, question);
            retired.chain(move |(verdict, count)| {
                all.forget(&address);
                match (verdict, target) {
                    (Verdict::Yes { .. }, Verdict::Bound(pointer)) if pointer.address.instance != address.instance => {
                        all.evict(*pointer).then(|_| Ok(true))
                    }
                    (Verdict::Yes { .. }, _) => Pending::ready(Ok(true)),
                    // A service that died meanwhile has taken with it who ended the object.
                    (Verdict::Missing, _) if count > 1 => Pending::ready(Err(all.ended_by_somebody())),
                    _ => Pending::ready(Ok(false)),
                }
            })
        })
    }

    pub(super) fn corrupt(&self, what: &'static str) -> Error {
        Error::new(ErrorKind::Corrupt, "get", what).with_connector(self.scheme)
    }
}

/// How many pointers are followed from a declared object to its bytes.
pub(super) const HOPS: u32 = 1;
