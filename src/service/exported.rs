//! `Exported`: a node that answers others, from the first one that asks for it to the end of the node service.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::client::{Client, Options};
use super::export::Export;
use crate::config::ConnectorConfig;
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::handshake::{Identity, Purpose};
#[cfg(feature = "margo")]
use crate::fabric::margo;
use crate::fabric::tcp::{self, Tcp};
#[cfg(feature = "ucx")]
use crate::fabric::ucx;
use crate::fabric::{Fabric, Listener, Segment, Segments, Service};
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
        let tcp = Tcp::new(identity(&client, namespace)?, tcp::Options::default());
        let export = Export::new(Arc::clone(&client));
        let mut addresses: Vec<SocketAddr> = former.into_iter().collect();
        addresses.extend(self::addresses(namespace)?);
        let service: Arc<dyn Service> = Arc::new(Arc::clone(&export));
        // One port for all fabrics: what is not TCP itself has its control connections there.
        let services: Vec<(Purpose, Arc<dyn Service>)> = vec![
            #[cfg(feature = "ucx")]
            (Purpose::Ucx, {
                let owner = ucx::owner(&ucx::Options::default(), Arc::clone(&service))?;
                owner.register(Arc::new(Mapped(Arc::clone(&client))));
                owner
            }),
            #[cfg(feature = "margo")]
            (Purpose::Margo, {
                let memory: Arc<dyn Segments> = Arc::new(Mapped(Arc::clone(&client)));
                let own = addresses.first().copied().unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
                margo::door(Arc::clone(&service), Some(memory), own)
            }),
            (Purpose::Tcp, service),
        ];
        let listener = tcp.listen_for(&addresses, services)?;
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

/// The fabric of a scheme in a namespace, and the key of the codes in its objects' keys.
///
/// # Errors
/// Those of [`Secret::of_job`] and [`Job::discover`]; `UnknownScheme`.
pub(crate) fn fabric(
    client: &Arc<Client>,
    config: &ConnectorConfig,
    namespace: &str,
) -> Result<(Arc<dyn Fabric>, [u8; 16])> {
    let identity = identity(client, namespace)?;
    let signing = identity.secret.key_mac_key();
    let fabric: Arc<dyn Fabric> = match config.scheme() {
        "tcp" => Arc::new(Tcp::new(identity, tcp::Options::default())),
        #[cfg(feature = "ucx")]
        "ucx" => Arc::new(ucx::Ucx::new(identity, ucx::Options::of(config)?)?),
        #[cfg(feature = "margo")]
        "margo" => Arc::new(margo::Margo::new(identity, margo::Options::of(config)?)),
        scheme => {
            let context = format!("{scheme} is the scheme of no fabric");
            return Err(Error::new(ErrorKind::UnknownScheme, "open", context));
        }
    };
    fabric.register(Arc::new(Mapped(Arc::clone(client))));
    Ok((fabric, signing))
}

fn identity(client: &Client, namespace: &str) -> Result<Identity> {
    let secret = Arc::new(Secret::of_job(&Job::discover()?)?);
    Ok(Identity { secret, job: namespace.to_owned(), instance: client.instance() })
}

/// The shared memory of a namespace, for fabrics that register what they touch.
struct Mapped(Arc<Client>);

impl Segments for Mapped {
    fn segment_of(&self, address: usize) -> Option<Segment> {
        let (addresses, views) = self.0.mappings_of(address)?;
        Some(Segment { addresses, views })
    }

    fn numbered(&self, number: u16) -> Option<Segment> {
        let (addresses, views) = self.0.mappings_of_segment(number)?;
        Some(Segment { addresses, views })
    }
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
