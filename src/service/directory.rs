//! `Directory`: where the namespaces of a user meet on this node.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat, fstatfs};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::lock::{Held, LockFile};
use crate::error::{Error, ErrorKind, Result};
use crate::{environment, launch};

/// The directory of one namespace: a socket, and two files whose bytes are locked by whoever lives.
///
/// ```text
/// $PROXYSTORE_RUNTIME_DIR | $XDG_RUNTIME_DIR/proxystore | $TMPDIR/proxystore-UID/shm     0700, this user's
///   NAMESPACE/                                                                           0700, this user's
///     sock       the service listens here
///     host       byte 0: locked by the process that hosts the service
///     members    byte i: locked by client i, for i below 4096; byte 4096: by the supervisor of `proxystore serve`
/// ```
///
/// Nothing here outlives its meaning: locks vanish with their process, and files that nobody holds are litter which
/// [`remove`](Self::remove) sweeps. Paths are looked up anew at each use, because a sweep may replace the files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    /// Longest name of a namespace, in bytes.
    pub(crate) const MAX_NAMESPACE: usize = launch::MAX_ID;
    /// The byte of [`host_lock`](Self::host_lock) that the hosting process holds.
    pub(crate) const HOST: u64 = 0;
    /// Most clients of a namespace: client `i` holds byte `i` of [`members`](Self::members).
    pub(crate) const MAX_MEMBERS: u64 = 4096;
    /// The byte of [`members`](Self::members) that the supervisor of `proxystore serve` holds.
    pub(crate) const SUPERVISOR: u64 = Self::MAX_MEMBERS;

    /// The directory of a namespace, made with mode 0700 where it is missing.
    ///
    /// # Errors
    /// `Invalid` for a name that is none, `Permission` where a directory on the way is a link, another user's, or open to
    /// others, `Config` where it lies on a network file system.
    pub(crate) fn open(namespace: &str) -> Result<Self> {
        Self::at(&root(true)?, namespace)
    }

    /// The directory of a namespace that exists already.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn find(namespace: &str) -> Result<Option<Self>> {
        check_name(namespace)?;
        let path = root(false)?.join(namespace);
        match verify(&path) {
            Ok(()) => Ok(Some(Self { path })),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The names of the namespaces that exist for this user, sorted; an abandoned one is among them until it is removed.
    ///
    /// # Errors
    /// When the directory of them all cannot be read.
    pub(crate) fn namespaces() -> Result<Vec<String>> {
        Self::names_in(&root(false)?)
    }

    /// Where the service listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }

    /// The file whose byte [`HOST`](Self::HOST) the hosting process holds.
    pub(crate) fn host_lock(&self) -> PathBuf {
        self.path.join("host")
    }

    /// The file of which every client holds a byte.
    pub(crate) fn members(&self) -> PathBuf {
        self.path.join("members")
    }

    /// Its name.
    #[cfg(feature = "tcp")]
    pub(crate) fn namespace(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A handle on the directory, for names too long for a socket's address.
    pub(super) fn handle(&self) -> Result<OwnedFd> {
        open_directory(&self.path).map_err(|error| fail(&self.path, error))
    }

    /// Becomes the host, unless another process, or another part of this one, is. The lock ends with the value or the
    /// process.
    ///
    /// # Errors
    /// When the directory or the file in it cannot be made.
    pub(crate) fn try_host(&self) -> Result<Option<Held>> {
        self.try_byte(&self.host_lock(), Self::HOST)
    }

    /// Holds a byte of the [`members`](Self::members) file; see [`try_host`](Self::try_host).
    ///
    /// # Errors
    /// As [`try_host`](Self::try_host).
    pub(crate) fn try_member(&self, byte: u64) -> Result<Option<Held>> {
        self.try_byte(&self.members(), byte)
    }

    /// Whether nobody hosts the namespace and nobody is attached to it, at this moment.
    ///
    /// # Errors
    /// When the files cannot be read.
    pub(crate) fn is_abandoned(&self) -> Result<bool> {
        for (path, bytes) in [(self.host_lock(), Self::HOST..1), (self.members(), 0..Self::SUPERVISOR + 1)] {
            if let Some(file) = LockFile::find(&path)? {
                if file.holder(bytes)?.is_some() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Removes the files and the directory of a namespace that nobody holds; false where somebody does.
    ///
    /// A process that comes at the same time either holds a lock first, and nothing is removed, or finds after locking
    /// that the file it locked has no name any more, and begins again: see [`LockFile::try_lock`].
    ///
    /// # Errors
    /// When a file cannot be removed.
    pub(crate) fn remove(&self) -> Result<bool> {
        match self.try_host()? {
            Some(host) => self.remove_held(host),
            None => Ok(false),
        }
    }

    /// The same for who hosts it. The lock is not let go before the names are gone: who sees that nobody hosts, sees none.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub(crate) fn remove_held(&self, _host: Held) -> Result<bool> {
        let members = LockFile::open(&self.members())?;
        let Some(_members) = members.try_hold_range(0..Self::SUPERVISOR + 1)? else { return Ok(false) };
        // The host's file last: once it has no name, a new host may have come, and all names are that one's.
        for path in [self.socket(), self.members(), self.host_lock()] {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", path.display().to_string(), error));
                }
                _ => {}
            }
        }
        // Fails, as it should, where somebody has come meanwhile.
        let _ = fs::remove_dir(&self.path);
        Ok(true)
    }

    /// The directory of a namespace below another place than the user's; see [`open`](Self::open).
    pub(super) fn at(root: &Path, namespace: &str) -> Result<Self> {
        check_name(namespace)?;
        let path = root.join(namespace);
        make_private(&path)?;
        Ok(Self { path })
    }

    fn names_in(root: &Path) -> Result<Vec<String>> {
        let entries = match fs::read_dir(root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", root.display().to_string(), error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| Error::io("list", root.display().to_string(), error))?;
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if let (true, Ok(name)) = (is_directory, entry.file_name().into_string()) {
                if check_name(&name).is_ok() {
                    names.push(name);
                }
            }
        }
        names.sort();
        Ok(names)
    }

    fn try_byte(&self, path: &Path, byte: u64) -> Result<Option<Held>> {
        // Each turn lost means that another process removed the files in between, which takes it many system calls.
        for _ in 0..100 {
            let locked = LockFile::open(path).and_then(|file| file.try_hold(byte));
            match locked {
                Err(error) if error.is_not_found() => make_private(&self.path)?,
                done => return done,
            }
        }
        let context = format!("{} is removed again and again; end the process that does so", path.display());
        Err(Error::new(ErrorKind::Io, "lock", context))
    }
}

/// The directory of all namespaces; made where it is missing, if `make`.
pub(super) fn root(make: bool) -> Result<PathBuf> {
    let make_one = |path: &Path| match make {
        true => make_private(path),
        false => verify(path).or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) }),
    };
    // The directory where a process works may change, and is not that of others.
    let absolute = |path: PathBuf| {
        std::path::absolute(&path).map_err(|error| Error::io("open", path.display().to_string(), error))
    };
    if let Some(path) = environment::runtime_dir() {
        let path = absolute(path)?;
        if make {
            if let Some(parent) = path.parent() {
                let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
                made.map_err(|error| Error::io("open", parent.display().to_string(), error))?;
            }
        }
        make_one(&path)?;
        return Ok(path);
    }
    // Passed on by launchers to nodes that lack it, and by `su` to users whose it is not.
    let xdg = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    if let Some(xdg) = xdg.filter(|path| path.is_absolute() && verify(path).is_ok()) {
        let path = xdg.join("proxystore");
        make_one(&path)?;
        return Ok(path);
    }
    // Shared with the default of file stores, whose names are their own: hence one step further down.
    let shared = absolute(std::env::temp_dir())?.join(format!("proxystore-{}", geteuid().as_raw()));
    make_one(&shared)?;
    let path = shared.join("shm");
    make_one(&path)?;
    Ok(path)
}

/// Whatever may name a job may name a namespace.
fn check_name(namespace: &str) -> Result<()> {
    if launch::is_id(namespace) {
        return Ok(());
    }
    let context = format!(
        "{namespace:?} is no namespace: 1 to {} of A-Z a-z 0-9 . _ -, the first not a dot",
        Directory::MAX_NAMESPACE
    );
    Err(Error::new(ErrorKind::Invalid, "open", context))
}

/// Makes a directory with mode 0700, or accepts one that is this user's alone.
fn make_private(path: &Path) -> Result<()> {
    // A second turn where another process removed it in between.
    for last in [false, false, true] {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("open", path.display().to_string(), error));
            }
            _ => {}
        }
        match verify(path) {
            Err(error) if error.is_not_found() && !last => {}
            done => return done,
        }
    }
    unreachable!("the last turn returns")
}

/// Accepts a directory that is this user's alone and this node's.
fn verify(path: &Path) -> Result<()> {
    let refuse = |what: &str| {
        let context = format!(
            "{} {what}; it must be a directory of yours with mode 0700: correct it or set {RUNTIME_DIR}",
            path.display()
        );
        Err(Error::new(ErrorKind::Permission, "open", context))
    };
    let handle = match open_directory(path) {
        Ok(handle) => handle,
        Err(Errno::LOOP | Errno::NOTDIR) => return refuse("is a link or no directory"),
        Err(error) => return Err(fail(path, error)),
    };
    let stat = fstat(&handle).map_err(|error| fail(path, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return refuse("is no directory");
    }
    if stat.st_uid != geteuid().as_raw() {
        return refuse(&format!("belongs to user {}", stat.st_uid));
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        return refuse(&format!("has mode {mode:04o}, open to others"));
    }
    let magic = fstatfs(&handle).map_err(|error| fail(path, error))?.f_type as u32;
    if NETWORK.contains(&magic) {
        // Its locks reach across nodes and its sockets do not: two nodes would wait for each other's service.
        let context =
            format!("{} lies on a network file system; set {RUNTIME_DIR} to a directory of this node", path.display());
        return Err(Error::new(ErrorKind::Config, "open", context));
    }
    Ok(())
}

fn open_directory(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
}

fn fail(path: &Path, error: Errno) -> Error {
    Error::io("open", path.display().to_string(), error.into())
}

/// Name of the socket in its directory.
pub(super) const SOCKET: &str = "sock";

const RUNTIME_DIR: &str = "PROXYSTORE_RUNTIME_DIR";

/// `f_type` of NFS, SMB (three of them), Ceph, Lustre, GPFS, BeeGFS, AFS, PVFS2: statfs(2) and the file systems' sources.
const NETWORK: &[u32] = &[
    0x6969,
    0x517b,
    0xff53_4d42,
    0xfe53_4d42,
    0x00c3_6400,
    0x0bd0_0bd0,
    0x4750_4653,
    0x1983_0326,
    0x5346_414f,
    0x2003_0528,
];

#[cfg(test)]
mod tests {
    use std::env;
    use std::io::{BufRead, BufReader};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::process::{Command, Stdio};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        root
    }

    #[track_caller]
    fn refused(result: Result<()>, path: &Path) {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn names() {
        for name in ["a", "default", "job-12.step_3", &"x".repeat(64)] {
            check_name(name).unwrap();
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "ä", "a\0", "a\n", &"x".repeat(65)] {
            let error = check_name(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{name:?}");
            assert!(error.to_string().contains("1 to 64"), "{error}");
        }
    }

    #[test]
    fn made_private_and_listed() {
        let root = root();
        let directory = Directory::at(root.path(), "one").unwrap();
        Directory::at(root.path(), "two").unwrap();
        assert_eq!(Directory::at(root.path(), "one").unwrap(), directory, "again");
        assert_eq!(directory.path().metadata().unwrap().permissions().mode() & 0o7777, 0o700);
        fs::write(root.path().join("file"), "").unwrap();
        fs::create_dir(root.path().join(".hidden")).unwrap();
        symlink("/tmp", root.path().join("link")).unwrap();
        assert_eq!(Directory::names_in(root.path()).unwrap(), ["one", "two"]);
        assert!(Directory::names_in(&root.path().join("none")).unwrap().is_empty());
    }

    #[test]
    fn what_others_can_reach_is_refused() {
        let root = root();
        let path = root.path().join("n");
        symlink("/tmp", &path).unwrap();
        refused(make_private(&path), &path);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        refused(make_private(&path), &path);
        fs::remove_file(&path).unwrap();
        make_private(&path).unwrap();
        for mode in [0o701, 0o710, 0o770, 0o777, 0o1777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            refused(make_private(&path), &path);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        make_private(&path).unwrap();
        assert_eq!(make_private(&path.join("a/b")).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn another_users_directory_is_refused() {
        let root = root();
        let path = root.path().join("n");
        make_private(&path).unwrap();
        const NOBODY: u32 = 65534;
        if geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(NOBODY), None).unwrap();
            refused(make_private(&path), &path);
        } else {
            // Root's, and closed to this user.
            println!("not as root: with a directory of root instead of a foreign one");
            refused(verify(Path::new("/root")), Path::new("/root"));
        }
    }

    #[test]
    fn locks_and_abandonment() {
        let root = root();
        let directory = Directory::at(root.path(), "n").unwrap();
        assert!(directory.is_abandoned().unwrap());
        let host = directory.try_host().unwrap().unwrap();
        assert!(directory.try_host().unwrap().is_none());
        assert!(!directory.is_abandoned().unwrap());
        assert!(!directory.remove().unwrap());
        drop(host);
        let member = directory.try_member(4095).unwrap().unwrap();
        assert!(directory.try_member(4095).unwrap().is_none());
        assert!(!directory.is_abandoned().unwrap());
        assert!(!directory.remove().unwrap());
        assert!(directory.try_host().unwrap().is_some(), "an attempt to remove leaves no lock");
        drop(member);
        let supervisor = directory.try_member(Directory::SUPERVISOR).unwrap().unwrap();
        assert!(!directory.remove().unwrap());
        drop(supervisor);
        fs::write(directory.socket(), "").unwrap();
        assert!(directory.remove().unwrap());
        assert!(!directory.path().exists());
        // Comes back where it is needed.
        drop(directory.try_host().unwrap().unwrap());
        assert!(directory.host_lock().exists());
        assert!(directory.remove().unwrap());
    }

    /// This test program again, in `test`.
    fn this_program(test: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([&format!("service::directory::tests::{test}"), "--exact", "--ignored", "--nocapture"]);
        for name in [RUNTIME_DIR, "XDG_RUNTIME_DIR", "TMPDIR"] {
            command.env_remove(name);
        }
        command
    }

    #[test]
    #[ignore = "no test: another process of the tests here"]
    fn opens_a_namespace() {
        if env::var_os("DIRECTORY_TEST").is_none() {
            return;
        }
        assert!(Directory::find("job-1").unwrap().is_none());
        assert!(Directory::namespaces().unwrap().is_empty());
        match Directory::open("job-1") {
            Ok(directory) => {
                assert_eq!(Directory::find("job-1").unwrap().as_ref(), Some(&directory));
                assert_eq!(Directory::namespaces().unwrap(), ["job-1"]);
                println!("opened: {}", directory.path().display());
            }
            Err(error) => println!("opened: {error}"),
        }
    }

    #[test]
    fn places() {
        let root = root();
        let place = |variables: &[(&str, PathBuf)]| {
            let mut command = this_program("opens_a_namespace");
            command.env("DIRECTORY_TEST", "1").current_dir(root.path()).envs(variables.iter().map(|(a, b)| (a, b)));
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let opened = text.lines().find_map(|line| line.split_once("opened: ")).map(|(_, rest)| rest.to_owned());
            let opened = opened.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
            PathBuf::from(opened.replace(root.path().to_str().unwrap(), "ROOT"))
        };
        let own = format!("proxystore-{}", geteuid().as_raw());
        let at = |name: &str| root.path().join(name);
        fs::create_dir(at("t")).unwrap();
        let temporary = Path::new("ROOT/t").join(&own).join("shm/job-1");
        assert_eq!(place(&[("TMPDIR", at("t"))]), temporary);
        fs::remove_dir_all(at("t").join(&own)).unwrap();
        // Made with its parents; relative to where the process works now.
        assert_eq!(place(&[(RUNTIME_DIR, at("a/b/c"))]), Path::new("ROOT/a/b/c/job-1"));
        assert_eq!(place(&[(RUNTIME_DIR, "r".into())]), Path::new("ROOT/r/job-1"));
        make_private(&at("x")).unwrap();
        let both = [("XDG_RUNTIME_DIR", at("x")), ("TMPDIR", at("t"))];
        assert_eq!(place(&both), Path::new("ROOT/x/proxystore/job-1"));
        // Not this user's alone, or not there: passed over.
        fs::set_permissions(at("x"), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(place(&both), temporary);
        fs::remove_dir_all(at("t").join(&own)).unwrap();
        assert_eq!(place(&[("XDG_RUNTIME_DIR", at("none")), ("TMPDIR", at("t"))]), temporary);
        fs::remove_dir_all(at("t").join(&own)).unwrap();
        // Prepared by somebody else: refused, since anybody may make names there.
        symlink("/tmp", at("t").join(&own)).unwrap();
        let output =
            this_program("opens_a_namespace").env("DIRECTORY_TEST", "1").env("TMPDIR", at("t")).output().unwrap();
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("permission denied"));
    }

    #[test]
    #[ignore = "no test: another process of the tests here"]
    fn sweeps() {
        let Some(path) = env::var_os("DIRECTORY_TEST_SWEEP").map(PathBuf::from) else { return };
        let directory = Directory { path };
        let mut removed = 0;
        loop {
            make_private(&directory.path).unwrap();
            removed += u32::from(directory.remove().unwrap());
            println!("removed: {removed}");
        }
    }

    #[test]
    fn another_process_removes_nothing_from_who_comes() {
        let root = root();
        let directory = Directory::at(root.path(), "n").unwrap();
        let mut command = this_program("sweeps");
        let mut sweeper = command.env("DIRECTORY_TEST_SWEEP", directory.path()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(sweeper.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().contains("removed: ") {}
        let reader = std::thread::spawn(move || lines.map_while(Result::ok).last());
        let mut turns = 0;
        while turns < 300 {
            let Some(_host) = directory.try_host().unwrap() else { continue };
            fs::write(directory.socket(), "").unwrap();
            // A sweep that lost the host's lock may hold this one for a moment.
            let _member = loop {
                match directory.try_member(1).unwrap() {
                    Some(held) => break held,
                    None => std::thread::yield_now(),
                }
            };
            let identity = |path: PathBuf| path.metadata().map(|found| found.ino()).unwrap();
            let (host, members) = (identity(directory.host_lock()), identity(directory.members()));
            std::thread::sleep(Duration::from_micros(200));
            assert_eq!((host, members), (identity(directory.host_lock()), identity(directory.members())));
            assert!(directory.socket().exists());
            assert!(LockFile::find(&directory.host_lock()).unwrap().unwrap().holder(0..1).unwrap().unwrap().is_own);
            turns += 1;
        }
        assert!(sweeper.try_wait().unwrap().is_none(), "it runs");
        sweeper.kill().unwrap();
        sweeper.wait().unwrap();
        println!("{:?}", reader.join().unwrap());
    }

    #[test]
    fn removal_takes_nothing_from_who_comes() {
        let root = root();
        let directory = Directory::at(root.path(), "n").unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    directory.remove().unwrap();
                }
            });
            let mut turns = 0;
            while turns < 300 {
                let Some(_host) = directory.try_host().unwrap() else { continue };
                let Some(_member) = directory.try_member(1).unwrap() else { continue };
                // What was locked is what others find.
                assert!(LockFile::find(&directory.host_lock()).unwrap().unwrap().holder(0..1).unwrap().is_some());
                assert!(LockFile::find(&directory.members()).unwrap().unwrap().holder(1..2).unwrap().is_some());
                turns += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
