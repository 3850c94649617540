//! A producer puts 32 MB into a store of files, starts a consumer process, and hands it 100 characters.

use std::env;
use std::error::Error;
use std::process::Command;
use std::time::Instant;

use proxystore::{Proxy, Store};

fn main() -> Result<(), Box<dyn Error>> {
    match env::args().nth(1) {
        None => produce(),
        Some(token) => consume(&token),
    }
}

fn produce() -> Result<(), Box<dyn Error>> {
    // Any directory that both processes see: /dev/shm on one node, a parallel file system between nodes.
    let directory = tempfile::tempdir()?;
    let store = Store::open(&format!("file://{}", directory.path().display()))?;
    let mut field = store.reserve_slice::<f64>(4 << 20)?;
    for (i, x) in field.iter_mut().enumerate() {
        *x = (i % 1000) as f64;
    }
    let sum: f64 = field.iter().sum();
    let proxy: Proxy<[f64]> = field.commit().wait()?;
    let token = proxy.to_token()?;

    let output = Command::new(env::current_exe()?).arg(&token).output()?;
    let said = String::from_utf8(output.stdout)?;
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the consumer failed: {}", output.status);
    assert!(said.contains(&format!("sum {sum}")), "expected sum {sum}");
    println!("producer {}: the consumer saw what was put, given {} characters", std::process::id(), token.len());
    Ok(())
}

/// Knows the type and the token, nothing else: no address, no file name, no configuration.
fn consume(token: &str) -> Result<(), Box<dyn Error>> {
    let field: Proxy<[f64]> = token.parse()?;
    let start = Instant::now();
    let len = Proxy::try_get(&field)?.len();
    let resolved = start.elapsed();
    let sum: f64 = field.iter().sum();
    println!("consumer {}: {len} numbers, sum {sum}, resolved in {resolved:?}", std::process::id());
    Ok(())
}
