//! The program `proxystore`.

fn main() {}
