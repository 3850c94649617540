//! The ports at which the nodes of a job find each other.

use std::ops::RangeInclusive;

use rustix::process::geteuid;
use sha2::{Digest, Sha256};

use super::job::process_environment;
use super::ranks::wrong;
use crate::environment;
use crate::error::Result;

/// The ports that are derived: above those of common services, below those that Linux gives to outgoing connections (32768 and
/// above, `net.ipv4.ip_local_port_range`).
pub const PORTS: RangeInclusive<u16> = 10000..=29999;

/// The ports at which a node of `job` listens for the namespace `namespace`, in the order of trying: `PROXYSTORE_PORT` alone where
/// it is set (0 is any that is free), else nine.
///
/// The first of the nine follows from job, namespace and user, so every node computes the same; the others come right behind it,
/// 10000 behind 29999. Whoever listens takes the first that is free, because another job may have it already; whoever dials
/// tries them in this order until somebody who knows the job's secret answers. A port is no secret and proves nothing.
///
/// # Errors
/// `Config` when `PROXYSTORE_PORT` is no port.
pub fn port_candidates(job: &str, namespace: &str) -> Result<Vec<u16>> {
    candidates(process_environment(environment::PORT.name).as_deref(), job, namespace, geteuid().as_raw())
}

fn candidates(port: Option<&str>, job: &str, namespace: &str, user: u32) -> Result<Vec<u16>> {
    if let Some(text) = port.filter(|text| !text.is_empty()) {
        let port = text.parse().map_err(|_| wrong(format!("PROXYSTORE_PORT={text:?} is no port, 0 to 65535")))?;
        return Ok(vec![port]);
    }
    let mut hash = Sha256::new();
    hash.update(b"proxystore port");
    for part in [job.as_bytes(), namespace.as_bytes(), &user.to_le_bytes()] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    let first = hash.finalize().iter().take(8).rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let (low, count) = (*PORTS.start(), PORTS.len() as u64);
    // The remainder is below 20000.
    Ok((0..PROBES).map(|probe| low + ((first % count + probe) % count) as u16).collect())
}

/// Ports that are tried.
const PROBES: u64 = 9;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn every_node_computes_the_same() {
        let ports = candidates(None, "slurm-7", "slurm-7", 1000).unwrap();
        // Also those of an older version: a change is a change of the protocol.
        assert_eq!(ports, [0, 1, 2, 3, 4, 5, 6, 7, 8].map(|probe| 29114 + probe));
        for other in [("slurm-8", "slurm-7", 1000), ("slurm-7", "slurm-8", 1000), ("slurm-7", "slurm-7", 1001)] {
            assert_ne!(candidates(None, other.0, other.1, other.2).unwrap()[0], ports[0], "{other:?}");
        }
        // Where one part ends is part of it.
        assert_ne!(candidates(None, "ab", "c", 0).unwrap(), candidates(None, "a", "bc", 0).unwrap());
    }

    #[test]
    fn ports_spread_and_stay_in_range() {
        let mut firsts = std::collections::BTreeSet::new();
        let mut is_wrapped = false;
        for job in 0..4000 {
            let ports = candidates(None, &format!("slurm-{job}"), "x", 1000).unwrap();
            assert!(ports.len() == 9 && ports.iter().all(|port| PORTS.contains(port)), "{ports:?}");
            assert!(ports.windows(2).all(|pair| pair[1] == pair[0] + 1 || pair == [29999, 10000]), "{ports:?}");
            is_wrapped |= ports.contains(&29999) && ports.contains(&10000);
            firsts.insert(ports[0]);
        }
        // 4000 balls in 20000 boxes hit 3625 of them, give or take 20.
        assert!(firsts.len() > 3500, "{}", firsts.len());
        assert!(is_wrapped, "no job of 4000 began in the last eight");
    }

    #[test]
    fn the_users_word_counts() {
        assert_eq!(candidates(Some("0"), "a", "b", 0).unwrap(), [0]);
        assert_eq!(candidates(Some("65535"), "a", "b", 0).unwrap(), [65535]);
        assert_eq!(candidates(Some(""), "a", "b", 0).unwrap().len(), 9);
        for text in ["65536", "-1", "http", " 1", "1-9"] {
            assert_eq!(candidates(Some(text), "a", "b", 0).unwrap_err().kind(), ErrorKind::Config, "{text}");
        }
    }
}
