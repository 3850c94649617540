//! Who is given which cells, when, and who waits for some.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::memory::Effort;
use super::{MOST_LEASES, Server, UNASKED, index_of};
use crate::error::{Error, ErrorKind};
use crate::failpoint::failpoint;
use crate::mutant::mutant;
use crate::service::message::Reply;
use crate::shm::class::Class;
use crate::shm::segment::Segment;

/// A request that waits for memory.
pub(super) struct Starved {
    pub(super) client: u32,
    id: u64,
    class: Class,
    count: u32,
    /// Until when clients may give back what they do not use; `None` while they gather.
    until: Option<Instant>,
}

impl Server {
    pub(super) fn lease(&mut self, index: u32, id: u64, class: Class, count: u32, urgent: bool) {
        let Some(client) = self.clients.get(&index) else { return };
        let (tag, connection) = (client.tag, client.connection);
        let effort = match (urgent, class.capacity()) {
            // Asking for what clients hold and do not use takes less than making as much.
            (true, RECALL_FIRST..) => Effort::Free,
            (true, _) => Effort::Displace,
            (false, ..=GROW_AHEAD) => Effort::Grow,
            (false, _) => Effort::Free,
        };
        let gathers = self.is_gathering();
        let effort = if gathers { Effort::Free } else { effort };
        self.standing.insert((tag, class));
        match self.memory.lease(tag, class, count, id, effort) {
            Ok((slots, added)) => {
                self.announce(&added);
                self.reply(connection, &Reply::Leased { id, class: class.index() as u16, slots });
                failpoint!("service.lease.told");
            }
            Err(_) if urgent => {
                let until = (!gathers).then(|| {
                    self.recall();
                    Instant::now() + RECALL
                });
                self.starved.push_back(Starved { client: index, id, class, count, until });
            }
            Err(_) => {
                let error = Error::new(ErrorKind::NoSpace, "reserve", "no memory to spare");
                self.reply(connection, &Reply::refuse(id, &error));
            }
        }
    }

    /// Leases what became free to those whose it was: who puts and evicts all the time need not ask, and gets warm memory.
    pub(super) fn recycle(&mut self) {
        let mut freed: HashMap<(u64, Class), u32> = HashMap::new();
        for (owner, class) in self.memory.take_freed() {
            if self.standing.contains(&(owner, class)) {
                *freed.entry((owner, class)).or_default() += 1;
            }
        }
        for ((tag, class), count) in freed {
            let client = self.clients.get(&index_of(tag)).filter(|client| client.tag == tag);
            let Some(connection) = client.and_then(|client| client.connection) else { continue };
            let count = count.min(MOST_LEASES);
            if let Ok((slots, _)) = self.memory.lease(tag, class, count, UNASKED, Effort::Free) {
                self.send(connection, &Reply::Leased { id: UNASKED, class: class.index() as u16, slots }, &[]);
            }
        }
    }

    /// Whether clients of a former service have not come back yet, but soon do.
    ///
    /// Until then no memory is added: it would be in the hands of whoever is here, the process that hosts at first, and what
    /// others are told was put there gone with it.
    fn is_gathering(&self) -> bool {
        self.keeper.is_none()
            && self.begun.elapsed() < GATHER
            && self.clients.values().any(|client| client.connection.is_none())
            && !mutant!("grow_alone")
    }

    /// Whether any client may still give back leases.
    fn is_recalling(&self) -> bool {
        self.clients.values().any(|client| client.recalled && !client.silent && client.connection.is_some())
    }

    /// Asks all clients for what they do not use.
    fn recall(&mut self) {
        // Nobody gets anything ahead of need until it has asked again.
        self.standing.clear();
        if self.starved.iter().all(|request| request.until.is_none()) {
            self.recalls += 1;
            let connected = self.clients.values_mut().filter(|client| client.connection.is_some() && !client.silent);
            let connections: Vec<u32> = connected
                .filter_map(|client| {
                    client.recalled = true;
                    client.connection
                })
                .collect();
            for connection in connections {
                self.send(connection, &Reply::Recall, &[]);
            }
        }
    }

    /// Gives to those who wait, in their order.
    pub(super) fn feed(&mut self) {
        for _ in 0..self.starved.len() {
            let Some(request) = self.starved.pop_front() else { return };
            let Some(client) = self.clients.get(&request.client) else { continue };
            let (tag, connection) = (client.tag, client.connection);
            let gathers = self.is_gathering();
            if request.until.is_none() && !gathers {
                self.lease(request.client, request.id, request.class, request.count, true);
                continue;
            }
            let is_over = request.until.is_some_and(|until| Instant::now() >= until);
            if is_over {
                self.clients.values_mut().for_each(|client| client.silent |= client.recalled);
            }
            let waits = gathers || !is_over && self.is_recalling();
            let effort = if waits { Effort::Free } else { Effort::Displace };
            match self.memory.lease(tag, request.class, request.count, request.id, effort) {
                Ok((slots, added)) => {
                    self.announce(&added);
                    let class = request.class.index() as u16;
                    self.reply(connection, &Reply::Leased { id: request.id, class, slots });
                }
                Err(_) if waits || self.memory.is_growing_for(request.class) => self.starved.push_back(request),
                Err(shortage) => {
                    self.refused += 1;
                    let error = self.memory.exhausted(&shortage);
                    self.reply(connection, &Reply::refuse(request.id, &error));
                }
            }
        }
    }

    /// Tells everybody, and the supervisor first, of new segments.
    pub(super) fn announce(&mut self, added: &[u16]) {
        for index in added {
            let Some(segment) = self.memory.segments().get(index) else { continue };
            if let Some(keeper) = &self.keeper {
                if let Err(error) = keeper.keep_segment(*index, segment.as_fd(), segment.len() as u64) {
                    eprintln!("proxystore: warning: the supervisor does not take segment {index}: {error}");
                }
            }
            let len = segment.len() as u64;
            let connections: Vec<u32> = self.clients.values().filter_map(|client| client.connection).collect();
            for connection in connections {
                if let Some(Ok(fd)) = self.memory.segments().get(index).map(Segment::descriptor) {
                    self.send_owned(connection, &Reply::Segment { index: *index, len }, vec![fd]);
                }
            }
            failpoint!("service.segment.announced");
        }
    }
}

/// How long clients of a former service have to come back before memory is added without them: those that are stopped.
const GATHER: Duration = Duration::from_secs(2);

/// Leases ahead of need make new segments up to this size of a cell.
const GROW_AHEAD: u64 = 1 << 20;

/// Cells from this size on are looked for among unused leases before new memory is made.
const RECALL_FIRST: u64 = 16 << 20;

/// How long clients have to give back what they do not use.
const RECALL: Duration = Duration::from_millis(200);
