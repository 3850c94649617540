//! Processes of one job on two nodes, both on this machine: three processes of the second use an object of the first, whose
//! bytes move between the nodes once.
//!
//! A node is what shares a runtime directory, so a process with another one is on another node. An argument is the object's
//! size in MiB; 32 unless given.

use std::env;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use proxystore::{Proxy, Store};

fn main() -> Result<(), Box<dyn Error>> {
    match (env::args().nth(1), env::args().nth(2)) {
        (Some(word), Some(url)) if word == "consume" => consume(&url),
        (None, _) => produce(32),
        (Some(mib), _) => produce(mib.parse()?),
    }
}

fn produce(mib: usize) -> Result<(), Box<dyn Error>> {
    let url = format!("tcp://two-nodes-{}", std::process::id());
    let store = Store::open(&url)?;
    let mut field = store.reserve_slice::<f64>(mib << 17)?;
    for (i, x) in field.iter_mut().enumerate() {
        *x = (i % 1000) as f64;
    }
    let sum: f64 = field.iter().sum();
    let proxy: Proxy<[f64]> = field.commit().wait()?;
    let token = proxy.to_token()?;
    println!("node 1: {mib} MiB in shared memory; what travels is {} characters: {token}", token.len());

    let elsewhere = env::temp_dir().join(format!("proxystore-two-nodes-{}", std::process::id()));
    let mut consumers = (0..3).map(|_| Consumer::start(&url, &elsewhere)).collect::<Result<Vec<_>, _>>()?;
    for consumer in &mut consumers {
        let said = consumer.ask(&token)?;
        print!("node 2: {said}");
        assert!(said.contains(&format!("sum {sum}")), "expected sum {sum}");
    }
    drop(consumers);
    let _ = std::fs::remove_dir_all(&elsewhere);
    store.evict(Proxy::key(&proxy).ok_or("it comes from a store")?).wait()?;
    Ok(())
}

/// Knows the job, the type and the token: the key says where the bytes are.
fn consume(url: &str) -> Result<(), Box<dyn Error>> {
    // Not needed to resolve a token; a member of the job from the start, it keeps what this node fetches.
    let _store = Store::open(url)?;
    for token in std::io::stdin().lines() {
        let field: Proxy<[f64]> = token?.parse()?;
        let start = Instant::now();
        let len = Proxy::try_get(&field)?.len();
        let took = start.elapsed();
        let sum: f64 = field.iter().sum();
        println!("process {}: {len} numbers in {took:.2?}, sum {sum}", std::process::id());
    }
    Ok(())
}

/// A process on the second node.
struct Consumer {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Consumer {
    fn start(url: &str, runtime_directory: &std::path::Path) -> Result<Self, Box<dyn Error>> {
        let mut process = Command::new(env::current_exe()?)
            .args(["consume", url])
            .env("PROXYSTORE_RUNTIME_DIR", runtime_directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take();
        let output = BufReader::new(process.stdout.take().ok_or("no pipe")?);
        Ok(Self { process, input, output })
    }

    fn ask(&mut self, token: &str) -> Result<String, Box<dyn Error>> {
        writeln!(self.input.as_mut().ok_or("no pipe")?, "{token}")?;
        let mut said = String::new();
        self.output.read_line(&mut said)?;
        Ok(said)
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}
