//! `Admission`: who may connect to the ports at which UCX listens.
//!
//! UCX's transport `tcp` writes where any message on a connection says, and knows no secret. So the kernel keeps out who has none:
//! a filter on UCX's listening sockets drops the first packet of every connection that does not come from a host of which a
//! process has proved the job's secret. Connections that stand are not looked at, and it costs them three instructions a packet.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard};

use libc::sock_filter;
use rustix::fs::{FileType, fstat};
use rustix::net::{AddressFamily, sockopt};

use crate::sync::lock;

/// Listening sockets of UCX, and the hosts from which they are reached.
#[derive(Debug)]
pub(super) struct Admission {
    sockets: Vec<Socket>,
    /// How many peers named each.
    hosts: BTreeMap<IpAddr, usize>,
    /// The filter of now lets everybody in: the kernel takes none that is long enough.
    is_open: bool,
}

/// A socket of this process, and the kernel's number for what it is: those of descriptors are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Socket {
    descriptor: RawFd,
    inode: u64,
}

/// Sockets of this process before UCX listens. As long as there is one nobody else has UCX listen: workers that are made at the same time
/// would take each other's for theirs.
pub(super) struct Before {
    inodes: HashSet<u64>,
    _alone: MutexGuard<'static, ()>,
}

impl Before {
    pub(super) fn now() -> Self {
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = lock(&ALONE);
        Self { inodes: Socket::all().map(|socket| socket.inode).collect(), _alone }
    }

    /// Closes what listens since then at ports of that range to everybody.
    pub(super) fn close(self, ports: &RangeInclusive<u16>) -> Admission {
        let is_new = |socket: &Socket| !self.inodes.contains(&socket.inode) && socket.listens(ports);
        let sockets: Vec<Socket> = Socket::all().filter(is_new).collect();
        #[cfg(test)]
        GUARDED.lock().unwrap().extend(sockets.iter().map(|socket| socket.inode));
        let mut admission = Admission { sockets, hosts: BTreeMap::new(), is_open: false };
        admission.apply();
        admission
    }
}

impl Admission {
    /// Whether anybody is kept out.
    pub(super) fn is_closed(&self) -> bool {
        !self.sockets.is_empty() && !self.is_open
    }

    /// Lets connections in that come from these hosts.
    pub(super) fn admit(&mut self, hosts: &[IpAddr]) {
        let before = self.hosts.len();
        for host in hosts {
            *self.hosts.entry(*host).or_default() += 1;
        }
        if self.hosts.len() != before {
            self.apply();
        }
    }

    /// Takes back one [`admit`](Self::admit) of these hosts. Connections that stand are not ended.
    pub(super) fn dismiss(&mut self, hosts: &[IpAddr]) {
        let before = self.hosts.len();
        for host in hosts {
            if let Some(count) = self.hosts.get_mut(host) {
                *count -= 1;
                if *count == 0 {
                    self.hosts.remove(host);
                }
            }
        }
        if self.hosts.len() != before {
            self.apply();
        }
    }

    /// Gives all sockets the filter of now: as narrow as the kernel takes it. Where it takes none, anybody is let in, as without
    /// this: connections of the job would fail.
    fn apply(&mut self) {
        // UCX closes one when it cannot accept any more.
        self.sockets.retain(Socket::is_there);
        let closed = program(std::iter::empty(), WIDTHS[0]);
        let takes = |width| {
            let program = program(self.hosts.keys().copied(), width);
            // The former counts until the new one is in its place: then the shortest is, for a moment. Who connects in that tries again.
            let takes = |socket: &Socket| socket.attach(&program) || socket.attach(&closed) && socket.attach(&program);
            program.len() <= MAX_PROGRAM && self.sockets.iter().all(takes)
        };
        self.is_open = !WIDTHS.into_iter().any(takes);
        if self.is_open {
            self.sockets.iter().for_each(|socket| {
                socket.attach(&[statement(RETURN, EVERYTHING)]);
            });
        }
    }
}

/// Bits of an address that are compared: a host, or its network where there are many.
#[derive(Clone, Copy)]
struct Width {
    v4: u32,
    /// In words of 32 bits.
    v6: usize,
}

const WIDTHS: [Width; 3] = [Width { v4: 32, v6: 4 }, Width { v4: 24, v6: 2 }, Width { v4: 16, v6: 2 }];

/// What the kernel runs for each packet to a listening socket, and to those that were accepted there. What begins no connection passes.
/// Offsets are those of the TCP header; the IP header lies from `SKF_NET_OFF` on.
fn program(hosts: impl Iterator<Item = IpAddr>, width: Width) -> Vec<sock_filter> {
    let mask = u32::MAX << (32 - width.v4);
    let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
    for host in hosts {
        match host.to_canonical() {
            IpAddr::V4(host) => drop(v4.insert(u32::from(host) & mask)),
            IpAddr::V6(host) => drop(v6.insert(words(host)[..width.v6].to_vec())),
        }
    }
    let network = libc::SKF_NET_OFF as u32;
    let mut program = vec![
        statement(LOAD_BYTE, FLAGS),
        jump(IF_ANY_BIT, SYN, 1, 0),
        statement(RETURN, EVERYTHING),
        statement(LOAD_BYTE, network),
        statement(SHIFT_RIGHT, 4),
        jump(IF_EQUAL, 4, 1, 0),
        // Over the part for IPv4, which is as long as this says.
        statement(SKIP, 3 + 2 * v4.len() as u32),
        statement(LOAD_WORD, network + 12),
        statement(AND, mask),
    ];
    for host in v4 {
        program.extend([jump(IF_EQUAL, host, 0, 1), statement(RETURN, EVERYTHING)]);
    }
    program.push(statement(RETURN, NOTHING));
    // To load a word of a packet takes the kernel eight times as much as one that was kept.
    for at in 0..width.v6 as u32 {
        program.extend([statement(LOAD_WORD, network + 8 + 4 * at), statement(KEEP, at)]);
    }
    for host in v6 {
        for (at, word) in host.iter().enumerate() {
            let behind = 2 * (host.len() - at - 1) as u8 + 1;
            program.extend([statement(LOAD_KEPT, at as u32), jump(IF_EQUAL, *word, 0, behind)]);
        }
        program.push(statement(RETURN, EVERYTHING));
    }
    program.push(statement(RETURN, NOTHING));
    program
}

fn words(host: Ipv6Addr) -> [u32; 4] {
    let all = u128::from(host);
    [96, 64, 32, 0].map(|shift| (all >> shift) as u32)
}

/// Addresses of this host, from which its connections come; those that lead nowhere else only where the peer is on this host: where
/// one of its addresses is.
///
/// # Cost
/// A question to the kernel.
///
/// # Errors
/// The kernel's.
pub(super) fn of_this_host(peer: &[IpAddr]) -> io::Result<Vec<IpAddr>> {
    let mut hosts: Vec<IpAddr> = if_addrs::get_if_addrs()?.into_iter().map(|interface| interface.ip()).collect();
    let is_here = |peer: &IpAddr| peer.to_canonical().is_loopback() || hosts.contains(&peer.to_canonical());
    let is_peer_here = peer.iter().any(is_here);
    // Nothing is reached by a link's own addresses whose link is not named beside them, and UCX does not.
    let is_link_local = |host: &IpAddr| match host {
        IpAddr::V4(host) => host.is_link_local(),
        IpAddr::V6(host) => host.is_unicast_link_local(),
    };
    hosts.retain(|host| !is_link_local(host) && (is_peer_here || !host.is_loopback()));
    hosts.truncate(MAX_HOSTS);
    Ok(hosts)
}

/// Most addresses that a peer names.
pub(super) const MAX_HOSTS: usize = 64;

/// At which ports UCX shall listen, so that its sockets are known from those of the program: some of those that the kernel gives
/// out by itself.
pub(super) fn some_ports() -> RangeInclusive<u16> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut bounds = text.split_whitespace().filter_map(|bound| bound.parse::<u16>().ok());
    let (low, high) = (bounds.next().unwrap_or(32768), bounds.next().unwrap_or(60999));
    let most = high.saturating_sub(low).saturating_sub(PORTS);
    let first = low + (crate::key::random_number() % (u64::from(most) + 1)) as u16;
    first..=first.saturating_add(PORTS).min(high.max(low))
}

/// What the user wrote as `UCX_TCP_PORT_RANGE`, as UCX reads it, which is not to mind what is behind; `None` for nonsense, and for what
/// begins with 0: then UCX takes any port, and nobody is kept out.
pub(super) fn ports_of(text: &str) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| -> Option<(u16, usize)> {
        let begin = text.len() - text.trim_start().len();
        let digits = text[begin..].bytes().take_while(u8::is_ascii_digit).count();
        Some((text[begin..begin + digits].parse().ok()?, begin + digits))
    };
    let (first, end) = number(text)?;
    let last = match text[end..].strip_prefix('-') {
        Some(rest) => number(rest)?.0,
        None => first,
    };
    Some(first..=last).filter(|ports| *ports.start() > 0 && !ports.is_empty())
}

impl Socket {
    /// Those that are open in this process.
    fn all() -> impl Iterator<Item = Self> {
        let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::of(entry.file_name().to_str()?.parse().ok()?))
    }

    /// What is behind a number, where that is a socket.
    fn of(descriptor: RawFd) -> Option<Self> {
        let stat = fstat(Self { descriptor, inode: 0 }.as_fd()).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::Socket).then_some(Self { descriptor, inode: stat.st_ino })
    }

    fn is_there(&self) -> bool {
        Self::of(self.descriptor).as_ref() == Some(self)
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: used for calls that the kernel refuses where the number is nothing, or no socket; none of them closes, reads or
        // writes. Should UCX close its own between two of them, which it does when it cannot accept, a filter may get to what
        // took the number since: that is a connection too many, and nothing of memory.
        unsafe { BorrowedFd::borrow_raw(self.descriptor) }
    }

    /// Whether it is one over TCP that listens at one of those ports.
    fn listens(&self, ports: &RangeInclusive<u16>) -> bool {
        let domain = sockopt::socket_domain(self.as_fd());
        matches!(domain, Ok(AddressFamily::INET | AddressFamily::INET6))
            && sockopt::socket_acceptconn(self.as_fd()) == Ok(true)
            && self.port().is_some_and(|port| ports.contains(&port))
    }

    fn port(&self) -> Option<u16> {
        let name = rustix::net::getsockname(self.as_fd()).ok()?;
        SocketAddr::try_from(name).ok().map(|name| name.port())
    }

    /// Puts a filter in the place of the former; whether the kernel took it.
    fn attach(&self, program: &[sock_filter]) -> bool {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: the kernel copies the program, of that length, within the call, and refuses what it cannot run.
        let result = unsafe {
            libc::setsockopt(
                self.descriptor,
                libc::SOL_SOCKET,
                libc::SO_ATTACH_FILTER,
                (&raw const program).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        result == 0
    }
}

const fn statement(code: u32, k: u32) -> sock_filter {
    jump(code, k, 0, 0)
}

/// Over so many instructions where it is so, and where not.
const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const KEEP: u32 = libc::BPF_ST;
const LOAD_KEPT: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_MEM;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const SHIFT_RIGHT: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const SKIP: u32 = libc::BPF_JMP | libc::BPF_JA;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const EVERYTHING: u32 = u32::MAX;
const NOTHING: u32 = 0;
/// Where a TCP header has its flags, and the one by which a connection begins.
const FLAGS: u32 = 13;
const SYN: u32 = 2;

/// Instructions of a filter: of a socket's 20 KiB, which older kernels have, each takes 8 bytes, or twice that where it is a comparison with
/// a large number. Two an address of IPv4, nine one of IPv6.
const MAX_PROGRAM: usize = 500;

/// The kernel's numbers of all sockets that were ever closed to everybody, for tests that look at them.
#[cfg(test)]
pub(super) static GUARDED: Mutex<BTreeSet<u64>> = Mutex::new(BTreeSet::new());

/// How many ports UCX may choose from.
const PORTS: u16 = 255;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::fabric::ucx::tests::connect_from;

    /// Whether a connection from that address of this host comes about.
    fn reaches(from: IpAddr, to: SocketAddr) -> bool {
        connect_from(from, to).is_some()
    }

    fn host(last: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, last).into()
    }

    fn listener(at: IpAddr) -> (TcpListener, SocketAddr, Admission) {
        let before = Before::now();
        let listener = TcpListener::bind((at, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(before.inodes.iter().all(|inode| Socket::of(listener.as_raw_fd()).unwrap().inode != *inode));
        let admission = before.close(&(address.port()..=address.port()));
        assert_eq!(
            admission.sockets.iter().map(|socket| socket.descriptor).collect::<Vec<_>>(),
            [listener.as_raw_fd()]
        );
        (listener, address, admission)
    }

    #[test]
    fn only_hosts_that_are_named_connect() {
        let (_listener, address, mut admission) = listener(host(1));
        assert!(!reaches(host(1), address) && !reaches(host(2), address));
        admission.admit(&[host(2), host(4)]);
        admission.admit(&[host(4)]);
        assert!(reaches(host(2), address) && reaches(host(4), address));
        assert!(!reaches(host(1), address) && !reaches(host(3), address) && !reaches(host(5), address));
        admission.dismiss(&[host(2), host(4), host(9)]);
        assert!(!reaches(host(2), address) && reaches(host(4), address));
        admission.dismiss(&[host(4)]);
        assert!(!reaches(host(4), address));
    }

    #[test]
    fn a_socket_that_took_the_number_of_another_is_left_alone() {
        let (listener, _, mut admission) = listener(host(1));
        let others = TcpListener::bind((host(1), 0)).unwrap();
        rustix::io::dup2(&others, &mut std::mem::ManuallyDrop::new(std::os::fd::OwnedFd::from(listener))).unwrap();
        admission.admit(&[host(9)]);
        assert!(admission.sockets.is_empty() && reaches(host(2), others.local_addr().unwrap()));
    }

    #[test]
    fn connections_that_stand_go_on() {
        use std::io::{Read, Write};

        let (listener, address, mut admission) = listener(host(1));
        admission.admit(&[host(1)]);
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        admission.dismiss(&[host(1)]);
        let bytes = vec![7; 1 << 20];
        std::thread::scope(|scope| {
            scope.spawn(|| stream.write_all(&bytes).unwrap());
            let mut here = vec![0; 1 << 20];
            accepted.read_exact(&mut here).unwrap();
            assert_eq!(here, bytes);
        });
    }

    #[test]
    fn hosts_of_ipv6_are_compared_whole() {
        let here = IpAddr::from(Ipv6Addr::LOCALHOST);
        let Ok(_) = TcpListener::bind((here, 0)) else { return };
        let (_listener, address, mut admission) = listener(here);
        let others = [0, 32, 64, 96].map(|shift| IpAddr::from(Ipv6Addr::from(1u128 ^ 2 << shift)));
        admission.admit(&others);
        admission.admit(&[host(1)]);
        assert!(!reaches(here, address));
        admission.admit(&[here]);
        assert!(reaches(here, address));
        admission.dismiss(&[here]);
        assert!(!reaches(here, address));
    }

    #[test]
    fn of_many_hosts_of_ipv6_each_is_compared() {
        let here = IpAddr::from(Ipv6Addr::LOCALHOST);
        let Ok(_) = TcpListener::bind((here, 0)) else { return };
        let (_listener, address, mut admission) = listener(here);
        let many: Vec<IpAddr> = (0..50u16).map(|i| Ipv6Addr::new(0xfd00, 0, 0, i, 0, 0, 0, 1).into()).collect();
        for host in &many {
            admission.admit(&[*host]);
            assert!(!admission.is_open && program(admission.hosts.keys().copied(), WIDTHS[0]).len() <= MAX_PROGRAM);
        }
        assert!(!reaches(here, address));
        admission.admit(&[here]);
        assert!(reaches(here, address));
        for host in &many {
            admission.dismiss(&[*host]);
            assert!(!admission.is_open);
        }
        assert!(reaches(here, address));
    }

    #[test]
    fn where_no_socket_was_found_nobody_is_kept_out() {
        let (_listener, _, mut admission) = listener(host(1));
        assert!(admission.is_closed());
        admission.admit(&(0..1000u32).map(|i| Ipv4Addr::from(i << 16).into()).collect::<Vec<_>>());
        assert!(!admission.is_closed(), "everybody is let in");
        assert!(!Before::now().close(&(1..=1)).is_closed());
    }

    #[test]
    fn addresses_that_lead_nowhere_are_for_peers_on_this_host() {
        let elsewhere = of_this_host(&["192.0.2.1".parse().unwrap()]).unwrap();
        assert!(!elsewhere.iter().any(IpAddr::is_loopback), "{elsewhere:?}");
        assert!(of_this_host(&[host(1)]).unwrap().contains(&host(1)));
        assert!(of_this_host(&["::ffff:127.0.0.1".parse().unwrap()]).unwrap().contains(&host(1)));
        if let Some(own) = elsewhere.first() {
            assert!(of_this_host(&[*own]).unwrap().contains(&host(1)), "{own} is this host's");
        }
    }

    #[test]
    fn of_many_hosts_their_networks_are_let_in_and_at_last_everybody() {
        let (_listener, address, mut admission) = listener(host(1));
        let hosts = |networks: u32| -> Vec<IpAddr> {
            (0..networks * 40).map(|i| Ipv4Addr::from(0x0a00_0000 + (i / 40) * 256 + i % 40).into()).collect()
        };
        let many = hosts(100);
        admission.admit(&many);
        assert!(!admission.is_open && !reaches(host(1), address));
        admission.admit(&[host(7)]);
        assert!(reaches(host(200), address), "the network of a host that is named");
        admission.dismiss(&many);
        assert!(!reaches(host(200), address) && reaches(host(7), address));
        let most: Vec<IpAddr> = (0..1000u32).map(|i| Ipv4Addr::from(i << 16).into()).collect();
        admission.admit(&most);
        assert!(admission.is_open && reaches(host(200), address));
        admission.dismiss(&most);
        assert!(!admission.is_open && !reaches(host(200), address));
    }

    #[test]
    fn ranges_of_ports_are_read() {
        assert_eq!(ports_of("7000-7010"), Some(7000..=7010));
        assert_eq!(ports_of(" 7000 "), Some(7000..=7000));
        assert_eq!(ports_of("7000-7010,8000"), Some(7000..=7010));
        for nonsense in ["0", "", "7010-7000", "a-b", "7000-70000", "0-0", "0-60000", "-7", "7000-"] {
            assert_eq!(ports_of(nonsense), None, "{nonsense}");
        }
        let ports = some_ports();
        assert!(!ports.is_empty() && *ports.start() >= 1024, "{ports:?}");
    }
}
