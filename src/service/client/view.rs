//! Views: the bytes of objects that were found and pinned.

use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;

use super::pins::Pinned;
use super::{Client, Expected, Look, corrupt};
use crate::error::Result;
use crate::failpoint::failpoint;
use crate::region;
use crate::shm::class::{Class, Place};
use crate::shm::clock;
use crate::shm::layout::word;
use crate::shm::segment::Access;
use crate::shm::table::Object;

impl Client {
    #[inline(always)]
    pub(super) fn view(&self, object: &Object, expected: Expected, pinned: Pinned) -> Result<Look> {
        Ok(match self.seen(object, expected)? {
            // SAFETY: `seen` checked the range against the mapping, which `pinned` keeps; the object is live and pinned, so
            // nobody writes to its bytes until the pin is given up.
            Some((ptr, len)) => Look::Object(unsafe { pinned.into_region(ptr, len) }),
            None => Look::Missing,
        })
    }

    /// Where the bytes of an object lie that is what the key says; `None` where its time is over.
    #[inline(always)]
    pub(super) fn seen(&self, object: &Object, expected: Expected) -> Result<Option<(NonNull<u8>, usize)>> {
        let label = &object.label;
        expected.check(object)?;
        if label.expires != 0 && label.expires <= clock::boot_millis() {
            return Ok(None);
        }
        if self.stamps() {
            self.table.stamp(object, self.table.header(word::EPOCH).load(Relaxed) as u32);
        }
        let place = self.bytes_of(object)?;
        failpoint!("client.viewing");
        Ok(Some(place))
    }

    /// Where the bytes of an object lie for readers, if what its slot says is possible.
    #[inline(always)]
    pub(super) fn bytes_of(&self, object: &Object) -> Result<(NonNull<u8>, usize)> {
        let class = u16::try_from(object.class).ok().and_then(Class::from_index);
        let Some(class) = class.filter(|class| object.label.len <= class.capacity()) else {
            return Err(corrupt("its length or size class is impossible"));
        };
        if class == Class::EMPTY {
            return Ok((region::nowhere(), 0));
        }
        let place = Place::from_bits(object.place);
        let held = self.segment(place.segment())?;
        let len = object.label.len as usize;
        let end = place.offset().checked_add(object.label.len);
        if end.is_none_or(|end| end > held.segment.len() as u64) {
            return Err(corrupt("it lies outside its segment"));
        }
        let base = held.mapping(Access::Read)?.as_ptr();
        // SAFETY: `offset + len` lies within the mapping, by the comparison above.
        Ok((unsafe { base.add(place.offset() as usize) }, len))
    }
}
