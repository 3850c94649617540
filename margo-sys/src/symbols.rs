//! The functions of the libraries as a table of pointers, filled once.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use crate::declarations::*;
use crate::library::Margo;

/// Finds a function by its name.
pub(crate) type Lookup<'a> = &'a dyn Fn(&'static CStr) -> Option<*mut c_void>;

/// For each function: its pointer in [`Symbols`], and a method of [`Margo`] that calls it. Optional ones are `None` where the
/// library lacks them.
macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*
     optional: $($(#[$odoc:meta])* fn $oname:ident($($oargument:ident: $otype:ty),* $(,)?) $(-> $oresult:ty)?;)*) => {
        #[allow(non_snake_case, reason = "names in C")]
        pub(crate) struct Symbols {
            $(pub(crate) $name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
            $(pub(crate) $oname: Option<unsafe extern "C" fn($($otype),*) $(-> $oresult)?>,)*
        }

        impl Symbols {
            /// # Errors
            /// The names that `lookup` did not find.
            ///
            /// # Safety
            /// What `lookup` finds under a name is the function of that name of Margo, Mercury or Argobots, and stays.
            #[allow(non_snake_case, reason = "names in C")]
            pub(crate) unsafe fn find(lookup: Lookup<'_>) -> Result<Self, Vec<&'static CStr>> {
                let mut missing = Vec::new();
                $(let $name = name!($name, lookup).unwrap_or_else(|name| {
                    missing.push(name);
                    std::ptr::null_mut()
                });)*
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Self {
                    // SAFETY: not null; the caller says that it is this function, whose type all versions agree on.
                    $($name: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $result)?>($name) },)*
                    $($oname: {
                        let found = name!($oname, lookup).unwrap_or(std::ptr::null_mut());
                        // SAFETY: null is `None`; else the caller says that it is this function.
                        unsafe { std::mem::transmute::<*mut c_void, Option<unsafe extern "C" fn($($otype),*) $(-> $oresult)?>>(found) }
                    },)*
                })
            }
        }

        impl Margo {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The contract is the comment in the header. Handles are alive and came from this library, and memory stays valid
                /// until the operation that was given it has completed.
                #[allow(clippy::too_many_arguments, reason = "the declaration in C")]
                #[allow(non_snake_case, reason = "names in C")]
                #[inline]
                pub unsafe fn $name(&self, $($argument: $type),*) $(-> $result)? {
                    // SAFETY: the caller's, for the same arguments.
                    unsafe { (self.symbols.$name)($($argument),*) }
                }
            )*
        }
    };
}

macro_rules! name {
    ($name:ident, $lookup:ident) => {{
        const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => panic!("a name with a zero byte"),
        };
        $lookup(NAME).filter(|found| !found.is_null()).ok_or(NAME)
    }};
}

// Lines are those of margo 0.24.0 and mercury 2.4.1.
functions! {
    /// `margo.h`; [`Margo::start`] checks what it made of its argument.
    fn margo_init_ext(address: *const c_char, mode: c_int, args: *const margo_init_info) -> margo_instance_id;
    /// `margo.h`: ends an instance; blocks, normally 0.1 s.
    fn margo_finalize(mid: margo_instance_id);
    /// `margo.h`
    fn margo_get_class(mid: margo_instance_id) -> *mut hg_class_t;
    /// `margo.h`
    fn margo_get_progress_timeout_ub_msec(mid: margo_instance_id, timeout: *mut c_uint) -> c_int;
    /// `margo-logging.h:86`
    fn margo_set_log_level(mid: margo_instance_id, level: c_uint) -> c_int;
    /// `margo.h`
    fn margo_addr_self(mid: margo_instance_id, addr: *mut hg_addr_t) -> hg_return_t;
    /// `margo.h`
    fn margo_addr_lookup(mid: margo_instance_id, name: *const c_char, addr: *mut hg_addr_t) -> hg_return_t;
    /// `margo.h:995`
    fn margo_addr_to_string(
        mid: margo_instance_id,
        buffer: *mut c_char,
        size: *mut hg_size_t,
        addr: hg_addr_t,
    ) -> hg_return_t;
    /// `margo.h`
    fn margo_addr_free(mid: margo_instance_id, addr: hg_addr_t) -> hg_return_t;
    /// `margo.h`: makes an RPC known. `margo_register_name` takes another provider id than forwarding does; this one says it.
    fn margo_provider_register_name(
        mid: margo_instance_id,
        name: *const c_char,
        in_proc: hg_proc_cb_t,
        out_proc: hg_proc_cb_t,
        rpc: hg_rpc_cb_t,
        provider_id: u16,
        pool: ABT_pool,
    ) -> hg_id_t;
    /// `margo.h`
    fn margo_get_handler_pool(mid: margo_instance_id, pool: *mut ABT_pool) -> c_int;
    /// `margo.h:772`
    fn margo_register_data(
        mid: margo_instance_id,
        id: hg_id_t,
        data: *mut c_void,
        free: Option<unsafe extern "C" fn(*mut c_void)>,
    ) -> hg_return_t;
    /// `margo.h:786`
    fn margo_registered_data(mid: margo_instance_id, id: hg_id_t) -> *mut c_void;
    /// `margo.h:895`
    fn margo_registered_disable_response(mid: margo_instance_id, id: hg_id_t, disable: c_int) -> hg_return_t;
    /// `margo.h`
    fn margo_create(mid: margo_instance_id, addr: hg_addr_t, id: hg_id_t, handle: *mut hg_handle_t) -> hg_return_t;
    /// `margo.h`
    fn margo_destroy(handle: hg_handle_t) -> hg_return_t;
    /// `margo.h`: asks, and waits.
    fn margo_provider_forward_timed(
        provider_id: u16,
        handle: hg_handle_t,
        input: *mut c_void,
        timeout_ms: f64,
    ) -> hg_return_t;
    /// `margo.h:1155`: asks; the input is copied before it returns. Since margo 0.13.
    fn margo_provider_cforward_timed(
        provider_id: u16,
        handle: hg_handle_t,
        input: *mut c_void,
        timeout_ms: f64,
        on_complete: margo_callback_t,
        uargs: *mut c_void,
    ) -> hg_return_t;
    /// `margo.h:1476`: answers; the output is copied before it returns. Since margo 0.19.2.
    fn margo_crespond(
        handle: hg_handle_t,
        output: *mut c_void,
        on_complete: margo_callback_t,
        uargs: *mut c_void,
    ) -> hg_return_t;
    /// `margo.h`
    fn margo_get_input(handle: hg_handle_t, input: *mut c_void) -> hg_return_t;
    /// `margo.h`
    fn margo_free_input(handle: hg_handle_t, input: *mut c_void) -> hg_return_t;
    /// `margo.h`
    fn margo_get_output(handle: hg_handle_t, output: *mut c_void) -> hg_return_t;
    /// `margo.h`
    fn margo_free_output(handle: hg_handle_t, output: *mut c_void) -> hg_return_t;
    /// `margo.h:1521`
    fn margo_bulk_create(
        mid: margo_instance_id,
        count: u32,
        buffers: *mut *mut c_void,
        sizes: *const hg_size_t,
        flags: u8,
        handle: *mut hg_bulk_t,
    ) -> hg_return_t;
    /// `margo.h`. It takes no right away from a peer that has a descriptor, on na+sm and ucx+tcp.
    fn margo_bulk_free(handle: hg_bulk_t) -> hg_return_t;
    /// `margo.h`: moves bytes, and waits.
    fn margo_bulk_transfer_timed(
        mid: margo_instance_id,
        op: hg_bulk_op_t,
        peer: hg_addr_t,
        theirs: hg_bulk_t,
        their_offset: usize,
        ours: hg_bulk_t,
        our_offset: usize,
        size: usize,
        timeout_ms: f64,
    ) -> hg_return_t;
    /// `margo.h:1807`. The timeout asks the mechanism to give up, and some cannot: no bound. Since margo 0.19.2.
    fn margo_bulk_ctransfer_timed(
        mid: margo_instance_id,
        op: hg_bulk_op_t,
        peer: hg_addr_t,
        theirs: hg_bulk_t,
        their_offset: usize,
        ours: hg_bulk_t,
        our_offset: usize,
        size: usize,
        timeout_ms: f64,
        on_complete: margo_callback_t,
        uargs: *mut c_void,
    ) -> hg_return_t;
    /// `margo.h`: the instance of an RPC; after [`__margo_internal_set_handle_data`](Self::__margo_internal_set_handle_data).
    fn margo_hg_handle_get_instance(handle: hg_handle_t) -> margo_instance_id;
    /// `margo.h`: what the macro of RPC handlers calls first, and a handler of our own has to.
    fn __margo_internal_set_handle_data(handle: hg_handle_t) -> hg_return_t;

    /// `mercury.h:49`
    fn HG_Version_get(major: *mut c_uint, minor: *mut c_uint, patch: *mut c_uint) -> hg_return_t;
    /// `mercury.h:60`
    fn HG_Error_to_string(error: hg_return_t) -> *const c_char;
    /// `mercury.h`: asks for the end of an RPC, which is told by its callback, later.
    fn HG_Cancel(handle: hg_handle_t) -> hg_return_t;
    /// `mercury_bulk.h:217`
    fn HG_Bulk_get_serialize_size(handle: hg_bulk_t, flags: std::ffi::c_ulong) -> hg_size_t;
    /// `mercury_bulk.h:231`. With flags 0 it is for instances without `auto_sm` alone: there others crash.
    fn HG_Bulk_serialize(
        buffer: *mut c_void,
        size: hg_size_t,
        flags: std::ffi::c_ulong,
        handle: hg_bulk_t,
    ) -> hg_return_t;
    /// `mercury_bulk.h:245`
    fn HG_Bulk_deserialize(
        class: *mut hg_class_t,
        handle: *mut hg_bulk_t,
        buffer: *const c_void,
        size: hg_size_t,
    ) -> hg_return_t;
    /// `mercury_proc.h:352`. When it reads, it makes the message longer rather than fail: check the length before.
    fn hg_proc_save_ptr(proc_: hg_proc_t, size: hg_size_t) -> *mut c_void;
    /// `mercury_proc.h:364`
    fn hg_proc_restore_ptr(proc_: hg_proc_t, data: *mut c_void, size: hg_size_t) -> hg_return_t;

    /// `abt.h:2314`; [`Margo::start`] does it, with what it needs in the environment.
    fn ABT_init(argc: c_int, argv: *mut *mut c_char) -> c_int;

    optional:
    /// `mercury_core.h`, since mercury 2.2.
    fn HG_Core_get_na_protocol_info(info: *const c_char, list: *mut *mut na_protocol_info) -> hg_return_t;
    /// `mercury_core.h`, since mercury 2.2.
    fn HG_Core_free_na_protocol_info(list: *mut na_protocol_info);
    /// `mercury.h:318`, since mercury 2.4.
    fn HG_Class_get_counters(class: *const hg_class_t, counters: *mut hg_diag_counters) -> hg_return_t;
    /// `mercury.h:163`
    fn HG_Set_log_level(level: *const c_char);
}
