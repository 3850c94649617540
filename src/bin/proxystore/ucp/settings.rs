//! What of UCX's configuration is set, unless the user has set it: what the fabric sets, but for `TCP_PORT_RANGE` and
//! `TCP_CONN_NB`, which no transfer depends on.

use std::ffi::CString;
use std::fs;

use proxystore::ConnectorConfig;
use proxystore::environment::parse_bytes;
use proxystore::launch::{self, Job};
use ucx_sys::Version;

/// Names without `UCX_`, and values; a name that the environment has is left out.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pairs: Vec<(&'static str, String)>,
    /// Whether the requester may fetch from the owner's memory by itself.
    ///
    /// Over tcp that is done by the owner, in software that checks no key: whoever reaches its port reads and writes any address
    /// of the process. For networks of the test's own.
    pub(crate) one_sided: bool,
}

impl Settings {
    /// For devices as in `UCX_NET_DEVICES`, if there are any.
    pub(crate) fn new(devices: &[String]) -> Self {
        let mut pairs = vec![
            ("TLS", "^sm".to_owned()),
            ("KEEPALIVE_INTERVAL", "inf".to_owned()),
            // Segments of 8 and 64 KiB, the defaults, are a fourth to a tenth of the bandwidth.
            ("TCP_TX_SEG_SIZE", "256k".to_owned()),
            ("TCP_RX_SEG_SIZE", "256k".to_owned()),
        ];
        if !devices.is_empty() {
            pairs.push(("NET_DEVICES", devices.join(",")));
        }
        Self { pairs, one_sided: false }
    }

    /// For the interfaces that this node listens on, and its adapters.
    pub(crate) fn of_this_node() -> proxystore::Result<Self> {
        let (interfaces, _) = launch::interfaces(&Job::discover()?)?;
        let names = interfaces.into_iter().map(|interface| interface.name);
        let settings = Self::new(&names.chain(ports()).collect::<Vec<_>>());
        let transports = std::env::var("UCX_TLS").unwrap_or_default();
        Ok(Self { one_sided: is_hardware(&transports), ..settings })
    }

    /// For a store's URL.
    pub(crate) fn of(config: &ConnectorConfig) -> proxystore::Result<Self> {
        let mut settings = Self::of_this_node()?;
        for (option, name) in [("devices", "NET_DEVICES"), ("tls", "TLS"), ("rndv", "RNDV_THRESH")] {
            let Some(value) = config.option(option) else { continue };
            settings.pairs.retain(|(known, _)| *known != name);
            // UCX does not know the unit of 64KiB.
            let bytes = parse_bytes(value).filter(|_| option == "rndv");
            settings.pairs.push((name, bytes.map_or_else(|| value.to_owned(), |bytes| bytes.to_string())));
            settings.one_sided |= option == "tls" && std::env::var_os("UCX_TLS").is_none() && is_hardware(value);
        }
        Ok(settings)
    }

    pub(crate) fn one_sided(self) -> Self {
        Self { one_sided: true, ..self }
    }

    /// What is passed to `ucp_config_modify` of that version.
    pub(super) fn of_version(&self, version: Version) -> Vec<(CString, CString)> {
        let is_free = |name: &str| std::env::var_os(format!("UCX_{name}")).is_none();
        let spelt = |name: &'static str| match name.strip_prefix("TCP_") {
            Some(bare) if (version.major, version.minor) < (1, 17) => bare,
            _ => name,
        };
        // Where there is an adapter, as `mlx5_0:1`.
        let is_adapter = |(name, value): &(&str, String)| *name == "NET_DEVICES" && value.contains(':');
        let scheme = self.pairs.iter().any(is_adapter).then(|| ("RNDV_SCHEME", "get_zcopy".to_owned()));
        let wanted = self.pairs.iter().chain(&scheme).filter(|(name, _)| is_free(name));
        let text = |text: &str| CString::new(text).ok();
        wanted.filter_map(|(name, value)| Some((text(spelt(name))?, text(value)?))).collect()
    }
}

/// Whether an adapter does all transfers of these transports, and checks who may.
fn is_hardware(transports: &str) -> bool {
    let is_one = |name: &str| ["rc", "dc", "ud", "ib"].iter().any(|prefix| name.trim().starts_with(prefix));
    transports.split(',').all(is_one)
}

/// Ports of adapters that are up, as `mlx5_0:1`.
fn ports() -> Vec<String> {
    let names = |path: &str| -> Vec<String> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let class = "/sys/class/infiniband";
    let mut ports = Vec::new();
    for adapter in names(class) {
        for port in names(&format!("{class}/{adapter}/ports")) {
            let state = fs::read_to_string(format!("{class}/{adapter}/ports/{port}/state")).unwrap_or_default();
            if state.contains("ACTIVE") {
                ports.push(format!("{adapter}:{port}"));
            }
        }
    }
    ports.sort();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_what_is_set() {
        let settings = |url: &str| Settings::of(&url.parse::<ConnectorConfig>().unwrap()).unwrap();
        let over_tcp = settings("ucx://x?devices=lo&tls=tcp&rndv=64KiB");
        assert!(!over_tcp.one_sided);
        let spelt = |settings: &Settings, minor| {
            let pairs = settings.of_version(Version { major: 1, minor, release: 0 }).into_iter();
            pairs
                .map(|(name, value)| format!("{}={}", name.to_string_lossy(), value.to_string_lossy()))
                .collect::<Vec<_>>()
        };
        let all = [
            "KEEPALIVE_INTERVAL=inf",
            "TX_SEG_SIZE=256k",
            "RX_SEG_SIZE=256k",
            "NET_DEVICES=lo",
            "TLS=tcp",
            "RNDV_THRESH=65536",
        ];
        assert_eq!(spelt(&over_tcp, 13), all);
        assert_eq!(spelt(&over_tcp, 22)[1..3], ["TCP_TX_SEG_SIZE=256k", "TCP_RX_SEG_SIZE=256k"]);
        let with_adapter = settings("ucx://x?devices=eth0,mlx5_0:1");
        assert_eq!(spelt(&with_adapter, 22).last().unwrap(), "RNDV_SCHEME=get_zcopy");
        assert!(is_hardware("rc,ud_mlx5") && !is_hardware("rc,tcp") && !is_hardware(""));
    }
}
