//! `Mem`: the words of shared memory, mapped or on the heap.

use crate::sync::modelled::AtomicU64;

/// Memory that several processes see as an array of 64-bit words, each read and written as a whole.
///
/// Everything that is shared is such a word: no locks, no pointers, no enums, nothing that is torn or padded.
pub(crate) trait Mem: Send + Sync {
    /// The word at `index`.
    ///
    /// # Panics
    /// When there is no such word: indices come from a [`Layout`](super::layout::Layout) that fits the memory, and from slot
    /// numbers that were checked against it.
    fn word(&self, index: usize) -> &AtomicU64;

    /// Says that the caller soon reads and then writes the cache line of this word, so that it comes once and to write to.
    ///
    /// A hint, which orders nothing and is ignored by processors that have none.
    ///
    /// # Panics
    /// As [`word`](Self::word).
    fn anticipate(&self, index: usize) {
        let _ = index;
    }
}

/// Words in the memory of this process: for models and tests. Some may not be there, because every word costs a model time.
#[cfg(test)]
pub(crate) struct Heap(Vec<Option<AtomicU64>>);

#[cfg(test)]
impl Heap {
    /// Those words that `is_there` says.
    pub(crate) fn some(words: usize, is_there: impl Fn(usize) -> bool) -> Self {
        Self((0..words).map(|index| is_there(index).then(|| AtomicU64::new(0))).collect())
    }
}

#[cfg(test)]
impl Mem for Heap {
    fn word(&self, index: usize) -> &AtomicU64 {
        self.0[index].as_ref().expect("a word of the model")
    }
}

#[cfg(test)]
impl<M: Mem> Mem for crate::sync::modelled::Arc<M> {
    fn word(&self, index: usize) -> &AtomicU64 {
        (**self).word(index)
    }
}
