//! `Registered`: memory that UCX knows, so that no transfer has to register what it touches.

use std::collections::BTreeMap;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex};

use ucx_sys::{
    UCP_MEM_MAP_PARAM_FIELD_ADDRESS, UCP_MEM_MAP_PARAM_FIELD_LENGTH, UCS_OK, Ucx, ucp_context_h, ucp_mem_h,
    ucp_mem_map_params_t,
};

use super::context::check;
use super::exit::EXIT;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Segment, Segments};
use crate::sync::lock;

/// Segments of a context, registered when they are first met and until the context ends.
#[derive(Default)]
pub(super) struct Registered(Mutex<Known>);

#[derive(Default)]
struct Known {
    sources: Vec<Arc<dyn Segments>>,
    /// By the first address, of either mapping.
    pieces: BTreeMap<usize, Piece>,
    handles: Vec<Handle>,
}

/// One mapping of a segment.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    start: usize,
    end: usize,
    /// What leads from an address here to one where the memory can be written: adapters register only such.
    shift: isize,
    handle: Handle,
}

#[derive(Clone, Copy)]
struct Handle(ucp_mem_h);

// SAFETY: a handle is a name for memory; it is used in calls on workers, which are under their locks, and unmapped once, when
// nothing uses it any more.
unsafe impl Send for Handle {}

impl Piece {
    /// Whether `len` bytes at `address` are in it.
    pub(super) fn has(&self, address: usize, len: usize) -> bool {
        self.start <= address && address.checked_add(len).is_some_and(|end| end <= self.end)
    }

    /// Where a transfer finds the byte of this address, and the name by which UCX knows the memory.
    pub(super) fn place(&self, address: usize) -> (usize, ucp_mem_h) {
        (address.wrapping_add_signed(self.shift), self.handle.0)
    }
}

/// A segment of an owner, as it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Packed {
    /// Its first address in the owner's process.
    pub(super) base: u64,
    pub(super) len: u64,
    /// UCX's, for its transports.
    pub(super) key: Vec<u8>,
}

impl Registered {
    /// Makes segments known, which are registered when something in them is first moved.
    pub(super) fn add(&self, source: Arc<dyn Segments>) {
        lock(&self.0).sources.push(source);
    }

    /// The mapping in which `len` bytes at `address` are, where they are in a segment. It is good until the context ends.
    ///
    /// # Cost
    /// A look-up. The first time in a segment: pinning of all of it, on adapters that pin.
    pub(super) fn piece(&self, ucx: &Ucx, context: ucp_context_h, address: usize, len: usize) -> Option<Piece> {
        let mut known = lock(&self.0);
        if let Some(piece) = known.find(address, len) {
            return Some(piece);
        }
        let segment = known.sources.iter().find_map(|source| source.segment_of(address))?;
        known.register(ucx, context, &segment);
        known.find(address, len)
    }

    /// A segment as peers are told of it, so that they can read it; registers it.
    ///
    /// # Errors
    /// `NotFound` for a number that no segment has; `Unavailable` where it cannot be registered.
    pub(super) fn packed(&self, ucx: &Ucx, context: ucp_context_h, number: u16) -> Result<Packed> {
        let _entered = EXIT.enter()?;
        let mut known = lock(&self.0);
        let Some(segment) = known.sources.iter().find_map(|source| source.numbered(number)) else {
            return Err(Error::new(ErrorKind::NotFound, "get", format!("there is no segment {number}")));
        };
        let (base, len) = (segment.addresses.start, segment.addresses.len());
        if known.find(base, len).is_none() {
            known.register(ucx, context, &segment);
        }
        let Some(Handle(handle)) = known.find(base, len).map(|piece| piece.handle) else {
            let context = format!("segment {number} could not be registered");
            return Err(Error::new(ErrorKind::Unavailable, "get", context));
        };
        let (mut bytes, mut size) = (ptr::null_mut(), 0);
        // SAFETY: the handle is mapped in this context; the bytes are copied before they are released.
        unsafe {
            check(ucx, "describe memory", ucx.ucp_rkey_pack(context, handle, &mut bytes, &mut size))?;
            let key = std::slice::from_raw_parts(bytes.cast::<u8>(), size).to_vec();
            ucx.ucp_rkey_buffer_release(bytes);
            Ok(Packed { base: base as u64, len: len as u64, key })
        }
    }

    /// Forgets everything.
    pub(super) fn unmap(&self, ucx: &Ucx, context: ucp_context_h) {
        let mut known = lock(&self.0);
        known.pieces.clear();
        for Handle(handle) in known.handles.drain(..) {
            // SAFETY: mapped in this context, and no worker of it is left that could use it.
            unsafe { ucx.ucp_mem_unmap(context, handle) };
        }
        known.sources.clear();
    }
}

impl Known {
    fn find(&self, address: usize, len: usize) -> Option<Piece> {
        let (_, piece) = self.pieces.range(..=address).next_back()?;
        piece.has(address, len).then_some(*piece)
    }

    fn register(&mut self, ucx: &Ucx, context: ucp_context_h, segment: &Segment) {
        let (start, len) = (segment.addresses.start, segment.addresses.len());
        let handle = match self.pieces.get(&start) {
            Some(piece) => piece.handle,
            None => {
                let params = ucp_mem_map_params_t {
                    field_mask: u64::from(UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH),
                    address: ptr::with_exposed_provenance_mut(start),
                    length: len,
                    ..Default::default()
                };
                let mut handle = ptr::null_mut();
                // SAFETY: the addresses are mapped as long as the source lives, which is kept until all is unmapped.
                let status = unsafe { ucx.ucp_mem_map(context, &params, &mut handle) };
                if status != UCS_OK {
                    // Transfers work without it, at the cost of registering what each touches.
                    #[cfg(feature = "tracing")]
                    tracing::warn!(target: "proxystore", len, reason = ucx.describe(status), "memory is not registered");
                    return;
                }
                self.handles.push(Handle(handle));
                Handle(handle)
            }
        };
        self.pieces.insert(start, Piece { start, end: start + len, shift: 0, handle });
        if let Some(views) = segment.views {
            let shift = start.wrapping_sub(views) as isize;
            self.pieces.insert(views, Piece { start: views, end: views + len, shift, handle });
        }
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registered({} segments)", lock(&self.0).handles.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::ucx::context::Context;

    /// One segment, which UCX may refuse.
    struct One(Segment);

    impl Segments for One {
        fn segment_of(&self, address: usize) -> Option<Segment> {
            self.0.addresses.contains(&address).then(|| self.0.clone())
        }
    }

    /// Whether UCX takes a segment, and the address at which it moves its first byte.
    fn place(start: usize, len: usize) -> Option<usize> {
        let context = Context::new(&[]).unwrap();
        context.memory.add(Arc::new(One(Segment { addresses: start..start + len, views: None })));
        let piece = context.memory.piece(context.ucx(), context.raw(), start, len)?;
        assert!(piece.has(start, len) && piece.has(start + 1, len - 1));
        assert!(
            !piece.has(start, len + 1) && !piece.has(start.wrapping_sub(1), 1) && !piece.has(start + 1, usize::MAX)
        );
        Some(piece.place(start).0)
    }

    #[test]
    fn a_segment_that_cannot_be_registered_is_moved_without() {
        // Nothing can be mapped there; where locked memory is short, adapters refuse what can.
        assert_eq!(place(0, 4096), None);
        let memory = vec![0u8; 4096];
        assert_eq!(place(memory.as_ptr().addr(), 4096), Some(memory.as_ptr().addr()));
    }
}
