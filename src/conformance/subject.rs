//! `Subject`: the connector under test, and where fresh instances of it come from.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::config::ConnectorConfig;
use crate::connector::{Capabilities, Connector, Registration};
use crate::error::{Error, Result};

/// A connector under test.
///
/// Cloning is cheap; directories made by [`in_directories`](Self::in_directories) go with the last clone.
#[derive(Clone)]
pub struct Subject {
    name: String,
    registration: Registration,
    place: Arc<dyn Fn() -> Result<ConnectorConfig> + Send + Sync>,
    directory: Option<Arc<Directory>>,
    /// Removes the directory with the last clone that a user of this module holds.
    removal: Option<Arc<Removal>>,
    deadline: Duration,
    child_variables: Vec<(String, String)>,
    missing: Option<String>,
    child_launcher: Vec<String>,
}

impl Subject {
    /// Tests the connectors that `registration` opens at the places that `place` names, a fresh and empty one each time.
    ///
    /// For `process` cases the registration must be known to the child too: a row of the table, or given to
    /// [`connectors::register`](crate::connectors::register) before [`main`](super::main) is called.
    pub fn new(
        registration: Registration,
        place: impl Fn() -> Result<ConnectorConfig> + Send + Sync + 'static,
    ) -> Self {
        let place = Arc::new(place);
        Self {
            name: registration.scheme.to_owned(),
            registration,
            place,
            directory: None,
            removal: None,
            deadline: DEADLINE,
            child_variables: Vec::new(),
            missing: None,
            child_launcher: Vec::new(),
        }
    }

    /// As [`new`](Self::new), for connectors whose location is a directory: each gets an empty one of its own below the
    /// system's temporary directory, removed in the end.
    pub fn in_directories(registration: Registration) -> Self {
        let directory = Arc::new(Directory::new(registration.scheme));
        let places = Arc::clone(&directory);
        let mut subject = Self::new(registration, move || {
            let path = places.fresh()?;
            Ok(ConnectorConfig::new(registration.scheme, path.to_string_lossy()))
        });
        subject.removal = Some(Arc::new(Removal(Arc::clone(&directory))));
        subject.directory = Some(directory);
        subject
    }

    /// Another name than the scheme, for a second subject of the same scheme.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The time after which a case that has not ended has failed; slow cases get ten times as much. Default 30 s.
    #[must_use]
    pub fn deadline(mut self, limit: Duration) -> Self {
        self.deadline = limit;
        self
    }

    /// A variable in the environment of the processes that `process` cases start: makes them processes of another node, say.
    #[must_use]
    pub fn child_variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.child_variables.push((name.into(), value.into()));
        self
    }

    /// Why this machine cannot have such connectors, if it cannot: all cases are ignored for that reason, and none passes.
    #[must_use]
    pub fn missing(mut self, reason: Option<String>) -> Self {
        self.missing = reason;
        self
    }

    /// Why no case can run, if none can.
    pub(super) fn excluded(&self) -> Option<String> {
        self.missing.clone()
    }

    /// A program with its arguments by which the processes of `process` cases are started, in place of directly: on another node,
    /// say, as `srun --nodelist=n2` does. It passes standard input and output on, and ends them when it is killed.
    #[must_use]
    pub fn child_launcher(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.child_launcher = words.into_iter().map(Into::into).collect();
        self
    }

    pub(super) fn child_launcher_words(&self) -> &[String] {
        &self.child_launcher
    }

    pub(super) fn child_variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.child_variables.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// What the cases of this subject are reported under.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the connector says that it can do.
    pub fn capabilities(&self) -> Capabilities {
        self.registration.capabilities
    }

    /// The registration under test.
    pub(super) fn registration(&self) -> &Registration {
        &self.registration
    }

    /// The time that a case has.
    pub(super) fn limit(&self, slow: bool) -> Duration {
        if slow { self.deadline * 10 } else { self.deadline }
    }

    /// Opens a connector that shares no object with any other.
    ///
    /// # Errors
    /// The connector's own.
    pub fn open(&self) -> Result<Arc<dyn Connector>> {
        (self.registration.open)(&(self.place)()?)
    }

    /// Opens a second handle to the objects of `connector`, as another process would.
    ///
    /// # Errors
    /// The connector's own.
    pub fn open_again(&self, connector: &dyn Connector) -> Result<Arc<dyn Connector>> {
        (self.registration.open)(connector.config())
    }

    /// Bytes of disk below the directories of this subject, if it has any.
    pub(super) fn disk_usage(&self) -> u64 {
        self.directory.as_ref().map_or(0, |directory| usage(&directory.path))
    }

    /// A clone for a case, which may hang for ever and must not keep the directory then.
    pub(super) fn lent(&self) -> Self {
        Self { removal: None, ..self.clone() }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A directory of directories; made when first needed.
struct Directory {
    path: PathBuf,
    used: AtomicUsize,
}

impl Directory {
    fn new(scheme: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("proxystore-conformance-{scheme}-{}-{n}", std::process::id());
        Self { path: std::env::temp_dir().join(name), used: AtomicUsize::new(0) }
    }

    fn fresh(&self) -> Result<PathBuf> {
        let path = self.path.join(self.used.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir_all(&path).map_err(|error| Error::io("open", path.display().to_string(), error))?;
        Ok(path)
    }
}

struct Removal(Arc<Directory>);

impl Drop for Removal {
    fn drop(&mut self) {
        if self.0.used.load(Ordering::Relaxed) > 0 {
            let _ = std::fs::remove_dir_all(&self.0.path);
        }
    }
}

/// Bytes that the files below `path` occupy; what vanishes meanwhile counts nothing.
fn usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.metadata().ok()?, entry.path())))
        .map(|(meta, path)| if meta.is_dir() { usage(&path) } else { meta.blocks() * 512 })
        .sum()
}

const DEADLINE: Duration = Duration::from_secs(30);
