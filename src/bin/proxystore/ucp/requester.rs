//! `Requester`: the side that wants the bytes.

use std::ffi::c_void;
use std::io;
use std::ptr;
use std::time::{Duration, Instant};

use ucx_sys::*;

use super::contact::{ANSWER, Ask, Contact, REQUEST, Request};
use super::owner::{MOST_IDS, sent};
use super::settings::Settings;
use super::worker::{Context, Memory, Shared, Worker, begun, check};

/// An endpoint to an owner, and memory to receive into.
pub(crate) struct Requester {
    endpoint: ucp_ep_h,
    key: ucp_rkey_h,
    contact: Contact,
    worker: Worker,
    state: Shared<State>,
    headers: Vec<[u8; Request::LEN]>,
    /// How long it took to make the endpoint and to get a first byte.
    pub(crate) first_contact: Duration,
}

/// What the handlers work with.
struct State {
    ucx: &'static Ucx,
    worker: ucp_worker_h,
    memory: Memory,
    /// Bytes of memory for each answer.
    len: usize,
    /// Numbers of requests that may be used.
    free: Vec<u32>,
    slots: Vec<Slot>,
    failed: ucs_status_t,
}

/// A request, as callbacks of operations that write for it know it.
struct Slot {
    state: *mut State,
    id: u32,
}

/// How bytes come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Within the answer.
    Eager,
    /// The answer announces them, and whichever side UCX chooses moves them.
    Rendezvous,
    /// The requester fetches them; only from owners that allow that.
    Get,
}

/// How the sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Without ever sleeping.
    Busy,
    /// 20 us without, then asleep until an event.
    Hybrid,
}

/// What is fetched: `window` answers of `len` bytes are on their way at a time, each gathered from so many pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) len: usize,
    pub(crate) window: usize,
    pub(crate) pieces: usize,
}

impl Shape {
    /// One after another.
    pub(crate) const fn single(len: usize) -> Self {
        Self { len, window: 1, pieces: 1 }
    }
}

impl Requester {
    /// Reaches an owner; what is fetched at a time may have `room` bytes in all.
    pub(crate) fn connect(settings: &Settings, contact: &Contact, room: usize) -> io::Result<Self> {
        let context = Context::new(settings)?;
        let memory = Memory::new(&context, room, &[1; 4096])?;
        let worker = Worker::new(&context)?;
        let ucx = context.ucx;
        let shared = Shared::new(State {
            ucx,
            worker: worker.handle,
            memory,
            len: 0,
            free: Vec::new(),
            slots: Vec::new(),
            failed: UCS_OK,
        });
        let state = shared.as_ptr();
        // SAFETY: no handler is set yet.
        unsafe { (*state).slots = (0..MOST_IDS).map(|id| Slot { state, id }).collect() };
        let mut this = Self {
            endpoint: ptr::null_mut(),
            key: ptr::null_mut(),
            contact: contact.clone(),
            worker,
            state: shared,
            headers: vec![[0; Request::LEN]; MOST_IDS as usize],
            first_contact: Duration::ZERO,
        };
        // SAFETY: the state is freed after the worker has ended, and used by the handlers alone while the worker progresses.
        unsafe { this.worker.handle(ANSWER, Some(answered), state.cast())? };
        let begun = Instant::now();
        let params = ucp_ep_params_t {
            field_mask: u64::from(
                UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
                    | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
                    | UCP_EP_PARAM_FIELD_ERR_HANDLER,
            ),
            address: this.contact.address.as_ptr().cast(),
            err_mode: UCP_ERR_HANDLING_MODE_PEER,
            err_handler: ucp_err_handler_t { cb: Some(broken), arg: state.cast() },
            ..Default::default()
        };
        // SAFETY: the address is one that UCX made in a process that is trusted.
        check(ucx, unsafe { ucx.ucp_ep_create(this.worker.handle, &params, &mut this.endpoint) })?;
        this.fetch(1, Shape::single(1.min(room)), Way::Eager, Progress::Hybrid)?;
        this.first_contact = begun.elapsed();
        if !this.contact.key.is_empty() {
            let key = this.contact.key.as_ptr().cast();
            // SAFETY: packed by UCX in a process that is trusted.
            check(ucx, unsafe { ucx.ucp_ep_rkey_unpack(this.endpoint, key, &mut this.key) })?;
        }
        Ok(this)
    }

    /// The way that takes the least time for a shape, found by trying.
    pub(crate) fn best(&mut self, shape: Shape, progress: Progress) -> io::Result<Way> {
        let mut best = (Duration::MAX, Way::Rendezvous);
        for way in [Way::Eager, Way::Rendezvous, Way::Get] {
            let is_possible = match way {
                Way::Eager => shape.len <= LARGEST_EAGER,
                Way::Rendezvous => true,
                Way::Get => !self.key.is_null() && shape.pieces == 1,
            };
            if !is_possible {
                continue;
            }
            let begun = Instant::now();
            let mut times = Vec::new();
            while times.len() < 5 || (times.len() < 300 && begun.elapsed() < TRIAL) {
                times.push(self.fetch(shape.window, shape, way, progress)?);
            }
            // The first ones meet what is cold.
            times.sort_unstable();
            let median = times[times.len() / 2];
            if median < best.0 {
                best = (median, way);
            }
        }
        Ok(best.1)
    }

    /// Fetches `count` answers, and says how long that took.
    pub(crate) fn fetch(&mut self, count: usize, shape: Shape, way: Way, progress: Progress) -> io::Result<Duration> {
        // SAFETY: no handler runs.
        let state = unsafe { &mut *self.state.as_ptr() };
        let window = shape.window.clamp(1, MOST_IDS as usize);
        if shape.len.checked_mul(window).is_none_or(|bytes| bytes > state.memory.len()) {
            return Err(io::Error::other("the bare loop has less memory than that"));
        }
        state.len = shape.len;
        state.free = (0..window as u32).collect();
        if way == Way::Get {
            self.rest(progress.spin())?;
        }
        let begun = Instant::now();
        let mut asked = 0;
        while asked < count {
            // SAFETY: no handler runs.
            while let Some(id) = unsafe { (*self.state.as_ptr()).free.pop() } {
                match way {
                    Way::Get => self.get(id, shape.len)?,
                    _ => {
                        let ask = match (shape.pieces, way) {
                            (0..=1, Way::Eager) => Ask::Eager,
                            (0..=1, _) => Ask::Rendezvous,
                            (pieces, way) => Ask::Gathered { pieces: pieces as u32, eager: way == Way::Eager },
                        };
                        self.ask(Request { ask, id, len: shape.len as u64, spin: progress.spin() })?;
                    }
                }
                asked += 1;
                if asked == count {
                    break;
                }
            }
            self.wait(progress, if asked < count { 1 } else { window })?;
        }
        let took = begun.elapsed();
        if progress == Progress::Busy {
            // Whoever is measured next has the processor to itself.
            self.rest(0)?;
        }
        Ok(took)
    }

    /// Has the owner spin for so many microseconds from now on.
    fn rest(&mut self, spin: u32) -> io::Result<()> {
        self.ask(Request { ask: Ask::Spin, id: 0, len: 0, spin })
    }

    fn ask(&mut self, request: Request) -> io::Result<()> {
        let header = &mut self.headers[request.id as usize];
        *header = request.to_bytes();
        let params = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_FLAGS,
            flags: UCP_AM_SEND_FLAG_REPLY | UCP_AM_SEND_FLAG_EAGER,
            cb: ucp_request_param_t__bindgen_ty_1 { send: Some(sent) },
            user_data: (&raw const *self.worker.ucx).cast_mut().cast(),
            ..Default::default()
        };
        // SAFETY: the header is changed when its number is free again, and the answer to it has come.
        let request = unsafe {
            let (header, len) = (header.as_ptr().cast(), header.len());
            self.worker.ucx.ucp_am_send_nbx(self.endpoint, REQUEST, header, len, ptr::null(), 0, &params)
        };
        begun(self.worker.ucx, request).map(|_| ())
    }

    fn get(&mut self, id: u32, len: usize) -> io::Result<()> {
        // SAFETY: no handler runs.
        let state = unsafe { &mut *self.state.as_ptr() };
        let mut params = received_by(&state.slots[id as usize], state.memory.handle);
        params.cb = ucp_request_param_t__bindgen_ty_1 { send: Some(fetched) };
        // SAFETY: a number below the window, so within the memory, which stays until the endpoint is closed.
        let request = unsafe {
            let memory = state.memory.address().add(id as usize * len).cast();
            state.ucx.ucp_get_nbx(self.endpoint, memory, len, self.contact.memory, self.key, &params)
        };
        if !begun(self.worker.ucx, request)? {
            state.free.push(id);
        }
        Ok(())
    }

    /// Until so many numbers are free.
    fn wait(&self, progress: Progress, free: usize) -> io::Result<()> {
        let (state, begun) = (self.state.as_ptr(), Instant::now());
        let mut turns = 0_u32;
        let mut is_late = false;
        let spin = if progress == Progress::Busy { Duration::MAX } else { SPIN };
        self.worker.progress_until(
            || spin,
            || {
                turns = turns.wrapping_add(1);
                // The clock costs more than a turn.
                is_late = turns % 4096 == 0 && begun.elapsed() > PATIENCE;
                // SAFETY: no handler runs when it is asked.
                let state = unsafe { &*state };
                state.free.len() >= free || state.failed != UCS_OK || is_late
            },
        )?;
        // SAFETY: no handler runs.
        check(self.worker.ucx, unsafe { (*self.state.as_ptr()).failed })?;
        match is_late {
            true => Err(io::Error::new(io::ErrorKind::TimedOut, "the owner of the bare loop does not answer")),
            false => Ok(()),
        }
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        let ucx = self.worker.ucx;
        // SAFETY: made in `connect`, and used by this thread only.
        unsafe {
            if !self.key.is_null() {
                ucx.ucp_rkey_destroy(self.key);
            }
            if !self.endpoint.is_null() {
                // Forced once it failed, when there is nobody to say goodbye to.
                let is_broken = (*self.state.as_ptr()).failed != UCS_OK;
                let params = ucp_request_param_t {
                    op_attr_mask: UCP_OP_ATTR_FIELD_FLAGS,
                    flags: if is_broken { UCP_EP_CLOSE_FLAG_FORCE } else { 0 },
                    ..Default::default()
                };
                let request = ucx.ucp_ep_close_nbx(self.endpoint, &params);
                if UCS_PTR_IS_PTR(request) {
                    let end = Instant::now() + GOODBYE;
                    let is_closed = || ucx.ucp_request_check_status(request) != UCS_INPROGRESS || Instant::now() > end;
                    let _ = self.worker.progress_until(|| SPIN, is_closed);
                    ucx.ucp_request_free(request);
                }
            }
        }
    }
}

impl Progress {
    /// Microseconds for which the owner spins.
    const fn spin(self) -> u32 {
        match self {
            Self::Busy => 100_000,
            Self::Hybrid => SPIN.as_micros() as u32,
        }
    }
}

/// An answer has come, or is announced.
unsafe extern "C" fn answered(
    argument: *mut c_void,
    header: *const c_void,
    header_length: usize,
    data: *mut c_void,
    len: usize,
    params: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // SAFETY: what UCX says of its arguments; the state is this handler's while the worker progresses.
    let (state, params, header) = unsafe {
        let header = std::slice::from_raw_parts(header.cast::<u8>(), header_length);
        (&mut *argument.cast::<State>(), &*params, header)
    };
    let id = header.try_into().map_or(u32::MAX, u32::from_le_bytes);
    let end = (id as usize).checked_mul(len).and_then(|begin| begin.checked_add(len));
    let Some(slot) = state.slots.get(id as usize).filter(|_| end.is_some_and(|end| end <= state.memory.len())) else {
        state.failed = UCS_ERR_INVALID_PARAM;
        return UCS_OK;
    };
    if len != state.len {
        state.failed = UCS_ERR_MESSAGE_TRUNCATED;
        return UCS_OK;
    }
    // SAFETY: within the memory, as was checked.
    let memory = unsafe { state.memory.address().add(id as usize * len) };
    if params.recv_attr & u64::from(UCP_AM_RECV_ATTR_FLAG_RNDV) == 0 {
        // SAFETY: UCX's buffer and the memory are other memory, both so long.
        unsafe { ptr::copy_nonoverlapping(data.cast::<u8>().cast_const(), memory, len) };
        state.free.push(id);
        return UCS_OK;
    }
    let mut receive = received_by(slot, state.memory.handle);
    receive.cb = ucp_request_param_t__bindgen_ty_1 { recv_am: Some(received) };
    // SAFETY: the memory stays until the endpoint is closed.
    let request = unsafe { state.ucx.ucp_am_recv_data_nbx(state.worker, data, memory.cast(), len, &receive) };
    if !UCS_PTR_IS_PTR(request) {
        match UCS_PTR_STATUS(request) {
            UCS_OK => state.free.push(id),
            status => state.failed = status,
        }
    }
    UCS_INPROGRESS
}

/// Parameters of an operation that writes to the memory of a request.
fn received_by(slot: &Slot, memh: ucp_mem_h) -> ucp_request_param_t {
    ucp_request_param_t {
        op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMH,
        user_data: (&raw const *slot).cast_mut().cast(),
        memh,
        ..Default::default()
    }
}

unsafe extern "C" fn received(request: *mut c_void, status: ucs_status_t, _: usize, slot: *mut c_void) {
    // SAFETY: as for `fetched`.
    unsafe { fetched(request, status, slot) };
}

unsafe extern "C" fn fetched(request: *mut c_void, status: ucs_status_t, slot: *mut c_void) {
    // SAFETY: the request is complete; slots do not change, and their state is the handlers' while the worker progresses.
    unsafe {
        let Slot { state, id } = *slot.cast_const().cast::<Slot>();
        (*state).ucx.ucp_request_free(request);
        match status {
            UCS_OK => (*state).free.push(id),
            status => (*state).failed = status,
        }
    }
}

unsafe extern "C" fn broken(state: *mut c_void, _: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: the state is the handlers' while the worker progresses.
    unsafe { (*state.cast::<State>()).failed = status };
}

/// As long as nothing happens for this time, a side that may sleep does not.
const SPIN: Duration = Duration::from_micros(20);

/// Of one way.
const TRIAL: Duration = Duration::from_millis(100);

/// Beyond, eager messages are copies of copies.
const LARGEST_EAGER: usize = 1 << 20;

const PATIENCE: Duration = Duration::from_secs(30);
const GOODBYE: Duration = Duration::from_secs(2);
