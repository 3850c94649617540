//! `References`: the answering sides of what gets are measured beside, for the time of one line.

use proxystore::ConnectorConfig;

use super::link::{How, Reference};
use super::place::Place;
use super::socket::Socket;
use crate::failure::Failure;

#[cfg(feature = "ucx")]
use crate::ucp::{Owner, Settings};

#[cfg(feature = "margo")]
use crate::margo;

pub(super) struct References {
    all: Vec<Reference>,
    #[cfg(feature = "ucx")]
    _owner: Option<Owner>,
    #[cfg(feature = "margo")]
    _margo: Option<margo::Owner>,
}

/// The names of the references of gets, the one that counts first.
pub(super) fn names(place: &Place, how: How) -> &'static [&'static str] {
    match (how, place.scheme()) {
        (How::Batch, "ucx") => &["ucp", "get"],
        (_, "ucx") => &["ucp", "socket"],
        (How::Get | How::Resolve, "margo") => &["margo", "socket"],
        (How::Batch, _) => &["get"],
        _ if place.crosses_nodes() => &["socket"],
        (How::Window, _) => &["get"],
        _ => &["memcpy"],
    }
}

impl References {
    /// Answers for objects of that content.
    pub(super) fn start(place: &Place, how: How, payload: &[u8]) -> Result<Self, Failure> {
        let mut this = Self {
            all: Vec::new(),
            #[cfg(feature = "ucx")]
            _owner: None,
            #[cfg(feature = "margo")]
            _margo: None,
        };
        for name in names(place, how) {
            let reference = match *name {
                "get" => Reference::Each,
                "socket" => Reference::Socket(Socket::listen(payload, 1)?.address()),
                "ucp" => this.ucp(&place.store.config().connector, payload)?,
                "margo" => this.margo(place, payload)?,
                _ => Reference::Copy,
            };
            this.all.push(reference);
        }
        Ok(this)
    }

    pub(super) fn to_vec(&self) -> Vec<Reference> {
        self.all.clone()
    }

    /// Over the interface that objects go over.
    #[cfg(feature = "ucx")]
    fn ucp(&mut self, config: &ConnectorConfig, payload: &[u8]) -> Result<Reference, Failure> {
        let owner = Owner::start(&Settings::of(config)?, payload.len().max(GATHERED), payload);
        let owner = owner.map_err(|error| Failure::io("the bare UCP loop", error))?;
        let contact = owner.contact().to_bytes();
        self._owner = Some(owner);
        Ok(Reference::Ucp(contact))
    }

    /// Over the protocol that objects go over.
    #[cfg(feature = "margo")]
    fn margo(&mut self, place: &Place, payload: &[u8]) -> Result<Reference, Failure> {
        let margo = margo_sys::load().map_err(Failure::new)?;
        let named = place.store.config().connector.option("protocol").map(str::to_owned);
        let protocol = named.or_else(|| margo.preferred().map(str::to_owned)).unwrap_or_default();
        let owner = margo::Owner::start(&protocol, payload);
        let owner = owner.map_err(|error| Failure::io("the bare Margo loop", error))?;
        let contact = owner.contact().to_vec();
        self._margo = Some(owner);
        Ok(Reference::Margo(protocol, contact))
    }

    #[cfg(not(feature = "margo"))]
    fn margo(&mut self, _: &Place, _: &[u8]) -> Result<Reference, Failure> {
        Err(Failure::new("this build has no Margo"))
    }

    #[cfg(not(feature = "ucx"))]
    fn ucp(&mut self, _: &ConnectorConfig, _: &[u8]) -> Result<Reference, Failure> {
        Err(Failure::new("this build has no UCX"))
    }
}

/// Most bytes that are gathered.
#[cfg(feature = "ucx")]
const GATHERED: usize = 16 << 20;
