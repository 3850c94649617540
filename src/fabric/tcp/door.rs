//! `Door`: lets those in who prove that they have the secret.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};

use super::Options;
use super::socket::{Moved, Socket};
use crate::fabric::handshake::{Handshake, Identity, Proven, Purpose};
use crate::failpoint::failpoint;

/// The listening socket and the strangers at it; one worker keeps it.
pub(super) struct Door {
    socket: Arc<Socket>,
    identity: Identity,
    options: Options,
    spoken: Vec<Purpose>,
    epoll: Arc<OwnedFd>,
    strangers: HashMap<u64, Stranger>,
    next: u64,
    /// Until when nobody is let in.
    paused: Option<Instant>,
}

/// Somebody who has proved nothing yet: a descriptor and some hundred bytes.
struct Stranger {
    socket: Socket,
    handshake: Handshake,
    since: Instant,
}

impl Door {
    pub(super) fn new(
        socket: Arc<Socket>,
        identity: &Identity,
        options: &Options,
        spoken: Vec<Purpose>,
        epoll: Arc<OwnedFd>,
    ) -> rustix::io::Result<Self> {
        epoll::add(&*epoll, &*socket, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self {
            socket,
            identity: identity.clone(),
            options: options.clone(),
            spoken,
            epoll,
            strangers: HashMap::new(),
            next: FIRST_STRANGER,
            paused: None,
        })
    }

    /// Whether an event's number is one of the door's.
    pub(super) fn owns(number: u64) -> bool {
        number == LISTENER || number >= FIRST_STRANGER
    }

    /// An event; whoever proved himself by it.
    pub(super) fn event(&mut self, number: u64) -> Option<(Socket, Proven)> {
        if number == LISTENER {
            self.accept();
            return None;
        }
        self.listen_to(number)
    }

    fn accept(&mut self) {
        while self.has_room() {
            match self.socket.accept() {
                Ok(Some(socket)) => self.admit(socket),
                Ok(None) => return,
                // Out of descriptors or memory: those who wait stay in the queue, and this does not spin.
                Err(_) => return self.pause(Instant::now() + PAUSE),
            }
        }
    }

    /// Whether one more may knock. Whoever takes long makes room; many at once, as when a job starts, wait in the queue.
    fn has_room(&mut self) -> bool {
        if self.strangers.len() < self.options.handshakes {
            return true;
        }
        let Some((number, since)) =
            self.strangers.iter().map(|(number, stranger)| (*number, stranger.since)).min_by_key(|(_, since)| *since)
        else {
            return false;
        };
        if since.elapsed() >= PATIENCE {
            self.forget(number);
            return true;
        }
        self.pause(since + PATIENCE);
        false
    }

    fn admit(&mut self, socket: Socket) {
        failpoint!("fabric.accepted");
        let number = self.next;
        self.next += 1;
        let data = EventData::new_u64(number);
        let watched = socket.configure(self.options.silence).is_ok()
            && epoll::add(&*self.epoll, &socket, data, EventFlags::IN | EventFlags::RDHUP).is_ok();
        if watched {
            let handshake = Handshake::answer(&self.identity, &self.spoken);
            self.strangers.insert(number, Stranger { socket, handshake, since: Instant::now() });
        }
    }

    /// Goes on with a handshake.
    fn listen_to(&mut self, number: u64) -> Option<(Socket, Proven)> {
        let stranger = self.strangers.get_mut(&number)?;
        match stranger.go_on() {
            Ok(None) => None,
            Ok(Some(proven)) => {
                failpoint!("fabric.proved");
                let socket = self.forget(number)?;
                Some((socket, proven))
            }
            Err(_) => {
                self.forget(number);
                None
            }
        }
    }

    fn forget(&mut self, number: u64) -> Option<Socket> {
        let stranger = self.strangers.remove(&number)?;
        let _ = epoll::delete(&*self.epoll, &stranger.socket);
        if self.paused.is_some() && self.strangers.len() < self.options.handshakes {
            self.resume();
        }
        Some(stranger.socket)
    }

    fn pause(&mut self, until: Instant) {
        self.paused = Some(until);
        let _ = epoll::modify(&*self.epoll, &*self.socket, EventData::new_u64(LISTENER), EventFlags::empty());
    }

    fn resume(&mut self) {
        self.paused = None;
        let _ = epoll::modify(&*self.epoll, &*self.socket, EventData::new_u64(LISTENER), EventFlags::IN);
    }

    /// Ends what took too long; when to look again.
    pub(super) fn look(&mut self, now: Instant) -> Option<Instant> {
        let limit = self.options.handshake;
        let late: Vec<u64> = self
            .strangers
            .iter()
            .filter(|(_, stranger)| now >= stranger.since + limit)
            .map(|(number, _)| *number)
            .collect();
        for number in late {
            self.forget(number);
        }
        if self.paused.is_some_and(|until| now >= until) {
            self.resume();
            self.accept();
        }
        let first = self.strangers.values().map(|stranger| stranger.since + limit).min();
        first.into_iter().chain(self.paused).min()
    }
}

impl Stranger {
    fn go_on(&mut self) -> io::Result<Option<Proven>> {
        let mut buffer = [0; 128];
        loop {
            let wanted = self.handshake.wanted().min(buffer.len());
            let Moved::Bytes(bytes) = self.socket.recv(&mut buffer[..wanted])? else { return Ok(None) };
            let outcome = self.handshake.input(&buffer[..bytes]);
            let output = self.handshake.output();
            // Messages are shorter than any socket's buffer, which is empty.
            if !output.is_empty() && self.socket.send(&[IoSlice::new(&output)])? != Moved::Bytes(output.len()) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if let Some(proven) = outcome.map_err(io::Error::from)? {
                return Ok(Some(proven));
            }
        }
    }
}

/// The listener's number; connections have smaller ones than strangers.
pub(super) const LISTENER: u64 = 1;

const FIRST_STRANGER: u64 = 1 << 62;

/// How long nobody is let in when there are no descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a handshake keeps others out, when there are too many.
const PATIENCE: Duration = Duration::from_millis(500);
