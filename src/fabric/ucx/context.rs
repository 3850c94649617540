//! `Context`: UCX with this process's choice of transports, and the memory that it knows.

use std::ffi::{CString, OsString};
use std::fmt;
use std::ops::RangeInclusive;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use ucx_sys::{
    UCP_ERR_HANDLING_MODE_NONE, UCP_ERR_HANDLING_MODE_PEER, UCP_FEATURE_AM, UCP_FEATURE_RMA, UCP_FEATURE_WAKEUP,
    UCP_PARAM_FIELD_FEATURES, UCS_OK, Ucx, Version, ucp_config_t, ucp_context_h, ucp_err_handling_mode_t, ucp_params_t,
    ucs_status_t,
};

use super::admission;
use super::exit::EXIT;
use super::memory::Registered;
use crate::error::{Error, ErrorKind, Result};
use crate::process::generation;

/// A context for active messages alone, or for reading others' memory.
///
/// Where peers connect to, UCX's one-sided operations are never enabled: over TCP and shared memory its handlers for them check
/// no key, so any peer could read and write all memory of the process. Reading needs nothing of that at the owner.
pub(super) struct Context {
    ucx: &'static Ucx,
    raw: ucp_context_h,
    aim: Aim,
    pub(super) memory: Registered,
    /// At which ports its workers listen, where they do and it is known.
    ports: Option<RangeInclusive<u16>>,
}

/// What a context is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aim {
    /// To send and take messages.
    Messages,
    /// To read others' memory; nothing connects to it.
    Reads {
        /// Whether UCX tells the failure of a peer, as it does not over what moves bytes within a node.
        tells_failures: bool,
    },
}

// SAFETY: UCX guards a context by locks of its own where workers of several threads share it; each worker is used by one
// thread at a time. The calls made on the bare context (mapping, unmapping) are under the lock of `Registered`.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// A setting that holds where the user set no `UCX_NAME`.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) value: String,
}

impl Context {
    /// # Cost
    /// Some ten milliseconds: UCX looks at all devices.
    ///
    /// # Errors
    /// `Unavailable` where no UCX can be loaded, naming what was tried, or none of its transports can be used.
    pub(super) fn new(settings: &[Setting]) -> Result<Self> {
        Self::of(Aim::Messages, settings, &[])
    }

    /// A context in which `fixed` holds whatever the user set.
    ///
    /// # Errors
    /// As [`new`](Self::new); `Unavailable` where this UCX does not know a setting of `fixed`.
    pub(super) fn of(aim: Aim, settings: &[Setting], fixed: &[Setting]) -> Result<Self> {
        let ucx = load()?;
        USED_IN.store(generation(), Relaxed);
        EXIT.watch(&BEFORE);
        let _entered = EXIT.enter()?;
        let feature = match aim {
            Aim::Messages => UCP_FEATURE_AM,
            Aim::Reads { .. } => UCP_FEATURE_RMA,
        };
        let params = ucp_params_t {
            field_mask: u64::from(UCP_PARAM_FIELD_FEATURES),
            features: u64::from(feature | UCP_FEATURE_WAKEUP),
            ..Default::default()
        };
        let mut config: *mut ucp_config_t = ptr::null_mut();
        // SAFETY: null means the prefix `UCX_` and no file; `config` is written on success.
        check(ucx, "read the UCX_ settings", unsafe { ucx.ucp_config_read(ptr::null(), ptr::null(), &mut config) })?;
        for setting in settings {
            if !is_set_by_user(setting.name) {
                // A name that this version does not know is an error that changes nothing.
                let _ = modify(ucx, config, setting);
            }
        }
        let unknown = fixed.iter().find(|setting| modify(ucx, config, setting) != UCS_OK);
        let mut raw = ptr::null_mut();
        let status = match unknown {
            // SAFETY: `params` says which of its fields count, `config` was read above.
            None => unsafe { ucx.ucp_init(&params, config, &mut raw) },
            Some(_) => ucx_sys::UCS_ERR_UNSUPPORTED,
        };
        // SAFETY: read above, and used for the last time.
        unsafe { ucx.ucp_config_release(config) };
        if let Some(setting) = unknown {
            let context = format!("this UCX knows no UCX_{}", setting.name);
            return Err(Error::new(ErrorKind::Unavailable, "open", context));
        }
        check(ucx, "begin", status)?;
        EXIT.watch(&BEHIND);
        Ok(Self { ucx, raw, aim, memory: Registered::default(), ports: ports(aim, settings) })
    }

    pub(super) fn ports(&self) -> Option<&RangeInclusive<u16>> {
        self.ports.as_ref()
    }

    pub(super) fn takes_messages(&self) -> bool {
        self.aim == Aim::Messages
    }

    /// How endpoints are told of their peers' failures.
    pub(super) fn failures(&self) -> ucp_err_handling_mode_t {
        match self.aim {
            Aim::Messages | Aim::Reads { tells_failures: true } => UCP_ERR_HANDLING_MODE_PEER,
            Aim::Reads { tells_failures: false } => UCP_ERR_HANDLING_MODE_NONE,
        }
    }

    pub(super) fn ucx(&self) -> &'static Ucx {
        self.ucx
    }

    pub(super) fn raw(&self) -> ucp_context_h {
        self.raw
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // The process's exit cleans up.
        let Ok(_entered) = EXIT.enter() else { return };
        self.memory.unmap(self.ucx, self.raw);
        // SAFETY: workers hold the context, so there is none any more, and its memory was unmapped.
        unsafe { self.ucx.ucp_cleanup(self.raw) };
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Context(UCX {})", self.ucx.version())
    }
}

/// UCX, in this process.
///
/// # Errors
/// `Unavailable`, with every place that was tried; in a child that was forked after UCX was used.
pub(super) fn load() -> Result<&'static Ucx> {
    let used_in = USED_IN.load(Relaxed);
    if used_in != NOWHERE && used_in != generation() {
        // It would hang: what comes is taken by a thread of UCX, which it takes for running.
        let context = "UCX was used before this process was forked, and does not work in the child; use tcp://, or start a \
                       program";
        return Err(Error::new(ErrorKind::Unavailable, "open", context));
    }
    ucx_sys::load().map_err(|error| Error::new(ErrorKind::Unavailable, "open", error.to_string()))
}

/// Whether this process has used UCX, and not one from which it was forked.
pub(super) fn is_used_here() -> bool {
    USED_IN.load(Relaxed) == generation()
}

/// What holds of `UCX_TCP_PORT_RANGE`, where these settings have one and something connects.
fn ports(aim: Aim, settings: &[Setting]) -> Option<RangeInclusive<u16>> {
    if aim != Aim::Messages {
        return None;
    }
    let ours = settings.iter().find(|setting| setting.name == PORTS)?;
    match user_setting(PORTS) {
        Some(set) => admission::ports_of(&set.to_string_lossy()),
        None => admission::ports_of(&ours.value),
    }
}

fn modify(ucx: &Ucx, config: *mut ucp_config_t, setting: &Setting) -> ucs_status_t {
    // Before 1.17 what belongs to a transport had no prefix here, though it had one in the environment.
    let is_old = ucx.version() < Version { major: 1, minor: 17, release: 0 };
    let name = match setting.name.strip_prefix("TCP_") {
        Some(bare) if is_old => bare,
        _ => setting.name,
    };
    let (Ok(name), Ok(value)) = (CString::new(name), CString::new(setting.value.as_str())) else {
        return ucx_sys::UCS_ERR_INVALID_PARAM;
    };
    // SAFETY: both strings outlive the call.
    unsafe { ucx.ucp_config_modify(config, name.as_ptr(), value.as_ptr()) }
}

pub(super) fn is_set_by_user(name: &str) -> bool {
    user_setting(name).is_some()
}

/// What the user set as `UCX_NAME`.
pub(super) fn user_setting(name: &str) -> Option<OsString> {
    std::env::var_os(format!("UCX_{name}"))
}

/// An error for a status that is none of success.
pub(super) fn failed(ucx: &Ucx, what: &str, status: ucs_status_t) -> Error {
    use ucx_sys as s;
    let kind = match status {
        s::UCS_ERR_NO_MEMORY | s::UCS_ERR_NO_RESOURCE => ErrorKind::NoSpace,
        s::UCS_ERR_UNREACHABLE
        | s::UCS_ERR_ENDPOINT_TIMEOUT
        | s::UCS_ERR_CONNECTION_RESET
        | s::UCS_ERR_NOT_CONNECTED
        | s::UCS_ERR_REJECTED
        | s::UCS_ERR_CANCELED
        | s::UCS_ERR_IO_ERROR => ErrorKind::PeerDown,
        s::UCS_ERR_TIMED_OUT => ErrorKind::Timeout,
        s::UCS_ERR_NO_DEVICE => ErrorKind::Unavailable,
        _ => ErrorKind::Io,
    };
    Error::new(kind, "request", format!("UCX could not {what}: {}", ucx.describe(status)))
}

pub(super) fn check(ucx: &Ucx, what: &str, status: ucs_status_t) -> Result<()> {
    match status {
        UCS_OK => Ok(()),
        status => Err(failed(ucx, what, status)),
    }
}

/// Where listening sockets of the transport `tcp` are.
pub(super) const PORTS: &str = "TCP_PORT_RANGE";

/// Handlers of the exit, see [`Exit::watch`](super::exit::Exit::watch).
static BEFORE: Once = Once::new();
static BEHIND: Once = Once::new();

/// The process that made the first context, as forks are counted.
static USED_IN: AtomicU32 = AtomicU32::new(NOWHERE);
const NOWHERE: u32 = u32::MAX;
