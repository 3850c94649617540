//! `Namespace`: a look at the objects and at the service of a namespace, for tools.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::client::{Client, Options};
use super::directory::Directory;
use super::{ServiceStats, locator};
use crate::environment;
use crate::error::Result;
use crate::key::Key;
use crate::launch::Job;
use crate::shm::class::Class;
use crate::shm::clock;
use crate::shm::table::{EPHEMERAL, REPLICA};
use crate::token::{Access, Token};

/// A namespace that exists, seen from outside: whoever only looks never hosts its service.
///
/// ```no_run
/// # fn main() -> proxystore::Result<()> {
/// use proxystore::service::{self, Namespace};
///
/// if let Some(namespace) = Namespace::find(&service::default_namespace()?)? {
///     let stats = namespace.stats()?;
///     println!("{} objects, {} B, hosted by process {}", stats.live.count, stats.live.bytes, stats.host);
///     for object in namespace.objects()? {
///         println!("{} {}", object.key, object.len);
///     }
/// }
/// # Ok(())
/// # }
/// ```
pub struct Namespace {
    name: String,
    client: Arc<Client>,
}

/// An object of a namespace, or the promise of one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectStats {
    /// What it is got by.
    pub key: Key,
    /// Length in bytes; 0 for one that is promised.
    pub len: u64,
    /// Length of its cell, which is what it takes of the budget.
    pub capacity: u64,
    /// The process that put it, while that lives and can be seen from here.
    pub owner: Option<u32>,
    /// Declared, and not committed yet.
    pub is_promised: bool,
    /// It is a copy of an object of another node, there for the processes of this one; it makes room for others.
    pub is_replica: bool,
    /// It ends with its producer.
    pub ends_with_producer: bool,
    /// When it ends by itself.
    pub expires_in: Option<Duration>,
    /// Time since it was put or, under `evict=lru`, used; to about a second.
    pub idle: Option<Duration>,
    /// Views of it in all processes, at this moment.
    pub pins: u64,
}

/// The names of the namespaces of this user on this node, sorted; those that nobody holds any more are among them until
/// they are [removed](Namespace::remove_abandoned).
///
/// # Errors
/// When the runtime directory cannot be read.
pub fn namespaces() -> Result<Vec<String>> {
    Directory::namespaces()
}

/// The namespace of `shm://`: the name of the [job](crate::launch::Job::id), so that jobs of one user on one node do not see each
/// other's objects.
///
/// # Errors
/// `Config` when `PROXYSTORE_JOB` is no name.
pub fn default_namespace() -> Result<String> {
    Job::discover_id()
}

/// Ends this process's use of shared memory: what it leased ahead of need goes back, and its stores fail with `Stale` from then
/// on. Views stay readable, and a service that it hosts goes on.
///
/// A process that returns from `main` or calls `exit` and is the last of a namespace removes the namespace's files. One that is
/// killed is noticed all the same, but the empty files of a namespace that it was the last of stay until somebody opens or
/// [removes](Namespace::remove_abandoned) it.
pub fn leave() {
    Client::give_over_all();
}

impl Namespace {
    /// Attaches to a namespace that some process holds; `None` where nobody does.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, `Unavailable` when its service does not answer, `Permission`, `Incompatible`.
    pub fn find(name: &str) -> Result<Option<Self>> {
        if !Self::is_held(name)? {
            return Ok(None);
        }
        let options = Options {
            namespace: name.to_owned(),
            budget: None,
            displace: None,
            timeout: environment::timeout(),
            may_host: false,
        };
        let client = Client::attach(&options).map_err(|error| error.with_connector(locator::SCHEME))?;
        Ok(Some(Self { name: name.to_owned(), client }))
    }

    /// Whether any process holds the memory of a namespace, at this moment. Attaches to nothing.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, `Permission` where its directory is not this user's alone.
    pub fn is_held(name: &str) -> Result<bool> {
        match Directory::find(name)? {
            Some(directory) => Ok(!directory.is_abandoned()?),
            None => Ok(false),
        }
    }

    /// Removes what is left of a namespace that nobody holds, which is empty files; whether there was anything.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, `Io` when a file cannot be removed.
    pub fn remove_abandoned(name: &str) -> Result<bool> {
        match Directory::find(name)? {
            Some(directory) => directory.remove(),
            None => Ok(false),
        }
    }

    /// Where the socket and the locks of a namespace lie, or would.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, `Permission`.
    pub fn directory(name: &str) -> Result<Option<PathBuf>> {
        Ok(Directory::find(name)?.map(|directory| directory.path().to_owned()))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The URL of its store.
    pub fn url(&self) -> String {
        format!("{}://{}", locator::SCHEME, self.name)
    }

    /// Whether objects that were not used for long make room for new ones (`evict=lru`).
    pub fn evicts(&self) -> bool {
        self.client.displaces()
    }

    /// What the service says of itself.
    ///
    /// # Cost
    /// A round trip; the service walks its record of slots, 3 ms a million.
    ///
    /// # Errors
    /// `Unavailable`, `Stale` when the service ended.
    pub fn stats(&self) -> Result<ServiceStats> {
        self.client.stats()
    }

    /// Its objects, promises and replicas, in no order. Those that come or go meanwhile may be missing.
    ///
    /// # Cost
    /// A walk through the slots of shared memory, which disturbs nobody; each object is pinned for some nanoseconds.
    ///
    /// # Errors
    /// `Stale` when the service ended, `Unavailable` and `NoSpace` when there is no pin cell.
    pub fn objects(&self) -> Result<impl Iterator<Item = ObjectStats> + '_> {
        self.client.check("list")?;
        let pins = self.client.pin_counts();
        // Where cells run out in the middle of the walk the rest is missing, as if it had been evicted.
        Ok((0..self.client.table().slots()).filter_map(move |slot| {
            let seen = self.client.look_at(slot).ok().flatten()?;
            let pinned = pins.get(&seen.object.id.slot).copied().unwrap_or(0);
            self.describe(seen, pinned)
        }))
    }

    /// One object or promise of this namespace; `None` when it is not there, or the key is of another memory.
    ///
    /// # Errors
    /// As [`objects`](Self::objects).
    pub fn object(&self, key: &Key) -> Result<Option<ObjectStats>> {
        self.client.check("stat")?;
        let Some(id) = self.client.slot_of(key.locator()) else { return Ok(None) };
        let Some(seen) = self.client.look_at(id.slot)?.filter(|seen| seen.id == id) else { return Ok(None) };
        let pinned = self.client.pin_counts().get(&seen.object.id.slot).copied().unwrap_or(0);
        Ok(self.describe(seen, pinned))
    }

    /// The token by which any process of the node gets an object, or waits for a promised one.
    pub fn token(&self, object: &ObjectStats) -> Token {
        let access = if object.is_promised { Access::WhenCommitted } else { Access::Get };
        Token::Object { url: self.url().into(), key: object.key, access }
    }

    /// Makes the service reclaim what was evicted and give free memory back to the system; the bytes given back.
    ///
    /// # Errors
    /// `Unavailable`, `Stale` when the service ended.
    pub fn collect(&self) -> Result<u64> {
        self.client.collect()
    }

    fn describe(&self, seen: super::client::Seen, pins: u64) -> Option<ObjectStats> {
        let (object, label) = (&seen.object, &seen.object.label);
        // A declared key keeps its form: the length was not known when it was made.
        let is_declared = seen.is_awaited || seen.id != object.id;
        let len = if is_declared { Key::UNKNOWN_LEN } else { label.len };
        let place = if is_declared { locator::NO_PLACE } else { object.place };
        let key = locator::key(self.client.instance(), seen.id, place, len, label.format).ok()?;
        let class = u16::try_from(object.class).ok().and_then(Class::from_index);
        let remaining = |expires: u64| Duration::from_millis(expires.saturating_sub(clock::boot_millis()));
        let seconds = self.client.epoch().saturating_sub(object.stamp);
        Some(ObjectStats {
            key,
            len: label.len,
            capacity: class.filter(|_| !seen.is_awaited).map_or(0, Class::capacity),
            owner: self.client.pid_of(object.owner),
            is_promised: seen.is_awaited,
            is_replica: label.flags & REPLICA != 0,
            ends_with_producer: label.flags & EPHEMERAL != 0,
            expires_in: (label.expires != 0).then(|| remaining(label.expires)),
            idle: (object.stamp != 0).then(|| Duration::from_secs(u64::from(seconds))),
            pins,
        })
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace").field("name", &self.name).finish_non_exhaustive()
    }
}
