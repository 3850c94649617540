//! Shared memory: which namespaces there are, who hosts them, and what this node leaves for it.

use indicatif::HumanBytes;
use proxystore::service::{self, Machine, Namespace, ServiceStats};
use serde::Serialize;

#[derive(Serialize)]
pub(super) struct Memory {
    /// Of the default store, if that is one of shared memory.
    default_namespace: String,
    namespaces: Vec<Found>,
    #[serde(flatten)]
    machine: Machine,
}

/// A namespace on this node.
#[derive(Serialize)]
struct Found {
    name: String,
    held: bool,
    stats: Option<ServiceStats>,
    error: Option<String>,
}

impl Memory {
    /// Looks without making anything, and without hosting a service.
    pub(super) fn collect() -> Self {
        let default_namespace =
            crate::namespace::default_name().or_else(|_| service::default_namespace()).unwrap_or_default();
        let names = service::namespaces().unwrap_or_default();
        let namespaces = names.into_iter().map(|name| {
            let found = Namespace::find(&name);
            let held = !matches!(found, Ok(None));
            match found.and_then(|found| found.map(|namespace| namespace.stats()).transpose()) {
                Ok(stats) => Found { name, held, stats, error: None },
                Err(error) => Found { name, held, stats: None, error: Some(error.to_string()) },
            }
        });
        Self { default_namespace, namespaces: namespaces.collect(), machine: Machine::ask() }
    }

    /// Name and value of each, for people.
    pub(super) fn lines(&self) -> Vec<(String, String)> {
        let machine = &self.machine;
        let is_default = |found: &&Found| found.name == self.default_namespace && found.held;
        let default = match self.namespaces.iter().find(is_default) {
            _ if self.default_namespace.is_empty() => "none: the job has no name".to_owned(),
            Some(_) => format!("shm://{}", self.default_namespace),
            None => format!("shm://{}; nobody holds it now", self.default_namespace),
        };
        let directory = machine.runtime_directory.as_ref().map(|path| path.display().to_string());
        let pool = match machine.huge_page {
            0 => "none".to_owned(),
            size => format!("{} of {} free", machine.huge_pages_free, HumanBytes(size)),
        };
        let mut lines = vec![
            ("default namespace".to_owned(), default),
            ("default budget".to_owned(), HumanBytes(machine.budget).to_string()),
            ("may be taken now".to_owned(), format!("{} ({})", HumanBytes(machine.available), machine.limit)),
            ("shmem_enabled".to_owned(), machine.shmem_enabled.clone()),
            ("huge pages".to_owned(), pool),
            (
                "may be locked".to_owned(),
                machine.memlock.map_or("everything".to_owned(), |bytes| HumanBytes(bytes).to_string()),
            ),
            ("runtime directory".to_owned(), directory.unwrap_or_else(|| "not usable".to_owned())),
            ("/dev/shm".to_owned(), "not used".to_owned()),
        ];
        lines.extend(self.namespaces.iter().map(|found| (format!("shm://{}", found.name), found.describe())));
        lines
    }
}

impl Found {
    fn describe(&self) -> String {
        let Some(stats) = &self.stats else {
            return self
                .error
                .clone()
                .unwrap_or_else(|| "nobody holds it; `proxystore gc` removes its files".to_owned());
        };
        let mut pages: Vec<&str> = stats.segments.iter().map(|segment| segment.pages.as_str()).collect();
        pages.sort_unstable();
        pages.dedup();
        let pages = if pages.is_empty() { String::new() } else { format!(", {}", pages.join(" and ")) };
        let by = if stats.supervised { "proxystore serve" } else { "a process that uses it" };
        format!(
            "hosted by {by}, process {}, for {} s; {} objects, {}; budget {}{pages}",
            stats.host,
            stats.since,
            stats.live.count,
            HumanBytes(stats.live.bytes),
            HumanBytes(stats.budget)
        )
    }
}
