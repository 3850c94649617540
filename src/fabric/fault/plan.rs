//! `Plan`: which fault happens at which pass of which place.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;

use super::Side;
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Peer, Responder};
use crate::sync::lock;

/// Steps, and what became of them so far. Clones share both.
///
/// Its text is `PLACE#N ACT` for each step, separated by `; `, as in `question#3 drop; reply#1 delay 250ms`.
#[derive(Clone, Default)]
pub(crate) struct Plan(Arc<Inner>);

#[derive(Default)]
struct Inner {
    steps: Vec<Step>,
    passes: Mutex<[u64; PLACES.len()]>,
    did: Mutex<Vec<Step>>,
    kept: Mutex<Vec<Responder>>,
    peers: Mutex<Vec<Weak<dyn Peer>>>,
}

/// Something to happen at the `nth` pass of a place, counted from 1 over all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) place: Place,
    pub(crate) nth: u64,
    pub(crate) act: Act,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A connection is about to be made.
    Connect,
    /// A question is about to be sent.
    Request,
    /// It was sent.
    Sent,
    /// It is about to reach the service.
    Question,
    /// An answer is about to be sent.
    Reply,
    /// It was sent.
    Replied,
    /// Its head is there, and landings are about to be chosen.
    Land,
    /// All of it is there, and is about to be given to the caller.
    Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// The message is lost; nobody is told.
    Drop,
    /// It is not taken, and the sender is told.
    Refuse,
    Delay(Duration),
    /// The service gets it twice; the second answer goes nowhere.
    Duplicate,
    /// That bit of the head, modulo its length, is another.
    Flip(usize),
    /// The last part is missing.
    Truncate,
    /// The last byte of the last part is missing.
    Shorten,
    /// All connections are closed.
    Close,
    /// No message passes any more.
    Cut,
    /// No message passes for so long.
    Pause(Duration),
    /// The node at which this happens ends.
    Kill,
}

impl Plan {
    pub(crate) fn new(steps: impl Into<Vec<Step>>) -> Self {
        Self(Arc::new(Inner { steps: steps.into(), ..Inner::default() }))
    }

    /// Counts a pass, and says what is to happen at it.
    pub(super) fn pass(&self, place: Place) -> Vec<Act> {
        let mut passes = lock(&self.0.passes);
        let count = &mut passes[place as usize];
        *count += 1;
        let now: Vec<Step> =
            self.0.steps.iter().filter(|step| (step.place, step.nth) == (place, *count)).copied().collect();
        lock(&self.0.did).extend(&now);
        now.into_iter().map(|step| step.act).collect()
    }

    /// Steps that have happened, in order.
    pub(crate) fn did(&self) -> Vec<Step> {
        lock(&self.0.did).clone()
    }

    /// Holds a responder whose question or answer is lost: dropping it would tell the requester.
    pub(super) fn keep(&self, responder: Responder) {
        lock(&self.0.kept).push(responder);
    }

    pub(super) fn connected(&self, peer: &Arc<dyn Peer>) {
        let mut peers = lock(&self.0.peers);
        peers.retain(|peer| peer.strong_count() > 0);
        peers.push(Arc::downgrade(peer));
    }

    /// Closes all connections that were made under this plan.
    pub(super) fn close(&self) {
        let peers: Vec<_> = lock(&self.0.peers).iter().filter_map(Weak::upgrade).collect();
        peers.iter().for_each(|peer| peer.close());
    }

    /// Lets go of lost messages; their questions end in `Cancelled` where somebody still waits.
    pub(crate) fn release(&self) {
        let kept = std::mem::take(&mut *lock(&self.0.kept));
        drop(kept);
    }

    /// Plans of up to so many steps in the first `passes` of each place, without [`Act::Kill`].
    pub(crate) fn any(steps: usize, passes: u64, longest: Duration) -> impl Strategy<Value = Self> {
        proptest::collection::vec(Step::any(passes, longest), 0..=steps).prop_map(Self::new)
    }

    /// Those of a fabric that checks its messages: heads arrive as they were sent, or not at all.
    pub(crate) fn whole(steps: usize, passes: u64, longest: Duration) -> impl Strategy<Value = Self> {
        let step = Step::any(passes, longest).prop_filter("heads are whole", |step| !matches!(step.act, Act::Flip(_)));
        proptest::collection::vec(step, 0..=steps).prop_map(Self::new)
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: Vec<String> = self.0.steps.iter().map(Step::to_string).collect();
        f.write_str(&steps.join("; "))
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plan({:?}, of which happened {:?})", self.to_string(), self.did())
    }
}

impl FromStr for Plan {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let steps = text.split(';').map(str::trim).filter(|step| !step.is_empty()).map(Step::from_str);
        Ok(Self::new(steps.collect::<Result<Vec<_>>>()?))
    }
}

impl Step {
    fn any(passes: u64, longest: Duration) -> impl Strategy<Value = Self> {
        let span = || (1..longest.as_millis() as u64).prop_map(Duration::from_millis);
        let act = prop_oneof![
            3 => select(&[Act::Drop, Act::Refuse, Act::Duplicate, Act::Truncate, Act::Shorten, Act::Close][..]),
            1 => Just(Act::Cut),
            2 => span().prop_map(Act::Delay),
            1 => span().prop_map(Act::Pause),
            2 => (0usize..4096).prop_map(Act::Flip),
        ];
        let step = (select(&PLACES[..]), 1..=passes, act);
        step.prop_map(|(place, nth, act)| Self { place, nth, act })
            .prop_filter("the act has a meaning there", |step| step.act.fits(step.place))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{} {}", self.place.name(), self.nth, self.act.name())?;
        match self.act {
            Act::Delay(span) | Act::Pause(span) => write!(f, " {}ms", span.as_millis()),
            Act::Flip(bit) => write!(f, " {bit}"),
            _ => Ok(()),
        }
    }
}

impl FromStr for Step {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let (place, rest) = text.split_once('#')?;
            let place = *PLACES.iter().find(|known| known.name() == place)?;
            let mut words = rest.split_whitespace();
            let nth = words.next()?.parse().ok()?;
            let name = words.next()?;
            let number = |word: &str| word.trim_end_matches("ms").parse().ok();
            let act = match (name, words.next()) {
                ("delay", Some(span)) => Act::Delay(Duration::from_millis(number(span)?)),
                ("pause", Some(span)) => Act::Pause(Duration::from_millis(number(span)?)),
                ("flip", Some(bit)) => Act::Flip(bit.parse().ok()?),
                (name, None) => *PLAIN.iter().find(|known| known.name() == name)?,
                _ => return None,
            };
            (words.next().is_none() && act.fits(place)).then_some(Self { place, nth, act })
        };
        parse().ok_or_else(|| Error::new(ErrorKind::Invalid, "open", format!("{text:?} is no step of a plan")))
    }
}

impl Place {
    pub(super) fn side(self) -> Side {
        match self {
            Self::Question | Self::Reply | Self::Replied => Side::Owner,
            _ => Side::Requester,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Request => "request",
            Self::Sent => "sent",
            Self::Question => "question",
            Self::Reply => "reply",
            Self::Replied => "replied",
            Self::Land => "land",
            Self::Answer => "answer",
        }
    }
}

impl Act {
    fn fits(self, place: Place) -> bool {
        match self {
            Self::Drop => matches!(place, Place::Connect | Place::Question | Place::Reply),
            Self::Refuse => matches!(place, Place::Question | Place::Land),
            Self::Duplicate => place == Place::Question,
            Self::Delay(_) | Self::Flip(_) => matches!(place, Place::Question | Place::Reply),
            Self::Truncate | Self::Shorten => place == Place::Reply,
            Self::Close | Self::Cut | Self::Pause(_) | Self::Kill => true,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Refuse => "refuse",
            Self::Delay(_) => "delay",
            Self::Duplicate => "duplicate",
            Self::Flip(_) => "flip",
            Self::Truncate => "truncate",
            Self::Shorten => "shorten",
            Self::Close => "close",
            Self::Cut => "cut",
            Self::Pause(_) => "pause",
            Self::Kill => "kill",
        }
    }
}

/// All places, in the order of their numbers.
const PLACES: [Place; 8] = [
    Place::Connect,
    Place::Request,
    Place::Sent,
    Place::Question,
    Place::Reply,
    Place::Replied,
    Place::Land,
    Place::Answer,
];

/// Acts that are a word.
const PLAIN: [Act; 8] =
    [Act::Drop, Act::Refuse, Act::Duplicate, Act::Truncate, Act::Shorten, Act::Close, Act::Cut, Act::Kill];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 256 }, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_its_text(plan in Plan::any(8, 100, Duration::from_secs(9))) {
        let again: Plan = plan.to_string().parse().unwrap();
        prop_assert_eq!(&again.0.steps, &plan.0.steps);
    }
}

#[test]
fn other_text_is_refused() {
    for text in [
        "question",
        "question#x drop",
        "question#1",
        "nowhere#1 drop",
        "question#1 fly",
        "question#1 flip",
        "question#1 drop 3",
        "land#1 flip 3",
        "request#1 drop",
        "question#1 flip 3 4",
        "question#1 delay soon",
    ] {
        assert_eq!(text.parse::<Plan>().unwrap_err().kind(), ErrorKind::Invalid, "{text}");
    }
    assert_eq!("question#1 kill; reply#2 pause 30ms;".parse::<Plan>().unwrap().0.steps.len(), 2);
}
