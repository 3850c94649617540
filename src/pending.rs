//! `Pending<T>`: an operation that has been started, to be waited for by a thread or by a task.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

mod completer;
mod join;
mod pool;
mod shared;
mod timer;

pub use completer::Completer;
pub(crate) use shared::Shared;

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
    limit: Limit,
    alarm: Option<timer::Alarm>,
}

enum State<T> {
    Ready(Result<T>),
    Blocking { work: Box<dyn Work<T>>, cooperative: bool },
    Waiting(Box<dyn Operation<T>>),
    Numbered(Numbered<T>),
    Taken,
}

/// When an operation ends for its caller at the latest.
#[derive(Clone, Copy)]
struct Limit {
    at: Option<Instant>,
    /// Whether the caller asked for it, so that even a call that cannot be interrupted must be left behind in time.
    explicit: bool,
}

impl Limit {
    const NONE: Self = Self { at: None, explicit: false };

    fn from_now(limit: Duration, explicit: bool) -> Self {
        let at = Instant::now().checked_add(limit);
        Self { at, explicit: explicit && at.is_some() }
    }

    /// The one that holds of two: an explicit one before a default, else the earlier.
    fn and(self, other: Self) -> Self {
        match (self.at, other.at) {
            (None, _) => other,
            (_, None) => self,
            _ if self.explicit != other.explicit => {
                if self.explicit {
                    self
                } else {
                    other
                }
            }
            (own, others) => {
                if own <= others {
                    self
                } else {
                    other
                }
            }
        }
    }
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
}

/// Operations of one owner, by the numbers that it gave them: many and short, so that none should take memory of its own.
///
/// Of each number, [`wait`](Self::wait) or [`poll`](Self::poll) is used to the end, as of a [`Source`].
pub(crate) trait Operations<T>: Send + Sync {
    /// As [`Source::wait`].
    fn wait(self: Arc<Self>, number: u64, deadline: Option<Instant>) -> Result<T>;

    /// As [`Source::poll`].
    fn poll(self: Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<T>>;

    /// Somebody wants it to go on now, whoever waits for it; called before the first poll, at most once.
    fn start(self: Arc<Self>, number: u64, deadline: Option<Instant>) {
        let _ = (number, deadline);
    }

    /// Nobody asks for it any more: called once, in the end.
    fn let_go(self: Arc<Self>, number: u64);
}

/// One of them.
struct Numbered<T> {
    operations: Arc<dyn Operations<T>>,
    number: u64,
    is_started: bool,
    /// As [`Operation::bound`] says.
    until: Option<Instant>,
}

impl<T> Numbered<T> {
    fn start(&mut self) {
        if !std::mem::replace(&mut self.is_started, true) {
            Arc::clone(&self.operations).start(self.number, self.until);
        }
    }
}

impl<T> Drop for Numbered<T> {
    fn drop(&mut self) {
        Arc::clone(&self.operations).let_go(self.number);
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
    ///
    /// # Cost
    /// One allocation.
    pub fn from_source(source: impl Source<T> + 'static) -> Self {
        Self::from_state(State::Waiting(Box::new(Foreign(source))))
    }

    /// One of an owner's operations.
    ///
    /// # Cost
    /// Allocates nothing, unless it is continued.
    #[cfg_attr(not(feature = "tcp"), allow(dead_code, reason = "for what fabrics do"))]
    pub(crate) fn from_operations(operations: Arc<dyn Operations<T>>, number: u64) -> Self {
        Self::from_state(State::Numbered(Numbered { operations, number, is_started: false, until: None }))
    }

    const fn from_state(state: State<T>) -> Self {
        Self { state, limit: Limit::NONE, alarm: None }
    }

    /// Whether the result is there already, so that waiting costs nothing.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready(_))
    }

    /// Whether it has ended, and in an error.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(self.state, State::Ready(Err(_)))
    }

    /// Whether waiting under `limit` runs a call on this thread, or nothing: the operation then ends for good.
    fn runs_within(&self, limit: Limit) -> bool {
        match self.state {
            State::Ready(_) => true,
            State::Blocking { cooperative, .. } => cooperative || !self.limit.and(limit).explicit,
            _ => false,
        }
    }

    /// Bounds the operation: past `limit` from now it ends in [`ErrorKind::Timeout`] for the caller, and goes on detached.
    ///
    /// The bound covers what the operation is at this moment: set it after [`chain`](Self::chain) to cover both parts.
    ///
    /// # Cost
    /// Reads the clock. A blocking call that cannot be interrupted then runs on the pool, which costs a thread hop.
    pub fn deadline(mut self, limit: Duration) -> Self {
        if !self.is_ready() {
            self.limit = Limit::from_now(limit, true);
        }
        self
    }

    /// As [`deadline`](Self::deadline), but yields to one that is set already, and is not enforced on a blocking call that
    /// cannot be interrupted, neither under `.wait()` nor under `.await`: a store's default.
    pub fn default_deadline(mut self, limit: Duration) -> Self {
        if !self.is_ready() && self.limit.at.is_none() {
            self.limit = Limit::from_now(limit, false);
        }
        self
    }

    /// Blocks until the operation ends.
    ///
    /// # Cost
    /// Nothing for a ready operation. A blocking one runs here, on this thread.
    ///
    /// # Errors
    /// The operation's own, `Timeout` past the deadline, `Cancelled` when the completing side disappeared or a blocking
    /// call panicked.
    #[inline]
    pub fn wait(mut self) -> Result<T> {
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(result) => {
                // Nothing else to drop: nothing goes on. Saves the look at the state that `drop` would take.
                self.alarm = None;
                std::mem::forget(self);
                result
            }
            state => {
                self.state = state;
                self.wait_for_end()
            }
        }
    }

    fn wait_for_end(mut self) -> Result<T> {
        let limit = self.limit;
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(result) => result,
            State::Blocking { work, cooperative } if cooperative || !limit.explicit => work.run(limit.at),
            State::Blocking { work, .. } => pool::lend_place(|| work.start(limit.at).wait(limit)),
            State::Waiting(mut operation) => pool::lend_place(|| operation.wait(limit)),
            State::Numbered(one) => pool::lend_place(|| Arc::clone(&one.operations).wait(one.number, limit.at)),
            State::Taken => Err(taken()),
        }
    }

    /// Sees to it that the operation makes progress now, whoever waits for it and when: a blocking one moves to the pool.
    ///
    /// # Cost
    /// For a blocking operation two allocations and a thread hop; nothing for the others.
    pub fn start(mut self) -> Self {
        match &mut self.state {
            State::Waiting(operation) => {
                operation.bound(self.limit.at);
                operation.start();
            }
            _ => self.begin(),
        }
        self
    }

    fn begin(&mut self) {
        if let State::Numbered(one) = &mut self.state {
            one.until = self.limit.at;
            one.start();
        }
        if !matches!(self.state, State::Blocking { .. }) {
            return;
        }
        if let State::Blocking { work, cooperative } = std::mem::replace(&mut self.state, State::Taken) {
            self.state = State::Waiting(work.start(self.limit.at));
            if !cooperative && !self.limit.explicit {
                self.limit = Limit::NONE;
            }
        }
    }

    /// [`wait`](Self::wait)s until that time at most, where the operation has no limit of its own that is earlier.
    #[cfg_attr(not(feature = "tcp"), allow(dead_code, reason = "for what fabrics do"))]
    pub(crate) fn wait_until(self, at: Option<Instant>) -> Result<T> {
        self.within(Limit { at, explicit: false }).wait()
    }

    /// [`start`](Self::start)s, bounded as by [`wait_until`](Self::wait_until).
    #[cfg_attr(not(feature = "tcp"), allow(dead_code, reason = "for what fabrics do"))]
    pub(crate) fn start_until(self, at: Option<Instant>) -> Self {
        self.within(Limit { at, explicit: false }).start()
    }

    /// Ends within `limit` too, for operations made of this one.
    fn within(mut self, limit: Limit) -> Self {
        self.limit = self.limit.and(limit);
        self
    }

    /// Ends with `error` for its caller, who stopped waiting.
    fn fail(&mut self, error: Error) -> Result<T> {
        self.alarm = None;
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Waiting(mut operation) => operation.fail(error),
            State::Numbered(_) => Err(error),
            other => {
                self.state = other;
                Err(error)
            }
        }
    }
}

impl<T: Send + 'static> Pending<T> {
    /// A call that blocks its thread and cannot be interrupted, such as file I/O.
    ///
    /// A panic of the call is caught wherever it runs; the operation ends in `Cancelled` with the panic's message.
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
        (completer, Self::from_state(State::Waiting(Box::new(receiver))))
    }

    /// Continues with `f` when the operation ends, in success or failure, on the thread that sees the end.
    ///
    /// A deadline that passes while somebody else holds the operation is such a failure. `f` is dropped unused when the
    /// `Pending` is dropped meanwhile. A panic of `f` is one of the call it continues, or of the thread that waits.
    ///
    /// # Cost
    /// A ready operation runs `f` at once and allocates nothing; the others cost one allocation.
    pub fn then<U, F>(mut self, f: F) -> Pending<U>
    where
        U: Send + 'static,
        F: FnOnce(Result<T>) -> Result<U> + Send + 'static,
    {
        let limit = self.limit;
        let state = match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(result) => State::Ready(f(result)),
            State::Blocking { work, cooperative } => {
                State::Blocking { work: Box::new(Call(move |limit| f(work.run(limit)))), cooperative }
            }
            State::Waiting(operation) => State::Waiting(Box::new(join::Then::new(operation, f))),
            State::Numbered(one) => State::Waiting(Box::new(join::Then::new(Box::new(one), f))),
            State::Taken => State::Ready(f(Err(taken()))),
        };
        Pending { state, limit, alarm: None }
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
        let limit = self.limit;
        match std::mem::replace(&mut self.state, State::Taken) {
            State::Ready(Ok(value)) => f(value),
            State::Ready(Err(error)) => Pending::ready(Err(error)),
            State::Blocking { work, .. } => {
                let call = move |at| f(work.run(at)?).within(Limit { at, explicit: false }).wait();
                let state = State::Blocking { work: Box::new(Call(call)), cooperative: false };
                Pending { state, limit, alarm: None }
            }
            State::Waiting(operation) => {
                let state = State::Waiting(Box::new(join::Chain::new(operation, f)));
                Pending { state, limit, alarm: None }
            }
            State::Numbered(one) => {
                let state = State::Waiting(Box::new(join::Chain::new(Box::new(one), f)));
                Pending { state, limit, alarm: None }
            }
            State::Taken => Pending::ready(Err(taken())),
        }
    }

    /// Waits for many operations; the first failure that is seen is the result, the rest detach.
    ///
    /// Under `.wait()` they are waited for in the order given, under `.await` together. Their own deadlines hold beside
    /// one of the whole.
    ///
    /// # Cost
    /// One allocation for the results, some more unless all are ready, one an operation under `.await`. Blocking
    /// operations run one after the other under `.wait()`; [`start`](Self::start) them first to overlap them.
    pub fn all(operations: Vec<Self>) -> Pending<Vec<T>> {
        if operations.iter().all(Self::is_ready) {
            return Pending::ready(operations.into_iter().map(Self::wait).collect());
        }
        Pending::from_state(State::Waiting(Box::new(join::All::new(operations))))
    }

    /// Waits for many operations, each to its end, and gives what became of each.
    ///
    /// When the caller stops waiting before, at a deadline or by dropping, the operations go on, and `abandoned` gets the
    /// values of those that succeed once all have ended, on a thread of the pool.
    ///
    /// # Cost
    /// As [`all`](Self::all); operations that somebody else completes cost some more under `.wait()`.
    pub(crate) fn settle(
        operations: Vec<Self>,
        abandoned: impl FnOnce(Vec<T>) + Send + 'static,
    ) -> Pending<Vec<Result<T>>> {
        if operations.iter().all(Self::is_ready) {
            return Pending::ready(Ok(operations.into_iter().map(Self::wait).collect()));
        }
        Pending::from_state(State::Waiting(Box::new(join::Settle::new(operations, Box::new(abandoned)))))
    }
}

impl<T> Future for Pending<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<T>> {
        let this = self.get_mut();
        this.begin();
        let polled = match &mut this.state {
            State::Waiting(operation) => {
                operation.bound(this.limit.at);
                Some(operation.poll(cx))
            }
            State::Numbered(one) => Some(Arc::clone(&one.operations).poll(one.number, cx)),
            _ => None,
        };
        if let Some(polled) = polled {
            if let Poll::Ready(result) = polled {
                this.state = State::Ready(result);
            } else {
                match this.limit.at {
                    Some(limit) if Instant::now() >= limit => this.state = State::Ready(this.fail(timed_out())),
                    Some(limit) => {
                        timer::Alarm::set(&mut this.alarm, limit, cx.waker());
                        return Poll::Pending;
                    }
                    None => return Poll::Pending,
                }
            }
            this.alarm = None;
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
        if let State::Blocking { work, .. } = std::mem::replace(&mut self.state, State::Taken) {
            work.detach(self.limit.at);
        }
    }
}

impl<T> fmt::Debug for Pending<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.state {
            State::Ready(Ok(_)) => "Pending(ready)",
            State::Ready(Err(_)) => "Pending(failed)",
            State::Blocking { .. } => "Pending(blocking)",
            State::Waiting(_) | State::Numbered(_) => "Pending(waiting)",
            State::Taken => "Pending(ended)",
        })
    }
}

/// A [`Source`], or an operation of this module: those also know whether the limit was asked for.
trait Operation<T>: Send {
    /// As [`Source::wait`].
    fn wait(&mut self, limit: Limit) -> Result<T>;
    /// As [`Source::poll`].
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>>;
    /// Says until when its caller waits; called before each poll and before `start`.
    fn bound(&mut self, until: Option<Instant>) {
        let _ = until;
    }
    /// Sees to it that the operation makes progress without its waiter.
    fn start(&mut self) {}
    /// The result for a caller who stopped waiting because of `error`; nothing else is called afterwards.
    fn fail(&mut self, error: Error) -> Result<T> {
        Err(error)
    }
}

impl<T> Operation<T> for Numbered<T> {
    fn wait(&mut self, limit: Limit) -> Result<T> {
        Arc::clone(&self.operations).wait(self.number, limit.at)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        Numbered::start(self);
        Arc::clone(&self.operations).poll(self.number, cx)
    }

    fn bound(&mut self, until: Option<Instant>) {
        self.until = until;
    }

    fn start(&mut self) {
        Numbered::start(self);
    }
}

struct Foreign<S>(S);

impl<T, S: Source<T>> Operation<T> for Foreign<S> {
    fn wait(&mut self, limit: Limit) -> Result<T> {
        self.0.wait(limit.at)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T>> {
        self.0.poll(cx)
    }
}

/// A blocking call, so that `Pending<T>` itself needs no bounds on `T`.
trait Work<T>: Send {
    /// Runs here.
    fn run(self: Box<Self>, limit: Option<Instant>) -> Result<T>;
    /// Runs in the pool; the operation ends with its result.
    fn start(self: Box<Self>, limit: Option<Instant>) -> Box<dyn Operation<T>>;
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
        caught(move || (self.0)(limit))
    }

    fn start(self: Box<Self>, limit: Option<Instant>) -> Box<dyn Operation<T>> {
        let (completer, receiver) = completer::channel();
        pool::spawn(Box::new(move || completer.complete(self.run(limit))));
        Box::new(receiver)
    }

    fn detach(self: Box<Self>, limit: Option<Instant>) {
        pool::spawn(Box::new(move || drop(self.run(limit))));
    }
}

/// Runs a call, whose panic is an error.
pub(crate) fn caught<T>(call: impl FnOnce() -> Result<T>) -> Result<T> {
    // The call is consumed either way, so nobody can see what the panic left half done.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|payload| Err(panicked(payload)))
}

/// Wakes a task. A waker is foreign code; the thread that completes others' operations outlives its panic.
pub(crate) fn wake(waker: Waker) {
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| waker.wake())) {
        discard(payload);
    }
}

/// Drops what a panic carried, which may panic again.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(again);
    }
}

fn panicked(payload: Box<dyn Any + Send>) -> Error {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "no message",
    };
    let error = Error::new(ErrorKind::Cancelled, "wait", format!("the call panicked: {message}"));
    discard(payload);
    error
}

fn timed_out() -> Error {
    Error::new(ErrorKind::Timeout, "wait", "the operation goes on in the background; retry, or raise the deadline")
}

fn taken() -> Error {
    Error::new(ErrorKind::Cancelled, "wait", "the result was taken before")
}
