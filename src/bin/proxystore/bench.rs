//! `proxystore bench`: latency and bandwidth of connectors, each beside a reference measured in the same run.

use std::io::{IsTerminal, stderr};
use std::time::Duration;

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use proxystore::launch::Job;
use proxystore::{connectors, environment};

use crate::failure::Failure;

mod buffers;
mod link;
mod operations;
mod partner;
mod peer;
mod place;
mod ranks;
mod references;
mod report;
mod sizes;
mod socket;
mod timing;

use link::How;
use partner::Partner;
pub(crate) use peer::BenchPeer;
use place::Place;
use ranks::Ranks;
use report::Report;
use sizes::Sizes;
use timing::Plan;

/// Measure latency and bandwidth of connectors beside memcpy or a pipe
///
/// A second process is the peer (for memory://, which does not leave its process, a second thread). Each figure stands
/// beside its reference, measured alternately with it, so that whatever slows the machine down slows both.
#[derive(Args)]
#[command(after_help = "\
Operations:
  put      this process stores an object through the connector, into memory used before; reference: memcpy into
           buffers used in turn, for shm after the same pause in which the service takes evicted memory back
  reserve  this process reserves memory for an object and commits it, writing no byte where the memory holds values
           already; reference: the memcpy that this saves
  get      the peer gets it from the connector and drops it, touching no byte; reference: memcpy, in the peer; for
           connectors between nodes, where the peer is a process of another node, a bare socket loop; for ucx a bare loop
           on UCX's own interface, by whichever of its ways is the fastest, and the socket loop beside it; for margo a bare
           loop on Margo's: RPCs that answer with the bytes below 64 KiB, bulk pulls alone from there on
  exists   this process asks for an object that is there; reference: memcpy
  resolve  as get, through a proxy made of token bytes, not cached
  batch    the peer gets up to 1000 of them in one call, counted one by one; reference: a get of each, for ucx a bare UCP
           loop whose owner gathers them in one message
  window   the peer has up to 64 gets on their way at a time, counted one by one; reference: a get of each, for connectors
           between nodes the bare loop with as many questions on their way
  rtt      put and send the token, the peer resolves it, puts a reply, sends that token, resolve;
           reference: the payload itself through a bare pipe, there and back

Operations shorter than 25 us are timed in batches, each after 64 that are not: the reference empties the caches, and what
comes first after it takes some microseconds at any size. --cold times that.

Output:
  MB/s is 10^6 bytes a second at the median; rtt counts both directions, and operations that move no byte count as if
  they did. The ratio is ours / reference: of the
  median time below 64 KiB (lower is better), of MB/s from there on (higher is better). With --json, one object a
  line: connector, op, size, p50_us, p99_us, mb_s, ref, ref_p50_us, ref_mb_s, ratio, ratio_of; where there is a second
  reference, beside, beside_p50_us, beside_mb_s, beside_ratio.

Across nodes:
  Started by srun or mpirun as more than one process, it measures between these, with nothing else to start: pairs across
  nodes, all to one, one to all (--pattern), for some windows and numbers of processes a node. Of the options above
  --connector (one, tcp unless given), --sizes, --time-budget and --json count then. slurm/benchmark.sh is such a job,
  benches/README.md says how to read it.

Examples:
  proxystore bench
  srun --nodes=2 --ntasks-per-node=4 proxystore bench --out results
  proxystore bench --connector shm --op put,reserve,get,exists --sizes 1KiB..256MiB
  proxystore bench --connector memory --sizes 8,4096,1MiB --json")]
pub(crate) struct Bench {
    /// Scheme or store URL; may be given several times [default: every connector of this build]
    #[arg(long, value_name = "SCHEME|URL")]
    connector: Vec<String>,
    /// What to measure: one, or several with commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "all")]
    op: Vec<Op>,
    /// Object sizes: a list, or ranges in powers of 4 (8..1MiB) or of another factor (8..1MiB*2)
    #[arg(long, default_value = "8..64MiB*8")]
    sizes: Sizes,
    /// Take this many samples a line, however long that takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with = "time_budget")]
    iterations: Option<u32>,
    /// Measure each line for about this long, with at least 5 samples
    #[arg(long, value_name = "DURATION", default_value = "300ms", value_parser = parse_budget)]
    time_budget: Duration,
    /// Time what comes first after the reference, which empties the caches, and not operations that follow others
    #[arg(long)]
    cold: bool,
    /// How many objects are in a batch, or on their way at a time [default: 1000 in a batch, 64 in a window]
    #[arg(long, value_name = "N", value_parser = parse_together)]
    together: Option<usize>,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ranks: Ranks,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Op {
    Put,
    Reserve,
    Get,
    Exists,
    Resolve,
    Batch,
    Window,
    Rtt,
    All,
}

impl Bench {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let job = Job::discover()?;
        if self.ranks.are_asked_for(&job) {
            return self.ranks.run(&job, &self.connector, &self.sizes, self.time_budget, self.json);
        }
        let plan = Plan { budget: self.time_budget, samples: self.iterations, cold: self.cold };
        let connectors = match self.connector.is_empty() {
            true => connectors::registrations().iter().map(|row| row.scheme.to_owned()).collect(),
            false => self.connector.clone(),
        };
        let ops = [Op::Put, Op::Reserve, Op::Get, Op::Exists, Op::Resolve, Op::Batch, Op::Window, Op::Rtt];
        let ops: Vec<Op> = ops.into_iter().filter(|op| self.op.contains(op) || self.op.contains(&Op::All)).collect();
        let report = Report::new(self.json);
        let progress = progress(connectors.len() * ops.len() * self.sizes.all().len());
        for connector in &connectors {
            let place = match Place::open(connector) {
                // Of all, those that this machine can have.
                Err(failure) if self.connector.is_empty() && failure.is_unavailable() => {
                    progress.suspend(|| failure.leave_out(connector));
                    progress.inc((ops.len() * self.sizes.all().len()) as u64);
                    continue;
                }
                place => place?,
            };
            let mut partner = Partner::start(&place)?;
            progress.suspend(|| report.connector(&place, &partner, &plan))?;
            for op in &ops {
                let references = op.references(&place);
                progress.suspend(|| report.table(place.scheme(), &op.meaning(references), references))?;
                for size in self.sizes.all() {
                    progress.set_message(format!("{connector} {} {size}", op.name()));
                    let pair = op.measure(&place, &mut partner, *size, &plan, self.together)?;
                    progress
                        .suspend(|| report.line(connector, op.name(), references, *size, op.moves(*size), &pair))?;
                    progress.inc(1);
                }
            }
        }
        progress.finish_and_clear();
        Ok(())
    }
}

impl Op {
    const fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Reserve => "reserve",
            Self::Get => "get",
            Self::Exists => "exists",
            Self::Resolve => "resolve",
            Self::Batch => "batch",
            Self::Window => "window",
            Self::Rtt => "rtt",
            Self::All => "all",
        }
    }

    fn meaning(self, references: &[&str]) -> String {
        let what = match self {
            Self::Put => "put: this process stores an object in memory used before",
            Self::Reserve => "reserve: this process reserves and commits, writing no byte",
            Self::Get => "get: the peer gets an object and drops it, touching no byte",
            Self::Exists => "exists: this process asks for an object that is there",
            Self::Resolve => "resolve: the peer resolves token bytes, touching no byte",
            Self::Batch => "batch: the peer gets many objects in one call, a time for each",
            Self::Window => "window: the peer has many gets on their way at a time, a time for each",
            Self::Rtt => "rtt: object there, object back, by tokens",
            Self::All => "",
        };
        let beside = references.iter().map(|name| match *name {
            "ucp" => "a bare UCP loop",
            "margo" => "a bare Margo loop",
            "socket" => "a bare socket loop",
            "get" => "a get of each",
            "pipe" => "the payload itself through a pipe",
            _ => "memcpy",
        });
        format!("{what}; beside {}", beside.collect::<Vec<_>>().join(" and "))
    }

    /// What it is measured beside: what counts first.
    fn references(self, place: &Place) -> &'static [&'static str] {
        match self {
            Self::Get | Self::Resolve => references::names(place, How::Get),
            Self::Batch => references::names(place, How::Batch),
            Self::Window => references::names(place, How::Window),
            Self::Rtt => &["pipe"],
            _ => &["memcpy"],
        }
    }

    /// Payload bytes that one operation moves.
    const fn moves(self, size: usize) -> usize {
        match self {
            Self::Rtt => 2 * size,
            _ => size,
        }
    }

    fn measure(
        self,
        place: &Place,
        partner: &mut Partner,
        size: usize,
        plan: &Plan,
        together: Option<usize>,
    ) -> Result<timing::Pair, Failure> {
        match self {
            Self::Put | Self::All => operations::put(place, partner, size, plan),
            Self::Reserve => operations::reserve(place, partner, size, plan),
            Self::Exists => operations::exists(place, partner, size, plan),
            Self::Get => operations::get(place, partner, size, plan, How::Get, None),
            Self::Resolve => operations::get(place, partner, size, plan, How::Resolve, None),
            Self::Batch => operations::get(place, partner, size, plan, How::Batch, together),
            Self::Window => operations::get(place, partner, size, plan, How::Window, together),
            Self::Rtt => operations::rtt(place, partner, size, plan),
        }
    }
}

/// How many lines are done, on standard error if that is a terminal.
fn progress(lines: usize) -> ProgressBar {
    if !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(lines as u64).with_style(style)
}

fn parse_together(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=1000).contains(n)).ok_or_else(|| "expected a number from 1 to 1000".to_owned())
}

fn parse_budget(text: &str) -> Result<Duration, String> {
    match environment::parse_duration(text) {
        Some(budget) if !budget.is_zero() && budget <= Duration::from_secs(3600) => Ok(budget),
        _ => Err("expected a duration of up to an hour, as 300ms or 2s".to_owned()),
    }
}
