//! `proxystore stat`.

use std::fmt::{self, Write as _};
use std::io::{Write, stdout};
use std::time::Duration;

use clap::Args;
use indicatif::{HumanBytes, HumanDuration};
use proxystore::service::{ClientStats, Namespace, ServiceStats};
use proxystore::{Store, Token};
use serde::Serialize;

use crate::failure::Failure;
use crate::ls::Row;
use crate::namespace;

/// Show the figures of a node service, or one object
#[derive(Args)]
#[command(after_help = "\
Examples:
  proxystore stat
  proxystore stat shm://slurm-4711 --json
  proxystore stat \"$token\"")]
pub(crate) struct Stat {
    /// shm://NAME, or the token of an object of any store [default: the namespace of the default store]
    #[arg(value_name = "URL|TOKEN")]
    what: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// An object of a store that says no more.
#[derive(Serialize)]
struct Plain {
    store: String,
    key: String,
    len: Option<u64>,
    exists: bool,
}

/// The figures, with what a service does not know of itself.
#[derive(Serialize)]
pub(crate) struct Figures {
    namespace: String,
    policy: &'static str,
    #[serde(flatten)]
    stats: ServiceStats,
}

impl Stat {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let token =
            self.what.as_deref().filter(|what| !what.contains("://")).and_then(|what| what.parse::<Token>().ok());
        let text = match token {
            Some(token) => self.object(&token)?,
            None => {
                let name = match &self.what {
                    Some(url) => namespace::name_of(url)?,
                    None => namespace::default_name()?,
                };
                let figures = Figures::ask(&namespace::find(&name)?)?;
                match self.json {
                    true => serde_json::to_string_pretty(&figures).map_err(Failure::new)? + "\n",
                    false => figures.to_string(),
                }
            }
        };
        stdout().write_all(text.as_bytes()).map_err(Failure::stdout)
    }

    fn object(&self, token: &Token) -> Result<String, Failure> {
        let Token::Object { url, key, .. } = token else {
            return Err(Failure::new("the token names a factory of a program, not an object"));
        };
        if !url.starts_with("shm:") {
            let store = Store::open(url)?;
            let exists = store.exists(key).wait()?;
            let len = key.is_len_known().then_some(key.len());
            let plain = Plain { store: url.to_string(), key: key.to_string(), len, exists };
            let text = match self.json {
                true => serde_json::to_string(&plain).map_err(Failure::new)? + "\n",
                false => format!(
                    "store   {}\nkey     {}\nsize    {}\nstate   {}\n",
                    plain.store,
                    plain.key,
                    plain.len.map_or("not known before it is there".to_owned(), size),
                    if exists { "live" } else { "no such object" }
                ),
            };
            return Ok(text);
        }
        let name = namespace::name_of(url)?;
        let found = match Namespace::find(&name)? {
            Some(namespace) => namespace.object(key)?.map(|object| (namespace.token(&object).to_string(), object)),
            None => None,
        };
        let Some((token, object)) = found else {
            return Err(Failure::not_found(format_args!("shm://{name} has no such object (any more)")));
        };
        let row = Row::new(&object, token);
        if self.json {
            return Ok(serde_json::to_string(&row).map_err(Failure::new)? + "\n");
        }
        let owner = object.owner.map_or("a process that ended".to_owned(), |pid| format!("process {pid}"));
        let mut text = format!("store   shm://{name}\nkey     {}\nstate   {}\n", object.key, row.remarks());
        if !object.is_promised {
            let _ = writeln!(text, "size    {}, in a cell of {}", size(object.len), size(object.capacity));
        }
        let _ = writeln!(text, "put by  {owner}");
        if let Some(idle) = object.idle {
            let _ = writeln!(text, "idle    {} s", idle.as_secs());
        }
        let _ = writeln!(text, "views   {}", object.pins);
        Ok(text)
    }
}

impl Figures {
    pub(crate) fn ask(namespace: &Namespace) -> Result<Self, Failure> {
        let mut stats = namespace.stats()?;
        // Who looks is no news.
        let own = std::process::id();
        if stats.host != own {
            stats.clients.retain(|client| client.pid != own);
        }
        stats.clients.sort_by_key(|client| std::cmp::Reverse(client.pinned_bytes + client.objects.bytes));
        let policy = if namespace.evicts() { "lru" } else { "refuse" };
        Ok(Self { namespace: namespace.name().to_owned(), policy, stats })
    }
}

/// For people; about ten lines, then one a client.
impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
        let by = if stats.supervised { "supervised by proxystore serve" } else { "in a process that uses the store" };
        let since = HumanDuration(Duration::from_secs(stats.since));
        writeln!(f, "shm://{}: hosted by process {} for {since}, {by}", self.namespace, stats.host)?;
        let taken: u64 = stats.segments.iter().map(|segment| segment.len).sum();
        let mut pages: Vec<&str> = stats.segments.iter().map(|segment| segment.pages.as_str()).collect();
        pages.sort_unstable();
        pages.dedup();
        let pages = if pages.is_empty() { "no pages yet".to_owned() } else { pages.join(", ") };
        let pinned: u64 = stats.clients.iter().map(|client| client.pinned_bytes).sum();
        let leased = HumanBytes(stats.reserved.bytes);
        writeln!(f, "live      {:>11} in {} objects", HumanBytes(stats.live.bytes).to_string(), stats.live.count)?;
        if stats.replicas.count > 0 {
            writeln!(
                f,
                "replicas  {:>11} of them, in {} objects of other nodes; at most {}",
                HumanBytes(stats.replicas.bytes).to_string(),
                stats.replicas.count,
                HumanBytes(stats.replica_budget)
            )?;
        }
        writeln!(f, "pinned    {:>11} by views", HumanBytes(pinned).to_string())?;
        writeln!(f, "leased    {:>11} for puts to come", leased.to_string())?;
        writeln!(
            f,
            "evicted   {:>11} in {} objects, still viewed or not reclaimed yet",
            HumanBytes(stats.dying.bytes).to_string(),
            stats.dying.count
        )?;
        writeln!(
            f,
            "free      {:>11} of {} in {} segments",
            HumanBytes(stats.free_bytes).to_string(),
            HumanBytes(taken),
            stats.segments.len()
        )?;
        writeln!(
            f,
            "budget    {:>11}, full: {}; {pages}",
            HumanBytes(stats.budget).to_string(),
            match self.policy {
                "lru" => "evicts what was not used for longest",
                _ => "puts are refused",
            }
        )?;
        writeln!(f, "slots     {:>11} of {}", stats.slots_used, stats.slots)?;
        let events = &stats.events;
        writeln!(
            f,
            "events    {} ends of clients, {} reclaimed, {} recalls, {} takeovers, {} refused, {} quarantined, {} replicas trimmed",
            events.deaths,
            events.reclaimed,
            events.recalls,
            events.restarts,
            events.refused,
            events.quarantined,
            events.trimmed
        )?;
        writeln!(
            f,
            "\n{:>8} {:>9} {:>11} {:>9} {:>11} {:>7} {:>11} {:>8}",
            "PID", "OBJECTS", "BYTES", "LEASES", "LEASED", "VIEWS", "PINNED", "OLDEST"
        )?;
        stats.clients.iter().try_for_each(|client| writeln!(f, "{}", row(client)))
    }
}

fn row(client: &ClientStats) -> String {
    let pid = if client.pid == 0 { "?".to_owned() } else { client.pid.to_string() };
    let oldest = if client.pins == 0 { "-".to_owned() } else { format!("{}s", client.oldest_pin) };
    format!(
        "{pid:>8} {:>9} {:>11} {:>9} {:>11} {:>7} {:>11} {oldest:>8}",
        client.objects.count,
        HumanBytes(client.objects.bytes).to_string(),
        client.leased.count,
        HumanBytes(client.leased.bytes).to_string(),
        client.pins,
        HumanBytes(client.pinned_bytes).to_string(),
    )
}

fn size(bytes: u64) -> String {
    match bytes < 1024 {
        true => format!("{bytes} B"),
        false => format!("{bytes} B ({})", HumanBytes(bytes)),
    }
}
