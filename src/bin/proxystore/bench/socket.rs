//! `Socket`: the bare loop that connectors between nodes are measured beside.
//!
//! A question of 8 bytes, an answer of as many bytes as it says, over one TCP connection between the same two processes,
//! blocking, into memory used before: what a program does that knows nothing but sockets.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use proxystore::launch::{self, Job};

use crate::failure::Failure;

/// The answering side: a thread until this process ends or the other side hangs up.
pub(super) struct Socket {
    address: SocketAddr,
}

impl Socket {
    /// Listens on the interface that objects go over, and answers with bytes of `payload`.
    pub(super) fn listen(payload: &[u8]) -> Result<Self, Failure> {
        let fail = |error| Failure::io("the bare socket", error);
        let (interfaces, _) = launch::interfaces(&Job::discover()?)?;
        let ip = interfaces.iter().flat_map(|interface| &interface.addresses).next();
        let listener = TcpListener::bind((ip.copied().unwrap_or(IpAddr::from([127, 0, 0, 1])), 0)).map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let payload = payload.to_vec();
        let answer = move || {
            let Ok((mut stream, _)) = listener.accept() else { return };
            let _ = stream.set_nodelay(true);
            let mut question = [0; 8];
            while stream.read_exact(&mut question).is_ok() {
                let count = u64::from_le_bytes(question).min(payload.len() as u64) as usize;
                if stream.write_all(&payload[..count]).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().name("bench-socket".to_owned()).spawn(answer).map_err(fail)?;
        Ok(Self { address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
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
                self.0.write_all(&(memory.len() as u64).to_le_bytes())?;
                asked += 1;
            }
            self.0.read_exact(memory)?;
        }
        Ok(begin.elapsed())
    }
}
