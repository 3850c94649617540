//! Pins: each thread has a page of cells of its own, so taking one needs no lock, and giving one up is a store.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::Arc;

use super::Client;
use crate::error::Result;
use crate::failpoint::failpoint;
use crate::process;
use crate::region::Region;
use crate::sync::lock;

/// A page of pin cells; views keep it, and by it the client and its mappings.
pub(super) struct Page {
    client: Arc<Client>,
    number: u32,
}

/// The page that a thread takes cells from.
struct Own {
    page: Arc<Page>,
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
pub(super) fn cell(client: &Arc<Client>) -> Result<(Arc<Page>, u32)> {
    OWN.with(|own| {
        let mut own = own.borrow_mut();
        if let Some(own) = own.iter_mut().find(|own| Arc::ptr_eq(&own.page.client, client)) {
            if let Some(cell) = own.next(PROBES) {
                return Ok((Arc::clone(&own.page), cell));
            }
        }
        slow(&mut own, client)
    })
}

#[cold]
fn slow(own: &mut Vec<Own>, client: &Arc<Client>) -> Result<(Arc<Page>, u32)> {
    // What belongs to attachments that ended goes, and with it the last hold on their memory.
    own.retain(|own| !own.page.client.is_lost() && !own.page.client.ended.load(std::sync::atomic::Ordering::Relaxed));
    let cells = client.table.layout().cells;
    if let Some(own) = own.iter_mut().find(|own| Arc::ptr_eq(&own.page.client, client)) {
        if let Some(cell) = own.next(cells) {
            return Ok((Arc::clone(&own.page), cell));
        }
    }
    loop {
        let number = client.page()?;
        let mut fresh = Own { page: Arc::new(Page { client: Arc::clone(client), number }), next: 0 };
        let Some(cell) = fresh.next(cells) else {
            // All its cells were taken meanwhile: by nobody, since it was nobody's. Scribbled on.
            continue;
        };
        let page = Arc::clone(&fresh.page);
        own.retain(|own| !Arc::ptr_eq(&own.page.client, client));
        own.push(fresh);
        return Ok((page, cell));
    }
}

impl Own {
    #[inline]
    fn next(&mut self, probes: u32) -> Option<u32> {
        let table = &self.page.client.table;
        let cells = table.layout().cells;
        for _ in 0..probes {
            let cell = self.page.number * cells + self.next;
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
        let client = &self.page.client;
        if process::generation() == client.generation {
            lock(&client.pages).push(self.page.number);
        } else {
            // Through fork: nothing of the parent's may be touched, not even to be freed.
            std::mem::forget(Arc::clone(&self.page));
        }
    }
}

impl Client {
    /// A page of cells, not all of which are in use.
    fn page(self: &Arc<Self>) -> Result<u32> {
        let mut pages = lock(&self.pages);
        let has_room = |page: &u32| {
            let cells = self.table.layout().cells;
            (page * cells..(page + 1) * cells).any(|cell| self.table.is_unpinned(cell))
        };
        if let Some(at) = pages.iter().position(has_room) {
            return Ok(pages.swap_remove(at));
        }
        drop(pages);
        self.ask_for_page()
    }
}

/// A pin, and the bytes that it keeps.
pub(super) struct Pinned {
    ptr: NonNull<u8>,
    len: usize,
    cell: u32,
    page: Arc<Page>,
}

// SAFETY: the bytes are read only, and the pin cell is an atomic that any thread may clear.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Takes over a cell that names an object.
    #[inline]
    pub(super) fn new(page: Arc<Page>, cell: u32) -> Self {
        Self { ptr: NonNull::dangling(), len: 0, cell, page }
    }

    /// Says which bytes the pin keeps.
    ///
    /// # Safety
    /// They are valid for reads, and nobody writes to them, until the cell is cleared.
    #[inline]
    pub(super) unsafe fn aim(&mut self, ptr: NonNull<u8>, len: usize) {
        (self.ptr, self.len) = (ptr, len);
    }

    #[inline]
    pub(super) fn into_region(self) -> Result<Region> {
        Region::from_owner(self)
    }
}

impl AsRef<[u8]> for Pinned {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        // SAFETY: by the promise of `aim`; before it, no bytes.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    #[inline]
    fn drop(&mut self) {
        let client = &self.page.client;
        if process::generation() == client.generation {
            client.table.unpin(self.cell);
            failpoint!("client.unpinned");
        } else {
            // Through fork: the cell is the parent's, and what it keeps is not mapped here.
            std::mem::forget(Arc::clone(&self.page));
        }
    }
}

/// Cells that are looked at before the page counts as crowded.
const PROBES: u32 = 8;
