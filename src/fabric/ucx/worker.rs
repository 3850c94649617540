//! `Worker`: where UCX's messages come and go. Whoever holds it is the only one who calls UCX for it.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ucx_sys::{
    UCP_AM_HANDLER_PARAM_FIELD_ARG, UCP_AM_HANDLER_PARAM_FIELD_CB, UCP_AM_HANDLER_PARAM_FIELD_ID,
    UCP_AM_RECV_ATTR_FLAG_RNDV, UCP_OP_ATTR_FIELD_CALLBACK, UCP_OP_ATTR_FIELD_FLAGS, UCP_OP_ATTR_FIELD_MEMH,
    UCP_OP_ATTR_FIELD_MEMORY_TYPE, UCP_OP_ATTR_FIELD_USER_DATA, UCP_WORKER_PARAM_FIELD_THREAD_MODE, UCS_ERR_BUSY,
    UCS_INPROGRESS, UCS_MEMORY_TYPE_HOST, UCS_OK, UCS_PTR_IS_PTR, UCS_PTR_RAW_STATUS, UCS_THREAD_MODE_SERIALIZED, Ucx,
    Version, ucp_am_handler_param_t, ucp_am_recv_callback_t, ucp_am_recv_param_t, ucp_request_param_t,
    ucp_request_param_t__bindgen_ty_1, ucp_worker_params_t, ucs_status_ptr_t, ucs_status_t,
};

use super::admission::{Admission, Before};
use super::connections;
use super::context::{Context, check, failed};
use super::endpoint::{Endpoint, RemoteKey};
use super::exit::{EXIT, Gate, exiting};
use super::memory::Piece;
use super::numbered::Numbered;
use super::operation::{About, Body, Data, Event, Finished, Inbox, Operation, Raw, Running, Taker, Way};
use crate::error::Result;

mod read;
#[cfg(test)]
mod segments;

/// A worker, its endpoints by the numbers that the caller chose for them, and what happened.
pub(super) struct Worker {
    raw: Arc<Raw>,
    endpoints: Numbered<Endpoint>,
    /// Operations that UCX has.
    running: usize,
    /// Those of them that receive.
    receiving: usize,
    /// Endpoints that are being closed.
    closing: usize,
    /// Endpoints that do not know yet whether they reach their peers.
    meeting: usize,
    /// Of endpoints that are closed, or replaced by others: destroyed when nothing is under way.
    retired: Vec<RemoteKey>,
    /// The mapping of what was last moved.
    piece: Option<Piece>,
    descriptor: RawFd,
    /// Where it is decided who may connect to it.
    admission: Option<Admission>,
    /// The process that made it: in a forked child nothing of UCX may be touched.
    generation: u32,
}

/// What becomes readable when there is something to do, after [`Worker::arm`].
#[derive(Debug)]
pub(super) struct Events {
    /// Keeps the descriptor open.
    _raw: Arc<Raw>,
    descriptor: RawFd,
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: UCX closes it with the worker, which lives as long as this.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }
}

impl Worker {
    /// # Errors
    /// Those of UCX: no transport is usable, no memory, no descriptors.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let ucx = context.ucx();
        let _entered = EXIT.enter()?;
        let params = ucp_worker_params_t {
            field_mask: u64::from(UCP_WORKER_PARAM_FIELD_THREAD_MODE),
            thread_mode: UCS_THREAD_MODE_SERIALIZED,
            ..Default::default()
        };
        let mut worker = ptr::null_mut();
        let before = context.ports().map(|ports| (Before::now(), ports));
        // SAFETY: the context lives as long as `raw`, which is made next.
        check(ucx, "make a worker", unsafe { ucx.ucp_worker_create(context.raw(), &params, &mut worker) })?;
        let admission = before.map(|(before, ports)| before.close(ports));
        let raw = Arc::new(Raw { context: Arc::clone(context), worker, inbox: Box::default(), gate: EXIT.gate() });
        if context.takes_messages() {
            handle(&raw, MESSAGE, Some(arrived))?;
            handle(&raw, NO_MESSAGE, None)?;
        }
        let mut descriptor: c_int = -1;
        // SAFETY: the worker was made for waking up, by its context's features.
        check(ucx, "wait for events", unsafe { ucx.ucp_worker_get_efd(worker, &mut descriptor) })?;
        let generation = crate::process::generation();
        let (endpoints, retired) = (Numbered::default(), Vec::new());
        Ok(Self {
            raw,
            endpoints,
            running: 0,
            receiving: 0,
            closing: 0,
            meeting: 0,
            retired,
            piece: None,
            descriptor,
            admission,
            generation,
        })
    }

    /// Whether hosts that were not admitted cannot connect to it by TCP.
    pub(super) fn is_guarded(&self) -> bool {
        self.admission.as_ref().is_some_and(Admission::is_closed)
    }

    fn ucx(&self) -> &'static Ucx {
        self.raw.context.ucx()
    }

    /// To be passed for each call of UCX.
    fn gate(&self) -> &'static Gate {
        self.raw.gate
    }

    pub(super) fn context(&self) -> &Context {
        &self.raw.context
    }

    pub(super) fn events(&self) -> Events {
        Events { _raw: Arc::clone(&self.raw), descriptor: self.descriptor }
    }

    /// What other processes connect to.
    ///
    /// # Errors
    /// UCX's, out of memory.
    pub(super) fn address(&mut self) -> Result<Vec<u8>> {
        let _entered = self.gate().enter().ok_or_else(exiting)?;
        let (mut address, mut len) = (ptr::null_mut(), 0);
        // SAFETY: one thread at a time, by `&mut self`; the bytes are copied before they are released.
        unsafe {
            check(
                self.ucx(),
                "name a worker",
                self.ucx().ucp_worker_get_address(self.raw.worker, &mut address, &mut len),
            )?;
            let bytes = std::slice::from_raw_parts(address.cast::<u8>(), len).to_vec();
            self.ucx().ucp_worker_release_address(self.raw.worker, address);
            Ok(bytes)
        }
    }

    /// Lets connections of UCX in that come from these hosts.
    pub(super) fn admit(&mut self, hosts: &[IpAddr]) {
        if let Some(admission) = &mut self.admission {
            admission.admit(hosts);
        }
    }

    /// Takes back one [`admit`](Self::admit) of these hosts.
    pub(super) fn dismiss(&mut self, hosts: &[IpAddr]) {
        if let Some(admission) = &mut self.admission {
            admission.dismiss(hosts);
        }
    }

    /// Begins a connection, of which the caller speaks as `link`. Until it stands the worker is busy, also where there is nothing to
    /// say: where messages are taken `first` is sent then, the header of one.
    ///
    /// # Errors
    /// As [`Endpoint::new`].
    pub(super) fn connect(&mut self, link: u64, address: &[u8], first: Vec<u8>) -> Result<()> {
        let entered = self.gate().enter().ok_or_else(exiting)?;
        let endpoint = Endpoint::new(&self.raw, link, address)?;
        let takes_messages = self.raw.context.takes_messages();
        let by_flush = self.ucx().version() < WITHOUT_FLUSHES;
        if takes_messages && by_flush {
            self.meeting += usize::from(endpoint.meet(&self.raw));
        }
        drop(entered);
        if let Some(former) = self.endpoints.insert(link, endpoint) {
            self.end(former);
        }
        if takes_messages && !by_flush {
            // What came of it the endpoint tells, if it is bad.
            let _ = self.send(link, Operation { about: About::Message, header: first, body: Body::None }, Way::Whole);
        }
        Ok(())
    }

    /// Ends a connection by force: its operations end in errors.
    pub(super) fn close(&mut self, link: u64) {
        if let Some(endpoint) = self.endpoints.remove(&link) {
            self.end(endpoint);
        }
    }

    /// Ends connections over TCP to these hosts, of which the peers have taken nothing for so long, as if those had died: then their links
    /// break within the next steps.
    ///
    /// UCX cannot: of an endpoint that is closed by force it keeps the connection where it has begun to send, and when the peer goes
    /// on and closes as well, it writes to it in the step in which it has read that, and freed it (`uct_tcp_iface_handle_events`).
    pub(super) fn end_stuck(&self, hosts: &[IpAddr], silence: Duration) {
        connections::end_stuck(self.descriptor, hosts, silence);
    }

    fn end(&mut self, mut endpoint: Endpoint) {
        self.retired.extend(endpoint.keys.drain().map(|(_, key)| key));
        if let Some(_entered) = self.gate().enter() {
            self.closing += usize::from(endpoint.close(self.ucx()));
        }
    }

    /// Whether operations, closings or connects are under way, which need [`progress`](Self::progress): none do when the process exits.
    pub(super) fn is_busy(&self) -> bool {
        (self.running > 0 || self.closing > 0 || self.meeting > 0) && !EXIT.has_begun()
    }

    /// Whether bytes are being fetched, of which nothing else is heard meanwhile.
    pub(super) fn is_receiving(&self) -> bool {
        self.receiving > 0
    }

    /// Memory for a header of a message.
    pub(super) fn header(&self) -> Vec<u8> {
        self.raw.inbox.header()
    }

    /// Memory for parts that are sent together.
    pub(super) fn packed(&self) -> Vec<u8> {
        self.raw.inbox.packed()
    }

    /// Begins to send a message, or sends it: then its end is the result. To a link that is closed nothing is sent.
    ///
    /// # Cost
    /// What UCX does; its memory is that of operations that ended.
    pub(super) fn send(&mut self, link: u64, operation: Operation, way: Way) -> Option<Finished> {
        let Some(endpoint) = self.endpoints.get(&link).map(|endpoint| endpoint.raw) else {
            return Some(Finished { operation, status: ucx_sys::UCS_ERR_NOT_CONNECTED });
        };
        let Some(_entered) = self.gate().enter() else {
            return Some(Finished { operation, status: ucx_sys::UCS_ERR_CANCELED });
        };
        let mut running = self.running(operation, None);
        let (header, header_len) = (running.operation.header.as_ptr(), running.operation.header.len());
        let (mut params, address, len) = self.describe(&mut running);
        if let Some(flag) = way.flag() {
            params.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
            params.flags = flag;
        }
        params.cb = ucp_request_param_t__bindgen_ty_1 { send: Some(sent) };
        let running = Box::into_raw(running);
        params.user_data = running.cast();
        // SAFETY: one thread at a time, by `&mut self`; header and bytes belong to `running`, which stays until UCX is done.
        let request =
            unsafe { self.ucx().ucp_am_send_nbx(endpoint, MESSAGE, header.cast(), header_len, address, len, &params) };
        // SAFETY: made above, of a call that took it.
        unsafe { self.begun(request, running, None) }
    }

    /// Begins to receive the bytes of a message into the body of an operation, which is as long; its end, where that is
    /// already there.
    pub(super) fn receive(&mut self, data: Data, operation: Operation) -> Option<Finished> {
        let Data::Announced { descriptor, len: announced, .. } = &data else {
            self.release(data);
            return Some(Finished { operation, status: ucx_sys::UCS_ERR_INVALID_PARAM });
        };
        let (descriptor, announced) = (*descriptor, *announced);
        let Some(entered) = self.gate().enter() else {
            return Some(Finished { operation, status: ucx_sys::UCS_ERR_CANCELED });
        };
        let mut running = self.running(operation, Some(announced));
        let (mut params, address, len) = self.describe(&mut running);
        if len != announced {
            drop(entered);
            self.release(data);
            return Some(Finished { operation: running.operation, status: ucx_sys::UCS_ERR_INVALID_PARAM });
        }
        params.cb = ucp_request_param_t__bindgen_ty_1 { recv_am: Some(received) };
        let running = Box::into_raw(running);
        params.user_data = running.cast();
        // SAFETY: as in `send`; the descriptor was kept when it came, and is UCX's again from here on.
        let request =
            unsafe { self.ucx().ucp_am_recv_data_nbx(self.raw.worker, descriptor, address.cast_mut(), len, &params) };
        // SAFETY: made above, of a call that took it.
        unsafe { self.begun(request, running, Some(announced)) }
    }

    /// Gives back the memory of a message, or refuses its bytes.
    pub(super) fn release(&mut self, data: Data) {
        match data {
            Data::Copied(_) => {}
            Data::Announced { descriptor: data, .. } => {
                let Some(_entered) = self.gate().enter() else { return };
                // SAFETY: UCX gave it away, and it is given back once, by value.
                unsafe { self.ucx().ucp_am_data_release(self.raw.worker, data) };
            }
        }
    }

    /// Does what there is to do; whether there was something. Messages that are here whole are offered to `taker`, where they
    /// lie: those that it takes are no events.
    pub(super) fn progress(&mut self, taker: &mut Taker<'_>) -> bool {
        let Some(_entered) = self.gate().enter() else { return false };
        // SAFETY: one thread at a time, by `&mut self`. Callbacks only put into the inbox, and offer to `taker`, which has no
        // way to this worker.
        let step = || unsafe { self.ucx().ucp_worker_progress(self.raw.worker) };
        let count = self.raw.inbox.with(taker, step);
        count > 0 || !self.raw.inbox.is_empty()
    }

    /// What happened, in order.
    pub(super) fn take_events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.event()).collect()
    }

    /// What happened next.
    pub(super) fn event(&mut self) -> Option<Event> {
        let event = self.raw.inbox.pop()?;
        match &event {
            Event::Finished(finished) => {
                self.running -= 1;
                self.receiving -= usize::from(finished.operation.about.receives());
            }
            Event::Closed => self.closing -= 1,
            Event::Met => self.meeting -= 1,
            Event::Message { .. } | Event::Broken { .. } => {}
        }
        Some(event)
    }

    /// Prepares the descriptor for waiting; `false` when there is something to do first. When the process exits there never is.
    pub(super) fn arm(&mut self) -> Result<bool> {
        if !self.raw.inbox.is_empty() {
            return Ok(false);
        }
        let Some(_entered) = self.gate().enter() else { return Ok(true) };
        // SAFETY: one thread at a time, by `&mut self`.
        match unsafe { self.ucx().ucp_worker_arm(self.raw.worker) } {
            UCS_OK => Ok(true),
            UCS_ERR_BUSY => Ok(false),
            status => Err(failed(self.ucx(), "wait for events", status)),
        }
    }

    fn running(&self, operation: Operation, expected: Option<usize>) -> Box<Running> {
        Running { operation, inbox: &raw const *self.raw.inbox, expected }.begin()
    }

    /// The parameters for an operation's bytes, and where they lie.
    fn describe(&mut self, running: &mut Running) -> (ucp_request_param_t, *const c_void, usize) {
        let (start, len) = running.operation.body.span();
        let mut params = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE,
            memory_type: UCS_MEMORY_TYPE_HOST,
            ..Default::default()
        };
        let is_segment = matches!(running.operation.body, Body::Shared(_) | Body::Landing(_)) && len > 0;
        if !is_segment || self.ucx().version() < WITH_HANDLES {
            return (params, start.cast(), len);
        }
        let address = start.expose_provenance();
        let piece = match self.piece {
            Some(piece) if piece.has(address, len) => Some(piece),
            _ => {
                let context = &self.raw.context;
                context.memory.piece(context.ucx(), context.raw(), address, len)
            }
        };
        let Some(piece) = piece else { return (params, start.cast(), len) };
        self.piece = Some(piece);
        let (address, handle) = piece.place(address);
        params.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
        params.memh = handle;
        // The same bytes in a mapping that lives as long as the handle.
        (params, ptr::with_exposed_provenance_mut::<u8>(address).cast(), len)
    }

    /// What came of a call that began an operation.
    ///
    /// # Safety
    /// `running` is of `Box::into_raw`, and was the user data of the call that returned `request`.
    unsafe fn begun(
        &mut self,
        request: ucs_status_ptr_t,
        running: *mut Running,
        received: Option<usize>,
    ) -> Option<Finished> {
        if UCS_PTR_IS_PTR(request) {
            self.running += 1;
            self.receiving += usize::from(received.is_some());
            return None;
        }
        // SAFETY: UCX did not keep it: callbacks are called for requests only.
        let running = unsafe { Box::from_raw(running) };
        // SAFETY: where the status is `UCS_OK`, all was done within the call.
        Some(unsafe { running.end(UCS_PTR_RAW_STATUS(request), received) })
    }

    /// Ends everything, for at most so long; whether it could.
    fn wind_up(&mut self, limit: Duration) -> bool {
        let links: Vec<u64> = self.endpoints.keys().copied().collect();
        links.into_iter().for_each(|link| self.close(link));
        let begun = Instant::now();
        loop {
            self.progress(&mut |_, _| true);
            while let Some(event) = self.event() {
                if let Event::Message { data, .. } = event {
                    self.release(data);
                }
            }
            if !self.is_busy() {
                return true;
            }
            if begun.elapsed() > limit {
                return false;
            }
            std::thread::yield_now();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let is_ours = self.generation == crate::process::generation() && !EXIT.has_begun();
        if !is_ours || !self.wind_up(WIND_UP) {
            // UCX still has memory of operations: it keeps its worker, for good. So do a forked child, and a process that exits.
            std::mem::forget(Arc::clone(&self.raw));
            return;
        }
        self.bury();
        let Some(_entered) = self.gate().enter() else { return std::mem::forget(Arc::clone(&self.raw)) };
        if self.raw.context.takes_messages() {
            // Or a message that comes while the last holder destroys the worker would be given that.
            let _ = handle(&self.raw, MESSAGE, None);
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({} endpoints, {} operations)", self.endpoints.len(), self.running)
    }
}

/// Has messages of this number given to `handler`, or thrown away. By one thread at a time.
fn handle(raw: &Arc<Raw>, id: u32, handler: ucp_am_recv_callback_t) -> Result<()> {
    let params = ucp_am_handler_param_t {
        field_mask: u64::from(
            UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
        ),
        id,
        cb: handler,
        arg: Arc::as_ptr(raw).cast_mut().cast(),
        ..Default::default()
    };
    let ucx = raw.context.ucx();
    // SAFETY: what is in an `Arc` stays where it is, and lives until the worker is destroyed.
    check(ucx, "take messages", unsafe { ucx.ucp_worker_set_am_recv_handler(raw.worker, &params) })
}

/// A message came. Nothing here can panic but for want of memory, and that aborts.
unsafe extern "C" fn arrived(
    raw: *mut c_void,
    header: *const c_void,
    header_len: usize,
    data: *mut c_void,
    len: usize,
    param: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    let place = raw.cast_const().cast::<Raw>();
    // SAFETY: the `Raw` inside an `Arc`, as the handler was set, of the worker in one of whose calls this is.
    let raw = unsafe { &*place };
    let header = match header_len {
        0 => &[],
        // SAFETY: what UCX says of its arguments.
        len => unsafe { std::slice::from_raw_parts(header.cast::<u8>(), len) },
    };
    // SAFETY: as above.
    let attributes = unsafe { (*param).recv_attr };
    let (data, status) = if attributes & u64::from(UCP_AM_RECV_ATTR_FLAG_RNDV) != 0 {
        // SAFETY: as above; the data holds one more of it.
        let held = unsafe {
            Arc::increment_strong_count(place);
            Arc::from_raw(place)
        };
        (Data::Announced { _raw: held, descriptor: data, len }, UCS_INPROGRESS)
    } else {
        let bytes = match len {
            0 => &[],
            // SAFETY: as above; the bytes are there during the call.
            len => unsafe { std::slice::from_raw_parts(data.cast::<u8>(), len) },
        };
        if raw.inbox.offer(header, bytes) {
            return UCS_OK;
        }
        (Data::Copied(bytes.to_vec()), UCS_OK)
    };
    raw.inbox.push(Event::Message { header: header.to_vec(), data });
    status
}

unsafe extern "C" fn sent(request: *mut c_void, status: ucs_status_t, running: *mut c_void) {
    // SAFETY: what `send` gave to UCX, which is done with it.
    unsafe { finish(running, status, None) };
    free(request);
}

unsafe extern "C" fn received(request: *mut c_void, status: ucs_status_t, len: usize, running: *mut c_void) {
    // SAFETY: what `receive` gave to UCX, which is done with it.
    unsafe { finish(running, status, Some(len)) };
    free(request);
}

/// # Safety
/// `running` is of `Box::into_raw`, and UCX is done with it.
unsafe fn finish(running: *mut c_void, status: ucs_status_t, received: Option<usize>) {
    // SAFETY: the caller's.
    let running = unsafe { Box::from_raw(running.cast::<Running>()) };
    // SAFETY: it lies in the worker, in one of whose calls this is.
    let inbox: &Inbox = unsafe { &*running.inbox };
    // SAFETY: the caller's.
    inbox.push(Event::Finished(unsafe { running.end(status, received) }));
}

/// Gives a request back, from its callback.
pub(super) fn free(request: *mut c_void) {
    // There is a library, or nobody would call this.
    if let Ok(ucx) = ucx_sys::load() {
        // SAFETY: the request of the callback, freed once.
        unsafe { ucx.ucp_request_free(request) };
    }
}

/// The number of our messages among those that one can send to a worker.
const MESSAGE: u32 = 0;

/// A number that UCX before 1.17 has to be told that it has no handler: its table has an even length, and what is not initialised in it is
/// called. What is beyond is thrown away.
const NO_MESSAGE: u32 = 1;

/// Since when an endpoint is not flushed; see [`Endpoint::meet`].
const WITHOUT_FLUSHES: Version = Version { major: 1, minor: 14, release: 0 };

/// Since when operations take handles of memory.
const WITH_HANDLES: Version = Version { major: 1, minor: 13, release: 0 };

/// How long ending a worker may take: closing by force is a matter of milliseconds.
const WIND_UP: Duration = Duration::from_secs(1);
