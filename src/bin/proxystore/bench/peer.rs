//! The other side of the measurement: a process of its own, or a thread where objects do not leave the process.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use proxystore::{Connector, ConnectorConfig, Error, ErrorKind, Key, Pending, Proxy, Region, Store, Token};

use super::buffers::Buffers;
use super::link::{Answer, How, Link, Reference, Request};
use super::place;
use super::socket::Bare;
use super::timing::{Batch, Pair, Plan};
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
            Request::Get { tokens, how, plan, references } => {
                self.measure(&tokens, how, &plan, &references, link).map(Answer::Measured)
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
        references: &[Reference],
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
                How::Window => whole(n, keys.len(), |n| get_window(connector, &keys, n)),
            }
        };
        let size = self.buffers.payload.len();
        let buffers = RefCell::new(&mut self.buffers);
        let (keys, buffers) = (&keys, &buffers);
        let mut batches: Vec<Measured<'_>> = Vec::new();
        for reference in references {
            batches.push(match reference {
                Reference::Copy => Box::new(|n| Ok(buffers.borrow_mut().copy(n))),
                Reference::Each => Box::new(|n| get_batch(connector, keys, n)),
                Reference::Socket(address) => {
                    let mut bare = Bare::connect(*address).map_err(hung_up)?;
                    let window = if how == How::Window { keys.len() } else { 1 };
                    Box::new(move |n| {
                        whole(n, window, |n| bare.fetch(n, window, &mut buffers.borrow_mut().scratch).map_err(hung_up))
                    })
                }
                Reference::Ucp(contact) => ucp(&self.store.config().connector, contact, how, size, keys.len())?,
                Reference::Margo(protocol, contact) => margo(protocol, contact, size)?,
            });
        }
        let mut batches: Vec<Batch<'_, Error>> =
            batches.iter_mut().map(|batch| &mut **batch as Batch<'_, Error>).collect();
        let is_small = size <= SMALL && how == How::Get;
        let has_owner =
            references.iter().any(|reference| matches!(reference, Reference::Socket(_) | Reference::Ucp(_)));
        let least = if is_small && has_owner && !plan.cold { TOGETHER } else { 1 };
        Pair::measure_beside(plan, (least, usize::MAX), &mut ours, &mut batches)
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

/// Objects of so many bytes are got one after the other, so many a sample.
const SMALL: usize = 512 << 10;
const TOGETHER: usize = 16;

/// A reference, made ready.
type Measured<'a> = Box<dyn FnMut(usize) -> Result<Duration, Error> + 'a>;

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

/// Gets `n` objects, as many of them at a time as there are keys.
fn get_window(connector: &dyn Connector, keys: &[Key], n: usize) -> Result<Duration, Error> {
    let mut flying = VecDeque::with_capacity(keys.len());
    let begin = Instant::now();
    let mut landed = |pending: Pending<Option<Region>>| match pending.wait()? {
        Some(_) => Ok(()),
        None => Err(Error::new(ErrorKind::NotFound, "bench", "one of a window")),
    };
    for key in keys.iter().cycle().take(n) {
        if flying.len() == keys.len() {
            flying.pop_front().map_or(Ok(()), &mut landed)?;
        }
        flying.push_back(connector.get(key));
    }
    flying.into_iter().try_for_each(landed)?;
    Ok(begin.elapsed())
}

/// The time of `n` operations, measured with so many that their beginning and end, when fewer are on their way than `window`,
/// do not count.
fn whole<E>(n: usize, window: usize, run: impl FnOnce(usize) -> Result<Duration, E>) -> Result<Duration, E> {
    if window <= 1 {
        return run(n);
    }
    let many = n.max(4 * window);
    Ok(run(many)?.mul_f64(n as f64 / many as f64))
}

/// The bare loop on UCX's interface: `count` objects of `size` bytes, moved as `how` says.
#[cfg(feature = "ucx")]
fn ucp(
    config: &ConnectorConfig,
    contact: &[u8],
    how: How,
    size: usize,
    count: usize,
) -> Result<Measured<'static>, Error> {
    use crate::ucp::{Contact, Progress, Requester, Settings, Shape};

    let shape = match how {
        How::Batch => Shape { len: size * count, window: 1, pieces: count },
        How::Window => Shape { len: size, window: count, pieces: 1 },
        How::Get | How::Resolve => Shape::single(size),
    };
    let settings = Settings::of(config)?;
    let contact = Contact::from_bytes(contact).map_err(hung_up)?;
    let mut requester = Requester::connect(&settings, &contact, shape.len * shape.window).map_err(hung_up)?;
    let way = requester.best(shape, Progress::Hybrid).map_err(hung_up)?;
    Ok(Box::new(move |n| {
        whole(n.div_ceil(shape.pieces), shape.window, |rounds| {
            requester.fetch(rounds, shape, way, Progress::Hybrid).map_err(hung_up)
        })
        .map(|took| took.mul_f64(n as f64 / (n.div_ceil(shape.pieces) * shape.pieces) as f64))
    }))
}

#[cfg(not(feature = "ucx"))]
fn ucp(_: &ConnectorConfig, _: &[u8], _: How, _: usize, _: usize) -> Result<Measured<'static>, Error> {
    Err(Error::new(ErrorKind::Unavailable, "bench", "the peer's build has no UCX"))
}

/// The bare loop on Margo's interface.
#[cfg(feature = "margo")]
fn margo(protocol: &str, contact: &[u8], size: usize) -> Result<Measured<'static>, Error> {
    let mut requester = Some(crate::margo::Requester::connect(protocol, contact, size).map_err(hung_up)?);
    Ok(Box::new(move |n| {
        let taken = requester.take().ok_or_else(|| hung_up(io::ErrorKind::BrokenPipe.into()))?;
        let (back, times) = taken.fetch(n, size).map_err(hung_up)?;
        requester = Some(back);
        Ok(times.iter().sum())
    }))
}

#[cfg(not(feature = "margo"))]
fn margo(_: &str, _: &[u8], _: usize) -> Result<Measured<'static>, Error> {
    Err(Error::new(ErrorKind::Unavailable, "bench", "the peer's build has no Margo"))
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
