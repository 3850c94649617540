//! What a requester asks an owner over their control connection, before and beside UCX.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use super::admission;
use super::message::{Hello, Welcome};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Call, Peer};

/// # Errors
/// Those of the control connection; `Corrupt` for what makes no sense.
pub(super) fn say(control: &Arc<dyn Peer>, hello: &Hello, deadline: Instant) -> Result<Welcome> {
    let left = deadline.saturating_duration_since(Instant::now());
    let answer = Arc::clone(control).request(Call::small(hello.encode())).deadline(left).wait()?;
    Welcome::decode(&answer.head)
}

/// Tells the owner from where this host's connections come, and learns the same of it.
///
/// # Errors
/// As [`say`]; `Unavailable` when the owner has no UCX; `Io` when this host's addresses cannot be listed.
pub(super) fn hosts(control: &Arc<dyn Peer>, contact: SocketAddr, deadline: Instant) -> Result<Vec<IpAddr>> {
    let own = admission::of_this_host(&[contact.ip()])
        .map_err(|error| Error::io("connect", "the addresses of this host", error))?;
    let mut hosts = match say(control, &Hello::Hosts(own), deadline)? {
        Welcome::Hosts(hosts) => hosts,
        other => return Err(unexpected("connect", other)),
    };
    // However addresses are translated on the way.
    hosts.push(contact.ip().to_canonical());
    Ok(hosts)
}

/// What an owner says who was asked something else, or cannot.
pub(super) fn unexpected(operation: &'static str, welcome: Welcome) -> Error {
    match welcome {
        Welcome::Refused(reason) => {
            Error::new(ErrorKind::Unavailable, operation, format!("the owner refuses: {reason}"))
        }
        Welcome::Meet { .. } | Welcome::Segment(_) | Welcome::Hosts(_) => {
            Error::new(ErrorKind::Corrupt, operation, "the owner answers something else than was asked")
        }
    }
}
