//! `Calls`: the open questions of a process to all its peers, who waits for them, and who drives UCX for all.
//!
//! One of those who wait drives, so that a thread that waits is not woken by another one; who waits meanwhile follows, and is
//! promoted when the driver's own call has ended. A thread of the process drives only for tasks, and for what nobody waits for.

use std::collections::VecDeque;
use std::task::Waker;
use std::thread::Thread;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::numbered::Numbered;
use super::operation::Data;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Head, Lander, Landing, Landings, MAX_PARTS};

/// See the module.
#[derive(Default)]
pub(super) struct Calls {
    open: Numbered<Entry>,
    last: u64,
    /// How many of a connection have not ended.
    running: Numbered<usize>,
    /// How many of them a task waits for.
    watched: usize,
    /// Calls that nobody waits for any more, whose owners still owe an answer or parts of it: what comes has to be taken from
    /// UCX and given back, or the owner waits for that and takes this process for one that does not read.
    left: Numbered<Left>,
    /// Somebody drives.
    pub(super) led: bool,
    /// Threads that wait for others to drive, by their calls.
    followers: VecDeque<u64>,
    /// The follower that was told to drive, and has not come yet.
    promoted: Option<u64>,
}

struct Entry {
    /// The connection.
    link: u64,
    stage: Stage,
    waiter: Waiter,
}

/// What is still to come of a call that nobody waits for.
struct Left {
    link: u64,
    /// Parts that came or ended, of those that do not come with the answer.
    came: usize,
    /// How many there are of them, once that is known.
    parts: Option<usize>,
    /// Since when nobody waits for it.
    since: Instant,
}

/// Parts that came before their answer.
pub(super) struct Early {
    pub(super) index: u32,
    pub(super) here: u32,
    pub(super) data: Data,
}

enum Stage {
    /// Nothing has come; parts that overtook their answer wait.
    Asked {
        land: Option<Lander>,
        early: Vec<Early>,
        /// Its bytes are being fetched before it is known where they go.
        is_claimed: bool,
    },
    /// Parts are on their way to their landings.
    Landing {
        head: Head,
        landings: SmallVec<[Option<Landing>; 1]>,
        missing: usize,
        given: SmallVec<[bool; 1]>,
    },
    Ended(Result<Answer>),
}

impl Entry {
    /// Parts that came, and how many are to, as far as it is known, when it ends now; before the answer came, of so many.
    fn left(&self, parts: Option<usize>) -> (usize, Option<usize>) {
        match &self.stage {
            Stage::Asked { early, .. } => (early.iter().map(|early| early.here as usize).sum(), parts),
            Stage::Landing { landings, missing, .. } => (landings.len() - missing, Some(landings.len())),
            Stage::Ended(_) => (0, Some(0)),
        }
    }
}

enum Waiter {
    None,
    Thread(Thread),
    Task(Waker),
}

/// What is to be done when no lock is held, by [`run`](Self::run): wakers and landings are foreign code.
#[derive(Default)]
pub(super) struct After {
    wake: Few<Waiter>,
    /// Dropped, not woken.
    idle: Few<Waiter>,
    unused: Few<Stage>,
    lands: Few<Lander>,
    /// For the worker to take back.
    pub(super) data: Vec<Data>,
}

/// Almost always at most one, which takes no memory of its own.
struct Few<T> {
    first: Option<T>,
    others: Vec<T>,
}

impl Drop for After {
    fn drop(&mut self) {
        let is_done = self.is_empty() && self.data.is_empty();
        debug_assert!(is_done || std::thread::panicking(), "somebody is not woken, or bytes are not given back");
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self { first: None, others: Vec::new() }
    }
}

impl<T> Few<T> {
    fn push(&mut self, one: T) {
        match &self.first {
            None => self.first = Some(one),
            Some(_) => self.others.push(one),
        }
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn take(&mut self) -> impl Iterator<Item = T> {
        self.first.take().into_iter().chain(std::mem::take(&mut self.others))
    }
}

impl After {
    /// Wakes and drops what there is; `data` must be gone by then.
    pub(super) fn run(&mut self) {
        if self.is_empty() {
            return;
        }
        for waiter in self.wake.take() {
            match waiter {
                Waiter::None => {}
                Waiter::Thread(thread) => thread.unpark(),
                Waiter::Task(waker) => crate::pending::wake(waker),
            }
        }
        drop((self.idle.take(), self.unused.take(), self.lands.take()));
    }

    /// As after every step of which nothing follows: that has to cost nothing.
    fn is_empty(&self) -> bool {
        self.wake.is_empty() && self.idle.is_empty() && self.unused.is_empty() && self.lands.is_empty()
    }

    pub(super) fn drop_later(&mut self, land: Lander) {
        self.lands.push(land);
    }

    fn wake(&mut self, waiter: Waiter) {
        if !matches!(waiter, Waiter::None) {
            self.wake.push(waiter);
        }
    }

    fn idle(&mut self, waiter: Waiter) {
        if !matches!(waiter, Waiter::None) {
            self.idle.push(waiter);
        }
    }

    fn retire(&mut self, stage: Stage) {
        match stage {
            Stage::Asked { land, early, .. } => {
                self.data.extend(early.into_iter().map(|early| early.data));
                land.into_iter().for_each(|land| self.lands.push(land));
            }
            stage => self.unused.push(stage),
        }
    }
}

impl Calls {
    /// A number for a call.
    pub(super) fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    pub(super) fn insert(&mut self, link: u64, number: u64, land: Lander) {
        let stage = Stage::Asked { land: Some(land), early: Vec::new(), is_claimed: false };
        self.open.insert(number, Entry { link, stage, waiter: Waiter::None });
        *self.running.entry(link).or_default() += 1;
    }

    fn ended(&mut self, link: u64) {
        if let Some(running) = self.running.get_mut(&link) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(&link);
            }
        }
    }

    /// Whether a connection owes something: the ends of calls, also of those that nobody waits for any more.
    pub(super) fn are_open(&self, link: u64) -> bool {
        self.running.contains_key(&link)
    }

    /// Whether a call is one of a connection, and has not ended.
    pub(super) fn is_wanted(&self, link: u64, number: u64) -> bool {
        let entry = self.open.get(&number);
        entry.is_some_and(|entry| entry.link == link && !matches!(entry.stage, Stage::Ended(_)))
    }

    /// What chooses the memory for an answer that has come; `None` when nobody wants it.
    pub(super) fn begin(&mut self, link: u64, number: u64) -> Option<Lander> {
        match self.open.get_mut(&number) {
            Some(Entry { link: own, stage: Stage::Asked { land, .. }, .. }) if *own == link => land.take(),
            _ => None,
        }
    }

    /// Allows to fetch the bytes of an answer before it is known where they go: once a call.
    pub(super) fn claim(&mut self, link: u64, number: u64) -> bool {
        match self.open.get_mut(&number) {
            Some(Entry { link: own, stage: Stage::Asked { land: Some(_), is_claimed, .. }, .. }) if *own == link => {
                !std::mem::replace(is_claimed, true)
            }
            _ => false,
        }
    }

    /// Whether parts came before their answer.
    pub(super) fn are_early(&self, number: u64) -> bool {
        let stage = self.open.get(&number).map(|entry| &entry.stage);
        matches!(stage, Some(Stage::Asked { early, .. }) if !early.is_empty())
    }

    /// The landings of an answer of which the first `here` parts are in their places, and others come by themselves; those that
    /// came before it.
    ///
    /// # Errors
    /// The landings, when the call has ended meanwhile.
    pub(super) fn expect(
        &mut self,
        number: u64,
        head: Head,
        landings: Landings,
        here: usize,
    ) -> std::result::Result<Vec<Early>, Landings> {
        let Some(entry) = self.open.get_mut(&number) else { return Err(landings) };
        let Stage::Asked { early, .. } = &mut entry.stage else { return Err(landings) };
        let early = std::mem::take(early);
        let missing = landings.len() - here;
        let mut given = SmallVec::from_elem(false, landings.len());
        given[..here].fill(true);
        let landings = landings.into_iter().map(Some).collect();
        entry.stage = Stage::Landing { head, landings, missing, given };
        Ok(early)
    }

    /// Parts came, `here` of them from `index` on. Those whose bytes are here are put where they belong, or wait for their
    /// answer; one that is to be fetched is returned, with where it goes.
    ///
    /// # Errors
    /// The data, when it is to be given back: nobody wants it, or it was never announced.
    pub(super) fn part(
        &mut self,
        link: u64,
        number: u64,
        index: u32,
        here: u32,
        data: Data,
        after: &mut After,
    ) -> std::result::Result<Option<(Landing, Data)>, Data> {
        if self.came(Some(link), number, here) {
            return Err(data);
        }
        if let Some(bytes) = data.bytes() {
            if self.fill(link, number, index, here, bytes, after) {
                return Ok(None);
            }
        }
        let Some(entry) = self.open.get_mut(&number).filter(|entry| entry.link == link) else { return Err(data) };
        match &mut entry.stage {
            Stage::Asked { land: Some(_), early, .. }
                if early.len() < MAX_PARTS && held(early) + data.held() <= MOST_EARLY =>
            {
                early.push(Early { index, here, data });
                Ok(None)
            }
            Stage::Landing { landings, given, .. } if here == 1 && data.bytes().is_none() => {
                let index = index as usize;
                match (landings.get_mut(index), given.get_mut(index)) {
                    (Some(place), Some(given)) if !*given => match place.take() {
                        Some(landing) if landing.len() == data.len() => {
                            *given = true;
                            Ok(Some((landing, data)))
                        }
                        kept => {
                            *place = kept;
                            Err(data)
                        }
                    },
                    _ => Err(data),
                }
            }
            Stage::Asked { .. } | Stage::Landing { .. } | Stage::Ended(_) => Err(data),
        }
    }

    /// Copies parts to where they belong; `false`, and nothing is done, where they are not expected so.
    pub(super) fn fill(
        &mut self,
        link: u64,
        number: u64,
        index: u32,
        here: u32,
        bytes: &[u8],
        after: &mut After,
    ) -> bool {
        let Some(entry) = self.open.get_mut(&number).filter(|entry| entry.link == link) else { return false };
        let Stage::Landing { landings, missing, given, .. } = &mut entry.stage else { return false };
        let range = index as usize..index as usize + here as usize;
        let (Some(landings), Some(given)) = (landings.get_mut(range.clone()), given.get_mut(range)) else {
            return false;
        };
        if given.contains(&true) || landings.iter().flatten().map(Landing::len).sum::<usize>() != bytes.len() {
            return false;
        }
        let mut rest = bytes;
        for landing in landings.iter_mut().flatten() {
            let written = landing.write(rest);
            rest = &rest[written..];
        }
        given.fill(true);
        *missing -= landings.len();
        self.finish(number, after);
        true
    }

    /// Ends a call all of whose parts are where they belong.
    fn finish(&mut self, number: u64, after: &mut After) {
        if let Some(Stage::Landing { head, landings, missing: 0, .. }) =
            self.open.get_mut(&number).map(|entry| &mut entry.stage)
        {
            let answer = Answer { head: std::mem::take(head), parts: landings.drain(..).flatten().collect() };
            self.end(number, Ok(answer), after);
        }
    }

    /// A part is where it belongs; its landing, where nobody wants it.
    pub(super) fn landed(&mut self, number: u64, index: u32, landing: Landing, after: &mut After) -> Option<Landing> {
        if self.came(None, number, 1) {
            return Some(landing);
        }
        let Some(entry) = self.open.get_mut(&number) else { return Some(landing) };
        let Stage::Landing { landings, missing, .. } = &mut entry.stage else { return Some(landing) };
        let Some(place) = landings.get_mut(index as usize).filter(|place| place.is_none()) else {
            return Some(landing);
        };
        *place = Some(landing);
        *missing -= 1;
        self.finish(number, after);
        None
    }

    /// Ends a call.
    pub(super) fn end(&mut self, number: u64, end: Result<Answer>, after: &mut After) {
        self.end_before(number, end, Some(0), after);
    }

    /// Ends a call before so many parts of its answer have come; `None` when the answer itself has not.
    pub(super) fn end_before(&mut self, number: u64, end: Result<Answer>, parts: Option<usize>, after: &mut After) {
        match self.open.get_mut(&number) {
            Some(entry) if !matches!(entry.stage, Stage::Ended(_)) => {
                let (link, left) = (entry.link, entry.left(parts));
                after.retire(std::mem::replace(&mut entry.stage, Stage::Ended(end)));
                let waiter = std::mem::replace(&mut entry.waiter, Waiter::None);
                self.watched -= usize::from(matches!(waiter, Waiter::Task(_)));
                self.leave_behind(link, number, left);
                after.wake(waiter);
            }
            Some(_) => after.unused.push(Stage::Ended(end)),
            None => {
                // Given up meanwhile: what was still to come then still is.
                if let (Some(parts), Some(left)) = (parts, self.left.get_mut(&number)) {
                    if left.came >= *left.parts.get_or_insert(parts) {
                        self.settle(number);
                    }
                }
                after.unused.push(Stage::Ended(end));
            }
        }
    }

    /// Ends a call to which parts came that do not fit its answer; of one that ended, they are just late.
    pub(super) fn misfit(&mut self, link: u64, number: u64, here: u32, after: &mut After) {
        if self.is_wanted(link, number) {
            let error = Error::new(ErrorKind::Corrupt, "receive", "a part that is none of its answer");
            self.end_before(number, Err(error), None, after);
            self.came(Some(link), number, here);
        }
    }

    /// A call has ended for who asked; for its owner, where nothing is left to come.
    fn leave_behind(&mut self, link: u64, number: u64, (came, parts): (usize, Option<usize>)) {
        match parts.is_some_and(|parts| came >= parts) {
            true => self.ended(link),
            false => drop(self.left.insert(number, Left { link, came, parts, since: Instant::now() })),
        }
    }

    /// Nothing is to come any more of a call that nobody waits for.
    fn settle(&mut self, number: u64) {
        if let Some(left) = self.left.remove(&number) {
            self.ended(left.link);
        }
    }

    /// An answer to a call that nobody waits for came, or will not come; so many of its parts come by themselves.
    pub(super) fn unwanted(&mut self, link: u64, number: u64, parts: usize) {
        let Some(left) = self.left.get_mut(&number).filter(|left| left.link == link) else { return };
        left.parts = Some(parts);
        if left.came >= parts {
            self.settle(number);
        }
    }

    /// So many parts came, or ended; whether that is of a call that nobody waits for.
    pub(super) fn came(&mut self, link: Option<u64>, number: u64, here: u32) -> bool {
        let Some(left) = self.left.get_mut(&number).filter(|left| link.is_none_or(|link| link == left.link)) else {
            return false;
        };
        left.came += here as usize;
        if left.parts.is_some_and(|parts| left.came >= parts) {
            self.settle(number);
        }
        true
    }

    /// Whether owners owe something that nobody waits for.
    pub(super) fn are_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether an owner has owed something for so long that nobody waits for, though it was told so, or said itself that it would
    /// come.
    pub(super) fn is_overdue(&self, link: u64, now: Instant, limit: Duration) -> bool {
        let is_late = |left: &Left| left.link == link && now.saturating_duration_since(left.since) >= limit;
        self.left.values().any(is_late)
    }

    /// Ends all calls of a connection.
    pub(super) fn fail(&mut self, link: u64, error: &Error, after: &mut After) {
        let numbers: Vec<u64> =
            self.open.iter().filter(|(_, entry)| entry.link == link).map(|(number, _)| *number).collect();
        for number in numbers {
            if !self.has_ended(number) {
                self.end(number, Err(error.clone()), after);
            }
        }
        self.left.retain(|_, left| left.link != link);
        self.running.remove(&link);
    }

    /// The result of a call that ended, which is then forgotten.
    pub(super) fn take(&mut self, number: u64) -> Option<Result<Answer>> {
        if !self.has_ended(number) {
            return None;
        }
        self.leave(number);
        match self.open.remove(&number)?.stage {
            Stage::Ended(end) => Some(end),
            _ => None,
        }
    }

    /// Whether a call has ended, and its result is not taken.
    fn has_ended(&self, number: u64) -> bool {
        self.open.get(&number).is_none_or(|entry| matches!(entry.stage, Stage::Ended(_)))
    }

    /// Whether the result of a call was not taken, nor is it forgotten.
    pub(super) fn knows(&self, number: u64) -> bool {
        self.open.contains_key(&number)
    }

    /// Forgets a call; whether the owner is to be told.
    pub(super) fn abandon(&mut self, number: u64, after: &mut After) -> bool {
        self.leave(number);
        let Some(entry) = self.open.remove(&number) else { return false };
        self.watched -= usize::from(matches!(entry.waiter, Waiter::Task(_)));
        let is_open = !matches!(entry.stage, Stage::Ended(_));
        if is_open {
            self.leave_behind(entry.link, number, entry.left(None));
        }
        after.idle(entry.waiter);
        after.retire(entry.stage);
        is_open
    }

    /// Notes that this thread waits for a call while somebody else drives.
    pub(super) fn follow(&mut self, number: u64) {
        // Told to drive, it found that somebody else does by now, who has to tell it again.
        if self.promoted == Some(number) {
            self.promoted = None;
        }
        if let Some(entry) = self.open.get_mut(&number) {
            if !matches!(entry.waiter, Waiter::Thread(_)) {
                self.watched -= usize::from(matches!(entry.waiter, Waiter::Task(_)));
                entry.waiter = Waiter::Thread(std::thread::current());
                self.followers.push_back(number);
            }
        }
    }

    /// Notes that a call's thread does not follow any more.
    pub(super) fn leave(&mut self, number: u64) {
        if self.promoted == Some(number) {
            self.promoted = None;
        }
        if let Some(entry) = self.open.get_mut(&number) {
            if matches!(entry.waiter, Waiter::Thread(_)) {
                entry.waiter = Waiter::None;
            }
        }
        self.followers.retain(|follower| *follower != number);
    }

    /// Notes the task that waits for a call.
    pub(super) fn watch(&mut self, number: u64, waker: Waker, after: &mut After) {
        if let Some(entry) = self.open.get_mut(&number) {
            let former = std::mem::replace(&mut entry.waiter, Waiter::Task(waker));
            self.watched += usize::from(!matches!(former, Waiter::Task(_)));
            after.idle(former);
        }
    }

    /// Whether a task waits for this call.
    pub(super) fn is_watching(&self, number: u64) -> bool {
        self.open.get(&number).is_some_and(|entry| matches!(entry.waiter, Waiter::Task(_)))
    }

    /// Whether a thread waits that could drive.
    pub(super) fn has_followers(&self) -> bool {
        !self.followers.is_empty()
    }

    /// Whether tasks wait.
    pub(super) fn is_watched(&self) -> bool {
        self.watched > 0
    }

    /// Chooses who drives next, when nobody does: a thread that waits, if there is one.
    pub(super) fn promote(&mut self, after: &mut After) {
        if self.led || self.promoted.is_some() {
            return;
        }
        while let Some(number) = self.followers.front().copied() {
            match self.open.get(&number).map(|entry| &entry.waiter) {
                Some(Waiter::Thread(thread)) => {
                    self.promoted = Some(number);
                    return after.wake(Waiter::Thread(thread.clone()));
                }
                _ => drop(self.followers.pop_front()),
            }
        }
    }
}

/// Bytes of this process in parts that overtook their answer.
fn held(early: &[Early]) -> usize {
    early.iter().map(|early| early.data.held()).sum()
}

/// Most bytes that overtake an answer: more than an owner has on its way to one requester.
const MOST_EARLY: usize = 32 << 20;

#[cfg(test)]
mod tests;
