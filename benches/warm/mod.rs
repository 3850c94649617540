//! A connector that lends the same warm memory each time: what is measured on it is encoding and decoding alone.

use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use proxystore::region::{ALIGNMENT, Memory};
use proxystore::{
    Capabilities, Connector, ConnectorConfig, Error, ErrorKind, Format, Key, Pending, Region, RegionMut, Result,
};

/// Keeps the object that was given to [`keep`](Warm::keep), and forgets those that are put.
pub(crate) struct Warm {
    config: ConnectorConfig,
    block: Arc<Block>,
    kept: Mutex<Option<Region>>,
}

impl Warm {
    pub(crate) fn new(name: &str, capacity: usize) -> Arc<Self> {
        let config = ConnectorConfig::new("memory", name);
        Arc::new(Self { config, block: Arc::new(Block::new(capacity)), kept: Mutex::default() })
    }

    /// Makes `bytes` what every key reads.
    pub(crate) fn keep(&self, bytes: &[u8]) {
        let region = Region::copy_from_slice(bytes).expect("memory");
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(region);
    }

    /// What was put last.
    pub(crate) fn written(&self, len: usize) -> Vec<u8> {
        assert!(!self.block.lent.load(Ordering::Acquire) && len <= self.block.capacity);
        #[expect(unsafe_code, reason = "the block is reached through a pointer")]
        // SAFETY: `capacity` bytes behind the pointer are initialised, and lent to nobody now; benchmarks have one thread.
        let bytes = unsafe { std::slice::from_raw_parts(self.block.first.as_ptr(), len) };
        bytes.to_vec()
    }
}

impl Connector for Warm {
    fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::ZERO_COPY_GET.union(Capabilities::ZERO_COPY_PUT)
    }

    fn reserve(&self, len: usize) -> Result<RegionMut> {
        if len > self.block.capacity || self.block.lent.swap(true, Ordering::AcqRel) {
            return Err(Error::new(ErrorKind::NoSpace, "reserve", "one object at a time"));
        }
        Ok(RegionMut::new(Box::new(Lent { block: Arc::clone(&self.block), len })))
    }

    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        Pending::ready(Key::new("memory", &[1; 16], region.len() as u64, format))
    }

    fn get(&self, _: &Key) -> Pending<Option<Region>> {
        Pending::ready(Ok(self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }

    fn exists(&self, _: &Key) -> Pending<bool> {
        Pending::ready(Ok(true))
    }

    fn evict(&self, _: &Key) -> Pending<()> {
        Pending::ready(Ok(()))
    }

    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        self.get(key)
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

struct Block {
    first: NonNull<u8>,
    capacity: usize,
    lent: AtomicBool,
    /// Owns what `first` points to, and is not touched again.
    _lines: Vec<Line>,
}

#[repr(align(64))]
#[derive(Clone)]
struct Line(#[expect(dead_code, reason = "written through `Block::first`")] [u8; ALIGNMENT]);

impl Block {
    fn new(capacity: usize) -> Self {
        let mut lines = vec![Line([1; ALIGNMENT]); capacity.div_ceil(ALIGNMENT).max(1)];
        let first = NonNull::new(lines.as_mut_ptr()).expect("a vector's pointer").cast();
        Self { first, capacity, lent: AtomicBool::new(false), _lines: lines }
    }
}

/// The block, lent to one writer.
struct Lent {
    block: Arc<Block>,
    len: usize,
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.block.lent.store(false, Ordering::Release);
    }
}

#[expect(unsafe_code, reason = "lending memory is a promise")]
// SAFETY: the vector is never resized, so its elements stay where they are, aligned by `Line` and all initialised; `lent`
// lets one holder at a time write to them.
unsafe impl Memory for Lent {
    fn as_ptr(&self) -> NonNull<u8> {
        self.block.first
    }

    fn capacity(&self) -> usize {
        self.len
    }

    fn initialized(&self) -> usize {
        self.len
    }
}

#[expect(unsafe_code, reason = "`NonNull` forgets that its memory is owned")]
// SAFETY: an owned heap block has no thread affinity; who writes is settled by `lent`.
unsafe impl Send for Block {}
#[expect(unsafe_code, reason = "`NonNull` forgets that its memory is owned")]
// SAFETY: see `Send`.
unsafe impl Sync for Block {}
