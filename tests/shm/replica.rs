//! Objects of other nodes: fetched once for all processes of this one, whoever is killed meanwhile.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use proxystore::service::inspect::{self, Fetching, Remote, Replicas, Shared};
use proxystore::{Error, Region};

use crate::child::Hand;
use crate::content::{Random, content, verify};
use crate::rows::row;
use crate::site::{Client, NAMESPACE, PATIENCE, Site};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        row("replica_is_fetched_once", 20, replica_is_fetched_once),
        row("replica_claims_of_the_killed_are_free_at_once", 60, replica_claims_of_the_killed_are_free_at_once),
        row("replica_claim_of_a_killed_host", 20, replica_claim_of_a_killed_host),
        row("replica_killed_while_ending", 30, replica_killed_while_ending),
        row("replica_waiter_is_bounded", 10, replica_waiter_is_bounded),
        row("replica_is_passed_on_while_it_arrives", 10, replica_is_passed_on_while_it_arrives),
        row("replica_of_a_fetcher_killed_while_it_arrives", 60, replica_of_a_fetcher_killed_while_it_arrives),
        row("replica_is_forgotten", 10, replica_is_forgotten),
        row("replica_expires_with_its_original", 10, replica_expires_with_its_original),
        row("replica_freshness_ends", 10, replica_freshness_ends),
        row("replicas_have_a_budget", 20, replicas_have_a_budget),
        row("replicas_make_room_for_puts", 20, replicas_make_room_for_puts),
        row("replicas_can_be_switched_off", 10, replicas_can_be_switched_off),
        row("replicas_are_no_objects_of_the_user", 10, replicas_are_no_objects_of_the_user),
        row("replica_scribbled_index", 30, replica_scribbled_index),
    ]
}

fn replica_is_fetched_once() {
    let site = Site::new();
    let mut clients: Vec<Client> = (0..6).map(|_| site.client()).collect();
    clients.iter_mut().for_each(|client| client.tell("part replica_get 1 100000 30 3000"));
    let mut answers: Vec<String> = clients.iter().map(Client::reply).collect();
    answers.sort_unstable();
    assert_eq!(answers, ["fetched", "same", "same", "same", "same", "same"]);
    clients[5].expect("part replica_get 1 100000 0 0", "same");
    // All at once, again and again: small ones, so that it is often close.
    clients.iter_mut().for_each(|client| client.tell("part replica_get_many 100 200"));
    let fetched: u64 = clients.iter().map(|client| client.reply().parse::<u64>().expect("a count")).sum();
    assert_eq!(fetched, 100);
    site.check(clients, 202..=202);
}

/// Every step of whoever fetches: those who wait have the duty soon after the death, and nothing is left.
fn replica_claims_of_the_killed_are_free_at_once() {
    let steps = [
        ("client.replica.declared", "fetched", 1),
        ("client.replica.claimed", "fetched", 1),
        ("client.put.published", "fetched", 1),
        ("client.replica.published", "fetched", 1),
        ("client.replica.bound", "same", 1),
        ("client.replica.abandoned", "fetched", 1),
    ];
    for (failpoint, outcome, nth) in steps {
        let site = Site::new();
        let (mut host, mut waiter) = (site.client(), site.client());
        host.put(3, 100);
        let mut victim = site.doomed(failpoint, nth);
        if failpoint == "client.replica.declared" {
            victim.tell("part replica_claim 1");
        } else {
            // One that waits before the end, and is woken by it.
            if failpoint != "client.replica.claimed" {
                victim.expect("part replica_claim 1", "claimed");
                waiter.tell("part replica_get 1 5000 0 9000");
                assert_eq!(waiter.reply_within(Duration::from_millis(100)), None, "{failpoint}");
            }
            victim.tell(match failpoint {
                "client.replica.claimed" => "part replica_claim 1",
                "client.replica.abandoned" => "part replica_abandon",
                _ => "part replica_land 1 5000",
            });
        }
        victim.dies();
        let died = Instant::now();
        if matches!(failpoint, "client.replica.declared" | "client.replica.claimed") {
            waiter.tell("part replica_get 1 5000 0 9000");
        }
        assert_eq!(waiter.reply(), outcome, "{failpoint}");
        let took = died.elapsed();
        assert!(took < SOON, "{failpoint}: {took:?} after the death");
        host.expect("part replica_get 1 5000 0 0", "same");
        // The declaration, its object, and what the host put.
        site.check(vec![host, waiter], 3..=3);
    }
}

fn replica_is_passed_on_while_it_arrives() {
    let site = Site::new();
    let (mut fetcher, mut other) = (site.client(), site.client());
    fetcher.expect("part replica_claim 1", "claimed");
    other.expect("part replica_pass 1 100000 0", "not yet");
    fetcher.expect("part replica_open 1 100000 40000", "there");
    other.expect("part replica_pass 1 100000 40000", "same");
    other.expect("part replica_pass 1 100000 40001", "not yet");
    fetcher.expect("part replica_finish", "same");
    other.expect("part replica_pass 1 100000 100000", "same");
    // Given up half way.
    fetcher.expect("part replica_claim 2", "claimed");
    fetcher.expect("part replica_open 2 100000 40000", "there");
    fetcher.expect("part replica_abandon", "done");
    other.expect("part replica_pass 2 100000 40000", "not yet");
    other.expect("part replica_get 2 100000 0 0", "fetched");
    site.check(vec![fetcher, other], 4..=4);
}

/// Every step: who waits has the duty soon after the death, and nothing is left.
fn replica_of_a_fetcher_killed_while_it_arrives() {
    let steps = [
        ("client.arriving.published", "replica_open 1 5000 3000", "fetched"),
        ("client.arriving.hinted", "replica_open 1 5000 3000", "fetched"),
        ("client.arriving.advanced", "replica_open 1 5000 3000", "fetched"),
        ("client.arriving.abandoned", "replica_abandon", "fetched"),
        ("client.arriving.labelled", "replica_finish", "fetched"),
        ("client.replica.bound", "replica_finish", "same"),
    ];
    for (failpoint, step, outcome) in steps {
        let site = Site::new();
        let (mut host, mut waiter) = (site.client(), site.client());
        let mut victim = site.doomed(failpoint, 1);
        victim.expect("part replica_claim 1", "claimed");
        if !step.starts_with("replica_open") {
            victim.expect("part replica_open 1 5000 3000", "there");
        }
        waiter.tell("part replica_get 1 5000 0 9000");
        assert_eq!(waiter.reply_within(Duration::from_millis(100)), None, "{failpoint}");
        victim.tell(&format!("part {step}"));
        victim.dies();
        let died = Instant::now();
        assert_eq!(waiter.reply(), outcome, "{failpoint}");
        assert!(died.elapsed() < SOON, "{failpoint}: {:?} after the death", died.elapsed());
        host.expect("part replica_get 1 5000 0 0", "same");
        site.check(vec![host, waiter], 2..=2);
    }
}

fn replica_claim_of_a_killed_host() {
    let site = Site::new();
    let mut host = site.client();
    let (mut waiter, mut other) = (site.client(), site.client());
    other.expect("part replica_get 2 5000 0 0", "fetched");
    host.expect("part replica_claim 1", "claimed");
    waiter.tell("part replica_get 1 5000 0 9000");
    assert_eq!(waiter.reply_within(Duration::from_millis(100)), None);
    host.kill();
    // Somebody has to become the host first.
    assert_eq!(waiter.reply(), "fetched");
    other.expect("part replica_get 1 5000 0 0", "same");
    other.expect("part replica_get 2 5000 0 0", "same");
    site.check(vec![waiter, other], 4..=4);
}

/// Between the end of a replica and the next step of whoever ended it.
fn replica_killed_while_ending() {
    let site = Site::new();
    let mut host = site.client();
    host.expect("part replica_get 1 5000 0 0", "fetched");
    let mut victim = site.doomed("client.replica.retired", 1);
    victim.tell("part replica_forget 1");
    victim.dies();
    host.expect("part replica_get 1 5000 0 0", "fetched");
    site.check(vec![host], 2..=2);

    // The service itself, in the middle of making room.
    let site = Site::with_options("bytes=67108864");
    let mut command = site.command(&["--child", &site.url()]);
    command.env("PROXYSTORE_REPLICA_BYTES", "1MiB").env("PROXYSTORE_FAILPOINT", "service.replica.ended:1");
    let mut host = Client::start(command);
    let mut client = site.client();
    for n in 0..20 {
        client.expect(&format!("part replica_get {n} 300000 0 0"), "fetched");
    }
    host.dies();
    let begun = Instant::now();
    while client.ask("part replica_count").parse::<u64>().unwrap() > 3 {
        assert!(begun.elapsed() < PATIENCE, "the budget is kept by the next one");
        std::thread::sleep(Duration::from_millis(50));
    }
    client.expect("part replica_get 0 300000 0 0", "fetched");
    (0..20).for_each(|n| client.expect(&format!("part replica_forget {n}"), "done"));
    site.check(vec![client], 0..=0);
}

fn replica_waiter_is_bounded() {
    let site = Site::new();
    let (mut slow, mut waiter) = (site.client(), site.client());
    slow.expect("part replica_claim 1", "claimed");
    let begun = Instant::now();
    assert!(waiter.ask("part replica_get 1 5000 0 300").starts_with("error Timeout"));
    assert!((280..6000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    // Given up, it is the next one's.
    slow.expect("part replica_abandon", "done");
    waiter.expect("part replica_get 1 5000 0 9000", "fetched");
    site.check(vec![slow, waiter], 2..=2);
}

fn replica_is_forgotten() {
    let site = Site::new();
    let (mut one, mut two) = (site.client(), site.client());
    one.expect("part replica_hold 1 5000", "fetched");
    two.expect("part replica_hold 1 5000", "same");
    two.expect("part replica_forget 1", "done");
    one.expect("check", "same");
    // Also while it is on its way: then only who fetched it sees it, and those who wait look again.
    two.expect("part replica_claim 2", "claimed");
    one.tell("part replica_get 2 5000 0 5000");
    assert_eq!(one.reply_within(Duration::from_millis(100)), None);
    two.expect("part replica_forget 2", "done");
    assert_eq!(one.reply(), "fetched");
    two.expect("part replica_land 2 5000", "same");
    one.expect("drop", "done");
    two.expect("drop", "done");
    site.check(vec![one, two], 2..=2);
}

fn replica_expires_with_its_original() {
    let site = Site::new();
    let (mut one, mut two) = (site.client(), site.client());
    one.expect("part replica_land_for 1 5000 1500", "same");
    two.expect("part replica_get 1 5000 0 0", "same");
    std::thread::sleep(Duration::from_millis(1550));
    two.expect("part replica_get 1 5000 0 0", "fetched");
    site.check(vec![one, two], 2..=2);
}

fn replica_freshness_ends() {
    let site = Site::new();
    let (mut one, mut two) = (site.client(), site.client());
    one.expect("part replica_get 1 5000 0 0", "fetched");
    two.expect("part replica_fresh 1", "true");
    two.expect("part replica_refresh 1 0", "true");
    // It only grows, and ends by itself.
    two.expect("part replica_fresh 1", "true");
    std::thread::sleep(FRESH + Duration::from_millis(70));
    two.expect("part replica_fresh 1", "false");
    one.expect("part replica_refresh 1 5000", "true");
    two.expect("part replica_fresh 1", "true");
    one.expect("part replica_refresh 2 5000", "false");
    site.check(vec![one, two], 2..=2);
}

fn replicas_have_a_budget() {
    let site = Site::new();
    let mut command = site.command(&["--child", &site.url()]);
    command.env("PROXYSTORE_REPLICA_BYTES", "2MiB");
    let mut host = Client::start(command);
    let mut client = site.client();
    client.expect("part replica_hold 0 300000", "fetched");
    let mut most = 0;
    for n in 1..100 {
        host.expect(&format!("part replica_get {n} 300000 0 0"), "fetched");
        most = most.max(host.ask("part replica_count").parse::<u64>().unwrap());
    }
    // Beyond it only what the process had leased ahead, and that for a second.
    assert!(most <= 40, "{most} replicas of 300 kB at once, in 2 MiB");
    let begun = Instant::now();
    while host.ask("part replica_count").parse::<u64>().unwrap() > 7 {
        assert!(begun.elapsed() < PATIENCE, "the budget is not kept");
        std::thread::sleep(Duration::from_millis(20));
    }
    client.expect("part replica_get 0 300000 0 0", "same");
    client.expect("check", "same");
    client.expect("drop", "done");
    host.end();
    let mut auditor = site.client();
    drop(client);
    let live: u64 = auditor.ask("settled").strip_prefix("live ").unwrap().parse().unwrap();
    assert!((2..=14).contains(&live) && live % 2 == 0, "{live}");
}

fn replicas_make_room_for_puts() {
    let site = Site::with_options("bytes=16777216");
    let mut client = site.client();
    for n in 0..10 {
        client.expect(&format!("part replica_get {n} 300000 0 0"), "fetched");
    }
    let keys: Vec<String> = (0..3).map(|seed| client.put(seed, 4_000_000)).collect();
    assert!(client.ask("part replica_count").parse::<u64>().unwrap() < 10);
    for (seed, key) in keys.iter().enumerate() {
        client.expect(&format!("get {key} {seed}"), "same");
    }
}

fn replicas_can_be_switched_off() {
    let site = Site::new();
    let mut command = site.command(&["--child", &site.url()]);
    command.env("PROXYSTORE_REPLICA_BYTES", "0");
    let mut host = Client::start(command);
    host.expect("part replica_get 1 100 0 0", "unshared");
    site.check(vec![host], 0..=0);
}

fn replicas_are_no_objects_of_the_user() {
    let site = Site::new();
    let mut client = site.client();
    let key = client.put(1, 100);
    client.expect("part replica_get 1 5000 0 0", "fetched");
    client.expect("part replica_claim 2", "claimed");
    client.expect("part replica_list", &format!("{key}, and a replica of 5000"));
    client.expect("part replica_abandon", "done");
    site.check(vec![client], 3..=3);
}

/// Whatever somebody writes over the index: no bytes but the right ones, no panic, and in the end nothing is left.
fn replica_scribbled_index() {
    let site = Site::new();
    let (mut host, mut hostile) = (site.client(), site.client());
    let key = host.put(7, 3000);
    for round in 0..5 {
        for n in 0..20 {
            let answer = host.ask(&format!("part replica_get {n} {} 0 1000", 1000 + n));
            assert!(["fetched", "same", "unshared"].contains(&answer.as_str()), "{answer}");
        }
        hostile.expect(&format!("part replica_scribble {round}"), "done");
    }
    host.expect(&format!("get {key} 7"), "same");
    assert!(host.ask("part replica_count").parse::<u64>().is_ok());
}

// ----------------------------------------------------------------------------------------------------------------------

/// What children do for these tests; `None` for what is not theirs.
pub(crate) fn part(hand: &mut Hand, name: &str, arguments: &[&str]) -> Option<String> {
    if !name.starts_with("replica_") {
        return None;
    }
    let numbers: Vec<u64> = arguments.iter().map(|text| text.parse().expect("a number")).collect();
    let answer = match (name, &numbers[..]) {
        ("replica_get", [n, len, takes, patience]) => get(*n, *len, *takes, *patience).map(|(answer, _)| answer),
        ("replica_get_many", [count, len]) => get_many(*count, *len),
        ("replica_hold", [n, len]) => get(*n, *len, 0, 0).map(|(answer, region)| {
            hand.views.extend(region.map(|region| (region, *n)));
            answer
        }),
        ("replica_claim", [n]) => claim(*n).map(|found| match found {
            Shared::Claimed(claim) => {
                hand.claims.push(claim);
                "claimed".to_owned()
            }
            other => format!("{other:?}"),
        }),
        ("replica_land", [n, len]) => land(hand.claims.pop().expect("a claim"), *n, *len, None),
        ("replica_land_for", [n, len, millis]) => claim(*n).and_then(|found| match found {
            Shared::Claimed(claim) => land(claim, *n, *len, Some(Duration::from_millis(*millis))),
            other => Ok(format!("{other:?}")),
        }),
        ("replica_open", [n, len, there]) => open(hand, *n, *len, *there),
        ("replica_finish", []) => finish(hand),
        ("replica_pass", [n, len, end]) => pass(*n, *len, *end),
        ("replica_abandon", []) => {
            hand.claims.clear();
            hand.arriving.clear();
            Ok("done".to_owned())
        }
        ("replica_forget", [n]) => {
            Replicas::of(NAMESPACE).and_then(|replicas| replicas.forget(remote(*n))).map(|()| "done".to_owned())
        }
        ("replica_fresh", [n]) => claim(*n).map(|found| match found {
            Shared::Landed(_, fresh) => fresh.to_string(),
            other => format!("{other:?}"),
        }),
        ("replica_refresh", [n, millis]) => Replicas::of(NAMESPACE)
            .and_then(|replicas| replicas.refresh(remote(*n), Duration::from_millis(*millis)))
            .map(|there| there.to_string()),
        ("replica_count", []) => inspect::stats(NAMESPACE).map(|stats| stats.replicas.count.to_string()),
        ("replica_list", []) => list(),
        ("replica_scribble", [seed]) => Ok(scribble(*seed).map_or_else(|how| how, |()| "done".to_owned())),
        other => panic!("no such part: {other:?}"),
    };
    Some(answer.unwrap_or_else(|error| format!("error {:?} {error}", error.kind())))
}

/// Gets an object of another node, as a connector does: found, waited for, or fetched, which takes some milliseconds.
fn get(n: u64, len: u64, takes: u64, patience: u64) -> Result<(String, Option<Region>), Error> {
    let until = Instant::now() + Duration::from_millis(patience);
    loop {
        let found = match claim(n)? {
            Shared::Landed(region, _) => Some(region),
            Shared::InFlight(awaited) => awaited.wait(until.saturating_duration_since(Instant::now()))?,
            Shared::Claimed(fetching) => {
                std::thread::sleep(Duration::from_millis(takes));
                let region = fetching.land(&content(n, len as usize), FRESH, None)?;
                return Ok(("fetched".to_owned(), Some(region)));
            }
            Shared::Unshared => return Ok(("unshared".to_owned(), None)),
        };
        if let Some(region) = found {
            let is_whole = region.len() as u64 == len && verify(&region, n).is_ok();
            return Ok((if is_whole { "same" } else { "other" }.to_owned(), Some(region)));
        }
    }
}

/// Gets one after the other; how many it fetched itself.
fn get_many(count: u64, len: u64) -> Result<String, Error> {
    let mut fetched = 0;
    for n in 1000..1000 + count {
        match get(n, len, 0, 5000)?.0.as_str() {
            "fetched" => fetched += 1,
            "same" => {}
            other => return Ok(other.to_owned()),
        }
    }
    Ok(fetched.to_string())
}

fn claim(n: u64) -> Result<Shared, Error> {
    Replicas::of(NAMESPACE)?.get(remote(n))
}

fn land(claim: Fetching, n: u64, len: u64, lifetime: Option<Duration>) -> Result<String, Error> {
    let region = claim.land(&content(n, len as usize), FRESH, lifetime)?;
    Ok(verify(&region, n).map_or_else(|how| format!("other {how}"), |()| "same".to_owned()))
}

/// Lets the first bytes come of what was claimed last.
fn open(hand: &mut Hand, n: u64, len: u64, there: u64) -> Result<String, Error> {
    let mut arriving = hand.claims.pop().expect("a claim").open(len)?;
    arriving.write(&content(n, len as usize)[..there as usize]);
    hand.arriving.push((arriving, n, len, there));
    Ok("there".to_owned())
}

/// Lets the others come.
fn finish(hand: &mut Hand) -> Result<String, Error> {
    let (mut arriving, n, len, there) = hand.arriving.pop().expect("something that arrives");
    arriving.write(&content(n, len as usize)[there as usize..]);
    let region = arriving.land(FRESH, None)?;
    Ok(verify(&region, n).map_or_else(|how| format!("other {how}"), |()| "same".to_owned()))
}

/// The first bytes of what arrives.
fn pass(n: u64, len: u64, end: u64) -> Result<String, Error> {
    let end = end as usize;
    Ok(match Replicas::of(NAMESPACE)?.pass(remote(n), end as u64)? {
        None => "not yet".to_owned(),
        Some(region) if region[..end] == content(n, len as usize)[..end] => "same".to_owned(),
        Some(_) => "other".to_owned(),
    })
}

/// The nth object of the other node.
fn remote(n: u64) -> Remote {
    (0x1234_5678, n as u32, 9)
}

fn list() -> Result<String, Error> {
    let Some(namespace) = proxystore::service::Namespace::find(NAMESPACE)? else { return Ok("nothing".to_owned()) };
    let (copies, own): (Vec<_>, Vec<_>) = namespace.objects()?.partition(|object| object.is_replica);
    let own: Vec<String> = own.iter().map(|object| object.key.to_string()).collect();
    let copies: Vec<String> = copies.iter().map(|object| format!("and a replica of {}", object.len)).collect();
    Ok([own, copies].concat().join(", "))
}

/// Writes words that mean something elsewhere, or nothing, over the index.
fn scribble(seed: u64) -> Result<(), String> {
    let (offset, len) = inspect::index_range();
    let mut random = Random(seed * 2 + 1);
    let index = &crate::parts::words()?[offset / 8..(offset + len) / 8];
    let used: Vec<_> = index.iter().filter(|word| word.load(SeqCst) != 0).collect();
    for word in &used {
        let former = word.load(SeqCst);
        let other = used[random.below(used.len() as u64) as usize].load(SeqCst);
        let value = match random.below(4) {
            0 => other,
            1 => former ^ 1 << random.below(64),
            2 => random.next(),
            // Another slot, as if it were this one's.
            _ => former & !(0x00ff_ffff << 24) | random.below(64) << 24,
        };
        word.store(value, SeqCst);
    }
    Ok(())
}

/// How long what was fetched is fresh.
const FRESH: Duration = Duration::from_millis(1500);

/// How soon after a death somebody else may fetch; well before those who wait give up.
const SOON: Duration = Duration::from_secs(3);
