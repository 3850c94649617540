//! Binding of Mochi Margo (`libmargo`, `libmercury`), loaded at run time.
//!
//! Reserved room: the crate has no items yet. The `margo` fabric of `proxystore` fills it; until then nothing depends on
//! it and no scheme named `margo` exists.
