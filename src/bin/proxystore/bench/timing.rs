//! Timed samples of things that take turns.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long, or how often, to measure a line.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) budget: Duration,
    /// Samples of each of the two, instead of the budget.
    pub(super) samples: Option<u32>,
    /// Takes ours as the reference leaves the caches: most of our code and data gone.
    pub(super) cold: bool,
}

impl Plan {
    /// Operations of ours that come before each sample and are not timed.
    pub(super) const fn warming(&self) -> usize {
        if self.cold { 0 } else { 64 }
    }
}

/// Samples of ours and of the references: times of one operation in microseconds, each the mean of a batch that is long
/// enough for the clock not to matter.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) ours: Samples,
    /// The one that counts, and what may stand beside it.
    pub(super) references: Vec<Samples>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Samples(Vec<f64>);

/// What runs a number of operations and says how long these took.
pub(super) type Batch<'a, E> = &'a mut dyn FnMut(usize) -> Result<Duration, E>;

impl Pair {
    /// Measures ours and a reference alternately, so that drift of the machine hits both.
    pub(super) fn measure<E>(plan: &Plan, most: usize, ours: Batch<'_, E>, reference: Batch<'_, E>) -> Result<Self, E> {
        Self::measure_beside(plan, (1, most), ours, &mut [reference])
    }

    /// Measures ours and all references in turn.
    ///
    /// No batch of ours is larger than `most`. One of operations that take less than what the clock tells comes after some
    /// that are not timed: the reference has just emptied the caches, which programs that do one after the other do not.
    ///
    /// With `least` above 1 every batch has so many, and comes after as many that are not timed: what answers goes to sleep while
    /// another one is asked, and waking it up would be most of a single operation.
    pub(super) fn measure_beside<E>(
        plan: &Plan,
        (least, most): (usize, usize),
        ours: Batch<'_, E>,
        references: &mut [Batch<'_, E>],
    ) -> Result<Self, E> {
        let n = calibrate(most, ours)?.max(least);
        let counts = references.iter_mut().map(|batch| Ok(calibrate(usize::MAX, batch)?.max(least)));
        let counts = counts.collect::<Result<Vec<_>, E>>()?;
        let mut pair = Self { ours: Samples::default(), references: vec![Samples::default(); references.len()] };
        let begin = Instant::now();
        for taken in 0.. {
            let enough = match plan.samples {
                Some(samples) => taken >= samples,
                None => taken >= LEAST && (begin.elapsed() >= plan.budget || taken >= MOST),
            };
            if enough {
                break;
            }
            if n > 1 && !plan.cold {
                ours(n.min(plan.warming()))?;
            }
            pair.ours.push(ours(n)?, n);
            for ((samples, batch), m) in pair.references.iter_mut().zip(&mut *references).zip(&counts) {
                if least > 1 {
                    batch(least)?;
                }
                samples.push(batch(*m)?, *m);
            }
        }
        Ok(pair)
    }
}

impl Samples {
    fn push(&mut self, took: Duration, n: usize) {
        self.0.push(took.as_nanos() as f64 / 1e3 / n as f64);
    }

    /// The time that a fraction `q` of the samples did not exceed, in microseconds.
    pub(super) fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let rank = (q * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    }
}

/// The batch that takes about [`WORTH`], found by trying, which also warms up.
fn calibrate<E>(most: usize, batch: Batch<'_, E>) -> Result<usize, E> {
    // The first operation meets everything for the first time, and would be taken for a slow one.
    batch(1)?;
    let mut n = 1;
    loop {
        let took = batch(n)?;
        if took >= WORTH || n >= most {
            break;
        }
        let factor = WORTH.as_nanos() as f64 * 1.2 / (took.as_nanos() as f64).max(1.0);
        n = (n as f64 * factor.clamp(1.5, 16.0)).ceil().min(most as f64) as usize;
    }
    // The larger batches met fresh memory.
    batch(n)?;
    Ok(n)
}

/// A thousand times what a clock reading costs.
const WORTH: Duration = Duration::from_micros(25);

/// Samples below which no median is worth printing.
const LEAST: u32 = 5;

/// Samples above which nothing is learnt.
const MOST: u32 = 10_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let samples = Samples((1..=100).rev().map(f64::from).collect());
        assert_eq!((samples.quantile(0.5), samples.quantile(0.99)), (50.0, 99.0));
        let samples = Samples(vec![3.0, 1.0, 2.0]);
        assert_eq!((samples.quantile(0.5), samples.quantile(0.99)), (2.0, 3.0));
        assert!(Samples::default().quantile(0.5).is_nan());
    }

    #[test]
    fn batches_grow_until_the_clock_does_not_matter() {
        let mut fast = |n: usize| Ok::<_, ()>(Duration::from_nanos(10 * n as u64));
        let n = calibrate(usize::MAX, &mut fast).unwrap();
        assert!((2500..=5000).contains(&n), "{n}");
        assert_eq!(calibrate(7, &mut fast).unwrap(), 7);
        let plan = Plan { budget: Duration::from_secs(1), samples: Some(3), cold: true };
        let pair = Pair::measure(&plan, 100, &mut fast, &mut |n| Ok(Duration::from_micros(n as u64 * 50))).unwrap();
        assert_eq!((pair.ours.0.len(), pair.references.len(), pair.references[0].0.len()), (3, 1, 3));
        assert_eq!((pair.ours.0[0], pair.references[0].0[0]), (0.01, 50.0));
    }
}
