//! The directory of a file store: names, and what happens to them.

use std::fmt::{self, Write as _};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{self as sys, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::draft::Draft;
use super::{SCHEME, SMALL, mapping};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::region::Region;

/// An open directory. All names are looked up in it, wherever it is moved.
pub(super) struct Directory {
    /// `O_PATH`, so that a directory that may only be searched will do.
    handle: OwnedFd,
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    fsync: Fsync,
    file_system: FileSystem,
    /// Whether files can be made without a name here, and named later; found out by the first put.
    nameless: OnceLock<bool>,
}

impl Directory {
    /// Opens `location`, making it with its parents when it is missing.
    pub(super) fn open(location: &Path, fsync: Fsync) -> Result<Self> {
        let fail = |error: io::Error| fail_to_open(location, error);
        if !location.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(location).map_err(fail)?;
        }
        let path = location.canonicalize().map_err(fail)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = sys::open(&path, flags, Mode::empty()).map_err(|error| fail(error.into()))?;
        let stat = sys::fstat(&handle).map_err(|error| fail(error.into()))?;
        let magic = sys::fstatfs(&handle).map_err(|error| fail(error.into()))?.f_type;
        let file_system = FileSystem::of(magic as u32);
        let identity = (stat.st_dev as u64, stat.st_ino as u64);
        Ok(Self { handle, path, identity, fsync, file_system, nameless: OnceLock::new() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    pub(super) fn fsync(&self) -> Fsync {
        self.fsync
    }

    pub(super) fn file_system(&self) -> FileSystem {
        self.file_system
    }

    /// Whether both are the same directory, however they were opened.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.identity == other.identity
    }

    /// Whether drafts can be files without a name: the kernel frees those of killed producers.
    ///
    /// Trusts local file systems alone, because some others make such files and cannot name them afterwards.
    pub(super) fn has_nameless(&self) -> io::Result<bool> {
        if let Some(known) = self.nameless.get() {
            return Ok(*known);
        }
        let possible = self.file_system.is_local
            && match self.create_nameless() {
                // Names go through /proc, which a container may lack. The link to a name that is taken tells, and is
                // never made.
                Ok(file) => self.link(&file, ".") == Err(Errno::EXIST),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => false,
                Err(error) => return Err(error.into()),
            };
        Ok(*self.nameless.get_or_init(|| possible))
    }

    pub(super) fn create_nameless(&self) -> rustix::io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(sys::openat(&self.handle, ".", flags, OBJECT_MODE)?.into())
    }

    /// Gives a file without a name one that is free.
    fn link(&self, file: &File, name: &str) -> rustix::io::Result<()> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        sys::linkat(CWD, path, &self.handle, name, AtFlags::SYMLINK_FOLLOW)
    }

    /// Gives a draft with a name another one that is free; false when it keeps the old one beside it.
    fn rename(&self, from: &str, to: &str) -> rustix::io::Result<bool> {
        match sys::renameat_with(&self.handle, from, &self.handle, to, RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => self.link_beside(from, to).map(|()| false),
            result => result.map(|()| true),
        }
    }

    /// What replaces nothing on every file system with hard links.
    fn link_beside(&self, from: &str, to: &str) -> rustix::io::Result<()> {
        sys::linkat(&self.handle, from, &self.handle, to, AtFlags::empty())
    }

    /// Makes a draft visible as `name`, which must be free, complete and as durable as asked.
    pub(super) fn publish(&self, draft: Draft, name: Name) -> io::Result<()> {
        if self.fsync != Fsync::None {
            sys::fdatasync(draft.file())?;
        }
        let to = name.to_string();
        let moved = match draft.name() {
            None => self.link(draft.file(), &to).map(|()| true)?,
            Some(from) => self.rename(from, &to)?,
        };
        match moved {
            true => draft.keep(),
            false => drop(draft),
        }
        match self.sync_names() {
            Ok(()) => Ok(()),
            Err(error) => {
                // Not acknowledged, so not left behind; the failure to report is the first one.
                let _ = self.unlink(&to);
                Err(error.into())
            }
        }
    }

    /// Brings names to the disk, where `fsync` wants that.
    fn sync_names(&self) -> rustix::io::Result<()> {
        if self.fsync != Fsync::Dir {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        sys::fsync(sys::openat(&self.handle, ".", flags, Mode::empty())?)
    }

    /// Reads the object `name`.
    pub(super) fn read(&self, op: &'static str, name: Name, key: &Key) -> Result<Option<Region>> {
        let Some((file, len)) = self.find(op, name, key)? else { return Ok(None) };
        self.load(op, &file, len, key)
    }

    /// Opens the object, if it is one and as long as the key says.
    fn find(&self, op: &'static str, name: Name, key: &Key) -> Result<Option<(File, usize)>> {
        // Neither a link nor a pipe that somebody put here may lead us elsewhere or block us.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = match sys::openat(&self.handle, name.to_string(), flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(error) if is_missing(error) => return Ok(None),
            Err(Errno::LOOP) => return Err(corrupt(op, key, "a symbolic link")),
            Err(error) => return Err(self.fail(op, error.into())),
        };
        match sys::fstat(&file) {
            Ok(stat) => Ok(Some((file, check(op, key, &stat)?))),
            Err(error) if is_missing(error) => Ok(None),
            Err(error) => Err(self.fail(op, error.into())),
        }
    }

    fn load(&self, op: &'static str, file: &File, len: usize, key: &Key) -> Result<Option<Region>> {
        if len == 0 {
            return Ok(Some(Region::default()));
        }
        if len > SMALL && self.file_system.keeps_removed {
            // Where mapping fails, as for want of address space, a copy may still succeed.
            if let Ok(Some(region)) = mapping::map(file, len) {
                return Ok(Some(region));
            }
        }
        match mapping::read(file, len) {
            Ok(Some(region)) => Ok(Some(region)),
            Ok(None) => Err(corrupt(op, key, "a file that became shorter while it was read")),
            Err(error) if Errno::from_io_error(&error).is_some_and(is_missing) => Ok(None),
            Err(error) => Err(self.fail(op, error)),
        }
    }

    /// Whether the object can be read.
    pub(super) fn contains(&self, op: &'static str, name: Name, key: &Key) -> Result<bool> {
        match sys::statat(&self.handle, name.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => check(op, key, &stat).map(|_| true),
            Err(error) if is_missing(error) => Ok(false),
            Err(error) => Err(self.fail(op, error.into())),
        }
    }

    /// Removes the object, and the declaration of a deferred one.
    pub(super) fn evict(&self, op: &'static str, name: Name, key: &Key) -> Result<()> {
        // The declaration first: a commit that finds it gone takes the object back.
        self.withdraw(op, name, key)?;
        if self.contains(op, name, key)? {
            self.unlink(&name.to_string()).map_err(|error| self.fail(op, error.into()))?;
        }
        Ok(())
    }

    /// Reads and removes the object; the one whose removal succeeds has it.
    pub(super) fn take(&self, op: &'static str, name: Name, key: &Key) -> Result<Option<Region>> {
        let Some((file, len)) = self.find(op, name, key)? else { return Ok(None) };
        let Some(region) = self.load(op, &file, len, key)? else { return Ok(None) };
        match self.unlink(&name.to_string()) {
            Ok(true) => {
                // Gone already, unless the producer died just after it made the object. The object is ours either way.
                let _ = self.withdraw(op, name, key);
                Ok(Some(region))
            }
            Ok(false) => Ok(None),
            Err(error) => Err(self.fail(op, error.into())),
        }
    }

    /// Makes the file that stands for an object to come.
    pub(super) fn declare(&self, op: &'static str, name: Name, format: Format) -> Result<()> {
        let fail = |error| self.fail_to_write(op, error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = sys::openat(&self.handle, name.declaration(), flags, OBJECT_MODE).map_err(|e| fail(e.into()))?;
        io::Write::write_all(&mut File::from(file), encode(format).as_bytes()).map_err(|error| {
            // The failure to report is the first one.
            let _ = self.unlink(&name.declaration());
            fail(error)
        })
    }

    /// Whether the object `name` is still to come.
    pub(super) fn is_awaited(&self, name: Name) -> rustix::io::Result<bool> {
        let has = |name: String| match sys::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Ok(true),
            Err(error) if is_missing(error) => Ok(false),
            Err(error) => Err(error),
        };
        Ok(has(name.declaration())? && !has(name.to_string())?)
    }

    /// Refuses a key that cannot be committed any more, before work is spent on it.
    pub(super) fn check_declared(&self, op: &'static str, name: Name, key: &Key) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut declared = String::new();
        match sys::openat(&self.handle, name.declaration(), flags, Mode::empty()) {
            Ok(file) => {
                let mut bounded = io::Read::take(File::from(file), 64);
                io::Read::read_to_string(&mut bounded, &mut declared).map_err(|error| self.fail(op, error))?;
            }
            Err(error) if is_missing(error) => return Err(self.not_declared(op, name, key)),
            Err(error) => return Err(self.fail(op, error.into())),
        }
        if declared != encode(key.format()) {
            let context = format!("{key:?} was declared with another format");
            return Err(Error::new(ErrorKind::TypeMismatch, op, context).with_connector(SCHEME));
        }
        Ok(())
    }

    /// Makes a draft the object of a declared key.
    ///
    /// The object comes before its declaration goes, so whoever sees neither knows that the key is dead.
    pub(super) fn publish_declared(&self, op: &'static str, draft: Draft, name: Name, key: &Key) -> Result<()> {
        match self.publish(draft, name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(already_exists(op, key)),
            Err(error) => return Err(self.fail_to_write(op, error)),
        }
        match self.unlink(&name.declaration()) {
            Ok(true) => Ok(()),
            // Evicted since it was checked: nobody may find the object.
            Ok(false) => {
                self.unlink(&name.to_string()).map_err(|error| self.fail(op, error.into()))?;
                Err(self.not_declared(op, name, key))
            }
            Err(error) => Err(self.fail(op, error.into())),
        }
    }

    fn not_declared(&self, op: &'static str, name: Name, key: &Key) -> Error {
        match sys::statat(&self.handle, name.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => already_exists(op, key),
            Err(_) => crate::connector::not_found(op, key)(),
        }
    }

    /// Removes the declaration of a deferred key.
    fn withdraw(&self, op: &'static str, name: Name, key: &Key) -> Result<()> {
        if !key.is_len_known() {
            self.unlink(&name.declaration()).map_err(|error| self.fail(op, error.into()))?;
        }
        Ok(())
    }

    /// Removes a name; false when it was gone.
    pub(super) fn unlink(&self, name: &str) -> rustix::io::Result<bool> {
        match sys::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(error) if is_missing(error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn fail(&self, op: &'static str, error: io::Error) -> Error {
        Error::io(op, self.path.display().to_string(), error).with_connector(SCHEME)
    }

    /// The error of something that makes a file, which in a directory that was removed fails in various ways.
    pub(super) fn fail_to_write(&self, op: &'static str, error: io::Error) -> Error {
        let is_removed = sys::fstat(&self.handle).is_ok_and(|stat| stat.st_nlink == 0);
        if !is_removed && error.kind() != io::ErrorKind::NotFound {
            return self.fail(op, error);
        }
        let context = format!("{}: the directory was removed; open the store again", self.path.display());
        Error::new(ErrorKind::Io, op, context).with_source(error).with_connector(SCHEME)
    }

    #[cfg(test)]
    pub(super) fn set_nameless(&self, possible: bool) {
        self.nameless.set(possible).expect("set before the first put");
    }

    #[cfg(test)]
    pub(super) fn set_file_system(&mut self, file_system: FileSystem) {
        self.file_system = file_system;
    }
}

/// How durable an object is when its key is returned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Fsync {
    #[default]
    None,
    Data,
    Dir,
}

impl Fsync {
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::None, Self::Data, Self::Dir].into_iter().find(|policy| policy.name() == text)
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Data => "data",
            Self::Dir => "dir",
        }
    }
}

/// What the kind of file system under a directory promises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FileSystem {
    /// All changes are made by this node, so inotify tells of all of them.
    pub(super) is_local: bool,
    /// An open file keeps its bytes when any node removes its name.
    pub(super) keeps_removed: bool,
}

impl FileSystem {
    /// From the number that `statfs` reports. An unknown kind promises nothing.
    pub(super) fn of(magic: u32) -> Self {
        let is_local = LOCAL.contains(&magic);
        Self { is_local, keeps_removed: is_local || CLUSTER.contains(&magic) }
    }
}

/// Names an object: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Name([u8; 16]);

impl Name {
    /// A name that nobody can guess or has had. Asks the kernel each time, so that forked processes never share one.
    pub(super) fn random() -> Self {
        let mut bytes = [0; 16];
        crate::key::fill_random(&mut bytes);
        Self(bytes)
    }

    /// The name in a key.
    pub(super) fn of(op: &'static str, key: &Key) -> Result<Self> {
        match key.locator().try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => {
                let context = format!("a locator of {} bytes, a file store has 16", key.locator().len());
                Err(Error::new(ErrorKind::Invalid, op, context).with_connector(SCHEME))
            }
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Name of the file that stands for the object until it is committed.
    pub(super) fn declaration(self) -> String {
        format!("{self}.declared")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(32);
        for byte in self.0 {
            write!(text, "{byte:02x}")?;
        }
        f.write_str(&text)
    }
}

/// Makes a directory that nobody else can have prepared; accepts one that is this user's alone.
pub(super) fn create_private(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail_to_open(path, error)),
        _ => {}
    }
    // Not following links: the name stands in a directory where anybody may make them.
    let found = path.symlink_metadata().map_err(|error| fail_to_open(path, error))?;
    if found.is_dir() && found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let context = format!("{} must be a directory of yours with mode 0700; name another one", path.display());
    Err(Error::new(ErrorKind::Permission, "open", context).with_connector(SCHEME))
}

fn fail_to_open(path: &Path, error: io::Error) -> Error {
    use io::ErrorKind as Os;
    let kind = match error.kind() {
        Os::AlreadyExists | Os::NotADirectory | Os::InvalidInput | Os::NotFound => ErrorKind::Config,
        // Rust 1.85 has no `InvalidFilename`.
        _ if Errno::from_io_error(&error) == Some(Errno::NAMETOOLONG) => ErrorKind::Config,
        _ => return Error::io("open", path.display().to_string(), error).with_connector(SCHEME),
    };
    let context = format!("{} cannot be a directory", path.display());
    Error::new(kind, "open", context).with_source(error).with_connector(SCHEME)
}

/// The length of an object, if the file is one and as long as the key says.
fn check(op: &'static str, key: &Key, stat: &sys::Stat) -> Result<usize> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(corrupt(op, key, "no regular file"));
    }
    let len = stat.st_size as u64;
    if key.is_len_known() && key.len() != len {
        return Err(corrupt(op, key, &format!("a file of {len} bytes")));
    }
    usize::try_from(len).map_err(|_| corrupt(op, key, "larger than memory"))
}

/// `ESTALE`: a network file system removed the file between two calls.
fn is_missing(error: Errno) -> bool {
    matches!(error, Errno::NOENT | Errno::STALE)
}

fn corrupt(op: &'static str, key: &Key, found: &str) -> Error {
    Error::new(ErrorKind::Corrupt, op, format!("{key:?} is {found}")).with_connector(SCHEME)
}

fn already_exists(op: &'static str, key: &Key) -> Error {
    Error::new(ErrorKind::AlreadyExists, op, format!("{key:?} was committed")).with_connector(SCHEME)
}

/// Content of a declaration.
fn encode(format: Format) -> String {
    format!("{:04x} {:016x}\n", format.codec, format.fingerprint)
}

/// Readable by the owner, writable only through the handle that made it: `open(2)` applies the mode to later opens.
pub(super) const OBJECT_MODE: Mode = Mode::RUSR;

/// `f_type` of statfs(2): ext2/3/4, xfs, btrfs, tmpfs, ramfs, overlayfs, f2fs, zfs, bcachefs.
const LOCAL: [u32; 9] =
    [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0x8584_58F6, 0x794C_7630, 0xF2F5_2010, 0x2FC1_2FC1, 0xCA45_1A4E];

/// Lustre, GPFS, CephFS, BeeGFS: POSIX semantics of open files across nodes.
const CLUSTER: [u32; 4] = [0x0BD0_0BD0, 0x4750_4653, 0x00C3_6400, 0x1983_0326];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_ever_replaced() {
        let place = tempfile::tempdir().unwrap();
        let directory = Directory::open(place.path(), Fsync::None).unwrap();
        let write = |name: &str| std::fs::write(place.path().join(name), name).unwrap();
        let read = |name: &str| std::fs::read_to_string(place.path().join(name)).ok();
        ["taken", "a", "b"].into_iter().for_each(write);
        assert_eq!(directory.rename("a", "taken"), Err(Errno::EXIST));
        assert_eq!(directory.link_beside("b", "taken"), Err(Errno::EXIST));
        let nameless = directory.create_nameless().unwrap();
        assert_eq!(directory.link(&nameless, "taken"), Err(Errno::EXIST));
        assert_eq!(read("taken").as_deref(), Some("taken"));
        assert_eq!(directory.rename("a", "free"), Ok(true));
        assert_eq!((read("a"), read("free").as_deref()), (None, Some("a")));
        directory.link_beside("b", "beside").unwrap();
        assert_eq!((read("b"), read("beside")), (Some("b".into()), Some("b".into())));
    }

    #[test]
    fn unknown_file_systems_promise_nothing() {
        let of = |magic| {
            let FileSystem { is_local, keeps_removed } = FileSystem::of(magic);
            (is_local, keeps_removed)
        };
        assert_eq!(of(0xEF53), (true, true), "ext4");
        assert_eq!(of(0x0BD0_0BD0), (false, true), "Lustre");
        assert_eq!(of(0x6969), (false, false), "NFS");
        assert_eq!(of(0x6573_5546), (false, false), "FUSE");
        assert_eq!(of(0), (false, false));
    }

    #[test]
    fn names() {
        let name = Name([0xab; 16]);
        assert_eq!(name.to_string(), "ab".repeat(16));
        assert_ne!(Name::random(), Name::random());
        let key = Key::new(SCHEME, name.bytes(), 0, Format::RAW).unwrap();
        assert_eq!(Name::of("get", &key).unwrap(), name);
    }
}
