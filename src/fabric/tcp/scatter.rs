//! `Scatter`: receiving straight into landings.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use super::socket::{Moved, Socket, moved};
use crate::fabric::Landing;

/// What to do when there is nothing to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Return.
    None,
    /// Wait for as long as the socket was told to at [`Socket::be_patient`].
    Some,
}

/// Receives into landings, one after the other, and what is left over into `behind`; how many bytes went there.
///
/// # Cost
/// One system call, no copy but the kernel's.
///
/// # Errors
/// `UnexpectedEof` when the peer sends no more.
pub(super) fn receive(
    socket: &Socket,
    landings: &mut [Landing],
    behind: &mut [u8],
    patience: Patience,
) -> io::Result<(Moved, usize)> {
    let mut places = [EMPTY; MOST + 1];
    let mut count = 0;
    // One call moves no more than a socket holds; more places only cost time.
    let mut missing = 0usize;
    let mut all = true;
    for landing in &mut *landings {
        if count == MOST || missing >= FAR {
            all = false;
            break;
        }
        let rest = landing.rest();
        if !rest.is_empty() {
            missing += rest.len();
            places[count] = libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() };
            count += 1;
        }
    }
    if all && !behind.is_empty() {
        places[count] = libc::iovec { iov_base: behind.as_mut_ptr().cast(), iov_len: behind.len() };
        count += 1;
    }
    if count == 0 {
        return Ok((Moved::Bytes(0), 0));
    }
    let got = match moved(|| receive_raw(socket, &mut places[..count], patience))? {
        Moved::None => return Ok((Moved::None, 0)),
        Moved::Bytes(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
        Moved::Bytes(got) => got,
    };
    let mut left = got;
    for landing in landings {
        let now = landing.missing().min(left);
        // SAFETY: the kernel wrote `got` bytes to the places in order, of which the next `now` are this landing's.
        unsafe { landing.filled(now) };
        left -= now;
        if left == 0 {
            break;
        }
    }
    Ok((Moved::Bytes(got), left))
}

/// The CRC32 of a landing that is full.
pub(super) fn checksum(landing: &mut Landing) -> u32 {
    if !landing.is_full() || landing.len() == 0 {
        return crc32fast::hash(&[]);
    }
    // SAFETY: all `len` bytes behind the pointer are this landing's and were written.
    crc32fast::hash(unsafe { std::slice::from_raw_parts(landing.as_mut_ptr(), landing.len()) })
}

fn receive_raw(socket: &Socket, places: &mut [libc::iovec], patience: Patience) -> rustix::io::Result<usize> {
    let flags = if patience == Patience::None { libc::MSG_DONTWAIT } else { 0 };
    // SAFETY: a message header of zeros is a valid, empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = places.as_mut_ptr();
    message.msg_iovlen = places.len() as _;
    // SAFETY: the places are memory of landings and of a buffer, each borrowed mutably by the caller and valid for writes.
    let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    usize::try_from(got).map_err(|_| {
        let error = io::Error::last_os_error();
        rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
    })
}

const EMPTY: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };

/// Most landings of one call.
const MOST: usize = 64;

/// More than a call moves.
const FAR: usize = 64 << 20;
