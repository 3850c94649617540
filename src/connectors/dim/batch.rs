//! Many objects at once: all transfers are in flight before the first is waited for.

use std::sync::Arc;

use super::landings::Fetched;
use super::objects::Objects;
use super::remote::{Found, Limit, origin};
use crate::error::Result;
use crate::key::Format;
use crate::pending::Pending;
use crate::region::Region;
use crate::service::address::Address;
use crate::service::client::{Claim, Replica};
use crate::service::locator::NO_PLACE;
use crate::service::question::{MAX_WANTS, Pointer};

/// An object, and its position in the batch.
pub(super) type Placed = (usize, Pointer);

/// A transfer for some objects of the batch.
struct Transfer {
    objects: Vec<(usize, Format, Option<Claim>)>,
    fetched: Pending<Vec<Fetched>>,
}

/// Fetches the objects of several nodes, at the positions that they are to have.
///
/// Those that other processes of this node are fetching are waited for last: whoever has the duty to fetch an object waits for
/// nobody before it is done, so that no two wait for each other.
pub(super) fn fetch(
    all: &Arc<Objects>,
    nodes: Vec<(Address, Vec<Placed>)>,
    limit: Limit,
) -> Result<Vec<(usize, Option<Region>)>> {
    let mut done = Vec::new();
    let mut later = Vec::new();
    let mut transfers = Vec::new();
    for (node, objects) in nodes {
        let mut small: Vec<(usize, Pointer, Option<Claim>)> = Vec::new();
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
                    Replica::Landed { .. } | Replica::InFlight(_) => {
                        later.push((at, object));
                        continue;
                    }
                    Replica::Claimed(claim) => Some(claim),
                    Replica::Unshared => None,
                },
            };
            match object.len <= SMALL {
                true => small.push((at, object, claim)),
                false => transfers.push(Transfer {
                    fetched: all.remote.fetch(object.address, object.len).and_then(|one| Ok(vec![one])),
                    objects: vec![(at, object.format, claim)],
                }),
            }
        }
        // Whole answers of one message each; the lanes carry them side by side.
        for lane in 0.. {
            let rest = small.split_off(small.len().min(together(&small)));
            if small.is_empty() {
                break;
            }
            let pointers = small.iter().map(|(_, object, _)| *object).collect();
            transfers.push(Transfer {
                fetched: all.remote.fetch_all(node, lane, pointers),
                objects: small.into_iter().map(|(at, object, claim)| (at, object.format, claim)).collect(),
            });
            small = rest;
        }
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
    for (at, object) in later {
        done.push((at, limit.wait(all.get(object))?));
    }
    Ok(done)
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

/// Objects up to this size travel together, and so many bytes at most.
const SMALL: u64 = 1 << 20;
const TOGETHER: u64 = 8 << 20;
