//! Pins: each thread has a page of cells of its own, so taking one needs no lock, and giving one up is a store.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Client;
use crate::error::Result;
use crate::failpoint::failpoint;
use crate::process;
use crate::region::Region;
use crate::shm::table;
use crate::sync::lock;
use crate::sync::modelled::AtomicU64;

/// The page that a thread takes cells from.
struct Own {
    client: Arc<Client>,
    page: u32,
    /// Where to look next, in cells.
    next: u32,
}

thread_local! {
    /// One entry a client; almost always there is one.
    static OWN: RefCell<Vec<Own>> = const { RefCell::new(Vec::new()) };
}

/// A cell that names nothing, and is this thread's until it does.
///
/// # Errors
/// `NoSpace` and `Unavailable` when all cells are in use and there are no more to get.
#[inline]
pub(super) fn cell(client: &Arc<Client>) -> Result<u32> {
    let found = OWN.try_with(|own| {
        let mut own = own.try_borrow_mut().ok()?;
        let own = own.iter_mut().find(|own| Arc::ptr_eq(&own.client, client))?;
        own.next(PROBES)
    });
    match found {
        Ok(Some(cell)) => Ok(cell),
        _ => slow(client),
    }
}

#[cold]
fn slow(client: &Arc<Client>) -> Result<u32> {
    let cells = client.table.layout().cells;
    // Everything that may block or run other code happens outside the borrow.
    let (mut own, former) = OWN
        .try_with(|own| {
            let mut own = own.borrow_mut();
            // What belongs to attachments that ended goes, and with it this thread's hold on their memory.
            let (mine, former): (Vec<Own>, Vec<Own>) =
                own.drain(..).partition(|own| !own.client.is_lost() && !own.client.ended.load(Relaxed));
            (mine, former)
        })
        .unwrap_or_default();
    drop(former);
    let at = own.iter().position(|own| Arc::ptr_eq(&own.client, client));
    let mut current = at.map(|at| own.swap_remove(at));
    let cell = loop {
        if let Some(cell) = current.as_mut().and_then(|own| own.next(cells)) {
            break Ok(cell);
        }
        match client.page(current.take()) {
            Ok(page) => current = Some(Own { client: Arc::clone(client), page, next: 0 }),
            Err(error) => break Err(error),
        }
    };
    // The one in use most comes first.
    let own: Vec<Own> = current.into_iter().chain(own).collect();
    let mut own = Some(own);
    let _ = OWN.try_with(|place| *place.borrow_mut() = own.take().unwrap_or_default());
    // At the very end of a thread there is no place for it any more. Nobody else may have the page, or two would take one
    // cell: it is given up with the process.
    std::mem::forget(own);
    cell
}

impl Own {
    #[inline]
    fn next(&mut self, probes: u32) -> Option<u32> {
        let table = &self.client.table;
        let cells = table.layout().cells;
        for _ in 0..probes {
            let cell = self.page * cells + self.next;
            self.next = if self.next + 1 == cells { 0 } else { self.next + 1 };
            if table.is_unpinned(cell) {
                return Some(cell);
            }
        }
        None
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if process::generation() == self.client.generation {
            lock(&self.client.pages).push(self.page);
        } else {
            // Through fork: nothing of the parent's may be touched, not even to be freed.
            std::mem::forget(Arc::clone(&self.client));
        }
    }
}

impl Client {
    /// A page of cells, not all of which are in use, for one whose cells are.
    fn page(self: &Arc<Self>, crowded: Option<Own>) -> Result<u32> {
        drop(crowded);
        let mut pages = lock(&self.pages);
        if let Some(at) = pages.iter().position(|page| self.cells_of(*page).any(|cell| self.table.is_unpinned(cell))) {
            return Ok(pages.swap_remove(at));
        }
        drop(pages);
        self.ask_for_page()
    }

    fn cells_of(&self, page: u32) -> std::ops::Range<u32> {
        let cells = self.table.layout().cells;
        page * cells..(page + 1) * cells
    }

    /// Whether any view is left. Those that hold this client's memory are no owners of it: their cells tell.
    pub(super) fn is_viewed(&self) -> bool {
        lock(&self.pages).iter().any(|page| self.cells_of(*page).any(|cell| !self.table.is_unpinned(cell)))
    }
}

/// A pin of an object.
///
/// While its cell names the object, the client does not unmap anything: so it needs no share in the client, whose count all
/// threads would fight for.
pub(super) struct Pinned {
    cell: NonNull<AtomicU64>,
    generation: u32,
}

// SAFETY: the pin cell is an atomic that any thread may clear.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Takes over a cell that names an object.
    #[inline]
    pub(super) fn new(client: &Client, cell: u32) -> Self {
        Self { cell: NonNull::from(client.table.cell_word(cell)), generation: client.generation }
    }

    /// The bytes that the pin keeps.
    ///
    /// # Safety
    /// They are valid for reads, and nobody writes to them, until the cell is cleared.
    #[inline(always)]
    pub(super) unsafe fn into_region(self, ptr: NonNull<u8>, len: usize) -> Region {
        // SAFETY: the caller's promise; the cell is cleared when the region drops this.
        unsafe { Region::keep(ptr, len, self) }
    }
}

impl Drop for Pinned {
    #[inline]
    fn drop(&mut self) {
        // Through fork the cell is the parent's, and neither it nor what it keeps is mapped here.
        if process::generation() == self.generation {
            // SAFETY: the control segment stays mapped while the cell names a slot, which ends with this store: see
            // `Client::drop`.
            table::unpin(unsafe { self.cell.as_ref() });
            failpoint!("client.unpinned");
        }
    }
}

/// Cells that are looked at before the page counts as crowded.
const PROBES: u32 = 8;
