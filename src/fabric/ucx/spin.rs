//! `Spin`: how long to look for events before sleeping until there is one.

use std::time::{Duration, Instant};

/// To be woken costs some ten microseconds. Where a sleep turns out to have been short, looking on would have been quicker, and it
/// is looked for twice as long the next time; after a long one no longer than is worth it if nothing is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spin {
    limit: Duration,
    most: Duration,
    since: Instant,
}

impl Spin {
    pub(super) fn new(most: Duration) -> Self {
        Self { limit: most.min(FIRST), most, since: Instant::now() }
    }

    /// There was something just now, or somebody begins to wait.
    pub(super) fn begin(&mut self, now: Instant) {
        self.since = now;
    }

    /// Whether to look on, when there was nothing. Other threads, which this one wakes, may want the processor.
    pub(super) fn goes_on(&self, now: Instant, are_others: bool) -> bool {
        let limit = if are_others { self.limit.min(FIRST) } else { self.limit };
        now.saturating_duration_since(self.since) < limit
    }

    /// What woke it is looked at before it sleeps again, and more may follow at once.
    pub(super) fn slept(&mut self, from: Instant, to: Instant) {
        self.limit = match to.saturating_duration_since(from) < self.most {
            true => (self.limit * 2).min(self.most),
            false => self.most.min(FIRST),
        };
        self.since = to;
    }
}

/// About what a sleep costs.
pub(super) const FIRST: Duration = Duration::from_micros(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_sleeps_make_it_look_longer_and_long_ones_no_more() {
        let micros = Duration::from_micros;
        let mut spin = Spin::new(micros(100));
        let mut now = spin.since;
        let mut expect = |sleep: u64, limit: u64| {
            spin.slept(now, now + micros(sleep));
            now += micros(sleep);
            let goes_on = |after: u64, are_others| spin.goes_on(now + micros(after), are_others);
            assert!(goes_on(limit - 1, false) && !goes_on(limit, false), "{spin:?}");
            assert!(goes_on(19, true) && !goes_on(20, true), "{spin:?}");
        };
        for (sleep, limit) in [(50, 40), (50, 80), (99, 100), (1, 100), (100, 20), (30, 40), (5000, 20)] {
            expect(sleep, limit);
        }
    }

    #[test]
    fn nothing_is_looked_for_beyond_the_most() {
        for (most, first) in [(0, 0), (5, 5), (100, 20)] {
            let spin = Spin::new(Duration::from_micros(most));
            assert_eq!(spin.goes_on(spin.since, false), most > 0);
            assert!(!spin.goes_on(spin.since + Duration::from_micros(first), false));
        }
    }
}
