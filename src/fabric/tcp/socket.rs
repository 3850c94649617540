//! `Socket`: a TCP connection whose calls never raise SIGPIPE, and never block unless told to.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags, SocketType, ipproto,
};

use crate::error::{Error, ErrorKind};

/// A connection, or a listener.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

/// What became of bytes to be sent or received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many, at least one.
    Bytes(usize),
    /// None now: wait until the socket is ready.
    None,
}

impl Socket {
    /// Listens at an address, whose port may be 0 for one that the system chooses.
    pub(super) fn listen(address: SocketAddr) -> io::Result<Self> {
        let socket = Self::new(address)?;
        // Or a restarted service waits a minute for the connections of its predecessor to be forgotten.
        sockopt::set_socket_reuseaddr(&socket.0, true)?;
        rustix::net::bind(&socket.0, &address)?;
        rustix::net::listen(&socket.0, BACKLOG)?;
        Ok(socket)
    }

    /// Begins to connect; it is ready to be written to when that ended.
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        let socket = Self::new(address)?;
        match rustix::net::connect(&socket.0, &address) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    }

    fn new(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(Self(rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?))
    }

    /// The next connection, if there is one.
    pub(super) fn accept(&self) -> io::Result<Option<Self>> {
        loop {
            match rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Ok(Some(Self(socket))),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether connecting ended well; called when the socket is ready to be written to.
    pub(super) fn connected(&self) -> io::Result<()> {
        Ok(sockopt::socket_error(&self.0)??)
    }

    /// No waiting for more bytes to send together, and the kernel's own look at whether the peer lives.
    ///
    /// The kernel's comes second: it sees a dead host, while a stopped process is alive to it.
    pub(super) fn configure(&self, silence: Duration) -> io::Result<()> {
        sockopt::set_tcp_nodelay(&self.0, true)?;
        sockopt::set_tcp_user_timeout(&self.0, u32::try_from(silence.as_millis()).unwrap_or(u32::MAX))?;
        sockopt::set_socket_keepalive(&self.0, true)?;
        // Whole seconds: at least one.
        let probe = (silence / 4).max(Duration::from_secs(1));
        sockopt::set_tcp_keepidle(&self.0, probe)?;
        sockopt::set_tcp_keepintvl(&self.0, probe)?;
        sockopt::set_tcp_keepcnt(&self.0, 3)?;
        Ok(())
    }

    /// Makes calls that may wait do so, for as long as this.
    pub(super) fn be_patient(&self, patience: Duration) -> io::Result<()> {
        sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(patience))?;
        Ok(rustix::io::ioctl_fionbio(&self.0, false)?)
    }

    /// This side's address.
    pub(super) fn address(&self) -> io::Result<SocketAddr> {
        Ok(SocketAddr::try_from(rustix::net::getsockname(&self.0)?)?)
    }

    /// The other side's address, as far as it is known.
    pub(super) fn peer(&self) -> Option<SocketAddr> {
        rustix::net::getpeername(&self.0).ok().flatten().and_then(|address| SocketAddr::try_from(address).ok())
    }

    /// Sends from several places, as much as the socket takes now.
    pub(super) fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<Moved> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        moved(|| rustix::net::sendmsg(&self.0, slices, &mut SendAncillaryBuffer::default(), flags))
    }

    /// Receives what is there.
    ///
    /// # Errors
    /// `UnexpectedEof` when the peer sends no more.
    pub(super) fn recv(&self, buffer: &mut [u8]) -> io::Result<Moved> {
        let end = !buffer.is_empty();
        match moved(|| Ok(rustix::net::recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT)?.0))? {
            Moved::Bytes(0) if end => Err(io::ErrorKind::UnexpectedEof.into()),
            moved => Ok(moved),
        }
    }

    /// Waits until the socket is ready for one of `events`, or the time has come.
    pub(super) fn wait(&self, events: PollFlags, until: Instant) -> io::Result<PollFlags> {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, or the last part of a millisecond is spent in a loop.
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut descriptors = [PollFd::new(&self.0, events)];
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) => Ok(descriptors[0].revents()),
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends the connection for both sides, also where a forked child holds its descriptor; wakes who waits for it.
    pub(super) fn shutdown(&self) {
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn moved(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<Moved> {
    loop {
        match call() {
            Ok(bytes) => return Ok(Moved::Bytes(bytes)),
            Err(Errno::AGAIN) => return Ok(Moved::None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The error for a peer that cannot be reached, or any more.
pub(super) fn down(op: &'static str, address: SocketAddr, error: io::Error) -> Error {
    use io::ErrorKind as Os;
    match error.kind() {
        Os::UnexpectedEof => Error::new(ErrorKind::PeerDown, op, format!("{address} closed the connection")),
        Os::ConnectionRefused
        | Os::ConnectionReset
        | Os::ConnectionAborted
        | Os::BrokenPipe
        | Os::TimedOut
        | Os::HostUnreachable
        | Os::NetworkUnreachable
        | Os::NetworkDown
        | Os::NotConnected => Error::new(ErrorKind::PeerDown, op, address.to_string()).with_source(error),
        _ => Error::io(op, address.to_string(), error),
    }
}

/// Connections that wait to be accepted; the system's own limit (net.core.somaxconn) holds too.
const BACKLOG: i32 = 4096;
