//! `Operation`: a transfer, and the memory that is its own until UCX is done with it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ffi::c_void;
use std::fmt;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use ucx_sys::{UCP_AM_SEND_FLAG_EAGER, UCP_AM_SEND_FLAG_RNDV, UCS_OK, ucp_worker_h, ucs_status_t};

use super::context::Context;
use super::exit::{EXIT, Gate};
use crate::fabric::{Landing, Piece};

/// What is moved. The memory belongs to it from the call that begins it to its end, also when nobody waits any more.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) about: About,
    /// What a message says before its bytes.
    pub(super) header: Vec<u8>,
    pub(super) body: Body,
}

/// Whose operation it is, for whoever sees its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// A message that nobody waits for.
    Message,
    /// Bytes of an answer of this connection.
    Answer { connection: u64, bytes: u64 },
    /// A part of the answer to this question.
    Part { number: u64, index: u32 },
    /// All bytes of the answer to this question, which came together.
    Packed { number: u64 },
    /// A read of a peer's memory, in which that one has no part.
    Read { number: u64 },
}

impl About {
    /// Whether bytes of a message are received.
    pub(super) fn receives(self) -> bool {
        matches!(self, Self::Part { .. } | Self::Packed { .. })
    }
}

/// The bytes.
#[derive(Debug)]
pub(super) enum Body {
    None,
    /// To be sent, from pinned memory.
    Shared(Piece),
    /// To be sent, or received.
    Own(Vec<u8>),
    /// To be received.
    Landing(Landing),
}

impl Body {
    /// Where they lie, and how many.
    pub(super) fn span(&mut self) -> (*mut u8, usize) {
        match self {
            Self::None => (ptr::null_mut(), 0),
            // Only read from, since it is only sent.
            Self::Shared(bytes) => (bytes.as_ptr().cast_mut(), bytes.len()),
            Self::Own(bytes) => (bytes.as_mut_ptr(), bytes.len()),
            Self::Landing(landing) => (landing.as_mut_ptr(), landing.len()),
        }
    }
}

/// How bytes are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As UCX thinks best.
    Any,
    /// With their message, whatever their number.
    Whole,
    /// When the receiver has said where they go.
    Fetched,
}

impl Way {
    pub(super) fn flag(self) -> Option<u32> {
        match self {
            Self::Any => None,
            Self::Whole => Some(UCP_AM_SEND_FLAG_EAGER),
            Self::Fetched => Some(UCP_AM_SEND_FLAG_RNDV),
        }
    }
}

/// An operation that UCX is done with.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) operation: Operation,
    pub(super) status: ucs_status_t,
}

/// What happened, in the order in which UCX said so.
#[derive(Debug)]
pub(super) enum Event {
    Message {
        header: Vec<u8>,
        data: Data,
    },
    Finished(Finished),
    /// An endpoint broke.
    Broken {
        link: u64,
        status: ucs_status_t,
    },
    /// An endpoint is closed.
    Closed,
    /// An endpoint reaches its peer, or never will.
    Met,
}

/// Where UCX's callbacks put what happened. Touched only within calls on the worker, which are one at a time.
#[derive(Default)]
pub(super) struct Inbox {
    events: RefCell<VecDeque<Event>>,
    /// Who takes messages that are here whole, during the call that is going on.
    taker: Cell<Option<*mut Taker<'static>>>,
    spares: RefCell<Spares>,
}

/// Memory of operations that ended, for those to come.
#[derive(Default)]
struct Spares {
    #[expect(clippy::vec_box, reason = "the boxes are what is spared: UCX is told their addresses")]
    boxes: Vec<Box<MaybeUninit<Running>>>,
    headers: Vec<Vec<u8>>,
    /// Of small parts that were sent together.
    packed: Vec<Vec<u8>>,
}

/// Takes a message, by its header and bytes, or leaves it.
pub(super) type Taker<'a> = dyn FnMut(&[u8], &[u8]) -> bool + 'a;

impl Inbox {
    pub(super) fn push(&self, event: Event) {
        self.events.borrow_mut().push_back(event);
    }

    pub(super) fn pop(&self) -> Option<Event> {
        self.events.borrow_mut().pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.borrow().is_empty()
    }

    /// Memory for a header.
    pub(super) fn header(&self) -> Vec<u8> {
        self.spares.borrow_mut().headers.pop().unwrap_or_default()
    }

    /// Memory for parts that are sent together.
    pub(super) fn packed(&self) -> Vec<u8> {
        self.spares.borrow_mut().packed.pop().unwrap_or_default()
    }

    /// Has `taker` offered all messages that come whole during `call`.
    pub(super) fn with<R>(&self, taker: &mut Taker<'_>, call: impl FnOnce() -> R) -> R {
        /// Takes it back, whatever happens.
        struct Reset<'a>(&'a Inbox);
        impl Drop for Reset<'_> {
            fn drop(&mut self) {
                self.0.taker.set(None);
            }
        }
        // SAFETY: only the lifetime changes; nobody has it any more when this returns, since `Reset` takes it back.
        let taker: *mut Taker<'static> = unsafe { std::mem::transmute::<*mut Taker<'_>, _>(taker) };
        self.taker.set(Some(taker));
        let _reset = Reset(self);
        call()
    }

    /// Offers a message; whether it was taken.
    pub(super) fn offer(&self, header: &[u8], bytes: &[u8]) -> bool {
        // Taken out for the time: it is borrowed once.
        let Some(taker) = self.taker.take() else { return false };
        // SAFETY: `with` borrows it mutably as long as it is in there, and is still going on.
        let taken = catch_unwind(AssertUnwindSafe(|| unsafe { (*taker)(header, bytes) }));
        self.taker.set(Some(taker));
        taken.unwrap_or(false)
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Inbox({} events)", self.events.borrow().len())
    }
}

/// UCX's worker, until the last of what points into its memory is gone.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) context: Arc<Context>,
    pub(super) worker: ucp_worker_h,
    pub(super) inbox: Box<Inbox>,
    pub(super) gate: &'static Gate,
}

// SAFETY: the pointer is only used under the lock of the `Worker`, and by the last holder, who destroys it.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        // The process's exit cleans up.
        let Ok(_entered) = EXIT.enter() else { return };
        self.gate.give_back();
        // SAFETY: nobody else has it: endpoints were closed and operations ended with the `Worker`, data that was received
        // holds this.
        unsafe { self.context.ucx().ucp_worker_destroy(self.worker) };
    }
}

/// Bytes of a message that arrived.
#[derive(Debug)]
pub(super) enum Data {
    /// All are here.
    Copied(Vec<u8>),
    /// To be fetched from the sender, who waits.
    Announced { _raw: Arc<Raw>, descriptor: *mut c_void, len: usize },
}

// SAFETY: the descriptor is nobody else's until it is given back to the worker, which `_raw` keeps; it is not bound to a
// thread.
unsafe impl Send for Data {}

impl Data {
    /// The bytes, where they are here.
    pub(super) fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Copied(bytes) => Some(bytes),
            Self::Announced { .. } => None,
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Copied(bytes) => bytes.len(),
            Self::Announced { len, .. } => *len,
        }
    }

    /// Bytes of this process's memory that it takes.
    pub(super) fn held(&self) -> usize {
        match self {
            Self::Copied(bytes) => bytes.len(),
            Self::Announced { .. } => 0,
        }
    }
}

/// An operation that UCX has, with what its callback needs.
pub(super) struct Running {
    pub(super) operation: Operation,
    pub(super) inbox: *const Inbox,
    /// How many bytes are to be received, for operations that receive.
    pub(super) expected: Option<usize>,
}

impl Running {
    /// For UCX to hold until it ends.
    pub(super) fn begin(self) -> Box<Self> {
        // SAFETY: the inbox is the worker's, in one of whose calls this is.
        match unsafe { &*self.inbox }.spares.borrow_mut().boxes.pop() {
            Some(mut place) => {
                place.write(self);
                // SAFETY: it was written just now.
                unsafe { place.assume_init() }
            }
            None => Box::new(self),
        }
    }

    /// Notes its end.
    ///
    /// # Safety
    /// Its bytes are moved where `status` is `UCS_OK`.
    pub(super) unsafe fn end(self: Box<Self>, status: ucs_status_t, received: Option<usize>) -> Finished {
        let place = Box::into_raw(self);
        // SAFETY: of a box, whose memory is taken back next as such that holds nothing.
        let (mut this, place) = unsafe { (place.read(), Box::from_raw(place.cast::<MaybeUninit<Self>>())) };
        // SAFETY: the inbox is the worker's, in one of whose calls this is.
        let mut spares = unsafe { &*this.inbox }.spares.borrow_mut();
        if spares.boxes.len() < MOST_SPARE {
            spares.boxes.push(place);
        }
        // What was received is told from its header.
        if this.expected.is_none() && spares.headers.len() < MOST_SPARE {
            spares.headers.push(std::mem::take(&mut this.operation.header));
        }
        if let (None, Body::Own(bytes)) = (this.expected, &mut this.operation.body) {
            if spares.packed.len() < MOST_PACKED && (1..=LONGEST_PACKED).contains(&bytes.capacity()) {
                let mut bytes = std::mem::take(bytes);
                bytes.clear();
                spares.packed.push(bytes);
            }
        }
        drop(spares);
        let is_whole = match (this.expected, received) {
            (Some(expected), Some(received)) => expected == received,
            _ => true,
        };
        let status = if is_whole { status } else { ucx_sys::UCS_ERR_MESSAGE_TRUNCATED };
        if let (Body::Landing(landing), UCS_OK) = (&mut this.operation.body, status) {
            // SAFETY: all its bytes were received, by the caller's word and the comparison above.
            unsafe { landing.filled(landing.len()) };
        }
        Finished { operation: this.operation, status }
    }
}

/// How many buffers of parts that were sent together are kept for others, and how long they are at most: 1 MiB in all.
const MOST_PACKED: usize = 8;
const LONGEST_PACKED: usize = 128 << 10;

/// Most operations whose memory is kept for others.
const MOST_SPARE: usize = 64;
