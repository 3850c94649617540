//! The one error type: what was attempted, on what, why it failed, what to do next.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// Shorthand for a result with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation.
///
/// One word wide and cheap to clone, because single-flight operations hand the same failure to every waiter.
/// `Display` is one line; `Debug` adds the chain of sources.
///
/// A missing object is not an error where the caller asked "is it there": [`Store::get`](crate::Store::get) returns
/// `None`. It becomes [`ErrorKind::NotFound`] only where the caller has no other answer, as in a proxy that is resolved.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    op: &'static str,
    connector: Option<Cow<'static, str>>,
    context: Cow<'static, str>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The class of a failure: what a program can decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The object does not exist: never put, evicted, or taken by another consumer.
    NotFound,
    /// The object was written as another type or with another codec.
    TypeMismatch,
    /// Bytes or text from outside are malformed: a damaged key, token, URL or configuration.
    Invalid,
    /// The stored bytes are not what was put: wrong length, impossible content.
    Corrupt,
    /// A codec refused or failed while encoding or decoding.
    Codec,
    /// The operation was abandoned before it ended, usually because the completing side went away.
    Cancelled,
    /// The deadline passed.
    Timeout,
    /// The store or connector was closed.
    Closed,
    /// Memory, disk or a configured budget is exhausted.
    NoSpace,
    /// The object exceeds a limit of the connector or format.
    TooLarge,
    /// The connector or factory cannot do this at all.
    Unsupported,
    /// No connector of that scheme is compiled in or registered.
    UnknownScheme,
    /// A configuration is well-formed but wrong: an unknown option, a value out of range.
    Config,
    /// The key belongs to another connector or another process.
    ForeignKey,
    /// The operating system denied access.
    Permission,
    /// The thing exists already, for example a deferred key that was committed twice.
    AlreadyExists,
    /// The object was in memory of a former incarnation of the store, which is gone: it cannot come back.
    Stale,
    /// A handle that was inherited through fork(2) was used in the child; open the store again there.
    Forked,
    /// The node service or a peer does not answer now.
    Unavailable,
    /// The peer that has the object died, went silent or cannot be reached.
    PeerDown,
    /// A peer does not have the job's secret, or says that this process does not.
    Unauthorized,
    /// The other side has another version of the protocol or of a memory layout.
    Incompatible,
    /// An operating-system call failed otherwise.
    Io,
}

impl Error {
    /// Makes an error of `kind` for the operation `op`, with one clause of context.
    ///
    /// # Cost
    /// One allocation.
    pub fn new(kind: ErrorKind, op: &'static str, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Arc::new(Inner { kind, op, connector: None, context: context.into(), source: None }))
    }

    /// Wraps an I/O error, choosing the kind from the operating system's number.
    ///
    /// # Cost
    /// Two allocations.
    pub fn io(op: &'static str, context: impl Into<Cow<'static, str>>, source: std::io::Error) -> Self {
        use std::io::ErrorKind as Os;
        let kind = match source.kind() {
            Os::NotFound => ErrorKind::NotFound,
            Os::PermissionDenied | Os::ReadOnlyFilesystem => ErrorKind::Permission,
            Os::AlreadyExists => ErrorKind::AlreadyExists,
            Os::StorageFull | Os::QuotaExceeded | Os::OutOfMemory => ErrorKind::NoSpace,
            Os::FileTooLarge => ErrorKind::TooLarge,
            Os::TimedOut => ErrorKind::Timeout,
            Os::ConnectionRefused => ErrorKind::Unavailable,
            Os::ConnectionReset | Os::ConnectionAborted | Os::BrokenPipe => ErrorKind::PeerDown,
            _ => ErrorKind::Io,
        };
        Self::new(kind, op, context).with_source(source)
    }

    /// Names the connector or store that the operation was for.
    #[must_use]
    pub fn with_connector(mut self, connector: impl Into<Cow<'static, str>>) -> Self {
        Arc::make_mut(&mut self.0).connector = Some(connector.into());
        self
    }

    /// Attaches the underlying cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// The class of the failure.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The operation that failed, one of the crate's verbs (`put`, `get`, `resolve`, ...).
    pub fn op(&self) -> &'static str {
        self.0.op
    }

    /// The connector or store concerned, where known.
    pub fn connector(&self) -> Option<&str> {
        self.0.connector.as_deref()
    }

    /// The clause of context, without kind and operation.
    pub fn context(&self) -> &str {
        &self.0.context
    }

    /// Whether the object is simply not there.
    pub fn is_not_found(&self) -> bool {
        self.0.kind == ErrorKind::NotFound
    }

    /// Whether the same call may succeed later without any other change.
    pub fn is_retryable(&self) -> bool {
        use ErrorKind::{Cancelled, NoSpace, Timeout, Unavailable};
        matches!(self.0.kind, Timeout | Cancelled | NoSpace | Unavailable)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.op)?;
        if let Some(connector) = &self.0.connector {
            write!(f, " on {connector}")?;
        }
        write!(f, ": {}", self.0.kind)?;
        if !self.0.context.is_empty() {
            write!(f, ": {}", self.0.context)?;
        }
        match &self.0.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:?})", self.0.kind)?;
        let mut cause = self.0.source.as_deref().and_then(|s| s.source());
        while let Some(error) = cause {
            write!(f, "\n  caused by: {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such object",
            Self::TypeMismatch => "wrong type",
            Self::Invalid => "malformed input",
            Self::Corrupt => "corrupt object",
            Self::Codec => "codec failed",
            Self::Cancelled => "cancelled",
            Self::Timeout => "deadline passed",
            Self::Closed => "closed",
            Self::NoSpace => "no space",
            Self::TooLarge => "too large",
            Self::Unsupported => "not supported",
            Self::UnknownScheme => "unknown scheme",
            Self::Config => "wrong configuration",
            Self::ForeignKey => "foreign key",
            Self::Permission => "permission denied",
            Self::AlreadyExists => "exists already",
            Self::Stale => "stale object",
            Self::Forked => "inherited through fork",
            Self::Unavailable => "unavailable",
            Self::PeerDown => "peer down",
            Self::Unauthorized => "unauthorized",
            Self::Incompatible => "incompatible version",
            Self::Io => "I/O error",
        })
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Os;
        let kind = match error.kind() {
            ErrorKind::NotFound => Os::NotFound,
            ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::TypeMismatch | ErrorKind::Codec => Os::InvalidData,
            ErrorKind::Timeout => Os::TimedOut,
            ErrorKind::NoSpace => Os::StorageFull,
            ErrorKind::Permission => Os::PermissionDenied,
            ErrorKind::AlreadyExists => Os::AlreadyExists,
            ErrorKind::Unsupported | ErrorKind::UnknownScheme | ErrorKind::Incompatible => Os::Unsupported,
            ErrorKind::Stale => Os::StaleNetworkFileHandle,
            ErrorKind::Unavailable => Os::ConnectionRefused,
            ErrorKind::PeerDown => Os::ConnectionReset,
            _ => Os::Other,
        };
        Self::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_one_line() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
        assert_eq!(size_of::<Result<()>>(), size_of::<usize>());
        let error = Error::io("put", "/scratch/x", std::io::Error::from_raw_os_error(28)).with_connector("file");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.is_retryable() && !error.is_not_found());
        let line = error.to_string();
        assert!(line.starts_with("put on file: no space: /scratch/x: No space left"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn services_and_peers() {
        let refused = Error::io("open", "", std::io::ErrorKind::ConnectionRefused.into());
        assert_eq!(refused.kind(), ErrorKind::Unavailable);
        assert!(refused.is_retryable());
        for gone in [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe] {
            let died = Error::io("get", "", gone.into());
            assert_eq!(died.kind(), ErrorKind::PeerDown);
            assert!(!died.is_retryable());
            assert_eq!(std::io::Error::from(died).kind(), std::io::ErrorKind::ConnectionReset);
        }
        for kind in [ErrorKind::Stale, ErrorKind::Forked, ErrorKind::Incompatible] {
            let error = Error::new(kind, "get", "x");
            assert!(!error.is_retryable() && !error.is_not_found(), "{error}");
        }
    }

    #[test]
    fn clone_shares_and_builder_copies() {
        let first = Error::new(ErrorKind::Closed, "get", "x");
        let second = first.clone().with_connector("memory");
        assert_eq!(first.connector(), None);
        assert_eq!(second.connector(), Some("memory"));
    }
}
