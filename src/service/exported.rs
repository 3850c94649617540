//! `Exported`: a node that answers others, from the first one that asks for it to the end of the node service.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::client::{Client, Options};
use super::export::Export;
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::handshake::Identity;
use crate::fabric::tcp::{self, Tcp};
use crate::fabric::{Fabric, Listener, Service};
use crate::launch::{self, Choice, Job, Secret};

/// The answering side of a node; ends when it is dropped.
pub(crate) struct Exported {
    listener: Box<dyn Listener>,
}

impl Exported {
    /// Begins to answer for the objects of a namespace, which this process or another hosts; at the address of `former`, a
    /// service of the same memory, if that is free.
    ///
    /// # Errors
    /// `Unavailable` when no port is free; `Config` for devices, ports or secrets that are none; what attaching says.
    pub(crate) fn begin(namespace: &str, former: Option<SocketAddr>) -> Result<Self> {
        let options = Options {
            namespace: namespace.to_owned(),
            budget: None,
            displace: None,
            timeout: environment::timeout(),
            may_host: false,
        };
        let client = Client::attach(&options)?;
        let (fabric, _) = fabric(&client, namespace)?;
        let export = Export::new(client);
        let mut addresses: Vec<SocketAddr> = former.into_iter().collect();
        addresses.extend(self::addresses(namespace)?);
        let service: Arc<dyn Service> = Arc::new(Arc::clone(&export));
        let listener = fabric.listen(&addresses, service)?;
        export.set_contact(listener.contact());
        Ok(Self { listener })
    }

    /// Where others reach it.
    pub(crate) fn contact(&self) -> SocketAddr {
        self.listener.contact()
    }
}

impl fmt::Debug for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exported({})", self.contact())
    }
}

/// The fabric of a namespace, and the key of the codes in its objects' keys.
///
/// # Errors
/// Those of [`Secret::of_job`] and [`Job::discover`].
pub(crate) fn fabric(client: &Client, namespace: &str) -> Result<(Arc<dyn Fabric>, [u8; 16])> {
    let secret = Arc::new(Secret::of_job(&Job::discover()?)?);
    let signing = secret.key_mac_key();
    let identity = Identity { secret, job: namespace.to_owned(), instance: client.instance() };
    Ok((Arc::new(Tcp::new(identity, tcp::Options::default())), signing))
}

/// Where this node may listen, in the order of trying.
fn addresses(namespace: &str) -> Result<Vec<SocketAddr>> {
    let job = Job::discover()?;
    let (interfaces, choice) = launch::interfaces(&job)?;
    if choice == Choice::Loopback && job.nodes.len() > 1 {
        // Its keys would lead every other node to itself.
        let context = "this node of several has no network interface but the loopback that is up; name one in \
                       PROXYSTORE_NET_DEVICES, or try again when it is";
        return Err(Error::new(ErrorKind::Unavailable, "open", context));
    }
    let Some(ip) = interfaces.iter().flat_map(|interface| &interface.addresses).next() else {
        return Err(Error::new(ErrorKind::Config, "open", "this node has no network address to listen at"));
    };
    let mut ports = launch::port_candidates(&job.id, namespace)?;
    // Keys carry the port: any will do.
    if ports.len() > 1 {
        ports.push(0);
    }
    Ok(ports.into_iter().map(|port| SocketAddr::new(*ip, port)).collect())
}
