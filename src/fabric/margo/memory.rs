//! `Memory`: the segments of a process as one instance knows them, each registered when it is first met; and some memory beside them, for what
//! is packed.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::BufMut;

use super::native::{Access, Bulk, Instance};
use crate::error::Result;
use crate::fabric::Segments;
use crate::region::RegionMut;
use crate::sync::lock;

/// The registered memory of an instance, for one purpose.
pub(super) struct Memory {
    instance: Arc<Instance>,
    access: Access,
    segments: Option<Arc<dyn Segments>>,
    known: RwLock<Vec<Known>>,
    /// Registered, and used by nothing at the moment.
    spare: Mutex<Vec<Staging>>,
}

/// Registered memory beside the segments.
pub(super) struct Staging {
    /// In this order: the registration ends before the memory.
    bulk: Arc<Bulk>,
    region: RegionMut,
}

#[derive(Clone)]
pub(super) struct Known {
    addresses: Range<usize>,
    /// Its number among those of this table; never 0.
    pub(super) id: u32,
    /// Nothing, where Mercury would not have it.
    bulk: Option<Arc<Bulk>>,
}

impl Memory {
    pub(super) fn new(instance: &Arc<Instance>, access: Access, segments: Option<Arc<dyn Segments>>) -> Arc<Self> {
        Arc::new(Self {
            instance: Arc::clone(instance),
            access,
            segments,
            known: RwLock::default(),
            spare: Mutex::default(),
        })
    }

    /// Memory for so many bytes, empty.
    ///
    /// # Cost
    /// Mostly a look into a short list; where nothing there is large enough, its registration.
    ///
    /// # Errors
    /// What Mercury says; `NoSpace`.
    pub(super) fn stage(&self, len: usize) -> Result<Staging> {
        let mut spare = lock(&self.spare);
        let fits = spare.iter().enumerate().filter(|(_, staging)| staging.region.capacity() >= len);
        let least = fits.min_by_key(|(_, staging)| staging.region.capacity()).map(|(at, _)| at);
        if let Some(at) = least {
            return Ok(spare.swap_remove(at));
        }
        drop(spare);
        let mut region = RegionMut::heap(len.max(LEAST_STAGING).next_power_of_two())?;
        if self.access == Access::Parts {
            // Peers can read all of it, and have no business with what the allocator left there.
            region.initialize();
            region = region.emptied();
        }
        let bulk = Arc::new(Bulk::of_region(&self.instance, &region, self.access)?);
        Ok(Staging { bulk, region })
    }

    /// Keeps it for others, if there is not much of that.
    pub(super) fn unstage(&self, staging: Staging) {
        let mut spare = lock(&self.spare);
        let kept: usize = spare.iter().map(|staging| staging.region.capacity()).sum();
        if kept + staging.region.capacity() <= MOST_STAGING {
            let Staging { bulk, region } = staging;
            spare.push(Staging { bulk, region: region.emptied() });
            return;
        }
        drop(spare);
        drop(staging);
    }

    /// The registered memory in which a range of addresses lies, and its number.
    ///
    /// # Cost
    /// A look into a short table; for a segment that was not met before, its registration.
    pub(super) fn find(&self, addresses: &Range<usize>) -> Option<(Arc<Bulk>, u32)> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.iter().find(|known| known.contains(addresses)) {
            return known.bulk.clone().map(|bulk| (bulk, known.id));
        }
        drop(known);
        let segments = self.segments.as_ref()?;
        let segment = segments.segment_of(addresses.start)?;
        let len = segment.addresses.len();
        let mappings = [Some(segment.addresses), segment.views.map(|start| start..start + len)];
        let mapping = mappings.into_iter().flatten().find(|mapping| mapping.contains(&addresses.start))?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().any(|known| known.addresses == mapping) {
            let bulk = Bulk::of_segment(&self.instance, segments, mapping.clone(), self.access).ok().map(Arc::new);
            let id = known.len() as u32 + 1;
            known.push(Known { addresses: mapping, id, bulk });
        }
        let found = known.iter().find(|known| known.contains(addresses))?;
        found.bulk.clone().map(|bulk| (bulk, found.id))
    }
}

impl Staging {
    /// Its registration, its memory.
    pub(super) fn parts(self) -> (Arc<Bulk>, RegionMut) {
        (self.bulk, self.region)
    }

    pub(super) fn of((bulk, region): (Arc<Bulk>, RegionMut)) -> Self {
        Self { bulk, region }
    }

    pub(super) fn bulk(&self) -> &Bulk {
        &self.bulk
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.region.put_slice(bytes);
    }
}

impl Known {
    fn contains(&self, addresses: &Range<usize>) -> bool {
        self.addresses.start <= addresses.start && addresses.end <= self.addresses.end
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({:?})", self.access)
    }
}

/// Bytes of the smallest staging memory, and of all that is kept.
const LEAST_STAGING: usize = 64 << 10;
const MOST_STAGING: usize = 8 << 20;
