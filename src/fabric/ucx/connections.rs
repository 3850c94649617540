//! Connections over TCP that UCX holds, and that must end when UCX cannot end them.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::fabric::descriptor::duplicate;

/// Ends those of the TCP connections watched by an epoll descriptor, or by one that it watches, whose peer is at one of these addresses
/// and has taken nothing for so long of what the kernel has to send it; how many. What was not sent is thrown away when UCX closes
/// them, as it does with the next step: to UCX the peer's process has ended.
///
/// # Cost
/// Four system calls for each connection, and five more for one to a peer at these addresses; a file of the kernel for each epoll.
pub(super) fn end_stuck(epoll: RawFd, peers: &[IpAddr], silence: Duration) -> usize {
    let (mut seen, mut left, mut count) = (HashSet::new(), vec![epoll], 0);
    while let Some(number) = left.pop() {
        // Descriptors of epoll may watch each other.
        if !seen.insert(number) {
            continue;
        }
        let Some(socket) = duplicate(number).map(TcpStream::from) else { continue };
        // Of what is no socket it is an error.
        let Ok(peer) = socket.peer_addr() else {
            left.extend(watched(&socket.into()));
            continue;
        };
        let is_there = peers.iter().any(|address| address.to_canonical() == peer.ip().to_canonical());
        if is_there && takes_nothing(&socket, silence) && drop_unsent(&socket) {
            // Not for writing too: UCX would write in the step in which it reads, and ends what it sends twice.
            count += usize::from(socket.shutdown(Shutdown::Read).is_ok());
        }
    }
    count
}

/// What a descriptor of epoll watches; nothing for any other.
fn watched(epoll: &OwnedFd) -> Vec<RawFd> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.as_raw_fd())).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| line.strip_prefix("tfd:")?.split_whitespace().next()?.parse().ok());
    numbers.collect()
}

/// Whether the kernel has no room for more to send, and the peer has taken nothing of it for so long.
fn takes_nothing(socket: &TcpStream, silence: Duration) -> bool {
    let mut room = [PollFd::new(socket, PollFlags::OUT)];
    if !matches!(poll(&mut room, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0)) {
        // UCX can write, and so end such a connection itself.
        return false;
    }
    // SAFETY: numbers, of which zeros are some.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: so many bytes are written at most.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, (&raw mut info).cast(), &raw mut len)
    };
    // A peer without room is asked whether it has some, with nothing sent; to one that does not answer, the same is sent after pauses, of
    // which each is twice the former, until it does.
    let is_asked = u128::from(info.tcpi_last_data_sent) >= silence.as_millis();
    let is_tried = info.tcpi_retransmits > 0 && u128::from(info.tcpi_rto) >= silence.as_micros();
    result == 0 && (is_asked || is_tried)
}

/// Has the kernel forget what was not sent when UCX closes the connection: nobody takes it.
fn drop_unsent(socket: &TcpStream) -> bool {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the kernel reads the structure within the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    result == 0
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _, Write as _};
    use std::net::TcpListener;
    use std::time::Instant;

    use rustix::event::epoll::{CreateFlags, EventData, EventFlags, add, create};

    use super::*;

    #[test]
    fn connections_end_whose_peers_take_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connect = || {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            (stream, listener.accept().unwrap().0)
        };
        let here = [listener.local_addr().unwrap().ip()];
        let (mut stuck, mut idle, mut apart) = (connect(), connect(), connect());
        let [outer, inner] = [(); 2].map(|()| create(CreateFlags::CLOEXEC).unwrap());
        add(&outer, &inner, EventData::new_u64(0), EventFlags::IN).unwrap();
        for watched in [&stuck.0, &idle.0] {
            add(&inner, watched, EventData::new_u64(0), EventFlags::IN).unwrap();
        }
        // What nobody reads, as much as fits.
        for (stream, _) in [&mut stuck, &mut apart] {
            stream.set_nonblocking(true).unwrap();
            while stream.write(&[7; 1 << 16]).is_ok() {}
            stream.set_nonblocking(false).unwrap();
        }
        let end = |peers: &[IpAddr], silence| end_stuck(outer.as_raw_fd(), peers, silence);
        let silence = Duration::from_millis(150);
        assert_eq!(end(&here, Duration::from_secs(60)), 0);
        let begun = Instant::now();
        while !takes_nothing(&stuck.0, silence) {
            assert!(begun.elapsed() < Duration::from_secs(10), "it is not seen to be stuck");
            std::thread::sleep(silence / 3);
        }
        assert_eq!(end(&["192.0.2.1".parse().unwrap()], silence), 0);
        assert_eq!(end(&here, silence), 1);
        assert_eq!(stuck.0.read(&mut [0]).unwrap(), 0);
        for (stream, _) in [&mut idle, &mut apart] {
            assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        // Closed, it is to the peer as if this process had ended; what was not sent does not come.
        drop(stuck.0);
        let mut buffer = [0; 1 << 16];
        let last = std::iter::repeat_with(|| stuck.1.read(&mut buffer)).find(|read| !matches!(read, Ok(1..)));
        assert_eq!(last.unwrap().unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}
