//! Reading memory of peers, which they have described before.

use ucx_sys::{UCP_OP_ATTR_FIELD_CALLBACK, ucp_request_param_t__bindgen_ty_1};

use super::{Worker, sent};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::ucx::context::check;
use crate::fabric::ucx::endpoint::RemoteKey;
use crate::fabric::ucx::exit::exiting;
use crate::fabric::ucx::operation::{Finished, Operation};

impl Worker {
    /// Learns how a segment of a link's peer is read, by what the peer said: UCX reads that without knowing its length.
    ///
    /// # Errors
    /// `PeerDown` for a link that is closed; UCX's, for memory that no transport of the endpoint reads.
    pub(in crate::fabric::ucx) fn learn(&mut self, link: u64, number: u16, packed: &[u8]) -> Result<()> {
        let ucx = self.ucx();
        let Some(endpoint) = self.endpoints.get_mut(&link) else {
            return Err(Error::new(ErrorKind::PeerDown, "get", "the connection is closed"));
        };
        let _entered = self.raw.gate.enter().ok_or_else(exiting)?;
        // Room behind, against keys that say they are longer than they are: each of 64 domains has up to 255 bytes.
        let mut padded = vec![0u8; packed.len() + ROOM];
        padded[..packed.len()].copy_from_slice(packed);
        let mut key = std::ptr::null_mut();
        // SAFETY: the endpoint was not closed, and the worker is used by this thread alone; the bytes are read within the call.
        let status = unsafe { ucx.ucp_ep_rkey_unpack(endpoint.raw, padded.as_ptr().cast(), &mut key) };
        check(ucx, "read a description of memory", status)?;
        self.retired.extend(endpoint.keys.insert(number, RemoteKey(key)));
        Ok(())
    }

    /// Begins to read `address` of a peer's segment into the body of an operation, or reads it: then its end is the result.
    ///
    /// # Cost
    /// An allocation, and what UCX does. The peer's process does nothing.
    pub(in crate::fabric::ucx) fn read(
        &mut self,
        link: u64,
        number: u16,
        address: u64,
        operation: Operation,
    ) -> Option<Finished> {
        let known = self.endpoints.get(&link).and_then(|known| Some((known.raw, *known.keys.get(&number)?)));
        let Some((endpoint, RemoteKey(key))) = known else {
            return Some(Finished { operation, status: ucx_sys::UCS_ERR_NOT_CONNECTED });
        };
        let Some(_entered) = self.gate().enter() else {
            return Some(Finished { operation, status: ucx_sys::UCS_ERR_CANCELED });
        };
        let mut running = self.running(operation, None);
        let (mut params, start, len) = self.describe(&mut running);
        params.op_attr_mask |= UCP_OP_ATTR_FIELD_CALLBACK;
        params.cb = ucp_request_param_t__bindgen_ty_1 { send: Some(sent) };
        let running = Box::into_raw(running);
        params.user_data = running.cast();
        // SAFETY: one thread at a time, by `&mut self`; the memory that is written belongs to `running`, which stays until UCX
        // is done; the key is of this endpoint, and is destroyed when nothing is under way.
        let request = unsafe { self.ucx().ucp_get_nbx(endpoint, start.cast_mut(), len, address, key, &params) };
        // SAFETY: made above, of a call that took it.
        unsafe { self.begun(request, running, None) }
    }

    /// Destroys the keys that no operation uses any more.
    pub(super) fn bury(&mut self) {
        if self.is_busy() {
            return;
        }
        let Some(_entered) = self.gate().enter() else { return };
        for RemoteKey(key) in std::mem::take(&mut self.retired) {
            // SAFETY: of this worker, which is used by this thread alone; no operation that could use it is under way.
            unsafe { self.ucx().ucp_rkey_destroy(key) };
        }
    }
}

/// Bytes behind a description of memory.
const ROOM: usize = 64 * 256;
