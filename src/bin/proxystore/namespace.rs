//! The argument that names a namespace of shared memory.

use clap::Args;
use proxystore::service::{self, Namespace};
use proxystore::{StoreConfig, environment};

use crate::failure::Failure;

/// Which namespace a command is about.
#[derive(Args)]
pub(crate) struct NamespaceArgs {
    /// shm://NAME [default: that of $PROXYSTORE_STORE, else of the job, else shm://default]
    url: Option<String>,
}

impl NamespaceArgs {
    pub(crate) fn name(&self) -> Result<String, Failure> {
        match &self.url {
            Some(url) => name_of(url),
            None => default_name(),
        }
    }
}

/// The namespace of the default store; where that is another kind of store, the one that `shm://` means.
pub(crate) fn default_name() -> Result<String, Failure> {
    let url = environment::default_store();
    match SCHEMES.iter().any(|scheme| url.split(':').next() == Some(scheme)) {
        true => name_of(&url),
        false => Ok(service::default_namespace()?),
    }
}

/// The namespace of a URL, or of a bare name.
pub(crate) fn name_of(url: &str) -> Result<String, Failure> {
    if !url.contains(':') {
        return Ok(url.to_owned());
    }
    let config: StoreConfig = url.parse()?;
    match (config.connector.scheme(), config.connector.location()) {
        (scheme, "") if SCHEMES.contains(&scheme) => Ok(service::default_namespace()?),
        (scheme, name) if SCHEMES.contains(&scheme) => Ok(name.to_owned()),
        (scheme, _) => Err(Failure::new(format_args!(
            "{scheme}:// has no node service; this command is about shared memory, as shm://NAME"
        ))),
    }
}

/// The namespace, attached to; refuses, and says what there is, where nobody holds it.
pub(crate) fn find(name: &str) -> Result<Namespace, Failure> {
    if let Some(namespace) = Namespace::find(name)? {
        return Ok(namespace);
    }
    let mut held = Vec::new();
    for other in service::namespaces()? {
        if Namespace::is_held(&other).unwrap_or(false) {
            held.push(format!("shm://{other}"));
        }
    }
    let others = match held.is_empty() {
        true => "no namespace of yours is in use on this node".to_owned(),
        false => format!("in use on this node: {}", held.join(", ")),
    };
    Err(Failure::new(format_args!(
        "no process holds shm://{name}: start `proxystore serve` or a program that opens it; {others}"
    )))
}

/// Schemes whose objects lie in the memory that a node service owns.
pub(crate) const SCHEMES: [&str; 4] = ["shm", "tcp", "ucx", "margo"];
