//! `Relays`: who gets an object of this node from whom, when many nodes fetch it.
//!
//! The first node gets it from its owner, the next from that node, which has only a part of it yet, and so on: a chain, in which
//! each node sends the object once, and piece after piece runs through all of them. Where it would become so long that the
//! last node waits longer for its first piece than a second copy takes, nodes near the owner get another successor.
//!
//! ```text
//!   owner ──> A ──> B ──> C ──> ...          D joins: after C, or, where that is too far away, as second of A
//!              └──> D ──> ...
//! ```
//!
//! Nothing here waits or knows the time; who is believed to be gone is nobody's source any more, and comes back by joining.

use std::collections::{HashMap, VecDeque};

use super::address::Node;
use crate::shm::table::Id;

/// The fetches of the objects of one node.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    objects: HashMap<Id, Fetches>,
    /// In the order in which they were first fetched.
    order: VecDeque<Id>,
    /// What each connection is fetching.
    connections: HashMap<u64, Vec<(Id, u32)>>,
}

/// The nodes that fetch one object, or have.
#[derive(Debug)]
struct Fetches {
    owner: Load,
    fetchers: Vec<Fetcher>,
    /// By the number of their memory.
    places: HashMap<u64, u32>,
    /// A successor at a node costs as much as so many nodes in between.
    long: u32,
}

#[derive(Debug)]
struct Fetcher {
    node: Node,
    connection: u64,
    load: Load,
    state: State,
    /// From where it may still get it, also when others said that it does not serve: it goes on, as far as is known.
    source: Option<Source>,
}

/// What a node does for others.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    /// Nodes that get the object from it now.
    successors: u32,
    /// Nodes between it and one that has all, where it is not such a node itself.
    distance: u32,
}

/// What a node has of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A part, which grows: it comes from there.
    Fetching(Source),
    Whole,
    /// Nothing that could be relied on.
    Lost,
}

/// From where a node gets an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Source {
    Owner,
    /// By its place.
    Fetcher(u32),
}

impl Relays {
    /// A node wants an object that comes in so many pieces, and none of it from the memories in `lost`: the node to get it from,
    /// `None` for the owner itself.
    ///
    /// A node gets from nodes that came before it, or have all: so no two ever wait for each other.
    ///
    /// # Cost
    /// A look at each node that fetches the object or did; for one that comes again, at the way of the bytes to each.
    pub(crate) fn join(&mut self, id: Id, pieces: u64, node: Node, connection: u64, lost: &[u64]) -> Option<Node> {
        if !self.objects.contains_key(&id) {
            if self.order.len() >= MOST_OBJECTS {
                if let Some(oldest) = self.order.front().copied() {
                    self.ended(oldest);
                }
            }
            self.order.push_back(id);
        }
        let fetches = self.objects.entry(id).or_insert_with(|| Fetches::new(pieces));
        let (place, former) = fetches.enter(node, connection, lost)?;
        if former != Some(connection) {
            if let Some(former) = former {
                self.forget(former, id, place);
            }
            self.connections.entry(connection).or_default().push((id, place));
        }
        let fetches = self.objects.get_mut(&id)?;
        match fetches.attach(place, former.is_some(), lost) {
            Source::Owner => None,
            Source::Fetcher(source) => Some(fetches.fetchers[source as usize].node),
        }
    }

    /// A node has all of an object, or gave it up.
    pub(crate) fn left(&mut self, id: Id, instance: u64, connection: u64, is_whole: bool) {
        let Some(fetches) = self.objects.get_mut(&id) else { return };
        let Some(place) = fetches.places.get(&instance).copied() else { return };
        let fetched_by = fetches.fetchers[place as usize].connection;
        if !is_whole && fetched_by != connection {
            // Another process of that node tries again by now.
            return;
        }
        fetches.end(place, if is_whole { State::Whole } else { State::Lost });
        self.forget(fetched_by, id, place);
    }

    /// A connection ended: what was fetched by it and is not whole is lost.
    pub(crate) fn gone(&mut self, connection: u64) {
        for (id, place) in self.connections.remove(&connection).unwrap_or_default() {
            if let Some(fetches) = self.objects.get_mut(&id) {
                let is_its = |fetcher: &&Fetcher| fetcher.connection == connection;
                if fetches.fetchers.get(place as usize).filter(is_its).is_some() {
                    fetches.end(place, State::Lost);
                }
            }
        }
    }

    /// An object is not here any more.
    pub(crate) fn ended(&mut self, id: Id) {
        let Some(fetches) = self.objects.remove(&id) else { return };
        self.order.retain(|other| *other != id);
        for (fetcher, place) in fetches.fetchers.iter().zip(0..) {
            self.forget(fetcher.connection, id, place);
        }
    }

    fn forget(&mut self, connection: u64, id: Id, place: u32) {
        if let Some(fetching) = self.connections.get_mut(&connection) {
            fetching.retain(|one| *one != (id, place));
            if fetching.is_empty() {
                self.connections.remove(&connection);
            }
        }
    }
}

impl Fetches {
    fn new(pieces: u64) -> Self {
        // To pass a piece on takes each node in between the time of one; a second successor the time of all of them.
        let long = u32::try_from(pieces / 4).unwrap_or(u32::MAX).clamp(2, 1 << 16);
        Self { owner: Load::default(), fetchers: Vec::new(), places: HashMap::new(), long }
    }

    /// The place of a node, which gets nothing from anywhere for the moment, and the connection by which it fetched before;
    /// `None` when there are too many.
    fn enter(&mut self, node: Node, connection: u64, lost: &[u64]) -> Option<(u32, Option<u64>)> {
        // Those named before have been ended then, and may be back.
        if let Some(place) = lost.last().and_then(|instance| self.places.get(instance)).copied() {
            let source = self.fetchers[place as usize].source;
            self.end(place, State::Lost);
            self.fetchers[place as usize].source = source;
        }
        match self.places.get(&node.instance).copied() {
            Some(place) => {
                self.end(place, State::Lost);
                let fetcher = &mut self.fetchers[place as usize];
                let former = std::mem::replace(&mut fetcher.connection, connection);
                fetcher.node = node;
                Some((place, Some(former)))
            }
            None if self.fetchers.len() >= MOST_FETCHERS => None,
            None => {
                let place = self.fetchers.len() as u32;
                self.fetchers.push(Fetcher {
                    node,
                    connection,
                    load: Load::default(),
                    state: State::Lost,
                    source: None,
                });
                self.places.insert(node.instance, place);
                Some((place, None))
            }
        }
    }

    /// Chooses the source of a node, from which others may get already if it `was_here`.
    fn attach(&mut self, place: u32, was_here: bool, lost: &[u64]) -> Source {
        let cost = |load: Load| u64::from(load.successors) * u64::from(self.long) + u64::from(load.distance);
        let serves = |at: u32, fetcher: &Fetcher| match fetcher.state {
            State::Lost => false,
            State::Whole => at != place,
            State::Fetching(_) => at < place,
        };
        let fetchers = self.fetchers.iter().zip(0u32..);
        let others = fetchers
            .filter(|(fetcher, at)| serves(*at, fetcher) && !lost.contains(&fetcher.node.instance))
            .filter(|(_, at)| !was_here || !self.comes_from(*at, place))
            .map(|(fetcher, at)| (cost(fetcher.load), Source::Fetcher(at)));
        // Of equals rather another node than the owner, and rather one that came early.
        let best = others.chain([(cost(self.owner), Source::Owner)]).min_by_key(|(cost, _)| *cost);
        let source = best.map_or(Source::Owner, |(_, source)| source);
        let from = self.load(source);
        from.successors += 1;
        let distance = from.distance + 1;
        let fetcher = &mut self.fetchers[place as usize];
        fetcher.state = State::Fetching(source);
        fetcher.source = Some(source);
        fetcher.load.distance = distance;
        source
    }

    /// Whether what a node gets comes to it by way of another one.
    fn comes_from(&self, mut at: u32, place: u32) -> bool {
        while let Some(Source::Fetcher(source)) = self.fetchers[at as usize].source {
            if source == place {
                return true;
            }
            at = source;
        }
        false
    }

    /// A node gets nothing from its source any more.
    fn end(&mut self, place: u32, state: State) {
        if let State::Fetching(source) = self.fetchers[place as usize].state {
            let load = self.load(source);
            load.successors = load.successors.saturating_sub(1);
        }
        let fetcher = &mut self.fetchers[place as usize];
        fetcher.state = state;
        fetcher.source = None;
        if state == State::Whole {
            fetcher.load.distance = 0;
        }
    }

    fn load(&mut self, source: Source) -> &mut Load {
        match source {
            Source::Owner => &mut self.owner,
            Source::Fetcher(place) => &mut self.fetchers[place as usize].load,
        }
    }
}

/// How many bytes of an object of `len` are asked for at once where nodes pass it on.
///
/// Every node in between adds the time of a piece; more of them cost more questions.
pub(crate) fn piece(len: u64) -> u64 {
    (len / PIECES).clamp(LEAST_PIECE, MOST_PIECE).next_multiple_of(LEAST_PIECE)
}

const PIECES: u64 = 256;
const LEAST_PIECE: u64 = 1 << 20;

/// Slow links move some of them in the time after which a node is asked whether it lives.
const MOST_PIECE: u64 = 16 << 20;

/// Objects of which it is known who has them; of those that were first fetched longest ago it is forgotten.
const MOST_OBJECTS: usize = 1024;

/// Nodes of one object; more get it from its owner.
const MOST_FETCHERS: usize = 1 << 16;

#[cfg(all(test, not(any(loom, shuttle, miri))))]
mod simulation;

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;

    const OBJECT: Id = Id { slot: 3, generation: 5 };

    fn node(number: u64) -> Node {
        Node { contact: SocketAddr::from(([10, 0, 0, 1], number as u16)), instance: number }
    }

    fn join(relays: &mut Relays, number: u64, lost: &[u64]) -> Option<u64> {
        relays.join(OBJECT, 64, node(number), number, lost).map(|node| node.instance)
    }

    #[test]
    fn those_who_come_together_are_a_chain() {
        let mut relays = Relays::default();
        assert_eq!(join(&mut relays, 1, &[]), None);
        for number in 2..=16 {
            assert_eq!(join(&mut relays, number, &[]), Some(number - 1));
        }
        // Farther away than a second copy is long.
        assert_eq!(join(&mut relays, 17, &[]), Some(16));
        assert_eq!(join(&mut relays, 18, &[]), None);
        assert_eq!(join(&mut relays, 19, &[]), Some(18));
    }

    #[test]
    fn who_has_it_comes_before_its_owner() {
        let mut relays = Relays::default();
        assert_eq!(join(&mut relays, 1, &[]), None);
        relays.left(OBJECT, 1, 1, true);
        assert_eq!(join(&mut relays, 2, &[]), Some(1));
        relays.left(OBJECT, 2, 2, true);
        assert_eq!(join(&mut relays, 3, &[]), Some(1));
        assert_eq!(join(&mut relays, 4, &[]), Some(2));
        assert_eq!(join(&mut relays, 5, &[]), None);
    }

    #[test]
    fn who_gave_it_up_or_is_gone_serves_nobody() {
        let mut relays = Relays::default();
        join(&mut relays, 1, &[]);
        relays.left(OBJECT, 1, 1, false);
        assert_eq!(join(&mut relays, 2, &[]), None);
        relays.gone(2);
        assert_eq!(join(&mut relays, 3, &[]), None);
        // Of one that has all, the end of a connection says nothing: its node has it.
        relays.left(OBJECT, 3, 3, true);
        relays.gone(3);
        assert_eq!(join(&mut relays, 4, &[]), Some(3));
    }

    #[test]
    fn who_did_not_serve_is_not_named_again() {
        let mut relays = Relays::default();
        join(&mut relays, 1, &[]);
        assert_eq!(join(&mut relays, 2, &[]), Some(1));
        assert_eq!(join(&mut relays, 2, &[1]), None);
        // Nor to others, before it comes back.
        assert_eq!(join(&mut relays, 3, &[]), Some(2));
        assert_eq!(join(&mut relays, 1, &[]), None);
    }

    #[test]
    fn what_ended_is_forgotten() {
        let mut relays = Relays::default();
        join(&mut relays, 1, &[]);
        relays.left(OBJECT, 1, 1, true);
        relays.ended(OBJECT);
        assert_eq!(join(&mut relays, 2, &[]), None);
        assert_eq!(relays.order.len(), 1);
    }

    #[test]
    fn a_connection_that_fetched_much_leaves_nothing() {
        let mut relays = Relays::default();
        for slot in 0..2 * MOST_OBJECTS as u32 {
            let id = Id { slot, ..OBJECT };
            relays.join(id, 64, node(1), 9, &[]);
            relays.left(id, 1, 9, true);
        }
        assert!(relays.connections.is_empty());
        assert_eq!((relays.objects.len(), relays.order.len()), (MOST_OBJECTS, MOST_OBJECTS));
    }

    #[test]
    fn what_ends_while_it_is_fetched_leaves_nothing() {
        let mut relays = Relays::default();
        for slot in 0..2 * MOST_OBJECTS as u32 {
            relays.join(Id { slot, ..OBJECT }, 64, node(1), 9, &[]);
        }
        assert_eq!(relays.connections.values().map(Vec::len).sum::<usize>(), MOST_OBJECTS);
        for slot in 0..2 * MOST_OBJECTS as u32 {
            relays.ended(Id { slot, ..OBJECT });
        }
        assert!(relays.connections.is_empty() && relays.order.is_empty());
    }

    #[test]
    fn a_late_word_of_giving_up_does_not_end_another_attempt() {
        let mut relays = Relays::default();
        join(&mut relays, 1, &[]);
        assert_eq!(relays.join(OBJECT, 64, node(1), 99, &[]), None);
        relays.left(OBJECT, 1, 1, false);
        assert_eq!(join(&mut relays, 2, &[]), Some(1));
        relays.left(OBJECT, 1, 99, false);
        assert_eq!(join(&mut relays, 3, &[2]), None);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Join { node: u64, blames_source: bool },
        Left { node: u64, is_whole: bool },
        Gone(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let node = || 1u64..12;
        prop_oneof![
            4 => (node(), any::<bool>()).prop_map(|(node, blames_source)| Event::Join { node, blames_source }),
            2 => (node(), any::<bool>()).prop_map(|(node, is_whole)| Event::Left { node, is_whole }),
            1 => node().prop_map(Event::Gone),
        ]
    }

    proptest! {
        #[test]
        fn nobody_waits_for_itself(events in prop::collection::vec(event(), 1..80)) {
            let mut relays = Relays::default();
            // Who gets it from whom, of those that do not have all: as the nodes see it.
            let mut sources: HashMap<u64, Option<u64>> = HashMap::new();
            for event in events {
                match event {
                    Event::Join { node, blames_source } => {
                        let lost: Vec<u64> =
                            sources.get(&node).copied().flatten().filter(|_| blames_source).into_iter().collect();
                        let source = join(&mut relays, node, &lost);
                        prop_assert!(source.is_none_or(|source| !lost.contains(&source) && source != node));
                        sources.insert(node, source);
                    }
                    Event::Left { node, is_whole } => {
                        relays.left(OBJECT, node, node, is_whole);
                        sources.remove(&node);
                    }
                    Event::Gone(node) => {
                        relays.gone(node);
                        sources.remove(&node);
                    }
                }
                for node in sources.keys() {
                    let (mut at, mut steps) = (*node, 0);
                    while let Some(Some(source)) = sources.get(&at) {
                        prop_assert!(source != node && steps < 12, "{sources:?}");
                        (at, steps) = (*source, steps + 1);
                    }
                }
                let Some(fetches) = relays.objects.get(&OBJECT) else { continue };
                let loads = fetches.fetchers.iter().map(|fetcher| fetcher.load.successors).sum::<u32>();
                let fetching = fetches.fetchers.iter().filter(|fetcher| matches!(fetcher.state, State::Fetching(_)));
                prop_assert_eq!((loads + fetches.owner.successors) as usize, fetching.count());
            }
        }
    }
}
