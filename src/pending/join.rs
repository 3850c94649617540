//! Operations made of operations: continue one, wait for many.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Instant;

use super::{Limit, Operation, Pending, pool};
use crate::error::{Error, Result};

/// Applies a function to the result of another operation.
pub(super) struct Then<T, F> {
    operation: Box<dyn Operation<T>>,
    f: Option<F>,
}

impl<T, F> Then<T, F> {
    pub(super) fn new(operation: Box<dyn Operation<T>>, f: F) -> Self {
        Self { operation, f: Some(f) }
    }

    fn apply<U>(&mut self, result: Result<T>) -> Result<U>
    where
        F: FnOnce(Result<T>) -> Result<U>,
    {
        match self.f.take() {
            Some(f) => f(result),
            None => Err(super::taken()),
        }
    }
}

impl<T, U, F> Operation<U> for Then<T, F>
where
    T: Send,
    F: FnOnce(Result<T>) -> Result<U> + Send,
{
    fn wait(&mut self, limit: Limit) -> Result<U> {
        let result = self.operation.wait(limit);
        self.apply(result)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<U>> {
        match self.operation.poll(cx) {
            Poll::Ready(result) => Poll::Ready(self.apply(result)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn bound(&mut self, until: Option<Instant>) {
        self.operation.bound(until);
    }

    fn start(&mut self) {
        self.operation.start();
    }

    fn fail(&mut self, error: Error) -> Result<U> {
        let result = self.operation.fail(error);
        self.apply(result)
    }
}

/// Runs a second operation after the first.
pub(super) struct Chain<T, U, F> {
    first: Option<(Box<dyn Operation<T>>, F)>,
    second: Option<Pending<U>>,
}

impl<T, U, F> Chain<T, U, F> {
    pub(super) fn new(first: Box<dyn Operation<T>>, f: F) -> Self {
        Self { first: Some((first, f)), second: None }
    }
}

impl<T, U, F> Operation<U> for Chain<T, U, F>
where
    T: Send,
    U: Send,
    F: FnOnce(T) -> Pending<U> + Send,
{
    fn wait(&mut self, limit: Limit) -> Result<U> {
        if let Some((mut first, f)) = self.first.take() {
            self.second = Some(f(first.wait(limit)?));
        }
        match self.second.take() {
            Some(second) => second.within(limit).wait(),
            None => Err(super::taken()),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<U>> {
        if let Some((first, _)) = &mut self.first {
            let value = match first.poll(cx) {
                Poll::Ready(Ok(value)) => value,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            self.second = self.first.take().map(|(_, f)| f(value));
        }
        match &mut self.second {
            Some(second) => Pin::new(second).poll(cx),
            None => Poll::Ready(Err(super::taken())),
        }
    }

    fn bound(&mut self, until: Option<Instant>) {
        if let Some((first, _)) = &mut self.first {
            first.bound(until);
        }
    }

    fn start(&mut self) {
        if let Some((first, _)) = &mut self.first {
            first.start();
        }
    }

    fn fail(&mut self, error: Error) -> Result<U> {
        match (&mut self.first, &mut self.second) {
            (Some((first, _)), _) => first.fail(error.clone()).and(Err(error)),
            (None, Some(second)) => second.fail(error),
            (None, None) => Err(error),
        }
    }
}

/// Waits for all of a list.
pub(super) struct All<T> {
    operations: Vec<Pending<T>>,
    values: Vec<Option<T>>,
    missing: usize,
    /// One for each operation, so that a wake-up costs one poll and not a poll of all; empty until the first poll.
    wakers: Vec<Waker>,
    woken: Arc<Woken>,
}

impl<T> All<T> {
    pub(super) fn new(operations: Vec<Pending<T>>) -> Self {
        let values = operations.iter().map(|_| None).collect();
        let woken = Arc::new(Woken(Mutex::new(Wakes { indices: Vec::new(), task: None })));
        Self { missing: operations.len(), operations, values, wakers: Vec::new(), woken }
    }

    fn take_values(&mut self) -> Vec<T> {
        self.operations.clear();
        self.values.drain(..).flatten().collect()
    }
}

impl<T: Send> Operation<Vec<T>> for All<T> {
    fn wait(&mut self, limit: Limit) -> Result<Vec<T>> {
        for (operation, value) in self.operations.drain(..).zip(&mut self.values) {
            if value.is_none() {
                *value = Some(operation.within(limit).wait()?);
            }
        }
        Ok(self.take_values())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<T>>> {
        let mut indices = self.woken.arm(cx.waker());
        if self.wakers.is_empty() {
            let waker = |index| Waker::from(Arc::new(WakeOne { index, woken: Arc::clone(&self.woken) }));
            self.wakers.extend((0..self.operations.len()).map(waker));
            indices = (0..self.operations.len()).collect();
        }
        for index in indices {
            if self.values[index].is_some() {
                continue;
            }
            match Pin::new(&mut self.operations[index]).poll(&mut Context::from_waker(&self.wakers[index])) {
                Poll::Ready(Ok(value)) => self.values[index] = Some(value),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => continue,
            }
            self.missing -= 1;
        }
        match self.missing {
            0 => Poll::Ready(Ok(self.take_values())),
            _ => Poll::Pending,
        }
    }

    fn start(&mut self) {
        for (operation, value) in self.operations.iter_mut().zip(&self.values) {
            if value.is_none() {
                let taken = std::mem::replace(operation, Pending::ready(Err(super::taken())));
                *operation = taken.start();
            }
        }
    }
}

/// Waits for all of a list, to the last, and gives what became of each.
///
/// Nothing is lost when the caller stops waiting: the pool waits on, and hands the values to `abandoned`.
pub(super) struct Settle<T: Send + 'static> {
    operations: Vec<Pending<T>>,
    outcomes: Vec<Option<Result<T>>>,
    /// As in [`All`].
    wakers: Vec<Waker>,
    woken: Arc<Woken>,
    /// `None` once the outcomes were given out.
    abandoned: Option<Abandoned<T>>,
}

type Abandoned<T> = Box<dyn FnOnce(Vec<T>) + Send>;

impl<T: Send + 'static> Settle<T> {
    pub(super) fn new(operations: Vec<Pending<T>>, abandoned: Abandoned<T>) -> Self {
        let outcomes = operations.iter().map(|_| None).collect();
        let woken = Arc::new(Woken(Mutex::new(Wakes { indices: Vec::new(), task: None })));
        Self { operations, outcomes, wakers: Vec::new(), woken, abandoned: Some(abandoned) }
    }

    /// Waits on this thread. Operations that somebody else completes are polled, because one whose wait has timed out could
    /// not be waited for again.
    fn block(&mut self, limit: Limit) -> Result<()> {
        for (operation, outcome) in self.operations.iter_mut().zip(&mut self.outcomes) {
            if outcome.is_none() && operation.runs_within(limit) {
                let operation = std::mem::replace(operation, Pending::ready(Err(super::taken())));
                *outcome = Some(operation.within(limit).wait());
            }
        }
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        while !self.poll_all(&Context::from_waker(&waker)) {
            match limit.at.map(|at| at.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(left) if left.is_zero() => return Err(super::timed_out()),
                Some(left) => thread::park_timeout(left),
            }
        }
        Ok(())
    }

    /// Polls what was woken; whether all have ended.
    fn poll_all(&mut self, cx: &Context<'_>) -> bool {
        let mut indices = self.woken.arm(cx.waker());
        if self.wakers.is_empty() {
            let waker = |index| Waker::from(Arc::new(WakeOne { index, woken: Arc::clone(&self.woken) }));
            self.wakers.extend((0..self.operations.len()).map(waker));
            indices = (0..self.operations.len()).collect();
        }
        for index in indices {
            if self.outcomes[index].is_none() {
                let mut cx = Context::from_waker(&self.wakers[index]);
                if let Poll::Ready(outcome) = Pin::new(&mut self.operations[index]).poll(&mut cx) {
                    self.outcomes[index] = Some(outcome);
                }
            }
        }
        self.outcomes.iter().all(Option::is_some)
    }

    fn take_outcomes(&mut self) -> Vec<Result<T>> {
        self.abandoned = None;
        self.outcomes.drain(..).flatten().collect()
    }
}

impl<T: Send + 'static> Operation<Vec<Result<T>>> for Settle<T> {
    fn wait(&mut self, limit: Limit) -> Result<Vec<Result<T>>> {
        self.block(limit).map(|()| self.take_outcomes())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<Result<T>>>> {
        match self.poll_all(cx) {
            true => Poll::Ready(Ok(self.take_outcomes())),
            false => Poll::Pending,
        }
    }

    fn start(&mut self) {
        for (operation, outcome) in self.operations.iter_mut().zip(&self.outcomes) {
            if outcome.is_none() {
                let taken = std::mem::replace(operation, Pending::ready(Err(super::taken())));
                *operation = taken.start();
            }
        }
    }
}

impl<T: Send + 'static> Drop for Settle<T> {
    fn drop(&mut self) {
        let Some(abandoned) = self.abandoned.take() else { return };
        let mut rest = Self {
            operations: std::mem::take(&mut self.operations),
            outcomes: std::mem::take(&mut self.outcomes),
            wakers: std::mem::take(&mut self.wakers),
            woken: Arc::clone(&self.woken),
            abandoned: None,
        };
        pool::spawn(Box::new(move || {
            // Without a limit this ends when all have.
            let _ = pool::lend_place(|| rest.block(Limit::NONE));
            abandoned(rest.take_outcomes().into_iter().flatten().collect());
        }));
    }
}

/// Wakes a thread that polls.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Which operations of a list were woken since the last poll, and the task that waits for them.
struct Woken(Mutex<Wakes>);

struct Wakes {
    indices: Vec<usize>,
    task: Option<Waker>,
}

impl Woken {
    /// Takes what was woken; the next wake-up wakes `task`.
    fn arm(&self, task: &Waker) -> Vec<usize> {
        // Outside the lock, as the drop below: wakers are foreign code.
        let task = task.clone();
        let mut wakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let indices = std::mem::take(&mut wakes.indices);
        let old = wakes.task.replace(task);
        drop(wakes);
        drop(old);
        indices
    }
}

struct WakeOne {
    index: usize,
    woken: Arc<Woken>,
}

impl Wake for WakeOne {
    fn wake(self: Arc<Self>) {
        let mut wakes = self.woken.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.indices.push(self.index);
        let task = wakes.task.take();
        drop(wakes);
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Not under Miri, which does not like that the thread of deadlines outlives the tests.
#[cfg(all(test, not(any(loom, shuttle, miri))))]
mod tests {
    use std::time::Duration;

    use super::super::Operations;
    use super::*;
    use crate::sync::lock;

    /// Never ends, and notes until when it was started.
    #[derive(Default)]
    struct Started(Mutex<Vec<Option<Instant>>>);

    impl Operations<()> for Started {
        fn wait(self: Arc<Self>, _: u64, _: Option<Instant>) -> Result<()> {
            Err(super::super::taken())
        }

        fn poll(self: Arc<Self>, _: u64, _: &mut Context<'_>) -> Poll<Result<()>> {
            Poll::Pending
        }

        fn start(self: Arc<Self>, _: u64, deadline: Option<Instant>) {
            lock(&self.0).push(deadline);
        }

        fn let_go(self: Arc<Self>, _: u64) {}
    }

    #[test]
    fn what_an_operation_is_continued_by_does_not_hide_until_when_it_may_take() {
        type Way = fn(Pending<()>) -> Pending<()>;
        let ways: [Way; 4] = [
            |one| one,
            |one| one.then(|result| result),
            |one| one.chain(|()| Pending::ready(Ok(()))),
            |one| one.then(|result| result).and_then(Ok).chain(|()| Pending::ready(Ok(()))),
        ];
        for (at, way) in ways.into_iter().enumerate() {
            for is_polled in [true, false] {
                let started = Arc::new(Started::default());
                let before = Instant::now();
                let one = way(Pending::from_operations(Arc::clone(&started) as _, 1));
                let one = one.deadline(Duration::from_secs(3600));
                let mut one = if is_polled { one } else { one.start() };
                for _ in 0..2 {
                    assert!(Pin::new(&mut one).poll(&mut Context::from_waker(Waker::noop())).is_pending());
                }
                let told = lock(&started.0).clone();
                let is_right =
                    |until: &Option<Instant>| until.is_some_and(|at| at - before >= Duration::from_secs(3600));
                assert!(told.len() == 1 && told.iter().all(is_right), "way {at}, polled {is_polled}: {told:?}");
            }
        }
    }
}
