//! Objects of other nodes while they arrive: what is there of them is passed on before they are whole.
//!
//! Such an object is published before its first byte, so that pins keep its memory like any other's, but its declaration does
//! not lead to it: it has a hint of where to look, which counts only if the slot there names the declaration.
//!
//! ```text
//! declaration   fingerprint: slot of the original (32 bits) | slot + 1 of what arrives (32 bits)
//! what arrives  fingerprint: generation of the declaration
//!               expires: how many bytes are there, from the first on; nobody writes to them any more
//! ```
//!
//! Landing writes over these two words what they say of an object. Whoever takes an expiry for a number of bytes meanwhile is not
//! wrong: all are there.

use super::*;

impl<M: Mem> Table<M> {
    /// Makes a leased slot the object that arrives for a declaration of the caller's own: the bytes come from here on.
    ///
    /// The caller keeps its slot pinned until it is whole, or given up.
    pub(crate) fn publish_arriving(&self, object: Id, declared: Id, len: u64) {
        let format = Format { codec: 0, fingerprint: declared.generation };
        self.publish(object, &Label { len, format, flags: BOUND | REPLICA | ARRIVING, expires: 0 }, 0);
    }

    /// Says at the declaration which slot that is; whether it still is one.
    pub(crate) fn hint_at(&self, cell: u32, declared: Id, object: Id) -> bool {
        let state = match mutant!("hint_unpinned") {
            true => State::Declared.word(declared.generation),
            // So that the slot cannot become another one's meanwhile.
            false => self.point(cell, declared.slot),
        };
        let holds = state == State::Declared.word(declared.generation);
        if holds {
            let original = self.slot(declared.slot, slot::FINGERPRINT).load(Relaxed) & u64::from(u32::MAX);
            // SYNC POINT: `arriving`.
            let hint = original | u64::from(object.slot + 1) << HINT;
            self.slot(declared.slot, slot::FINGERPRINT).store(hint, Release);
        }
        self.unpin(cell);
        holds
    }

    /// So many bytes are there of what arrives, which the caller keeps pinned.
    pub(crate) fn advance(&self, object: Id, bytes: u64) {
        // SYNC POINT: `arriving`. They come before.
        self.slot(object.slot, slot::EXPIRES).store(bytes, mutant!(Release, "advance_release"));
    }

    /// Makes what arrived, all of which is there, an object with this label; the caller still keeps it pinned.
    pub(crate) fn label_arrived(&self, object: Id, label: &Label, stamp: u32) {
        self.slot(object.slot, slot::FINGERPRINT).store(label.format.fingerprint, Relaxed);
        // SYNC POINT: `arriving`. A reader may still take it for a number of bytes.
        self.slot(object.slot, slot::EXPIRES).store(label.expires, Release);
        // SYNC POINT: `expires`.
        self.slot(object.slot, slot::META).store(meta(label, stamp), mutant!(Release, "arrived_release"));
    }

    /// What arrives for a declaration, and how much of it is there; the cell names its slot when, and only when, it is found.
    pub(crate) fn arriving(&self, cell: u32, declared: Id) -> Option<(Object, u64)> {
        // Not pinned: of what is read here only the slot is used, and that slot says whether it was right.
        let hint = self.slot(declared.slot, slot::FINGERPRINT).load(Acquire) >> HINT;
        let at = hint.checked_sub(1).filter(|at| *at < u64::from(self.slots()))? as u32;
        let found = State::of(self.point(cell, at)).filter(|(_, state)| *state == State::Live);
        let found = found.map(|(generation, _)| self.read(Id { slot: at, generation })).filter(|object| {
            (object.label.flags & ARRIVING != 0 || mutant!("arriving_flag"))
                && (object.label.format.fingerprint == declared.generation || mutant!("arriving_declaration"))
        });
        // SYNC POINT: `advance`, `label_arrived`.
        let found = found.map(|object| {
            (object, self.slot(at, slot::EXPIRES).load(mutant!(Acquire, "arriving_acquire")).min(object.label.len))
        });
        if found.is_none() {
            self.unpin(cell);
        }
        found
    }

    /// When a live object expires; 0 for never, and for what still arrives.
    pub(crate) fn expires(&self, slot: u32) -> u64 {
        // SYNC POINT: `label_arrived`. First: what it says decides what the other word is.
        let meta = self.slot(slot, slot::META).load(mutant!(Acquire, "expires_acquire"));
        match (meta >> 16) as u16 & ARRIVING != 0 && !mutant!("expires_arriving") {
            true => 0,
            false => self.slot(slot, slot::EXPIRES).load(Relaxed),
        }
    }
}

/// First bit of the hint in the fingerprint of a declaration.
const HINT: u32 = 32;
