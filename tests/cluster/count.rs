//! How often this process asked for memory, and who did.

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The system's allocator, counting.
pub(crate) struct Counting;

/// Allocations so far, of all threads; what grows in place counts too.
pub(crate) fn allocations() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Has each allocation from here on say on standard error who asks for it, or no longer.
pub(crate) fn trace(is_on: bool) {
    TRACES.store(is_on, Ordering::Relaxed);
}

fn count(len: usize) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    // What a trace itself takes is not traced.
    if TRACES.load(Ordering::Relaxed) && !WITHIN.replace(true) {
        eprintln!("allocation of {len} bytes\n{}", Backtrace::force_capture());
        WITHIN.set(false);
    }
}

// SAFETY: the system's, with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        count(len);
        // SAFETY: the caller's.
        unsafe { System.realloc(ptr, layout, len) }
    }
}

static COUNT: AtomicU64 = AtomicU64::new(0);
static TRACES: AtomicBool = AtomicBool::new(false);

thread_local! {
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}
