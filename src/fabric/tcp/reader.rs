//! `Reader`: turns what a stream receives into ended calls.

use std::io;
use std::time::Instant;

use super::calls::Calls;
use super::frame::{Decoder, Frame, Kind};
use super::scatter::{self, Patience};
use super::socket::{Moved, Socket};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Head, Landings};
use crate::failpoint::failpoint;

/// Who has it reads, and is alone in doing so.
pub(super) struct Reader {
    buffer: Box<[u8; AHEAD]>,
    decoder: Decoder,
    arriving: Option<Arriving>,
    /// Where unwanted bytes go; empty until there are some.
    scrap: Vec<u8>,
    /// When the last byte came.
    pub(super) heard: Instant,
}

/// An answer whose description came, and whose parts come.
struct Arriving {
    number: u64,
    head: Head,
    parts: Place,
    checksums: Option<Vec<u32>>,
}

enum Place {
    /// Those before `at` are full.
    Landings { landings: Landings, at: usize },
    /// Nobody wants them: so many bytes are thrown away.
    Nowhere(u64),
}

/// Why a stream cannot go on.
pub(super) enum Broken {
    Io(io::Error),
    Frame(Error),
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            buffer: Box::new([0; AHEAD]),
            decoder: Decoder::default(),
            arriving: None,
            scrap: Vec::new(),
            heard: Instant::now(),
        }
    }

    /// Receives once, and ends the calls whose answers are whole now. `None` when nothing came.
    ///
    /// # Cost
    /// One system call; copies at most the few KiB that it reads ahead.
    pub(super) fn receive(&mut self, socket: &Socket, calls: &Calls, patience: Patience) -> Result<Moved, Broken> {
        let (moved, ahead) = match &mut self.arriving {
            None => scatter::receive(socket, &mut [], &mut self.buffer[..], patience),
            Some(Arriving { parts: Place::Landings { landings, at }, .. }) => {
                scatter::receive(socket, &mut landings[*at..], &mut self.buffer[..], patience)
            }
            Some(Arriving { parts: Place::Nowhere(left), .. }) => {
                self.scrap.resize(SCRAP, 0);
                let most = usize::try_from(*left).unwrap_or(SCRAP).min(SCRAP);
                let moved = scatter::receive(socket, &mut [], &mut self.scrap[..most], patience);
                if let Ok((_, thrown)) = &moved {
                    *left -= *thrown as u64;
                }
                moved.map(|(moved, _)| (moved, 0))
            }
        }
        .map_err(Broken::Io)?;
        if let Moved::Bytes(_) = moved {
            self.heard = Instant::now();
            failpoint!("fabric.landing");
            self.process(ahead, calls).map_err(Broken::Frame)?;
        }
        Ok(moved)
    }

    /// Makes sense of `end` bytes of the buffer, all of them.
    fn process(&mut self, end: usize, calls: &Calls) -> Result<()> {
        let mut start = 0;
        loop {
            if let Some(arriving) = &mut self.arriving {
                start += arriving.fill(&self.buffer[start..end]);
                if !arriving.is_whole() {
                    return Ok(());
                }
                if let Some(arriving) = self.arriving.take() {
                    let number = arriving.number;
                    if let Some(answer) = arriving.answer() {
                        failpoint!("fabric.answered");
                        calls.end(number, answer)?;
                    }
                }
            }
            let mut input = &self.buffer[start..end];
            let frame = self.decoder.take(&mut input)?;
            start = end - input.len();
            match frame {
                Some(frame) => self.arriving = begin(frame, calls)?,
                None => return Ok(()),
            }
        }
    }
}

/// Decides where the parts of an answer go.
fn begin(frame: Frame, calls: &Calls) -> Result<Option<Arriving>> {
    let bulk = frame.bulk();
    let Frame { kind, number, head, lengths, checksums } = frame;
    match kind {
        Kind::Beat => return Ok(None),
        Kind::Refusal => {
            let context = "the owner did not answer: it is ending, or gave the question up";
            calls.end(number, Err(Error::new(ErrorKind::Cancelled, "request", context)))?;
            return Ok(None);
        }
        Kind::Answer => {}
        Kind::Ask | Kind::Abandon => {
            return Err(Error::new(ErrorKind::Corrupt, "receive", "a question from an owner"));
        }
    }
    let nowhere = |checksums| Arriving { number, head: Head::new(), parts: Place::Nowhere(bulk), checksums };
    let Some(mut land) = calls.begin(number)? else {
        calls.end(number, Err(Error::new(ErrorKind::Cancelled, "request", "abandoned")))?;
        return Ok(Some(nowhere(None)));
    };
    let landings = land.land(&head, &lengths).and_then(|landings| {
        let fit = landings.len() == lengths.len()
            && landings.iter().zip(&lengths).all(|(landing, len)| landing.missing() as u64 == *len);
        let unfit = || Error::new(ErrorKind::Corrupt, "request", "the memory for an answer has not its size");
        fit.then_some(landings).ok_or_else(unfit)
    });
    match landings {
        Ok(landings) => {
            let parts = Place::Landings { landings, at: 0 };
            Ok(Some(Arriving { number, head, parts, checksums }))
        }
        Err(error) => {
            calls.end(number, Err(error))?;
            Ok(Some(nowhere(None)))
        }
    }
}

impl Arriving {
    /// Takes what is its from the front of bytes that were read ahead.
    fn fill(&mut self, bytes: &[u8]) -> usize {
        match &mut self.parts {
            Place::Nowhere(left) => {
                let thrown = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left -= thrown as u64;
                thrown
            }
            Place::Landings { landings, at } => {
                let mut taken = 0;
                while let Some(landing) = landings.get_mut(*at) {
                    taken += landing.write(&bytes[taken..]);
                    if !landing.is_full() {
                        break;
                    }
                    *at += 1;
                }
                taken
            }
        }
    }

    fn is_whole(&self) -> bool {
        match &self.parts {
            Place::Nowhere(left) => *left == 0,
            Place::Landings { landings, at } => *at == landings.len(),
        }
    }

    /// The end of its call, if it has not ended yet.
    fn answer(self) -> Option<Result<Answer>> {
        let Place::Landings { mut landings, .. } = self.parts else { return None };
        for (landing, checksum) in landings.iter_mut().zip(self.checksums.unwrap_or_default()) {
            if scatter::checksum(landing) != checksum {
                let context = "bytes were damaged on the way; the network or its cards are at fault";
                return Some(Err(Error::new(ErrorKind::Corrupt, "request", context)));
            }
        }
        Some(Ok(Answer { head: self.head, parts: landings }))
    }
}

/// Bytes read ahead at most: an answer that fits comes with one system call, and is copied once more. A multiple of 64, so that
/// what follows is received to the beginning of a cache line (see `frame`).
const AHEAD: usize = (4 << 10) + 512;

/// Bytes thrown away at once.
const SCRAP: usize = 256 << 10;
