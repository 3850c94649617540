//! Locators: what the keys of a namespace's objects carry.

use crate::error::Result;
use crate::key::{Format, Key};
use crate::shm::table::Id;

/// Instance of the memory, slot, generation, all little-endian.
pub(crate) const LOCATOR: usize = 8 + 4 + 8;

pub(crate) const SCHEME: &str = "shm";

/// The key of an object.
///
/// # Errors
/// None: a locator fits into a key.
#[inline]
pub(crate) fn key(instance: u64, id: Id, len: u64, format: Format) -> Result<Key> {
    let mut locator = [0; LOCATOR];
    locator[..8].copy_from_slice(&instance.to_le_bytes());
    locator[8..12].copy_from_slice(&id.slot.to_le_bytes());
    locator[12..].copy_from_slice(&id.generation.to_le_bytes());
    Key::new(SCHEME, &locator, len, format)
}

/// The instance and the object of a locator; `None` for what [`key`] does not make.
#[inline]
pub(crate) fn parse(locator: &[u8]) -> Option<(u64, Id)> {
    let locator = <&[u8; LOCATOR]>::try_from(locator).ok()?;
    let (instance, rest) = locator.split_at(8);
    let (slot, generation) = rest.split_at(4);
    let generation = number(generation);
    let id = Id { slot: number(slot) as u32, generation };
    (generation >> Id::GENERATION_BITS == 0).then_some((number(instance), id))
}

/// Little-endian.
#[inline]
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
