//! Binding of UCX (`libucp`, `libucs`), loaded at run time.
//!
//! Reserved room: the crate has no items yet. The `ucx` fabric of `proxystore` fills it; until then nothing depends on it
//! and no scheme named `ucx` exists.
