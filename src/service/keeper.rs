//! The supervisor of `proxystore serve`: holds the memory while the service restarts.
