use std::ffi::{CStr, CString, c_int, c_uint};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use crate::declarations::*;
use crate::environment;
use crate::library::Margo;

/// What an instance is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Protocol or address, such as `na+sm` or `ofi+tcp://ib0`.
    pub address: String,
    /// Whether others can reach it.
    pub listens: bool,
    /// Whether it has a thread that makes progress, and runs callbacks. Without one, whoever calls it makes progress, and has to do
    /// so by [`Margo::run_on_primary`].
    pub has_thread: bool,
    /// How long its progress thread waits at a time, in milliseconds: ending the instance takes so long. Not 0 and not 100,
    /// which is the default: that it is what was said proves that the configuration arrived.
    pub progress_ms: c_uint,
    /// What goes into the `mercury` section of its configuration: the inside of a JSON object, or nothing.
    pub mercury: String,
}

impl Margo {
    /// Starts an instance, normally with one progress thread, on which all callbacks run; no handler ever runs in a user-level thread.
    ///
    /// Argobots is started by the first call, on a thread of its own that stays until the process ends, with a guard page
    /// below each stack. The caller ends the instance by [`margo_finalize`](Self::margo_finalize), from any thread but its
    /// progress thread.
    ///
    /// # Cost
    /// 2 to 200 ms.
    ///
    /// # Errors
    /// [`StartError`]. Mercury's own words go to standard error.
    pub fn start(&'static self, options: &Options) -> Result<margo_instance_id, StartError> {
        let options = options.clone();
        // Mercury takes no period that is longer than what it tries for.
        let is_users = std::env::var_os("NA_OFI_OP_RETRY_PERIOD").is_some();
        let settings = [SETTINGS, if is_users { &[] } else { OF_MERCURY }].concat();
        self.run_on_primary(move || environment::with(&settings, || self.start_here(&options)))?
            .map(|started| started.0)
    }

    /// Runs a call on the thread that started Argobots, which is its primary one, and waits for it. Blocking calls of an instance
    /// without a thread make progress there, and there alone; nothing is started meanwhile.
    ///
    /// # Errors
    /// [`StartError`], also when the call panicked.
    pub fn run_on_primary<T: Send + 'static>(
        &'static self,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StartError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || drop(answer.send(call())));
        self.argobots()?.send(job).map_err(|_| StartError::Argobots(-1))?;
        answered.recv().map_err(|_| StartError::Argobots(-1))
    }

    /// Where to send what is to be started.
    fn argobots(&'static self) -> Result<mpsc::Sender<Job>, StartError> {
        /// The thread, and the process that has it.
        static ARGOBOTS: Mutex<Option<(u32, mpsc::Sender<Job>)>> = Mutex::new(None);

        let mut argobots = ARGOBOTS.lock().unwrap_or_else(PoisonError::into_inner);
        let this = std::process::id();
        match &*argobots {
            Some((process, jobs)) if *process == this => return Ok(jobs.clone()),
            Some(_) => return Err(StartError::Forked),
            None => {}
        }
        let (jobs, queue) = mpsc::channel::<Job>();
        let (report, outcome) = mpsc::sync_channel(1);
        // The thread that starts Argobots becomes its primary one, where alone instances can be started: it has to stay, and
        // nobody else's may be taken.
        let spawned = thread::Builder::new().name("margo-argobots".to_owned()).spawn(move || {
            // SAFETY: no arguments, which means none.
            let code = environment::with(SETTINGS, || unsafe { self.ABT_init(0, ptr::null_mut()) });
            let _ = report.send(code);
            for job in queue {
                // Whoever waits for it learns of a panic by the end of its channel.
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        });
        spawned.map_err(|_| StartError::Argobots(-1))?;
        match outcome.recv() {
            Ok(ABT_SUCCESS) => {}
            Ok(code) => return Err(StartError::Argobots(code)),
            Err(_) => return Err(StartError::Argobots(-1)),
        }
        *argobots = Some((this, jobs.clone()));
        Ok(jobs)
    }

    fn start_here(&self, options: &Options) -> Result<Started, StartError> {
        let address = CString::new(options.address.as_str()).map_err(|_| StartError::Refused)?;
        let progress = options.progress_ms;
        // No handlers: the pool for them is that of the progress thread, so that no second thread is made. No spinning.
        let json = format!(
            "{{\"use_progress_thread\":{},\"rpc_thread_count\":-1,\"progress_timeout_ub_msec\":{progress},\
             \"progress_spindown_msec\":0,\"mercury\":{{{}}}}}",
            options.has_thread, options.mercury
        );
        let json = CString::new(json).map_err(|_| StartError::Refused)?;
        let info = margo_init_info { json_config: json.as_ptr(), rest: [ptr::null(); 31] };
        let mode = if options.listens { MARGO_SERVER_MODE } else { MARGO_CLIENT_MODE };
        // SAFETY: strings and structure are good for the time of the call, and the structure is longer than any version's.
        let mid = unsafe { self.margo_init_ext(address.as_ptr(), mode, &info) };
        if mid.is_null() {
            return Err(StartError::Refused);
        }
        let mut seen = 0;
        // SAFETY: the instance made above, and a place to write to.
        let asked = unsafe { self.margo_get_progress_timeout_ub_msec(mid, &mut seen) };
        if asked != 0 || seen != progress {
            // Nothing may be called on what is not understood; it is left behind.
            return Err(StartError::Layout { expected: progress, seen });
        }
        Ok(Started(mid))
    }
}

type Job = Box<dyn FnOnce() + Send>;

struct Started(margo_instance_id);

// SAFETY: Margo's functions may be called with an instance from any thread.
unsafe impl Send for Started {}

/// What Mercury reads when an instance starts. What cannot be sent at once it tries again at every step, which leaves its thread
/// no rest, and for 120 s where nothing is said: to a peer that is dead by then, too.
const OF_MERCURY: &[(&CStr, &CStr)] = &[(c"NA_OFI_OP_RETRY_TIMEOUT", c"NA_OFI_OP_RETRY_TIMEOUT=5000")];

/// What Argobots reads when it starts. Without a size stacks are 16 KiB, too small for what runs on them; what overflows one
/// hits a guard page rather than other memory.
const SETTINGS: &[(&CStr, &CStr)] = &[
    (c"ABT_THREAD_STACKSIZE", c"ABT_THREAD_STACKSIZE=2097152"),
    (c"ABT_MEM_MAX_NUM_STACKS", c"ABT_MEM_MAX_NUM_STACKS=8"),
    (c"ABT_STACK_OVERFLOW_CHECK", c"ABT_STACK_OVERFLOW_CHECK=mprotect"),
];

/// Why an instance did not start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartError {
    /// Mercury does not have the protocol, or no device for it, or the address is none.
    Refused,
    /// Argobots did not start, and said this number.
    Argobots(c_int),
    /// The library did not read its configuration as it was written: its structures are others than those declared here.
    Layout {
        /// What was written.
        expected: c_uint,
        /// What was read.
        seen: c_uint,
    },
    /// The process was forked from one that had started it.
    Forked,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => write!(f, "Mercury does not have the protocol, or no device for it"),
            Self::Argobots(code) => write!(f, "Argobots did not start ({code})"),
            Self::Layout { expected, seen } => write!(
                f,
                "this Margo has structures of another layout: it was told {expected} and read {seen}; it is not used"
            ),
            Self::Forked => write!(f, "Margo was started before a fork, and does not survive one"),
        }
    }
}

impl std::error::Error for StartError {}
