//! `Message`: bytes in an RPC, written and read without a look into Mercury's structures.

use std::ffi::c_void;
use std::slice;

use margo_sys::{HG_NOMEM, HG_OVERFLOW, HG_SUCCESS, hg_proc_t, hg_return_t};

use super::super::wire::LONGEST;
use super::load;

/// What margo hands to [`process`]. It says itself what is to be done, because where Mercury keeps that differs by version.
#[repr(C)]
pub(super) struct Message {
    act: Act,
    /// To be written, one after the other.
    pieces: *const &'static [u8],
    count: usize,
    /// Read.
    bytes: *const u8,
    len: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Write,
    Read,
    Free,
}

impl Message {
    /// A message to be written; it is valid for as long as the pieces are borrowed where this is called.
    pub(super) fn write(pieces: &[&[u8]]) -> Self {
        Self { act: Act::Write, pieces: pieces.as_ptr().cast(), count: pieces.len(), bytes: std::ptr::null(), len: 0 }
    }

    /// A message to be read.
    pub(super) fn read() -> Self {
        Self { act: Act::Read, pieces: std::ptr::null(), count: 0, bytes: std::ptr::null(), len: 0 }
    }

    /// What was read.
    ///
    /// # Safety
    /// Mercury's buffer, from which it was read, is not freed yet.
    pub(super) unsafe fn bytes(&self) -> &[u8] {
        match self.bytes.is_null() {
            true => &[],
            // SAFETY: `process` found so many bytes there; the caller's for the rest.
            false => unsafe { slice::from_raw_parts(self.bytes, self.len) },
        }
    }

    /// The next time it is passed, it is to be freed, which is nothing.
    pub(super) fn free(&mut self) {
        self.act = Act::Free;
    }
}

/// Writes or reads a message: four bytes of length, and the bytes.
pub(super) unsafe extern "C" fn process(position: hg_proc_t, data: *mut c_void) -> hg_return_t {
    let Ok(margo) = load() else { return HG_NOMEM };
    // SAFETY: what `Instance` passed, borrowed for the time of its call.
    let message = unsafe { &mut *data.cast::<Message>() };
    match message.act {
        Act::Write => {
            // SAFETY: `write` was called with them, in the frame that passed this message.
            let pieces = unsafe { slice::from_raw_parts(message.pieces, message.count) };
            let len: usize = pieces.iter().map(|piece| piece.len()).sum();
            let Some(prefix) = u32::try_from(len).ok().filter(|_| len <= LONGEST) else { return HG_OVERFLOW };
            // SAFETY: the position is that of the message that is made; it has room for so many bytes, or there is none.
            unsafe {
                let start = margo.hg_proc_save_ptr(position, 4 + len as u64);
                if start.is_null() {
                    return HG_NOMEM;
                }
                let mut at = start.cast::<u8>();
                for piece in [&prefix.to_le_bytes()[..]].iter().chain(pieces) {
                    at.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                    at = at.add(piece.len());
                }
                margo.hg_proc_restore_ptr(position, start, 4 + len as u64)
            }
        }
        Act::Read => {
            // SAFETY: the position is that of a message that came. It is made longer rather than refused when it ends too
            // early, hence the bound; what is read then is nonsense, and recognised as such by its checksum.
            unsafe {
                let start = margo.hg_proc_save_ptr(position, 4);
                if start.is_null() {
                    return HG_NOMEM;
                }
                let len = u32::from_le_bytes(start.cast::<[u8; 4]>().read_unaligned()) as usize;
                let outcome = margo.hg_proc_restore_ptr(position, start, 4);
                if outcome != HG_SUCCESS {
                    return outcome;
                }
                if len > LONGEST {
                    return HG_OVERFLOW;
                }
                let start = margo.hg_proc_save_ptr(position, len as u64);
                if start.is_null() && len > 0 {
                    return HG_NOMEM;
                }
                message.bytes = start.cast();
                message.len = len;
                margo.hg_proc_restore_ptr(position, start, len as u64)
            }
        }
        Act::Free => HG_SUCCESS,
    }
}
