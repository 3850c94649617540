//! RPCs and bulk transfers between two instances of one process, by callbacks alone.

use std::ffi::{CString, c_void};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use std::{ptr, slice};

use margo_sys::*;

use crate::process::options;
use crate::{Row, child};

pub(crate) const CHILDREN: &[Row] = &[("na+sm", || transfer("na+sm")), ("ofi+tcp", || transfer("ofi+tcp"))];
pub(crate) const SM: &[Row] = &[("transfers_over_na_sm", || drop(child::run("na+sm", &[])))];
pub(crate) const TCP: &[Row] = &[("transfers_over_ofi_tcp", || drop(child::run("ofi+tcp", &[])))];

/// A message of bytes, of the form that a proc callback reads and writes.
#[repr(C)]
struct Message {
    encodes: u32,
    len: u64,
    bytes: *mut u8,
}

/// Asks for an answer and pulls what the answer describes.
fn transfer(protocol: &str) {
    let margo = load().unwrap();
    let content: Vec<u8> = (0..1_000_003_u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    // SAFETY: handles are used while their instances live; buffers outlive the transfers, which are waited for.
    unsafe {
        let server = margo.start(&options(protocol)).unwrap();
        let client = margo.start(&Options { listens: false, ..options(protocol) }).unwrap();
        let (answered, oneway) = (register(margo, server, "ask", true), register(margo, server, "tell", false));
        ASK.set(answered).unwrap();
        assert_eq!(register(margo, client, "ask", true), answered);
        assert_eq!(register(margo, client, "tell", false), oneway);

        let mut theirs = ptr::null_mut();
        let mut buffer = content.as_ptr().cast_mut().cast::<c_void>();
        let size = content.len() as u64;
        assert_eq!(margo.margo_bulk_create(server, 1, &mut buffer, &size, HG_BULK_READ_ONLY, &mut theirs), HG_SUCCESS);
        let mut descriptor = vec![0_u8; margo.HG_Bulk_get_serialize_size(theirs, 0) as usize];
        let len = descriptor.len() as u64;
        assert_eq!(margo.HG_Bulk_serialize(descriptor.as_mut_ptr().cast(), len, 0, theirs), HG_SUCCESS);
        let (tell, told) = channel::<Vec<u8>>();
        let mut state = State { answer: descriptor, tell };
        assert_eq!(margo.margo_register_data(server, answered, (&raw mut state).cast(), None), HG_SUCCESS);
        assert_eq!(margo.margo_register_data(server, oneway, (&raw mut state).cast(), None), HG_SUCCESS);

        let mut own = ptr::null_mut();
        assert_eq!(margo.margo_addr_self(server, &mut own), HG_SUCCESS);
        let mut text = vec![0_u8; 256];
        let mut len = text.len() as u64;
        assert_eq!(margo.margo_addr_to_string(server, text.as_mut_ptr().cast(), &mut len, own), HG_SUCCESS);
        assert_eq!(margo.margo_addr_free(server, own), HG_SUCCESS);
        let name = CString::new(text.split(|byte| *byte == 0).next().unwrap()).unwrap();
        let mut peer = ptr::null_mut();
        assert_eq!(margo.margo_addr_lookup(client, name.as_ptr(), &mut peer), HG_SUCCESS);

        let described = ask(margo, client, peer, answered, b"where?");
        assert_eq!(told.recv_timeout(LIMIT).unwrap(), b"where?");
        say(margo, client, peer, oneway, b"by the way");
        assert_eq!(told.recv_timeout(LIMIT).unwrap(), b"by the way");

        let mut remote = ptr::null_mut();
        let class = margo.margo_get_class(client);
        let outcome = margo.HG_Bulk_deserialize(class, &mut remote, described.as_ptr().cast(), described.len() as u64);
        assert_eq!(outcome, HG_SUCCESS);
        let mut landing = vec![0_u8; content.len()];
        let (mut local, mut buffer) = (ptr::null_mut(), landing.as_mut_ptr().cast::<c_void>());
        assert_eq!(margo.margo_bulk_create(client, 1, &mut buffer, &size, HG_BULK_WRITE_ONLY, &mut local), HG_SUCCESS);
        let (done, outcome) = channel::<hg_return_t>();
        let uargs = Box::into_raw(Box::new(done)).cast();
        let begun = margo.margo_bulk_ctransfer_timed(
            client,
            HG_BULK_PULL,
            peer,
            remote,
            3,
            local,
            3,
            content.len() - 3,
            5000.0,
            Some(ended),
            uargs,
        );
        assert_eq!(begun, HG_SUCCESS);
        assert_eq!(outcome.recv_timeout(LIMIT).unwrap(), HG_SUCCESS);
        assert!(landing[3..] == content[3..] && landing[..3] == [0; 3]);

        // From here on Mercury would complain.
        margo.set_log_level(c"none");
        // Pushing to memory whose owner does not allow it fails.
        let pushed = margo.margo_bulk_transfer_timed(client, HG_BULK_PUSH, peer, remote, 0, local, 0, 8, 5000.0);
        assert_ne!(pushed, HG_SUCCESS, "a read-only descriptor was written through");

        for bulk in [remote, local, theirs] {
            assert_eq!(margo.margo_bulk_free(bulk), HG_SUCCESS);
        }
        assert_eq!(margo.margo_addr_free(client, peer), HG_SUCCESS);
        if let Some(counters) = margo.counters(client) {
            assert_eq!(counters.rpc_req_recv_active_count, 0, "{counters:?}");
        }
        margo.margo_finalize(client);
        margo.margo_finalize(server);
    }
}

struct State {
    answer: Vec<u8>,
    tell: Sender<Vec<u8>>,
}

unsafe fn register(margo: &Margo, mid: margo_instance_id, name: &str, answers: bool) -> hg_id_t {
    let name = CString::new(name).unwrap();
    // SAFETY: the caller's: an instance; the callbacks stay.
    unsafe {
        let mut pool = ptr::null_mut();
        assert_eq!(margo.margo_get_handler_pool(mid, &mut pool), 0);
        let id = margo.margo_provider_register_name(
            mid,
            name.as_ptr(),
            Some(message),
            Some(message),
            Some(asked),
            MARGO_DEFAULT_PROVIDER_ID,
            pool,
        );
        assert_ne!(id, 0);
        if !answers {
            assert_eq!(margo.margo_registered_disable_response(mid, id, 1), HG_SUCCESS);
        }
        id
    }
}

unsafe fn forward(margo: &Margo, mid: margo_instance_id, peer: hg_addr_t, id: hg_id_t, text: &[u8]) -> hg_handle_t {
    // SAFETY: the caller's; the message is copied before the call returns.
    unsafe {
        let mut handle = ptr::null_mut();
        assert_eq!(margo.margo_create(mid, peer, id, &mut handle), HG_SUCCESS);
        let mut input = Message { encodes: 1, len: text.len() as u64, bytes: text.as_ptr().cast_mut() };
        let (done, outcome): (_, Receiver<hg_return_t>) = channel();
        let uargs = Box::into_raw(Box::new(done)).cast();
        let provider = MARGO_DEFAULT_PROVIDER_ID;
        let input = (&raw mut input).cast();
        let begun = margo.margo_provider_cforward_timed(provider, handle, input, 5000.0, Some(ended), uargs);
        assert_eq!(begun, HG_SUCCESS);
        assert_eq!(outcome.recv_timeout(LIMIT).unwrap(), HG_SUCCESS);
        handle
    }
}

unsafe fn ask(margo: &Margo, mid: margo_instance_id, peer: hg_addr_t, id: hg_id_t, text: &[u8]) -> Vec<u8> {
    // SAFETY: the caller's; the answer is copied before it is freed.
    unsafe {
        let handle = forward(margo, mid, peer, id, text);
        let mut output = Message { encodes: 0, len: 0, bytes: ptr::null_mut() };
        assert_eq!(margo.margo_get_output(handle, (&raw mut output).cast()), HG_SUCCESS);
        let answer = slice::from_raw_parts(output.bytes, output.len as usize).to_vec();
        assert_eq!(margo.margo_free_output(handle, (&raw mut output).cast()), HG_SUCCESS);
        assert_eq!(margo.margo_destroy(handle), HG_SUCCESS);
        answer
    }
}

unsafe fn say(margo: &Margo, mid: margo_instance_id, peer: hg_addr_t, id: hg_id_t, text: &[u8]) {
    // SAFETY: the caller's.
    unsafe { assert_eq!(margo.margo_destroy(forward(margo, mid, peer, id, text)), HG_SUCCESS) };
}

// A panic in one of these aborts, which fails the test as well.

unsafe extern "C" fn ended(uargs: *mut c_void, outcome: hg_return_t) {
    // SAFETY: what the operation was given, once.
    let _ = unsafe { Box::from_raw(uargs.cast::<Sender<hg_return_t>>()) }.send(outcome);
}

unsafe extern "C" fn asked(handle: hg_handle_t) -> hg_return_t {
    let margo = load().unwrap();
    // SAFETY: called by Mercury with a handle that is this call's.
    unsafe {
        assert_eq!(margo.__margo_internal_set_handle_data(handle), HG_SUCCESS);
        let mid = margo.margo_hg_handle_get_instance(handle);
        let mut input = Message { encodes: 0, len: 0, bytes: ptr::null_mut() };
        assert_eq!(margo.margo_get_input(handle, (&raw mut input).cast()), HG_SUCCESS);
        let text = slice::from_raw_parts(input.bytes, input.len as usize).to_vec();
        assert_eq!(margo.margo_free_input(handle, (&raw mut input).cast()), HG_SUCCESS);
        let state = &*margo.margo_registered_data(mid, *ASK.get().unwrap()).cast::<State>();
        if text.ends_with(b"?") {
            let (bytes, len) = (state.answer.as_ptr().cast_mut(), state.answer.len() as u64);
            let mut output = Message { encodes: 1, len, bytes };
            assert_eq!(margo.margo_crespond(handle, (&raw mut output).cast(), None, ptr::null_mut()), HG_SUCCESS);
        }
        state.tell.send(text).unwrap();
        margo.margo_destroy(handle)
    }
}

unsafe extern "C" fn message(position: hg_proc_t, data: *mut c_void) -> hg_return_t {
    let margo = load().unwrap();
    // SAFETY: `data` is a `Message`, as in every call above; positions are those of the message that is made or read.
    unsafe {
        let message = &mut *data.cast::<Message>();
        match message.encodes {
            1 => {
                let size = 8 + message.len;
                let start = margo.hg_proc_save_ptr(position, size);
                start.cast::<[u8; 8]>().write(message.len.to_le_bytes());
                start.cast::<u8>().add(8).copy_from_nonoverlapping(message.bytes, message.len as usize);
                margo.hg_proc_restore_ptr(position, start, size)
            }
            _ if message.bytes.is_null() => {
                let start = margo.hg_proc_save_ptr(position, 8);
                message.len = u64::from_le_bytes(start.cast::<[u8; 8]>().read());
                margo.hg_proc_restore_ptr(position, start, 8);
                assert!(message.len < 1 << 16);
                message.bytes = margo.hg_proc_save_ptr(position, message.len).cast();
                margo.hg_proc_restore_ptr(position, message.bytes.cast(), message.len)
            }
            // It is freed, which is nothing.
            _ => HG_SUCCESS,
        }
    }
}

/// Id of the RPC that is answered.
static ASK: OnceLock<hg_id_t> = OnceLock::new();

const LIMIT: Duration = Duration::from_secs(10);
