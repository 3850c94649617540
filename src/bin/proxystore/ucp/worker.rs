//! `Context`, `Memory`, `Worker`: what UCX is asked for, each with its parent.

use std::ffi::{c_uint, c_void};
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ucx_sys::*;

use super::settings::Settings;

pub(super) struct Context {
    pub(super) ucx: &'static Ucx,
    pub(super) handle: ucp_context_h,
}

impl Context {
    pub(super) fn new(settings: &Settings) -> io::Result<Rc<Self>> {
        let ucx = load().map_err(io::Error::other)?;
        let fetched = if settings.one_sided { UCP_FEATURE_RMA } else { 0 };
        let params = ucp_params_t {
            field_mask: u64::from(UCP_PARAM_FIELD_FEATURES),
            features: u64::from(UCP_FEATURE_AM | UCP_FEATURE_WAKEUP | fetched),
            ..Default::default()
        };
        let (mut config, mut handle) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the pointers are good for the time of each call; the configuration is released once.
        unsafe {
            check(ucx, ucx.ucp_config_read(ptr::null(), ptr::null(), &mut config))?;
            let modified = settings
                .of_version(ucx.version())
                .iter()
                .try_for_each(|(name, value)| check(ucx, ucx.ucp_config_modify(config, name.as_ptr(), value.as_ptr())));
            let made = modified.and_then(|()| check(ucx, ucx.ucp_init(&params, config, &mut handle)));
            ucx.ucp_config_release(config);
            made?;
        }
        Ok(Rc::new(Self { ucx, handle }))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made in `new`; all that was made of it holds it.
        unsafe { self.ucx.ucp_cleanup(self.handle) };
    }
}

/// Registered memory, written to once.
pub(super) struct Memory {
    lines: Vec<Line>,
    len: usize,
    pub(super) handle: ucp_mem_h,
    context: Rc<Context>,
}

/// Memory of objects is aligned so.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl Memory {
    /// Memory of `len` bytes, at least one, filled with copies of `content`.
    pub(super) fn new(context: &Rc<Context>, len: usize, content: &[u8]) -> io::Result<Self> {
        let mut lines = vec![Line([7; 64]); len.div_ceil(64).max(1)];
        let bytes = lines.as_mut_ptr().cast::<u8>();
        for begin in (0..len).step_by(content.len().max(1)) {
            let count = content.len().min(len - begin);
            // SAFETY: within `lines`, which is not shorter than `len`.
            unsafe { ptr::copy_nonoverlapping(content.as_ptr(), bytes.add(begin), count) };
        }
        let params = ucp_mem_map_params_t {
            field_mask: u64::from(UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH),
            address: bytes.cast(),
            length: lines.len() * 64,
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the memory is this object's and stays where it is until it is unmapped.
        check(context.ucx, unsafe { context.ucx.ucp_mem_map(context.handle, &params, &mut handle) })?;
        Ok(Self { lines, len, handle, context: Rc::clone(context) })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn address(&self) -> *mut u8 {
        self.lines.as_ptr().cast_mut().cast()
    }

    /// The packed key that lets others fetch from it.
    pub(super) fn key(&self) -> io::Result<Vec<u8>> {
        let ucx = self.context.ucx;
        let (mut key, mut len) = (ptr::null_mut(), 0);
        // SAFETY: registered with this context; the buffer is copied and released.
        unsafe {
            check(ucx, ucx.ucp_rkey_pack(self.context.handle, self.handle, &mut key, &mut len))?;
            let bytes = std::slice::from_raw_parts(key.cast::<u8>(), len).to_vec();
            ucx.ucp_rkey_buffer_release(key);
            Ok(bytes)
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: registered in `new`; who uses it lets go of it after the operations have ended.
        let _ = unsafe { self.context.ucx.ucp_mem_unmap(self.context.handle, self.handle) };
    }
}

/// What callbacks are given a pointer to. A field behind the worker that calls them, so that it ends after that.
pub(super) struct Shared<T>(*mut T);

impl<T> Shared<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Box::into_raw(Box::new(value)))
    }

    pub(super) fn as_ptr(&self) -> *mut T {
        self.0
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: of a box, and given back once.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// Used by the thread that made it.
pub(super) struct Worker {
    pub(super) ucx: &'static Ucx,
    pub(super) handle: ucp_worker_h,
    events: BorrowedFd<'static>,
    _context: Rc<Context>,
}

impl Worker {
    pub(super) fn new(context: &Rc<Context>) -> io::Result<Self> {
        let ucx = context.ucx;
        let params = ucp_worker_params_t {
            field_mask: u64::from(UCP_WORKER_PARAM_FIELD_THREAD_MODE),
            thread_mode: UCS_THREAD_MODE_SINGLE,
            ..Default::default()
        };
        let (mut handle, mut fd) = (ptr::null_mut(), -1);
        // SAFETY: the context lives as long as the worker; the descriptor is the worker's and closed by it.
        unsafe {
            check(ucx, ucx.ucp_worker_create(context.handle, &params, &mut handle))?;
            if let Err(error) = check(ucx, ucx.ucp_worker_get_efd(handle, &mut fd)) {
                ucx.ucp_worker_destroy(handle);
                return Err(error);
            }
            Ok(Self { ucx, handle, events: BorrowedFd::borrow_raw(fd), _context: Rc::clone(context) })
        }
    }

    pub(super) fn address(&self) -> io::Result<Vec<u8>> {
        let (mut address, mut len) = (ptr::null_mut(), 0);
        // SAFETY: the address is copied and released.
        unsafe {
            check(self.ucx, self.ucx.ucp_worker_get_address(self.handle, &mut address, &mut len))?;
            let bytes = std::slice::from_raw_parts(address.cast::<u8>(), len).to_vec();
            self.ucx.ucp_worker_release_address(self.handle, address);
            Ok(bytes)
        }
    }

    /// Has messages of a number handled.
    ///
    /// # Safety
    /// `argument` is what `handler` expects, for as long as the worker lives, and nobody else uses it while the worker progresses.
    pub(super) unsafe fn handle(
        &self,
        id: c_uint,
        handler: ucp_am_recv_callback_t,
        argument: *mut c_void,
    ) -> io::Result<()> {
        let params = ucp_am_handler_param_t {
            field_mask: u64::from(
                UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB | UCP_AM_HANDLER_PARAM_FIELD_ARG,
            ),
            id,
            cb: handler,
            arg: argument,
            ..Default::default()
        };
        // SAFETY: the caller's.
        check(self.ucx, unsafe { self.ucx.ucp_worker_set_am_recv_handler(self.handle, &params) })
    }

    /// Progresses until `is_done`, which is asked after each turn; without progress for the time that `spin` gives it sleeps.
    pub(super) fn progress_until(
        &self,
        mut spin: impl FnMut() -> Duration,
        mut is_done: impl FnMut() -> bool,
    ) -> io::Result<()> {
        let mut idle = None;
        while !is_done() {
            // SAFETY: the thread that made it, and not within a handler.
            if unsafe { self.ucx.ucp_worker_progress(self.handle) } != 0 {
                idle = None;
                continue;
            }
            if idle.get_or_insert_with(Instant::now).elapsed() < spin() {
                continue;
            }
            // SAFETY: as above.
            match unsafe { self.ucx.ucp_worker_arm(self.handle) } {
                UCS_OK => {
                    let mut events = [PollFd::new(&self.events, PollFlags::IN)];
                    // Woken from time to time, since `is_done` may ask for what no event tells.
                    match poll(&mut events, Some(&Timespec { tv_sec: 0, tv_nsec: NAP })) {
                        Ok(_) | Err(rustix::io::Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                // Something happened meanwhile.
                UCS_ERR_BUSY => {}
                status => check(self.ucx, status)?,
            }
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: made in `new`, and used by this thread only.
        unsafe { self.ucx.ucp_worker_destroy(self.handle) };
    }
}

pub(super) fn check(ucx: &Ucx, status: ucs_status_t) -> io::Result<()> {
    match status {
        UCS_OK => Ok(()),
        status => Err(io::Error::other(format!("UCX: {} ({status})", ucx.describe(status)))),
    }
}

/// Of an operation that has begun, and whose request its callback frees.
pub(super) fn begun(ucx: &Ucx, request: ucs_status_ptr_t) -> io::Result<bool> {
    match UCS_PTR_IS_PTR(request) {
        true => Ok(true),
        false => check(ucx, UCS_PTR_STATUS(request)).map(|()| false),
    }
}

/// Longest sleep, in nanoseconds.
const NAP: i64 = 20_000_000;
