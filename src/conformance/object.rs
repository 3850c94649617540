//! Family `object`: bytes in, key out; key in, the same bytes out.

use std::future::Future;
use std::io::Write;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use bytes::BufMut;

use super::bytes::{holds, is_missing, lengths, pattern, same, store};
use super::case::{Case, Check, ensure, refused};
use super::footprint;
use super::subject::Subject;
use crate::config::ConnectorConfig;
use crate::connector::ConnectorExt;
use crate::error::ErrorKind;
use crate::key::{Format, Key};

pub(super) const CASES: &[Case] = &[
    Case::new(
        "object",
        "describes_itself",
        "scheme and capabilities are those registered; the URL parses back",
        describes,
    ),
    Case::new("object", "round_trip", "what was put is what get gives; the key says scheme and length", round_trip),
    Case::new("object", "zero_length", "an object of no bytes is an object", zero_length),
    Case::new("object", "lengths", "every length near powers of two, lines and pages comes back exactly", all_lengths),
    Case::new("object", "put_is_reserve_and_commit", "both ways make the same object", put_is_reserve_and_commit),
    Case::new("object", "partly_filled", "commit takes the bytes written, not those reserved", partly_filled),
    Case::new("object", "written_in_place", "all ways to write a reservation count", written_in_place),
    Case::new(
        "object",
        "format_travels",
        "the format is in the key, and another one names the same object",
        format_travels,
    ),
    Case::new("object", "many", "thousands of objects keep their bytes and have distinct keys", many),
    Case::new("object", "equal_bytes", "equal bytes are two objects; evicting one leaves the other", equal_bytes),
    Case::new(
        "object",
        "evicted_is_missing",
        "an evicted object is missing for every method, and no error",
        evicted_is_missing,
    ),
    Case::new("object", "take_removes", "take gives the bytes once, then the object is missing", take_removes),
    Case::new(
        "object",
        "impossible_lengths",
        "a reservation that cannot be is refused: NoSpace or TooLarge",
        impossible_lengths,
    ),
    Case::new("object", "reserve_touches_nothing", "reserve does not touch the memory", reserve_touches_nothing),
    Case::new("object", "awaited", "every operation ends under .await as under .wait()", awaited),
    Case::new("object", "over_4_gib", "lengths and offsets beyond 32 bits", over_4_gib).slow(),
];

fn describes(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let registration = subject.registration();
    ensure!(connector.scheme() == registration.scheme, "config() is of scheme {}", connector.scheme());
    ensure!(
        registration.capabilities.contains(connector.capabilities()),
        "the connector has {:?}, its registration {:?}",
        connector.capabilities(),
        registration.capabilities
    );
    let config: ConnectorConfig = connector.config().to_string().parse()?;
    ensure!(config == *connector.config(), "{} parses back to {config}", connector.config());
    config.check_options(registration.options)?;
    subject.open_again(&*connector)?.close()?;
    Ok(())
}

fn round_trip(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = connector.put(&pattern(1, 100), Format::RAW).wait()?;
    ensure!(key.scheme() == connector.scheme(), "the key's scheme is {}", key.scheme());
    ensure!(key.len() == 100, "the key's length is {}", key.len());
    ensure!(connector.exists(&key).wait()?, "exists is false after put");
    holds(&*connector, &key, 1, 100)?;
    holds(&*connector, &key, 1, 100)?;
    same("fetch", &connector.fetch(&key).wait()?, 1, 100)
}

fn zero_length(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let put = connector.put(&[], Format::RAW).wait()?;
    let reserved = connector.commit(connector.reserve(0)?, Format::RAW).wait()?;
    let unwritten = connector.commit(connector.reserve(4096)?, Format::RAW).wait()?;
    ensure!(put != reserved && reserved != unwritten && put != unwritten, "three objects share a key");
    for key in [put, reserved, unwritten] {
        ensure!(key.len() == 0, "the key's length is {}", key.len());
        ensure!(connector.exists(&key).wait()?, "exists is false");
        holds(&*connector, &key, 0, 0)?;
    }
    connector.evict(&put).wait()?;
    is_missing(&*connector, &put)?;
    ensure!(connector.take(&reserved).wait()?.is_some_and(|region| region.is_empty()), "take did not give the object");
    is_missing(&*connector, &reserved)?;
    holds(&*connector, &unwritten, 0, 0)?;
    Ok(())
}

fn all_lengths(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut keys = Vec::new();
    for len in lengths() {
        keys.push((connector.put(&pattern(len as u64, len), Format::RAW).wait()?, len));
    }
    for (key, len) in keys {
        ensure!(key.len() == len as u64, "the key of {len} bytes says {}", key.len());
        holds(&*connector, &key, len as u64, len)?;
        same("take", &connector.take(&key).wait()?.unwrap_or_default(), len as u64, len)?;
    }
    Ok(())
}

fn put_is_reserve_and_commit(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in lengths() {
        let put = connector.put(&pattern(3, len), Format::RAW).wait()?;
        let committed = store(&*connector, 3, len, Format::RAW)?;
        ensure!(put.len() == committed.len(), "lengths {} and {}", put.len(), committed.len());
        let (put, committed) = (holds(&*connector, &put, 3, len)?, holds(&*connector, &committed, 3, len)?);
        ensure!(put == committed, "objects of {len} bytes differ");
    }
    Ok(())
}

fn partly_filled(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for (capacity, len) in [(4096, 100), (64, 63), (1 << 20, 1), (1 << 20, (1 << 20) - 1), (4097, 4096)] {
        let mut region = connector.reserve(capacity)?;
        ensure!(region.capacity() >= capacity, "{} bytes reserved instead of {capacity}", region.capacity());
        ensure!(region.is_empty(), "a reservation is born with {} bytes written", region.len());
        region.put_slice(&pattern(5, len));
        let key = connector.commit(region, Format::RAW).wait()?;
        ensure!(key.len() == len as u64, "the key of {len} bytes says {}", key.len());
        holds(&*connector, &key, 5, len)?;
    }
    Ok(())
}

fn written_in_place(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let whole = pattern(7, 1000);
    let mut region = connector.reserve(1000)?;
    region.put_slice(&whole[..10]);
    region.write_all(&whole[10..100])?;
    ensure!(*region.as_slice() == whole[..100], "as_slice is not what was written");
    let rest = region.initialize();
    ensure!(rest[..100] == whole[..100], "initialize changed what was written");
    let len = rest.len();
    rest[100..1000].copy_from_slice(&whole[100..]);
    rest[1000..].fill(0);
    let key = connector.commit(region, Format::RAW).wait()?;
    // A connector may lend more than was asked for; `initialize` takes all of it.
    ensure!(key.len() == len as u64, "the key says {} bytes of {len}", key.len());
    let found = connector.fetch(&key).wait()?;
    ensure!(found.len() == len, "{} bytes came back of {len}", found.len());
    same("get", &found[..1000], 7, 1000)
}

fn format_travels(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for format in [
        Format::RAW,
        Format { codec: 0x8001, fingerprint: u64::MAX },
        Format { codec: u16::MAX, fingerprint: 0x0123_4567_89ab_cdef },
    ] {
        for key in [connector.put(&pattern(8, 80), format).wait()?, store(&*connector, 8, 80, format)?] {
            ensure!(key.format() == format, "committed with {format:?}, the key says {:?}", key.format());
            holds(&*connector, &key, 8, 80)?;
            let other = key.with_format(Format { codec: 0x9999, fingerprint: 1 });
            holds(&*connector, &other, 8, 80)?;
        }
    }
    Ok(())
}

fn many(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let mut keys = Vec::new();
    for seed in 0..COUNT {
        keys.push(connector.put(&pattern(seed, (seed % 257) as usize), Format::RAW).wait()?);
    }
    let mut locators: Vec<&[u8]> = keys.iter().map(Key::locator).collect();
    locators.sort_unstable();
    locators.dedup();
    ensure!(locators.len() == keys.len(), "{} distinct locators for {} objects", locators.len(), keys.len());
    for (seed, key) in keys.iter().enumerate() {
        holds(&*connector, key, seed as u64, seed % 257)?;
    }
    for key in keys.iter().step_by(2) {
        connector.evict(key).wait()?;
    }
    for (seed, key) in keys.iter().enumerate() {
        match seed % 2 {
            0 => is_missing(&*connector, key)?,
            _ => drop(holds(&*connector, key, seed as u64, seed % 257)?),
        }
    }
    Ok(())
}

fn equal_bytes(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in [0, 1, 64, 5000] {
        let first = connector.put(&pattern(9, len), Format::RAW).wait()?;
        let second = connector.put(&pattern(9, len), Format::RAW).wait()?;
        ensure!(first != second, "two objects of {len} bytes share a key");
        connector.evict(&first).wait()?;
        is_missing(&*connector, &first)?;
        holds(&*connector, &second, 9, len)?;
    }
    Ok(())
}

fn evicted_is_missing(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in [0, 1, 64, 4096, 1 << 20] {
        let key = store(&*connector, 10, len, Format::RAW)?;
        connector.evict(&key).wait()?;
        is_missing(&*connector, &key)?;
    }
    Ok(())
}

fn take_removes(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in [1, 64, 4096, 1 << 20] {
        let key = store(&*connector, 11, len, Format::RAW)?;
        let taken = connector.take(&key).wait()?;
        same("take", &taken.unwrap_or_default(), 11, len)?;
        is_missing(&*connector, &key)?;
    }
    Ok(())
}

fn impossible_lengths(subject: &Subject) -> Check {
    let connector = subject.open()?;
    for len in [usize::MAX, usize::MAX - 63, isize::MAX as usize + 1, isize::MAX as usize] {
        refused("reserve", connector.reserve(len), &[ErrorKind::NoSpace, ErrorKind::TooLarge])?;
    }
    let key = connector.put(b"still alive", Format::RAW).wait()?;
    ensure!(&*connector.fetch(&key).wait()? == b"still alive", "the refusals did harm");
    Ok(())
}

fn reserve_touches_nothing(subject: &Subject) -> Check {
    const LEN: usize = 1 << 30;
    let connector = subject.open()?;
    let before = footprint::private_memory();
    match connector.reserve(LEN) {
        Ok(region) => {
            let grown = footprint::private_memory().saturating_sub(before);
            ensure!(grown < LEN as u64 / 8, "reserving {LEN} bytes made {grown} of private memory resident");
            ensure!(region.is_empty() && region.capacity() >= LEN, "{} bytes reserved", region.capacity());
            Ok(())
        }
        // A machine or a connector with less than this is no fault.
        Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::TooLarge) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn awaited(subject: &Subject) -> Check {
    let connector = subject.open()?;
    let key = block_on(connector.put(&pattern(12, 5000), Format::RAW))?;
    same("get", &block_on(connector.get(&key))?.unwrap_or_default(), 12, 5000)?;
    ensure!(block_on(connector.exists(&key))?, "exists is false");
    let batch = block_on(connector.get_batch(&[key, key]))?;
    ensure!(batch.iter().flatten().count() == 2, "get_batch misses members");
    same("take", &block_on(connector.take(&key))?.unwrap_or_default(), 12, 5000)?;
    block_on(connector.evict(&key))?;
    ensure!(block_on(connector.get(&key))?.is_none(), "the object is still there");
    Ok(())
}

fn over_4_gib(subject: &Subject) -> Check {
    const LEN: usize = (1 << 32) + 4097;
    let connector = subject.open()?;
    let mut region = connector.reserve(LEN)?;
    let block = pattern(13, BLOCK);
    while region.len() < LEN {
        // The first word of a block is its number, so that a block in another's place is seen.
        region.put_slice(&(region.len() as u64).to_le_bytes());
        let rest = (LEN - region.len()).min(BLOCK - 8);
        region.put_slice(&block[..rest]);
    }
    let key = connector.commit(region, Format::RAW).wait()?;
    ensure!(key.len() == LEN as u64, "the key says {}", key.len());
    let found = connector.fetch(&key).wait()?;
    ensure!(found.len() == LEN, "{} bytes came back", found.len());
    for (i, chunk) in found.chunks(BLOCK).enumerate() {
        let (number, rest) = chunk.split_at(8);
        ensure!(*number == ((i * BLOCK) as u64).to_le_bytes(), "another block lies at byte {}", i * BLOCK);
        ensure!(*rest == block[..rest.len()], "bytes differ in the block at {}", i * BLOCK);
    }
    drop(found);
    connector.evict(&key).wait()?;
    is_missing(&*connector, &key)
}

/// The least executor that there is.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

const COUNT: u64 = 2000;
const BLOCK: usize = 1 << 20;
