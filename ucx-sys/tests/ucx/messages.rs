//! Active messages between two workers of one process, over tcp on the loopback interface.

use std::ffi::c_void;
use std::ptr;

use ucx_sys::*;

use crate::{Row, child};

pub(crate) const CHILDREN: &[Row] = &[("messages", messages)];
pub(crate) const TESTS: &[Row] = &[("messages", || drop(child::run("messages", &[])))];

/// Messages of all protocols: short, eager, rendezvous; each is echoed and compared.
fn messages() {
    let ucx = ucx_sys::load().unwrap();
    // SAFETY: one thread uses everything; objects are made parents first and destroyed children first; the buffers of an
    // operation live until it has completed.
    unsafe {
        let context = context(ucx);
        let (a, b) = (Worker::new(ucx, context), Worker::new(ucx, context));
        let (to_b, to_a) = (a.connect(&b), b.connect(&a));
        for len in [0, 1, 8, 1000, 4096, 64 << 10, 1 << 20, 5_000_001] {
            let sent: Vec<u8> = (0..len).map(|at: usize| (at * 7 + len) as u8).collect();
            // A large message is sent when the other side has fetched it, so it is received first.
            for (endpoint, receiver, header) in [(to_b, &b, len as u64), (to_a, &a, !0)] {
                let request = send(ucx, endpoint, &header, &sent);
                let received = receiver.receive(&[&a, &b]);
                finish(ucx, request, &[&a, &b]);
                assert!(received == (header, sent.clone()), "{len} bytes");
            }
        }
        transports(ucx, to_b);
        for endpoint in [to_b, to_a] {
            let done = ucx.ucp_ep_close_nbx(endpoint, &ucp_request_param_t::default());
            finish(ucx, done, &[&a, &b]);
        }
        a.destroy();
        b.destroy();
        ucx.ucp_cleanup(context);
    }
}

unsafe fn context(ucx: &Ucx) -> ucp_context_h {
    let params = ucp_params_t {
        field_mask: u64::from(UCP_PARAM_FIELD_FEATURES),
        features: u64::from(UCP_FEATURE_AM),
        ..Default::default()
    };
    // SAFETY: the caller's.
    unsafe {
        let mut config = ptr::null_mut();
        assert_eq!(ucx.ucp_config_read(ptr::null(), ptr::null(), &mut config), UCS_OK);
        for (name, value) in [(c"TLS", c"tcp"), (c"NET_DEVICES", c"lo")] {
            assert_eq!(ucx.ucp_config_modify(config, name.as_ptr(), value.as_ptr()), UCS_OK);
        }
        let mut context = ptr::null_mut();
        assert_eq!(ucx.ucp_init(&params, config, &mut context), UCS_OK);
        ucx.ucp_config_release(config);
        let mut attributes = Oversize::<ucp_context_attr_t>::zeroed();
        attributes.field_mask = u64::from(UCP_ATTR_FIELD_REQUEST_SIZE | UCP_ATTR_FIELD_MEMORY_TYPES);
        assert_eq!(ucx.ucp_context_query(context, attributes.as_mut_ptr()), UCS_OK);
        assert!(attributes.request_size > 0);
        assert_eq!(attributes.memory_types & (1 << UCS_MEMORY_TYPE_HOST), 1);
        context
    }
}

/// The transports of an endpoint, where the library tells.
unsafe fn transports(ucx: &Ucx, endpoint: ucp_ep_h) {
    if ucx.version() < (Version { major: 1, minor: 14, release: 0 }) {
        return;
    }
    let mut entries = [newer::ucp_transport_entry_t { transport_name: ptr::null(), device_name: ptr::null() }; 16];
    let mut attributes = Oversize::<newer::ucp_ep_attr_t>::zeroed();
    attributes.known.field_mask = u64::from(newer::UCP_EP_ATTR_FIELD_TRANSPORTS);
    attributes.transports.entries = entries.as_mut_ptr();
    attributes.transports.num_entries = entries.len() as u32;
    // SAFETY: the caller's; `entries` is as long as said, and the names live as long as the worker.
    unsafe {
        assert_eq!(ucx.ucp_ep_query(endpoint, attributes.as_mut_ptr().cast()), UCS_OK);
        let known = &entries[..attributes.transports.num_entries as usize];
        let name = |entry: &newer::ucp_transport_entry_t| std::ffi::CStr::from_ptr(entry.transport_name).to_owned();
        assert!(known.iter().any(|entry| name(entry).as_c_str() == c"tcp"));
    }
}

struct Worker<'a> {
    ucx: &'a Ucx,
    worker: ucp_worker_h,
    inbox: *mut Inbox,
}

/// What the handler of a worker has got.
#[derive(Default)]
struct Inbox {
    whole: Vec<(u64, Vec<u8>)>,
    /// Descriptors of messages whose bytes are to be fetched, and their length.
    announced: Vec<(u64, *mut c_void, usize)>,
}

impl<'a> Worker<'a> {
    unsafe fn new(ucx: &'a Ucx, context: ucp_context_h) -> Self {
        let params = ucp_worker_params_t {
            field_mask: u64::from(UCP_WORKER_PARAM_FIELD_THREAD_MODE),
            thread_mode: UCS_THREAD_MODE_SINGLE,
            ..Default::default()
        };
        let inbox = Box::into_raw(Box::<Inbox>::default());
        let handler = ucp_am_handler_param_t {
            field_mask: u64::from(
                UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
            ),
            id: 5,
            cb: Some(arrived),
            arg: inbox.cast(),
            ..Default::default()
        };
        // SAFETY: the caller's; `inbox` lives longer than the worker.
        unsafe {
            let mut worker = ptr::null_mut();
            assert_eq!(ucx.ucp_worker_create(context, &params, &mut worker), UCS_OK);
            assert_eq!(ucx.ucp_worker_set_am_recv_handler(worker, &handler), UCS_OK);
            Self { ucx, worker, inbox }
        }
    }

    unsafe fn connect(&self, to: &Worker<'_>) -> ucp_ep_h {
        // SAFETY: the caller's; the address is released once the endpoint is made.
        unsafe {
            let (mut address, mut len) = (ptr::null_mut(), 0);
            assert_eq!(self.ucx.ucp_worker_get_address(to.worker, &mut address, &mut len), UCS_OK);
            assert!(len > 0);
            let params = ucp_ep_params_t {
                field_mask: u64::from(UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE),
                address,
                err_mode: UCP_ERR_HANDLING_MODE_PEER,
                ..Default::default()
            };
            let mut endpoint = ptr::null_mut();
            assert_eq!(self.ucx.ucp_ep_create(self.worker, &params, &mut endpoint), UCS_OK);
            self.ucx.ucp_worker_release_address(to.worker, address);
            endpoint
        }
    }

    unsafe fn receive(&self, all: &[&Worker<'_>]) -> (u64, Vec<u8>) {
        loop {
            progress(all);
            // SAFETY: the handler runs in `progress` only.
            let inbox = unsafe { &mut *self.inbox };
            if let Some(message) = inbox.whole.pop() {
                return message;
            }
            if let Some((header, descriptor, len)) = inbox.announced.pop() {
                let mut bytes = vec![0; len];
                let params = ucp_request_param_t::default();
                // SAFETY: the descriptor was kept by the handler; `bytes` stays until `finish` returns.
                unsafe {
                    let into = bytes.as_mut_ptr().cast();
                    let done = self.ucx.ucp_am_recv_data_nbx(self.worker, descriptor, into, len, &params);
                    finish(self.ucx, done, all);
                }
                return (header, bytes);
            }
        }
    }

    unsafe fn destroy(self) {
        // SAFETY: the caller's; the handler does not run any more.
        unsafe {
            self.ucx.ucp_worker_destroy(self.worker);
            drop(Box::from_raw(self.inbox));
        }
    }
}

unsafe extern "C" fn arrived(
    arg: *mut c_void,
    header: *const c_void,
    header_length: usize,
    data: *mut c_void,
    length: usize,
    param: *const ucp_am_recv_param_t,
) -> ucs_status_t {
    // A panic in a callback aborts, which fails the test as well.
    assert_eq!(header_length, 8);
    // SAFETY: what UCX says of its arguments; `arg` is the worker's inbox.
    unsafe {
        let inbox = &mut *arg.cast::<Inbox>();
        let header = header.cast::<u64>().read_unaligned();
        if (*param).recv_attr & u64::from(UCP_AM_RECV_ATTR_FLAG_RNDV) != 0 {
            inbox.announced.push((header, data, length));
            return UCS_INPROGRESS;
        }
        let bytes = if length == 0 { &[] } else { std::slice::from_raw_parts(data.cast::<u8>(), length) };
        inbox.whole.push((header, bytes.to_vec()));
    }
    UCS_OK
}

/// Begins to send; `header` and `bytes` stay until the request is finished.
unsafe fn send(ucx: &Ucx, endpoint: ucp_ep_h, header: &u64, bytes: &[u8]) -> ucs_status_ptr_t {
    let params = ucp_request_param_t::default();
    // SAFETY: the caller's.
    unsafe {
        let header = (&raw const *header).cast();
        ucx.ucp_am_send_nbx(endpoint, 5, header, 8, bytes.as_ptr().cast(), bytes.len(), &params)
    }
}

fn progress(all: &[&Worker<'_>]) {
    for worker in all {
        // SAFETY: one thread uses all workers.
        unsafe { worker.ucx.ucp_worker_progress(worker.worker) };
    }
}

/// Waits for an operation.
unsafe fn finish(ucx: &Ucx, request: ucs_status_ptr_t, all: &[&Worker<'_>]) {
    if UCS_PTR_IS_PTR(request) {
        // SAFETY: a request that was not freed yet.
        unsafe {
            while ucx.ucp_request_check_status(request) == UCS_INPROGRESS {
                progress(all);
            }
            assert_eq!(ucx.ucp_request_check_status(request), UCS_OK);
            ucx.ucp_request_free(request);
        }
    } else {
        let status = UCS_PTR_STATUS(request);
        assert_eq!(status, UCS_OK, "{}", ucx.describe(status));
    }
}
