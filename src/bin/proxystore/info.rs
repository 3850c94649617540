//! `proxystore info`: what this build can do on this machine, for people and as JSON.

use std::fmt::Write as _;
use std::io::{Write, stdout};

use clap::Args;
use proxystore::{connectors, environment, service};
use serde::Serialize;

use crate::failure::Failure;
use crate::{COMMIT, VERSION};

mod fabrics;
mod job;
mod launcher;
mod limits;
mod memory;

use fabrics::{Fabrics, Library};
use job::JobRow;
use limits::Limits;
use memory::Memory;

/// Show version, connectors, limits of this machine, and every PROXYSTORE_* variable
#[derive(Args)]
pub(crate) struct Info {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Info {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let report = Report::collect();
        let text = match self.json {
            true => serde_json::to_string_pretty(&report).map_err(Failure::new)? + "\n",
            false => report.to_text(),
        };
        stdout().write_all(text.as_bytes()).map_err(Failure::stdout)
    }
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: Option<&'static str>,
    features: Vec<&'static str>,
    default_store: String,
    shared_memory: Memory,
    connectors: Vec<ConnectorRow>,
    native_libraries: Vec<Library>,
    network: Vec<String>,
    network_advice: Vec<String>,
    limits: Limits,
    launcher: Vec<launcher::Launcher>,
    job: JobRow,
    variables: Vec<VariableRow>,
    unknown_variables: Vec<String>,
}

#[derive(Serialize)]
struct ConnectorRow {
    scheme: &'static str,
    compiled_in: bool,
    /// The cargo feature that brings it.
    feature: Option<&'static str>,
    reach: Option<&'static str>,
    capabilities: Vec<&'static str>,
    summary: Option<&'static str>,
    options: Vec<&'static str>,
}

#[derive(Serialize)]
struct VariableRow {
    name: &'static str,
    value: Option<String>,
    default: &'static str,
    doc: &'static str,
}

impl Report {
    fn collect() -> Self {
        let features = FEATURES.iter().filter(|(_, on)| *on).map(|(name, _)| *name).collect();
        let variables = environment::VARIABLES.iter().map(|variable| VariableRow {
            name: variable.name,
            value: match variable.is_secret() {
                true => variable.value().map(|_| "(set, not shown)".to_owned()),
                false => variable.value(),
            },
            default: variable.default,
            doc: variable.doc,
        });
        let fabrics = Fabrics::collect();
        Self {
            version: VERSION,
            commit: COMMIT,
            features,
            default_store: default_store(),
            shared_memory: Memory::collect(),
            connectors: connector_rows(),
            native_libraries: fabrics.libraries,
            network: fabrics.adapters,
            network_advice: fabrics.advice,
            limits: Limits::collect(),
            launcher: launcher::seen(),
            job: JobRow::collect(),
            variables: variables.collect(),
            unknown_variables: environment::unknown(),
        }
    }

    fn to_text(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a String takes everything");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "# Version\nproxystore {}, commit {}", self.version, self.commit.unwrap_or("unknown"))?;
        writeln!(out, "\n# Features\n{}", self.features.join(" "))?;
        writeln!(out, "\n# Default store\n{}", self.default_store)?;

        writeln!(out, "\n# Shared memory")?;
        for (name, value) in self.shared_memory.lines() {
            writeln!(out, "{name:<22} {value}")?;
        }

        writeln!(out, "\n# Connectors")?;
        for row in &self.connectors {
            match (row.compiled_in, row.feature) {
                (false, Some(feature)) => {
                    writeln!(out, "{:<10} not in this build; enable the cargo feature \"{feature}\"", row.scheme)?;
                }
                _ => {
                    writeln!(out, "{:<10} {}", format!("{}://", row.scheme), row.summary.unwrap_or_default())?;
                    writeln!(out, "{:<10} reach: {}", "", row.reach.unwrap_or_default())?;
                    writeln!(out, "{:<10} {}", "", row.capabilities.join(", "))?;
                    if !row.options.is_empty() {
                        writeln!(out, "{:<10} options: {}", "", row.options.join(", "))?;
                    }
                }
            }
        }

        writeln!(out, "\n# Native libraries")?;
        if self.native_libraries.is_empty() {
            writeln!(out, "none: no connector of this build uses one")?;
        }
        for (name, value) in self.native_libraries.iter().flat_map(Library::lines) {
            writeln!(out, "{name:<22} {value}")?;
        }

        writeln!(out, "\n# Network")?;
        writeln!(
            out,
            "{:<22} {}",
            "adapters",
            if self.network.is_empty() { "none but for TCP".to_owned() } else { self.network.join(", ") }
        )?;
        for advice in &self.network_advice {
            writeln!(out, "{:<22} {advice}", "advice")?;
        }

        writeln!(out, "\n# Limits")?;
        for (name, value) in self.limits.lines() {
            writeln!(out, "{name:<22} {value}")?;
        }

        writeln!(out, "\n# Launcher")?;
        if self.launcher.is_empty() {
            writeln!(out, "none seen")?;
        }
        for launcher in &self.launcher {
            writeln!(out, "{:<22} {}", launcher.name, launcher.variables.join(" "))?;
        }

        writeln!(out, "\n# Job")?;
        for (name, value) in self.job.lines() {
            writeln!(out, "{name:<22} {value}")?;
        }

        writeln!(out, "\n# Environment")?;
        for row in &self.variables {
            match &row.value {
                Some(value) => writeln!(out, "{}={value}", row.name)?,
                None => writeln!(out, "{} is not set; default: {}", row.name, row.default)?,
            }
            writeln!(out, "    {}", row.doc)?;
        }
        for name in &self.unknown_variables {
            writeln!(out, "warning: {name} is set and no variable of this version")?;
        }
        Ok(())
    }
}

/// The URL that `Store::open_default` uses, without opening it, which would make its directory or memory.
fn default_store() -> String {
    match environment::default_store() {
        url if url == "file://" => {
            let user = rustix::process::geteuid().as_raw();
            format!("file://{}", std::env::temp_dir().join(format!("proxystore-{user}")).display())
        }
        // Where the name of the job is none, the part on the job says so.
        url if url == "shm://" => service::default_namespace().map_or(url, |name| format!("shm://{name}")),
        url => url,
    }
}

fn connector_rows() -> Vec<ConnectorRow> {
    let known = connectors::registrations();
    let missing = connectors::FEATURES.iter().filter(|scheme| known.iter().all(|row| row.scheme != **scheme));
    let missing = missing.map(|scheme| ConnectorRow {
        scheme,
        compiled_in: false,
        feature: Some(scheme),
        reach: None,
        capabilities: Vec::new(),
        summary: None,
        options: Vec::new(),
    });
    let compiled_in = known.iter().map(|row| ConnectorRow {
        scheme: row.scheme,
        compiled_in: true,
        feature: connectors::FEATURES.iter().copied().find(|feature| *feature == row.scheme),
        reach: Some(row.reach),
        capabilities: row.capabilities.names().collect(),
        summary: Some(row.summary),
        options: row.options.to_vec(),
    });
    compiled_in.chain(missing).collect()
}

const FEATURES: &[(&str, bool)] = &[
    ("memory", cfg!(feature = "memory")),
    ("file", cfg!(feature = "file")),
    ("shm", cfg!(feature = "shm")),
    ("tcp", cfg!(feature = "tcp")),
    ("ucx", cfg!(feature = "ucx")),
    ("margo", cfg!(feature = "margo")),
    ("msgpack", cfg!(feature = "msgpack")),
    ("rkyv", cfg!(feature = "rkyv")),
    ("metrics", cfg!(feature = "metrics")),
    ("tracing", cfg!(feature = "tracing")),
    ("conformance", cfg!(feature = "conformance")),
    ("failpoints", cfg!(feature = "failpoints")),
    ("cli", cfg!(feature = "cli")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_the_manifest() {
        let manifest = include_str!("../../../Cargo.toml");
        let section = manifest.split("[features]").nth(1).and_then(|rest| rest.split("\n[").next()).unwrap();
        let named = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.trim());
        let named: Vec<&str> = named.filter(|name| *name != "default" && !name.starts_with('#')).collect();
        assert_eq!(FEATURES.iter().map(|(name, _)| *name).collect::<Vec<_>>(), named);
    }
}
