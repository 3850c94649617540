//! What children do in one go, for a single test each.

use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::BufMut;
use proxystore::service::inspect;
use proxystore::{Connector, ErrorKind, Format};

use crate::audit::Footprint;
use crate::child::{Hand, open, parse};
use crate::content::{Random, content, verify};
use crate::ends;
use crate::replica;
use crate::scale;
use crate::site::NAMESPACE;

pub(crate) fn run(hand: &mut Hand, name: &str, arguments: &[&str]) -> String {
    if let Some(answer) = scale::part(hand, name, arguments)
        .or_else(|| ends::part(hand, name))
        .or_else(|| replica::part(hand, name, arguments))
    {
        return answer;
    }
    let done = match (name, arguments) {
        ("forked_child_has_its_own_client", []) => forked_child_has_its_own_client(hand),
        ("fork_sleeper", [millis]) => fork_sleeper(millis.parse().expect("milliseconds")),
        ("shut_sockets", []) => shut_sockets(),
        ("flip_key", [key, count]) => flip_key(hand, key, count.parse().expect("a count")),
        ("panic_while_filling", []) => panic_while_filling(hand),
        ("views_outlive_the_store", []) => views_outlive_the_store(hand),
        ("dropped_futures", []) => dropped_futures(hand),
        ("signal_storm", [millis]) => signal_storm(hand, millis.parse().expect("milliseconds")),
        ("scribble", [key, word, value]) => {
            scribble(key, word.parse().expect("a word"), value.parse().expect("a value"))
        }
        ("copy_word", [from, to, word]) => copy_word(from, to, word.parse().expect("a word")),
        ("scribble_everywhere", [seed, count]) => {
            scribble_everywhere(seed.parse().expect("a seed"), count.parse().expect("a count"))
        }
        ("limit", [what, most]) => limit(what, most.parse().expect("a limit")),
        ("open_again", [url]) => open(url).map(|_| ()).map_err(|error| format!("{:?} {error}", error.kind())),
        ("connect_storm", [millis]) => connect_storm(millis.parse().expect("milliseconds")),
        ("footprint", []) => return format!("{:?}", Footprint::now()),
        other => panic!("no such part: {other:?}"),
    };
    done.map_or_else(|how| format!("failed: {how}"), |()| "done".to_owned())
}

fn check(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_owned()) }
}

/// In a forked child: what is inherited is refused and harms nobody, what is opened there works.
fn forked_child_has_its_own_client(hand: &mut Hand) -> Result<(), String> {
    let text = |error: proxystore::Error| error.to_string();
    let key = hand.store.put(&content(1, 5000), Format::RAW).wait().map_err(text)?;
    let view = hand.store.get(&key).wait().map_err(text)?.ok_or("the object")?;
    let region = hand.store.reserve(5000).map_err(text)?;
    // SAFETY: the other threads are the agent's and the service's, whose locks the child does not need: that is what is tested.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let in_child = || -> Result<(), String> {
            let refused =
                |kind: Option<ErrorKind>| check(kind == Some(ErrorKind::Forked), &format!("refused with {kind:?}"));
            refused(hand.store.get(&key).wait().err().map(|error| error.kind()))?;
            refused(hand.store.put(b"x", Format::RAW).wait().err().map(|error| error.kind()))?;
            refused(hand.store.reserve(10).err().map(|error| error.kind()))?;
            drop((view, region));
            let own = open(&hand.url).map_err(text)?;
            let seen = own.get(&key).wait().map_err(text)?.ok_or("the parent's object")?;
            verify(&seen, 1)?;
            let mine = own.put(&content(2, 100), Format::RAW).wait().map_err(text)?;
            own.evict(&mine).wait().map_err(text)
        };
        let code = match in_child() {
            Ok(()) => 0,
            Err(how) => {
                eprintln!("in the forked child: {how}");
                1
            }
        };
        std::process::exit(code);
    }
    let mut status = 0;
    // SAFETY: `status` lives through the call, and the child is ours.
    unsafe { libc::waitpid(pid, &mut status, 0) };
    check(status == 0, &format!("the child ended with {status:#x}"))?;
    verify(&view, 1)?;
    drop((view, region));
    let key2 = hand.store.put(&content(3, 100), Format::RAW).wait().map_err(text)?;
    hand.store.evict(&key2).wait().map_err(text)?;
    hand.store.evict(&key).wait().map_err(text)
}

/// A child that holds all descriptors for a while.
fn fork_sleeper(millis: u64) -> Result<(), String> {
    // SAFETY: the child sleeps and ends.
    unsafe {
        if libc::fork() == 0 {
            libc::usleep((millis * 1000) as libc::useconds_t);
            libc::_exit(0);
        }
    }
    Ok(())
}

/// Shuts down every socket of this process: the ends of files that the service sees say nothing of its life.
fn shut_sockets() -> Result<(), String> {
    let mut shut = 0;
    for fd in descriptors("socket:") {
        // SAFETY: a system call without memory.
        shut += i32::from(unsafe { libc::shutdown(fd, libc::SHUT_RDWR) } == 0);
    }
    check(shut > 0, "no sockets")
}

fn descriptors(prefix: &str) -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    let named =
        entries.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().contains(prefix)));
    named.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

/// Keys with changed characters name nothing, or are refused.
fn flip_key(hand: &mut Hand, key: &str, count: u64) -> Result<(), String> {
    let mut random = Random(7);
    let original = parse(key).map_err(|error| error.to_string())?;
    let mut parsed = 0;
    for _ in 0..count {
        let mut text = key.as_bytes().to_vec();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len() as u64) as usize;
            text[at] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[random.below(64) as usize];
        }
        if random.below(10) == 0 {
            text.truncate(random.below(text.len() as u64) as usize);
        }
        let Ok(key) = parse(&String::from_utf8_lossy(&text)) else { continue };
        parsed += 1;
        if key != original {
            if let Ok(Some(_)) = hand.store.get(&key).wait() {
                return Err(format!("{key:?} found something, as {original:?} does"));
            }
        }
    }
    eprintln!("{parsed} of {count} keys were keys");
    Ok(())
}

fn panic_while_filling(hand: &mut Hand) -> Result<(), String> {
    std::panic::set_hook(Box::new(|_| {}));
    for len in [100, 70_000, 3 << 20] {
        let store = hand.store.clone();
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut region = store.reserve(len).expect("memory");
            region.put_slice(&vec![1; len / 2]);
            panic!("while filling")
        }));
        check(panicked.is_err(), "a panic")?;
        let key = hand.store.put(&content(1, len), Format::RAW).wait().map_err(|error| error.to_string())?;
        hand.store.evict(&key).wait().map_err(|error| error.to_string())?;
    }
    let _ = std::panic::take_hook();
    Ok(())
}

fn views_outlive_the_store(hand: &mut Hand) -> Result<(), String> {
    let text = |error: proxystore::Error| error.to_string();
    let store = open(&hand.url).map_err(text)?;
    let mut views = Vec::new();
    for seed in 0..20 {
        let key = store.put(&content(seed, 10_000), Format::RAW).wait().map_err(text)?;
        views.push((store.get(&key).wait().map_err(text)?.ok_or("the object")?, seed));
        store.evict(&key).wait().map_err(text)?;
    }
    let region = store.reserve(1000).map_err(text)?;
    store.close().map_err(text)?;
    drop(store);
    views.iter().try_for_each(|(view, seed)| verify(view, *seed))?;
    let half = views.split_off(10);
    drop(views);
    drop(region);
    std::thread::spawn(move || half.iter().try_for_each(|(view, seed)| verify(view, *seed))).join().expect("no panic")
}

fn dropped_futures(hand: &mut Hand) -> Result<(), String> {
    let text = |error: proxystore::Error| error.to_string();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        for round in 0..50 {
            let key = hand.store.declare(Format::RAW).map_err(text)?;
            tokio::select! {
                biased;
                _ = hand.store.get_when_committed(&key) => return Err("nobody committed it".to_owned()),
                () = tokio::time::sleep(Duration::from_micros(200)) => {}
            }
            drop(hand.store.put(&content(round, 100), Format::RAW).wait().map(|key| hand.store.get(&key)));
            hand.store.evict(&key).await.map_err(text)?;
        }
        Ok(())
    })?;
    // The puts above stay: 50 objects.
    Ok(())
}

/// Operations under a timer that interrupts every millisecond.
fn signal_storm(hand: &mut Hand, millis: u64) -> Result<(), String> {
    static SEEN: AtomicU64 = AtomicU64::new(0);
    extern "C" fn count(_: libc::c_int) {
        SEEN.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler touches an atomic only; all structures live through the calls, and zero is a value of each.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count as *const () as usize;
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
        let every = libc::timeval { tv_sec: 0, tv_usec: 1000 };
        libc::setitimer(
            libc::ITIMER_REAL,
            &libc::itimerval { it_interval: every, it_value: every },
            std::ptr::null_mut(),
        );
    }
    let begun = Instant::now();
    let mut done = Ok(());
    let mut seed = 0;
    while done.is_ok() && begun.elapsed() < Duration::from_millis(millis) {
        seed += 1;
        done = (|| {
            let text = |error: proxystore::Error| error.to_string();
            let len = (seed as usize * 997) % 100_000;
            let key = hand.store.put(&content(seed, len), Format::RAW).wait().map_err(text)?;
            let view = hand.store.get(&key).wait().map_err(text)?.ok_or("the object")?;
            verify(&view, seed)?;
            hand.store.evict(&key).wait().map_err(text)?;
            inspect::stats(NAMESPACE).map(|_| ()).map_err(text)
        })();
    }
    // SAFETY: as above.
    unsafe {
        libc::setitimer(libc::ITIMER_REAL, &std::mem::zeroed(), std::ptr::null_mut());
    }
    done?;
    check(SEEN.load(Ordering::Relaxed) > millis / 100, "too few signals came")
}

/// The words of the control segment, as a hostile process of the same user has them.
pub(crate) fn words() -> Result<&'static [AtomicU64], String> {
    let fd = *descriptors("memfd:proxystore-ctl").first().ok_or("no control segment")?;
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{fd}"))
        .map_err(|error| error.to_string())?;
    let len = file.metadata().map_err(|error| error.to_string())?.len() as usize;
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a fresh mapping of the whole file, which is sealed against shrinking and never unmapped; words are atomics.
    unsafe {
        let memory = libc::mmap(std::ptr::null_mut(), len, protection, flags, file.as_raw_fd(), 0);
        check(memory != libc::MAP_FAILED, "no mapping")?;
        Ok(std::slice::from_raw_parts(memory.cast::<AtomicU64>(), len / 8))
    }
}

/// The slot that a key names: the locator is instance, slot, generation.
fn slot_of(key: &str) -> Result<u32, String> {
    let key = parse(key).map_err(|error| error.to_string())?;
    let bytes = key.locator().get(8..12).ok_or("a locator of another kind")?;
    Ok(bytes.iter().rev().fold(0, |slot, byte| slot << 8 | u32::from(*byte)))
}

/// Writes a value to a word of the slot of a key.
fn scribble(key: &str, word: usize, value: u64) -> Result<(), String> {
    let at = inspect::slot_offset(slot_of(key)?) / 8 + word;
    words()?[at].store(value, Ordering::SeqCst);
    Ok(())
}

/// Copies a word of one object's slot to another's.
fn copy_word(from: &str, to: &str, word: usize) -> Result<(), String> {
    let at = |key: &str| Ok::<usize, String>(inspect::slot_offset(slot_of(key)?) / 8 + word);
    let words = words()?;
    words[at(to)?].store(words[at(from)?].load(Ordering::SeqCst), Ordering::SeqCst);
    Ok(())
}

/// Writes anything to any word of any slot in use.
fn scribble_everywhere(seed: u64, count: u64) -> Result<(), String> {
    let words = words()?;
    let slots = words[inspect::slots_offset() / 8].load(Ordering::Relaxed).min(1 << 16);
    let mut random = Random(seed | 1);
    for _ in 0..count {
        let at = inspect::slot_offset(random.below(slots) as u32) / 8 + random.below(8) as usize;
        let former = words[at].load(Ordering::Relaxed);
        let value = match random.below(4) {
            0 => random.next(),
            1 => former ^ 1 << random.below(64),
            2 => u64::MAX,
            _ => former.wrapping_add(1),
        };
        words[at].store(value, Ordering::SeqCst);
    }
    Ok(())
}

pub(crate) fn limit(what: &str, most: u64) -> Result<(), String> {
    let resource = match what {
        "descriptors" => libc::RLIMIT_NOFILE,
        "addresses" => libc::RLIMIT_AS,
        "locked" => libc::RLIMIT_MEMLOCK,
        _ => return Err("no such limit".to_owned()),
    };
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::setrlimit(resource, &limit) } == 0, "setrlimit")
}

/// Connects to the service's socket and goes, again and again.
fn connect_storm(millis: u64) -> Result<(), String> {
    let path =
        format!("{}/{NAMESPACE}/sock", std::env::var("PROXYSTORE_RUNTIME_DIR").map_err(|error| error.to_string())?);
    // SAFETY: all fields are integers, of which zero is a value.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    check(path.len() < address.sun_path.len(), "a path too long")?;
    for (place, byte) in address.sun_path.iter_mut().zip(path.bytes()) {
        *place = byte as libc::c_char;
    }
    let begun = Instant::now();
    let mut connected = 0u64;
    while begun.elapsed() < Duration::from_millis(millis) {
        // SAFETY: the address lives through the call; the descriptor is closed once.
        unsafe {
            let fd = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0);
            check(fd >= 0, "no socket")?;
            let len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
            connected += u64::from(libc::connect(fd, (&raw const address).cast(), len) == 0);
            libc::close(fd);
        }
        std::thread::sleep(Duration::from_micros(300));
    }
    eprintln!("{connected} connections in {millis} ms");
    check(connected > millis / 100, "too few connections")
}
