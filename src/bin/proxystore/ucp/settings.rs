//! What of UCX's configuration is set, unless the user has set it.

use std::ffi::CString;

use proxystore::launch::{self, Job};
use ucx_sys::Version;

/// Names without `UCX_`, and values; a name that the environment has is left out.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pairs: Vec<(String, String)>,
    /// Whether the requester may fetch from the owner's memory by itself.
    ///
    /// Over tcp that is done by the owner, in software that checks no key: whoever reaches its port reads and writes any address
    /// of the process. For networks of the test's own.
    pub(crate) one_sided: bool,
}

impl Settings {
    /// As the fabric sets them, for these devices of the network if there are any.
    pub(crate) fn new(devices: Option<&str>) -> Self {
        let pairs = [("TLS", "^sm"), ("KEEPALIVE_INTERVAL", "inf")];
        let mut pairs: Vec<_> = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        pairs.extend(devices.map(|devices| ("NET_DEVICES".to_owned(), devices.to_owned())));
        Self { pairs, one_sided: false }
    }

    /// For the interface that objects go over.
    pub(crate) fn of_this_node() -> proxystore::Result<Self> {
        let (interfaces, _) = launch::interfaces(&Job::discover()?)?;
        let settings = Self::new(interfaces.first().map(|interface| interface.name.as_str()));
        // Where an adapter does it, and checks the key.
        let transports = std::env::var("UCX_TLS").unwrap_or_default();
        let is_hardware = |name: &str| ["rc", "dc", "ud", "ib"].iter().any(|prefix| name.trim().starts_with(prefix));
        Ok(if transports.split(',').all(is_hardware) { settings.one_sided() } else { settings })
    }

    pub(crate) fn one_sided(self) -> Self {
        Self { one_sided: true, ..self }
    }

    /// What is passed to `ucp_config_modify` of that version.
    pub(super) fn of_version(&self, version: Version) -> Vec<(CString, CString)> {
        // Segments of 8 and 64 KiB, the defaults, are a fourth to a tenth of the bandwidth.
        let prefix = if (version.major, version.minor) < (1, 17) { "" } else { "TCP_" };
        let segments = ["TX_SEG_SIZE", "RX_SEG_SIZE"].map(|name| (name, format!("{prefix}{name}"), "256k"));
        let given = self.pairs.iter().map(|(name, value)| (name.as_str(), name.clone(), value.as_str()));
        let is_free = |name: &str| {
            let full = if name.ends_with("SEG_SIZE") { format!("UCX_TCP_{name}") } else { format!("UCX_{name}") };
            std::env::var_os(full).is_none()
        };
        let wanted = given.chain(segments).filter(|(name, ..)| is_free(name));
        wanted.filter_map(|(_, name, value)| Some((CString::new(name).ok()?, CString::new(value).ok()?))).collect()
    }
}
