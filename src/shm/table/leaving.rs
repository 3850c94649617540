//! Leaving: of processes that end at the same time, at least one sees that the other ends too.
//!
//! Who leaves says so in its entry of the table and looks at the others' only then. Whoever hosts may leave with others there only if
//! none of them leaves, and the others only if the host does not.

use super::*;

/// The clients beside one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Others {
    None,
    /// All of them said that they leave.
    Leave,
    /// One at least did not.
    Stay,
}

impl<M: Mem> Table<M> {
    /// A client says that it leaves, or that it does not after all. What the caller looks at next is not older.
    pub(crate) fn say_leaving(&self, own: u32, leaving: bool) {
        let word = self.client(own, client::PID);
        match leaving {
            true => word.fetch_or(client::LEAVING, Relaxed),
            false => word.fetch_and(!client::LEAVING, Relaxed),
        };
        // SYNC POINT: the same, of another. The two fences are in one order: who comes to the later one sees what was said before
        // the earlier.
        if !mutant!("leave_fence") {
            fence(SeqCst);
        }
    }

    /// What the others do, as far as they said.
    pub(crate) fn others(&self, own: u32) -> Others {
        let mut others = Others::None;
        for index in (0..self.layout.clients).filter(|index| *index != own) {
            if self.client(index, client::TAG).load(Acquire) == 0 {
                continue;
            }
            if self.client(index, client::PID).load(Relaxed) & client::LEAVING == 0 {
                return Others::Stay;
            }
            others = Others::Leave;
        }
        others
    }

    /// Whether another client, of that process, said that it leaves.
    pub(crate) fn leaves(&self, own: u32, process: u32) -> bool {
        let said = u64::from(process) | client::LEAVING;
        (0..self.layout.clients).any(|index| index != own && self.client(index, client::PID).load(Relaxed) == said)
    }
}
