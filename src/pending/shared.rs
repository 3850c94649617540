//! One operation that many wait for: whoever waits drives it, so it never depends on a waiter that sleeps.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Wake, Waker};

use super::{Limit, Operation, Pending, State, pool};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::modelled::{Arc, Condvar, Mutex, lock};

/// An operation with any number of participants, each of whom gets a clone of the result.
///
/// The operation itself lies in the middle. A thread that waits takes it out and drives it; a task that polls takes it out
/// for one poll. So a task that is never polled again holds up nobody. When all participants are gone the pool drives
/// it, because `on_end` must hear of the end.
///
/// A failure is everybody's, also the `Timeout` of the participant that drove.
pub(crate) struct Shared<T: Clone + Send + 'static> {
    middle: Mutex<Middle<T>>,
    changed: Condvar,
}

struct Middle<T> {
    /// `None` while somebody drives it, and after the end.
    operation: Option<Pending<T>>,
    on_end: Option<OnEnd<T>>,
    result: Option<Result<T>>,
    /// Of the tasks among the participants.
    wakers: Vec<(usize, Waker)>,
    /// Whether a task found the operation out and relies on the wake-up of whoever polls it, which may have come already.
    missed: bool,
    participants: usize,
    next_id: usize,
}

/// Hears of the result before any participant does.
type OnEnd<T> = Box<dyn FnOnce(&Result<T>) + Send>;

impl<T: Clone + Send + 'static> Shared<T> {
    pub(crate) fn new(operation: Pending<T>, on_end: impl FnOnce(&Result<T>) + Send + 'static) -> Arc<Self> {
        let middle = Middle {
            operation: Some(operation),
            on_end: Some(Box::new(on_end)),
            result: None,
            wakers: Vec::new(),
            missed: false,
            participants: 0,
            next_id: 0,
        };
        Arc::new(Self { middle: Mutex::new(middle), changed: Condvar::new() })
    }

    /// One more participant.
    ///
    /// # Cost
    /// One allocation.
    pub(crate) fn join(this: &Arc<Self>) -> Pending<T> {
        let mut middle = lock(&this.middle);
        middle.participants += 1;
        middle.next_id += 1;
        let participant = Participant { shared: Arc::clone(this), id: middle.next_id };
        drop(middle);
        Pending::from_state(State::Waiting(Box::new(participant)))
    }

    /// Publishes the result and wakes everybody.
    fn end(&self, result: Result<T>) {
        let on_end = lock(&self.middle).on_end.take();
        if let Some(on_end) = on_end {
            on_end(&result);
        }
        let mut middle = lock(&self.middle);
        middle.result = Some(result);
        drop(middle);
        self.changed.notify_all();
        self.wake_tasks();
    }

    /// Drives `operation` to its end on this thread.
    fn drive(&self, operation: Pending<T>) -> Result<T> {
        let mut driver = Driver { shared: self, ended: false };
        let result = operation.wait();
        driver.ended = true;
        self.end(result.clone());
        result
    }

    fn wake_tasks(&self) {
        let wakers = std::mem::take(&mut lock(&self.middle).wakers);
        wakers.into_iter().for_each(|(_, waker)| super::wake(waker));
    }

    /// Puts an operation back that a poll did not end.
    fn put_back(&self, operation: Pending<T>) {
        let mut middle = lock(&self.middle);
        middle.operation = Some(operation);
        let missed = std::mem::take(&mut middle.missed);
        drop(middle);
        // A thread or a task that came while it was out may drive it now.
        self.changed.notify_all();
        if missed {
            self.wake_tasks();
        }
    }
}

/// Ends the operation for the others when driving it panics.
struct Driver<'a, T: Clone + Send + 'static> {
    shared: &'a Shared<T>,
    ended: bool,
}

impl<T: Clone + Send + 'static> Drop for Driver<'_, T> {
    fn drop(&mut self) {
        if !self.ended {
            let context = "the thread that drove the operation panicked";
            self.shared.end(Err(Error::new(ErrorKind::Cancelled, "wait", context)));
        }
    }
}

struct Participant<T: Clone + Send + 'static> {
    shared: Arc<Shared<T>>,
    id: usize,
}

impl<T: Clone + Send + 'static> Operation<T> for Participant<T> {
    fn wait(&mut self, limit: Limit) -> Result<T> {
        let mut middle = lock(&self.shared.middle);
        loop {
            if let Some(result) = &middle.result {
                return result.clone();
            }
            if let Some(operation) = middle.operation.take() {
                drop(middle);
                return self.shared.drive(operation.within(limit));
            }
            middle = super::completer::wait_on(&self.shared.changed, middle, limit.at)?;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        // Outside the lock: wakers are foreign code.
        let waker = cx.waker().clone();
        let mut middle = lock(&self.shared.middle);
        if let Some(result) = &middle.result {
            return Poll::Ready(result.clone());
        }
        let old = match middle.wakers.iter_mut().find(|(id, _)| *id == self.id) {
            Some((_, slot)) => Some(std::mem::replace(slot, waker)),
            None => {
                middle.wakers.push((self.id, waker));
                None
            }
        };
        let operation = middle.operation.take();
        middle.missed |= operation.is_none();
        drop(middle);
        drop(old);
        let Some(mut operation) = operation else {
            // Whoever drives it wakes us at the end, or when it puts it back.
            return Poll::Pending;
        };
        let mut driver = Driver { shared: &self.shared, ended: false };
        let waker = Waker::from(std::sync::Arc::new(WakeAll(Arc::clone(&self.shared))));
        let polled = Pin::new(&mut operation).poll(&mut Context::from_waker(&waker));
        driver.ended = true;
        match polled {
            Poll::Ready(result) => {
                self.shared.end(result.clone());
                Poll::Ready(result)
            }
            Poll::Pending => {
                self.shared.put_back(operation);
                Poll::Pending
            }
        }
    }

    fn start(&mut self) {
        let operation = lock(&self.shared.middle).operation.take();
        if let Some(operation) = operation {
            self.shared.put_back(operation.start());
        }
    }
}

impl<T: Clone + Send + 'static> Drop for Participant<T> {
    fn drop(&mut self) {
        let mut middle = lock(&self.shared.middle);
        middle.participants -= 1;
        let waker = middle.wakers.iter().position(|(id, _)| *id == self.id).map(|at| middle.wakers.swap_remove(at));
        let orphan = if middle.participants == 0 { middle.operation.take() } else { None };
        drop(middle);
        drop(waker);
        match orphan {
            Some(operation) => {
                let shared = Arc::clone(&self.shared);
                pool::spawn(Box::new(move || drop(shared.drive(operation))));
            }
            // This one may have been woken to poll, and will not: pass it on.
            None => self.shared.wake_tasks(),
        }
    }
}

/// The waker that a poll leaves behind: the participant who polled may be gone when it fires.
struct WakeAll<T: Clone + Send + 'static>(Arc<Shared<T>>);

impl<T: Clone + Send + 'static> Wake for WakeAll<T> {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.wake_tasks();
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::thread;
    use std::time::Duration;

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn counter() -> (std::sync::Arc<Count>, Waker) {
        let count = std::sync::Arc::new(Count(AtomicUsize::new(0)));
        (std::sync::Arc::clone(&count), Waker::from(count))
    }

    #[test]
    fn a_task_that_sleeps_holds_up_no_thread() {
        let (completer, operation) = Pending::channel();
        let shared = Shared::new(operation, |_| {});
        let (woken, waker) = counter();
        let mut task = Shared::join(&shared);
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        completer.complete(Ok(5));
        // The task is never polled again; this thread drives the operation itself.
        assert_eq!(Shared::join(&shared).deadline(Duration::from_secs(10)).wait().unwrap(), 5);
        assert!(woken.0.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn a_woken_task_that_is_dropped_passes_the_wake_up_on() {
        let (completer, operation) = Pending::channel();
        let shared = Shared::new(operation, |_| {});
        let (first_waker, second_waker) = (counter(), counter());
        let (mut first, mut second) = (Shared::join(&shared), Shared::join(&shared));
        assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&first_waker.1)).is_pending());
        completer.complete(Ok(5));
        assert!(first_waker.0.0.load(Ordering::Relaxed) > 0);
        // As if it had been polled while the first had the operation: it registers, and nobody else would wake it.
        lock(&shared.middle).wakers.push((2, second_waker.1.clone()));
        drop(first);
        assert!(second_waker.0.0.load(Ordering::Relaxed) > 0);
        assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&second_waker.1)).is_ready());
    }

    #[test]
    fn a_task_that_polls_while_another_polls_is_not_forgotten() {
        /// Completes nothing itself, but lets something happen during its first poll.
        struct During(Option<Happen>, Pending<i32>);

        type Happen = Box<dyn FnOnce(&Waker) + Send>;

        impl super::super::Source<i32> for During {
            fn wait(&mut self, _deadline: Option<std::time::Instant>) -> Result<i32> {
                unreachable!("polled only")
            }
            fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<i32>> {
                match self.0.take() {
                    Some(happen) => {
                        happen(cx.waker());
                        Poll::Pending
                    }
                    None => Pin::new(&mut self.1).poll(cx),
                }
            }
        }

        let second: std::sync::Arc<Mutex<Option<Pending<i32>>>> = std::sync::Arc::default();
        let (first_waker, second_waker) = (counter(), counter());
        let (polled, task) = (std::sync::Arc::clone(&second), second_waker.1.clone());
        let happen = move |waker: &Waker| {
            // The wake-up comes first; the second task polls after it, and the first never polls again.
            waker.wake_by_ref();
            let mut second = lock(&polled);
            let second = second.as_mut().unwrap();
            assert!(Pin::new(second).poll(&mut Context::from_waker(&task)).is_pending());
        };
        let operation = During(Some(Box::new(happen)), Pending::ready(Ok(5)));
        let shared = Shared::new(Pending::from_source(operation), |_| {});
        let mut first = Shared::join(&shared);
        *lock(&second) = Some(Shared::join(&shared));
        assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&first_waker.1)).is_pending());
        assert_eq!(second_waker.0.0.load(Ordering::Relaxed), 1);
        let mut second = lock(&second).take().unwrap();
        assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&second_waker.1)).is_ready());
    }

    #[test]
    fn the_pool_drives_what_everybody_left() {
        let (ended, end) = std::sync::mpsc::channel();
        let shared = Shared::new(Pending::blocking(|| Ok(7)), move |result: &Result<i32>| {
            ended.send(result.clone()).unwrap();
        });
        drop((Shared::join(&shared), Shared::join(&shared)));
        assert_eq!(end.recv_timeout(Duration::from_secs(10)).unwrap().unwrap(), 7);
        assert_eq!(Shared::join(&shared).wait().unwrap(), 7);
    }

    #[test]
    fn a_task_that_joins_what_the_pool_drives_is_woken() {
        let (completer, operation) = Pending::channel();
        let shared = Shared::new(operation, |_| {});
        drop(Shared::join(&shared));
        let (woken, waker) = counter();
        let mut task = Shared::join(&shared);
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        completer.complete(Ok(5));
        let start = std::time::Instant::now();
        while woken.0.load(Ordering::Relaxed) == 0 {
            assert!(start.elapsed() < Duration::from_secs(10), "nobody woke it");
            thread::yield_now();
        }
        assert_eq!(task.wait().unwrap(), 5);
    }

    #[test]
    fn start_moves_a_blocking_call_off_the_waiters() {
        let here = thread::current().id();
        let shared = Shared::new(Pending::blocking(|| Ok(thread::current().id())), |_| {});
        assert_ne!(Shared::join(&shared).start().wait().unwrap(), here);
        let shared = Shared::new(Pending::blocking(|| Ok(thread::current().id())), |_| {});
        assert_eq!(Shared::join(&shared).wait().unwrap(), here);
    }

    #[test]
    fn one_participant_times_out_while_another_drives() {
        let (completer, operation) = Pending::channel();
        let shared = Shared::new(operation, |_| {});
        let (driver, impatient) = (Shared::join(&shared), Shared::join(&shared));
        let thread = thread::spawn(move || driver.wait());
        while lock(&shared.middle).operation.is_some() {
            thread::yield_now();
        }
        let error = impatient.deadline(Duration::from_millis(10)).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        completer.complete(Ok(1));
        assert_eq!(thread.join().unwrap().unwrap(), 1);
    }

    #[test]
    fn threads_and_results() {
        for round in 0..200 {
            let (completer, operation) = Pending::channel();
            let shared = Shared::new(operation, |_| {});
            let waiters: Vec<_> =
                (0..4).map(|_| Shared::join(&shared)).map(|p| thread::spawn(move || p.wait())).collect();
            completer.complete(Ok(round));
            for waiter in waiters {
                assert_eq!(waiter.join().unwrap().unwrap(), round);
            }
        }
    }
}

#[cfg(all(test, loom))]
mod models {
    use loom::thread;

    use super::*;

    /// Not `loom::thread::park`, which forgets an unpark that comes while the thread is blocked on a mutex.
    struct Bell {
        rung: Mutex<bool>,
        changed: Condvar,
    }

    impl Bell {
        fn wait(&self) {
            let mut rung = lock(&self.rung);
            while !std::mem::take(&mut *rung) {
                rung = self.changed.wait(rung).unwrap();
            }
        }
    }

    impl Wake for Bell {
        fn wake(self: std::sync::Arc<Self>) {
            *lock(&self.rung) = true;
            self.changed.notify_one();
        }
    }

    /// A waker that tells nobody: the task behind it is never polled again.
    struct Asleep;

    impl Wake for Asleep {
        fn wake(self: std::sync::Arc<Self>) {}
    }

    /// The least executor: a wake-up that is lost is a deadlock, which loom reports.
    fn block_on(mut participant: Pending<u8>) -> Result<u8> {
        let bell = std::sync::Arc::new(Bell { rung: Mutex::new(false), changed: Condvar::new() });
        let waker = Waker::from(std::sync::Arc::clone(&bell));
        loop {
            match Pin::new(&mut participant).poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => return result,
                Poll::Pending => bell.wait(),
            }
        }
    }

    fn model(f: impl Fn() + Send + Sync + 'static) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(f);
    }

    #[test]
    fn loom_two_threads_and_the_end() {
        model(|| {
            let (completer, operation) = Pending::channel();
            let shared = Shared::new(operation, |_| {});
            let (first, second) = (Shared::join(&shared), Shared::join(&shared));
            let other = thread::spawn(move || first.wait());
            let end = thread::spawn(move || completer.complete(Ok(7)));
            assert_eq!(second.wait().unwrap(), 7);
            assert_eq!(other.join().unwrap().unwrap(), 7);
            end.join().unwrap();
        });
    }

    #[test]
    fn loom_a_task_and_a_thread() {
        model(|| {
            let (completer, operation) = Pending::channel();
            let shared = Shared::new(operation, |_| {});
            let (task, waiter) = (Shared::join(&shared), Shared::join(&shared));
            let other = thread::spawn(move || block_on(task));
            let end = thread::spawn(move || completer.complete(Ok(7)));
            assert_eq!(waiter.wait().unwrap(), 7);
            assert_eq!(other.join().unwrap().unwrap(), 7);
            end.join().unwrap();
        });
    }

    #[test]
    fn loom_two_tasks_one_of_which_sleeps_for_ever() {
        model(|| {
            let (completer, operation) = Pending::channel();
            let shared = Shared::new(operation, |_| {});
            let (mut sleeper, task) = (Shared::join(&shared), Shared::join(&shared));
            let other = thread::spawn(move || block_on(task));
            let asleep = Waker::from(std::sync::Arc::new(Asleep));
            let _ = Pin::new(&mut sleeper).poll(&mut Context::from_waker(&asleep));
            completer.complete(Ok(7));
            assert_eq!(other.join().unwrap().unwrap(), 7);
        });
    }

    #[test]
    fn loom_a_thread_and_a_task_that_sleeps_for_ever() {
        model(|| {
            let (completer, operation) = Pending::channel();
            let shared = Shared::new(operation, |_| {});
            let (mut sleeper, waiter) = (Shared::join(&shared), Shared::join(&shared));
            let other = thread::spawn(move || waiter.wait());
            let asleep = Waker::from(std::sync::Arc::new(Asleep));
            let _ = Pin::new(&mut sleeper).poll(&mut Context::from_waker(&asleep));
            completer.complete(Ok(7));
            assert_eq!(other.join().unwrap().unwrap(), 7);
        });
    }

    #[test]
    fn loom_a_task_that_is_dropped_when_woken() {
        model(|| {
            let (completer, operation) = Pending::channel();
            let shared = Shared::new(operation, |_| {});
            let (mut dropped, task) = (Shared::join(&shared), Shared::join(&shared));
            let other = thread::spawn(move || block_on(task));
            let end = thread::spawn(move || completer.complete(Ok(7)));
            let asleep = Waker::from(std::sync::Arc::new(Asleep));
            let _ = Pin::new(&mut dropped).poll(&mut Context::from_waker(&asleep));
            drop(dropped);
            assert_eq!(other.join().unwrap().unwrap(), 7);
            end.join().unwrap();
        });
    }
}
