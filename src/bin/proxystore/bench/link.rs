//! `Link`: two pipes between the two sides, and what they say to each other.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::timing::{Pair, Plan};

/// What this side asks of the peer. Each is answered by one [`Answer`].
#[derive(Serialize, Deserialize)]
pub(super) enum Request {
    /// Prepare for objects of `size` bytes, and check that the one of `token` is such an object.
    Begin { size: u64, token: Vec<u8>, checksum: u32 },
    /// Measure getting the objects of `tokens`: each by itself, resolved, or many at once.
    Get { tokens: Vec<Vec<u8>>, how: How, plan: Plan, references: Vec<Reference> },
    /// Resolve the object of `token` and put one of the same size.
    Reply { token: Vec<u8> },
    /// After [`Answer::Done`], send the payload back `rounds` times, as bare bytes.
    Bounce { rounds: u64 },
}

/// How objects are got.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum How {
    Get,
    Resolve,
    /// All tokens in one call, each counted.
    Batch,
    /// A get of each, all of them on their way at a time.
    Window,
}

/// What is measured in turn with that, in the peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Reference {
    /// memcpy.
    Copy,
    /// A get of each object, one after another.
    Each,
    /// The bare loop over a TCP connection.
    Socket(SocketAddr),
    /// The bare loop on UCX's interface, by the contact of its owner.
    Ucp(Vec<u8>),
    /// The bare loop on Margo's interface: the protocol, and the contact of its owner.
    Margo(String, Vec<u8>),
}

#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    Measured(Pair),
    Token(Vec<u8>),
    Failed { not_in_time: bool, message: String },
}

/// One side's ends of a pipe in and a pipe out.
pub(super) struct Link {
    input: BufReader<File>,
    output: File,
    frame: Vec<u8>,
}

impl Link {
    pub(super) fn new(input: OwnedFd, output: OwnedFd) -> Self {
        Self { input: BufReader::new(input.into()), output: output.into(), frame: Vec::new() }
    }

    /// Two sides of one process.
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let flags = rustix::pipe::PipeFlags::CLOEXEC;
        let (here_in, there_out) = rustix::pipe::pipe_with(flags)?;
        let (there_in, here_out) = rustix::pipe::pipe_with(flags)?;
        Ok((Self::new(here_in, here_out), Self::new(there_in, there_out)))
    }

    /// Sends a message: its length in 4 bytes, then postcard, in one write.
    pub(super) fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        frame.clear();
        frame.extend_from_slice(&[0; 4]);
        let mut frame = postcard::to_extend(message, frame).map_err(io::Error::other)?;
        let len = u32::try_from(frame.len() - 4).map_err(io::Error::other)?;
        frame[..4].copy_from_slice(&len.to_le_bytes());
        let written = self.output.write_all(&frame);
        self.frame = frame;
        written
    }

    /// Receives a message; `UnexpectedEof` when the other side is gone.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<T> {
        let mut len = [0; 4];
        self.input.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len);
        if len > MAX_FRAME {
            return Err(io::Error::other(format!("a message of {len} bytes")));
        }
        self.frame.resize(len as usize, 0);
        self.input.read_exact(&mut self.frame)?;
        postcard::from_bytes(&self.frame).map_err(io::Error::other)
    }

    /// Sends bare bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.output.write_all(bytes)
    }

    /// Receives bare bytes. The buffer in between is empty, because every message before was answered.
    pub(super) fn read(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        debug_assert!(self.input.buffer().is_empty());
        self.input.get_mut().read_exact(bytes)
    }

    /// Whether the other side is gone, without waiting.
    pub(super) fn is_hung_up(&self) -> bool {
        let mut handles = [PollFd::new(self.input.get_ref(), PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut handles, Some(&at_once)) {
            Ok(_) => handles[0].revents().intersects(PollFlags::HUP | PollFlags::ERR),
            Err(_) => false,
        }
    }
}

/// 10,000 samples of two kinds are 160 kB.
const MAX_FRAME: u32 = 64 << 20;
