//! The payload: bytes that both sides can make, in warm memory, and the plain copy of them.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Two warm buffers of one size.
pub(super) struct Buffers {
    /// What every object of this size holds.
    pub(super) payload: Vec<u8>,
    pub(super) scratch: Vec<u8>,
}

impl Buffers {
    pub(super) fn new(size: usize) -> Self {
        // xorshift64: no byte follows from its address, so a misplaced page shows in the checksum.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
        let mut payload = vec![0; size];
        for word in payload.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        }
        // Not zeroed but written: zeroed memory may be pages that nobody has touched.
        Self { scratch: payload.clone(), payload }
    }

    /// The reference: copies the payload `n` times.
    pub(super) fn copy(&mut self, n: usize) -> Duration {
        let begin = Instant::now();
        for _ in 0..n {
            self.scratch.copy_from_slice(black_box(&self.payload));
            black_box(&mut self.scratch);
        }
        begin.elapsed()
    }

    pub(super) fn checksum(&self) -> u32 {
        crc32fast::hash(&self.payload)
    }
}

/// Warm buffers of one size that are written in turn, as the cells of a store are.
pub(super) struct Ring<'a> {
    payload: &'a [u8],
    buffers: Vec<Vec<u8>>,
    next: usize,
}

impl<'a> Ring<'a> {
    /// 1 MiB of buffers, at least 16 and at most 1024 of them, but no more than 16 MiB beyond the first.
    pub(super) fn new(payload: &'a [u8]) -> Self {
        let size = payload.len().max(1);
        let count = ((1 << 20) / size).clamp(16, 1024).min((16 << 20) / size).max(1);
        Self { payload, buffers: vec![payload.to_vec(); count], next: 0 }
    }

    /// Copies the payload into the next `n` buffers.
    pub(super) fn copy(&mut self, n: usize) -> Duration {
        let begin = Instant::now();
        for _ in 0..n {
            let buffer = &mut self.buffers[self.next];
            buffer.copy_from_slice(black_box(self.payload));
            black_box(buffer);
            self.next = if self.next + 1 == self.buffers.len() { 0 } else { self.next + 1 };
        }
        begin.elapsed()
    }
}
