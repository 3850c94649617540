//! A process of the job on a host: opens a `tcp://` store and obeys lines on its standard input.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BufMut;
use proxystore::connector::PutOptions;
use proxystore::connectors::DimConnector;
use proxystore::service::{ServeOptions, inspect};
use proxystore::{Connector, ConnectorExt, Error, Format, Key, Pending, Region, service};

use crate::bare::{median, times};
use crate::content::{Random, content, verify};
use crate::count::{self, allocations};
use crate::exits;
use crate::proxy::Proxy;
use crate::worker::say;

/// What a process has in hand.
struct Hand {
    url: String,
    store: Arc<DimConnector>,
    /// For the operations to come.
    limit: Option<Duration>,
    views: Vec<(Region, u64)>,
}

/// Opens the URL and obeys until standard input ends.
pub(crate) fn run(url: &str) -> i32 {
    let begun = Instant::now();
    exits::prepare();
    let store = match url.parse().and_then(|config| DimConnector::open(&config)) {
        Ok(store) => Arc::new(store),
        Err(error) => {
            say(&format!("{} {}", failure(&error), begun.elapsed().as_millis()));
            return 0;
        }
    };
    say(&format!("ready {}", std::process::id()));
    let mut hand = Hand { url: url.to_owned(), store, limit: None, views: Vec::new() };
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        say(&obey(&mut hand, &words).unwrap_or_else(|error| failure(&error)));
    }
    0
}

/// Supervises the namespace of the tests on its host, or is the service of one that does.
pub(crate) fn serve(rest: &[&str]) -> i32 {
    let options = ServeOptions {
        namespace: NAMESPACE.to_owned(),
        budget: None,
        displace: false,
        prefault: false,
        grace: Duration::from_secs(2),
    };
    let done = match rest {
        [] => {
            say(&format!("ready {}", std::process::id()));
            service::serve(&options)
        }
        [flag, fd] if *flag == service::KEEPER_FLAG => service::serve_supervised(&options, fd.parse().unwrap()),
        other => panic!("no such arguments: {other:?}"),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{}", failure(&error));
            1
        }
    }
}

fn failure(error: &Error) -> String {
    format!("error {:?} {error}", error.kind())
}

impl Hand {
    fn limited<T: Send + 'static>(&self, pending: Pending<T>) -> Result<T, Error> {
        match self.limit {
            Some(limit) => pending.deadline(limit).wait(),
            None => pending.wait(),
        }
    }
}

fn obey(hand: &mut Hand, words: &[&str]) -> Result<String, Error> {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let store = Arc::clone(&hand.store);
    let verdict = |found: Option<&Region>, seed: u64| match found.map(|region| verify(region, seed)) {
        Some(Ok(())) => "same".to_owned(),
        Some(Err(how)) => format!("other {how}"),
        None => "none".to_owned(),
    };
    Ok(match *words {
        ["limit", millis] => {
            hand.limit = Some(Duration::from_millis(number(millis))).filter(|limit| !limit.is_zero());
            "done".to_owned()
        }
        ["put", seed, len] => {
            format!("key {}", hand.limited(store.put(&content(number(seed), number(len) as usize), Format::RAW))?)
        }
        ["put_for", seed, len, millis] => {
            let options = PutOptions::new().time_to_live(Duration::from_millis(number(millis)));
            let bytes = content(number(seed), number(len) as usize);
            format!("key {}", hand.limited(store.put_with(&bytes, Format::RAW, &options))?)
        }
        ["puts", seed, len, count] => {
            let all = (number(seed)..number(seed) + number(count)).map(|seed| content(seed, number(len) as usize));
            let all: Vec<Vec<u8>> = all.collect();
            let objects: Vec<(&[u8], Format)> = all.iter().map(|bytes| (&bytes[..], Format::RAW)).collect();
            let keys = hand.limited(store.put_batch(&objects))?;
            format!("keys {}", keys.iter().map(Key::to_string).collect::<Vec<_>>().join(","))
        }
        ["get", key, seed] => verdict(hand.limited(store.get(&parse(key)?))?.as_ref(), number(seed)),
        ["gets", seed, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let found = hand.limited(store.get_batch(&keys))?;
            let all = found.iter().enumerate().map(|(at, found)| verdict(found.as_ref(), number(seed) + at as u64));
            let different: Vec<String> = all.filter(|verdict| verdict != "same").collect();
            if different.is_empty() { "same".to_owned() } else { different.join("; ") }
        }
        // A question each, all asked before the first answer is waited for.
        ["gets_apart", seed, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let found = hand.limited(Pending::all(keys.iter().map(|key| store.get(key)).collect()))?;
            let is_same =
                |(at, found): (usize, &Option<Region>)| verdict(found.as_ref(), number(seed) + at as u64) == "same";
            found.iter().enumerate().all(is_same).to_string()
        }
        ["take", key, seed] => verdict(hand.limited(store.take(&parse(key)?))?.as_ref(), number(seed)),
        ["hold", key, seed] => match hand.limited(store.get(&parse(key)?))? {
            Some(region) => {
                hand.views.push((region, number(seed)));
                "held".to_owned()
            }
            None => "none".to_owned(),
        },
        ["check"] => match hand.views.iter().try_for_each(|(region, seed)| verify(region, *seed)) {
            Ok(()) => "same".to_owned(),
            Err(how) => format!("other {how}"),
        },
        ["drop"] => {
            hand.views.clear();
            "done".to_owned()
        }
        ["exists", key] => hand.limited(store.exists(&parse(key)?))?.to_string(),
        ["evict", ref keys @ ..] => {
            for key in keys.iter().flat_map(|keys| keys.split(',')) {
                hand.limited(store.evict(&parse(key)?))?;
            }
            "done".to_owned()
        }
        ["declare"] => format!("key {}", store.declare(Format::RAW)?),
        ["commit_at", key, seed, len] => {
            let mut region = store.reserve(number(len) as usize)?;
            region.put_slice(&content(number(seed), number(len) as usize));
            hand.limited(store.commit_at(&parse(key)?, region))?;
            "done".to_owned()
        }
        ["await", key, seed] => verdict(Some(&hand.limited(store.get_when_committed(&parse(key)?))?), number(seed)),
        // Gets of all keys, one after another, for so long; how many were as they should be, up to the first that was not.
        ["load", seed, millis, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let (begun, mut count) = (Instant::now(), 0);
            while begun.elapsed() < Duration::from_millis(number(millis)) {
                let at = count % keys.len();
                let answer = match hand.limited(store.get(&keys[at])) {
                    Ok(found) => verdict(found.as_ref(), number(seed) + at as u64),
                    Err(error) => failure(&error),
                };
                if answer != "same" {
                    return Ok(format!("after {count}: {answer}"));
                }
                count += 1;
            }
            format!("all {count}")
        }
        // Gets of all keys, one after another, for so long, each of which is whole or gone; how many were which.
        ["whole", seed, millis, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let (begun, mut same, mut gone) = (Instant::now(), 0, 0);
            while begun.elapsed() < Duration::from_millis(number(millis)) {
                for (key, seed) in keys.iter().zip(number(seed)..) {
                    match &verdict(hand.limited(store.get(key))?.as_ref(), seed)[..] {
                        "same" => same += 1,
                        "none" => gone += 1,
                        other => return Ok(format!("after {same} and {gone}: {other}")),
                    }
                }
            }
            format!("same {same} none {gone}")
        }
        // Ends each object and puts others of that length in their place.
        ["recycle", seed, len, keys] => {
            for (key, seed) in keys.split(',').zip(number(seed)..) {
                hand.limited(store.evict(&parse(key)?))?;
                for other in 0..3 {
                    let key =
                        hand.limited(store.put(&content(seed + 100 * other, number(len) as usize), Format::RAW))?;
                    hand.limited(store.evict(&key))?;
                }
            }
            "done".to_owned()
        }
        // Median nanoseconds of a get.
        ["latency", key, count] => {
            let key = parse(key)?;
            let times = times(number(count) as usize, || {
                let found = store.get(&key).wait()?;
                assert!(found.is_some_and(|region| region.len() as u64 == key.len()), "the object is there");
                Ok(())
            })?;
            median(times).as_nanos().to_string()
        }
        // The median as a task has it that waits for nothing else.
        ["awaits", key, count] => {
            let key = parse(key)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let times = times(number(count) as usize, || {
                let found = runtime.block_on(store.get(&key))?;
                assert!(found.is_some_and(|region| region.len() as u64 == key.len()), "the object is there");
                Ok(())
            })?;
            median(times).as_nanos().to_string()
        }
        // Bytes a second of the best of so many gets, after one.
        ["bandwidth", key, count] => {
            let key = parse(key)?;
            let mut best = Duration::MAX;
            for at in 0..=number(count) {
                let begun = Instant::now();
                let found = store.get(&key).wait()?;
                if at > 0 {
                    best = best.min(begun.elapsed());
                }
                assert!(found.is_some_and(|region| region.len() as u64 == key.len()), "the object is there");
            }
            format!("{:.0}", key.len() as f64 / best.as_secs_f64())
        }
        // Nanoseconds for all of them, one after another or at once.
        ["singles" | "batch", keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let begun = Instant::now();
            let found = match words[0] {
                "batch" => store.get_batch(&keys).wait()?,
                _ => keys.iter().map(|key| store.get(key).wait()).collect::<Result<Vec<_>, _>>()?,
            };
            let took = begun.elapsed();
            assert!(found.iter().all(Option::is_some), "the objects are there");
            took.as_nanos().to_string()
        }
        // The median of `count` batches of all of them, in nanoseconds.
        ["batches", count, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let times = times(number(count) as usize, || {
                let found = store.get_batch(&keys).wait()?;
                assert!(found.iter().all(Option::is_some), "the objects are there");
                Ok(())
            })?;
            median(times).as_nanos().to_string()
        }
        // Nanoseconds for each of `count` gets of the keys in turn, so many of them on their way at a time.
        ["window", window, count, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let times = times(1, || window_of(&store, &keys, number(window) as usize, number(count) as usize))?;
            (times[0].as_nanos() as u64 / number(count)).to_string()
        }
        // The same by so many threads, each of which waits for one get after another.
        ["crowd", threads, count, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let (threads, each) = (number(threads) as usize, number(count) as usize / number(threads) as usize);
            let times = times(1, || {
                std::thread::scope(|scope| {
                    let all: Vec<_> = (0..threads).map(|_| scope.spawn(|| window_of(&store, &keys, 1, each))).collect();
                    all.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
                })
            })?;
            (times[0].as_nanos() as u64 / (threads * each) as u64).to_string()
        }
        ["allocations"] => allocations().to_string(),
        ["trace", switch] => {
            count::trace(switch == "on");
            "done".to_owned()
        }
        // Allocations for `count` objects, the keys in turn, after as many to warm up.
        ["allocations_of", how, count, keys] => {
            let keys = keys.split(',').map(parse).collect::<Result<Vec<_>, _>>()?;
            let (warm, measured) = (number(count) as usize, number(count) as usize);
            let mut begun = 0;
            match how {
                "batch" => {
                    for at in 0..(warm + measured) / keys.len() {
                        if at == warm / keys.len() {
                            begun = allocations();
                        }
                        assert!(store.get_batch(&keys).wait()?.iter().all(Option::is_some), "they are there");
                    }
                }
                _ => {
                    for (at, key) in keys.iter().cycle().take(warm + measured).enumerate() {
                        if at == warm {
                            begun = allocations();
                        }
                        let found = match how {
                            "wait" => store.get(key).wait()?,
                            _ => futures::executor::block_on(store.get(key))?,
                        };
                        assert!(found.is_some(), "it is there");
                    }
                }
            }
            (allocations() - begun).to_string()
        }
        // Processor time of this process, in ticks of 10 ms.
        ["ticks"] => {
            let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc");
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            (number(fields[11]) + number(fields[12])).to_string()
        }
        // What a forked child can do: with the store that it inherits, and with its own.
        ["fork", key, seed] => fork(&store, hand.url.clone(), &parse(key)?, number(seed)),
        ["timed", ..] => {
            let begun = Instant::now();
            let answer = obey(hand, &words[1..]).unwrap_or_else(|error| failure(&error));
            format!("{} {answer}", begun.elapsed().as_millis())
        }
        ["live"] => inspect::stats(NAMESPACE)?.live.count.to_string(),
        ["dying"] => inspect::stats(NAMESPACE)?.dying.count.to_string(),
        ["dying_bytes"] => inspect::stats(NAMESPACE)?.dying.bytes.to_string(),
        ["host"] => inspect::stats(NAMESPACE)?.host.to_string(),
        ["settled"] => settled(),
        ["status", field] => status(field).to_string(),
        ["reset_peak"] => {
            std::fs::write("/proc/self/clear_refs", "5").expect("this process's own");
            "done".to_owned()
        }
        ["busy", threads, key] => {
            exits::busy(&store, number(threads) as usize, &parse(key)?);
            "done".to_owned()
        }
        ["exit", how, key] => exits::exit_slowly(&store, &hand.url, how, parse(key)?),
        ["descriptors"] => entries("/proc/self/fd").to_string(),
        ["threads"] => entries("/proc/self/task").to_string(),
        ["set", name, value] => {
            // SAFETY: of what UCX reads when it starts in this process; nothing else runs here that reads the environment.
            unsafe { std::env::set_var(name, value) };
            "done".to_owned()
        }
        ["lock_at_most", bytes] => lock_at_most(number(bytes)),
        // The bare loop over UCX, in this process.
        [order, ..] if order.starts_with("ucp_") => {
            crate::worker::obey(words).map_err(|error| Error::io("bare", "UCX", error))?
        }
        ["strangers", address, count, seed] => strangers(address, number(count), number(seed)),
        _ => panic!("no such order: {words:?}"),
    })
}

/// Lowers how many bytes this process can lock in memory; whether that is so.
fn lock_at_most(bytes: u64) -> String {
    // Version 3 of the header, of this thread and those that it starts; no capability at all.
    let (header, none) = ([0x2008_0522_u32, 0], [0_u32; 6]);
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    let page = vec![0u8; 1 << 20];
    // SAFETY: system calls with memory that is there.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        assert_eq!(libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()), 0);
        (libc::mlock(page.as_ptr().cast(), page.len()) != 0).to_string()
    }
}

fn fork(store: &DimConnector, url: String, key: &Key, seed: u64) -> String {
    // SAFETY: the child ends by `_exit`, at the latest by its alarm.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: system calls.
        unsafe { libc::alarm(20) };
        let inherited = store.get(key).wait().map_err(|error| error.kind());
        let is_refused = matches!(inherited, Err(proxystore::ErrorKind::Forked));
        let own = url.parse().and_then(|config| DimConnector::open(&config));
        let is_same = match own {
            // Its library does not survive a fork, and the store says so at once.
            Err(error) if url.starts_with("ucx") => error.kind() == proxystore::ErrorKind::Unavailable,
            Err(_) => false,
            Ok(own) => own.get(key).wait().is_ok_and(|found| found.is_some_and(|bytes| verify(&bytes, seed).is_ok())),
        };
        // SAFETY: nothing of the parent's is ended by it.
        unsafe { libc::_exit(i32::from(!is_refused) + 2 * i32::from(!is_same)) }
    }
    let mut status = 0;
    // SAFETY: the child that was just made.
    unsafe { libc::waitpid(child, &mut status, 0) };
    match status {
        0 => "done".to_owned(),
        _ => format!("status {status}: 256, the inherited store is not refused; 512, its own has not the object"),
    }
}

/// Gets `count` objects, the keys in turn.
fn window_of(store: &DimConnector, keys: &[Key], window: usize, count: usize) -> Result<(), Error> {
    let mut flying = std::collections::VecDeque::new();
    for key in keys.iter().cycle().take(count) {
        if flying.len() == window {
            let oldest: Option<Pending<Option<Region>>> = flying.pop_front();
            assert!(oldest.is_none_or(|pending| pending.wait().is_ok_and(|found| found.is_some())), "it is there");
        }
        flying.push_back(store.get(key));
    }
    for pending in flying {
        assert!(pending.wait()?.is_some(), "it is there");
    }
    Ok(())
}

/// The order of a worker that is a proxy: `OWN PEER:PORT` makes one.
pub(crate) fn proxy(own: &str, peer: &str) -> i32 {
    let (own, peer): (Ipv4Addr, SocketAddrV4) = (own.parse().unwrap(), peer.parse().unwrap());
    let proxy = Proxy::start(own, peer);
    say(&format!("ready {}", std::process::id()));
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        say(&match *words {
            ["plan", ref plan @ ..] => {
                proxy.plan(plan);
                "done".to_owned()
            }
            ["limit", rate] => {
                proxy.limit(rate.parse().unwrap());
                "done".to_owned()
            }
            ["connections"] => proxy.connections().to_string(),
            ["replay", millis] => {
                let limit = Duration::from_millis(millis.parse().unwrap());
                match proxy.replay(own, peer, limit) {
                    Ok(Some(len)) => format!("ended {len}"),
                    Ok(None) => "open".to_owned(),
                    Err(error) => format!("error {error}"),
                }
            }
            _ => panic!("no such order: {words:?}"),
        });
    }
    0
}

fn parse(key: &str) -> Result<Key, Error> {
    key.parse()
}

/// Waits for some seconds until nothing evicted is left and no lease is a dead process's; what is wrong otherwise.
fn settled() -> String {
    let begun = Instant::now();
    loop {
        let wrong = match inspect::stats(NAMESPACE) {
            Ok(stats) => {
                let leased: u64 = stats.clients.iter().map(|client| client.leased.count).sum();
                let total: u64 = stats.segments.iter().map(|segment| segment.len).sum();
                let used = stats.live.bytes + stats.reserved.bytes + stats.dying.bytes;
                match () {
                    () if stats.dying.count > 0 => format!("{:?} dying, clients {:?}", stats.dying, stats.clients),
                    () if leased != stats.reserved.count => format!("{:?} reserved, {leased} leased", stats.reserved),
                    () if used + stats.free_bytes != total => {
                        format!("{used} used, {} free of {total}", stats.free_bytes)
                    }
                    () => return "settled".to_owned(),
                }
            }
            Err(error) => failure(&error),
        };
        if begun.elapsed() > crate::pair::SLACK {
            return wrong;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Peers that have no secret: each sends so many bytes of nonsense, or none, and waits for what happens. How many were sent
/// away, of how many.
fn strangers(address: &str, count: u64, seed: u64) -> String {
    let address: SocketAddr = address.parse().unwrap();
    let mut random = Random(seed | 1);
    let mut peers = Vec::new();
    for _ in 0..count {
        let Ok(mut peer) = TcpStream::connect_timeout(&address, Duration::from_secs(5)) else { continue };
        let bytes: Vec<u8> = match random.below(4) {
            0 => Vec::new(),
            // A hello, as far as its first bytes say, and a frame, which no stranger may send.
            1 => [&[0xf5, b'p', b'h', 1, 1, 1][..], &[0xff; 300]].concat(),
            2 => [&[0xf5, b'p', b'x', 1, 1, 0, 0xff, 0xff][..], &[0xff; 300]].concat(),
            _ => (0..random.below(2000)).map(|_| random.next() as u8).collect(),
        };
        let _ = std::io::Write::write_all(&mut peer, &bytes);
        peers.push(peer);
    }
    let opened = peers.len();
    let sent_away = peers.into_iter().filter_map(|mut peer| {
        peer.set_read_timeout(Some(Duration::from_secs(8))).ok()?;
        let mut bytes = Vec::new();
        match std::io::Read::read_to_end(&mut peer, &mut bytes) {
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => None,
            _ => Some(()),
        }
    });
    format!("{} of {opened}", sent_away.count())
}

/// A figure of /proc/self/status, in bytes.
fn status(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.expect("a figure in kB") << 10
}

fn entries(directory: &str) -> usize {
    std::fs::read_dir(directory).expect("/proc").count()
}

/// Of all stores of the tests: what differs are their hosts.
pub(crate) const NAMESPACE: &str = "test";
