//! `Owner`: the side that has the bytes.

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ucx_sys::*;

use super::contact::{ANSWER, Ask, Contact, REQUEST, Request};
use super::settings::Settings;
use super::worker::{Context, Memory, Shared, Worker};

/// A thread that answers until this is dropped.
pub(crate) struct Owner {
    contact: Contact,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Owner {
    /// Answers with up to `len` bytes, copies of `content` one after another.
    pub(crate) fn start(settings: &Settings, len: usize, content: &[u8]) -> io::Result<Self> {
        let (settings, content, stop) = (settings.clone(), content.to_vec(), Arc::new(AtomicBool::new(false)));
        let (sender, contact) = mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("bare-ucp".to_owned()).spawn(move || {
            let answering = match Answering::new(&settings, len, &content) {
                Ok(answering) => answering,
                Err(error) => {
                    let _ = sender.send(Err(error));
                    return Ok(());
                }
            };
            let _ = sender.send(answering.contact(settings.one_sided));
            answering.run(|| stopped.load(Ordering::Relaxed))
        })?;
        let contact = contact.recv().map_err(io::Error::other)??;
        Ok(Self { contact, stop, thread: Some(thread) })
    }

    pub(crate) fn contact(&self) -> &Contact {
        &self.contact
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A failure was the requester's too.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Of the thread. The worker ends before what its handler uses.
struct Answering {
    worker: Worker,
    state: Shared<State>,
}

/// What the handler works with.
struct State {
    ucx: &'static Ucx,
    memory: Memory,
    /// Where pieces are gathered.
    gathered: Memory,
    /// Headers of answers, which stay until these are sent: each its own number.
    ids: Vec<[u8; 4]>,
    spin: Duration,
}

impl Answering {
    fn new(settings: &Settings, len: usize, content: &[u8]) -> io::Result<Self> {
        let context = Context::new(settings)?;
        let memory = Memory::new(&context, len, content)?;
        let gathered = Memory::new(&context, len.min(LARGEST_GATHERED), content)?;
        let worker = Worker::new(&context)?;
        let ids = (0..MOST_IDS).map(u32::to_le_bytes).collect();
        let state = State { ucx: context.ucx, memory, gathered, ids, spin: Duration::ZERO };
        let this = Self { worker, state: Shared::new(state) };
        // SAFETY: the state is freed after the worker has ended, and used by its handler alone while that progresses.
        unsafe { this.worker.handle(REQUEST, Some(asked), this.state.as_ptr().cast())? };
        Ok(this)
    }

    fn contact(&self, one_sided: bool) -> io::Result<Contact> {
        // SAFETY: no handler runs.
        let memory = unsafe { &(*self.state.as_ptr()).memory };
        let key = if one_sided { memory.key()? } else { Vec::new() };
        Ok(Contact { address: self.worker.address()?, memory: memory.address() as u64, key })
    }

    fn run(&self, is_over: impl FnMut() -> bool) -> io::Result<()> {
        // SAFETY: no handler runs when it is asked.
        self.worker.progress_until(|| unsafe { (*self.state.as_ptr()).spin }, is_over)
    }
}

/// Answers at once.
unsafe extern "C" fn asked(
    state: *mut c_void,
    header: *const c_void,
    header_length: usize,
    _: *mut c_void,
    _: usize,
    params: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: what UCX says of its arguments; the state is this handler's while the worker progresses.
    let (state, params, header) = unsafe {
        if header_length != Request::LEN {
            return UCS_OK;
        }
        (&mut *state.cast::<State>(), &*params, std::slice::from_raw_parts(header.cast::<u8>(), header_length))
    };
    let Some(request) = Request::from_bytes(header) else { return UCS_OK };
    state.spin = Duration::from_micros(request.spin.into());
    let (Some(id), Ok(len)) = (state.ids.get(request.id as usize), usize::try_from(request.len)) else {
        return UCS_OK;
    };
    let (memory, flags) = match request.ask {
        Ask::Spin => return UCS_OK,
        Ask::Eager => (&state.memory, UCP_AM_SEND_FLAG_EAGER),
        Ask::Rendezvous => (&state.memory, UCP_AM_SEND_FLAG_RNDV),
        Ask::Gathered { eager: true, .. } => (&state.gathered, UCP_AM_SEND_FLAG_EAGER),
        Ask::Gathered { .. } => (&state.gathered, 0),
    };
    if len > memory.len() || params.recv_attr & u64::from(UCP_AM_RECV_ATTR_FIELD_REPLY_EP) == 0 {
        return UCS_OK;
    }
    if let Ask::Gathered { pieces, .. } = request.ask {
        let piece = len / pieces as usize;
        for at in (0..pieces as usize).map(|at| at * piece) {
            // SAFETY: both are `len` long at least.
            unsafe { ptr::copy_nonoverlapping(state.memory.address().add(at), memory.address().add(at), piece) };
        }
    }
    let answer = ucp_request_param_t {
        op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK
            | UCP_OP_ATTR_FIELD_USER_DATA
            | UCP_OP_ATTR_FIELD_FLAGS
            | UCP_OP_ATTR_FIELD_MEMH,
        flags,
        cb: ucp_request_param_t__bindgen_ty_1 { send: Some(sent) },
        user_data: (&raw const *state.ucx).cast_mut().cast(),
        memh: memory.handle,
        ..Default::default()
    };
    // Of several at a time each has bytes of its own, as different objects have.
    let at = match request.ask {
        Ask::Gathered { .. } => 0,
        _ => len.saturating_mul(request.id as usize),
    };
    let at = if memory.len() - len < at { 0 } else { at };
    // SAFETY: header and bytes stay until the worker has ended, and `len` of these are within the memory from there on; the endpoint
    // is the requester's.
    unsafe {
        let bytes = memory.address().add(at).cast_const().cast();
        // One that fails is missed by the requester, in time.
        let _ = state.ucx.ucp_am_send_nbx(params.reply_ep, ANSWER, id.as_ptr().cast(), id.len(), bytes, len, &answer);
    }
    UCS_OK
}

/// Frees the request of what was sent, well or not.
pub(super) unsafe extern "C" fn sent(request: *mut c_void, _: ucs_status_t, ucx: *mut c_void) {
    // SAFETY: the request is complete; the library was passed as the callback's data and is never unloaded.
    unsafe { (*ucx.cast_const().cast::<Ucx>()).ucp_request_free(request) };
}

/// Most that is gathered.
const LARGEST_GATHERED: usize = 16 << 20;

/// Most requests of one requester at a time.
pub(super) const MOST_IDS: u32 = 1024;
