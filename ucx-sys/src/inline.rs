//! What the headers define inline or as macros, which no library exports. Lines are those of UCX 1.13.1.

use std::ffi::{c_int, c_uint, c_void};

use crate::bindings::*;
use crate::library::Ucx;

impl Ucx {
    /// `ucp/api/ucp.h:1993`: [`ucp_init_version`](Ucx::ucp_init_version) with the version of these declarations.
    ///
    /// # Safety
    /// As of that function.
    #[inline]
    pub unsafe fn ucp_init(
        &self,
        params: *const ucp_params_t,
        config: *const ucp_config_t,
        context_p: *mut ucp_context_h,
    ) -> ucs_status_t {
        // SAFETY: the caller's, for the same arguments.
        unsafe { self.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, params, config, context_p) }
    }
}

/// `ucp/api/ucp_version.h:10`: a version as one number that can be compared.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub const fn UCP_VERSION(major: c_uint, minor: c_uint) -> c_uint {
    (major << UCP_VERSION_MAJOR_SHIFT) | (minor << UCP_VERSION_MINOR_SHIFT)
}

/// `ucp/api/ucp_version.h:22`: the version of these declarations.
pub const UCP_API_VERSION: c_uint = UCP_VERSION(UCP_API_MAJOR, UCP_API_MINOR);

/// `ucp/api/ucp.h:811`: items of `elem_size` bytes, one after another.
#[inline]
pub const fn ucp_dt_make_contig(elem_size: usize) -> ucp_datatype_t {
    ((elem_size as ucp_datatype_t) << UCP_DATATYPE_SHIFT) | UCP_DATATYPE_CONTIG as ucp_datatype_t
}

/// `ucp/api/ucp.h:828`: an array of [`ucp_dt_iov_t`].
#[inline]
pub const fn ucp_dt_make_iov() -> ucp_datatype_t {
    UCP_DATATYPE_IOV as ucp_datatype_t
}

/// `ucs/type/status.h:89`.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub const fn UCS_IS_LINK_ERROR(status: ucs_status_t) -> bool {
    status <= UCS_ERR_FIRST_LINK_FAILURE && status >= UCS_ERR_LAST_LINK_FAILURE
}

/// `ucs/type/status.h:93`.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub const fn UCS_IS_ENDPOINT_ERROR(status: ucs_status_t) -> bool {
    status <= UCS_ERR_FIRST_ENDPOINT_FAILURE && status >= UCS_ERR_LAST_ENDPOINT_FAILURE
}

/// The address from which on, upwards, a pointer is a status: `UCS_ERR_LAST` widened with its sign.
const ERRORS: usize = UCS_ERR_LAST as isize as usize;

/// `ucs/type/status.h:108`: whether an operation failed at once.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub fn UCS_PTR_IS_ERR(ptr: ucs_status_ptr_t) -> bool {
    ptr.addr() >= ERRORS
}

/// `ucs/type/status.h:109`: whether an operation goes on, and this is its request.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub fn UCS_PTR_IS_PTR(ptr: ucs_status_ptr_t) -> bool {
    ptr.addr().wrapping_sub(1) < ERRORS - 1
}

/// `ucs/type/status.h:110`: the status in a pointer that is no request.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub fn UCS_PTR_RAW_STATUS(ptr: ucs_status_ptr_t) -> ucs_status_t {
    ptr.addr() as ucs_status_t
}

/// `ucs/type/status.h:111`: `UCS_INPROGRESS` for a request, else the status.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub fn UCS_PTR_STATUS(ptr: ucs_status_ptr_t) -> ucs_status_t {
    if UCS_PTR_IS_PTR(ptr) { UCS_INPROGRESS } else { UCS_PTR_RAW_STATUS(ptr) }
}

/// `ucs/type/status.h:112`: a status as a pointer.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub fn UCS_STATUS_PTR(status: ucs_status_t) -> ucs_status_ptr_t {
    std::ptr::without_provenance_mut::<c_void>(status as isize as usize)
}

/// `ucs/type/status.h:113`.
#[allow(non_snake_case, reason = "the name in C")]
#[inline]
pub const fn UCS_STATUS_IS_ERR(status: ucs_status_t) -> bool {
    (status as c_int) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pointers_are_requests_or_statuses() {
        let request = std::ptr::without_provenance_mut(0x7f00_1234_5678);
        for (pointer, is_request, is_error, status) in [
            (std::ptr::null_mut(), false, false, UCS_OK),
            (UCS_STATUS_PTR(UCS_INPROGRESS), true, false, UCS_INPROGRESS),
            (request, true, false, UCS_INPROGRESS),
            (UCS_STATUS_PTR(UCS_ERR_NO_MESSAGE), false, true, UCS_ERR_NO_MESSAGE),
            (UCS_STATUS_PTR(UCS_ERR_LAST), false, true, UCS_ERR_LAST),
            (UCS_STATUS_PTR(UCS_ERR_LAST - 1), true, false, UCS_INPROGRESS),
        ] {
            assert_eq!(UCS_PTR_IS_PTR(pointer), is_request, "{pointer:?}");
            assert_eq!(UCS_PTR_IS_ERR(pointer), is_error, "{pointer:?}");
            assert_eq!(UCS_PTR_STATUS(pointer), status, "{pointer:?}");
        }
    }
}
