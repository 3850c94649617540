//! `UcxPeer`: an owner, reached.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::driver::Driver;
use super::reader::{Reader, Reading};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Landing, Peer, Spot};
use crate::pending::{Pending, Source};

/// A connection of this process.
pub(super) struct UcxPeer {
    driver: Arc<Driver>,
    link: u64,
    instance: u64,
    contact: SocketAddr,
    reading: Option<Reading>,
}

impl UcxPeer {
    /// The peer at the other end of a control connection.
    ///
    /// # Errors
    /// As [`Driver::meet`].
    pub(super) fn meet(
        driver: &Arc<Driver>,
        reader: Option<Arc<Reader>>,
        control: Arc<dyn Peer>,
        contact: SocketAddr,
        deadline: Instant,
    ) -> Result<Self> {
        let instance = control.instance();
        let (link, address) = driver.meet(Arc::clone(&control), deadline)?;
        let reading = reader.map(|reader| Reading::new(reader, link, address, control));
        Ok(Self { driver: Arc::clone(driver), link, instance, contact, reading })
    }
}

impl Peer for UcxPeer {
    fn instance(&self) -> u64 {
        self.instance
    }

    fn is_up(&self) -> bool {
        self.driver.is_up(self.link)
    }

    fn request(self: Arc<Self>, call: Call) -> Pending<Answer> {
        match self.driver.ask(self.link, call) {
            Ok(number) => Pending::from_source(Asked { peer: self, number }),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    fn close(&self) {
        self.driver.close(self.link);
    }

    fn reads(&self) -> bool {
        self.reading.as_ref().is_some_and(Reading::is_possible)
    }

    fn read(&self, spot: Spot, into: Landing, deadline: Instant) -> Result<Landing> {
        match &self.reading {
            Some(reading) => reading.read(spot, into, deadline),
            None => Err(Error::new(ErrorKind::Unavailable, "get", "memory is read by answers alone: one_sided=off")),
        }
    }
}

impl Drop for UcxPeer {
    fn drop(&mut self) {
        self.driver.forget(self.link);
    }
}

impl fmt::Debug for UcxPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UcxPeer({}, instance {:016x})", self.contact, self.instance)
    }
}

/// A question that was asked; the connection lives as long as it is waited for.
struct Asked {
    peer: Arc<UcxPeer>,
    number: u64,
}

impl Source<Answer> for Asked {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Answer> {
        self.peer.driver.wait(self.number, deadline)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        self.peer.driver.poll(self.number, cx)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.peer.driver.abandon(self.number, self.peer.link);
    }
}
