//! `Flight`: an RPC on its way, and what comes then.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use margo_sys::{HG_SUCCESS, hg_handle_t, hg_return_t};

use super::message::Message;
use super::{Address, Instance, generation};
use crate::error::Result;
use crate::sync::lock;

/// See the module. Mercury's handle is its own until it is over.
pub(in super::super) struct Flight {
    /// Gone when it is over: Margo uses a handle again then.
    handle: Mutex<Option<Handle>>,
    done: Mutex<Option<Done>>,
    to: Arc<Address>,
    instance: Arc<Instance>,
}

struct Handle(hg_handle_t);

// SAFETY: as for `Instance`.
unsafe impl Send for Handle {}

/// Hears the answer, or what went wrong.
pub(super) type Done = Box<dyn FnOnce(Result<&[u8]>) + Send>;

impl Flight {
    pub(super) fn new(
        instance: &Arc<Instance>,
        to: &Arc<Address>,
        handle: hg_handle_t,
        done: Option<Done>,
    ) -> Arc<Self> {
        let (instance, to) = (Arc::clone(instance), Arc::clone(to));
        Arc::new(Self { handle: Mutex::new(Some(Handle(handle))), done: Mutex::new(done), to, instance })
    }

    /// Gives it up: it ends soon, in an error. What is over is left alone.
    pub(in super::super) fn cancel(&self) {
        let handle = lock(&self.handle);
        if let Some(Handle(raw)) = &*handle {
            if self.instance.generation == generation() {
                // SAFETY: it is destroyed after it was taken out, for which the lock is needed. Mercury calls nobody back from here.
                unsafe { self.instance.margo.HG_Cancel(*raw) };
            }
        }
    }

    /// Whether the answer, or what went wrong, is there.
    pub(in super::super) fn is_over(&self) -> bool {
        lock(&self.handle).is_none()
    }

    /// Ends it; nothing is heard of it but by what was given.
    ///
    /// # Safety
    /// Its callback was called, or there will be none.
    pub(super) unsafe fn end(&self, outcome: Option<hg_return_t>) {
        let Some(Handle(handle)) = lock(&self.handle).take() else { return };
        let done = lock(&self.done).take();
        let margo = self.instance.margo;
        if let (Some(done), Some(outcome)) = (done, outcome) {
            let mut output = Message::read();
            let outcome = match outcome {
                // SAFETY: the handle's answer is there; it is freed below.
                HG_SUCCESS => unsafe { margo.margo_get_output(handle, (&raw mut output).cast()) },
                outcome => outcome,
            };
            if outcome == HG_SUCCESS {
                // Caught here, or the answer would stay.
                // SAFETY: read from the answer, which is not freed yet.
                let _ = catch_unwind(AssertUnwindSafe(|| done(Ok(unsafe { output.bytes() }))));
                output.free();
                // SAFETY: got above.
                unsafe { margo.margo_free_output(handle, (&raw mut output).cast()) };
            } else {
                let error = self.instance.failed("request", outcome, &self.to.text);
                let _ = catch_unwind(AssertUnwindSafe(|| done(Err(error))));
            }
        }
        // SAFETY: made by `Instance::forward`, taken out above, and not used any more.
        unsafe { margo.margo_destroy(handle) };
    }
}
