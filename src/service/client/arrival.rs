//! `Arrival`: waiting for the object of a declared key, by threads and by tasks.
//!
//! A thread sleeps on the futex of the key's bucket. For tasks one thread of the process sleeps on the futex of all buckets.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Acquire;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use super::{Client, Expected, Look};
use crate::error::{Error, ErrorKind, Result};
use crate::pending::Source;
use crate::shm::futex;
use crate::shm::table::{Id, State};
use crate::sync::lock;

/// An object that is waited for.
pub(crate) struct Arrival<F> {
    client: Arc<Client>,
    id: Id,
    closed: Arc<AtomicBool>,
    /// Makes the result of what was found.
    finish: F,
    token: Option<u64>,
}

/// The tasks of this process that wait.
#[derive(Default)]
pub(super) struct Waiting {
    tasks: Mutex<Tasks>,
}

#[derive(Default)]
struct Tasks {
    next: u64,
    /// What is waited for: the declaration, and how many bytes of its object, `u64::MAX` for the end of the declaration.
    wakers: HashMap<u64, (Id, u64, Waker)>,
    /// Whether a thread looks after them.
    watched: bool,
}

impl<F> Arrival<F> {
    pub(crate) fn new(client: Arc<Client>, id: Id, closed: Arc<AtomicBool>, finish: F) -> Self {
        Self { client, id, closed, finish, token: None }
    }
}

impl<F, T> Arrival<F>
where
    F: Fn(Look) -> Result<T>,
{
    /// The result, if there is one by now.
    fn look(&self) -> Option<Result<T>> {
        if self.closed.load(Acquire) {
            return Some(Err(Error::new(ErrorKind::Closed, "get", "").with_connector("shm")));
        }
        if let Err(error) = self.client.check("get") {
            return Some(Err(error));
        }
        match self.client.get(self.id, Expected::ANY) {
            Ok(Look::Declared) => None,
            Ok(look) => Some((self.finish)(look)),
            Err(error) => Some(Err(error)),
        }
    }
}

impl<F, T> Source<T> for Arrival<F>
where
    F: Fn(Look) -> Result<T> + Send,
{
    fn wait(&mut self, deadline: Option<Instant>) -> Result<T> {
        loop {
            let bucket = self.client.table.bucket(self.id.slot);
            let seen = futex::load(bucket);
            if let Some(result) = self.look() {
                return result;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                let context = "nobody committed the object in time";
                return Err(Error::new(ErrorKind::Timeout, "get", context).with_connector("shm"));
            }
            futex::wait(bucket, seen, deadline);
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        if let Some(result) = self.look() {
            return Poll::Ready(result);
        }
        let client = Arc::clone(&self.client);
        let token = *self.token.get_or_insert_with(|| client.waiting.token());
        if let Err(error) = client.watch(token, self.id, u64::MAX, cx.waker().clone()) {
            return Poll::Ready(Err(error));
        }
        // It may have come between the look and the registration.
        match self.look() {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Arrival<F> {
    fn drop(&mut self) {
        if let Some(token) = self.token {
            self.client.waiting.forget(token);
        }
    }
}

impl Waiting {
    pub(super) fn token(&self) -> u64 {
        let mut tasks = lock(&self.tasks);
        tasks.next += 1;
        tasks.next
    }

    pub(super) fn forget(&self, token: u64) {
        let waker = lock(&self.tasks).wakers.remove(&token);
        // Foreign code, outside the lock.
        drop(waker);
    }

    /// Makes all tasks look again.
    pub(super) fn wake_all(&self) {
        let wakers: Vec<Waker> = lock(&self.tasks).wakers.values().map(|(_, _, waker)| waker.clone()).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Those for whom so much has come.
    fn arrived(&self, has_come: impl Fn(Id, u64) -> bool) -> Vec<Waker> {
        let waiting: Vec<(u64, Id, u64)> =
            lock(&self.tasks).wakers.iter().map(|(token, (id, end, _))| (*token, *id, *end)).collect();
        // Outside the lock: to look may take a pin cell, for which the service may be asked.
        let arrived: Vec<u64> =
            waiting.into_iter().filter(|(_, id, end)| has_come(*id, *end)).map(|(token, ..)| token).collect();
        let mut tasks = lock(&self.tasks);
        arrived.into_iter().filter_map(|token| tasks.wakers.remove(&token)).map(|(_, _, waker)| waker).collect()
    }
}

impl Client {
    /// Sees to it that `waker` is woken when the declaration is not one any more, or so many bytes of its object are there.
    pub(super) fn watch(self: &Arc<Self>, token: u64, id: Id, end: u64, waker: Waker) -> Result<()> {
        let mut tasks = lock(&self.waiting.tasks);
        let former = tasks.wakers.insert(token, (id, end, waker));
        let starts = !std::mem::replace(&mut tasks.watched, true);
        drop(tasks);
        drop(former);
        if starts {
            let client = Arc::clone(self);
            let thread = std::thread::Builder::new().name("proxystore-wait".to_owned());
            if let Err(error) = thread.spawn(move || client.look_after_tasks()) {
                lock(&self.waiting.tasks).watched = false;
                return Err(Error::io("get", "a thread to wait for declared keys", error));
            }
        }
        Ok(())
    }

    /// Sleeps until anything happens to any declared key, and wakes whom it concerns; ends when nobody waits.
    fn look_after_tasks(self: &Arc<Self>) {
        loop {
            let counter = self.table.any_bucket();
            let seen = futex::load(counter);
            let arrived = self.waiting.arrived(|id, end| self.is_lost() || self.has_come(id, end));
            arrived.into_iter().for_each(Waker::wake);
            {
                let mut tasks = lock(&self.waiting.tasks);
                if tasks.wakers.is_empty() {
                    tasks.watched = false;
                    return;
                }
            }
            futex::wait(counter, seen, None);
        }
    }

    /// Whether it is a declaration whose object has not come.
    pub(super) fn is_declared(&self, id: Id) -> bool {
        self.table.state(id.slot) == Some((id.generation, State::Declared)) && !self.table.is_bound(id.slot)
    }
}

impl<F> fmt::Debug for Arrival<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrival({:?})", self.id)
    }
}
