//! `Reactor`: the one thread of a process that reads for tasks, and notices peers that died while nobody asked.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};

use super::socket::Socket;
use super::stream::Stream;
use crate::error::{Error, Result};
use crate::process::PerProcess;
use crate::sync::lock;

/// See the module.
pub(super) struct Reactor {
    epoll: OwnedFd,
    /// Makes the thread look again at what it is to do.
    poke: OwnedFd,
    streams: Mutex<Streams>,
    next: AtomicU64,
}

#[derive(Default)]
struct Streams {
    all: HashMap<u64, (Weak<Stream>, Duration)>,
    /// Whether the thread runs; it ends when there are no streams.
    runs: bool,
}

impl Reactor {
    /// This process's.
    ///
    /// # Errors
    /// `Io` when there is no descriptor left for it.
    pub(super) fn current() -> Result<&'static Self> {
        static REACTOR: PerProcess<Reactor> = PerProcess::new();
        if let Some(reactor) = REACTOR.current() {
            return Ok(reactor);
        }
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let poke = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        epoll::add(&epoll, &poke, EventData::new_u64(POKE), EventFlags::IN).map_err(failed)?;
        Ok(REACTOR.get(|| Self { epoll, poke, streams: Mutex::default(), next: AtomicU64::new(POKE + 1) }))
    }

    /// A number for a stream.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// Looks after a stream: at its events, once they are armed, and at least every `tick` while it has open calls.
    ///
    /// # Errors
    /// `Io` when there is no thread or kernel memory left for it.
    pub(super) fn add(&'static self, number: u64, socket: &Socket, stream: &Arc<Stream>, tick: Duration) -> Result<()> {
        let mut streams = lock(&self.streams);
        if !streams.runs {
            let thread = std::thread::Builder::new().name("proxystore-tcp".to_owned());
            thread
                .spawn(|| self.run())
                .map_err(|error| Error::io("connect", "a thread that reads for tasks", error))?;
            streams.runs = true;
        }
        epoll::add(&self.epoll, socket, EventData::new_u64(number), EventFlags::RDHUP | EventFlags::ONESHOT)
            .map_err(failed)?;
        streams.all.insert(number, (Arc::downgrade(stream), tick));
        drop(streams);
        let _ = rustix::io::write(&self.poke, bytemuck::bytes_of(&1u64));
        Ok(())
    }

    /// Forgets a stream, before its descriptor is closed: a forked child may hold the connection open.
    pub(super) fn remove(&self, number: u64, socket: &Socket) {
        if lock(&self.streams).all.remove(&number).is_some() {
            let _ = epoll::delete(&self.epoll, socket);
        }
    }

    /// Waits for the next event of a stream; whether it does.
    pub(super) fn arm(&self, number: u64, socket: &Socket, events: EventFlags) -> bool {
        epoll::modify(&self.epoll, socket, EventData::new_u64(number), events | EventFlags::ONESHOT).is_ok()
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(64);
        let mut all: Vec<Arc<Stream>> = Vec::new();
        let mut looked = Instant::now();
        loop {
            let tick = {
                let mut streams = lock(&self.streams);
                match streams.all.values().map(|(_, tick)| *tick).min() {
                    Some(tick) => tick,
                    None => {
                        streams.runs = false;
                        return;
                    }
                }
            };
            let left = (looked + tick).saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            events.clear();
            // Nothing but an interruption fails here; then the time is looked at, and that is all.
            let _ = epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout));
            for event in &events {
                let event: &epoll::Event = event;
                match event.data.u64() {
                    POKE => drop(rustix::io::read(&self.poke, &mut [0u8; 8])),
                    number => {
                        let stream = lock(&self.streams).all.get(&number).and_then(|(stream, _)| stream.upgrade());
                        if let Some(stream) = stream {
                            stream.turn(true);
                        }
                    }
                }
            }
            if looked.elapsed() >= tick {
                looked = Instant::now();
                all.extend(lock(&self.streams).all.values().filter_map(|(stream, _)| stream.upgrade()));
                all.drain(..).for_each(|stream| stream.turn(false));
            }
        }
    }
}

fn failed(error: rustix::io::Errno) -> Error {
    Error::io("connect", "the thread that reads for tasks", error.into())
}

/// The number of `poke`; streams have others.
const POKE: u64 = 0;
