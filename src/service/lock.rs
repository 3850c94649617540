//! `LockFile`: who is alive, by record locks that the kernel drops with their process.
