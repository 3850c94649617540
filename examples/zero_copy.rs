//! 128 MiB from a producer's loop to a consumer's slice, and in the memory of the node once.

use std::error::Error;
use std::fs;

use proxystore::{Proxy, Store};

fn main() -> Result<(), Box<dyn Error>> {
    const ELEMENTS: usize = 16 << 20;
    const MIB: f64 = (1 << 20) as f64;
    let size = (ELEMENTS * size_of::<f64>()) as f64 / MIB;
    let store = Store::open(&format!("shm://zero-copy-{}", std::process::id()))?;
    let before = resident()? / MIB;

    // The connector lends the memory in which the object will stay; the computation writes there.
    let mut field = store.reserve_slice::<f64>(ELEMENTS)?;
    for (i, x) in field.iter_mut().enumerate() {
        *x = i as f64;
    }
    let sent: Proxy<[f64]> = field.commit().wait()?;

    // Whoever receives the token looks at those very bytes, in this process or another one, through a second mapping of
    // the same memory that cannot be written through.
    let received: Proxy<[f64]> = sent.to_token()?.parse()?;
    assert_eq!(received.len(), ELEMENTS);
    assert_eq!(received[ELEMENTS - 1], (ELEMENTS - 1) as f64);
    assert_eq!(received.as_ptr(), sent.as_ptr(), "all views of an object are one");
    assert_eq!(received.iter().sum::<f64>(), sent.iter().sum::<f64>());

    let grown = resident()? / MIB - before;
    println!("an object of {size:.0} MiB, written and read at {:p}, took {grown:.1} MiB of memory", received.as_ptr());
    assert!(grown < 1.1 * size, "there is a copy somewhere");
    Ok(())
}

/// Memory of this process, in bytes; what is mapped twice counts once.
fn resident() -> Result<f64, Box<dyn Error>> {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup")?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}
