//! A producer writes an object into shared memory, starts a consumer process, and hands it 120 characters.
//!
//! An argument is the object's size in MiB; 32 unless given.

use std::env;
use std::error::Error;
use std::process::Command;
use std::time::Instant;

use proxystore::{Proxy, Store};

fn main() -> Result<(), Box<dyn Error>> {
    match (env::args().nth(1), env::args().nth(2)) {
        (Some(word), Some(token)) if word == "consume" => consume(&token),
        (None, _) => produce(32),
        (Some(mib), _) => produce(mib.parse()?),
    }
}

fn produce(mib: usize) -> Result<(), Box<dyn Error>> {
    // All processes of this user on this node that open the same name share its objects. Nothing has to be started: this
    // process is the first, so it hosts the memory.
    let store = Store::open(&format!("shm://two-processes-{}", std::process::id()))?;
    let start = Instant::now();
    let mut field = store.reserve_slice::<f64>(mib << 17)?;
    for (i, x) in field.iter_mut().enumerate() {
        *x = (i % 1000) as f64;
    }
    let written = start.elapsed();
    let sum: f64 = field.iter().sum();
    let start = Instant::now();
    let proxy: Proxy<[f64]> = field.commit().wait()?;
    let committed = start.elapsed();
    let token = proxy.to_token()?;
    println!("producer {}: {mib} MiB written in {written:.2?}, committed in {committed:.2?}", std::process::id());
    println!("token of {} characters: {token}", token.len());

    let output = Command::new(env::current_exe()?).args(["consume", &token]).output()?;
    let said = String::from_utf8(output.stdout)?;
    print!("{said}");
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the consumer failed: {}", output.status);
    assert!(said.contains(&format!("sum {sum}")), "expected sum {sum}");
    println!("producer {}: the consumer saw what was written", std::process::id());
    store.evict(Proxy::key(&proxy).ok_or("it comes from a store")?).wait()?;
    Ok(())
}

/// Knows the type and the token, nothing else: no address, no file name, no configuration.
fn consume(token: &str) -> Result<(), Box<dyn Error>> {
    let field: Proxy<[f64]> = token.parse()?;
    let start = Instant::now();
    let len = Proxy::try_get(&field)?.len();
    let resolved = start.elapsed();
    let again: Proxy<[f64]> = token.parse()?;
    let start = Instant::now();
    Proxy::try_get(&again)?;
    let once_more = start.elapsed();
    let start = Instant::now();
    let sum: f64 = field.iter().sum();
    let me = std::process::id();
    println!(
        "consumer {me}: {len} numbers, resolved in {resolved:.2?} (a second proxy in {once_more:.2?}), nothing copied"
    );
    println!("consumer {me}: sum {sum}, read in place in {:.2?}", start.elapsed());
    Ok(())
}
