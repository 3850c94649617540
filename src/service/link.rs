//! `Link`: what the service and its supervisor have to do with each other, on the service's side.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

use super::message::Keep;
use super::signals::Signals;
use super::wire::{Received, Sent, Socket};
use crate::error::{Error, ErrorKind, Result};

/// What the service gets from its supervisor when it starts.
#[derive(Debug)]
pub(crate) struct Kept {
    /// The `ctl` segment of a service that died; none on the first start.
    pub(crate) ctl: Option<KeptCtl>,
    /// Number, descriptor and length in bytes of each segment of objects.
    pub(crate) segments: Vec<(u16, OwnedFd, u64)>,
    /// For what the service makes from now on.
    pub(crate) link: Link,
}

/// The `ctl` segment that a supervisor holds.
#[derive(Debug)]
pub(crate) struct KeptCtl {
    pub(crate) descriptor: OwnedFd,
    pub(crate) instance: u64,
    /// In bytes.
    pub(crate) len: u64,
}

/// The service's connection to its supervisor. Readable, for poll(2) and epoll(7), when [`next`](Self::next) has something.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) socket: Socket,
    signals: Signals,
    /// Both of them, as one descriptor.
    either: OwnedFd,
    draining: bool,
    signalled: bool,
    ended: bool,
}

/// What the service is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// End in order.
    Drain,
    /// End now: somebody is impatient, or the supervisor is gone. In the second case a SIGKILL follows at once.
    End,
}

/// Takes up the connection that `--keeper-fd` names. To be called once, on the main thread, before there are others: from
/// here on SIGTERM and SIGINT are orders of [`Link::next`].
///
/// # Errors
/// `Invalid` when the descriptor is none that a supervisor left.
pub(crate) fn connect(descriptor: RawFd) -> Result<Kept> {
    let refuse = || {
        let context = format!("{FLAG} {descriptor} is not from a supervisor; `proxystore serve` needs no such flag");
        Error::new(ErrorKind::Invalid, "serve", context)
    };
    if descriptor <= libc::STDERR_FILENO {
        return Err(refuse());
    }
    // SAFETY: the command takes a number alone, and fails if no descriptor has it.
    let flags = unsafe { libc::fcntl(descriptor, libc::F_GETFD) };
    // All that this process opened on its own closes on exec; what does not was left to it by its parent.
    if flags < 0 || flags & libc::FD_CLOEXEC != 0 {
        return Err(refuse());
    }
    // SAFETY: open, and nobody's yet in this process, as the flags tell.
    let socket = Socket::from_descriptor(unsafe { OwnedFd::from_raw_fd(descriptor) })?;
    // It was executed as /proc/self/exe, and would be listed as `exe`.
    let _ = rustix::thread::set_name(c"proxystore");
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT])?;
    let either = either(socket.as_fd(), signals.as_fd()).map_err(fail)?;
    let link = Link { socket, signals, either, draining: false, signalled: false, ended: false };
    let mut kept = Kept { ctl: None, segments: Vec::new(), link };
    let mut packet = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut fds = match kept.link.socket.recv(&mut packet)? {
            Received::Packet { fds } => fds,
            Received::WouldBlock => {
                wait(&[(kept.link.socket.as_fd(), PollFlags::IN)], Some(deadline))?;
                if Instant::now() >= deadline {
                    return Err(Error::new(ErrorKind::Timeout, "serve", "the supervisor is silent"));
                }
                continue;
            }
            Received::Closed => return Err(Error::new(ErrorKind::Closed, "serve", "the supervisor is gone")),
        };
        let message = Keep::decode(&packet)?;
        check_descriptors(&message, &fds)?;
        match (message, fds.pop()) {
            (Keep::Ctl { instance, len }, Some(descriptor)) => kept.ctl = Some(KeptCtl { descriptor, instance, len }),
            (Keep::Segment { index, len }, Some(descriptor)) => kept.segments.push((index, descriptor, len)),
            (Keep::Ready, _) => return Ok(kept),
            (message, _) => return Err(unexpected(&message)),
        }
    }
}

impl Link {
    /// A service's side of a connection to whoever has the other end.
    #[cfg(test)]
    pub(super) fn over(socket: Socket) -> Result<Self> {
        let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT])?;
        let either = either(socket.as_fd(), signals.as_fd()).map_err(fail)?;
        Ok(Self { socket, signals, either, draining: false, signalled: false, ended: false })
    }

    /// Gives the supervisor a duplicate of a new `ctl` segment; it forgets what it held before, segments included. From the
    /// return on the memory outlives this process.
    ///
    /// # Errors
    /// `Closed` when the supervisor is gone.
    pub(crate) fn keep_ctl(&self, descriptor: BorrowedFd<'_>, instance: u64, len: u64) -> Result<()> {
        send(&self.socket, &Keep::Ctl { instance, len }, &[descriptor])
    }

    /// Gives the supervisor a duplicate of a segment of objects. From the return on the memory outlives this process.
    ///
    /// # Errors
    /// `Closed` when the supervisor is gone.
    pub(crate) fn keep_segment(&self, index: u16, descriptor: BorrowedFd<'_>, len: u64) -> Result<()> {
        send(&self.socket, &Keep::Segment { index, len }, &[descriptor])
    }

    /// Tells the supervisor that clients can connect.
    ///
    /// # Errors
    /// `Closed` when the supervisor is gone.
    pub(crate) fn ready(&self) -> Result<()> {
        send(&self.socket, &Keep::Ready, &[])
    }

    /// The next order, if there is one. A signal to the whole process group reaches supervisor and service, and is one order.
    ///
    /// # Errors
    /// When the supervisor sends what it never does.
    pub(crate) fn next(&mut self) -> Result<Option<Order>> {
        let mut packet = Vec::new();
        while !self.ended {
            match self.socket.recv(&mut packet)? {
                Received::Packet { .. } => match Keep::decode(&packet)? {
                    Keep::Drain if self.draining => {}
                    Keep::Drain => {
                        self.draining = true;
                        return Ok(Some(Order::Drain));
                    }
                    message => return Err(unexpected(&message)),
                },
                Received::WouldBlock => break,
                Received::Closed => {
                    self.ended = true;
                    // Or the closed socket would be readable for ever.
                    let _ = epoll::delete(&self.either, &self.socket);
                    return Ok(Some(Order::End));
                }
            }
        }
        while self.signals.next().is_some() {
            // The first one may be what made the supervisor say the same, before or after.
            let (again, draining) = (self.signalled, self.draining);
            (self.signalled, self.draining) = (true, true);
            if again || !draining {
                return Ok(Some(if again { Order::End } else { Order::Drain }));
            }
        }
        Ok(None)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.either.as_fd()
    }
}

/// Sends a message, waiting for room in the queue.
pub(super) fn send(socket: &Socket, message: &Keep, fds: &[BorrowedFd<'_>]) -> Result<()> {
    let mut packet = Vec::new();
    message.encode(&mut packet);
    let deadline = Instant::now() + PATIENCE;
    while socket.send(&packet, fds)? == Sent::WouldBlock {
        wait(&[(socket.as_fd(), PollFlags::OUT)], Some(deadline))?;
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::Timeout, "serve", "the other process does not read"));
        }
    }
    Ok(())
}

/// Waits until a descriptor is ready, or the deadline.
pub(super) fn wait(sources: &[(BorrowedFd<'_>, PollFlags)], deadline: Option<Instant>) -> Result<()> {
    let mut sources: Vec<PollFd<'_>> =
        sources.iter().map(|(source, flags)| PollFd::from_borrowed_fd(*source, *flags)).collect();
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // One nanosecond more, so that the deadline has passed when nothing else happened.
    let timeout = left.and_then(|left| Timespec::try_from(left + Duration::from_nanos(1)).ok());
    match poll(&mut sources, timeout.as_ref()) {
        // After a signal with a handler the caller looks again.
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}

/// A descriptor that is readable when one of two is.
fn either(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let both = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (i, source) in [one, other].into_iter().enumerate() {
        epoll::add(&both, source, epoll::EventData::new_u64(i as u64), epoll::EventFlags::IN)?;
    }
    Ok(both)
}

pub(super) fn check_descriptors(message: &Keep, fds: &[OwnedFd]) -> Result<()> {
    if fds.len() == message.descriptors() {
        return Ok(());
    }
    let context = format!("{message:?} with {} descriptors", fds.len());
    Err(Error::new(ErrorKind::Invalid, "serve", context))
}

pub(super) fn unexpected(message: &Keep) -> Error {
    Error::new(ErrorKind::Invalid, "serve", format!("{message:?}, which the other process never sends"))
}

fn fail(error: Errno) -> Error {
    Error::io("serve", "", error.into())
}

/// The flag, followed by a number, that makes a program the service of a supervisor.
pub const FLAG: &str = "--keeper-fd";

/// How long either side waits for what the other does at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn wrong_descriptors_are_refused() {
        let own = File::open("/dev/null").unwrap();
        for raw in [-1, 0, 2, 100_000, own.as_raw_fd()] {
            assert_eq!(connect(raw).unwrap_err().kind(), ErrorKind::Invalid, "{raw}");
        }
        assert!(own.metadata().is_ok(), "not closed");
    }
}
