//! The node service: one thread that owns memory, death and eviction.
