//! What came after UCX 1.12: functions that are probed for, and constants that older libraries refuse or ignore.
//!
//! Lines are those of the headers of UCX 1.22.0. A constant says since when; compare [`Ucx::version`](crate::Ucx::version).

#![allow(non_camel_case_types, reason = "names in C")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;

use crate::bindings::{
    ucp_datatype_t, ucp_ep_attr_t as ucp_ep_attr_1_13_t, ucp_mem_h, ucp_rkey_h, ucp_worker_h, ucs_status_t,
};
use crate::symbols::Lookup;

macro_rules! newer {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// Functions of a library, where it has them.
        ///
        /// # Safety
        /// Calling one is as unsafe as calling a method of [`Ucx`](crate::Ucx).
        #[derive(Clone, Copy)]
        pub struct Newer {
            $(
                $(#[$doc])*
                pub $name: Option<unsafe extern "C" fn($($argument: $type),*) $(-> $result)?>,
            )*
        }

        impl Newer {
            /// # Safety
            /// What `lookup` finds under a name is the function of that name of a UCX, and stays.
            pub(crate) unsafe fn find(lookup: Lookup<'_>) -> Self {
                $(
                    const { assert!(size_of::<Option<unsafe extern "C" fn($($type),*) $(-> $result)?>>() == size_of::<*mut c_void>()) }
                    let name = CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()).unwrap_or(c"");
                    let found = lookup(name).unwrap_or(std::ptr::null_mut());
                    // SAFETY: null is `None`; else the caller says that it is this function.
                    let $name = unsafe {
                        std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($type),*) $(-> $result)?>>(found)
                    };
                )*
                Self { $($name,)* }
            }
        }

        impl fmt::Debug for Newer {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct("Newer")$(.field(stringify!($name), &self.$name.is_some()))*.finish()
            }
        }
    };
}

newer! {
    /// `ucp/api/ucp.h:3235`, since 1.14.
    fn ucp_memh_pack(
        memh: ucp_mem_h,
        params: *const ucp_memh_pack_params_t,
        buffer_p: *mut *mut c_void,
        buffer_size_p: *mut usize,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:3275`, since 1.14.
    fn ucp_memh_buffer_release(buffer: *mut c_void, params: *const ucp_memh_buffer_release_params_t);
    /// `ucp/api/ucp.h:4162`, since 1.14.
    fn ucp_dt_query(datatype: ucp_datatype_t, attr: *mut ucp_datatype_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:2317`, since 1.16.
    fn ucp_rkey_compare(
        worker: ucp_worker_h,
        rkey1: ucp_rkey_h,
        rkey2: ucp_rkey_h,
        params: *const ucp_rkey_compare_params_t,
        result: *mut c_int,
    ) -> ucs_status_t;
}

/// `ucp/api/ucp.h:652`, since 1.14: the header of a message may be changed at once. Without it, it must stay until completion.
pub const UCP_AM_SEND_FLAG_COPY_HEADER: c_uint = 1 << 3;
/// `ucp/api/ucp.h:4230`, since 1.14: [`ucp_ep_attr_t::transports`].
pub const UCP_EP_ATTR_FIELD_TRANSPORTS: c_uint = 1 << 3;
/// `ucp/api/ucp.h:4231`, since 1.18: [`ucp_ep_attr_t::user_data`].
pub const UCP_EP_ATTR_FIELD_USER_DATA: c_uint = 1 << 4;
/// `ucp/api/ucp.h:168`, since 1.14.
pub const UCP_FEATURE_EXPORTED_MEMH: c_uint = 1 << 7;
/// `ucp/api/ucp.h:576`, since 1.16.
pub const UCP_MEM_MAP_SYMMETRIC_RKEY: c_uint = 1 << 3;
/// `ucp/api/ucp.h:582`, since 1.18: pages are pinned also where the adapter could fault them in.
pub const UCP_MEM_MAP_LOCK: c_uint = 1 << 4;
/// `ucp/api/ucp_def.h:143`, since 1.21.
pub const UCP_ERR_HANDLING_MODE_FAILOVER: c_uint = 2;
/// `ucp/api/ucp.h:531`, since 1.14.
pub const UCP_DATATYPE_ATTR_FIELD_PACKED_SIZE: c_uint = 1 << 0;
/// `ucp/api/ucp.h:532`, since 1.14.
pub const UCP_DATATYPE_ATTR_FIELD_BUFFER: c_uint = 1 << 1;
/// `ucp/api/ucp.h:533`, since 1.14.
pub const UCP_DATATYPE_ATTR_FIELD_COUNT: c_uint = 1 << 2;
/// `ucp/api/ucp.h:3154`, since 1.14.
pub const UCP_MEMH_PACK_PARAM_FIELD_FLAGS: c_uint = 1 << 0;
/// `ucp/api/ucp.h:3174`, since 1.14.
pub const UCP_MEMH_PACK_FLAG_EXPORT: c_uint = 1 << 0;

/// `ucp/api/ucp.h:4242`, with the fields since 1.14 and 1.18; `ucp_ep_query` takes a pointer to it, cast.
#[repr(C)]
#[allow(missing_debug_implementations, reason = "holds addresses of sockets, which have none")]
pub struct ucp_ep_attr_t {
    /// The fields up to 1.13.
    pub known: ucp_ep_attr_1_13_t,
    /// Array that the caller made, which is filled in.
    pub transports: ucp_transports_t,
    /// What the endpoint was created with.
    pub user_data: *mut c_void,
}

impl Default for ucp_ep_attr_t {
    fn default() -> Self {
        Self { known: Default::default(), transports: Default::default(), user_data: std::ptr::null_mut() }
    }
}

/// `ucp/api/ucp_def.h:862`: names that live as long as the worker.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ucp_transport_entry_t {
    /// As in `UCX_TLS`.
    pub transport_name: *const c_char,
    /// As in `UCX_NET_DEVICES`.
    pub device_name: *const c_char,
}

/// `ucp/api/ucp_def.h:897`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ucp_transports_t {
    /// Where entries are written.
    pub entries: *mut ucp_transport_entry_t,
    /// How many there is room for; afterwards, how many were written.
    pub num_entries: c_uint,
    /// The size of an entry, which lets the library know what the caller knows.
    pub entry_size: usize,
}

impl Default for ucp_transports_t {
    fn default() -> Self {
        Self { entries: std::ptr::null_mut(), num_entries: 0, entry_size: size_of::<ucp_transport_entry_t>() }
    }
}

/// `ucp/api/ucp.h:3186`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ucp_memh_pack_params_t {
    /// Which fields count.
    pub field_mask: u64,
    /// [`UCP_MEMH_PACK_FLAG_EXPORT`].
    pub flags: u64,
}

/// `ucp/api/ucp.h:3248`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ucp_memh_buffer_release_params_t {
    /// Which fields count; there are none yet.
    pub field_mask: u64,
}

/// `ucp/api/ucp.h:1414`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct ucp_rkey_compare_params_t {
    /// Which fields count; there are none yet.
    pub field_mask: u64,
}

/// `ucp/api/ucp.h:1114`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct ucp_datatype_attr_t {
    /// Which fields count.
    pub field_mask: u64,
    /// Written: bytes when packed.
    pub packed_size: usize,
    /// Given: what to pack.
    pub buffer: *const c_void,
    /// Given: how many items.
    pub count: usize,
}

impl Default for ucp_datatype_attr_t {
    fn default() -> Self {
        Self { field_mask: 0, packed_size: 0, buffer: std::ptr::null(), count: 0 }
    }
}
