//! `Place`: the store of a measurement, and what must be removed after it.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use proxystore::{Capabilities, ConnectorConfig, ConnectorExt, Store, StoreConfig, connectors};

use crate::failure::Failure;

/// A store without a cache, which nobody else uses: for `file` a fresh directory, for `shm` a namespace of our own unless one
/// is named, so that nothing is left behind.
pub(super) struct Place {
    pub(super) store: Store,
    directory: Option<Fresh>,
    /// Where the peer's processes meet: with another runtime directory, it is on another node.
    node: Option<Fresh>,
}

impl Place {
    /// Opens the store of a scheme or URL.
    pub(super) fn open(connector: &str) -> Result<Self, Failure> {
        let mut config: StoreConfig = match connector.contains(':') {
            true => connector.parse()?,
            false => StoreConfig::new(ConnectorConfig::new(connector, "")),
        };
        let directory = match config.connector.scheme() {
            "file" => Some(Fresh::below(config.connector.location())?),
            _ => None,
        };
        let scheme = config.connector.scheme().to_owned();
        let row = connectors::registrations().into_iter().find(|row| row.scheme == scheme);
        // Others reach other nodes through a file system.
        let crosses_nodes = row.is_some_and(|row| row.options.contains(&"replicas"));
        if crosses_nodes && config.connector.option("replicas").is_none() {
            // Otherwise the second get of an object would be one of this node's copy.
            config.connector = config.connector.with_option("replicas", "off");
        }
        if (scheme == "shm" || crosses_nodes) && config.connector.location().is_empty() {
            let fresh = ConnectorConfig::new(scheme, format!("bench-{}", std::process::id()));
            config.connector =
                config.connector.options().fold(fresh, |config, (name, value)| config.with_option(name, value));
        }
        if let Some(fresh) = &directory {
            config.connector = fresh.config(&config.connector)?;
        }
        // What is measured is the fetch, and bandwidth needs its time on a slow disk.
        config.cache_bytes = Some(0);
        config.deadline = config.deadline.or(Some(Duration::from_secs(60)));
        let node = match crosses_nodes {
            true => Some(Fresh::below("")?),
            false => None,
        };
        Ok(Self { store: Store::from_config(&config)?, directory, node })
    }

    /// Whether another process can be the peer.
    pub(super) fn crosses_processes(&self) -> bool {
        self.store.connector().capabilities().contains(Capabilities::CROSS_PROCESS)
    }

    /// Whether memory of evicted objects is used again, later.
    pub(super) fn recycles(&self) -> bool {
        self.scheme() == "shm" || self.crosses_nodes()
    }

    /// Whether the peer is on another node than this process.
    pub(super) fn crosses_nodes(&self) -> bool {
        self.node.is_some()
    }

    /// The runtime directory of the peer, where that is another than ours.
    pub(super) fn node(&self) -> Option<PathBuf> {
        // Not the directory itself, which is open to others.
        self.node.as_ref().map(|fresh| fresh.0.join("node"))
    }

    pub(super) fn url(&self) -> String {
        self.store.config().to_string()
    }

    pub(super) fn scheme(&self) -> &str {
        self.store.connector().scheme()
    }

    pub(super) fn directory(&self) -> Option<&Path> {
        self.directory.as_ref().map(|fresh| fresh.0.as_path())
    }
}

/// A directory of our own, removed at the end.
struct Fresh(PathBuf);

impl Fresh {
    fn below(location: &str) -> Result<Self, Failure> {
        let parent = if location.is_empty() { env::temp_dir() } else { PathBuf::from(location) };
        let fail = |error| Failure::io(parent.display(), error);
        let parent = parent.canonicalize().map_err(fail)?;
        for attempt in 0..1000 {
            let path = parent.join(format!("proxystore-bench-{}-{attempt}", std::process::id()));
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(fail(error)),
                Ok(()) => return Ok(Self(path)),
            }
        }
        Err(fail(io::ErrorKind::AlreadyExists.into()))
    }

    fn config(&self, asked: &ConnectorConfig) -> Result<ConnectorConfig, Failure> {
        let Some(path) = self.0.to_str() else {
            return Err(Failure::new(format_args!("{}: a store's directory needs a name in UTF-8", self.0.display())));
        };
        let config = ConnectorConfig::new(asked.scheme(), path);
        Ok(asked.options().fold(config, |config, (name, value)| config.with_option(name, value)))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // Nobody is left to tell, and the figures are right.
        let _ = remove(&self.0);
    }
}

/// Removes a directory and all in it; not an error when it is gone.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
