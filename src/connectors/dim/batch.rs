//! Many objects at once: all transfers are in flight before the first is waited for.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::landings::Fetched;
use super::objects::Objects;
use super::remote::{Found, Limit, origin, want};
use crate::error::Result;
use crate::key::Format;
use crate::pending::Pending;
use crate::region::Region;
use crate::service::address::Address;
use crate::service::client::{Claim, Replica};
use crate::service::locator::NO_PLACE;
use crate::service::question::{MAX_WANTS, Pointer, Question, Verdict, Want};
use crate::sync::lock;

/// An object, and its position in the batch.
pub(super) type Placed = (usize, Pointer);

/// A transfer for some objects of the batch.
struct Transfer {
    objects: Vec<(usize, Format, Option<Claim>)>,
    fetched: Pending<Vec<Fetched>>,
}

/// A question whether the originals of copies are still there.
struct Look {
    stale: Vec<(usize, Pointer, Region)>,
    asked: Instant,
    verdicts: Pending<Vec<Verdict>>,
}

/// Fetches the objects of several nodes, at the positions that they are to have.
///
/// Each node has a thread of its own, so that one that is silent does not keep what came from others from those who wait for it.
///
/// # Errors
/// The first node's that failed.
pub(super) fn fetch(
    all: &Arc<Objects>,
    mut nodes: Vec<(Address, Vec<Placed>)>,
    limit: Limit,
) -> Result<Vec<(usize, Option<Region>)>> {
    let first = nodes.pop();
    let others = nodes.into_iter().map(|(node, objects)| {
        let all = Arc::clone(all);
        limit.start(Pending::blocking_until(move |_| fetch_from(&all, node, objects, limit)))
    });
    let others: Vec<Pending<_>> = others.collect();
    let mut done = match first {
        Some((node, objects)) => fetch_from(all, node, objects, limit)?,
        None => Vec::new(),
    };
    for other in others {
        done.append(&mut limit.wait(other)?);
    }
    Ok(done)
}

/// Fetches the objects of one node.
///
/// Those that other processes of this node are fetching are waited for last: whoever has the duty to fetch an object waits for
/// nobody before it is done, so that no two wait for each other.
fn fetch_from(
    all: &Arc<Objects>,
    node: Address,
    objects: Vec<Placed>,
    limit: Limit,
) -> Result<Vec<(usize, Option<Region>)>> {
    let mut done = Vec::with_capacity(objects.len());
    let mut later = Vec::new();
    let (mut transfers, mut relayed, mut looks) = (Vec::new(), Vec::new(), Vec::new());
    let mut small: Vec<(usize, Pointer, Option<Claim>)> = Vec::with_capacity(objects.len());
    let mut stale: Vec<(usize, Pointer, Region)> = Vec::new();
    for (at, object) in objects {
        if object.address.place == NO_PLACE || all.is_here(&object.address) {
            later.push((at, object));
            continue;
        }
        let claim = match all.remote.shares {
            false => None,
            true => match all.client.replica(origin(&object.address))? {
                // One of another length is looked at again, and refused.
                Replica::Landed { region, fresh: true } if region.len() as u64 == object.len => {
                    done.push((at, Some(region)));
                    continue;
                }
                Replica::Landed { region, fresh: false } if region.len() as u64 == object.len => {
                    stale.push((at, object, region));
                    continue;
                }
                Replica::Landed { .. } | Replica::InFlight(_) => {
                    later.push((at, object));
                    continue;
                }
                Replica::Claimed(claim) => Some(claim),
                Replica::Unshared => None,
            },
        };
        match (object.len <= SMALL, claim) {
            (true, claim) => small.push((at, object, claim)),
            (false, Some(claim)) if all.relays(object.len) => {
                relayed.push((at, object, claim));
            }
            (false, claim) => transfers.push(Transfer {
                fetched: limit.start(all.remote.fetch(object.address, object.len).and_then(|one| Ok(vec![one]))),
                objects: vec![(at, object.format, claim)],
            }),
        }
    }
    let relays = fetch_relayed(all, relayed, limit);
    // The lanes carry them side by side.
    for lane in 0.. {
        let rest = small.split_off(small.len().min(together(&small)));
        if small.is_empty() {
            break;
        }
        let pointers = small.iter().map(|(_, object, _)| *object).collect();
        transfers.push(Transfer {
            fetched: limit.start(all.remote.fetch_all(node, lane, pointers)),
            objects: small.into_iter().map(|(at, object, claim)| (at, object.format, claim)).collect(),
        });
        small = rest;
    }
    if !stale.is_empty() {
        let wants: Vec<Want> = stale.iter().map(|(_, object, _)| want(&object.address, object.len)).collect();
        let asked = Instant::now();
        let verdicts = limit.start(all.remote.ask_all(node, &wants, Question::Exists));
        looks.push(Look { stale, asked, verdicts });
    }
    for transfer in transfers {
        let fetched = limit.wait(transfer.fetched)?;
        for ((at, format, claim), fetched) in transfer.objects.into_iter().zip(fetched) {
            match all.remote.found(fetched, format, claim)? {
                Found::Object(region) => done.push((at, Some(region))),
                Found::Missing => done.push((at, None)),
                Found::Elsewhere(pointer) => later.push((at, pointer)),
            }
        }
    }
    for relay in relays {
        for (at, found) in limit.wait(relay)? {
            match found {
                Found::Object(region) => done.push((at, Some(region))),
                Found::Missing => done.push((at, None)),
                Found::Elsewhere(pointer) => later.push((at, pointer)),
            }
        }
    }
    for Look { stale, asked, verdicts } in looks {
        for ((at, object, region), verdict) in stale.into_iter().zip(limit.wait(verdicts)?) {
            let exists = limit.wait(all.exists_as(&object, verdict, asked, 0))?;
            done.push((at, exists.then_some(region)));
        }
    }
    for (at, object) in later {
        done.push((at, limit.wait(all.get(object))?));
    }
    Ok(done)
}

/// Begins to fetch large objects, of which some are on their way at a time: each takes a thread.
fn fetch_relayed(
    all: &Arc<Objects>,
    objects: Vec<(usize, Pointer, Claim)>,
    limit: Limit,
) -> Vec<Pending<Vec<(usize, Found)>>> {
    let threads = objects.len().min(RELAYED);
    let waiting = Arc::new(Mutex::new(objects));
    let fetch = |_| {
        let (all, waiting) = (Arc::clone(all), Arc::clone(&waiting));
        limit.start(Pending::blocking_until(move |_| {
            let mut done = Vec::new();
            loop {
                let next = lock(&waiting).pop();
                let Some((at, object, claim)) = next else { return Ok(done) };
                done.push((at, all.fetch_relayed(object, claim, limit)?));
            }
        }))
    };
    (0..threads).map(fetch).collect()
}

/// How many of the first objects travel together.
fn together(objects: &[(usize, Pointer, Option<Claim>)]) -> usize {
    let mut bytes = 0u64;
    let fit = objects.iter().take(MAX_WANTS).take_while(|(_, object, _)| {
        let first = bytes == 0;
        bytes = bytes.saturating_add(object.len.max(1));
        first || bytes <= TOGETHER
    });
    fit.count()
}

/// Large objects that are on their way at a time.
const RELAYED: usize = 4;

/// Objects up to this size travel together, and so many bytes at most.
const SMALL: u64 = 256 << 10;
const TOGETHER: u64 = 1 << 20;
