//! The network interfaces on which a node listens.

use std::fmt;
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};

use super::Job;
use super::job::process_environment;
use super::ranks::wrong;
use crate::environment;
use crate::error::{Error, Result};

/// A network interface of this machine that is up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interface {
    /// Its name, as `ib0`.
    pub name: String,
    /// Its addresses, that of the host's name first, version 4 before version 6. Never a wildcard, and none that is valid on one
    /// link only.
    pub addresses: Vec<IpAddr>,
}

/// Why an interface was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// `PROXYSTORE_NET_DEVICES` names it.
    Named,
    /// It has the address of the host's name.
    HostName,
    /// The default route leads over it.
    DefaultRoute,
    /// There is no other.
    Loopback,
}

/// The interfaces on which this node of `job` listens for others, and dials them from: those that `PROXYSTORE_NET_DEVICES` names;
/// else the one with an address to which the name of the host leads, as other nodes look it up; else that of the default
/// route; else the loopback.
///
/// An address of the loopback is not looked at as the host's, since no other node could reach it: some systems give their
/// name one.
///
/// # Cost
/// System calls, and a look-up of the host's name, which may ask a server and wait for it.
///
/// # Errors
/// `Config` when a named interface is not there, is down or has no address, with a list of those that are; `Io`.
pub fn interfaces(job: &Job) -> Result<(Vec<Interface>, Choice)> {
    let up = present()?;
    if let Some(devices) = process_environment(environment::NET_DEVICES.name).filter(|devices| !devices.is_empty()) {
        return Ok((named(&devices, &up)?, Choice::Named));
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A node may be known by another name than it calls itself.
    let known = job.node().filter(|node| *node != host);
    let resolved: Vec<IpAddr> = known.into_iter().chain([host.as_str()]).flat_map(addresses_of).collect();
    let route = default_route(
        &fs::read_to_string("/proc/net/route").unwrap_or_default(),
        &fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default(),
    );
    choose(&up, &resolved, route.as_deref())
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        write!(f, "{} ({})", self.name, addresses.join(", "))
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Named => "named by PROXYSTORE_NET_DEVICES",
            Self::HostName => "address of the host name",
            Self::DefaultRoute => "default route",
            Self::Loopback => "no other is up: other nodes cannot reach this one",
        })
    }
}

fn present() -> Result<Vec<Interface>> {
    let all = if_addrs::get_if_addrs().map_err(|error| Error::io("launch", "network interfaces", error))?;
    Ok(usable(all.into_iter().map(|one| (one.is_oper_up(), one.ip(), one.name))))
}

/// Those that are up, with the addresses that mean the same on other nodes, and the loopback.
fn usable(all: impl Iterator<Item = (bool, IpAddr, String)>) -> Vec<Interface> {
    let mut up: Vec<Interface> = Vec::new();
    for (_, address, name) in all.filter(|(is_up, ..)| *is_up) {
        let is_on_one_link = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if is_on_one_link || address.is_unspecified() || address.is_multicast() {
            continue;
        }
        match up.iter_mut().find(|known| known.name == name) {
            Some(known) => known.addresses.push(address),
            None => up.push(Interface { name, addresses: vec![address] }),
        }
    }
    up.iter_mut().for_each(|one| one.addresses.sort_by_key(IpAddr::is_ipv6));
    up
}

fn named(devices: &str, up: &[Interface]) -> Result<Vec<Interface>> {
    let mut found: Vec<Interface> = Vec::new();
    for name in devices.split(',').map(str::trim) {
        let Some(one) = up.iter().find(|one| one.name == name) else {
            let there: Vec<String> = up.iter().map(Interface::to_string).collect();
            return Err(wrong(format!(
                "PROXYSTORE_NET_DEVICES={devices:?}: no interface {name:?} is up with an address; there are {}",
                if there.is_empty() { "none".to_owned() } else { there.join(", ") }
            )));
        };
        if !found.contains(one) {
            found.push(one.clone());
        }
    }
    Ok(found)
}

fn choose(up: &[Interface], resolved: &[IpAddr], route: Option<&str>) -> Result<(Vec<Interface>, Choice)> {
    for address in resolved.iter().filter(|address| !address.is_loopback()) {
        if let Some(one) = up.iter().find(|one| one.addresses.contains(address)) {
            let mut one = one.clone();
            // Stable: the others keep their order.
            one.addresses.sort_by_key(|other| other != address);
            return Ok((vec![one], Choice::HostName));
        }
    }
    if let Some(one) = up.iter().find(|one| Some(one.name.as_str()) == route) {
        return Ok((vec![one.clone()], Choice::DefaultRoute));
    }
    let is_loopback = |one: &&Interface| one.addresses.iter().all(IpAddr::is_loopback);
    match up.iter().find(is_loopback) {
        Some(one) => Ok((vec![one.clone()], Choice::Loopback)),
        None => {
            let there: Vec<String> = up.iter().map(Interface::to_string).collect();
            let there =
                if there.is_empty() { "none is up".to_owned() } else { format!("there are {}", there.join(", ")) };
            Err(wrong(format!(
                "no network interface has the address of the host's name or the default route; set PROXYSTORE_NET_DEVICES: {there}"
            )))
        }
    }
}

/// None for a name that leads nowhere.
fn addresses_of(host: &str) -> Vec<IpAddr> {
    (host, 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect()).unwrap_or_default()
}

/// The interface of the default route with the least metric, of version 4 before version 6, in what the kernel writes into
/// /proc/net/route and /proc/net/ipv6_route (proc_net(5), and net/ipv6/route.c of Linux).
fn default_route(v4: &str, v6: &str) -> Option<String> {
    // Iface Destination Gateway Flags RefCnt Use Metric Mask ...; addresses in hexadecimal, the metric in decimal.
    let of_v4 = v4.lines().filter_map(|line| {
        let [name, "00000000", _, flags, _, _, metric, "00000000", ..] =
            line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            return None;
        };
        is_usable(flags).then_some((metric.parse::<u32>().ok()?, name))
    });
    // Destination, its length, source, its length, next hop, metric, references, use, flags, interface; all in hexadecimal.
    let of_v6 = v6.lines().filter_map(|line| {
        let [destination, "00", _, _, _, metric, _, _, flags, name] = line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            return None;
        };
        let is_default = destination.bytes().all(|digit| digit == b'0') && name != "lo";
        (is_default && is_usable(flags)).then_some((u32::from_str_radix(metric, 16).ok()?, name))
    });
    let least = of_v4.min_by_key(|(metric, _)| *metric).or_else(|| of_v6.min_by_key(|(metric, _)| *metric));
    least.map(|(_, name)| name.to_owned())
}

/// Up, and no route that refuses (RTF_UP, RTF_REJECT).
fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & 0x1 != 0 && flags & 0x200 == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        Interface { name: name.to_owned(), addresses: addresses.iter().map(|text| text.parse().unwrap()).collect() }
    }

    fn machine() -> Vec<Interface> {
        vec![
            interface("lo", &["127.0.0.1", "::1"]),
            interface("eth0", &["10.0.0.1", "10.0.0.2", "fd00::1"]),
            interface("ib0", &["10.1.0.1"]),
        ]
    }

    #[test]
    fn the_order_of_choice() {
        let up = machine();
        let chosen = |resolved: &[&str], route| {
            let resolved: Vec<IpAddr> = resolved.iter().map(|text| text.parse().unwrap()).collect();
            let (found, choice) = choose(&up, &resolved, route).unwrap();
            (found[0].name.clone(), choice)
        };
        assert_eq!(chosen(&["10.1.0.1"], Some("eth0")), ("ib0".into(), Choice::HostName));
        // 127.0.1.1, as Debian has it, and an address that is elsewhere.
        assert_eq!(chosen(&["127.0.1.1", "192.0.2.7"], Some("ib0")), ("ib0".into(), Choice::DefaultRoute));
        assert_eq!(chosen(&["127.0.0.1", "::1"], Some("eth0")), ("eth0".into(), Choice::DefaultRoute));
        assert_eq!(chosen(&["127.0.0.1", "10.1.0.1"], None), ("ib0".into(), Choice::HostName));
        assert_eq!(chosen(&[], Some("gone")), ("lo".into(), Choice::Loopback));
        let (found, _) = choose(&up, &["fd00::1".parse().unwrap()], None).unwrap();
        assert_eq!(found, [interface("eth0", &["fd00::1", "10.0.0.1", "10.0.0.2"])]);
        let error = choose(&up[1..], &[], None).unwrap_err();
        assert!(error.to_string().contains("eth0 (10.0.0.1, 10.0.0.2, fd00::1), ib0 (10.1.0.1)"), "{error}");
    }

    #[test]
    fn usable_addresses() {
        let all = [
            (true, "lo", "::1"),
            (true, "eth0", "fd00::1"),
            (true, "eth0", "fe80::1"),
            (true, "eth0", "10.0.0.1"),
            (true, "eth1", "169.254.0.1"),
            (true, "eth2", "0.0.0.0"),
            (true, "eth3", "::"),
            (true, "eth4", "224.0.0.1"),
            (false, "ib0", "10.1.0.1"),
            (true, "lo", "127.0.0.1"),
        ];
        let up = usable(all.into_iter().map(|(is_up, name, ip)| (is_up, ip.parse().unwrap(), name.to_owned())));
        assert_eq!(up, [interface("lo", &["127.0.0.1", "::1"]), interface("eth0", &["10.0.0.1", "fd00::1"])]);
    }

    #[test]
    fn named_devices() {
        let up = machine();
        assert_eq!(named("ib0, eth0,ib0", &up).unwrap(), [up[2].clone(), up[1].clone()]);
        assert_eq!(named("lo", &up).unwrap(), [up[0].clone()]);
        for devices in ["ib7", "eth0,ib7", "eth0,", "*", "0.0.0.0", "10.0.0.1"] {
            let error = named(devices, &up).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config, "{devices}");
            for part in [devices, "lo (127.0.0.1, ::1)", "ib0 (10.1.0.1)"] {
                assert!(error.to_string().contains(part), "{error}");
            }
        }
        assert!(named("eth0", &[]).unwrap_err().to_string().contains("there are none"));
    }

    #[test]
    fn default_routes() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth1\t00000000\t0100000A\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
                  eth0\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                  ib0\t0000010A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                  down\t00000000\t0100000A\t0002\t0\t0\t0\t00000000\t0\t0\t0\n\
                  reject\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n";
        let zero = "0".repeat(32);
        let v6 = format!(
            "{zero} 00 {zero} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 eth2\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n\
             fd000000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth3\n"
        );
        assert_eq!(default_route(v4, &v6).as_deref(), Some("eth0"));
        assert_eq!(default_route("", &v6).as_deref(), Some("eth2"));
        for (v4, v6) in [("", ""), ("eth0 00000000", "00 00"), ("\0\n\n", "x"), (&*v6, v4)] {
            assert_eq!(default_route(v4, v6), None);
        }
    }

    #[test]
    fn this_machine_has_a_loopback_and_no_wildcard() {
        let up = present().unwrap();
        assert!(up.iter().any(|one| one.addresses.iter().any(IpAddr::is_loopback)), "{up:?}");
        assert!(up.iter().flat_map(|one| &one.addresses).all(|address| !address.is_unspecified()), "{up:?}");
        let (chosen, _) = interfaces(&Job::from_environment(&|_| None, "nowhere").unwrap()).unwrap();
        assert!(!chosen.is_empty() && chosen.iter().all(|one| !one.addresses.is_empty()), "{chosen:?}");
        // An address that can be listened on.
        std::net::TcpListener::bind((chosen[0].addresses[0], 0)).unwrap();
    }
}
