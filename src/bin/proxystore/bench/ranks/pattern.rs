//! `Pattern`: who gets objects from whom.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// Who gets objects from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pattern {
    /// Each process of every second node gets from its counterpart on the node before it
    Pairs,
    /// The first process gets from all those of other nodes, at the same time
    AllToOne,
    /// All others get the same objects of the first process, each new to them
    OneToAll,
}

/// A rank, by where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    /// Number of its node, in the order in which ranks name nodes.
    pub(super) node: usize,
    /// Its number on that node.
    pub(super) local: usize,
}

/// Where ranks are, by the names of their nodes.
pub(super) fn seats(nodes: &[String]) -> Vec<Seat> {
    let mut known: Vec<(&String, usize)> = Vec::new();
    let mut seats = Vec::with_capacity(nodes.len());
    for name in nodes {
        let node = known.iter().position(|(node, _)| *node == name).unwrap_or_else(|| {
            known.push((name, 0));
            known.len() - 1
        });
        seats.push(Seat { node, local: known[node].1 });
        known[node].1 += 1;
    }
    seats
}

impl Pattern {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Pairs => "pairs",
            Self::AllToOne => "all-to-one",
            Self::OneToAll => "one-to-all",
        }
    }

    /// The ranks from which `rank` gets, when `ppn` of each node take part. On one node the upper half of its processes stands for
    /// a second node.
    pub(super) fn sources(self, seats: &[Seat], rank: usize, ppn: usize) -> Vec<usize> {
        let own = seats[rank];
        let nodes = seats.iter().map(|seat| seat.node).max().map_or(0, |last| last + 1);
        let takes_part = |seat: &Seat| seat.local < ppn;
        if !takes_part(&own) {
            return Vec::new();
        }
        let all = || (0..seats.len()).filter(|other| takes_part(&seats[*other]));
        match self {
            Self::Pairs if nodes == 1 => {
                let half = ppn.min(seats.len()) / 2;
                let source = own.local.checked_sub(half).filter(|source| *source < half);
                all().filter(|other| Some(seats[*other].local) == source).collect()
            }
            Self::Pairs if own.node % 2 == 0 => Vec::new(),
            Self::Pairs => {
                let wanted = Seat { node: own.node - 1, local: own.local };
                all().filter(|other| seats[*other] == wanted).collect()
            }
            Self::AllToOne if rank == 0 => {
                all().filter(|other| *other != 0 && (nodes == 1 || seats[*other].node != own.node)).collect()
            }
            Self::OneToAll if rank != 0 => vec![0],
            Self::AllToOne | Self::OneToAll => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(text: &str) -> Vec<Seat> {
        seats(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    fn all(pattern: Pattern, nodes: &str, ppn: usize) -> Vec<Vec<usize>> {
        let seats = places(nodes);
        (0..seats.len()).map(|rank| pattern.sources(&seats, rank, ppn)).collect()
    }

    #[test]
    fn pairs_are_across_nodes() {
        let none = Vec::new;
        assert_eq!(all(Pattern::Pairs, "a a b b", 2), [none(), none(), vec![0], vec![1]]);
        // Ranks dealt out in turn, and a third node that has no partner.
        assert_eq!(all(Pattern::Pairs, "a b c a b c", 2), [none(), vec![0], none(), none(), vec![3], none()]);
        assert_eq!(all(Pattern::Pairs, "a a b b", 1), [none(), none(), vec![0], none()]);
        // A node with fewer ranks.
        assert_eq!(all(Pattern::Pairs, "a b b", 2), [none(), vec![0], none()]);
        assert_eq!(all(Pattern::Pairs, "a a a a a", 5), [none(), none(), vec![0], vec![1], none()]);
        assert_eq!(all(Pattern::Pairs, "a a", 1), [none(), none()]);
    }

    #[test]
    fn one_and_all() {
        let none = Vec::new;
        assert_eq!(all(Pattern::AllToOne, "a a b b c", 2), [vec![2, 3, 4], none(), none(), none(), none()]);
        assert_eq!(all(Pattern::AllToOne, "a a b b c", 1), [vec![2, 4], none(), none(), none(), none()]);
        assert_eq!(all(Pattern::AllToOne, "a a a", 3), [vec![1, 2], none(), none()]);
        assert_eq!(all(Pattern::OneToAll, "a a b b", 2), [none(), vec![0], vec![0], vec![0]]);
        assert_eq!(all(Pattern::OneToAll, "a a b b", 1), [none(), none(), vec![0], none()]);
    }
}
