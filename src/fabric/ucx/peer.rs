//! `UcxPeer`: an owner, reached.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::driver::Driver;
use super::reader::{Reader, Reading};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Landing, Peer, Spot};
use crate::pending::{Operations, Pending};

/// A connection of this process.
pub(super) struct UcxPeer {
    driver: Arc<Driver>,
    link: u64,
    instance: u64,
    contact: SocketAddr,
    reading: Option<Reading>,
}

impl UcxPeer {
    /// The peer at the other end of a control connection, who connects from `hosts`.
    ///
    /// # Errors
    /// As [`Driver::meet`].
    pub(super) fn meet(
        driver: &Arc<Driver>,
        reader: Option<Arc<Reader>>,
        control: Arc<dyn Peer>,
        contact: SocketAddr,
        hosts: Vec<IpAddr>,
        deadline: Instant,
    ) -> Result<Self> {
        let instance = control.instance();
        let (link, address) = driver.meet(Arc::clone(&control), hosts, deadline)?;
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

    fn is_over(&self) -> bool {
        self.driver.is_over(self.link)
    }

    fn request(self: Arc<Self>, call: Call) -> Pending<Answer> {
        match self.driver.ask(self.link, call) {
            Ok(number) => Pending::from_operations(self, number),
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

/// Questions that were asked; the connection lives as long as one is waited for.
impl Operations<Answer> for UcxPeer {
    fn wait(self: Arc<Self>, number: u64, deadline: Option<Instant>) -> Result<Answer> {
        self.driver.wait(number, deadline)
    }

    fn poll(self: Arc<Self>, number: u64, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        self.driver.poll(number, cx)
    }

    fn let_go(self: Arc<Self>, number: u64) {
        self.driver.abandon(number, self.link);
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
