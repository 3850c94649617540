//! `Endpoint`: the way to a worker of another process, and how it ends.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use ucx_sys::{
    UCP_EP_CLOSE_FLAG_FORCE, UCP_EP_PARAM_FIELD_ERR_HANDLER, UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE,
    UCP_EP_PARAM_FIELD_REMOTE_ADDRESS, UCP_ERR_HANDLING_MODE_NONE, UCP_OP_ATTR_FIELD_CALLBACK, UCP_OP_ATTR_FIELD_FLAGS,
    UCP_OP_ATTR_FIELD_USER_DATA, UCS_PTR_IS_PTR, Ucx, ucp_ep_h, ucp_ep_params_t, ucp_err_handler_t,
    ucp_err_handling_mode_t, ucp_request_param_t, ucp_request_param_t__bindgen_ty_1, ucp_rkey_h, ucs_status_t,
};

use super::context::check;
use super::operation::{Event, Inbox, Raw};
use crate::error::Result;

/// An endpoint that reports its failure, where UCX can tell it; it belongs to the worker, which closes it.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) raw: ucp_ep_h,
    tag: *mut Tag,
    failures: ucp_err_handling_mode_t,
    /// What lets the peer's segments be read, by their numbers; the worker destroys them.
    pub(super) keys: HashMap<u16, RemoteKey>,
}

/// UCX's name for memory of a peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemoteKey(pub(super) ucp_rkey_h);

// SAFETY: used by the worker alone, under its lock.
unsafe impl Send for RemoteKey {}

// SAFETY: used by the worker alone, under its lock.
unsafe impl Send for Endpoint {}

/// What callbacks of an endpoint get.
struct Tag {
    link: u64,
    inbox: *const Inbox,
}

impl Endpoint {
    /// Begins to connect; a failure is reported when it is found out.
    ///
    /// `address` must be what a worker gave: UCX reads it without knowing its length.
    ///
    /// # Errors
    /// `PeerDown` where no transport leads there.
    pub(super) fn new(raw: &Raw, link: u64, address: &[u8]) -> Result<Self> {
        let (ucx, failures) = (raw.context.ucx(), raw.context.failures());
        // Room behind, against addresses that say they are longer than they are.
        let mut padded = vec![0u8; address.len() + ROOM];
        padded[..address.len()].copy_from_slice(address);
        let tag = Box::into_raw(Box::new(Tag { link, inbox: &raw const *raw.inbox }));
        let params = ucp_ep_params_t {
            field_mask: u64::from(
                UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
                    | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
                    | UCP_EP_PARAM_FIELD_ERR_HANDLER,
            ),
            address: padded.as_ptr().cast(),
            err_mode: failures,
            err_handler: ucp_err_handler_t { cb: Some(broken), arg: tag.cast() },
            ..Default::default()
        };
        let mut endpoint = ptr::null_mut();
        // SAFETY: the worker is used by one thread at a time, by the lock of its owner; the address is read within the call.
        let status = unsafe { ucx.ucp_ep_create(raw.worker, &params, &mut endpoint) };
        if let Err(error) = check(ucx, "connect", status) {
            // SAFETY: made above, and UCX has no endpoint that would use it.
            drop(unsafe { Box::from_raw(tag) });
            return Err(error);
        }
        Ok(Self { raw: endpoint, tag, failures, keys: HashMap::new() })
    }

    /// Has [`Event::Met`] come when the connection stands, or cannot; whether it is still to come.
    ///
    /// Until then somebody must progress the worker: UCX 1.13 with assertions ends the process when it reads that the peer has
    /// accepted, and cannot send any more, because the peer has given up by that time. From 1.14 on it is the flush that must not be:
    /// when the endpoint is closed by force meanwhile, it is resumed in memory that is another's by then
    /// (`ucp_ep_flush_resume_slow_path_callback`).
    pub(super) fn meet(&self, raw: &Raw) -> bool {
        let ucx = raw.context.ucx();
        let params = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
            cb: ucp_request_param_t__bindgen_ty_1 { send: Some(met) },
            user_data: (&raw const *raw.inbox).cast_mut().cast(),
            ..Default::default()
        };
        // SAFETY: made before, and the worker is used by this thread alone; the inbox lives as long as the worker.
        UCS_PTR_IS_PTR(unsafe { ucx.ucp_ep_flush_nbx(self.raw, &params) })
    }

    /// Closes it at once: its operations end in errors, and then [`Event::Closed`] comes. Whether that is still to come.
    ///
    /// Where UCX tells no failures it cannot be closed by force: then its operations end first, each in its own way.
    pub(super) fn close(self, ucx: &Ucx) -> bool {
        let by_force = self.failures != UCP_ERR_HANDLING_MODE_NONE;
        let params = ucp_request_param_t {
            op_attr_mask: UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA,
            flags: if by_force { UCP_EP_CLOSE_FLAG_FORCE } else { 0 },
            cb: ucp_request_param_t__bindgen_ty_1 { send: Some(closed) },
            user_data: self.tag.cast(),
            ..Default::default()
        };
        // SAFETY: the endpoint was not closed before, which takes it by value; the worker is used by this thread alone.
        let request = unsafe { ucx.ucp_ep_close_nbx(self.raw, &params) };
        if UCS_PTR_IS_PTR(request) {
            // The callback frees both.
            return true;
        }
        // SAFETY: the endpoint is gone, and with it the handler that had the tag.
        drop(unsafe { Box::from_raw(self.tag) });
        false
    }
}

/// The peer, or the way there, is gone; UCX calls it at most once for an endpoint.
unsafe extern "C" fn broken(tag: *mut c_void, _: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: the endpoint's tag, which lives until the endpoint is closed; the inbox lives longer.
    let (link, inbox) = unsafe {
        let tag = &*tag.cast::<Tag>();
        (tag.link, &*tag.inbox)
    };
    inbox.push(Event::Broken { link, status });
}

unsafe extern "C" fn met(request: *mut c_void, _: ucs_status_t, inbox: *mut c_void) {
    // SAFETY: the inbox lives as long as the worker.
    unsafe { &*inbox.cast_const().cast::<Inbox>() }.push(Event::Met);
    super::worker::free(request);
}

unsafe extern "C" fn closed(request: *mut c_void, _: ucs_status_t, tag: *mut c_void) {
    // SAFETY: the tag that `close` gave, which nobody has any more now that the endpoint is gone.
    let tag = unsafe { Box::from_raw(tag.cast::<Tag>()) };
    // SAFETY: the inbox lives as long as the worker.
    unsafe { &*tag.inbox }.push(Event::Closed);
    super::worker::free(request);
}

/// Bytes behind an address.
const ROOM: usize = 1024;
