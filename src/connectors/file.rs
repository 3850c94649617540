//! `file://DIRECTORY`: objects in a directory that processes, or nodes, share.
//!
//! ```text
//! DIRECTORY/
//!   6f1d..c2            an object: 32 hexadecimal digits of random, mode 0400, never written or truncated once it has this name
//!   6f1d..c2.declared   a deferred key that waits for its object; holds the format
//!   .tmp/BOOT-NS-PID-START-RANDOM   an object being written, only where files without a name (O_TMPFILE) cannot be had
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::ConnectorConfig;
use crate::connector::{Capabilities, Connector, ConnectorExt, Registration};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Region, RegionMut};

mod directory;
mod draft;
#[expect(unsafe_code, reason = "object bytes are mapped files")]
mod mapping;
mod watch;

use directory::{Directory, Fsync, Name};
use draft::Draft;
use mapping::DraftMemory;

/// Keeps objects as files of one directory, until they are evicted.
///
/// Objects outlive every process. [`put`](Connector::put) is one `write` into a file that nobody can see, and a link that
/// makes it visible; [`get`](Connector::get) maps the file. A producer that is killed half-way leaves nothing: the kernel
/// frees a file that never had a name.
///
/// # Cost
/// What touches the file system runs in the [`Pending`], because a metadata call of a parallel file system can take
/// milliseconds: on the waiting thread under `.wait()` (one allocation more than calling directly), in the pool under
/// `.await`. Two exceptions do their work before they return: `put`, which only borrows the bytes, and
/// [`reserve`](Connector::reserve). Batches are one call, not one each.
///
/// Objects of up to 64 KiB are read and written through process memory, which is faster than mapping them and spares the
/// kernel's limits on mappings and open files. Larger ones are mapped, both ways.
///
/// # File systems
/// Mapping needs a file system that keeps the bytes of a removed file while somebody has it open: local ones, Lustre,
/// GPFS, CephFS and BeeGFS. On all others (NFS, SMB, FUSE) an object removed by another node would end in SIGBUS, so
/// there `get` and `reserve` go through process memory, and the connector reports neither zero-copy capability. Waiters
/// for a deferred key are woken by inotify on local file systems, and look every 50 ms elsewhere.
///
/// Whoever may write to the directory is trusted: truncating an object's file from outside ends its readers in SIGBUS.
/// Files have mode 0400, and a directory that the connector creates has 0700, so that this takes intent.
pub struct FileConnector {
    config: ConnectorConfig,
    capabilities: Capabilities,
    /// `None` once closed; operations under way keep theirs.
    directory: RwLock<Option<Arc<Directory>>>,
}

/// The row of the connector table.
pub const REGISTRATION: Registration = Registration::new(
    SCHEME,
    "shared directory",
    "objects as files of a directory; they outlive every process",
    OPTIONS,
    CAPABILITIES,
    |config| Ok(Arc::new(FileConnector::open(config)?)),
);

impl FileConnector {
    /// Opens the store in `directory`, which is created with its parents, for this user alone, when it is missing.
    ///
    /// # Cost
    /// As [`open`](Self::open).
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn new(directory: impl AsRef<Path>) -> Result<Self> {
        match directory.as_ref().to_str() {
            Some(location) => Self::open(&ConnectorConfig::new(SCHEME, location)),
            None => Err(not_utf8(directory.as_ref())),
        }
    }

    /// Opens the store that `config` describes.
    ///
    /// The location is a directory; a relative one counts from the working directory, and [`config`](Connector::config)
    /// has it absolute, without symbolic links, so that it means the same elsewhere. An empty location is
    /// `proxystore-UID` in `$TMPDIR`, else `/tmp`, and must belong to this user alone.
    ///
    /// | option | meaning | cost of a put or commit |
    /// |---|---|---|
    /// | `fsync=none` | survives a killed process, not a crash of the machine (default) | none |
    /// | `fsync=data` | the bytes are on disk before the object is visible; a full NFS server is noticed | a disk flush |
    /// | `fsync=dir` | also its name is, before the key is returned | two disk flushes |
    ///
    /// # Cost
    /// Some metadata calls; lists `.tmp` where there is one, to remove what dead producers of this node left there.
    ///
    /// # Errors
    /// `Config` for wrong options and for a location that is no directory, `Permission` when the directory cannot be made
    /// or the default one belongs to somebody else. A directory that is only readable opens, and refuses puts.
    pub fn open(config: &ConnectorConfig) -> Result<Self> {
        config.check_options(OPTIONS)?;
        let fsync = config.parse_option("fsync", "none, data or dir", Fsync::parse)?.unwrap_or_default();
        let location = match config.location() {
            "" => default_location()?,
            location => PathBuf::from(location),
        };
        let directory = Directory::open(&location, fsync)?;
        let Some(path) = directory.path().to_str() else { return Err(not_utf8(directory.path())) };
        let mut canonical = ConnectorConfig::new(SCHEME, path);
        if fsync != Fsync::default() {
            canonical = canonical.with_option("fsync", fsync.name());
        }
        draft::sweep(&directory);
        let capabilities = capabilities(&directory);
        Ok(Self { config: canonical, capabilities, directory: RwLock::new(Some(Arc::new(directory))) })
    }

    fn directory(&self, op: &'static str) -> Result<Arc<Directory>> {
        match &*self.directory.read().unwrap_or_else(PoisonError::into_inner) {
            Some(directory) => Ok(Arc::clone(directory)),
            None => Err(Error::new(ErrorKind::Closed, op, "").with_connector(SCHEME)),
        }
    }

    /// The directory, and the name in it of a key that can be ours.
    fn locate(&self, op: &'static str, key: &Key) -> Result<(Arc<Directory>, Name)> {
        let directory = self.directory(op)?;
        self.check_scheme(op, key)?;
        Ok((directory, Name::of(op, key)?))
    }

    /// Does `call` for one key, in the `Pending`.
    fn blocking<T: Send + 'static>(
        &self,
        op: &'static str,
        key: &Key,
        call: impl FnOnce(&Arc<Directory>, Name, &Key) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let key = *key;
        match self.locate(op, &key) {
            Ok((directory, name)) => Pending::blocking(move || call(&directory, name, &key)),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    /// Does `call` for all keys, in one blocking call.
    fn blocking_batch<T: Send + 'static>(
        &self,
        op: &'static str,
        keys: &[Key],
        call: fn(&Directory, Name, &Key) -> Result<T>,
    ) -> Pending<Vec<T>> {
        let located = keys.iter().map(|key| Ok((*key, self.locate(op, key)?.1))).collect::<Result<Vec<_>>>();
        match located.and_then(|located| Ok((self.directory(op)?, located))) {
            Ok((directory, located)) => {
                Pending::blocking(move || located.iter().map(|(key, name)| call(&directory, *name, key)).collect())
            }
            Err(error) => Pending::ready(Err(error)),
        }
    }
}

impl Connector for FileConnector {
    fn config(&self) -> &ConnectorConfig {
        &self.config
    }

    /// Narrower than the table's on network file systems: see [`FileConnector`].
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Lends a file without a name, mapped for writing, with all of its blocks reserved: filling it cannot fail.
    ///
    /// # Cost
    /// Up to 64 KiB, and on network file systems, an allocation of process memory. Else four system calls; the memory is
    /// not touched where the file system can reserve blocks, and written with zeros where it cannot. Holds an open file
    /// and a mapping until it is committed or dropped; when the process has no more of these, it is process memory too.
    ///
    /// # Errors
    /// `NoSpace` on a full disk or quota, with nothing left behind; `TooLarge`, `Permission`, `Closed`, `Io`.
    fn reserve(&self, len: usize) -> Result<RegionMut> {
        let directory = self.directory("reserve")?;
        // Process memory also refuses what no address space holds.
        if len <= SMALL || len > isize::MAX as usize || !directory.file_system().keeps_removed {
            return RegionMut::heap(len);
        }
        let fail = |error| directory.fail_to_write("reserve", error);
        let draft = match Draft::create(&directory) {
            Err(error) if is_out_of_handles(&error) => return RegionMut::heap(len),
            draft => draft.map_err(fail)?,
        };
        draft.reserve(len).map_err(fail)?;
        match DraftMemory::map(draft, len) {
            Ok(memory) => Ok(RegionMut::new(Box::new(memory))),
            Err(error) if is_out_of_handles(&error) => RegionMut::heap(len),
            Err(error) => Err(fail(error)),
        }
    }

    /// Makes the written part of a reservation an object.
    ///
    /// # Cost
    /// A truncation, a link and what `fsync` asks for; no copy for a mapped reservation of the same directory. One
    /// `write` of the bytes otherwise.
    ///
    /// # Errors
    /// `NoSpace`, `Permission`, `Closed`, `Io`; nothing is left behind.
    fn commit(&self, region: RegionMut, format: Format) -> Pending<Key> {
        match self.directory("commit") {
            Ok(directory) => Pending::blocking(move || commit(&directory, "commit", region, format)),
            Err(error) => Pending::ready(Err(error)),
        }
    }

    /// Reads an object.
    ///
    /// # Cost
    /// Four system calls; one copy up to 64 KiB, none beyond. On network file systems always a copy, and also where the
    /// process has 32768 objects mapped.
    ///
    /// # Errors
    /// `Corrupt` when the length is not the key's, `ForeignKey`, `Invalid`, `Permission`, `Closed`, `Io`.
    fn get(&self, key: &Key) -> Pending<Option<Region>> {
        self.blocking("get", key, |directory, name, key| directory.read("get", name, key))
    }

    /// Whether the object is there.
    ///
    /// # Cost
    /// One system call.
    fn exists(&self, key: &Key) -> Pending<bool> {
        self.blocking("exists", key, |directory, name, key| directory.contains("exists", name, key))
    }

    /// Removes the object's file; mapped regions keep its blocks until they are dropped.
    ///
    /// # Cost
    /// Two system calls; for a deferred key three.
    fn evict(&self, key: &Key) -> Pending<()> {
        self.blocking("evict", key, |directory, name, key| directory.evict("evict", name, key))
    }

    /// Opens the object, then removes its name: whose removal succeeds has it.
    ///
    /// Nothing is lost when the process dies or the reading fails before that, and there is no third state to clean up.
    ///
    /// # Cost
    /// As [`get`](Connector::get), and one system call.
    fn take(&self, key: &Key) -> Pending<Option<Region>> {
        self.blocking("take", key, |directory, name, key| directory.take("take", name, key))
    }

    /// Releases the directory's handle and ends those who wait for deferred keys; the objects stay.
    fn close(&self) -> Result<()> {
        let directory = self.directory.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(directory) = directory {
            watch::close(&directory);
        }
        Ok(())
    }

    /// Writes the caller's bytes to a file, before it returns; the rest is in the `Pending` when `fsync` makes it slow.
    ///
    /// # Cost
    /// One `write` per 2 GiB, straight from `bytes`, and three more system calls. No process memory.
    ///
    /// # Errors
    /// `NoSpace`, `Permission`, `TooLarge`, `Closed`, `Io`; nothing is left behind.
    fn put(&self, bytes: &[u8], format: Format) -> Pending<Key> {
        let written = self.directory("put").and_then(|directory| {
            let draft = write_draft(&directory, bytes).map_err(|error| directory.fail_to_write("put", error))?;
            Ok((directory, draft))
        });
        let (directory, draft) = match written {
            Ok(written) => written,
            Err(error) => return Pending::ready(Err(error)),
        };
        let len = bytes.len() as u64;
        match directory.fsync() {
            Fsync::None => Pending::ready(publish(&directory, "put", draft, len, format)),
            Fsync::Data | Fsync::Dir => Pending::blocking(move || publish(&directory, "put", draft, len, format)),
        }
    }

    fn commit_batch(self: Arc<Self>, regions: Vec<(RegionMut, Format)>) -> Pending<Vec<Key>> {
        let directory = match self.directory("commit") {
            Ok(directory) => directory,
            Err(error) => return Pending::ready(Err(error)),
        };
        let batch = Pending::blocking(move || {
            let mut keys: Vec<Key> = Vec::with_capacity(regions.len());
            for (region, format) in regions {
                match commit(&directory, "commit", region, format) {
                    Ok(key) => keys.push(key),
                    Err(error) => {
                        for key in keys {
                            // The failure that is reported is the first one.
                            let _ = Name::of("commit", &key).and_then(|name| directory.evict("commit", name, &key));
                        }
                        return Err(error);
                    }
                }
            }
            Ok(keys)
        });
        crate::connector::undo_if_abandoned(self, batch)
    }

    fn get_batch(&self, keys: &[Key]) -> Pending<Vec<Option<Region>>> {
        self.blocking_batch("get", keys, |directory, name, key| directory.read("get", name, key))
    }

    fn exists_batch(&self, keys: &[Key]) -> Pending<Vec<bool>> {
        self.blocking_batch("exists", keys, |directory, name, key| directory.contains("exists", name, key))
    }

    fn evict_batch(&self, keys: &[Key]) -> Pending<()> {
        self.blocking_batch("evict", keys, |directory, name, key| directory.evict("evict", name, key))
            .and_then(|_| Ok(()))
    }

    /// Makes a small file that stands for the object until it is committed or evicted, whatever becomes of this process.
    ///
    /// # Cost
    /// Four system calls and an inode.
    fn declare(&self, format: Format) -> Result<Key> {
        let directory = self.directory("declare")?;
        let name = Name::random();
        directory.declare("declare", name, format)?;
        Key::new(SCHEME, name.bytes(), Key::UNKNOWN_LEN, format)
    }

    /// Makes the object of a declared key, then wakes those that wait for it, in any process of the node.
    ///
    /// # Cost
    /// As [`commit`](Connector::commit), and four system calls.
    ///
    /// # Errors
    /// `AlreadyExists` when it was committed before, `NotFound` when the key was evicted, or its object taken,
    /// `TypeMismatch` when it was declared with another format; else as `commit`.
    fn commit_at(&self, key: &Key, region: RegionMut) -> Pending<()> {
        self.blocking("commit_at", key, |directory, name, key| {
            directory.check_declared("commit_at", name, key)?;
            let fail = |error| directory.fail_to_write("commit_at", error);
            let (draft, _) = into_draft(directory, region).map_err(fail)?;
            directory.publish_declared("commit_at", draft, name, key)
        })
    }

    /// Waits for the file that [`declare`](Connector::declare) made to go away, then reads.
    ///
    /// # Cost
    /// While it waits: no processor time on a local file system but one look a second, and an inotify watch; one thread
    /// for all waiters of the process.
    ///
    /// # Errors
    /// `Timeout` at the deadline, `NotFound` for a key that is neither declared nor committed, or is evicted meanwhile;
    /// else as [`get`](Connector::get).
    ///
    /// # Cancel safety
    /// Dropping the `Pending` ends the watch within a second.
    fn get_when_committed(&self, key: &Key) -> Pending<Region> {
        let (directory, name) = match self.locate("get", key) {
            Ok(located) => located,
            Err(error) => return Pending::ready(Err(error)),
        };
        let key = *key;
        watch::until_settled(&directory, name).chain(move |()| {
            Pending::blocking(move || {
                let missing = crate::connector::not_found("get", &key);
                directory.read("get", name, &key)?.ok_or_else(missing)
            })
        })
    }
}

impl fmt::Debug for FileConnector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileConnector").field("config", &self.config).finish_non_exhaustive()
    }
}

fn commit(directory: &Arc<Directory>, op: &'static str, region: RegionMut, format: Format) -> Result<Key> {
    let (draft, len) = into_draft(directory, region).map_err(|error| directory.fail_to_write(op, error))?;
    publish(directory, op, draft, len as u64, format)
}

fn publish(directory: &Directory, op: &'static str, draft: Draft, len: u64, format: Format) -> Result<Key> {
    let name = Name::random();
    directory.publish(draft, name).map_err(|error| directory.fail_to_write(op, error))?;
    Key::new(SCHEME, name.bytes(), len, format)
}

/// The file of a region's bytes: its own, where it was reserved in this directory, else a new one.
fn into_draft(directory: &Arc<Directory>, region: RegionMut) -> std::io::Result<(Draft, usize)> {
    let len = region.len();
    let draft = match region.into_memory::<DraftMemory>() {
        Ok((memory, len)) if memory.draft().directory().is_same(directory) => memory.into_draft(len)?,
        Ok((memory, len)) => write_draft(directory, memory.written(len))?,
        Err(region) => write_draft(directory, region.as_slice())?,
    };
    Ok((draft, len))
}

fn write_draft(directory: &Arc<Directory>, bytes: &[u8]) -> std::io::Result<Draft> {
    let draft = Draft::create(directory)?;
    // `write` takes at most 2 GiB less a page at a time; `write_all` goes on.
    std::io::Write::write_all(&mut draft.file(), bytes)?;
    Ok(draft)
}

/// Whether the process may have no more files or mappings: what process memory can still do.
fn is_out_of_handles(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NODEV))
}

/// `proxystore-UID` in the directory for temporary files, if nobody else made it.
fn default_location() -> Result<PathBuf> {
    let path = std::env::temp_dir().join(format!("proxystore-{}", rustix::process::geteuid().as_raw()));
    directory::create_private(&path)?;
    Ok(path)
}

fn capabilities(directory: &Directory) -> Capabilities {
    let mut all = Capabilities::DEFERRED | Capabilities::CROSS_PROCESS | Capabilities::OUTLIVES_PRODUCER;
    let file_system = directory.file_system();
    if file_system.keeps_removed {
        all = all | Capabilities::ZERO_COPY_GET | Capabilities::ZERO_COPY_PUT;
    }
    all | if file_system.is_local { Capabilities::NOTIFY } else { Capabilities::CROSS_NODE }
}

fn not_utf8(path: &Path) -> Error {
    let context = format!("{}: a store's directory needs a name in UTF-8, to fit in its URL", path.display());
    Error::new(ErrorKind::Config, "open", context).with_connector(SCHEME)
}

const SCHEME: &str = "file";

const OPTIONS: &[&str] = &["fsync"];

/// What the connector can do, each on some file system; [`FileConnector::capabilities`] says what it can on its own.
const CAPABILITIES: Capabilities = Capabilities::ZERO_COPY_GET
    .union(Capabilities::ZERO_COPY_PUT)
    .union(Capabilities::DEFERRED)
    .union(Capabilities::NOTIFY)
    .union(Capabilities::CROSS_PROCESS)
    .union(Capabilities::CROSS_NODE)
    .union(Capabilities::OUTLIVES_PRODUCER);

/// Largest object that goes through process memory. Measured on ext4: opening and reading 4 KiB takes 3 us and mapping it
/// 9 us, at 64 KiB 6 and 11, and from 1 MiB on mapping wins.
const SMALL: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::BufMut;

    use super::directory::FileSystem;
    use super::*;

    /// A store in a directory that pretends to be another one.
    fn pretending(change: impl FnOnce(&mut Directory)) -> (tempfile::TempDir, FileConnector) {
        let place = tempfile::tempdir().unwrap();
        let mut store = FileConnector::new(place.path()).unwrap();
        let mut directory = Directory::open(place.path(), Fsync::None).unwrap();
        change(&mut directory);
        store.capabilities = capabilities(&directory);
        store.directory = RwLock::new(Some(Arc::new(directory)));
        (place, store)
    }

    fn drafts(place: &Path) -> usize {
        std::fs::read_dir(place.join(".tmp")).map_or(0, |entries| entries.count())
    }

    #[test]
    fn drafts_with_names() {
        let (place, store) = pretending(|directory| directory.set_nameless(false));
        for len in [0, 10, 100_000] {
            let key = store.put(&vec![1; len], Format::RAW).wait().unwrap();
            assert_eq!(drafts(place.path()), 0);
            let mut region = store.reserve(len).unwrap();
            assert_eq!(drafts(place.path()), usize::from(len > SMALL));
            region.put_slice(&vec![2; len / 2]);
            let committed = store.commit(region, Format::RAW).wait().unwrap();
            drop(store.reserve(len).unwrap());
            assert_eq!(drafts(place.path()), 0, "committed and dropped ones are gone");
            assert_eq!(*store.take(&key).wait().unwrap().unwrap(), vec![1; len]);
            assert_eq!(*store.take(&committed).wait().unwrap().unwrap(), vec![2; len / 2]);
        }
        // The draft of another directory stays there.
        let (other_place, other) = pretending(|directory| directory.set_nameless(false));
        let mut region = other.reserve(100_000).unwrap();
        region.put_slice(b"from there");
        let key = store.commit(region, Format::RAW).wait().unwrap();
        assert_eq!(&*store.take(&key).wait().unwrap().unwrap(), b"from there");
        assert_eq!(drafts(other_place.path()), 0);

        let declared = store.declare(Format::RAW).unwrap();
        store.commit_at(&declared, RegionMut::heap(0).unwrap()).wait().unwrap();
        let error = store.commit_at(&declared, RegionMut::heap(0).unwrap()).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        store.evict(&declared).wait().unwrap();
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "nothing but .tmp");
    }

    #[test]
    fn network_file_systems_get_copies_and_looks() {
        let (place, store) = pretending(|directory| directory.set_file_system(FileSystem::of(0x6969)));
        let narrow = store.capabilities();
        for missing in [Capabilities::ZERO_COPY_GET, Capabilities::ZERO_COPY_PUT, Capabilities::NOTIFY] {
            assert!(!narrow.contains(missing), "{missing:?}");
        }
        assert!(narrow.contains(Capabilities::CROSS_NODE) && REGISTRATION.capabilities.contains(narrow));
        let bytes: Vec<u8> = (0..300_000u32).map(|i| i as u8).collect();
        let key = store.put(&bytes, Format::RAW).wait().unwrap();
        let region = store.get(&key).wait().unwrap().unwrap();
        // Even truncation, which ends a mapping in SIGBUS, does not reach the copy.
        let file = std::fs::read_dir(place.path()).unwrap().flatten().find(|entry| entry.path().is_file()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(file.path(), mode).unwrap();
        std::fs::File::options().write(true).open(file.path()).unwrap().set_len(0).unwrap();
        assert_eq!(*region, bytes[..]);
        assert_eq!(drafts(place.path()), 0);

        let declared = store.declare(Format::RAW).unwrap();
        let pending = store.get_when_committed(&declared);
        store.commit_at(&declared, RegionMut::heap(0).unwrap()).wait().unwrap();
        assert!(pending.deadline(Duration::from_secs(10)).wait().unwrap().is_empty());
    }

    #[test]
    fn table_row() {
        let place = tempfile::tempdir().unwrap();
        let config = ConnectorConfig::new(SCHEME, place.path().to_str().unwrap());
        let store = crate::connectors::open(&config.clone().with_option("fsync", "data")).unwrap();
        assert_eq!(store.config().option("fsync"), Some("data"));
        assert!(REGISTRATION.capabilities.contains(store.capabilities()));
        let error = crate::connectors::open(&config.with_option("sync", "data")).err().unwrap();
        assert!(error.context().contains("fsync"), "{error}");
    }
}
