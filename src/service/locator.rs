//! Locators: what the keys of a namespace's objects carry.

use crate::error::Result;
use crate::key::{Format, Key};
use crate::shm::table::Id;

/// Instance of the memory, slot, generation, place, all little-endian.
///
/// The slot alone says where the bytes lie; the place is in the key too so that a slot that somebody scribbled on is noticed.
pub(crate) const LOCATOR: usize = 8 + END;

/// What differs between the keys of a memory.
pub(crate) const END: usize = 4 + 8 + 8;

/// The place in the key of an object that comes later.
pub(crate) const NO_PLACE: u64 = u64::MAX;

pub(crate) const SCHEME: &str = "shm";

/// The key of an object.
///
/// # Errors
/// None: a locator fits into a key.
#[inline]
pub(crate) fn key(instance: u64, id: Id, place: u64, len: u64, format: Format) -> Result<Key> {
    let mut locator = [0; LOCATOR];
    locator[..8].copy_from_slice(&instance.to_le_bytes());
    locator[8..].copy_from_slice(&end(id, place));
    Key::new(SCHEME, &locator, len, format)
}

/// The end of a locator.
#[inline]
pub(crate) fn end(id: Id, place: u64) -> [u8; END] {
    let mut end = [0; END];
    end[..4].copy_from_slice(&id.slot.to_le_bytes());
    end[4..12].copy_from_slice(&id.generation.to_le_bytes());
    end[12..].copy_from_slice(&place.to_le_bytes());
    end
}

/// The instance, the object and the place of a locator; `None` for what [`key`] does not make.
#[inline]
pub(crate) fn parse(locator: &[u8]) -> Option<(u64, Id, u64)> {
    let locator = <&[u8; LOCATOR]>::try_from(locator).ok()?;
    let (instance, rest) = locator.split_at(8);
    let (slot, rest) = rest.split_at(4);
    let (generation, place) = rest.split_at(8);
    let generation = number(generation);
    let id = Id { slot: number(slot) as u32, generation };
    (generation >> Id::GENERATION_BITS == 0).then_some((number(instance), id, number(place)))
}

/// Little-endian.
#[inline]
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
