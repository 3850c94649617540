//! `Report`: columns as those of the OSU benchmarks, or JSON lines.

use std::io::{Write, stdout};

use serde::Serialize;

use super::partner::Partner;
use super::place::Place;
use super::timing::{Pair, Plan};
use crate::VERSION;
use crate::failure::Failure;

pub(super) struct Report {
    json: bool,
}

/// One line of the JSON output; the order of the fields is part of it.
#[derive(Serialize)]
struct Line<'a> {
    connector: &'a str,
    op: &'static str,
    size: usize,
    p50_us: f64,
    p99_us: f64,
    mb_s: f64,
    #[serde(rename = "ref")]
    reference: &'static str,
    ref_p50_us: f64,
    ref_mb_s: f64,
    ratio: f64,
    ratio_of: &'static str,
    #[serde(flatten)]
    beside: Option<Beside>,
}

/// A second reference.
#[derive(Serialize)]
struct Beside {
    beside: &'static str,
    beside_p50_us: f64,
    beside_mb_s: f64,
    beside_ratio: f64,
}

impl Report {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Says what is measured where.
    pub(super) fn connector(&self, place: &Place, partner: &Partner, plan: &Plan) -> Result<(), Failure> {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let length = match plan.samples {
            Some(samples) => format!("{samples} samples a line"),
            None => format!("{:?} a line", plan.budget),
        };
        self.text(&format!(
            "# proxystore {VERSION} bench   connector {}   {}\n# peer: {}   cores: {cores}   {length}\n\
             # us: one operation, the mean of a batch where one takes less than 25 us   MB/s: 10^6 bytes a second at p50\n\
             # ratio: ours / reference, of p50 below 64 KiB (lower is better), of MB/s from there on (higher is better)\n",
            place.scheme(),
            place.url(),
            partner.describe(),
        ))
    }

    /// Begins the lines of an operation.
    pub(super) fn table(&self, connector: &str, meaning: &str, references: &[&str]) -> Result<(), Failure> {
        let beside =
            references.get(1).map_or(String::new(), |name| format!(" {:>12} {:>9}", format!("{name} (us)"), "ratio"));
        self.text(&format!(
            "#\n# {connector} {meaning}\n# {:>10} {:>12} {:>12} {:>11} {:>12} {:>11} {:>9}{beside}\n",
            "Size", "p50 (us)", "p99 (us)", "MB/s", "ref p50 (us)", "ref MB/s", "ratio"
        ))
    }

    pub(super) fn line(
        &self,
        connector: &str,
        op: &'static str,
        references: &[&'static str],
        size: usize,
        moves: usize,
        pair: &Pair,
    ) -> Result<(), Failure> {
        let (p50, p99) = (pair.ours.quantile(0.5), pair.ours.quantile(0.99));
        // Bytes a microsecond are 10^6 bytes a second.
        let mb_s = moves as f64 / p50;
        let ratio_of = if size < BANDWIDTH_FROM { "latency" } else { "bandwidth" };
        let figures = references.iter().copied().zip(&pair.references).map(|(name, samples)| {
            let p50_ref = samples.quantile(0.5);
            let ratio = if size < BANDWIDTH_FROM { p50 / p50_ref } else { p50_ref / p50 };
            (name, p50_ref, moves as f64 / p50_ref, ratio)
        });
        let figures: Vec<_> = figures.collect();
        let Some(&(reference, ref_p50, ref_mb_s, ratio)) = figures.first() else {
            return Err(Failure::new(format_args!("{op} was measured beside nothing")));
        };
        let second = figures.get(1);
        if !self.json {
            let beside =
                second.map_or(String::new(), |(_, p50, _, ratio)| format!(" {p50:>12.3} {:>9}", short(*ratio)));
            return self.text(&format!(
                "{size:>12} {p50:>12.3} {p99:>12.3} {mb_s:>11.1} {ref_p50:>12.3} {ref_mb_s:>11.1} {:>9}{beside}\n",
                short(ratio)
            ));
        }
        let beside = second.map(|&(name, p50, mb_s, ratio)| Beside {
            beside: name,
            beside_p50_us: round(p50, 1e4),
            beside_mb_s: round(mb_s, 1e2),
            beside_ratio: round(ratio, 1e4),
        });
        let line = Line {
            connector,
            op,
            size,
            p50_us: round(p50, 1e4),
            p99_us: round(p99, 1e4),
            mb_s: round(mb_s, 1e2),
            reference,
            ref_p50_us: round(ref_p50, 1e4),
            ref_mb_s: round(ref_mb_s, 1e2),
            ratio: round(ratio, 1e4),
            ratio_of,
            beside,
        };
        let line = serde_json::to_string(&line).map_err(Failure::new)?;
        writeln!(stdout(), "{line}").map_err(Failure::stdout)
    }

    /// Prints for people.
    fn text(&self, text: &str) -> Result<(), Failure> {
        match self.json {
            true => Ok(()),
            false => stdout().write_all(text.as_bytes()).map_err(Failure::stdout),
        }
    }
}

/// Three digits that mean something.
fn short(ratio: f64) -> String {
    match ratio {
        r if r < 10.0 => format!("{r:.2}"),
        r if r < 100.0 => format!("{r:.1}"),
        r => format!("{r:.0}"),
    }
}

fn round(x: f64, steps: f64) -> f64 {
    (x * steps).round() / steps
}

/// From this size on, the bandwidth is what counts.
const BANDWIDTH_FROM: usize = 64 << 10;
