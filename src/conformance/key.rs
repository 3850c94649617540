//! Family `key`: keys that are foreign, damaged, forged or stale never give other bytes.

use super::bytes::{holds, is_missing, pattern, store};
use super::case::{Case, Check, Fault, ensure, refused};
use super::subject::Subject;
use crate::connector::{Capabilities, Connector};
use crate::error::{ErrorKind, Result};
use crate::key::{Format, Key};
use crate::region::RegionMut;

pub(super) const CASES: &[Case] = &[
    Case::new("key", "forms", "a key names its object after a journey as text or bytes", forms),
    Case::new("key", "other_scheme", "a key of another scheme is ForeignKey for every method", other_scheme),
    Case::new(
        "key",
        "other_instance",
        "a key of another instance is ForeignKey, Unauthorized or missing, never an object here",
        other_instance,
    ),
    Case::new("key", "truncated", "a shortened locator is refused", truncated),
    Case::new("key", "extended", "a lengthened locator is refused", extended),
    Case::new("key", "flipped_bits", "no damaged locator gives bytes or removes the object", flipped_bits),
    Case::new("key", "forged", "no random locator gives bytes", forged),
    Case::new(
        "key",
        "wrong_length",
        "a key of another length is Corrupt or Unauthorized, and take does not remove",
        wrong_length,
    ),
    Case::new("key", "stale", "a key never names a second object, however many come and go", stale),
];

fn forms(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = store(&*connector, 1, 300, Format { codec: 0x8002, fingerprint: 77 })?;
    let read: Key = key.to_string().parse()?;
    ensure!(read == key, "{key:?} read as {read:?} from text");
    holds(&*connector, &read, 1, 300)?;
    let read = Key::from_bytes(&key.to_bytes())?;
    ensure!(read == key, "{key:?} read as {read:?} from bytes");
    holds(&*connector, &read, 1, 300)?;
    Ok(())
}

fn other_scheme(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let own = store(&*connector, 1, 100, Format::RAW)?;
    for scheme in ["x-foreign", "x"] {
        let foreign = Key::new(scheme, own.locator(), own.len(), own.format())?;
        refused_by_all(&*connector, &foreign, &[ErrorKind::ForeignKey])?;
    }
    holds(&*connector, &own, 1, 100)?;
    Ok(())
}

fn other_instance(subject: &Subject) -> Check {
    let (connector, other) = (subject.open()?, subject.open()?);
    for len in [0, 1, 64, 5000] {
        let (own, foreign) = (store(&*connector, 1, len, Format::RAW)?, store(&*other, 2, len, Format::RAW)?);
        not_here(&*connector, &foreign)?;
        not_here(&*other, &own)?;
        holds(&*connector, &own, 1, len)?;
        holds(&*other, &foreign, 2, len)?;
    }
    Ok(())
}

/// Passes when the key of another instance is refused, or names nothing here.
fn not_here(connector: &dyn Connector, key: &Key) -> Check {
    refused_by_all(connector, key, &[ErrorKind::ForeignKey, ErrorKind::Unauthorized])
        .or_else(|_| is_missing(connector, key))
}

fn truncated(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let own = store(&*connector, 1, 100, Format::RAW)?;
    for len in 1..own.locator().len() {
        let key = Key::new(own.scheme(), &own.locator()[..len], own.len(), own.format())?;
        refused_by_all(&*connector, &key, IMPOSSIBLE)?;
        let key = Key::new(own.scheme(), &own.locator()[own.locator().len() - len..], own.len(), own.format())?;
        refused_by_all(&*connector, &key, IMPOSSIBLE)?;
    }
    holds(&*connector, &own, 1, 100)?;
    Ok(())
}

fn extended(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let own = store(&*connector, 1, 100, Format::RAW)?;
    for len in own.locator().len() + 1..=Key::MAX_LOCATOR {
        for filler in [0, b'/', 0xff] {
            let mut locator = own.locator().to_vec();
            locator.resize(len, filler);
            let key = Key::new(own.scheme(), &locator, own.len(), own.format())?;
            refused_by_all(&*connector, &key, IMPOSSIBLE)?;
        }
    }
    holds(&*connector, &own, 1, 100)?;
    Ok(())
}

fn flipped_bits(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let own = store(&*connector, 1, 100, Format::RAW)?;
    for bit in 0..own.locator().len() * 8 {
        let mut locator = own.locator().to_vec();
        locator[bit / 8] ^= 1 << (bit % 8);
        gives_nothing(&*connector, &Key::new(own.scheme(), &locator, own.len(), own.format())?)?;
    }
    holds(&*connector, &own, 1, 100)?;
    Ok(())
}

fn forged(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let own = store(&*connector, 1, 100, Format::RAW)?;
    for seed in 0..500 {
        // What looks like a path, most of all, must not be followed.
        let locator = match seed % 5 {
            0 => pattern(seed, own.locator().len()),
            1 => vec![0; 1 + seed as usize % Key::MAX_LOCATOR],
            2 => vec![0xff; 1 + seed as usize % Key::MAX_LOCATOR],
            3 => b"../../../../../../../../../../../../etc/passwd"[seed as usize % 40..].to_vec(),
            _ => pattern(seed, 1 + seed as usize % Key::MAX_LOCATOR),
        };
        gives_nothing(&*connector, &Key::new(own.scheme(), &locator, own.len(), own.format())?)?;
    }
    holds(&*connector, &own, 1, 100)?;
    Ok(())
}

fn wrong_length(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in [0, 1, 100, 4096, 1 << 20] {
        let own = store(&*connector, 1, len, Format::RAW)?;
        for wrong in [0, 1, len as u64 + 1, (len as u64).saturating_sub(1), 1 << 40, u64::MAX - 1] {
            if wrong == len as u64 {
                continue;
            }
            let key = Key::new(own.scheme(), own.locator(), wrong, own.format())?;
            refused("get", connector.get(&key).wait(), OTHER_LENGTH)?;
            refused("take", connector.take(&key).wait(), OTHER_LENGTH)?;
            refused("get_batch", connector.get_batch(&[own, key]).wait(), OTHER_LENGTH)?;
            // Whether it looks at the length is the connector's affair; that it can be read under this key is not so.
            let exists = connector.exists(&key).wait();
            ensure!(!matches!(exists, Ok(true)), "exists: true under a length of {wrong} instead of {len}");
            holds(&*connector, &own, 1, len)?;
        }
    }
    Ok(())
}

fn stale(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut gone = Vec::new();
    for round in 0..200 {
        let key = store(&*connector, round, 64, Format::RAW)?;
        ensure!(!gone.contains(&key), "{key:?} was given out before");
        match round % 2 {
            0 => connector.evict(&key).wait()?,
            _ => drop(connector.take(&key).wait()?),
        }
        gone.push(key);
    }
    let live = store(&*connector, 1000, 64, Format::RAW)?;
    gone.iter().try_for_each(|key| is_missing(&*connector, key))?;
    gone.iter().try_for_each(|key| Ok::<_, Fault>(connector.evict(key).wait()?))?;
    holds(&*connector, &live, 1000, 64)?;
    Ok(())
}

/// Passes when every method that takes a key refuses `key` with one of `kinds`.
#[track_caller]
fn refused_by_all(connector: &dyn Connector, key: &Key, kinds: &[ErrorKind]) -> Check {
    refused("get", connector.get(key).wait(), kinds)?;
    refused("exists", connector.exists(key).wait(), kinds)?;
    refused("evict", connector.evict(key).wait(), kinds)?;
    refused("take", connector.take(key).wait(), kinds)?;
    refused("get_batch", connector.get_batch(&[*key]).wait(), kinds)?;
    refused("exists_batch", connector.exists_batch(&[*key]).wait(), kinds)?;
    refused("evict_batch", connector.evict_batch(&[*key]).wait(), kinds)?;
    if connector.capabilities().contains(Capabilities::DEFERRED) {
        refused("commit_at", connector.commit_at(key, RegionMut::heap(0)?).wait(), kinds)?;
        refused("get_when_committed", connector.get_when_committed(key).wait(), kinds)?;
    }
    Ok(())
}

/// Passes when no method gives bytes under `key`, whatever else it says; removing must have no effect either.
fn gives_nothing(connector: &dyn Connector, key: &Key) -> Check {
    let nothing = |what: &str, result: Result<bool>| match result {
        Ok(false) => Ok(()),
        Ok(true) => Err(Fault::new(format!("{what}: something is there under {key:?}"))),
        Err(error) if DAMAGED.contains(&error.kind()) => Ok(()),
        Err(error) => Err(Fault::new(format!("{what} under {key:?}: expected {DAMAGED:?}, got {error}"))),
    };
    nothing("get", connector.get(key).wait().map(|found| found.is_some()))?;
    nothing("exists", connector.exists(key).wait())?;
    nothing("take", connector.take(key).wait().map(|found| found.is_some()))?;
    nothing("evict", connector.evict(key).wait().map(|()| false))
}

/// What a locator that the connector cannot have made may be called.
const IMPOSSIBLE: &[ErrorKind] = &[ErrorKind::Invalid, ErrorKind::ForeignKey, ErrorKind::Unauthorized];
/// What a damaged locator may be called.
const DAMAGED: &[ErrorKind] = &[ErrorKind::Invalid, ErrorKind::ForeignKey, ErrorKind::Corrupt, ErrorKind::Unauthorized];
/// What a key of another length than its object's may be called.
const OTHER_LENGTH: &[ErrorKind] = &[ErrorKind::Corrupt, ErrorKind::Unauthorized];
