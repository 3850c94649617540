//! The small pool of threads that runs blocking calls for tasks and for detached operations.
//!
//! Threads are made when work finds none idle, up to `PROXYSTORE_BLOCKING_THREADS`, and end after some idle seconds, so a
//! program that never awaits a blocking call never has one. A thread that itself waits for another operation is not
//! counted meanwhile: were it, calls that wait for calls could fill the pool and wait for ever.
//!
//! A child of fork has none of these threads, so it gets a pool of its own; jobs that its parent had queued are its parent's.

use std::cell::Cell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::environment;
use crate::process::PerProcess;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on a pool thread; on this one if no thread can be made and none exists.
pub(super) fn spawn(job: Job) {
    // Before the lock: it reads the environment once, and may warn.
    let most = environment::blocking_threads();
    let pool = Pool::of_this_process();
    let mut queue = pool.lock();
    queue.jobs.push_back(job);
    pool.grow(queue, most);
    pool.arrived.notify_one();
}

/// Runs `wait`, which blocks until other operations end. What it needs may be in the queue behind this thread, so a pool
/// thread lends its place to another meanwhile.
pub(super) fn lend_place<T>(wait: impl FnOnce() -> T) -> T {
    struct TakeBack(&'static Pool);

    impl Drop for TakeBack {
        fn drop(&mut self) {
            // After a fork in the wait the parent's pool, whose locks may be held for ever, is not this process's.
            if self.0.is_of_this_process() {
                self.0.lock().threads += 1;
                COUNTED.set(Some(self.0));
            }
        }
    }

    let Some(pool) = COUNTED.take().filter(|pool| pool.is_of_this_process()) else { return wait() };
    let _take_back = TakeBack(pool);
    let mut queue = pool.lock();
    queue.threads -= 1;
    pool.grow(queue, environment::blocking_threads());
    wait()
}

struct Pool {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that run a job or look for one.
    threads: usize,
    idle: usize,
}

static POOL: PerProcess<Pool> = PerProcess::new();

thread_local! {
    /// The pool, if this thread is one of its `Queue::threads`.
    static COUNTED: Cell<Option<&'static Pool>> = const { Cell::new(None) };
}

impl Pool {
    fn of_this_process() -> &'static Self {
        POOL.get(|| Self {
            queue: Mutex::new(Queue { jobs: VecDeque::new(), threads: 0, idle: 0 }),
            arrived: Condvar::new(),
        })
    }

    fn is_of_this_process(&self) -> bool {
        POOL.current().is_some_and(|current| std::ptr::eq(current, self))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a thread if the idle ones are too few for the queue and `most` allows it.
    fn grow(&'static self, mut queue: MutexGuard<'_, Queue>, most: usize) {
        if queue.idle >= queue.jobs.len() || queue.threads >= most {
            return;
        }
        queue.threads += 1;
        drop(queue);
        if thread::Builder::new().name("proxystore-blocking".into()).spawn(|| self.work()).is_ok() {
            return;
        }
        let mut queue = self.lock();
        queue.threads -= 1;
        // With other threads alive the jobs are theirs. Alone, late is better than never.
        while queue.threads == 0 {
            let Some(job) = queue.jobs.pop_front() else { return };
            drop(queue);
            run(job);
            queue = self.lock();
        }
    }

    fn work(&'static self) {
        COUNTED.set(Some(self));
        let most = environment::blocking_threads();
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                run(job);
                if !self.is_of_this_process() {
                    // The job forked, and this is the child: the queue is its parent's.
                    return;
                }
                queue = self.lock();
                // Threads that had lent their places are back, so this one is too many. Never decided on waking up: the
                // job that the wake-up was for would wait for nobody.
                if queue.threads > most {
                    queue.threads -= 1;
                    return;
                }
                continue;
            }
            queue.idle += 1;
            let (guard, timeout) = self.arrived.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                queue.threads -= 1;
                return;
            }
        }
    }
}

/// A panic ends the job, not the thread; the job's completer, dropped on the way, tells its waiter.
fn run(job: Job) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(job)) {
        super::discard(payload);
    }
}

/// How long a thread waits for more work.
const IDLE: Duration = Duration::from_secs(5);
