//! `Memory`: the segments of a process as one instance knows them, each registered when it is first met.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use super::native::{Access, Bulk, Instance};
use crate::fabric::Segments;

/// The registered memory of an instance, for one purpose.
pub(super) struct Memory {
    instance: Arc<Instance>,
    access: Access,
    segments: Option<Arc<dyn Segments>>,
    known: RwLock<Vec<Known>>,
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
        Arc::new(Self { instance: Arc::clone(instance), access, segments, known: RwLock::default() })
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
