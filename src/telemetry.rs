//! What operations cost: bounded histograms per operation, as a snapshot and through the `metrics` and `tracing` facades.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::Result;

/// Operations that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Op {
    /// Objects written: `put`, commits of reserved memory.
    Put,
    /// Several objects written at once.
    PutBatch,
    /// Objects read that were not in the cache.
    Get,
    /// Several objects read at once.
    GetBatch,
    /// Questions whether an object is there.
    Exists,
    /// Removals.
    Evict,
    /// One-time reads, which remove.
    Take,
    /// Proxies resolved, whatever that took: nothing, a cache hit, a transfer.
    Resolve,
}

impl Op {
    /// Every operation, in the order of snapshots.
    pub const ALL: [Self; 8] =
        [Self::Put, Self::PutBatch, Self::Get, Self::GetBatch, Self::Exists, Self::Evict, Self::Take, Self::Resolve];

    /// The name used in metrics and traces.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::PutBatch => "put_batch",
            Self::Get => "get",
            Self::GetBatch => "get_batch",
            Self::Exists => "exists",
            Self::Evict => "evict",
            Self::Take => "take",
            Self::Resolve => "resolve",
        }
    }
}

/// Figures of one operation since the store was opened.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct OpStats {
    /// Which.
    pub op: Op,
    /// Times it ended, in success or failure.
    pub count: u64,
    /// Times it failed.
    pub errors: u64,
    /// Object bytes moved by those that succeeded.
    pub bytes: u64,
    /// Mean duration.
    pub mean: Duration,
    /// Median duration, rounded up by at most 1/8.
    pub p50: Duration,
    /// 90 % took at most this long, rounded up by at most 1/8.
    pub p90: Duration,
    /// 99 % took at most this long, rounded up by at most 1/8.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Counts and times of a store's operations: 5 KiB an operation, however many there were.
pub(crate) struct Telemetry {
    scheme: String,
    ops: [OpCounters; Op::ALL.len()],
}

#[derive(Default)]
struct OpCounters {
    errors: AtomicU64,
    bytes: AtomicU64,
    nanos: AtomicU64,
    max: AtomicU64,
    durations: Histogram,
}

impl Telemetry {
    pub(crate) fn new(scheme: &str) -> Self {
        Self { scheme: scheme.to_owned(), ops: Default::default() }
    }

    /// Counts an operation that began at `start` and moved what `bytes` says of its result.
    ///
    /// # Cost
    /// A clock reading and five atomic additions.
    pub(crate) fn record<T>(&self, op: Op, start: Instant, result: &Result<T>, bytes: impl FnOnce(&T) -> u64) {
        let took = start.elapsed();
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let counters = &self.ops[op as usize];
        let moved = match result {
            Ok(value) => bytes(value),
            Err(_) => {
                counters.errors.fetch_add(1, Ordering::Relaxed);
                0
            }
        };
        counters.bytes.fetch_add(moved, Ordering::Relaxed);
        counters.nanos.fetch_add(nanos, Ordering::Relaxed);
        counters.max.fetch_max(nanos, Ordering::Relaxed);
        counters.durations.add(nanos);
        self.publish(op, took, moved, result.as_ref().err());
    }

    pub(crate) fn snapshot(&self) -> Vec<OpStats> {
        Op::ALL.iter().map(|op| self.ops[*op as usize].snapshot(*op)).collect()
    }

    /// Hands the figures to whatever the application installed behind the facades.
    fn publish(&self, op: Op, took: Duration, bytes: u64, error: Option<&crate::error::Error>) {
        #[cfg(feature = "metrics")]
        {
            let labels = [("op", op.name().to_owned()), ("connector", self.scheme.clone())];
            metrics::histogram!("proxystore_op_seconds", &labels).record(took.as_secs_f64());
            metrics::counter!("proxystore_op_bytes_total", &labels).increment(bytes);
            if error.is_some() {
                metrics::counter!("proxystore_op_errors_total", &labels).increment(1);
            }
        }
        #[cfg(feature = "tracing")]
        match error {
            None => tracing::trace!(target: "proxystore", op = op.name(), connector = %self.scheme, bytes, ?took),
            Some(error) => {
                tracing::debug!(target: "proxystore", op = op.name(), connector = %self.scheme, %error, ?took);
            }
        }
        let _ = (op, took, bytes, error, &self.scheme);
    }
}

impl OpCounters {
    fn snapshot(&self, op: Op) -> OpStats {
        let buckets = self.durations.read();
        let count: u64 = buckets.iter().sum();
        let max = self.max.load(Ordering::Relaxed);
        let quantile = |q: f64| Duration::from_nanos(Histogram::quantile(&buckets, count, q).min(max));
        OpStats {
            op,
            count,
            errors: self.errors.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            mean: Duration::from_nanos(self.nanos.load(Ordering::Relaxed).checked_div(count).unwrap_or(0)),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            max: Duration::from_nanos(max),
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.snapshot()).finish()
    }
}

/// Counts of numbers in buckets whose width is 1/8 of their lower bound: any `u64`, fixed memory.
struct Histogram([AtomicU64; Self::BUCKETS]);

impl Histogram {
    /// Eight buckets for each power of two from 8 up, and one each for 0 to 7.
    const BUCKETS: usize = 62 * 8;

    fn bucket(n: u64) -> usize {
        if n < 8 {
            return n as usize;
        }
        let power = n.ilog2() as usize;
        (power - 2) * 8 + ((n >> (power - 3)) & 7) as usize
    }

    /// The largest number of a bucket.
    fn upper(bucket: usize) -> u64 {
        if bucket < 8 {
            return bucket as u64;
        }
        let (power, step) = (bucket / 8 + 2, (bucket % 8) as u64);
        let width = 1u64 << (power - 3);
        (1u64 << power) + step * width + (width - 1)
    }

    fn add(&self, n: u64) {
        self.0[Self::bucket(n)].fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> [u64; Self::BUCKETS] {
        std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed))
    }

    fn quantile(buckets: &[u64], count: u64, q: f64) -> u64 {
        let rank = (q * count as f64).ceil() as u64;
        let mut seen = 0;
        for (i, n) in buckets.iter().enumerate() {
            seen += n;
            if seen >= rank && *n > 0 {
                return Self::upper(i);
            }
        }
        0
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::{Error, ErrorKind};

    proptest! {
        #[test]
        fn buckets_hold_their_numbers_within_an_eighth(n in any::<u64>()) {
            let bucket = Histogram::bucket(n);
            prop_assert!(bucket < Histogram::BUCKETS);
            let upper = Histogram::upper(bucket);
            prop_assert!(upper >= n && upper - n <= n / 8);
        }
    }

    #[test]
    fn snapshot_counts() {
        assert_eq!(Histogram::bucket(u64::MAX), Histogram::BUCKETS - 1);
        let telemetry = Telemetry::new("memory");
        let start = Instant::now();
        telemetry.record(Op::Put, start, &Ok(()), |()| 10);
        telemetry.record(Op::Put, start, &Err::<(), _>(Error::new(ErrorKind::NoSpace, "put", "")), |()| 10);
        let stats = &telemetry.snapshot()[Op::Put as usize];
        assert_eq!((stats.op, stats.count, stats.errors, stats.bytes), (Op::Put, 2, 1, 10));
        assert!(stats.p50 <= stats.p99 && stats.p99 <= stats.max && stats.max > Duration::ZERO);
        assert_eq!(telemetry.snapshot()[Op::Get as usize].count, 0);
    }
}
