//! Margo's own interface: the bare loop that `margo://` is measured beside.
//!
//! ```text
//!   Requester                          Owner
//!   ── RPC: how many bytes ──────────> callback
//!   <── so many bytes, as the answer
//!   ══ or: pull from registered into registered memory
//! ```
//!
//! What a program does that knows nothing but Margo, and trusts whoever connects. The requester has no progress thread: it
//! makes progress itself, which is the fastest way.

use std::ffi::{CString, c_void};
use std::io;
use std::net::IpAddr;
use std::ptr;
use std::slice;
use std::time::{Duration, Instant};

use margo_sys::*;
use proxystore::launch::{self, Job};

/// Answers until this is dropped.
pub(crate) struct Owner {
    side: Side,
    contact: Vec<u8>,
    memory: hg_bulk_t,
    _content: Box<Content>,
}

/// What the callback answers with.
struct Content(Vec<u8>);

impl Owner {
    /// Answers with bytes of `content` over a protocol.
    pub(crate) fn start(protocol: &str, content: &[u8]) -> io::Result<Self> {
        let side = Side::start(protocol, true)?;
        let content = Box::new(Content(content.to_vec()));
        let memory = side.register(content.0.as_ptr(), content.0.len(), HG_BULK_READ_ONLY)?;
        let margo = side.margo;
        // SAFETY: the instance lives; the content lives longer; the buffer has the length that is said.
        let descriptor = unsafe {
            let data = (&raw const *content).cast_mut().cast();
            side.check(margo.margo_register_data(side.mid, side.ask, data, None))?;
            let mut descriptor = vec![0_u8; margo.HG_Bulk_get_serialize_size(memory, 0) as usize];
            let len = descriptor.len() as u64;
            side.check(margo.HG_Bulk_serialize(descriptor.as_mut_ptr().cast(), len, 0, memory))?;
            descriptor
        };
        let address = side.address()?;
        let contact = [address.as_bytes(), &[0], &descriptor].concat();
        Ok(Self { side, contact, memory, _content: content })
    }

    pub(crate) fn contact(&self) -> &[u8] {
        &self.contact
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: made by `start`, and used by nothing any more.
        unsafe {
            self.side.margo.margo_bulk_free(self.memory);
            self.side.margo.margo_finalize(self.side.mid);
        }
    }
}

/// The asking side.
pub(crate) struct Requester {
    side: Side,
    peer: hg_addr_t,
    theirs: hg_bulk_t,
    ours: hg_bulk_t,
    memory: Vec<u8>,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Requester {}

impl Requester {
    /// Reaches the owner of a contact, with memory for `len` bytes.
    pub(crate) fn connect(protocol: &str, contact: &[u8], len: usize) -> io::Result<Self> {
        let end = contact.iter().position(|byte| *byte == 0).ok_or(io::ErrorKind::InvalidData)?;
        let (address, descriptor) = (CString::new(&contact[..end])?, &contact[end + 1..]);
        let side = Side::start(protocol, false)?;
        let memory = vec![1; len];
        let ours = side.register(memory.as_ptr(), len, HG_BULK_WRITE_ONLY)?;
        let (mut peer, mut theirs) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a string, bytes of the length that is said, and places to write to.
        unsafe {
            side.check(side.margo.margo_addr_lookup(side.mid, address.as_ptr(), &mut peer))?;
            let class = side.margo.margo_get_class(side.mid);
            let (bytes, len) = (descriptor.as_ptr().cast(), descriptor.len() as u64);
            side.check(side.margo.HG_Bulk_deserialize(class, &mut theirs, bytes, len))?;
        }
        Ok(Self { side, peer, theirs, ours, memory })
    }

    /// The times of `n` transfers of `len` bytes: by the answer of an RPC below 64 KiB, by pulls from there on.
    pub(crate) fn fetch(self, n: usize, len: usize) -> io::Result<(Self, Vec<Duration>)> {
        let margo = self.side.margo;
        let mut this = self;
        margo
            .run_on_primary(move || {
                let mut times = Vec::with_capacity(n);
                for _ in 0..n {
                    let begin = Instant::now();
                    match len {
                        0..BULK => this.ask(len)?,
                        _ => this.pull(len)?,
                    }
                    times.push(begin.elapsed());
                }
                Ok((this, times))
            })
            .map_err(io::Error::other)?
    }

    fn ask(&mut self, len: usize) -> io::Result<()> {
        let (side, margo) = (&self.side, self.side.margo);
        let mut handle = ptr::null_mut();
        let (mut question, mut answer) = (Message::write(&(len as u32).to_le_bytes()), Message::read());
        // SAFETY: handles and messages of this call; the answer is copied before it is freed.
        unsafe {
            side.check(margo.margo_create(side.mid, self.peer, side.ask, &mut handle))?;
            let provider = MARGO_DEFAULT_PROVIDER_ID;
            side.check(margo.margo_provider_forward_timed(provider, handle, (&raw mut question).cast(), LIMIT_MS))?;
            side.check(margo.margo_get_output(handle, (&raw mut answer).cast()))?;
            let bytes = answer.bytes();
            self.memory[..bytes.len()].copy_from_slice(bytes);
            answer.act = FREE;
            side.check(margo.margo_free_output(handle, (&raw mut answer).cast()))?;
            side.check(margo.margo_destroy(handle))
        }
    }

    fn pull(&mut self, len: usize) -> io::Result<()> {
        let (side, margo) = (&self.side, self.side.margo);
        // SAFETY: both handles live; the memory is as long as it was registered, and this waits for the end.
        let outcome = unsafe {
            margo.margo_bulk_transfer_timed(
                side.mid,
                HG_BULK_PULL,
                self.peer,
                self.theirs,
                0,
                self.ours,
                0,
                len,
                LIMIT_MS,
            )
        };
        side.check(outcome)
    }
}

impl Drop for Requester {
    fn drop(&mut self) {
        /// Carries the handles to the thread that makes progress.
        struct Last(&'static Margo, margo_instance_id, hg_addr_t, [hg_bulk_t; 2]);
        // SAFETY: used there alone.
        unsafe impl Send for Last {}
        let last = Last(self.side.margo, self.side.mid, self.peer, [self.theirs, self.ours]);
        let _ = self.side.margo.run_on_primary(move || {
            let Last(margo, mid, peer, bulks) = { last };
            // SAFETY: made by `connect`, and used by nothing any more.
            unsafe {
                for bulk in bulks {
                    margo.margo_bulk_free(bulk);
                }
                margo.margo_addr_free(mid, peer);
                margo.margo_finalize(mid);
            }
        });
    }
}

/// An instance.
struct Side {
    margo: &'static Margo,
    mid: margo_instance_id,
    ask: hg_id_t,
}

impl Side {
    fn start(protocol: &str, listens: bool) -> io::Result<Self> {
        let margo = load().map_err(io::Error::other)?;
        let mut address = protocol.to_owned();
        if protocol == "ofi+tcp" {
            let job = Job::discover().map_err(io::Error::other)?;
            let (interfaces, _) = launch::interfaces(&job).map_err(io::Error::other)?;
            if let Some(ip) = interfaces.iter().flat_map(|interface| &interface.addresses).next() {
                address = match ip {
                    IpAddr::V4(ip) => format!("{protocol}://{ip}"),
                    IpAddr::V6(ip) => format!("{protocol}://[{ip}]"),
                };
            }
        }
        // Else it writes to standard output, where figures are.
        let level = std::env::var("HG_LOG_LEVEL").ok().filter(|level| level.bytes().all(|b| b.is_ascii_lowercase()));
        let larger = if address.starts_with("ofi+") { LARGER } else { "" };
        let mercury = format!("\"log_level\":\"{}\"{larger}", level.as_deref().unwrap_or("none"));
        let options = Options { address, listens, has_thread: listens, progress_ms: 50, mercury };
        let mid = margo.start(&options).map_err(io::Error::other)?;
        let mut pool = ptr::null_mut();
        // SAFETY: the instance started above; the callbacks stay.
        let ask = unsafe {
            margo.margo_set_log_level(mid, MARGO_LOG_CRITICAL);
            margo.margo_get_handler_pool(mid, &mut pool);
            margo.margo_provider_register_name(
                mid,
                c"bench.ask".as_ptr(),
                Some(process),
                Some(process),
                Some(asked),
                MARGO_DEFAULT_PROVIDER_ID,
                pool,
            )
        };
        let _ = ASK.set(ask);
        Ok(Self { margo, mid, ask })
    }

    fn register(&self, start: *const u8, len: usize, flags: u8) -> io::Result<hg_bulk_t> {
        let mut start = start.cast_mut().cast::<c_void>();
        let (len, mut bulk) = (len as u64, ptr::null_mut());
        // SAFETY: memory that stays for longer than the handle, by both callers.
        self.check(unsafe { self.margo.margo_bulk_create(self.mid, 1, &mut start, &len, flags, &mut bulk) })?;
        Ok(bulk)
    }

    fn address(&self) -> io::Result<String> {
        let (mut own, mut text) = (ptr::null_mut(), vec![0_u8; 1024]);
        let mut len = text.len() as u64;
        // SAFETY: places to write to, of the length that is said.
        unsafe {
            self.check(self.margo.margo_addr_self(self.mid, &mut own))?;
            self.check(self.margo.margo_addr_to_string(self.mid, text.as_mut_ptr().cast(), &mut len, own))?;
            self.margo.margo_addr_free(self.mid, own);
        }
        text.truncate(text.iter().position(|byte| *byte == 0).unwrap_or(0));
        String::from_utf8(text).map_err(io::Error::other)
    }

    fn check(&self, outcome: hg_return_t) -> io::Result<()> {
        match outcome {
            HG_SUCCESS => Ok(()),
            outcome => Err(io::Error::other(format!("Mercury says {} ({outcome})", self.margo.describe(outcome)))),
        }
    }
}

/// Bytes of a message; what to do with them, since Mercury's own word for that differs by version.
#[repr(C)]
struct Message {
    act: u32,
    len: u32,
    bytes: *const u8,
}

const WRITE: u32 = 0;
const READ: u32 = 1;
const FREE: u32 = 2;

impl Message {
    fn write(bytes: &[u8]) -> Self {
        Self { act: WRITE, len: bytes.len() as u32, bytes: bytes.as_ptr() }
    }

    fn read() -> Self {
        Self { act: READ, len: 0, bytes: ptr::null() }
    }

    /// # Safety
    /// What it was read from is not freed yet.
    unsafe fn bytes(&self) -> &[u8] {
        match self.bytes.is_null() {
            true => &[],
            // SAFETY: so many were read; the caller's for the rest.
            false => unsafe { slice::from_raw_parts(self.bytes, self.len as usize) },
        }
    }
}

unsafe extern "C" fn process(position: hg_proc_t, data: *mut c_void) -> hg_return_t {
    let Ok(margo) = load() else { return HG_NOMEM };
    // SAFETY: `data` is a `Message`; positions are those of the message that is made or read.
    unsafe {
        let message = &mut *data.cast::<Message>();
        let start = match message.act {
            FREE => return HG_SUCCESS,
            _ => margo.hg_proc_save_ptr(position, 4),
        };
        if start.is_null() {
            return HG_NOMEM;
        }
        if message.act == READ {
            message.len = u32::from_le_bytes(start.cast::<[u8; 4]>().read_unaligned());
            if message.len > MOST {
                return HG_OVERFLOW;
            }
        } else {
            start.cast::<[u8; 4]>().write_unaligned(message.len.to_le_bytes());
        }
        margo.hg_proc_restore_ptr(position, start, 4);
        let start = margo.hg_proc_save_ptr(position, message.len.into());
        match message.act {
            READ => message.bytes = start.cast(),
            _ => ptr::copy_nonoverlapping(message.bytes, start.cast(), message.len as usize),
        }
        margo.hg_proc_restore_ptr(position, start, message.len.into())
    }
}

unsafe extern "C" fn asked(handle: hg_handle_t) -> hg_return_t {
    let (Ok(margo), Some(ask)) = (load(), ASK.get()) else { return HG_SUCCESS };
    // SAFETY: Mercury's handle; the content lives as long as the owner's instance.
    unsafe {
        margo.__margo_internal_set_handle_data(handle);
        let mid = margo.margo_hg_handle_get_instance(handle);
        let mut question = Message::read();
        if margo.margo_get_input(handle, (&raw mut question).cast()) == HG_SUCCESS {
            let len = question.bytes().try_into().map_or(0, u32::from_le_bytes);
            question.act = FREE;
            margo.margo_free_input(handle, (&raw mut question).cast());
            let content = &*margo.margo_registered_data(mid, *ask).cast::<Content>();
            let mut answer = Message::write(&content.0[..content.0.len().min(len as usize)]);
            margo.margo_crespond(handle, (&raw mut answer).cast(), None, ptr::null_mut());
        }
        margo.margo_destroy(handle);
    }
    HG_SUCCESS
}

/// The same in all instances: it follows from the name.
static ASK: std::sync::OnceLock<hg_id_t> = std::sync::OnceLock::new();

/// As `margo://` has it: messages in which an answer of 4 KiB fits.
const LARGER: &str = ",\"na_max_unexpected_size\":8192,\"na_max_expected_size\":8192";

/// From here on bytes are pulled.
const BULK: usize = 64 << 10;

/// No answer is longer.
const MOST: u32 = 1 << 20;

const LIMIT_MS: f64 = 10_000.0;
