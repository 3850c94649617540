//! Which of Mercury's protocols is used.

use std::net::SocketAddr;

use margo_sys::Margo;

use super::native::load;
use crate::error::{Error, ErrorKind, Result};

/// The protocol that is used where nobody says which.
///
/// # Errors
/// `Unavailable` without Margo, or when it offers no way to other nodes.
pub(super) fn default() -> Result<String> {
    let margo = load()?;
    margo.preferred().map(str::to_owned).ok_or_else(|| {
        let context = format!("Mercury offers no way to other nodes, only {}", offered(margo));
        Error::new(ErrorKind::Unavailable, "open", context)
    })
}

/// Checks that Mercury offers a protocol.
///
/// # Errors
/// `Config`, naming what it offers; `Unavailable` without Margo.
pub(super) fn check(address: &str) -> Result<()> {
    let margo = load()?;
    match margo.protocols() {
        Some(offered) if !offered.iter().any(|one| one.serves(address)) => {
            let context = format!("this machine's Mercury does not offer {address:?}, but {}", self::offered(margo));
            Err(Error::new(ErrorKind::Config, "open", context))
        }
        _ => Ok(()),
    }
}

/// Whether a URL may name it: a plugin, a protocol, and perhaps what Mercury is to be told of the device.
pub(super) fn is_one(text: &str) -> bool {
    let name = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-;".contains(&byte))
    };
    let (kind, device) = text.split_once("://").unwrap_or((text, ""));
    kind.split_once('+').is_some_and(|(plugin, protocol)| name(plugin) && name(protocol))
        && device.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What Mercury offers, for people.
pub(super) fn offered(margo: &Margo) -> String {
    match margo.protocols() {
        None => "what margo-info tells".to_owned(),
        Some(all) => {
            let mut names: Vec<String> = all.iter().map(ToString::to_string).collect();
            names.dedup();
            if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
        }
    }
}

/// What an instance is started with, on the interface that leads to `towards`, or is it.
///
/// Adapters are chosen by libfabric itself, unless the protocol names one.
pub(super) fn address(protocol: &str, own: SocketAddr) -> String {
    match own.ip() {
        ip if is_ip(protocol) && !protocol.contains("://") => match ip.is_ipv6() {
            true => format!("{protocol}://[{ip}]"),
            false => format!("{protocol}://{ip}"),
        },
        _ => protocol.to_owned(),
    }
}

/// The protocol in a peer's address.
pub(super) fn of(address: &str) -> &str {
    let kind = address.split("://").next().unwrap_or(address);
    kind.split(';').next().unwrap_or(kind)
}

/// Whether its addresses are those of the Internet Protocol.
fn is_ip(protocol: &str) -> bool {
    ["ofi+tcp", "ofi+sockets", "ucx+tcp"].contains(&of(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for (text, is) in [
            ("na+sm", true),
            ("ofi+tcp", true),
            ("ofi+tcp;ofi_rxm", true),
            ("ofi+verbs://mlx5_0", true),
            ("tcp", false),
            ("ofi+", false),
            ("+tcp", false),
            ("ofi+tcp://a b", false),
            ("ofi+t\"cp", false),
        ] {
            assert_eq!(is_one(text), is, "{text}");
        }
    }

    #[test]
    fn addresses_name_the_interface_where_there_is_one() {
        let own = "192.0.2.7:1".parse().unwrap();
        assert_eq!(address("ofi+tcp", own), "ofi+tcp://192.0.2.7");
        assert_eq!(address("ofi+tcp", "[fd00::1]:1".parse().unwrap()), "ofi+tcp://[fd00::1]");
        assert_eq!(address("ofi+tcp://ib0", own), "ofi+tcp://ib0");
        assert_eq!(address("ofi+cxi", own), "ofi+cxi");
        assert_eq!(of("ofi+tcp;ofi_rxm://192.0.2.2:37365"), "ofi+tcp");
        assert_eq!(of("na+sm://1-0"), "na+sm");
    }
}
