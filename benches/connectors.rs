//! Every connector of this build that the machine can have: put, get and resolve at several sizes, in bytes a second, beside a copy of
//! as many bytes.
//!
//! What connectors between nodes get lies on another node: a process with a runtime directory, and so with memory and a service, of
//! its own, reached over loopback.
#![allow(missing_docs, reason = "criterion_group! makes public functions")]

use std::env;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write, stdin, stdout};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use proxystore::codec::Object;
use proxystore::connector::Registration;
use proxystore::{Connector, ErrorKind, Key, Proxy, Store, connectors, service};

fn main() {
    if let Some(url) = env::args().skip_while(|word| word != OWN).nth(1) {
        return own(&url);
    }
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600))
        .sample_size(20)
        .configure_from_args();
    let directory = tempfile::tempdir().expect("a directory");
    copy(&mut criterion);
    for row in connectors::registrations() {
        let location = match row.scheme {
            "memory" => String::new(),
            "file" => directory.path().join("file").to_string_lossy().into_owned(),
            _ => format!("bench-{}", std::process::id()),
        };
        let replicas = if crosses_nodes(&row) { "&replicas=off" } else { "" };
        let url = format!("{}://{location}?cache_bytes=0{replicas}", row.scheme);
        match Store::open(&url) {
            Ok(store) => connector(&mut criterion, &row, &store, &url),
            Err(error) if error.kind() == ErrorKind::Unavailable => println!("{}: ignored: {error}", row.scheme),
            Err(error) => panic!("{url}: {error}"),
        }
    }
    criterion.final_summary();
    service::leave();
}

fn copy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("memcpy");
    for len in SIZES {
        let (bytes, mut target) = (vec![7; len], vec![1; len]);
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::from_parameter(len), |bencher| {
            bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(&bytes)));
        });
    }
    group.finish();
}

fn connector(criterion: &mut Criterion, row: &Registration, store: &Store, url: &str) {
    let connector = &**store.connector();
    let mut group = criterion.benchmark_group(row.scheme);
    for len in SIZES {
        let bytes = vec![7; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("put", len), |bencher| {
            bencher.iter_custom(|n| puts(connector, n, &bytes));
        });
    }
    let owner = crosses_nodes(row).then(|| Owner::start(url));
    for len in SIZES {
        let token = match &owner {
            Some(owner) => owner.token(len),
            None => token(store, len),
        };
        let proxy = || Proxy::<[u8]>::from_token_bytes(black_box(&token)).expect("a token");
        let key = *Proxy::key(&proxy()).expect("it comes from a store");
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("get", len), |bencher| {
            bencher.iter(|| {
                let region = connector.get(black_box(&key)).wait().expect("an answer").expect("it");
                assert_eq!((region.len(), region[len - 1]), (len, 7));
            });
        });
        group.bench_function(BenchmarkId::new("resolve", len), |bencher| {
            bencher.iter(|| Proxy::try_get(&proxy()).expect("it")[len - 1]);
        });
    }
    group.finish();
}

/// The time of `n` puts, whose objects are evicted outside of it, and their memory given time to come back.
fn puts(connector: &dyn Connector, n: u64, bytes: &[u8]) -> Duration {
    let most = ((4 << 20) / bytes.len() as u64).clamp(1, 256);
    let mut took = Duration::ZERO;
    let mut keys: Vec<Key> = Vec::with_capacity(most as usize);
    for first in (0..n).step_by(most as usize) {
        let begin = Instant::now();
        for _ in first..n.min(first + most) {
            keys.push(connector.put(black_box(bytes), <[u8]>::format()).wait().expect("room"));
        }
        took += begin.elapsed();
        keys.drain(..).for_each(|key| connector.evict(&key).wait().expect("it"));
        thread::sleep(RECYCLING);
    }
    took
}

/// A token of an object of `len` bytes, put here.
fn token(store: &Store, len: usize) -> Vec<u8> {
    let proxy: Proxy<[u8]> = store.proxy(&vec![7; len][..]).wait().expect("room");
    proxy.to_token_bytes().expect("a token")
}

/// Whether others than this process's node have objects, and share the memory of this one unless they are told not to.
fn crosses_nodes(row: &Registration) -> bool {
    row.options.contains(&"replicas")
}

/// Another node, with an object of each size.
struct Owner {
    process: Child,
    /// Removed with it.
    _directory: tempfile::TempDir,
    tokens: Vec<Vec<u8>>,
}

impl Owner {
    fn start(url: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut process = Command::new(env::current_exe().expect("this program"))
            .args([OWN, url])
            // Not the directory itself, which is open to others.
            .env("PROXYSTORE_RUNTIME_DIR", directory.path().join("node"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let output = BufReader::new(process.stdout.take().expect("a pipe"));
        let tokens = output.lines().take(SIZES.len()).map(|line| bytes_of(&line.expect("a line"))).collect();
        Self { process, _directory: directory, tokens }
    }

    fn token(&self, len: usize) -> Vec<u8> {
        let at = SIZES.iter().position(|size| *size == len).expect("one of the sizes");
        self.tokens[at].clone()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The other process of [`Owner`]: puts, tells the tokens, and keeps all until its input ends.
fn own(url: &str) {
    let store = Store::open(url).expect("a store");
    for len in SIZES {
        let digits: String = token(&store, len).iter().map(|byte| format!("{byte:02x}")).collect();
        println!("{digits}");
    }
    stdout().flush().expect("somebody listens");
    stdin().lines().for_each(drop);
    drop(store);
    service::leave();
}

fn bytes_of(digits: &str) -> Vec<u8> {
    let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("two digits")).collect()
}

const SIZES: [usize; 5] = [64, 4 << 10, 64 << 10, 1 << 20, 16 << 20];

/// First argument of the process that [`Owner`] starts.
const OWN: &str = "--own";

/// How long a node service may take to have evicted memory back.
const RECYCLING: Duration = Duration::from_millis(2);
