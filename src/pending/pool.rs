//! The small pool of threads that runs blocking calls for tasks and for detached operations.
//!
//! Threads are made when work finds none idle, up to `PROXYSTORE_BLOCKING_THREADS`, and end after some idle seconds, so a
//! program that never awaits a blocking call never has one.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::environment;

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on a pool thread; on this one if no thread can be made and none exists.
pub(super) fn spawn(job: Job) {
    let mut queue = POOL.queue.lock().unwrap_or_else(PoisonError::into_inner);
    queue.jobs.push_back(job);
    if queue.idle >= queue.jobs.len() || queue.threads >= environment::blocking_threads() {
        drop(queue);
        POOL.arrived.notify_one();
        return;
    }
    queue.threads += 1;
    drop(queue);
    if thread::Builder::new().name("proxystore-blocking".into()).spawn(work).is_err() {
        let mut queue = POOL.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.threads -= 1;
        // With other threads alive the job is theirs. Alone, late is better than never.
        let orphan = if queue.threads == 0 { queue.jobs.pop_back() } else { None };
        drop(queue);
        if let Some(job) = orphan {
            run(job);
        }
    }
}

struct Pool {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

static POOL: Pool =
    Pool { queue: Mutex::new(Queue { jobs: VecDeque::new(), threads: 0, idle: 0 }), arrived: Condvar::new() };

fn work() {
    let mut queue = POOL.queue.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            run(job);
            queue = POOL.queue.lock().unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        queue.idle += 1;
        let (guard, timeout) = POOL.arrived.wait_timeout(queue, IDLE).unwrap_or_else(PoisonError::into_inner);
        queue = guard;
        queue.idle -= 1;
        if timeout.timed_out() && queue.jobs.is_empty() {
            queue.threads -= 1;
            return;
        }
    }
}

/// A panic ends the job, not the thread; the job's completer, dropped on the way, tells its waiter.
fn run(job: Job) {
    let _ = catch_unwind(AssertUnwindSafe(job));
}

/// How long a thread waits for more work.
const IDLE: Duration = Duration::from_secs(5);
