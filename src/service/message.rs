//! What clients and node service say to each other.
