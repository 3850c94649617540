//! The TCP connections that a library of this process has to a peer.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::RawFd;

use crate::fabric::descriptor::duplicate;

/// Ends every TCP connection of this process to the peer of an address of Mercury such as `ofi+tcp;ofi_rxm://192.0.2.1:40000`, as if
/// that had ended them; how many. None for an address that is not one of the Internet Protocol.
///
/// The library has to cope with that at any time: to it a peer's process has ended. Nothing else of this process talks to that
/// port, which is the kernel's choice for the peer's Mercury.
///
/// # Cost
/// Three system calls for each descriptor of the process.
pub(super) fn shut(address: &str) -> io::Result<usize> {
    let Some(peer) = socket_address(address) else { return Ok(0) };
    let mut count = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()) else { continue };
        let Some(socket) = duplicate(number).map(TcpStream::from) else { continue };
        // Of what is no socket it is an error.
        if socket.peer_addr().is_ok_and(|other| is_same(other, peer)) {
            // One that ended meanwhile is no reason to leave the others.
            count += usize::from(socket.shutdown(std::net::Shutdown::Both).is_ok());
        }
    }
    Ok(count)
}

/// Behind the last slashes, where there is one.
fn socket_address(address: &str) -> Option<SocketAddr> {
    address.rsplit("//").next()?.parse().ok()
}

fn is_same(one: SocketAddr, other: SocketAddr) -> bool {
    (one.ip().to_canonical(), one.port()) == (other.ip().to_canonical(), other.port())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;

    #[test]
    fn addresses_of_mercury_are_read() {
        let expected = Some("192.0.2.1:40000".parse().unwrap());
        assert_eq!(socket_address("ofi+tcp;ofi_rxm://192.0.2.1:40000"), expected);
        assert_eq!(socket_address("ofi+tcp://192.0.2.1:40000"), expected);
        assert_eq!(socket_address("ofi+tcp://[fd00::1]:7"), Some("[fd00::1]:7".parse().unwrap()));
        for none in ["na+sm://17-0", "ofi+cxi://0x12", "", "//", "ofi+tcp://host:1"] {
            assert_eq!(socket_address(none), None, "{none}");
        }
    }

    #[test]
    fn connections_to_one_peer_end_and_no_others() {
        let [first, second] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let connect = |listener: &TcpListener| {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            (stream, listener.accept().unwrap())
        };
        let mut ours = [connect(&first), connect(&first), connect(&second)];
        assert_eq!(shut(&format!("ofi+tcp://{}", first.local_addr().unwrap())).unwrap(), 2);
        let read = |(stream, _): &mut (TcpStream, _)| stream.read(&mut [0]);
        assert_eq!(read(&mut ours[0]).unwrap(), 0);
        assert_eq!(read(&mut ours[1]).unwrap(), 0);
        assert_eq!(read(&mut ours[2]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(shut("na+sm://1-0").unwrap(), 0);
    }
}
