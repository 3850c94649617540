//! What objects of the tests contain: bytes that follow from a seed.

/// The only content that an object of this seed has: blocks of 4 KiB, each beginning with seed and number.
pub(crate) fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut block = block(seed, len);
    let mut bytes = Vec::with_capacity(len);
    for number in 0..len.div_ceil(BLOCK) {
        set_number(&mut block, number);
        bytes.extend_from_slice(&block[..block.len().min(len - bytes.len())]);
    }
    bytes
}

/// Whether all bytes are those of the seed.
pub(crate) fn verify(bytes: &[u8], seed: u64) -> Result<(), String> {
    let mut block = block(seed, bytes.len());
    for (number, found) in bytes.chunks(BLOCK).enumerate() {
        set_number(&mut block, number);
        if *found != block[..found.len()] {
            let at = found.iter().zip(&block).position(|(a, b)| a != b).unwrap_or(0);
            let end = (at + 16).min(found.len());
            return Err(format!(
                "of {} bytes from {}: {:02x?} instead of {:02x?}",
                bytes.len(),
                number * BLOCK + at,
                &found[at..end],
                &block[at..end]
            ));
        }
    }
    Ok(())
}

fn set_number(block: &mut [u8], number: usize) {
    if let Some(place) = block.get_mut(8..16) {
        place.copy_from_slice(&(number as u64).to_le_bytes());
    }
}

/// The first block, or as much of it as there is.
fn block(seed: u64, len: usize) -> Vec<u8> {
    let len = len.min(BLOCK);
    let mut block = Vec::with_capacity(BLOCK);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    block.extend_from_slice(&seed.to_le_bytes());
    while block.len() < len.min(64) {
        block.extend_from_slice(&random.next().to_le_bytes());
    }
    while block.len() < len {
        block.extend_from_within(..block.len().min(len - block.len()));
    }
    block.truncate(len);
    block
}

const BLOCK: usize = 4096;

/// xorshift64*: Vigna, An experimental exploration of Marsaglia's xorshift generators, scrambled, 2016.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 8) % n.max(1)
    }
}
