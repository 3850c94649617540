//! `Socket`: the bare loop that connectors between nodes are measured beside.
//!
//! A question of 8 bytes, an answer of as many bytes as it says, over one TCP connection between the same two processes,
//! blocking, into memory used before: what a program does that knows nothing but sockets. Several who ask have a connection and a
//! thread each.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use proxystore::launch::{self, Job};

use crate::failure::Failure;

/// The answering side: threads until this process ends or the other sides hang up.
pub(super) struct Socket {
    address: SocketAddr,
}

impl Socket {
    /// Listens on the interface that objects go over, and answers `askers` with bytes of `payload`.
    pub(super) fn listen(payload: &[u8], askers: usize) -> Result<Self, Failure> {
        let fail = |error| Failure::io("the bare socket", error);
        let (interfaces, _) = launch::interfaces(&Job::discover()?)?;
        let ip = interfaces.iter().flat_map(|interface| &interface.addresses).next();
        let listener = TcpListener::bind((ip.copied().unwrap_or(IpAddr::from([127, 0, 0, 1])), 0)).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let payload: Arc<[u8]> = payload.into();
        let admit = move || {
            for stream in listener.incoming().take(askers).map_while(Result::ok) {
                let payload = Arc::clone(&payload);
                let answer = thread::Builder::new().name("bench-socket".to_owned());
                // Who has no thread is hung up on.
                let _ = answer.spawn(move || answer_all(stream, &payload));
            }
        };
        thread::Builder::new().name("bench-admit".to_owned()).spawn(admit).map_err(fail)?;
        Ok(Self { address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Until the other side hangs up.
fn answer_all(mut stream: TcpStream, payload: &[u8]) {
    let _ = stream.set_nodelay(true);
    let mut question = [0; 8];
    while stream.read_exact(&mut question).is_ok() {
        let count = u64::from_le_bytes(question).min(payload.len() as u64) as usize;
        if stream.write_all(&payload[..count]).is_err() {
            return;
        }
    }
}

/// The asking side.
pub(super) struct Bare(TcpStream);

impl Bare {
    pub(super) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Asks `n` times for as many bytes as fit into `memory`; `window` questions are ahead of their answers at most.
    pub(super) fn fetch(&mut self, n: usize, window: usize, memory: &mut [u8]) -> io::Result<Duration> {
        let begin = Instant::now();
        let mut asked = 0;
        for answered in 0..n {
            while asked < n.min(answered + window) {
                self.ask(memory.len())?;
                asked += 1;
            }
            self.0.read_exact(memory)?;
        }
        Ok(begin.elapsed())
    }

    /// Asks each of several `window` times at once for as many bytes as fit into `memory`, and takes the answers one after the other.
    pub(super) fn fetch_all(all: &mut [Self], window: usize, memory: &mut [u8]) -> io::Result<Duration> {
        let begin = Instant::now();
        for bare in &mut *all {
            (0..window).try_for_each(|_| bare.ask(memory.len()))?;
        }
        for bare in all {
            (0..window).try_for_each(|_| bare.0.read_exact(memory))?;
        }
        Ok(begin.elapsed())
    }

    fn ask(&mut self, len: usize) -> io::Result<()> {
        self.0.write_all(&(len as u64).to_le_bytes())
    }
}
