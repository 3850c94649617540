// Generated from the headers of UCX 1.13; see scripts/regenerate.

functions! {
    /// `ucs/type/status.h`
    fn ucs_status_string(status: ucs_status_t) -> *const c_char;
    /// `ucp/api/ucp.h:1838`
    fn ucp_lib_query(attr: *mut ucp_lib_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:1867`
    fn ucp_config_read(
        env_prefix: *const c_char,
        filename: *const c_char,
        config_p: *mut *mut ucp_config_t,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:1881`
    fn ucp_config_release(config: *mut ucp_config_t);
    /// `ucp/api/ucp.h:1897`
    fn ucp_config_modify(config: *mut ucp_config_t, name: *const c_char, value: *const c_char) -> ucs_status_t;
    /// `ucp/api/ucp.h:1916`
    fn ucp_config_print(
        config: *const ucp_config_t,
        stream: *mut FILE,
        title: *const c_char,
        print_flags: ucs_config_print_flags_t,
    );
    /// `ucp/api/ucp.h:1930`
    fn ucp_get_version(major_version: *mut c_uint, minor_version: *mut c_uint, release_number: *mut c_uint);
    /// `ucp/api/ucp.h:1941`
    fn ucp_get_version_string() -> *const c_char;
    /// `ucp/api/ucp.h:1952`
    fn ucp_init_version(
        api_major_version: c_uint,
        api_minor_version: c_uint,
        params: *const ucp_params_t,
        config: *const ucp_config_t,
        context_p: *mut ucp_context_h,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2019`
    fn ucp_cleanup(context_p: ucp_context_h);
    /// `ucp/api/ucp.h:2035`
    fn ucp_context_query(context_p: ucp_context_h, attr: *mut ucp_context_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:2050`
    fn ucp_context_print_info(context: ucp_context_h, stream: *mut FILE);
    /// `ucp/api/ucp.h:2076`
    fn ucp_worker_create(
        context: ucp_context_h,
        params: *const ucp_worker_params_t,
        worker_p: *mut ucp_worker_h,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2096`
    fn ucp_worker_destroy(worker: ucp_worker_h);
    /// `ucp/api/ucp.h:2110`
    fn ucp_worker_query(worker: ucp_worker_h, attr: *mut ucp_worker_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:2124`
    fn ucp_worker_print_info(worker: ucp_worker_h, stream: *mut FILE);
    /// `ucp/api/ucp.h:2143`
    fn ucp_worker_get_address(
        worker: ucp_worker_h,
        address_p: *mut *mut ucp_address_t,
        address_length_p: *mut usize,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2167`
    fn ucp_worker_release_address(worker: ucp_worker_h, address: *mut ucp_address_t);
    /// `ucp/api/ucp.h:2182`
    fn ucp_worker_address_query(address: *mut ucp_address_t, attr: *mut ucp_worker_address_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:2205`
    fn ucp_worker_progress(worker: ucp_worker_h) -> c_uint;
    /// `ucp/api/ucp.h:2228`
    fn ucp_stream_worker_poll(
        worker: ucp_worker_h,
        poll_eps: *mut ucp_stream_poll_ep_t,
        max_eps: usize,
        flags: c_uint,
    ) -> isize;
    /// `ucp/api/ucp.h:2263`
    fn ucp_worker_get_efd(worker: ucp_worker_h, fd: *mut c_int) -> ucs_status_t;
    /// `ucp/api/ucp.h:2294`
    fn ucp_worker_wait(worker: ucp_worker_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:2320`
    fn ucp_worker_wait_mem(worker: ucp_worker_h, address: *mut c_void);
    /// `ucp/api/ucp.h:2392`
    fn ucp_worker_arm(worker: ucp_worker_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:2413`
    fn ucp_worker_signal(worker: ucp_worker_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:2441`
    fn ucp_listener_create(
        worker: ucp_worker_h,
        params: *const ucp_listener_params_t,
        listener_p: *mut ucp_listener_h,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2455`
    fn ucp_listener_destroy(listener: ucp_listener_h);
    /// `ucp/api/ucp.h:2469`
    fn ucp_listener_query(listener: ucp_listener_h, attr: *mut ucp_listener_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:2484`
    fn ucp_conn_request_query(
        conn_request: ucp_conn_request_h,
        attr: *mut ucp_conn_request_attr_t,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2497`
    fn ucp_request_query(request: *mut c_void, attr: *mut ucp_request_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:2532`
    fn ucp_ep_create(worker: ucp_worker_h, params: *const ucp_ep_params_t, ep_p: *mut ucp_ep_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:2587`
    fn ucp_ep_close_nbx(ep: ucp_ep_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:2607`
    fn ucp_listener_reject(listener: ucp_listener_h, conn_request: ucp_conn_request_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:2621`
    fn ucp_ep_print_info(ep: ucp_ep_h, stream: *mut FILE);
    /// `ucp/api/ucp.h:2702`
    fn ucp_ep_flush_nbx(ep: ucp_ep_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:2718`
    fn ucp_ep_evaluate_perf(
        ep: ucp_ep_h,
        param: *const ucp_ep_evaluate_perf_param_t,
        attr: *mut ucp_ep_evaluate_perf_attr_t,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2797`
    fn ucp_mem_map(
        context: ucp_context_h,
        params: *const ucp_mem_map_params_t,
        memh_p: *mut ucp_mem_h,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2828`
    fn ucp_mem_unmap(context: ucp_context_h, memh: ucp_mem_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:2844`
    fn ucp_mem_query(memh: ucp_mem_h, attr: *mut ucp_mem_attr_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:2859`
    fn ucp_mem_print_info(mem_size: *const c_char, context: ucp_context_h, stream: *mut FILE);
    /// `ucp/api/ucp.h:2930`
    fn ucp_mem_advise(
        context: ucp_context_h,
        memh: ucp_mem_h,
        params: *mut ucp_mem_advise_params_t,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2964`
    fn ucp_rkey_pack(
        context: ucp_context_h,
        memh: ucp_mem_h,
        rkey_buffer_p: *mut *mut c_void,
        size_p: *mut usize,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:2984`
    fn ucp_rkey_buffer_release(rkey_buffer: *mut c_void);
    /// `ucp/api/ucp.h:3009`
    fn ucp_ep_rkey_unpack(ep: ucp_ep_h, rkey_buffer: *const c_void, rkey_p: *mut ucp_rkey_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:3032`
    fn ucp_rkey_ptr(rkey: ucp_rkey_h, raddr: u64, addr_p: *mut *mut c_void) -> ucs_status_t;
    /// `ucp/api/ucp.h:3056`
    fn ucp_rkey_destroy(rkey: ucp_rkey_h);
    /// `ucp/api/ucp.h:3109`
    fn ucp_worker_set_am_recv_handler(worker: ucp_worker_h, param: *const ucp_am_handler_param_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:3189`
    fn ucp_am_send_nbx(
        ep: ucp_ep_h,
        id: c_uint,
        header: *const c_void,
        header_length: usize,
        buffer: *const c_void,
        count: usize,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3241`
    fn ucp_am_recv_data_nbx(
        worker: ucp_worker_h,
        data_desc: *mut c_void,
        buffer: *mut c_void,
        count: usize,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3258`
    fn ucp_am_data_release(worker: ucp_worker_h, data: *mut c_void);
    /// `ucp/api/ucp.h:3330`
    fn ucp_stream_send_nbx(
        ep: ucp_ep_h,
        buffer: *const c_void,
        count: usize,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3533`
    fn ucp_tag_send_nbx(
        ep: ucp_ep_h,
        buffer: *const c_void,
        count: usize,
        tag: ucp_tag_t,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3565`
    fn ucp_tag_send_sync_nbx(
        ep: ucp_ep_h,
        buffer: *const c_void,
        count: usize,
        tag: ucp_tag_t,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3652`
    fn ucp_stream_recv_nbx(
        ep: ucp_ep_h,
        buffer: *mut c_void,
        count: usize,
        length: *mut usize,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3689`
    fn ucp_stream_recv_data_nb(ep: ucp_ep_h, length: *mut usize) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3806`
    fn ucp_tag_recv_nbx(
        worker: ucp_worker_h,
        buffer: *mut c_void,
        count: usize,
        tag: ucp_tag_t,
        tag_mask: ucp_tag_t,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:3851`
    fn ucp_tag_probe_nb(
        worker: ucp_worker_h,
        tag: ucp_tag_t,
        tag_mask: ucp_tag_t,
        remove: c_int,
        info: *mut ucp_tag_recv_info_t,
    ) -> ucp_tag_message_h;
    /// `ucp/api/ucp.h:3925`
    fn ucp_tag_msg_recv_nbx(
        worker: ucp_worker_h,
        buffer: *mut c_void,
        count: usize,
        message: ucp_tag_message_h,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:4056`
    fn ucp_put_nbx(
        ep: ucp_ep_h,
        buffer: *const c_void,
        count: usize,
        remote_addr: u64,
        rkey: ucp_rkey_h,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:4182`
    fn ucp_get_nbx(
        ep: ucp_ep_h,
        buffer: *mut c_void,
        count: usize,
        remote_addr: u64,
        rkey: ucp_rkey_h,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:4332`
    fn ucp_atomic_op_nbx(
        ep: ucp_ep_h,
        opcode: ucp_atomic_op_t,
        buffer: *const c_void,
        count: usize,
        remote_addr: u64,
        rkey: ucp_rkey_h,
        param: *const ucp_request_param_t,
    ) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:4349`
    fn ucp_request_check_status(request: *mut c_void) -> ucs_status_t;
    /// `ucp/api/ucp.h:4368`
    fn ucp_tag_recv_request_test(request: *mut c_void, info: *mut ucp_tag_recv_info_t) -> ucs_status_t;
    /// `ucp/api/ucp.h:4388`
    fn ucp_stream_recv_request_test(request: *mut c_void, length_p: *mut usize) -> ucs_status_t;
    /// `ucp/api/ucp.h:4409`
    fn ucp_request_cancel(worker: ucp_worker_h, request: *mut c_void);
    /// `ucp/api/ucp.h:4424`
    fn ucp_stream_data_release(ep: ucp_ep_h, data: *mut c_void);
    /// `ucp/api/ucp.h:4438`
    fn ucp_request_free(request: *mut c_void);
    /// `ucp/api/ucp.h:4479`
    fn ucp_dt_create_generic(
        ops: *const ucp_generic_dt_ops_t,
        context: *mut c_void,
        datatype_p: *mut ucp_datatype_t,
    ) -> ucs_status_t;
    /// `ucp/api/ucp.h:4498`
    fn ucp_dt_destroy(datatype: ucp_datatype_t);
    /// `ucp/api/ucp.h:4523`
    fn ucp_worker_fence(worker: ucp_worker_h) -> ucs_status_t;
    /// `ucp/api/ucp.h:4584`
    fn ucp_worker_flush_nbx(worker: ucp_worker_h, param: *const ucp_request_param_t) -> ucs_status_ptr_t;
    /// `ucp/api/ucp.h:4653`
    fn ucp_ep_query(ep: ucp_ep_h, attr: *mut ucp_ep_attr_t) -> ucs_status_t;
    /// `ucs/debug/debug.h`
    fn ucs_debug_disable_signal(signum: c_int);
}
