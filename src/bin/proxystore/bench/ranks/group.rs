//! `Group`: the ranks of one launch, and what they tell each other. Rank 0 is the hub, the others dial it.
//!
//! Nobody is told an address: nodes and ranks are known from the launcher, ports follow from the job, and both sides prove the
//! job's secret. Nothing here is timed but by who uses it: an exchange takes some hundred microseconds.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use proxystore::launch::{self, Job, Secret};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;

/// This rank among the others.
pub(super) struct Group {
    rank: usize,
    size: usize,
    /// Of the hub, to ranks 1 and up; of the others, to the hub alone.
    links: Vec<TcpStream>,
}

impl Group {
    /// Meets the others of the launch.
    pub(super) fn join(job: &Job) -> Result<Self, Failure> {
        let (Some(rank), Some(size)) = (job.rank, job.size) else {
            return Err(Failure::new(
                "no rank: start it with srun or mpirun, or set PROXYSTORE_RANK and PROXYSTORE_SIZE",
            ));
        };
        let (rank, size) = (rank as usize, size as usize);
        let pass = Pass { secret: Secret::of_job(job)?, launch: launch_of(job), size: size as u32 };
        let ports: Vec<u16> =
            launch::port_candidates(&job.id, "bench")?.into_iter().filter(|port| *port != 0).collect();
        if ports.is_empty() {
            return Err(Failure::new("PROXYSTORE_PORT=0 is found by nobody; leave it unset"));
        }
        let links = match rank {
            0 => admit(job, &ports, &pass)?,
            _ => vec![dial(job, &ports, &pass, rank as u32)?],
        };
        for link in &links {
            let set = link.set_nodelay(true).and_then(|()| link.set_read_timeout(Some(PATIENCE)));
            set.map_err(|error| Failure::io("the link between ranks", error))?;
        }
        Ok(Self { rank, size, links })
    }

    pub(super) const fn rank(&self) -> usize {
        self.rank
    }

    /// Collective: what every rank has, in the order of ranks. Also a barrier.
    pub(super) fn share<T: Serialize + DeserializeOwned>(&mut self, own: &T) -> Result<Vec<T>, Failure> {
        let own = postcard::to_allocvec(own).map_err(Failure::new)?;
        let mut parts: Vec<Vec<u8>> = vec![own];
        let whole = if self.rank == 0 {
            for (at, link) in self.links.iter_mut().enumerate() {
                parts.push(receive(link).map_err(|error| lost(at + 1, error))?);
            }
            let whole = postcard::to_allocvec(&parts).map_err(Failure::new)?;
            for (at, link) in self.links.iter_mut().enumerate() {
                send(link, &whole).map_err(|error| lost(at + 1, error))?;
            }
            whole
        } else {
            let [link] = &mut self.links[..] else { return Err(Failure::new("no link to rank 0")) };
            send(link, &parts[0]).and_then(|()| receive(link)).map_err(|error| lost(0, error))?
        };
        let parts: Vec<&[u8]> = postcard::from_bytes(&whole).map_err(Failure::new)?;
        if parts.len() != self.size {
            return Err(Failure::new(format_args!("{} answers of {} ranks", parts.len(), self.size)));
        }
        parts.into_iter().map(|part| postcard::from_bytes(part).map_err(Failure::new)).collect()
    }
}

/// What both ends of a link must have in common.
struct Pass {
    secret: Secret,
    /// Other launches of the job meet at the same ports.
    launch: String,
    size: u32,
}

impl Pass {
    fn tag(&self, domain: &str, rank: u32, nonces: [&[u8]; 2]) -> [u8; 32] {
        let [asked, answered] = nonces;
        let (rank, size) = (rank.to_le_bytes(), self.size.to_le_bytes());
        self.secret.mac(domain, &[self.launch.as_bytes(), &rank, &size, asked, answered])
    }
}

/// What tells this launch from others in the job, as far as launchers say.
fn launch_of(job: &Job) -> String {
    let namespace = std::env::var_os("PMIX_NAMESPACE").unwrap_or_default();
    format!("step {:?} of run {}, {}", job.step, job.restart, namespace.to_string_lossy())
}

/// The hub: links to all others, in the order of their ranks.
fn admit(job: &Job, ports: &[u16], pass: &Pass) -> Result<Vec<TcpStream>, Failure> {
    let listeners = listen(job, ports)?;
    let until = Instant::now() + GATHERING;
    let mut links: Vec<Option<TcpStream>> = (1..pass.size).map(|_| None).collect();
    while links.iter().any(Option::is_none) {
        for listener in &listeners {
            let Ok((stream, _)) = listener.accept() else { continue };
            // A stranger, or a rank of another launch, which goes on to the next port.
            let Ok((rank, stream)) = welcome(stream, pass) else { continue };
            if let Some(link) = (rank as usize).checked_sub(1).and_then(|at| links.get_mut(at)) {
                *link = Some(stream);
            }
        }
        if Instant::now() > until {
            let missing = links.iter().zip(1..).filter(|(link, _)| link.is_none()).map(|(_, rank)| rank.to_string());
            let missing = missing.take(8).collect::<Vec<_>>().join(", ");
            return Err(Failure::timeout(format_args!("rank {missing} did not come within {GATHERING:?}")));
        }
        thread::sleep(Duration::from_micros(200));
    }
    Ok(links.into_iter().flatten().collect())
}

/// At one port of this node's addresses: those by which the others may know it.
fn listen(job: &Job, ports: &[u16]) -> Result<Vec<TcpListener>, Failure> {
    let mut addresses = own_addresses(job)?;
    addresses.extend(job.node().into_iter().flat_map(resolve));
    addresses.sort();
    addresses.dedup();
    for port in ports {
        // One that is not of this node, or has the port in use.
        let bound = addresses.iter().filter_map(|ip| TcpListener::bind((*ip, *port)).ok());
        let listeners: Vec<TcpListener> = bound.filter(|listener| listener.set_nonblocking(true).is_ok()).collect();
        if !listeners.is_empty() {
            return Ok(listeners);
        }
    }
    Err(Failure::new(format_args!("no free port among {ports:?} for the ranks to meet")))
}

/// One of the others: the link to the hub.
fn dial(job: &Job, ports: &[u16], pass: &Pass, rank: u32) -> Result<TcpStream, Failure> {
    // The hub may be here, and is else on the first node as a rule.
    let mut addresses = own_addresses(job)?;
    addresses.extend(job.nodes.iter().flat_map(resolve));
    let until = Instant::now() + GATHERING;
    loop {
        for (ip, port) in addresses.iter().flat_map(|ip| ports.iter().map(move |port| (*ip, *port))) {
            let Ok(stream) = TcpStream::connect_timeout(&SocketAddr::new(ip, port), DIALLING) else { continue };
            if let Ok(stream) = introduce(stream, pass, rank) {
                return Ok(stream);
            }
        }
        if Instant::now() > until {
            return Err(Failure::timeout(format_args!(
                "rank {rank} does not find rank 0 on {}, at ports {ports:?}",
                if job.nodes.is_empty() { "this node (set PROXYSTORE_NODES)".to_owned() } else { job.nodes.join(", ") }
            )));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn own_addresses(job: &Job) -> Result<Vec<IpAddr>, Failure> {
    let (interfaces, _) = launch::interfaces(job)?;
    Ok(interfaces.into_iter().flat_map(|interface| interface.addresses).collect())
}

fn resolve(node: impl AsRef<str>) -> Vec<IpAddr> {
    (node.as_ref(), 0).to_socket_addrs().into_iter().flatten().map(|address| address.ip()).collect()
}

// The handshake: rank and nonce there; nonce and tag back; tag there. Lengths are fixed, so nothing is allocated for a stranger.

fn introduce(mut stream: TcpStream, pass: &Pass, rank: u32) -> io::Result<TcpStream> {
    stream.set_read_timeout(Some(GREETING))?;
    let asked = nonce()?;
    stream.write_all(&[&MAGIC[..], &rank.to_le_bytes(), &asked].concat())?;
    let (mut answered, mut tag) = ([0; 16], [0; 32]);
    stream.read_exact(&mut answered)?;
    stream.read_exact(&mut tag)?;
    check(tag == pass.tag("bench hub", rank, [&asked, &answered]))?;
    stream.write_all(&pass.tag("bench rank", rank, [&asked, &answered]))?;
    let mut admitted = [0];
    stream.read_exact(&mut admitted)?;
    Ok(stream)
}

fn welcome(mut stream: TcpStream, pass: &Pass) -> io::Result<(u32, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(GREETING))?;
    let (mut magic, mut rank, mut asked) = ([0; 8], [0; 4], [0; 16]);
    stream.read_exact(&mut magic)?;
    check(magic == MAGIC)?;
    stream.read_exact(&mut rank)?;
    stream.read_exact(&mut asked)?;
    let (rank, answered) = (u32::from_le_bytes(rank), nonce()?);
    stream.write_all(&answered)?;
    stream.write_all(&pass.tag("bench hub", rank, [&asked, &answered]))?;
    let mut tag = [0; 32];
    stream.read_exact(&mut tag)?;
    check(tag == pass.tag("bench rank", rank, [&asked, &answered]))?;
    stream.write_all(&[1])?;
    Ok((rank, stream))
}

fn check(is_ours: bool) -> io::Result<()> {
    if is_ours { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

fn nonce() -> io::Result<[u8; 16]> {
    let mut nonce = [0_u8; 16];
    rustix::rand::getrandom(&mut nonce, rustix::rand::GetRandomFlags::empty())?;
    Ok(nonce)
}

fn send(link: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    link.write_all(&[&len.to_le_bytes()[..], bytes].concat())
}

fn receive(link: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    link.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len);
    if len > MOST {
        return Err(io::Error::other(format!("a message of {len} bytes")));
    }
    let mut bytes = vec![0; len as usize];
    link.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn lost(rank: usize, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            Failure::new(format_args!("rank {rank} is gone"))
        }
        io::ErrorKind::WouldBlock => Failure::timeout(format_args!("rank {rank} said nothing for {PATIENCE:?}")),
        _ => Failure::io(format_args!("rank {rank}"), error),
    }
}

const MAGIC: [u8; 8] = *b"pxbench1";

/// How long ranks may take to start after each other.
const GATHERING: Duration = Duration::from_secs(60);

/// For a node that does not answer at all.
const DIALLING: Duration = Duration::from_millis(500);

/// For the steps of the handshake.
const GREETING: Duration = Duration::from_secs(2);

/// Longer than any line of the table takes.
const PATIENCE: Duration = Duration::from_secs(300);

/// Tokens of some thousand ranks.
const MOST: u32 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(secret: &str, launch: &str) -> Pass {
        let read = |name: &str| (name == "PROXYSTORE_JOB").then(|| "bench-test".to_owned());
        let job = Job::from_environment(&read, "n1").unwrap();
        // Of the file of this user or of the environment, whichever tests have: only equality counts.
        Pass { secret: Secret::of_job(&job).unwrap(), launch: format!("{secret} {launch}"), size: 3 }
    }

    fn meet(here: Pass, there: Pass) -> (io::Result<u32>, io::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let dialler = thread::spawn(move || introduce(TcpStream::connect(address).unwrap(), &there, 2).map(drop));
        let welcomed = welcome(listener.accept().unwrap().0, &here).map(|(rank, _)| rank);
        (welcomed, dialler.join().unwrap())
    }

    #[test]
    fn ranks_of_one_launch_meet_and_others_do_not() {
        let (welcomed, introduced) = meet(pass("a", "1"), pass("a", "1"));
        assert_eq!((welcomed.unwrap(), introduced.is_ok()), (2, true));
        for other in [pass("a", "2"), pass("b", "1"), Pass { size: 4, ..pass("a", "1") }] {
            let (welcomed, introduced) = meet(pass("a", "1"), other);
            assert!(welcomed.is_err() && introduced.is_err());
        }
    }

    #[test]
    fn strangers_are_refused() {
        for said in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"pxbench1", &[0; 100]] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut stranger = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            stranger.write_all(said).unwrap();
            stranger.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(welcome(listener.accept().unwrap().0, &pass("a", "1")).is_err());
        }
    }

    #[test]
    fn a_message_of_absurd_length_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        there.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(receive(&mut listener.accept().unwrap().0).unwrap_err().to_string().contains("4294967295"));
    }
}
