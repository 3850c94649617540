//! The benchmark across the ranks of a job: every rank runs it, rank 0 prints.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use proxystore::launch::Job;
use proxystore::{Connector, ConnectorConfig, Key, Pending, Proxy, Region, Store, StoreConfig, Token, connectors};
use serde::{Deserialize, Serialize};

use self::chart::chart;
use self::group::Group;
use self::pattern::{Pattern, Seat, seats};
use super::buffers::Buffers;
use super::sizes::Sizes;
use super::socket::{Bare, Socket};
use crate::VERSION;
use crate::failure::Failure;

mod chart;
mod group;
mod pattern;

/// What is measured across ranks, beside sizes and time.
#[derive(Args)]
pub(super) struct Ranks {
    /// Under srun or mpirun: who gets from whom [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pattern: Vec<Pattern>,
    /// Under srun or mpirun: objects on their way at a time
    #[arg(long, value_delimiter = ',', default_value = "1,16", value_parser = clap::value_parser!(u32).range(1..=1024))]
    window: Vec<u32>,
    /// Under srun or mpirun: processes of each node that take part [default: one, and all]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    ppn: Vec<u32>,
    /// Under srun or mpirun: also write ranks.jsonl, and a chart of each pattern, to this directory
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

impl Ranks {
    /// Whether this process is one of several, or is asked for what takes several.
    pub(super) fn are_asked_for(&self, job: &Job) -> bool {
        job.size.is_some_and(|size| size > 1) || !self.pattern.is_empty() || self.out.is_some()
    }

    pub(super) fn run(
        &self,
        job: &Job,
        connectors: &[String],
        sizes: &Sizes,
        budget: Duration,
        json: bool,
    ) -> Result<(), Failure> {
        let connector = match connectors {
            [] => "tcp",
            [one] => one,
            _ => return Err(Failure::new("one --connector at a time across ranks")),
        };
        let mut bench = Bench::join(job, connector, budget)?;
        let mut report = Report::new(json, self.out.clone(), bench.group.rank() == 0);
        let most = bench.seats.iter().map(|seat| seat.local + 1).max().unwrap_or(1);
        let ppn: Vec<usize> = match self.ppn.is_empty() {
            true if most > 1 => vec![1, most],
            true => vec![1],
            false => self.ppn.iter().map(|ppn| *ppn as usize).collect(),
        };
        let patterns = if self.pattern.is_empty() { Pattern::value_variants() } else { &self.pattern };
        report.begin(&bench)?;
        for (pattern, ppn) in patterns.iter().flat_map(|pattern| ppn.iter().map(move |ppn| (*pattern, *ppn))) {
            if (0..bench.seats.len()).all(|rank| pattern.sources(&bench.seats, rank, ppn).is_empty()) {
                report.note(&format!("# {}, {ppn} a node: nobody to get from\n", pattern.name()))?;
                continue;
            }
            for window in &self.window {
                report.table(pattern, ppn, *window as usize)?;
                for size in sizes.all() {
                    let case = Case { pattern, ppn, window: *window as usize, size: *size };
                    if size.saturating_mul(case.window) > IN_STORE {
                        continue;
                    }
                    let figures = bench.measure(&case)?;
                    report.line(connector, &bench, &case, &figures)?;
                }
            }
        }
        report.end(patterns)
    }
}

/// One line of the table.
struct Case {
    pattern: Pattern,
    ppn: usize,
    window: usize,
    size: usize,
}

/// What all ranks together found.
struct Figures {
    ours: Figure,
    /// Bare sockets between the same ranks, in the same pattern, one after ours.
    socket: Figure,
}

struct Figure {
    p50_us: f64,
    p99_us: f64,
    mb_s: f64,
}

/// What one rank found: times of one object in microseconds, and bytes that came in the time they all took.
#[derive(Default, Serialize, Deserialize)]
struct Found {
    samples: Vec<f64>,
    bytes: u64,
    took_us: f64,
}

/// A rank's bare sockets: to those that it gets from, and memory for what comes.
struct Sockets {
    to: Vec<Bare>,
    memory: Vec<u8>,
}

/// This rank, the others, and where their objects are.
struct Bench {
    group: Group,
    seats: Vec<Seat>,
    nodes: usize,
    /// Every get moves the bytes.
    direct: Store,
    /// A node gets the bytes once.
    shared: Store,
    budget: Duration,
}

impl Bench {
    fn join(job: &Job, connector: &str, budget: Duration) -> Result<Self, Failure> {
        let mut group = Group::join(job)?;
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let all = group.share(&(host, std::process::id()))?;
        let (hosts, numbers): (Vec<String>, Vec<u32>) = all.into_iter().unzip();
        let seats = seats(&hosts);
        let nodes = seats.iter().map(|seat| seat.node + 1).max().unwrap_or(1);
        // Of this launch alone.
        let name = format!("bench-{:08x}-{}", crc32fast::hash(job.id.as_bytes()), numbers[0]);
        let (direct, shared) = (store(connector, &name, false)?, store(connector, &name, true)?);
        Ok(Self { group, seats, nodes, direct, shared, budget })
    }

    fn measure(&mut self, case: &Case) -> Result<Figures, Failure> {
        let (ours, socket) = match case.pattern {
            Pattern::Pairs | Pattern::AllToOne => self.again_and_again(case)?,
            Pattern::OneToAll => self.anew(case)?,
        };
        Ok(Figures { ours: self.figure(&ours)?, socket: self.figure(&socket)? })
    }

    /// Collective: what ranks found, together.
    fn figure(&mut self, found: &Found) -> Result<Figure, Failure> {
        let all = self.group.share(found)?;
        let mut samples: Vec<f64> = all.iter().flat_map(|found| &found.samples).copied().collect();
        samples.sort_unstable_by(f64::total_cmp);
        let quantile = |q: f64| samples.get((q * (samples.len() - 1) as f64).round() as usize).copied();
        let took = all.iter().map(|found| found.took_us).fold(0.0, f64::max);
        let bytes: u64 = all.iter().map(|found| found.bytes).sum();
        match (samples.is_empty(), quantile(0.5), quantile(0.99)) {
            // Bytes a microsecond are 10^6 bytes a second.
            (false, Some(p50_us), Some(p99_us)) => Ok(Figure { p50_us, p99_us, mb_s: bytes as f64 / took }),
            _ => Err(Failure::new("nobody measured anything")),
        }
    }

    /// Collective: bare sockets from each rank to those that it gets from.
    fn sockets(&mut self, case: &Case, buffers: &Buffers) -> Result<Sockets, Failure> {
        let own = self.group.rank();
        let askers = self.askers(case, own);
        let listening = if askers > 0 { Some(Socket::listen(&buffers.payload, askers)?) } else { None };
        let addresses = self.group.share(&listening.map(|socket| socket.address()))?;
        let sources = self.sources(case);
        let to = sources.iter().filter_map(|rank| addresses[*rank]).map(|address| {
            Bare::connect(address).map_err(|error| Failure::io(format_args!("a bare socket to {address}"), error))
        });
        Ok(Sockets { to: to.collect::<Result<_, _>>()?, memory: vec![0; case.size] })
    }

    /// The same objects again and again, each time over the network.
    fn again_and_again(&mut self, case: &Case) -> Result<(Found, Found), Failure> {
        let buffers = Buffers::new(case.size);
        let sources = self.sources(case);
        let is_source = self.askers(case, self.group.rank()) > 0;
        let own = if is_source { put(&self.direct, &buffers, case.window)? } else { Vec::new() };
        let all = self.group.share(&tokens(&own)?)?;
        let keys = keys(&sources, &all)?;
        let mut sockets = self.sockets(case, &buffers)?;
        let connector = Arc::clone(self.direct.connector());
        for first in keys.chunks(case.window).filter_map(|keys| keys.first()) {
            verify(&connector.get(first).wait()?, &buffers)?;
        }
        let ours = self.rounds(case, keys.len(), || fetch(&*connector, &keys))?;
        let socket = self.rounds(case, keys.len(), || sockets.fetch(case.window))?;
        evict(&self.direct, &own)?;
        Ok((ours, socket))
    }

    /// Collective: `fetch` of `count` objects, for about the time that there is, by all at the same time.
    fn rounds(
        &mut self,
        case: &Case,
        count: usize,
        mut fetch: impl FnMut() -> Result<Duration, Failure>,
    ) -> Result<Found, Failure> {
        let mut found = Found::default();
        let trial = match count {
            0 => 0.0,
            _ => {
                fetch()?;
                micros(fetch()?)
            }
        };
        // All take as many samples, or the last would have the network to themselves.
        let slowest = self.group.share(&trial)?.into_iter().fold(1.0, f64::max);
        let rounds = (micros(self.budget) / slowest).clamp(LEAST, MOST) as usize;
        self.group.share(&())?;
        if count > 0 {
            let begin = Instant::now();
            for _ in 0..rounds {
                found.samples.push(micros(fetch()?) / count as f64);
            }
            found.took_us = micros(begin.elapsed());
            found.bytes = (rounds * count * case.size) as u64;
            found.samples.sort_unstable_by(f64::total_cmp);
            // As many as tell the quantiles.
            let step = found.samples.len().div_ceil(KEPT);
            found.samples = found.samples.iter().skip(step / 2).step_by(step).copied().collect();
        }
        self.group.share(&())?;
        Ok(found)
    }

    /// New objects each time, which no node has yet. A sample is the slowest rank's time, found by all alike.
    fn anew(&mut self, case: &Case) -> Result<(Found, Found), Failure> {
        let buffers = Buffers::new(case.size);
        let sources = self.sources(case);
        let is_source = self.askers(case, self.group.rank()) > 0;
        let mut sockets = self.sockets(case, &buffers)?;
        let (mut ours, mut socket) = (Found::default(), Found::default());
        let (mut rounds, mut taken) = (2, 0);
        while taken < rounds {
            let own = if is_source { put(&self.shared, &buffers, case.window)? } else { Vec::new() };
            let all = self.group.share(&tokens(&own)?)?;
            let keys = keys(&sources, &all)?;
            let connector = Arc::clone(self.shared.connector());
            let took = if keys.is_empty() { 0.0 } else { micros(fetch(&*connector, &keys)?) };
            let times = self.group.share(&took)?;
            let took = if keys.is_empty() { 0.0 } else { micros(sockets.fetch(case.window)?) };
            let bare = self.group.share(&took)?;
            if taken == 0 {
                if let Some(first) = keys.first() {
                    verify(&connector.get(first).wait()?, &buffers)?;
                }
                self.group.share(&())?;
            } else {
                let slowest = times.iter().copied().fold(1.0, f64::max);
                rounds = (micros(self.budget) / slowest).clamp(LEAST, MOST_ANEW) as usize + 1;
                if is_source {
                    ours.add(case, &times);
                    socket.add(case, &bare);
                }
            }
            rounds = self.group.share(&rounds)?[0];
            evict(&self.shared, &own)?;
            taken += 1;
        }
        Ok((ours, socket))
    }

    fn sources(&self, case: &Case) -> Vec<usize> {
        case.pattern.sources(&self.seats, self.group.rank(), case.ppn)
    }

    /// How many get from a rank.
    fn askers(&self, case: &Case, own: usize) -> usize {
        (0..self.seats.len()).filter(|rank| case.pattern.sources(&self.seats, *rank, case.ppn).contains(&own)).count()
    }
}

impl Found {
    /// The slowest of all who got something, and what they got.
    fn add(&mut self, case: &Case, times: &[f64]) {
        let slowest = times.iter().copied().fold(0.0, f64::max);
        let receivers = times.iter().filter(|time| **time > 0.0).count();
        self.samples.push(slowest / case.window as f64);
        self.took_us += slowest;
        self.bytes += (receivers * case.window * case.size) as u64;
    }
}

impl Sockets {
    fn fetch(&mut self, window: usize) -> Result<Duration, Failure> {
        Bare::fetch_all(&mut self.to, window, &mut self.memory).map_err(|error| Failure::io("a bare socket", error))
    }
}

/// A store that the ranks of this launch alone use.
fn store(connector: &str, name: &str, shared: bool) -> Result<Store, Failure> {
    let mut config: StoreConfig = match connector.contains(':') {
        true => connector.parse()?,
        false => StoreConfig::new(ConnectorConfig::new(connector, "")),
    };
    let scheme = config.connector.scheme().to_owned();
    let row = connectors::registrations().into_iter().find(|row| row.scheme == scheme);
    let crosses_nodes = row.is_some_and(|row| row.options.contains(&"replicas"));
    match (scheme.as_str(), config.connector.location()) {
        ("memory", _) => return Err(Failure::new("memory:// is of one process")),
        ("file", "") => return Err(Failure::new("file:// needs a directory that all nodes share: file:///scratch/me")),
        (_, "") => {
            let fresh = ConnectorConfig::new(&scheme, name);
            config.connector =
                config.connector.options().fold(fresh, |config, (name, value)| config.with_option(name, value));
        }
        _ => {}
    }
    if crosses_nodes && !shared {
        config.connector = config.connector.with_option("replicas", "off");
    }
    config.cache_bytes = Some(0);
    config.deadline = config.deadline.or(Some(Duration::from_secs(60)));
    Ok(Store::from_config(&config)?)
}

fn put(store: &Store, buffers: &Buffers, count: usize) -> Result<Vec<Proxy<[u8]>>, Failure> {
    (0..count).map(|_| Ok(store.proxy(&buffers.payload[..]).wait()?)).collect()
}

fn evict(store: &Store, proxies: &[Proxy<[u8]>]) -> Result<(), Failure> {
    let keys: Vec<Key> = proxies.iter().filter_map(Proxy::key).copied().collect();
    Ok(store.evict_batch(&keys).wait()?)
}

fn tokens(proxies: &[Proxy<[u8]>]) -> Result<Vec<Vec<u8>>, Failure> {
    proxies.iter().map(|proxy| Ok(proxy.to_token_bytes()?)).collect()
}

/// The keys of all objects of some ranks.
fn keys(sources: &[usize], all: &[Vec<Vec<u8>>]) -> Result<Vec<Key>, Failure> {
    let tokens = sources.iter().flat_map(|rank| &all[*rank]);
    tokens
        .map(|token| Token::from_bytes(token)?.key().copied().ok_or_else(|| Failure::new("a token of a factory")))
        .collect()
}

/// Gets all, all on their way at a time.
fn fetch(connector: &dyn Connector, keys: &[Key]) -> Result<Duration, Failure> {
    let begin = Instant::now();
    let mut flying: VecDeque<Pending<Option<Region>>> = keys.iter().map(|key| connector.get(key)).collect();
    while let Some(pending) = flying.pop_front() {
        if pending.wait()?.is_none() {
            return Err(Failure::not_found("an object is gone"));
        }
    }
    Ok(begin.elapsed())
}

fn verify(got: &Option<Region>, buffers: &Buffers) -> Result<(), Failure> {
    match got {
        Some(bytes) if crc32fast::hash(bytes) == buffers.checksum() => Ok(()),
        Some(_) => Err(Failure::new(format_args!("an object of {} bytes is not what was put", buffers.payload.len()))),
        None => Err(Failure::not_found("an object is gone")),
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// What rank 0 prints and writes; of the others nothing.
struct Report {
    json: bool,
    out: Option<PathBuf>,
    speaks: bool,
    lines: Vec<Line>,
}

/// One line of the JSON output; the order of the fields is part of it.
#[derive(Clone, Serialize)]
struct Line {
    connector: String,
    pattern: &'static str,
    nodes: usize,
    ranks: usize,
    ppn: usize,
    window: usize,
    size: usize,
    p50_us: f64,
    p99_us: f64,
    mb_s: f64,
    ref_p50_us: f64,
    ref_mb_s: f64,
}

impl Report {
    fn new(json: bool, out: Option<PathBuf>, speaks: bool) -> Self {
        Self { json, out, speaks, lines: Vec::new() }
    }

    fn begin(&self, bench: &Bench) -> Result<(), Failure> {
        self.note(&format!(
            "# proxystore {VERSION} bench   {} ranks on {} nodes   {}   {:?} a line\n\
             # us: one object, the mean of those on their way together; of one-to-all until the last rank has it\n\
             # MB/s: 10^6 bytes a second that all receivers together got\n\
             # ref: bare sockets between the same ranks, one each for who gets from whom; of one-to-all the owner sends to each\n",
            bench.seats.len(),
            bench.nodes,
            bench.shared.config(),
            bench.budget,
        ))
    }

    fn table(&self, pattern: Pattern, ppn: usize, window: usize) -> Result<(), Failure> {
        self.note(&format!(
            "#\n# {}, {ppn} a node, window {window}\n# {:>10} {:>12} {:>12} {:>12} {:>13} {:>12}\n",
            pattern.name(),
            "Size",
            "p50 (us)",
            "p99 (us)",
            "MB/s",
            "ref p50 (us)",
            "ref MB/s"
        ))
    }

    fn line(&mut self, connector: &str, bench: &Bench, case: &Case, figures: &Figures) -> Result<(), Failure> {
        let round = |x: f64| (x * 1e3).round() / 1e3;
        let line = Line {
            connector: connector.to_owned(),
            pattern: case.pattern.name(),
            nodes: bench.nodes,
            ranks: bench.seats.len(),
            ppn: case.ppn,
            window: case.window,
            size: case.size,
            p50_us: round(figures.ours.p50_us),
            p99_us: round(figures.ours.p99_us),
            mb_s: round(figures.ours.mb_s),
            ref_p50_us: round(figures.socket.p50_us),
            ref_mb_s: round(figures.socket.mb_s),
        };
        if self.speaks && self.json {
            let text = serde_json::to_string(&line).map_err(Failure::new)?;
            writeln!(stdout(), "{text}").map_err(Failure::stdout)?;
        }
        self.note(&format!(
            "{:>12} {:>12.2} {:>12.2} {:>12.1} {:>13.2} {:>12.1}\n",
            line.size, line.p50_us, line.p99_us, line.mb_s, line.ref_p50_us, line.ref_mb_s
        ))?;
        self.lines.push(line);
        Ok(())
    }

    /// Writes the files.
    fn end(&self, patterns: &[Pattern]) -> Result<(), Failure> {
        let Some(out) = self.out.as_ref().filter(|_| self.speaks) else { return Ok(()) };
        let fail = |error| Failure::io(out.display(), error);
        fs::create_dir_all(out).map_err(fail)?;
        let mut file = File::create(out.join("ranks.jsonl")).map_err(fail)?;
        for line in &self.lines {
            writeln!(file, "{}", serde_json::to_string(line).map_err(Failure::new)?).map_err(fail)?;
        }
        for pattern in patterns {
            let lines: Vec<&Line> = self.lines.iter().filter(|line| line.pattern == pattern.name()).collect();
            if !lines.is_empty() {
                fs::write(out.join(format!("{}.svg", pattern.name())), chart(&lines)?).map_err(fail)?;
            }
        }
        self.note(&format!("# written to {}\n", out.display()))
    }

    /// Prints for people.
    fn note(&self, text: &str) -> Result<(), Failure> {
        match self.speaks && !self.json {
            true => stdout().write_all(text.as_bytes()).map_err(Failure::stdout),
            false => Ok(()),
        }
    }
}

/// Bytes that a rank puts at a time.
const IN_STORE: usize = 256 << 20;

/// Samples of a line, at least and at most; of new objects each time at most fewer, for each costs an exchange.
const LEAST: f64 = 3.0;
const MOST: f64 = 10_000.0;
const MOST_ANEW: f64 = 50.0;

/// Samples that a rank passes on.
const KEPT: usize = 512;
