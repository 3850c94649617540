//! `Arena`: the service's own allocator of cells and extents.
