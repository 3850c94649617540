//! Margo's calls, each behind what makes it sound: handles own their parents, operations own their memory.
//!
//! ```text
//!   Instance <── Address, Bulk <── Transfer (landings)     an arrow is an Arc: nothing ends before what was made of it
//!      └ one progress thread, on which every callback runs
//! ```

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, Once, OnceLock, Weak, mpsc};
use std::thread;
use std::time::Duration;

use margo_sys::{
    HG_SUCCESS, MARGO_DEFAULT_PROVIDER_ID, MARGO_LOG_CRITICAL, Margo, Options, StartError, hg_handle_t, hg_id_t,
    hg_return_t, margo_instance_id,
};

use super::protocol;
use super::wire::INLINE;
use crate::error::{Error, ErrorKind, Result};
use crate::process::PerProcess;
use crate::sync::lock;

mod bulk;
mod connections;
mod flight;
mod message;
mod transfer;

pub(super) use bulk::{Access, Bulk};
pub(super) use flight::Flight;
pub(super) use transfer::{AT_ONCE, Piece, Transfer};

use flight::Done;
use message::Message;

/// A running Margo, one a process for each address and role; it ends with the last of its handles.
pub(super) struct Instance {
    margo: &'static Margo,
    mid: margo_instance_id,
    /// Longest message that Mercury sends at once, in bytes.
    inline: usize,
    /// Whether Mercury keeps files in /dev/shm for it.
    has_files: bool,
    ask: hg_id_t,
    tell: hg_id_t,
    /// Whom questions are for, by what they begin with.
    sessions: Mutex<HashMap<Token, Arc<dyn Handler>>>,
    generation: u32,
}

// SAFETY: Margo's and Mercury's functions may be called from any thread, at the same time; so says their documentation.
unsafe impl Send for Instance {}
// SAFETY: as above.
unsafe impl Sync for Instance {}

/// What proves that a message comes from somebody who was let in.
pub(super) type Token = [u8; 16];

/// Who hears what peers say; called on the progress thread.
pub(super) trait Handler: Send + Sync {
    /// Answers, now or later.
    fn asked(&self, message: &[u8], reply: Reply);
    /// Is told something that needs no answer.
    fn told(&self, message: &[u8]);
}

impl Instance {
    /// The one of this process for an address, such as `na+sm` or `ofi+tcp://192.0.2.1`.
    ///
    /// # Errors
    /// `Unavailable` without a usable Margo, `Config` for what Mercury does not offer here, `Incompatible`, `Forked`.
    pub(super) fn shared(address: &str, listens: bool) -> Result<Arc<Self>> {
        type All = Mutex<HashMap<(String, bool), Weak<Instance>>>;
        static INSTANCES: PerProcess<All> = PerProcess::new();

        let mut all = lock(INSTANCES.get(Mutex::default));
        let key = (address.to_owned(), listens);
        if let Some(running) = all.get(&key).and_then(Weak::upgrade) {
            return Ok(running);
        }
        let started = Self::start(address, listens)?;
        all.retain(|_, instance| instance.strong_count() > 0);
        all.insert(key, Arc::downgrade(&started));
        Ok(started)
    }

    fn start(address: &str, listens: bool) -> Result<Arc<Self>> {
        let margo = load()?;
        let is_larger = address.starts_with("ofi+");
        let inline = if is_larger { 2 * INLINE } else { INLINE };
        let mercury = mercury_settings(is_larger, std::env::var("HG_LOG_LEVEL").ok());
        let options =
            Options { address: address.to_owned(), listens, has_thread: true, progress_ms: PROGRESS_MS, mercury };
        STARTED.store(generation(), Relaxed);
        watch_exit();
        let mid = margo.start(&options).map_err(|error| {
            let (kind, hint) = match &error {
                StartError::Layout { .. } => (ErrorKind::Incompatible, String::new()),
                StartError::Forked => {
                    (ErrorKind::Forked, "; open the store before forking, or after it only".to_owned())
                }
                // It is one of those offered: an interface may be down, or a device in use.
                StartError::Refused => (
                    ErrorKind::Unavailable,
                    format!("; it offers {}; HG_LOG_LEVEL=warning shows what it says", protocol::offered(margo)),
                ),
                _ => (ErrorKind::Unavailable, String::new()),
            };
            Error::new(kind, "open", format!("margo over {address}: {error}{hint}"))
        })?;
        let mut this = Self {
            margo,
            mid,
            inline,
            has_files: address.starts_with("na+sm"),
            ask: 0,
            tell: 0,
            sessions: Mutex::default(),
            generation: generation(),
        };
        // SAFETY: the instance started above; the names are copied, and the callbacks stay.
        unsafe {
            margo.margo_set_log_level(mid, MARGO_LOG_CRITICAL);
            this.ask = this.register(c"proxystore.ask.1", asked);
            this.tell = this.register(c"proxystore.tell.1", told);
            if this.ask == 0
                || this.tell == 0
                || margo.margo_registered_disable_response(mid, this.tell, 1) != HG_SUCCESS
            {
                let context = format!("margo over {address}: its RPCs cannot be registered");
                return Err(Error::new(ErrorKind::Unavailable, "open", context));
            }
        }
        let this = Arc::new(this);
        lock(live()).insert(mid.addr(), Arc::downgrade(&this));
        Ok(this)
    }

    /// # Safety
    /// The instance lives.
    unsafe fn register(&self, name: &CStr, hear: unsafe extern "C" fn(hg_handle_t) -> hg_return_t) -> hg_id_t {
        let mut pool = ptr::null_mut();
        let process: margo_sys::hg_proc_cb_t = Some(message::process);
        // SAFETY: the caller's. The pool is not used: handlers run in the callback itself.
        unsafe {
            self.margo.margo_get_handler_pool(self.mid, &mut pool);
            let provider = MARGO_DEFAULT_PROVIDER_ID;
            self.margo.margo_provider_register_name(
                self.mid,
                name.as_ptr(),
                process,
                process,
                Some(hear),
                provider,
                pool,
            )
        }
    }

    /// Where others reach it.
    ///
    /// # Errors
    /// `Unavailable`, when Mercury cannot tell.
    pub(super) fn address(&self) -> Result<String> {
        let (mut own, mut text) = (ptr::null_mut(), vec![0u8; 1024]);
        let mut len = text.len() as u64;
        // SAFETY: places to write to, of the length that is said; the address is freed once.
        let outcome = unsafe {
            match self.margo.margo_addr_self(self.mid, &mut own) {
                HG_SUCCESS => {
                    let outcome = self.margo.margo_addr_to_string(self.mid, text.as_mut_ptr().cast(), &mut len, own);
                    self.margo.margo_addr_free(self.mid, own);
                    outcome
                }
                outcome => outcome,
            }
        };
        if outcome != HG_SUCCESS {
            return Err(self.failed("listen", outcome, "the own address"));
        }
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        text.truncate(end);
        String::from_utf8(text)
            .map_err(|_| Error::new(ErrorKind::Unavailable, "listen", "Mercury's own address is no text"))
    }

    /// Longest answer that is sent at once.
    pub(super) fn inline(&self) -> usize {
        self.inline
    }

    /// Lets messages in that begin with a token.
    pub(super) fn admit(&self, token: Token, handler: Arc<dyn Handler>) {
        lock(&self.sessions).insert(token, handler);
    }

    pub(super) fn dismiss(&self, token: &Token) {
        let gone = lock(&self.sessions).remove(token);
        drop(gone);
    }

    /// Asks, and calls `done` on the progress thread with the answer's bytes or what went wrong; at most once, and never
    /// from within this call.
    ///
    /// # Cost
    /// Copies the message. Past `limit`, if there is one, Margo gives up.
    ///
    /// # Errors
    /// What went wrong before anything was sent; `done` is dropped then.
    pub(super) fn ask(
        self: &Arc<Self>,
        to: &Arc<Address>,
        message: &[&[u8]],
        limit: Option<Duration>,
        done: impl FnOnce(Result<&[u8]>) + Send + 'static,
    ) -> Result<Arc<Flight>> {
        self.forward(to, self.ask, message, limit, Some(Box::new(done)))
    }

    /// Says something that needs no answer, and may not arrive.
    pub(super) fn tell(self: &Arc<Self>, to: &Arc<Address>, message: &[&[u8]]) {
        let _ = self.forward(to, self.tell, message, Some(TOLD), None);
    }

    fn forward(
        self: &Arc<Self>,
        to: &Arc<Address>,
        id: hg_id_t,
        message: &[&[u8]],
        limit: Option<Duration>,
        done: Option<Done>,
    ) -> Result<Arc<Flight>> {
        let mut handle = ptr::null_mut();
        // SAFETY: the instance and the address live; a place to write to.
        let outcome = unsafe { self.margo.margo_create(self.mid, to.raw, id, &mut handle) };
        if outcome != HG_SUCCESS {
            return Err(self.failed("request", outcome, &to.text));
        }
        let mut input = Message::write(message);
        let flight = Flight::new(self, to, handle, done);
        let uargs = Arc::into_raw(Arc::clone(&flight)).cast_mut().cast::<c_void>();
        // SAFETY: the handle was made above; the message is copied before the call returns; `uargs` is the callback's.
        let outcome = unsafe {
            self.margo.margo_provider_cforward_timed(
                MARGO_DEFAULT_PROVIDER_ID,
                handle,
                (&raw mut input).cast(),
                // 0 is no limit.
                limit.map_or(0.0, |limit| limit.as_secs_f64() * 1000.0),
                Some(ended),
                uargs,
            )
        };
        if outcome == HG_SUCCESS {
            return Ok(flight);
        }
        // SAFETY: nothing was begun, so that there is no callback, whose reference is this call's then.
        unsafe {
            drop(Arc::from_raw(uargs.cast_const().cast::<Flight>()));
            flight.end(None);
        }
        Err(self.failed("request", outcome, &to.text))
    }

    /// The error for an outcome, with its number and name.
    fn failed(&self, op: &'static str, outcome: hg_return_t, who: &str) -> Error {
        let name = self.margo.describe(outcome);
        let kind = match outcome {
            margo_sys::HG_NOMEM | margo_sys::HG_AGAIN => ErrorKind::Unavailable,
            margo_sys::HG_INVALID_ARG | margo_sys::HG_OVERFLOW => ErrorKind::Corrupt,
            _ => ErrorKind::PeerDown,
        };
        Error::new(kind, op, format!("{who}: Mercury says {name} ({outcome})"))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if self.generation != generation() {
            // A forked child has no progress thread: what it inherited stays as it is.
            return;
        }
        lock(live()).remove(&self.mid.addr());
        /// Carries the handle to the thread that ends it.
        struct Last(&'static Margo, margo_instance_id);
        // SAFETY: as for `Instance`.
        unsafe impl Send for Last {}
        let last = Last(self.margo, self.mid);
        let (report, over) = mpsc::sync_channel::<()>(1);
        let finalize = move || {
            let Last(margo, mid) = { last };
            // SAFETY: the last handle is gone, so that nothing of the instance is used any more; not its progress thread.
            unsafe { margo.margo_finalize(mid) };
            ENDING.fetch_sub(1, SeqCst);
            let _ = report.send(());
        };
        ENDING.fetch_add(1, SeqCst);
        // It waits for its progress thread, which may be this one, and for peers that are gone.
        let spawned = thread::Builder::new().name("proxystore-margo-end".to_owned()).spawn(finalize);
        if spawned.is_ok() && self.has_files && !IN_CALLBACK.get() {
            let _ = over.recv_timeout(PATIENCE);
        }
    }
}

/// The process exits: its native libraries end, and nothing that is asked by them is ever answered.
pub(super) fn exits() -> Result<()> {
    match EXITS.load(Relaxed) && STARTED.load(Relaxed) == generation() {
        true => Err(Error::new(ErrorKind::PeerDown, "request", "the process exits")),
        false => Ok(()),
    }
}

fn watch_exit() {
    extern "C" fn at_exit() {
        EXITS.store(true, Relaxed);
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: a function that stays. Where it cannot be registered, who asks while the process exits may wait until it is gone.
        let _ = unsafe { libc::atexit(at_exit) };
    });
}

static EXITS: AtomicBool = AtomicBool::new(false);

/// Instances whose last handle is gone, and that are not finalized yet.
pub(super) static ENDING: AtomicUsize = AtomicUsize::new(0);

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Instance({:?})", self.mid)
    }
}

/// A peer's address.
pub(super) struct Address {
    raw: margo_sys::hg_addr_t,
    text: String,
    /// Pulls from it that are not over.
    flying: AtomicUsize,
    instance: Arc<Instance>,
}

// SAFETY: as for `Instance`.
unsafe impl Send for Address {}
// SAFETY: as above.
unsafe impl Sync for Address {}

impl Address {
    /// Looks an address up.
    ///
    /// # Errors
    /// `PeerDown` for what cannot be reached, as far as that is known now.
    pub(super) fn lookup(instance: &Arc<Instance>, text: &str) -> Result<Arc<Self>> {
        let name = CString::new(text)
            .map_err(|_| Error::new(ErrorKind::Corrupt, "connect", "the peer's address is not one of Mercury"))?;
        let mut raw = ptr::null_mut();
        // SAFETY: a string, and a place to write to.
        let outcome = unsafe { instance.margo.margo_addr_lookup(instance.mid, name.as_ptr(), &mut raw) };
        if outcome != HG_SUCCESS {
            return Err(instance.failed("connect", outcome, text));
        }
        let (text, instance) = (text.to_owned(), Arc::clone(instance));
        Ok(Arc::new(Self { raw, text, flying: AtomicUsize::new(0), instance }))
    }

    /// Ends what is being pulled from a peer that is dead to this node, where Mercury would wait for it for ever: libfabric's tcp
    /// cannot cancel a read, and a process that is stopped, or behind a cut, ends no connection.
    pub(super) fn cut(&self) {
        if self.flying.load(SeqCst) > 0 && self.instance.generation == generation() {
            // What is closed by that is heard by the progress thread, which ends each pull with an error.
            let _ = connections::shut(&self.text);
        }
    }

    /// Whether something is still being pulled from it.
    pub(super) fn is_flying(&self) -> bool {
        self.flying.load(SeqCst) > 0
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        if self.instance.generation == generation() {
            // SAFETY: looked up once, freed once.
            unsafe { self.instance.margo.margo_addr_free(self.instance.mid, self.raw) };
        }
    }
}

/// The duty to answer one question; dropped, it answers with nothing.
pub(super) struct Reply {
    instance: Arc<Instance>,
    handle: Option<hg_handle_t>,
    /// Whether anybody waits for an answer.
    is_wanted: bool,
}

// SAFETY: as for `Instance`; the handle is this value's alone.
unsafe impl Send for Reply {}
// SAFETY: shared, it can do nothing.
unsafe impl Sync for Reply {}

impl Reply {
    /// Answers; whether the answer arrives is not known.
    ///
    /// # Cost
    /// Copies the message.
    pub(super) fn send(mut self, message: &[&[u8]]) {
        self.respond(message);
    }

    fn respond(&mut self, message: &[&[u8]]) {
        let Some(handle) = self.handle.take() else { return };
        let margo = self.instance.margo;
        let mut output = Message::write(message);
        // SAFETY: the handle is this value's, and given up here; the message is copied before the call returns.
        unsafe {
            if self.is_wanted {
                margo.margo_crespond(handle, (&raw mut output).cast(), None, ptr::null_mut());
            }
            margo.margo_destroy(handle);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.respond(&[]);
    }
}

/// The end of [`Instance::forward`].
unsafe extern "C" fn ended(uargs: *mut c_void, outcome: hg_return_t) {
    // SAFETY: made for this callback, which is called once.
    let flight = unsafe { Arc::from_raw(uargs.cast_const().cast::<Flight>()) };
    // SAFETY: this is the callback.
    in_callback(move || unsafe { flight.end(Some(outcome)) });
}

unsafe extern "C" fn asked(handle: hg_handle_t) -> hg_return_t {
    // SAFETY: Mercury's, for this handle.
    unsafe { hear(handle, true, |handler, message, reply| handler.asked(message, reply)) }
}

unsafe extern "C" fn told(handle: hg_handle_t) -> hg_return_t {
    // SAFETY: Mercury's, for this handle.
    unsafe { hear(handle, false, |handler, message, _| handler.told(message)) }
}

/// Reads a message, and hands it to its session.
///
/// # Safety
/// Called by Mercury with the handle of an RPC that came.
unsafe fn hear(handle: hg_handle_t, is_wanted: bool, act: impl FnOnce(&dyn Handler, &[u8], Reply)) -> hg_return_t {
    let Ok(margo) = load() else { return HG_SUCCESS };
    // SAFETY: the caller's.
    let instance = unsafe {
        match margo.__margo_internal_set_handle_data(handle) {
            HG_SUCCESS => lock(live()).get(&margo.margo_hg_handle_get_instance(handle).addr()).and_then(Weak::upgrade),
            _ => None,
        }
    };
    let Some(instance) = instance else {
        // SAFETY: the handle is this call's; whoever asked gets no answer from an instance that ends.
        unsafe { margo.margo_destroy(handle) };
        return HG_SUCCESS;
    };
    in_callback(move || {
        let reply = Reply { instance: Arc::clone(&instance), handle: Some(handle), is_wanted };
        let mut input = Message::read();
        // SAFETY: the handle's input is there; it is freed below.
        if unsafe { margo.margo_get_input(handle, (&raw mut input).cast()) } != HG_SUCCESS {
            return;
        }
        // SAFETY: read from the input, which is not freed yet. A copy, because the reply may give the handle up.
        let message = unsafe { input.bytes() }.to_vec();
        input.free();
        // SAFETY: got above.
        unsafe { margo.margo_free_input(handle, (&raw mut input).cast()) };
        let Some((token, message)) = message.split_first_chunk::<{ size_of::<Token>() }>() else { return };
        let session = lock(&instance.sessions).get(token).cloned();
        if let Some(session) = session {
            act(&*session, message, reply);
        }
    });
    HG_SUCCESS
}

thread_local! {
    /// Whether this is a progress thread in a callback: it cannot wait for itself to end.
    static IN_CALLBACK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs what a C library calls: nothing unwinds into it.
fn in_callback(body: impl FnOnce()) {
    let was = IN_CALLBACK.replace(true);
    if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
        // What a panic carries may panic again when it is dropped.
        std::mem::forget(payload);
    }
    IN_CALLBACK.set(was);
}

/// The running instances, by their handles.
fn live() -> &'static Mutex<HashMap<usize, Weak<Instance>>> {
    static LIVE: PerProcess<Mutex<HashMap<usize, Weak<Instance>>>> = PerProcess::new();
    LIVE.get(Mutex::default)
}

/// The library.
///
/// # Errors
/// `Unavailable`, naming every place that was tried. Looked for once.
pub(super) fn load() -> Result<&'static Margo> {
    static FOUND: OnceLock<std::result::Result<&'static Margo, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| margo_sys::load().map_err(|error| error.to_string()));
    found.as_ref().copied().map_err(|reason| Error::new(ErrorKind::Unavailable, "open", reason.clone()))
}

/// Whether this process was forked from one in which Margo was started: it cannot start it, nor use that.
pub(super) fn is_forked() -> bool {
    let started = STARTED.load(Relaxed);
    started != 0 && started != generation()
}

/// The generation of the process that started Margo last; 0 before.
static STARTED: AtomicU32 = AtomicU32::new(0);

fn generation() -> u32 {
    crate::process::generation()
}

/// The inside of the `mercury` section of a configuration.
///
/// Outcomes are errors of ours: Mercury need not print them as well, unless the user asks. Margo sets the level itself, to
/// `warning` where it is told nothing, whatever the environment says.
fn mercury_settings(is_larger: bool, log_level: Option<String>) -> String {
    let is_word = |level: &String| level.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    let level = log_level.filter(is_word).unwrap_or_else(|| "none".to_owned());
    format!("\"log_level\":\"{level}\"{}", if is_larger { LARGER } else { "" })
}

/// Mercury's messages of 4 KiB are too short for an object of 4 KiB. Those of libfabric may be longer, if both ends say so; the
/// others cannot, or do not survive it (`ucx` of Mercury 2.4).
const LARGER: &str = ",\"na_max_unexpected_size\":8192,\"na_max_expected_size\":8192";

/// How long a progress thread waits at a time; ending an instance takes as long.
const PROGRESS_MS: u32 = 50;

/// How long the end of an instance is waited for that has files to remove. Others end alone: a service that ends keeps its
/// successor waiting, and Mercury takes 5 s for handles that dead peers leave.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long Margo tries to send what nobody waits for.
const TOLD: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mercury_is_silent_unless_it_is_asked() {
        assert_eq!(mercury_settings(false, None), "\"log_level\":\"none\"");
        let larger = mercury_settings(true, Some("min_debug".to_owned()));
        assert_eq!(larger, format!("\"log_level\":\"min_debug\"{LARGER}"));
        assert!(!mercury_settings(true, Some("x\",\"y".to_owned())).contains('y'));
    }
}
