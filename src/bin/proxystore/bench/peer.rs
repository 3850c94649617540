//! The other side of the measurement: a process of its own, or a thread where objects do not leave the process.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use proxystore::{Connector, Error, ErrorKind, Key, Proxy, Store, Token};

use super::buffers::Buffers;
use super::link::{Answer, How, Link, Request};
use super::place;
use super::socket::Bare;
use super::timing::{Pair, Plan};
use crate::failure::Failure;

/// Serves a measurement on standard input and output
#[derive(Args)]
pub(crate) struct BenchPeer {
    store: String,
    /// Removed at the end, whatever ended the other side
    #[arg(long)]
    remove: Option<PathBuf>,
}

impl BenchPeer {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let served = Self::serve(&self.store);
        if let Some(directory) = &self.remove {
            place::remove(directory).map_err(|error| Failure::io(directory.display(), error))?;
        }
        served
    }

    fn serve(store: &str) -> Result<(), Failure> {
        let (input, output) = (io::stdin(), io::stdout());
        let fail = |error| Failure::io("bench peer", error);
        let link = Link::new(
            input.as_fd().try_clone_to_owned().map_err(fail)?,
            output.as_fd().try_clone_to_owned().map_err(fail)?,
        );
        serve(store, link);
        Ok(())
    }

    /// The command line of [`BenchPeer`].
    pub(super) fn arguments(store: &str, remove: Option<&Path>) -> Vec<std::ffi::OsString> {
        let mut arguments = vec!["bench-peer".into(), store.into()];
        arguments.extend(remove.into_iter().flat_map(|directory| ["--remove".into(), directory.into()]));
        arguments
    }
}

/// Answers until the other side hangs up.
pub(super) fn serve(store: &str, mut link: Link) {
    let mut peer: Option<Peer> = None;
    while let Ok(request) = link.receive::<Request>() {
        let answer = match request {
            Request::Begin { size, token, checksum } => Peer::begin(store, size, &token, checksum).map(|begun| {
                peer = Some(begun);
                Answer::Done
            }),
            request => match &mut peer {
                Some(peer) => peer.answer(request, &mut link),
                None => Err(Error::new(ErrorKind::Invalid, "bench", "the peer was asked before it began")),
            },
        };
        let answer = answer.unwrap_or_else(|error| Answer::Failed {
            not_in_time: error.kind() == ErrorKind::Timeout,
            message: error.to_string(),
        });
        if link.send(&answer).is_err() {
            return;
        }
    }
}

struct Peer {
    store: Store,
    buffers: Buffers,
}

impl Peer {
    fn begin(store: &str, size: u64, token: &[u8], checksum: u32) -> Result<Self, Error> {
        let store = Store::open(store)?;
        let proxy: Proxy<[u8]> = Proxy::from_token_bytes(token)?;
        let found = crc32fast::hash(Proxy::try_get(&proxy)?);
        if found != checksum {
            let context = format!("checksum {found:08x} of what was read, {checksum:08x} of what was put");
            return Err(Error::new(ErrorKind::Corrupt, "bench", context));
        }
        Ok(Self { store, buffers: Buffers::new(size as usize) })
    }

    fn answer(&mut self, request: Request, link: &mut Link) -> Result<Answer, Error> {
        match request {
            Request::Begin { .. } => Ok(Answer::Done),
            Request::Get { tokens, how, plan, socket } => {
                self.measure(&tokens, how, &plan, socket, link).map(Answer::Measured)
            }
            Request::Reply { token } => {
                let proxy: Proxy<[u8]> = Proxy::from_token_bytes(&token)?;
                let object = Proxy::resolve(&proxy).wait()?;
                debug_assert_eq!(object.len(), self.buffers.payload.len());
                let reply: Proxy<[u8]> = self.store.proxy(&self.buffers.payload[..]).wait()?;
                Ok(Answer::Token(reply.to_token_bytes()?))
            }
            Request::Bounce { rounds } => self.bounce(rounds, link).map(|()| Answer::Done).map_err(hung_up),
        }
    }

    fn measure(
        &mut self,
        tokens: &[Vec<u8>],
        how: How,
        plan: &Plan,
        socket: Option<SocketAddr>,
        link: &Link,
    ) -> Result<Pair, Error> {
        let keys = tokens.iter().map(|token| key(token)).collect::<Result<Vec<Key>, Error>>()?;
        let connector = &**self.store.connector();
        let mut ours = |n: usize| {
            if link.is_hung_up() {
                return Err(hung_up(io::ErrorKind::UnexpectedEof.into()));
            }
            match how {
                How::Resolve => resolve_batch(tokens, n),
                How::Get => get_batch(connector, &keys, n),
                How::Batch => get_together(connector, &keys, n),
            }
        };
        if how == How::Batch {
            return Pair::measure(plan, usize::MAX, &mut ours, &mut |n| get_batch(connector, &keys, n));
        }
        let buffers = &mut self.buffers;
        match socket {
            Some(address) => {
                let mut bare = Bare::connect(address).map_err(hung_up)?;
                let mut fetch = |n| bare.fetch(n, &mut buffers.scratch).map_err(hung_up);
                Pair::measure(plan, usize::MAX, &mut ours, &mut fetch)
            }
            None => Pair::measure(plan, usize::MAX, &mut ours, &mut |n| Ok(buffers.copy(n))),
        }
    }

    fn bounce(&mut self, rounds: u64, link: &mut Link) -> io::Result<()> {
        link.send(&Answer::Done)?;
        for _ in 0..rounds {
            link.read(&mut self.buffers.scratch)?;
            link.write(&self.buffers.payload)?;
        }
        Ok(())
    }
}

fn get_batch(connector: &dyn Connector, keys: &[Key], n: usize) -> Result<Duration, Error> {
    let begin = Instant::now();
    for key in keys.iter().cycle().take(n) {
        if connector.get(key).wait()?.is_none() {
            return Err(Error::new(ErrorKind::NotFound, "bench", format!("{key:?}")));
        }
    }
    Ok(begin.elapsed())
}

/// Gets all of `keys` in one call, as often as makes at least `n` objects; the time of `n`.
fn get_together(connector: &dyn Connector, keys: &[Key], n: usize) -> Result<Duration, Error> {
    let calls = n.div_ceil(keys.len());
    let begin = Instant::now();
    for _ in 0..calls {
        if connector.get_batch(keys).wait()?.iter().any(Option::is_none) {
            return Err(Error::new(ErrorKind::NotFound, "bench", "one of a batch"));
        }
    }
    Ok(begin.elapsed().mul_f64(n as f64 / (calls * keys.len()) as f64))
}

fn resolve_batch(tokens: &[Vec<u8>], n: usize) -> Result<Duration, Error> {
    let begin = Instant::now();
    for token in tokens.iter().cycle().take(n) {
        let proxy: Proxy<[u8]> = Proxy::from_token_bytes(token)?;
        std::hint::black_box(Proxy::try_get(&proxy)?);
    }
    Ok(begin.elapsed())
}

fn key(token: &[u8]) -> Result<Key, Error> {
    let token = Token::from_bytes(token)?;
    token.key().copied().ok_or_else(|| Error::new(ErrorKind::Invalid, "bench", "a token of a factory"))
}

fn hung_up(error: io::Error) -> Error {
    Error::io("bench", "the other side", error)
}
