//! Object bytes that prove who wrote them: a pattern that depends on a seed and on the position.

use bytes::BufMut;

use super::case::{Check, Fault, ensure};
use crate::connector::{Connector, ConnectorExt};
use crate::key::{Format, Key};
use crate::region::{ALIGNMENT, Region};

/// `len` bytes that only `seed` gives.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(len + 7);
    let mut word = 0;
    while out.len() < len {
        out.extend_from_slice(&mix(seed, word).to_le_bytes());
        word += 1;
    }
    out.truncate(len);
    out
}

/// Passes when `bytes` are `pattern(seed, len)`, aligned as every object is.
#[track_caller]
pub(super) fn same(what: &str, bytes: &[u8], seed: u64, len: usize) -> Check {
    if bytes.len() != len {
        return Err(Fault::new(format!("{what}: {} bytes, expected {len}", bytes.len())));
    }
    for (word, chunk) in bytes.chunks(8).enumerate() {
        if *chunk != mix(seed, word as u64).to_le_bytes()[..chunk.len()] {
            return Err(Fault::new(format!("{what}: bytes differ from byte {} of {len} on", word * 8)));
        }
    }
    Ok(())
}

/// Passes when the object of `key` is there, with the bytes of `seed`, and aligned.
#[track_caller]
pub(super) fn holds(connector: &dyn Connector, key: &Key, seed: u64, len: usize) -> Check<Region> {
    match connector.get(key).wait() {
        Ok(Some(region)) => {
            same("get", &region, seed, len)?;
            let address = region.as_ptr().addr();
            if len > 0 && address % ALIGNMENT != 0 {
                return Err(Fault::new(format!("get: {len} bytes at {address:#x}, not aligned to {ALIGNMENT}")));
            }
            Ok(region)
        }
        Ok(None) => Err(Fault::new(format!("get: {key:?} is missing"))),
        Err(error) => Err(error.into()),
    }
}

/// Passes when every way to look finds no object under `key`, and no error.
#[track_caller]
pub(super) fn is_missing(connector: &dyn Connector, key: &Key) -> Check {
    // Branches instead of `?`-free combinators, so that each fault names its method.
    ensure!(connector.get(key).wait()?.is_none(), "get: {key:?} should be missing");
    ensure!(!connector.exists(key).wait()?, "exists: {key:?} should be missing");
    ensure!(connector.take(key).wait()?.is_none(), "take: {key:?} should be missing");
    let fetched = connector.fetch(key).wait();
    ensure!(fetched.is_err_and(|error| error.is_not_found()), "fetch: {key:?} should be NotFound");
    Ok(())
}

/// Stores the pattern through reserve and commit.
pub(super) fn store(connector: &dyn Connector, seed: u64, len: usize, format: Format) -> Check<Key> {
    let mut region = connector.reserve(len)?;
    region.put_slice(&pattern(seed, len));
    Ok(connector.commit(region, format).wait()?)
}

/// Object lengths at which something changes: nothing, words, cache lines, pages, huge pages, inline limits.
pub(super) fn lengths() -> impl Iterator<Item = usize> {
    let powers = (0..=20).flat_map(|bit| [(1 << bit) - 1, 1 << bit, (1 << bit) + 1]);
    powers.chain([65_535, 3 * 4096, 1500, (2 << 20) + 64])
}

/// SplitMix64 of seed and position: <https://doi.org/10.1145/2714064.2660195>.
fn mix(seed: u64, word: u64) -> u64 {
    let mut z = seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add((word + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
