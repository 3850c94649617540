//! `Socket`: packets and descriptors between the processes of one user.

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, geteuid, pidfd_open};

use super::directory::{Directory, SOCKET};
use crate::error::{Error, ErrorKind, Result};

/// Longest packet, in bytes.
pub(crate) const MAX_PACKET: usize = 64 << 10;

/// Most descriptors in a packet: a little fewer than the kernel's 253.
pub(crate) const MAX_FDS: usize = 250;

/// A Unix socket that keeps packets apart (`SOCK_SEQPACKET`) and carries descriptors. Neither `send` nor `recv` blocks.
#[derive(Debug)]
pub(crate) struct Socket(OwnedFd);

/// What became of a packet to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Sent {
    /// It is in the peer's queue, whole.
    Done,
    /// The queue is full: nothing was sent. Try again when the socket can be written to.
    WouldBlock,
}

/// What there was to receive.
#[derive(Debug)]
#[must_use]
pub(crate) enum Received {
    /// One packet; its bytes are in the buffer.
    Packet {
        /// The descriptors that came with it, in order.
        fds: Vec<OwnedFd>,
    },
    /// Nothing yet.
    WouldBlock,
    /// The peer closed its end, or died with it. Not the end of the peer: a process may close early and a forked child may
    /// keep the socket open.
    Closed,
}

/// The process at the other end, as it was when it connected.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    /// Unknown when it lives in a pid namespace that this process does not see.
    pub(crate) pid: Option<u32>,
    /// Becomes readable when the process ends. None where the kernel has no such thing, or the process ended already.
    pub(crate) pidfd: Option<OwnedFd>,
}

impl Socket {
    /// Listens in a directory. Only the holder of its host lock may, because a socket that is there already is removed: its
    /// listener is dead, or stopped hosting.
    ///
    /// # Errors
    /// When the directory is gone or not writable.
    pub(crate) fn listen(directory: &Directory) -> Result<Self> {
        let path = directory.socket();
        let fail = |error: Errno| Error::io("listen", path.display().to_string(), error.into());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("listen", path.display().to_string(), error));
            }
            _ => {}
        }
        let socket = Self::new(SocketFlags::NONBLOCK).map_err(fail)?;
        let address = Address::of(directory)?;
        rustix::net::bind(&socket.0, &address.address).map_err(fail)?;
        // Until here only the directory kept others out, as it does on its own.
        rustix::fs::chmodat(CWD, &path, Mode::RUSR | Mode::WUSR, AtFlags::empty()).map_err(fail)?;
        rustix::net::listen(&socket.0, BACKLOG).map_err(fail)?;
        Ok(socket)
    }

    /// The next process that connected, if one did. Nothing is known of it yet: [`check_user`](Self::check_user) comes next.
    ///
    /// # Errors
    /// `NoSpace` when this process has no descriptors left: the caller stays in the queue.
    pub(crate) fn accept(&self) -> Result<Option<Self>> {
        loop {
            match rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Ok(Some(Self(socket))),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error @ (Errno::MFILE | Errno::NFILE)) => {
                    return Err(
                        Error::new(ErrorKind::NoSpace, "accept", NO_DESCRIPTORS).with_source(io::Error::from(error))
                    );
                }
                Err(error) => return Err(Error::io("accept", "", error.into())),
            }
        }
    }

    /// Connects to the service in a directory, and checks that it is this user's.
    ///
    /// # Cost
    /// Waits up to five seconds where more processes connect at once than the service has room for.
    ///
    /// # Errors
    /// `NotFound` when nobody listens, `Timeout` when the service accepts nobody, `Permission` when it is another user's.
    pub(crate) fn connect(directory: &Directory) -> Result<Self> {
        let path = directory.socket();
        let fail = |error: Errno| {
            let source = io::Error::from(error);
            let context = path.display().to_string();
            match error {
                // The socket of a dead service.
                Errno::CONNREFUSED => Error::new(ErrorKind::NotFound, "connect", context).with_source(source),
                Errno::AGAIN => Error::new(ErrorKind::Timeout, "connect", context).with_source(source),
                _ => Error::io("connect", context, source),
            }
        };
        let address = Address::of(directory)?;
        let socket = Self::new(SocketFlags::empty()).map_err(fail)?;
        set_socket_timeout(&socket.0, Timeout::Send, Some(CONNECT_TIMEOUT)).map_err(fail)?;
        rustix::io::retry_on_intr(|| rustix::net::connect(&socket.0, &address.address)).map_err(fail)?;
        rustix::io::ioctl_fionbio(&socket.0, true).map_err(fail)?;
        socket.check_user()?;
        Ok(socket)
    }

    /// Two connected sockets.
    ///
    /// # Errors
    /// `NoSpace` when this process has no descriptors left.
    pub(crate) fn pair() -> Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None) {
            Ok((one, other)) => Ok((Self(one), Self(other))),
            Err(error) => Err(Error::io("connect", "a pair of sockets", error.into())),
        }
    }

    /// Takes over a socket that another process made, with [`pair`](Self::pair).
    ///
    /// # Errors
    /// `Invalid` when the descriptor is no socket of this kind.
    pub(crate) fn from_descriptor(descriptor: OwnedFd) -> Result<Self> {
        let fail =
            |error: Errno| Error::new(ErrorKind::Invalid, "open", "not a socket").with_source(io::Error::from(error));
        let domain = rustix::net::sockopt::socket_domain(&descriptor).map_err(fail)?;
        let kind = rustix::net::sockopt::socket_type(&descriptor).map_err(fail)?;
        if domain != AddressFamily::UNIX || kind != SocketType::SEQPACKET {
            return Err(Error::new(ErrorKind::Invalid, "open", "a socket, but not one of packets in this node"));
        }
        rustix::io::ioctl_fionbio(&descriptor, true).map_err(fail)?;
        rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC).map_err(fail)?;
        Ok(Self(descriptor))
    }

    /// Sends one packet, with duplicates of `fds`: all or nothing.
    ///
    /// # Cost
    /// One system call, one copy by the kernel; no allocation. Never blocks, never raises SIGPIPE.
    ///
    /// # Errors
    /// `Closed` when the peer is gone, `TooLarge` for more than [`MAX_PACKET`] bytes or [`MAX_FDS`] descriptors, `NoSpace`
    /// when too many descriptors wait in queues of this user (`RLIMIT_NOFILE` bounds them).
    pub(crate) fn send(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<Sent> {
        if packet.is_empty() {
            // Its receiver would take it for the end.
            return Err(Error::new(ErrorKind::Invalid, "send", "an empty packet"));
        }
        if packet.len() > MAX_PACKET || fds.len() > MAX_FDS {
            let context = format!(
                "a packet of {} bytes with {} descriptors; {MAX_PACKET} and {MAX_FDS} are allowed",
                packet.len(),
                fds.len()
            );
            return Err(Error::new(ErrorKind::TooLarge, "send", context));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::new(ErrorKind::TooLarge, "send", "too many descriptors"));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent =
            rustix::io::retry_on_intr(|| rustix::net::sendmsg(&self.0, &[IoSlice::new(packet)], &mut control, flags));
        match sent {
            Ok(_) => Ok(Sent::Done),
            Err(Errno::AGAIN) => Ok(Sent::WouldBlock),
            Err(error) => {
                let kind = match error {
                    Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => ErrorKind::Closed,
                    Errno::MSGSIZE => ErrorKind::TooLarge,
                    Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM => ErrorKind::NoSpace,
                    _ => ErrorKind::Io,
                };
                Err(Error::new(kind, "send", "").with_source(io::Error::from(error)))
            }
        }
    }

    /// Receives one packet into `buffer`, whose old content goes.
    ///
    /// # Cost
    /// One system call, one copy by the kernel; clears up to [`MAX_PACKET`] bytes of the buffer. Never blocks.
    ///
    /// # Errors
    /// `Invalid` for a packet that is longer, or has more descriptors, than a peer sends; `NoSpace` when descriptors were
    /// lost because this process has no room for them. The packet is gone then, and what came with it closed: the two ends
    /// no longer agree, so the connection should end.
    pub(crate) fn recv(&self, buffer: &mut Vec<u8>) -> Result<Received> {
        buffer.resize(MAX_PACKET, 0);
        let received = self.recv_into(buffer);
        let len = received.as_ref().map_or(0, |(len, _)| *len);
        buffer.truncate(len);
        received.map(|(_, received)| received)
    }

    fn recv_into(&self, buffer: &mut [u8]) -> Result<(usize, Received)> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_MAX_FDS))];
        // Closes, when dropped, the descriptors that were not taken out.
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut reset = false;
        let message = loop {
            match rustix::net::recvmsg(&self.0, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
                Ok(message) => break message,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok((0, Received::WouldBlock)),
                // A peer that ended with something unread resets the connection; what it sent before is still here, and
                // may be the only descriptor of memory that others use. The kernel says it once (unix(7)).
                Err(Errno::CONNRESET) if !reset => reset = true,
                Err(Errno::CONNRESET) => return Ok((0, Received::Closed)),
                Err(error) => return Err(Error::io("receive", "", error.into())),
            }
        };
        if message.flags.contains(ReturnFlags::TRUNC) {
            let context = format!("a packet of over {MAX_PACKET} bytes");
            return Err(Error::new(ErrorKind::Invalid, "receive", context));
        }
        // There is room for as many as the kernel passes at all.
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::new(ErrorKind::NoSpace, "receive", NO_DESCRIPTORS));
        }
        let mut fds = Vec::new();
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
                _ => return Err(Error::new(ErrorKind::Invalid, "receive", "a packet with something unasked-for")),
            }
        }
        if fds.len() > MAX_FDS {
            let context = format!("a packet with {} descriptors, {MAX_FDS} are allowed", fds.len());
            return Err(Error::new(ErrorKind::Invalid, "receive", context));
        }
        match message.bytes {
            0 => Ok((0, Received::Closed)),
            len => Ok((len, Received::Packet { fds })),
        }
    }

    /// The process at the other end.
    ///
    /// Where the kernel cannot hand out a pidfd of the peer itself (before Linux 6.5), one is opened by number. The number
    /// might be another process's by then, if the peer ended and numbers wrapped around in between; asked right after
    /// `accept`, that is a matter of microseconds against at least 32768 new processes.
    ///
    /// # Errors
    /// When the socket is not connected.
    pub(crate) fn peer(&self) -> Result<Peer> {
        let fail = |error: Errno| Error::io("connect", "credentials of the peer", error.into());
        // SAFETY: all fields are integers, of which zero is a value.
        let mut credentials: libc::ucred = unsafe { std::mem::zeroed() };
        // SAFETY: SO_PEERCRED writes one `ucred`.
        unsafe { option(self.0.as_fd(), libc::SO_PEERCRED, &mut credentials) }.map_err(fail)?;
        // Not through rustix, whose type for it rules out the 0 of another pid namespace.
        let pid = u32::try_from(credentials.pid).ok().filter(|pid| *pid > 0);
        let mut raw: libc::c_int = -1;
        // SAFETY: SO_PEERPIDFD writes one `int`.
        let pidfd = match unsafe { option(self.0.as_fd(), SO_PEERPIDFD, &mut raw) } {
            // SAFETY: the kernel made this descriptor for this call, so nobody else owns it.
            Ok(()) if raw >= 0 => Some(unsafe { OwnedFd::from_raw_fd(raw) }),
            Ok(()) => None,
            Err(Errno::NOPROTOOPT) => {
                let pid = Pid::from_raw(credentials.pid);
                pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            }
            Err(_) => None,
        };
        Ok(Peer { uid: credentials.uid, pid, pidfd })
    }

    /// Refuses a peer of another user.
    ///
    /// # Errors
    /// `Permission`, naming both users.
    pub(crate) fn check_user(&self) -> Result<Peer> {
        let peer = self.peer()?;
        let own = geteuid().as_raw();
        if peer.uid == own {
            return Ok(peer);
        }
        let context = format!("the process at the other end is of user {}, this one of {own}", peer.uid);
        Err(Error::new(ErrorKind::Permission, "connect", context))
    }

    fn new(flags: SocketFlags) -> rustix::io::Result<Self> {
        let flags = flags | SocketFlags::CLOEXEC;
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map(Self)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The address of a directory's socket, and what it refers to.
struct Address {
    address: SocketAddrUnix,
    _handle: Option<OwnedFd>,
}

impl Address {
    fn of(directory: &Directory) -> Result<Self> {
        let path = directory.socket();
        let fail = |error: Errno| Error::io("connect", path.display().to_string(), error.into());
        if path.as_os_str().as_bytes().len() < MAX_PATH {
            return Ok(Self { address: SocketAddrUnix::new(&path).map_err(fail)?, _handle: None });
        }
        let handle = directory.handle()?;
        let short = format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd());
        Ok(Self { address: SocketAddrUnix::new(short).map_err(fail)?, _handle: Some(handle) })
    }
}

/// Reads a socket option.
///
/// # Safety
/// The option's value is a `T` for which all bit patterns are values.
unsafe fn option<T>(socket: BorrowedFd<'_>, name: libc::c_int, value: &mut T) -> rustix::io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` has room for `len` bytes, and the caller says what they become.
    let status =
        unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut *value).cast(), &raw mut len) };
    match status {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

const NO_DESCRIPTORS: &str = "this process has no descriptors left; raise `ulimit -n`";

/// `sun_path` of a `sockaddr_un` with its final zero: unix(7).
const MAX_PATH: usize = 108;

/// `SCM_MAX_FD`: include/net/scm.h.
const KERNEL_MAX_FDS: usize = 253;

/// More than connect at once on one node; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Linux 6.5; include/uapi/asm-generic/socket.h, the same on all architectures that we build for.
const SO_PEERPIDFD: libc::c_int = 77;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn received(socket: &Socket, buffer: &mut Vec<u8>) -> Vec<OwnedFd> {
        match socket.recv(buffer).unwrap() {
            Received::Packet { fds } => fds,
            other => panic!("{other:?}"),
        }
    }

    fn inode(descriptor: &OwnedFd) -> u64 {
        rustix::fs::fstat(descriptor).unwrap().st_ino
    }

    /// A directory of a namespace, at least `len` bytes deep.
    fn directory(len: usize) -> (tempfile::TempDir, Directory) {
        let root = tempfile::tempdir().unwrap();
        let mut path = root.path().to_owned();
        while path.as_os_str().len() < len {
            path.push("x".repeat(40));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let directory = Directory::at(&path, "n").unwrap();
        (root, directory)
    }

    #[test]
    fn packets_stay_apart() {
        let (one, other) = Socket::pair().unwrap();
        let mut buffer = vec![9; 5];
        assert!(matches!(other.recv(&mut buffer).unwrap(), Received::WouldBlock));
        assert!(buffer.is_empty());
        assert_eq!(one.send(b"first", &[]).unwrap(), Sent::Done);
        assert_eq!(one.send(&[7; MAX_PACKET], &[]).unwrap(), Sent::Done);
        assert!(received(&other, &mut buffer).is_empty());
        assert_eq!(buffer, b"first");
        assert!(received(&other, &mut buffer).is_empty());
        assert_eq!(buffer, [7; MAX_PACKET]);
        assert_eq!(one.send(&[], &[]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(one.send(&[0; MAX_PACKET + 1], &[]).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn descriptors_come_in_order() {
        let (one, other) = Socket::pair().unwrap();
        let files: Vec<OwnedFd> = (0..MAX_FDS).map(|_| tempfile::tempfile().unwrap().into()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        assert_eq!(one.send(b"x", &borrowed).unwrap(), Sent::Done);
        let mut buffer = Vec::new();
        let fds = received(&other, &mut buffer);
        assert_eq!(fds.iter().map(inode).collect::<Vec<_>>(), files.iter().map(inode).collect::<Vec<_>>());
        for fd in &fds {
            assert!(rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
        let more: Vec<BorrowedFd<'_>> = borrowed.iter().copied().chain([files[0].as_fd()]).collect();
        assert_eq!(one.send(b"x", &more).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn what_is_refused_is_closed() {
        let (one, other) = Socket::pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut buffer = Vec::new();
        for (len, fds) in [(MAX_PACKET + 1, 1), (1, MAX_FDS + 1), (MAX_PACKET + 1, KERNEL_MAX_FDS)] {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(KERNEL_MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = vec![writer.as_fd(); fds];
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
            let packet = vec![1; len];
            let iov = [IoSlice::new(&packet)];
            rustix::net::sendmsg(&one.0, &iov, &mut control, SendFlags::empty()).unwrap();
            assert_eq!(other.recv(&mut buffer).unwrap_err().kind(), ErrorKind::Invalid);
            assert!(buffer.is_empty());
            assert!(matches!(other.recv(&mut buffer).unwrap(), Received::WouldBlock), "it is gone");
        }
        // Had one stayed open, the pipe would not be at its end.
        drop(writer);
        let mut fds = [PollFd::new(&reader, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        assert!(fds[0].revents().contains(PollFlags::HUP));
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_full_queue_blocks_nobody() {
        let (one, other) = Socket::pair().unwrap();
        let mut sent = 0;
        while one.send(&[1; 1000], &[]).unwrap() == Sent::Done {
            sent += 1;
            assert!(sent < 100_000);
        }
        let mut buffer = Vec::new();
        for _ in 0..sent {
            let _ = received(&other, &mut buffer);
        }
        assert_eq!(one.send(&[1; 1000], &[]).unwrap(), Sent::Done);
    }

    #[test]
    fn a_peer_that_vanishes() {
        let (one, other) = Socket::pair().unwrap();
        assert_eq!(one.send(b"last words", &[]).unwrap(), Sent::Done);
        drop(one);
        let mut buffer = Vec::new();
        assert!(received(&other, &mut buffer).is_empty());
        assert!(matches!(other.recv(&mut buffer).unwrap(), Received::Closed));
        assert_eq!(other.send(b"x", &[]).unwrap_err().kind(), ErrorKind::Closed);
        // With something unread in its queue.
        let (one, other) = Socket::pair().unwrap();
        assert_eq!(one.send(b"unread", &[]).unwrap(), Sent::Done);
        drop(other);
        assert!(matches!(one.recv(&mut buffer).unwrap(), Received::Closed));
        assert_eq!(one.send(b"x", &[]).unwrap_err().kind(), ErrorKind::Closed);
    }

    #[test]
    fn meeting_in_a_directory() {
        // The longest path that fits in an address, and some that do not.
        for len in [0, 60, 110, 400] {
            let (_root, directory) = directory(len);
            assert!(Socket::connect(&directory).unwrap_err().is_not_found(), "nothing there");
            let listener = Socket::listen(&directory).unwrap();
            assert!(listener.accept().unwrap().is_none());
            assert_eq!(directory.socket().metadata().unwrap().mode() & 0o777, 0o600);
            let client = Socket::connect(&directory).unwrap();
            let server = listener.accept().unwrap().unwrap();
            assert_eq!(client.send(b"hello", &[]).unwrap(), Sent::Done);
            let mut buffer = Vec::new();
            let _ = received(&server, &mut buffer);
            assert_eq!(buffer, b"hello");
            assert!(matches!(server.recv(&mut buffer).unwrap(), Received::WouldBlock));
            assert!(matches!(client.recv(&mut buffer).unwrap(), Received::WouldBlock), "it does not block either");
            drop(listener);
            assert!(Socket::connect(&directory).unwrap_err().is_not_found(), "its listener is gone");
            let listener = Socket::listen(&directory).unwrap();
            let _client = Socket::connect(&directory).unwrap();
            assert!(listener.accept().unwrap().is_some());
        }
    }

    #[test]
    fn the_peer_is_known() {
        let (_root, directory) = directory(0);
        let listener = Socket::listen(&directory).unwrap();
        let client = Socket::connect(&directory).unwrap();
        let server = listener.accept().unwrap().unwrap();
        for socket in [&client, &server] {
            let peer = socket.check_user().unwrap();
            assert_eq!((peer.uid, peer.pid), (geteuid().as_raw(), Some(std::process::id())));
            let pidfd = peer.pidfd.expect("Linux 5.3 or later");
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            assert_eq!(poll(&mut fds, Some(&Default::default())).unwrap(), 0, "this process lives");
        }
    }

    #[test]
    fn a_dead_peer_is_seen_by_its_pidfd() {
        let (_root, directory) = directory(0);
        let listener = Socket::listen(&directory).unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["service::wire::tests::child", "--exact", "--ignored"])
            .env("WIRE_TEST_DIRECTORY", directory.path())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let mut fds = [PollFd::new(&listener.0, PollFlags::IN)];
        poll(&mut fds, None).unwrap();
        let server = listener.accept().unwrap().unwrap();
        let peer = server.check_user().unwrap();
        assert_eq!(peer.pid, Some(child.id()));
        let pidfd = peer.pidfd.unwrap();
        let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
        assert_eq!(poll(&mut fds, Some(&Default::default())).unwrap(), 0);
        child.kill().unwrap();
        poll(&mut fds, None).unwrap();
        child.wait().unwrap();
        let mut buffer = Vec::new();
        assert!(matches!(server.recv(&mut buffer).unwrap(), Received::Closed));
    }

    #[test]
    #[ignore = "no test: the other process of the tests here"]
    fn child() {
        let Some(path) = std::env::var_os("WIRE_TEST_DIRECTORY").map(std::path::PathBuf::from) else { return };
        let directory = Directory::at(path.parent().unwrap(), "n").unwrap();
        let _socket = Socket::connect(&directory).unwrap();
        std::thread::sleep(Duration::from_secs(20));
    }

    #[test]
    fn without_descriptors_left() {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["service::wire::tests::limited", "--exact", "--ignored", "--nocapture"])
            .env("WIRE_TEST_LIMITED", "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("limited: done"), "{text}");
    }

    #[test]
    #[ignore = "no test: a process of few descriptors for the tests here"]
    fn limited() {
        use rustix::process::{Resource, getrlimit, setrlimit};
        if std::env::var_os("WIRE_TEST_LIMITED").is_none() {
            return;
        }
        let (_root, directory) = directory(0);
        let listener = Socket::listen(&directory).unwrap();
        let client = Socket::connect(&directory).unwrap();
        let (one, other) = Socket::pair().unwrap();
        let (file, reader) = (tempfile::tempfile().unwrap(), rustix::pipe::pipe().unwrap());
        let (reader, writer) = reader;
        let fds = [writer.as_fd(), writer.as_fd(), file.as_fd(), file.as_fd()];
        assert_eq!(one.send(b"four", &fds).unwrap(), Sent::Done);
        assert_eq!(one.send(b"none", &[]).unwrap(), Sent::Done);
        let free = File::open("/dev/null").unwrap().as_raw_fd() as u64;
        let before = getrlimit(Resource::Nofile);
        let limit =
            |most| setrlimit(Resource::Nofile, rustix::process::Rlimit { current: Some(most), ..before }).unwrap();
        // Room for two of four.
        limit(free + 2);
        let mut buffer = Vec::new();
        assert_eq!(other.recv(&mut buffer).unwrap_err().kind(), ErrorKind::NoSpace);
        assert!(received(&other, &mut buffer).is_empty());
        assert_eq!(buffer, b"none");
        drop(writer);
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]).unwrap(), 0, "those that came were closed");
        limit(free);
        let (_a, _b) = (reader.try_clone(), reader.try_clone());
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::NoSpace);
        limit(before.current.unwrap_or(1024));
        let server = listener.accept().unwrap().expect("it stayed in the queue");
        assert_eq!(client.send(b"x", &[]).unwrap(), Sent::Done);
        assert!(received(&server, &mut buffer).is_empty());
        println!("limited: done");
    }

    #[test]
    fn only_sockets_of_packets_are_taken_over() {
        let (one, other) = Socket::pair().unwrap();
        let one = Socket::from_descriptor(one.0).unwrap();
        assert_eq!(one.send(b"x", &[]).unwrap(), Sent::Done);
        drop(other);
        let (stream, _) = std::os::unix::net::UnixStream::pair().unwrap();
        for wrong in [stream.into(), File::open("/dev/null").unwrap().into()] {
            assert_eq!(Socket::from_descriptor(wrong).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
