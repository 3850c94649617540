//! A proxy between a requester and its peer, on the requester's host: what is between two TCP connections can happen.
//!
//! The host takes the peer's address and port for one of its own, so that whoever connects there meets the proxy. Other ports of the
//! peer are reached as ever: native libraries listen there. The proxy's own connections to the peer are marked, and the mark
//! leads out.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to a connection, once, when so many bytes have gone one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Both ends get RST.
    Reset,
    /// The receiver sees the end of the stream; the other way stays open.
    HalfClose,
    /// Both ends see the end of the stream.
    Close,
    /// Nothing goes this way any more.
    Mute,
    /// One bit of the next byte is another.
    Flip,
    /// The next bytes come twice.
    Repeat,
}

/// One for all connections of the process.
#[derive(Default)]
pub(crate) struct Proxy {
    plan: Mutex<Plan>,
    connections: AtomicU64,
    /// Bytes a second from the peer to the requester; 0 is no limit.
    rate: AtomicU64,
    /// What the first requester said first.
    recorded: Mutex<Vec<u8>>,
}

/// For the next connections.
#[derive(Clone, Copy, Default)]
struct Plan {
    act: Option<(Act, Way, u64)>,
    connections: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From the requester to the peer.
    There,
    Back,
}

impl Proxy {
    /// Takes the peer's address away from it, for this host.
    pub(crate) fn start(own: Ipv4Addr, peer: SocketAddrV4) -> Arc<Self> {
        let (ip, port) = (peer.ip(), peer.port());
        let script = format!(
            "set -e
             for at in all eth0; do
                 echo 1 >/proc/sys/net/ipv4/conf/$at/accept_local
                 echo 0 >/proc/sys/net/ipv4/conf/$at/rp_filter
             done
             ip route add {ip}/32 dev eth0 src {own} table 100
             ip rule add pref 10 fwmark {MARK} lookup 100
             ip rule add pref 20 to {ip} ipproto tcp dport {port} lookup local
             ip rule add pref 20 to {ip} ipproto tcp sport {port} lookup local
             ip rule add pref 30 to {ip} lookup 100
             ip rule add pref 100 lookup local
             ip rule delete pref 0
             ip address add {ip}/32 dev lo"
        );
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listener = TcpListener::bind(peer).unwrap();
        let proxy = Arc::new(Self::default());
        let this = Arc::clone(&proxy);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let this = Arc::clone(&this);
                std::thread::spawn(move || this.relay(stream, own, peer));
            }
        });
        proxy
    }

    /// `ACT WAY BYTES CONNECTIONS`, for the connections to come; `pass`.
    pub(crate) fn plan(&self, words: &[&str]) {
        let plan = match *words {
            ["pass"] => Plan::default(),
            [act, way, bytes, connections] => {
                let act = match act {
                    "reset" => Act::Reset,
                    "half-close" => Act::HalfClose,
                    "close" => Act::Close,
                    "mute" => Act::Mute,
                    "flip" => Act::Flip,
                    "repeat" => Act::Repeat,
                    other => panic!("no such act: {other}"),
                };
                let way = match way {
                    "there" => Way::There,
                    "back" => Way::Back,
                    other => panic!("no such way: {other}"),
                };
                Plan { act: Some((act, way, bytes.parse().unwrap())), connections: connections.parse().unwrap() }
            }
            _ => panic!("no such plan: {words:?}"),
        };
        *self.plan.lock().unwrap() = plan;
    }

    pub(crate) fn limit(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Connections since the start.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Sends what the first requester said to the peer again; how many bytes come back until the peer ends it, or `None` when
    /// it does not within the limit.
    pub(crate) fn replay(&self, own: Ipv4Addr, peer: SocketAddrV4, limit: Duration) -> io::Result<Option<usize>> {
        let mut stream = dial(own, peer)?;
        stream.set_read_timeout(Some(limit))?;
        let said = self.recorded.lock().unwrap().clone();
        assert!(said.len() > 100, "{} bytes were recorded", said.len());
        let _ = stream.write_all(&said);
        let mut bytes = Vec::new();
        match stream.read_to_end(&mut bytes) {
            Ok(_) => Ok(Some(bytes.len())),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(bytes.len())),
            Err(_) => Ok(None),
        }
    }

    fn relay(self: Arc<Self>, requester: TcpStream, own: Ipv4Addr, peer: SocketAddrV4) {
        let is_first = self.connections.fetch_add(1, Ordering::Relaxed) == 0;
        let act = {
            let mut plan = self.plan.lock().unwrap();
            let act = plan.act.filter(|_| plan.connections > 0);
            plan.connections = plan.connections.saturating_sub(1);
            act
        };
        let Ok(upstream) = dial(own, peer) else { return reset(&requester) };
        let (requester, upstream) = (Arc::new(requester), Arc::new(upstream));
        let _ = (requester.set_nodelay(true), upstream.set_nodelay(true));
        let (this, from, to) = (Arc::clone(&self), Arc::clone(&requester), Arc::clone(&upstream));
        std::thread::spawn(move || this.copy(&from, &to, Way::There, act, is_first));
        self.copy(&upstream, &requester, Way::Back, act, false);
    }

    fn copy(&self, from: &TcpStream, to: &TcpStream, way: Way, act: Option<(Act, Way, u64)>, records: bool) {
        let mut act = act.filter(|(_, at, _)| *at == way);
        let (mut bytes, mut done) = (vec![0; 64 << 10], 0u64);
        loop {
            // Reads end where the act begins.
            let most = match act {
                Some((_, _, at)) if at > done => (at - done).min(bytes.len() as u64) as usize,
                _ => bytes.len(),
            };
            if let Some((act, _, at)) = act {
                if at == done && matches!(act, Act::Reset | Act::HalfClose | Act::Close | Act::Mute) {
                    return end(from, to, act);
                }
            }
            let len = match (&mut &*from).read(&mut bytes[..most]) {
                Ok(0) => {
                    let _ = to.shutdown(Shutdown::Write);
                    return;
                }
                Ok(len) => len,
                Err(_) => {
                    reset(from);
                    return reset(to);
                }
            };
            if records {
                let mut recorded = self.recorded.lock().unwrap();
                let room = 4096usize.saturating_sub(recorded.len()).min(len);
                recorded.extend_from_slice(&bytes[..room]);
            }
            let mut twice = false;
            if let Some((kind, _, at)) = act {
                if at == done {
                    match kind {
                        Act::Flip => bytes[0] ^= 0x10,
                        _ => twice = true,
                    }
                    act = None;
                }
            }
            done += len as u64;
            for _ in 0..1 + usize::from(twice) {
                if (&mut &*to).write_all(&bytes[..len]).is_err() {
                    reset(from);
                    return reset(to);
                }
            }
            let rate = self.rate.load(Ordering::Relaxed);
            if rate > 0 && way == Way::Back {
                std::thread::sleep(Duration::from_secs_f64(len as f64 / rate as f64));
            }
        }
    }
}

fn end(from: &TcpStream, to: &TcpStream, act: Act) {
    match act {
        Act::Reset => {
            reset(from);
            reset(to);
        }
        Act::HalfClose => drop(to.shutdown(Shutdown::Write)),
        Act::Close => {
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        }
        // For as long as anybody waits.
        _ => std::thread::sleep(Duration::from_secs(3600)),
    }
}

/// Ends a connection by RST: by forgetting what is unsent, for both of its threads.
fn reset(stream: &TcpStream) {
    // Connecting to no family at all dissolves the connection (connect(2)).
    // SAFETY: an all-zero socket address is one, of AF_UNSPEC.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, the address as long as is said.
    unsafe { libc::connect(stream.as_raw_fd(), &raw const nobody, size_of::<libc::sockaddr>() as u32) };
}

/// A connection that leaves this host, although the address is this host's.
fn dial(own: Ipv4Addr, peer: SocketAddrV4) -> io::Result<TcpStream> {
    // SAFETY: a system call; what it returns is ours.
    let stream = unsafe {
        let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        TcpStream::from_raw_fd(fd)
    };
    let mark = MARK;
    // SAFETY: the value is an integer of the length that is said.
    check(unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            (&raw const mark).cast(),
            size_of::<u32>() as u32,
        )
    })?;
    // SAFETY: addresses of the length that is said.
    check(unsafe {
        let local = address(own, 0);
        libc::bind(stream.as_raw_fd(), (&raw const local).cast(), size_of::<libc::sockaddr_in>() as u32)
    })?;
    // SAFETY: as above.
    check(unsafe {
        let remote = address(*peer.ip(), peer.port());
        libc::connect(stream.as_raw_fd(), (&raw const remote).cast(), size_of::<libc::sockaddr_in>() as u32)
    })?;
    Ok(stream)
}

fn address(ip: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    }
}

fn check(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const MARK: u32 = 77;
