//! The job: what is known of it, and what its nodes derive from it.

use std::fmt::Display;

use proxystore::launch::{self, Job, SecretSource};
use serde::Serialize;

/// What was found out; each of `errors` says what was not.
#[derive(Default, Serialize)]
pub(super) struct JobRow {
    id: Option<String>,
    named_by: Option<String>,
    nodes: Vec<String>,
    node_id: Option<u32>,
    numbered_by: Option<String>,
    rank: Option<u32>,
    size: Option<u32>,
    local_rank: Option<u32>,
    local_size: Option<u32>,
    step: Option<u32>,
    restart: Option<u32>,
    secret: Option<String>,
    interfaces: Vec<InterfaceRow>,
    interface_chosen_by: Option<String>,
    ports: Vec<u16>,
    errors: Vec<String>,
}

#[derive(Serialize)]
struct InterfaceRow {
    name: String,
    addresses: Vec<String>,
}

impl JobRow {
    /// Looks without making anything: no secret, no socket.
    pub(super) fn collect() -> Self {
        let mut row = Self::default();
        if let Some(source) = kept(&mut row.errors, SecretSource::seen()) {
            row.secret = Some(match &source {
                SecretSource::User(path) if !path.exists() => format!("{source}, made when first needed"),
                _ => source.to_string(),
            });
        }
        let Some(job) = kept(&mut row.errors, Job::discover()) else { return row };
        if let Some((found, choice)) = kept(&mut row.errors, launch::interfaces(&job)) {
            row.interface_chosen_by = Some(choice.to_string());
            row.interfaces = found
                .into_iter()
                .map(|one| InterfaceRow {
                    name: one.name,
                    addresses: one.addresses.iter().map(ToString::to_string).collect(),
                })
                .collect();
        }
        row.ports = kept(&mut row.errors, launch::port_candidates(&job.id, &job.id)).unwrap_or_default();
        Self {
            id: Some(job.id),
            named_by: Some(job.kind.to_string()),
            nodes: job.nodes,
            node_id: job.node_id,
            numbered_by: job.numbered_by.map(|by| by.to_string()),
            rank: job.rank,
            size: job.size,
            local_rank: job.local_rank,
            local_size: job.local_size,
            step: job.step,
            restart: Some(job.restart),
            ..row
        }
    }

    /// Name and value of each, for people.
    pub(super) fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if let Some((id, by)) = self.id.as_ref().zip(self.named_by.as_ref()) {
            lines.push(("job", format!("{id} (by {by})")));
            lines.push(("node", self.node()));
            lines.push(("rank", self.rank()));
        }
        if let Some(step) = self.step {
            lines.push(("step", step.to_string()));
        }
        if let Some(restart) = self.restart.filter(|restart| *restart > 0) {
            lines.push(("started anew", format!("{restart} times")));
        }
        lines.extend(self.secret.clone().map(|source| ("secret", source)));
        for one in &self.interfaces {
            lines.push(("listens on", format!("{} {}", one.name, one.addresses.join(" "))));
        }
        lines.extend(self.interface_chosen_by.clone().map(|choice| ("because", choice)));
        match self.ports[..] {
            [] => {}
            [0] => lines.push(("port", "any that is free".to_owned())),
            [port] => lines.push(("port", port.to_string())),
            [first, .., last] => lines.push(("port", format!("{first}, or the next that is free, to {last}"))),
        }
        lines.extend(self.errors.iter().map(|error| ("error", error.clone())));
        lines
    }

    fn node(&self) -> String {
        match (self.node_id, self.nodes.len()) {
            (Some(id), 0) => format!("{id} of an unknown number"),
            (Some(id), count) => {
                format!("{id} of {count}: {}", self.nodes.get(id as usize).map_or("", |name| name.as_str()))
            }
            (None, 0) => "unknown: no launcher tells the nodes".to_owned(),
            (None, count) => format!("none of the {count} nodes of the job"),
        }
    }

    fn rank(&self) -> String {
        let Some((rank, by)) = self.rank.zip(self.numbered_by.as_ref()) else { return "none".to_owned() };
        let of = |size: Option<u32>| size.map_or("?".to_owned(), |size| size.to_string());
        let local = self.local_rank.map_or("unknown".to_owned(), |rank| format!("{rank} of {}", of(self.local_size)));
        format!("{rank} of {}, on its node {local} (by {by})", of(self.size))
    }
}

/// The value; an error is kept as text.
fn kept<T, E: Display>(errors: &mut Vec<String>, result: Result<T, E>) -> Option<T> {
    result.map_err(|error| errors.push(error.to_string())).ok()
}
