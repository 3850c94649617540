//! Types and constants of the headers, by their names in C: those of mercury 2.1 to 2.4 and margo 0.19.2 to 0.24, which agree.
//!
//! `struct hg_proc` and what inline functions do with it are not among them: it changes with versions and build options.

#![allow(non_camel_case_types, reason = "names in C")]

use std::ffi::{c_char, c_int, c_uint, c_void};

macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident = $tag:ident;)*) => {
        $(
            #[doc = concat!("What `", stringify!($name), "` points to.")]
            #[repr(C)]
            #[derive(Debug)]
            pub struct $tag {
                _private: [u8; 0],
            }
            $(#[$doc])*
            pub type $name = *mut $tag;
        )*
    };
}

opaque! {
    /// `margo.h:39`: a running Margo.
    margo_instance_id = margo_instance;
    /// `mercury_types.h`: an RPC, at either side.
    hg_handle_t = hg_handle;
    /// `mercury_core_types.h`: an address.
    hg_addr_t = hg_core_addr;
    /// `mercury_types.h`: registered memory, here or at a peer.
    hg_bulk_t = hg_bulk;
    /// `mercury_types.h`: the position in a message that is written or read.
    hg_proc_t = hg_proc;
    /// `abt.h`: a pool of Argobots.
    ABT_pool = ABT_pool_opaque;
}

/// `mercury_types.h`: the class of a running Mercury.
#[repr(C)]
#[derive(Debug)]
pub struct hg_class_t {
    _private: [u8; 0],
}

/// `mercury_core_types.h:156`. Numbers above [`HG_CANCELED`] move between versions: compare the text.
pub type hg_return_t = c_int;
/// `mercury_core_types.h:19`
pub type hg_size_t = u64;
/// `mercury_core_types.h:20`
pub type hg_id_t = u64;
/// `mercury_types.h`: what to do in a bulk transfer.
pub type hg_bulk_op_t = c_uint;
/// `mercury_types.h:91`
pub type hg_rpc_cb_t = Option<unsafe extern "C" fn(handle: hg_handle_t) -> hg_return_t>;
/// `mercury_types.h:95`
pub type hg_proc_cb_t = Option<unsafe extern "C" fn(proc_: hg_proc_t, data: *mut c_void) -> hg_return_t>;
/// `margo.h`: the end of an operation that was begun with a callback; called by the progress loop.
pub type margo_callback_t = Option<unsafe extern "C" fn(uargs: *mut c_void, ret: hg_return_t)>;

/// `mercury_core_types.h:126`
pub const HG_SUCCESS: hg_return_t = 0;
/// `mercury_core_types.h:130`
pub const HG_AGAIN: hg_return_t = 4;
/// `mercury_core_types.h:131`
pub const HG_NOMEM: hg_return_t = 5;
/// `mercury_core_types.h:137`
pub const HG_INVALID_ARG: hg_return_t = 11;
/// `mercury_core_types.h:138`
pub const HG_PROTOCOL_ERROR: hg_return_t = 12;
/// `mercury_core_types.h:139`
pub const HG_OVERFLOW: hg_return_t = 13;
/// `mercury_core_types.h:145`, since mercury 2.1.
pub const HG_HOSTUNREACH: hg_return_t = 19;
/// `mercury_core_types.h:146`, since mercury 2.1. Margo says it of operations that were cancelled, too.
pub const HG_TIMEOUT: hg_return_t = 20;
/// `mercury_core_types.h:147`, since mercury 2.1.
pub const HG_CANCELED: hg_return_t = 21;

/// `mercury_types.h:54`
pub const HG_BULK_PUSH: hg_bulk_op_t = 0;
/// `mercury_types.h:55`
pub const HG_BULK_PULL: hg_bulk_op_t = 1;
/// `mercury_bulk.h:24`: peers may read.
pub const HG_BULK_READ_ONLY: u8 = 1;
/// `mercury_bulk.h:25`: peers may write; or, of memory whose descriptor no peer ever gets, this process pulls into it.
pub const HG_BULK_WRITE_ONLY: u8 = 2;

/// `margo.h:79`
pub const MARGO_CLIENT_MODE: c_int = 0;
/// `margo.h:84`
pub const MARGO_SERVER_MODE: c_int = 1;
/// `margo.h:96`
pub const MARGO_DEFAULT_PROVIDER_ID: u16 = 0xffff;

/// `margo-logging.h:47`
pub const MARGO_LOG_ERROR: c_uint = 5;
/// `margo-logging.h:48`
pub const MARGO_LOG_CRITICAL: c_uint = 6;

/// `abt.h`
pub const ABT_SUCCESS: c_int = 0;

/// The beginning of `struct margo_init_info` (`margo.h:112`), and more room than any version has fields: all that follows
/// `json_config` is null, which means the default.
#[repr(C)]
#[derive(Debug)]
pub struct margo_init_info {
    /// JSON that configures the instance.
    pub json_config: *const c_char,
    /// Null.
    pub rest: [*const c_void; 31],
}

/// `na_types.h:128`: a protocol that Mercury offers.
#[repr(C)]
#[derive(Debug)]
pub struct na_protocol_info {
    /// The next one, or null.
    pub next: *mut na_protocol_info,
    /// Plugin, such as `ofi`.
    pub class_name: *const c_char,
    /// Such as `tcp`.
    pub protocol_name: *const c_char,
    /// Device that it was found on, such as `eth0`.
    pub device_name: *const c_char,
}

/// `mercury_core_types.h:194`
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
#[allow(missing_docs, reason = "each is said in the header, and by its name")]
pub struct hg_diag_counters {
    pub rpc_req_sent_count: u64,
    pub rpc_req_recv_count: u64,
    pub rpc_resp_sent_count: u64,
    pub rpc_resp_recv_count: u64,
    pub rpc_req_extra_count: u64,
    pub rpc_resp_extra_count: u64,
    pub rpc_req_recv_active_count: u64,
    pub rpc_multi_recv_copy_count: u64,
    pub bulk_count: u64,
    /// For the fields of newer versions.
    pub room: [u64; 16],
}
