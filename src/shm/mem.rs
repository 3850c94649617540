//! `Mem`: the words of shared memory, mapped or on the heap.
