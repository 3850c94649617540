//! `Pending<T>`: an operation that has been started, to be waited for by a thread or by a task.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

mod completer;
mod join;
mod pool;
mod timer;

pub use completer::Completer;

/// A started operation that ends in a `T` or an [`Error`].
///
/// End it with [`wait`](Self::wait) from any thread, no runtime needed, or with `.await` under any executor. There is no
/// other flavour of I/O in this crate. Three representations hide behind it:
///
/// | representation | made by | `.wait()` | `.await` |
/// |---|---|---|---|
/// | ready | [`Pending::ready`] | returns; nothing was allocated | ready at the first poll |
/// | blocking | [`Pending::blocking`], [`Pending::blocking_until`] | runs on the waiting thread | runs on a small pool of threads |
/// | waiting | [`Pending::channel`], [`Pending::from_source`] | parks until completed | wakes when completed |
///
/// # Cancel safety
/// A `Pending` owns everything its operation needs. Dropping it *detaches*: a blocking operation goes on in the pool, a
/// waiting one is completed by whoever does so, and the result is dropped. Nothing is freed early.
///
/// # Examples
/// ```
/// use proxystore::Pending;
/// use std::time::Duration;
///
/// let (completer, pending) = Pending::channel();
/// std::thread::spawn(move || completer.complete(Ok(42)));
/// assert_eq!(pending.deadline(Duration::from_secs(5)).wait()?, 42);
/// # Ok::<(), proxystore::Error>(())
/// ```
#[must_use = "an operation that nobody waits for may outlive what it is for; call `.wait()` or `.await`"]
pub struct Pending<T> {
    state: State<T>,
    limit: Option<Instant>,
    /// Whether the caller asked for the limit, so that even an uninterruptible call must be left behind in time.
    explicit: bool,
    alarm: Option<timer::Alarm>,
}

enum State<T> {
    Ready(Result<T>),
    Blocking { work: Box<dyn Work<T>>, cooperative: bool },
    Waiting(Box<dyn Source<T>>),
    Taken,
}

/// An operation in progress elsewhere, as a fabric or a node service implements it.
///
/// Exactly one of the two methods is used to the end; after either has returned the result, neither is called again.
pub trait Source<T>: Send {
    /// Blocks the calling thread until the result is there, driving progress where the mechanism needs that.
    ///
    /// # Errors
    /// `Timeout` when `deadline` passes first; dropping the source afterwards must be safe.
    fn wait(&mut self, deadline: Option<Instant>) -> Result<T>;

    /// Polls once, and arranges for a wake-up when the result is not there yet.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>>;

    /// Called instead of both when the waiting side is dropped: sees to what must still happen after the operation.
    fn detach(self: Box<Self>, deadline: Option<Instant>) {
        let _ = deadline;
    }
}

impl<T> Pending<T> {
    /// An operation that ended before it returned.
    ///
    /// # Cost
    /// Allocates nothing.
    pub const fn ready(result: Result<T>) -> Self {
        Self::from_state(State::Ready(result))
    }

    /// An operation whose end somebody else reports.
    pub fn from_source(source: impl Source<T> + 'static) -> Self {
        Self::from_state(State::Waiting(Box::new(source)))
    }

    const fn from_state(state: State<T>) -> Self {
        Self { state, limit: None, explicit: false, alarm: None }
    }

    /// Whether the result is there already, so that waiting costs nothing.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// Bounds the operation: past `limit` from now it ends in [`ErrorKind::Timeout`] for the caller, and goes on detached.
    ///
    /// # Cost
    /// Reads the clock. A blocking call that cannot be interrupted then runs on the pool, which costs a thread hop.
    pub fn deadline(mut self, limit: Duration) -> Self {
        if !self.is_ready() {
            self.limit = Instant::now().checked_add(limit);
            self.explicit = self.limit.is_some();
        }
        self
    }

    /// As [`deadline`](Self::deadline), but yields to one that is set already, and is not enforced on blocking calls that
    /// cannot be interrupted: a store's default.
    pub fn default_deadline(mut self, limit: Duration) -> Self {
        if !self.is_ready() && self.limit.is_none() {
            self.limit = Instant::now().checked_add(limit);
        }
        self
    }

    /// Blocks until the operation ends.
    ///
    /// # Cost
    /// Nothing for a ready operation. A blocking one runs here, on this thread.
    ///
    /// # Errors
    /// The operation's own, `Timeout` past the deadline, `Cancelled` when the completing side disappeared.
    pub fn wait(mut self) -> Result<T> {
        let limit = self.limit;
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(result) => result,
            State::Blocking { work, cooperative } if cooperative || !self.explicit => work.run(limit),
            State::Blocking { work, .. } => work.start(limit).wait(limit),
            State::Waiting(mut source) => source.wait(limit),
            State::Taken => Err(taken()),
        }
    }

    /// Sees to it that the operation makes progress now, whoever waits for it and when: a blocking one moves to the pool.
    ///
    /// # Cost
    /// For a blocking operation one allocation and a thread hop; nothing for the others.
    pub fn start(mut self) -> Self {
        let limit = self.limit;
        self.state = match std::mem::replace(&mut self.state, State::Taken) {
            State::Blocking { work, .. } => State::Waiting(work.start(limit)),
            other => other,
        };
        self
    }
}

impl<T: Send + 'static> Pending<T> {
    /// A call that blocks its thread and cannot be interrupted, such as file I/O.
    ///
    /// # Cost
    /// One allocation.
    pub fn blocking(call: impl FnOnce() -> Result<T> + Send + 'static) -> Self {
        Self::from_state(State::Blocking { work: Box::new(Call(|_| call())), cooperative: false })
    }

    /// A call that blocks its thread and promises to return `Timeout` once the deadline it is given has passed.
    ///
    /// # Cost
    /// One allocation.
    pub fn blocking_until(call: impl FnOnce(Option<Instant>) -> Result<T> + Send + 'static) -> Self {
        Self::from_state(State::Blocking { work: Box::new(Call(call)), cooperative: true })
    }

    /// An operation that ends when the [`Completer`] is used; dropping the completer ends it in `Cancelled`.
    ///
    /// # Cost
    /// Two allocations.
    pub fn channel() -> (Completer<T>, Self) {
        let (completer, receiver) = completer::channel();
        (completer, Self::from_source(receiver))
    }

    /// Continues with `f` when the operation ends, in success or failure, on the thread that sees the end.
    ///
    /// It runs also when the `Pending` is dropped: on a thread of the pool, which waits for the operation's end.
    ///
    /// # Cost
    /// A ready operation runs `f` at once and allocates nothing; the others cost one allocation.
    pub fn then<U, F>(mut self, f: F) -> Pending<U>
    where
        U: Send + 'static,
        F: FnOnce(Result<T>) -> Result<U> + Send + 'static,
    {
        let (limit, explicit) = (self.limit, self.explicit);
        let state = match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(result) => State::Ready(f(result)),
            State::Blocking { work, cooperative } => {
                State::Blocking { work: Box::new(Call(move |limit| f(work.run(limit)))), cooperative }
            }
            State::Waiting(source) => State::Waiting(Box::new(join::Then::new(source, f))),
            State::Taken => State::Ready(f(Err(taken()))),
        };
        Pending { state, limit, explicit, alarm: None }
    }

    /// Continues with `f` when the operation succeeds.
    ///
    /// # Cost
    /// As [`then`](Self::then).
    pub fn and_then<U, F>(self, f: F) -> Pending<U>
    where
        U: Send + 'static,
        F: FnOnce(T) -> Result<U> + Send + 'static,
    {
        self.then(|result| f(result?))
    }

    /// Continues with another operation when this one succeeds.
    ///
    /// # Cost
    /// A ready operation continues at once and allocates nothing; the others cost one or two allocations.
    pub fn chain<U, F>(mut self, f: F) -> Pending<U>
    where
        U: Send + 'static,
        F: FnOnce(T) -> Pending<U> + Send + 'static,
    {
        let (limit, explicit) = (self.limit, self.explicit);
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(Ok(value)) => f(value),
            State::Ready(Err(error)) => Pending::ready(Err(error)),
            State::Blocking { work, .. } => {
                let call = move |limit| {
                    let mut next = f(work.run(limit)?);
                    next.limit = limit;
                    next.wait()
                };
                let state = State::Blocking { work: Box::new(Call(call)), cooperative: false };
                Pending { state, limit, explicit, alarm: None }
            }
            State::Waiting(source) => {
                let state = State::Waiting(Box::new(join::Chain::new(source, f)) as Box<dyn Source<U>>);
                Pending { state, limit, explicit, alarm: None }
            }
            State::Taken => Pending::ready(Err(taken())),
        }
    }

    /// Waits for many operations, in the order given; the first failure is the result, the rest detach.
    ///
    /// # Cost
    /// One allocation for the results, one more unless all are ready. Blocking operations run one after the other under
    /// `.wait()`; [`start`](Self::start) them first to overlap them.
    pub fn all(operations: Vec<Self>) -> Pending<Vec<T>> {
        if operations.iter().all(Self::is_ready) {
            return Pending::ready(operations.into_iter().map(Self::wait).collect());
        }
        Pending::from_source(join::All::new(operations))
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        if let State::Blocking { .. } = this.state {
            let State::Blocking { work, .. } = std::mem::replace(&mut this.state, State::Taken) else {
                return Poll::Ready(Err(taken()));
            };
            this.state = State::Waiting(work.start(this.limit));
        }
        if let State::Waiting(source) = &mut this.state {
            match source.poll(cx) {
                Poll::Ready(result) => this.state = State::Ready(result),
                Poll::Pending => match this.limit {
                    Some(limit) if Instant::now() >= limit => this.state = State::Ready(Err(timed_out())),
                    Some(limit) => {
                        timer::Alarm::set(&mut this.alarm, limit, cx.waker());
                        return Poll::Pending;
                    }
                    None => return Poll::Pending,
                },
            }
        }
        match std::mem::replace(&mut this.state, State::Taken) {
            State::Ready(result) => Poll::Ready(result),
            _ => Poll::Ready(Err(taken())),
        }
    }
}

// No field is ever pinned in place: results and sources are moved freely.
impl<T> Unpin for Pending<T> {}

impl<T> Drop for Pending<T> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Blocking { work, .. } => work.detach(self.limit),
            State::Waiting(source) => source.detach(self.limit),
            State::Ready(_) | State::Taken => {}
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Ready(Ok(_)) => "Pending(ready)",
            State::Ready(Err(_)) => "Pending(failed)",
            State::Blocking { .. } => "Pending(blocking)",
            State::Waiting(_) => "Pending(waiting)",
            State::Taken => "Pending(ended)",
        })
    }
}

/// A blocking call, so that `Pending<T>` itself needs no bounds on `T`.
trait Work<T>: Send {
    /// Runs here.
    fn run(self: Box<Self>, limit: Option<Instant>) -> Result<T>;
    /// Runs in the pool; the source ends with its result.
    fn start(self: Box<Self>, limit: Option<Instant>) -> Box<dyn Source<T>>;
    /// Runs in the pool for nobody.
    fn detach(self: Box<Self>, limit: Option<Instant>);
}

struct Call<F>(F);

impl<T, F> Work<T> for Call<F>
where
    T: Send + 'static,
    F: FnOnce(Option<Instant>) -> Result<T> + Send + 'static,
{
    fn run(self: Box<Self>, limit: Option<Instant>) -> Result<T> {
        (self.0)(limit)
    }

    fn start(self: Box<Self>, limit: Option<Instant>) -> Box<dyn Source<T>> {
        let (completer, receiver) = completer::channel();
        pool::spawn(Box::new(move || completer.complete((self.0)(limit))));
        Box::new(receiver)
    }

    fn detach(self: Box<Self>, limit: Option<Instant>) {
        pool::spawn(Box::new(move || drop((self.0)(limit))));
    }
}

fn timed_out() -> Error {
    Error::new(ErrorKind::Timeout, "wait", "the operation goes on in the background; retry, or raise the deadline")
}

fn taken() -> Error {
    Error::new(ErrorKind::Cancelled, "wait", "the result was taken before")
}
