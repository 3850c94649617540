//! The fabric beside bare sockets that do the same; run with `--release -- --ignored --nocapture fabric::tcp`.
