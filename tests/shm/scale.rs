//! Many processes, much memory, many objects.

use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use proxystore::{Connector, Format};

use crate::child::{Hand, parse};
use crate::rows::{needs, row};
use crate::site::{Client, PATIENCE, Site};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        needs(has_memory(), "thirty_two_readers_of_a_gigabyte", 120, thirty_two_readers_of_a_gigabyte),
        row("a_million_objects_outlive_their_host", 120, a_million_objects_outlive_their_host),
    ]
}

/// All of them see each byte of one object, and the node has it once.
///
/// Not counted are the page tables of the readers, which the kernel does not share: with pages of 4 KiB 2 MiB each.
fn thirty_two_readers_of_a_gigabyte() {
    let site = Site::with_options("bytes=2147483648");
    let mut producer = site.client();
    let answer = producer.ask(&format!("part fill {GIB}"));
    let key = answer.strip_prefix("key ").unwrap_or_else(|| panic!("{answer}")).to_owned();
    let mut readers: Vec<Client> = (0..32).map(|_| site.client()).collect();
    let private = memory(&readers[0], "Pss_Anon:");
    for reader in &mut readers {
        reader.tell(&format!("part read {key} {GIB}"));
    }
    for reader in &readers {
        assert_eq!(reader.reply_within(Duration::from_secs(150)).as_deref(), Some("done"));
    }
    let shared: u64 = readers.iter().chain([&producer]).map(|client| memory(client, "Pss_Shmem:")).sum();
    assert!(shared >= GIB, "{shared} bytes of shared memory hold an object of {GIB}");
    assert!(shared <= GIB + GIB / 20, "{shared} bytes of shared memory for an object of {GIB}");
    for reader in &readers {
        let grown = memory(reader, "Pss_Anon:").saturating_sub(private);
        assert!(grown < 4 << 20, "a reader has {grown} bytes of its own more than before");
    }
    readers.push(producer);
    site.check(readers, 1..=1);
}

fn a_million_objects_outlive_their_host() {
    let site = Site::with_options("bytes=1073741824");
    let (mut host, mut producer) = (site.client(), site.client());
    producer.tell("put_many 1 64 1000000");
    assert_eq!(producer.reply_within(Duration::from_secs(150)).as_deref(), Some("done"));
    let key = producer.put(2, 5000);
    host.kill();
    let begun = Instant::now();
    let mut late = site.command(&["--child", &site.url()]);
    late.env("PROXYSTORE_TIMEOUT", "40s");
    let mut late = Client::start(late);
    late.expect(&format!("get {key} 2"), "same");
    assert!(begun.elapsed() < PATIENCE, "the successor took {:?}", begun.elapsed());
    producer.kill();
    site.check(vec![late], 1_000_001..=1_000_001);
}

/// What children do for these tests; `None` for what is not theirs.
pub(crate) fn part(hand: &Hand, name: &str, arguments: &[&str]) -> Option<String> {
    let text = |error: proxystore::Error| error.to_string();
    Some(match (name, arguments) {
        ("fill", [len]) => {
            let fill = || {
                let mut region = hand.store.reserve(len.parse().expect("a length")).map_err(text)?;
                region.initialize().fill(BYTE);
                hand.store.commit(region, Format::RAW).wait().map_err(text)
            };
            fill().map_or_else(|how: String| how, |key| format!("key {key}"))
        }
        ("read", [key, len]) => {
            let read = || {
                let key = parse(key).map_err(text)?;
                let region = hand.store.get(&key).wait().map_err(text)?.ok_or("it is not there")?;
                let same = region.len() == len.parse::<usize>().expect("a length")
                    && region.chunks(1 << 20).all(|chunk| chunk == [BYTE; 1 << 20]);
                // The view stays: what is counted is memory in use.
                std::mem::forget(region);
                if same { Ok(()) } else { Err("other bytes".to_owned()) }
            };
            read().map_or_else(|how: String| how, |()| "done".to_owned())
        }
        _ => return None,
    })
}

/// A figure of proc_pid_smaps(5), summed over the process, in bytes.
fn memory(client: &Client, field: &str) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", client.id());
    kilobytes(&std::fs::read_to_string(path).unwrap(), field)
}

fn has_memory() -> Result<(), String> {
    let available = kilobytes(&std::fs::read_to_string("/proc/meminfo").unwrap(), "MemAvailable:");
    if available >= 3 << 30 { Ok(()) } else { Err("needs 3 GiB of memory".to_owned()) }
}

fn kilobytes(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_else(|| panic!("no {field}"));
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() << 10
}

const BYTE: u8 = 0xa5;

const GIB: u64 = 1 << 30;
