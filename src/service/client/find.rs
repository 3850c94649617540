//! Objects with what their slots say of them: for those who speak for other nodes.

use std::sync::Arc;

use super::pins::{self, Pinned};
use super::{Client, Expected};
use crate::error::Result;
use crate::region::View;
use crate::shm::clock;
use crate::shm::table::{Found, Id, Object, REDIRECT};

/// What a key leads to.
#[derive(Debug)]
pub(crate) enum Sight {
    /// An object, and its slot's words.
    Object(View, Object),
    /// A declaration without an object.
    Declared,
    Missing,
}

impl Client {
    /// As [`get`](Self::get), with the words of the slot.
    ///
    /// # Errors
    /// As `get`.
    pub(crate) fn find(self: &Arc<Self>, id: Id, expected: Expected) -> Result<Sight> {
        if !self.knows(id.slot) {
            return Ok(Sight::Missing);
        }
        let cell = pins::cell(self)?;
        match self.table.pin(cell, id) {
            Found::Object(object) => {
                let pinned = Pinned::new(self, cell);
                Ok(match self.seen(&object, expected)? {
                    // SAFETY: `seen` checked the range against the mapping, which `pinned` keeps; the object is live and
                    // pinned, so nobody writes to its bytes until the pin is given up.
                    Some((ptr, len)) => Sight::Object(unsafe { View::new(ptr, len, pinned) }, object),
                    None => Sight::Missing,
                })
            }
            Found::Declared => Ok(Sight::Declared),
            Found::Missing => Ok(Sight::Missing),
        }
    }

    /// How long an object has, in milliseconds; 0 for ever.
    pub(crate) fn expires_in(object: &Object) -> u64 {
        match object.label.expires {
            0 => 0,
            at => at.saturating_sub(clock::boot_millis()).max(1),
        }
    }
}

impl Sight {
    /// Whether the bytes are the address of an object on another node.
    pub(crate) fn is_redirect(object: &Object) -> bool {
        object.label.flags & REDIRECT != 0
    }
}
