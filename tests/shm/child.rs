//! The client processes of the tests: orders on standard input, an answer each.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BufMut;
use proxystore::connectors::ShmConnector;
use proxystore::service::inspect::{self, Arriving, Fetching};
use proxystore::{Connector, Error, Format, Key, Region, RegionMut};

use crate::audit;
use crate::content::{content, verify};
use crate::parts;
use crate::site::NAMESPACE;

/// What a child has in hand.
pub(crate) struct Hand {
    pub(crate) store: Arc<ShmConnector>,
    pub(crate) views: Vec<(Region, u64)>,
    pub(crate) regions: Vec<(RegionMut, u64)>,
    /// Objects of another node that it said it would fetch.
    pub(crate) claims: Vec<Fetching>,
    /// Those of which some bytes have come: number, length, and how many.
    pub(crate) arriving: Vec<(Arriving, u64, u64, u64)>,
    pub(crate) url: String,
}

/// Opens the URL and obeys until standard input ends.
pub(crate) fn run(url: &str) -> i32 {
    // SAFETY: a system call; it ends with the test, whatever becomes of that.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let store = match open(url) {
        Ok(store) => store,
        Err(error) => {
            say(&format!("error {:?} {error}", error.kind()));
            return 0;
        }
    };
    say("ready");
    let mut hand = Hand {
        store,
        views: Vec::new(),
        regions: Vec::new(),
        claims: Vec::new(),
        arriving: Vec::new(),
        url: url.to_owned(),
    };
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        say(&obey(&mut hand, &words).unwrap_or_else(|error| format!("error {:?} {error}", error.kind())));
    }
    0
}

pub(crate) fn open(url: &str) -> proxystore::Result<Arc<ShmConnector>> {
    ShmConnector::open(&url.parse()?).map(Arc::new)
}

pub(crate) fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{}", text.replace('\n', " ")).and_then(|()| output.flush());
}

fn obey(hand: &mut Hand, words: &[&str]) -> Result<String, Error> {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let store = &hand.store;
    Ok(match *words {
        ["put", seed, len] => {
            let bytes = content(number(seed), number(len) as usize);
            format!("key {}", store.put(&bytes, Format::RAW).wait()?)
        }
        ["put_many", seed, len, count] => {
            let bytes = content(number(seed), number(len) as usize);
            for _ in 0..number(count) {
                store.put(&bytes, Format::RAW).wait()?;
            }
            "done".to_owned()
        }
        ["get", key, seed] => match store.get(&parse(key)?).wait()? {
            Some(region) => {
                verify(&region, number(seed)).map_or_else(|how| format!("other {how}"), |()| "same".to_owned())
            }
            None => "none".to_owned(),
        },
        ["take", key, seed] => match store.take(&parse(key)?).wait()? {
            Some(region) => {
                verify(&region, number(seed)).map_or_else(|how| format!("other {how}"), |()| "same".to_owned())
            }
            None => "none".to_owned(),
        },
        ["hold", key, seed] => match store.get(&parse(key)?).wait()? {
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
            hand.regions.clear();
            "done".to_owned()
        }
        ["reserve", seed, len] => {
            let mut region = store.reserve(number(len) as usize)?;
            let bytes = content(number(seed), number(len) as usize);
            region.put_slice(&bytes[..bytes.len() / 2]);
            hand.regions.push((region, number(seed)));
            "done".to_owned()
        }
        ["commit", len] => {
            let (mut region, seed) = hand.regions.pop().expect("a reservation");
            let bytes = content(seed, number(len) as usize);
            region.put_slice(&bytes[bytes.len() / 2..]);
            format!("key {}", store.commit(region, Format::RAW).wait()?)
        }
        ["exists", key] => store.exists(&parse(key)?).wait()?.to_string(),
        ["evict", key] => {
            store.evict(&parse(key)?).wait()?;
            "done".to_owned()
        }
        ["declare"] => format!("key {}", store.declare(Format::RAW)?),
        ["commit_at", key, seed, len] => {
            let mut region = store.reserve(number(len) as usize)?;
            region.put_slice(&content(number(seed), number(len) as usize));
            store.commit_at(&parse(key)?, region).wait()?;
            "done".to_owned()
        }
        ["await", key, seed, millis] => {
            let deadline = Duration::from_millis(number(millis));
            let region = store.get_when_committed(&parse(key)?).deadline(deadline).wait()?;
            verify(&region, number(seed)).map_or_else(|how| format!("other {how}"), |()| "same".to_owned())
        }
        ["settled"] => match audit::settled(NAMESPACE) {
            Ok(stats) => format!("live {}", stats.live.count),
            Err(how) => how,
        },
        ["dying"] => inspect::stats(NAMESPACE)?.dying.count.to_string(),
        ["clients"] => inspect::stats(NAMESPACE)?.clients.len().to_string(),
        ["instance"] => inspect::stats(NAMESPACE)?.instance.to_string(),
        ["host"] => inspect::stats(NAMESPACE)?.host.to_string(),
        ["pages"] => inspect::stats(NAMESPACE)?.segments.iter().map(|s| s.pages.clone()).collect::<Vec<_>>().join(","),
        ["timed", ..] => {
            let begun = Instant::now();
            let answer = obey(hand, &words[1..]).unwrap_or_else(|error| format!("error {:?} {error}", error.kind()));
            format!("{} {answer}", begun.elapsed().as_millis())
        }
        ["part", name, ref arguments @ ..] => parts::run(hand, name, arguments),
        _ => panic!("no such order: {words:?}"),
    })
}

pub(crate) fn parse(key: &str) -> Result<Key, Error> {
    key.parse()
}
