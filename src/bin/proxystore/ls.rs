//! `proxystore ls`.

use std::fmt::Write as _;
use std::io::{BufWriter, Write, stdout};

use clap::Args;
use indicatif::HumanBytes;
use proxystore::service::ObjectStats;
use serde::Serialize;

use crate::failure::Failure;
use crate::namespace::{self, NamespaceArgs};

/// List the objects in shared memory, the largest first
///
/// The list is read from the memory itself, and disturbs neither the service nor whoever puts and gets.
#[derive(Args)]
#[command(after_help = "\
Columns:
  SIZE   length of the object       PID   the process that put it, while it lives
  CELL   memory that it takes       IDLE  time since it was put (under evict=lru: used), to about a second
  VIEWS  views in all processes     TOKEN what `proxystore get`, `stat` and `evict` take

Examples:
  proxystore ls
  proxystore ls --replicas
  proxystore ls shm://slurm-4711 --json | jq .len")]
pub(crate) struct Ls {
    #[command(flatten)]
    namespace: NamespaceArgs,
    /// List copies of other nodes' objects too
    #[arg(long)]
    replicas: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
pub(crate) struct Row {
    token: String,
    key: String,
    len: u64,
    capacity: u64,
    pid: Option<u32>,
    state: &'static str,
    ends_with_producer: bool,
    expires_in_ms: Option<u128>,
    idle_s: Option<u64>,
    views: u64,
}

impl Row {
    pub(crate) fn new(object: &ObjectStats, token: String) -> Self {
        Self {
            token,
            key: object.key.to_string(),
            len: object.len,
            capacity: object.capacity,
            pid: object.owner,
            state: match (object.is_promised, object.is_replica) {
                (true, _) => "promised",
                (_, true) => "replica",
                _ => "live",
            },
            ends_with_producer: object.ends_with_producer,
            expires_in_ms: object.expires_in.map(|left| left.as_millis()),
            idle_s: object.idle.map(|idle| idle.as_secs()),
            views: object.pins,
        }
    }

    /// What there is to say beside the numbers.
    pub(crate) fn remarks(&self) -> String {
        let mut remarks = self.state.to_owned();
        if self.ends_with_producer {
            remarks.push_str(", ends with its producer");
        }
        if let Some(left) = self.expires_in_ms {
            let _ = write!(remarks, ", expires in {:.1} s", left as f64 / 1e3);
        }
        remarks
    }
}

impl Ls {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let namespace = namespace::find(&self.namespace.name()?)?;
        let (replicas, mut objects): (Vec<ObjectStats>, Vec<ObjectStats>) =
            namespace.objects()?.partition(|object| object.is_replica);
        let copied: u64 = replicas.iter().map(|object| object.capacity).sum();
        let copies = replicas.len();
        if self.replicas {
            objects.extend(replicas);
        }
        objects.sort_by_key(|object| std::cmp::Reverse(object.len));
        let mut out = BufWriter::new(stdout().lock());
        let mut print = |line: String| writeln!(out, "{line}").map_err(Failure::stdout);
        if !self.json {
            print(format!("{:>11} {:>11} {:>8} {:>6} {:>5}  TOKEN", "SIZE", "CELL", "PID", "IDLE", "VIEWS"))?;
        }
        for object in &objects {
            let row = Row::new(object, namespace.token(object).to_string());
            print(match self.json {
                true => serde_json::to_string(&row).map_err(Failure::new)?,
                false => line(&row),
            })?;
        }
        if !self.json {
            let live = || objects.iter().filter(|object| !object.is_promised && !object.is_replica);
            let promised = objects.iter().filter(|object| object.is_promised).count();
            let taken: u64 = live().map(|object| object.capacity).sum();
            let promises = if promised == 0 { String::new() } else { format!("; {promised} promised") };
            let (count, len) = (live().count(), HumanBytes(live().map(|object| object.len).sum()));
            let copies = match copies {
                0 => String::new(),
                _ => format!("; {copies} replicas in {}", HumanBytes(copied)),
            };
            let taken = HumanBytes(taken);
            print(format!("{}: {count} objects of {len} in {taken}{promises}{copies}", namespace.url()))?;
        }
        out.flush().map_err(Failure::stdout)
    }
}

fn line(row: &Row) -> String {
    let dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let mut line = format!(
        "{:>11} {:>11} {:>8} {:>6} {:>5}  {}",
        HumanBytes(row.len).to_string(),
        HumanBytes(row.capacity).to_string(),
        dash(row.pid.map(|pid| pid.to_string())),
        dash(row.idle_s.map(|seconds| format!("{seconds}s"))),
        row.views,
        row.token,
    );
    let remarks = row.remarks();
    if remarks != "live" {
        let _ = write!(line, "  ({remarks})");
    }
    line
}
