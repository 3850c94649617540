//! `Place`: the store of a measurement, and what must be removed after it.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, io};

use proxystore::{Capabilities, ConnectorConfig, ConnectorExt, Store, StoreConfig};

use crate::failure::Failure;

/// A store without a cache, which nobody else uses: for `file` a fresh directory, for `shm` a namespace of our own unless one
/// is named, so that nothing is left behind.
pub(super) struct Place {
    pub(super) store: Store,
    directory: Option<Fresh>,
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
        if (config.connector.scheme(), config.connector.location()) == ("shm", "") {
            let fresh = ConnectorConfig::new("shm", format!("bench-{}", std::process::id()));
            config.connector =
                config.connector.options().fold(fresh, |config, (name, value)| config.with_option(name, value));
        }
        if let Some(fresh) = &directory {
            config.connector = fresh.config(&config.connector)?;
        }
        // What is measured is the fetch, and bandwidth needs its time on a slow disk.
        config.cache_bytes = Some(0);
        config.deadline = config.deadline.or(Some(Duration::from_secs(60)));
        Ok(Self { store: Store::from_config(&config)?, directory })
    }

    /// Whether another process can be the peer.
    pub(super) fn crosses_processes(&self) -> bool {
        self.store.connector().capabilities().contains(Capabilities::CROSS_PROCESS)
    }

    /// Whether memory of evicted objects is used again, later.
    pub(super) fn recycles(&self) -> bool {
        self.scheme() == "shm"
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
