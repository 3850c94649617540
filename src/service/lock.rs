//! `LockFile`: who is alive, by record locks that the kernel drops with their process.
//!
//! POSIX record locks (fcntl(2), `F_SETLK`), neither open-file-description locks nor flock(2): those are the open file's, so
//! that a forked child keeps a dead process's locks alive. A record lock is the process's. It is not inherited by fork,
//! and the kernel drops it at every kind of death. The price is in two rules, which this module keeps for its users:
//!
//! * Closing *any* descriptor of a file drops all locks that the process has on it. So a process opens each file once: a
//!   registry by device and inode hands out the one [`LockFile`], and closes it only when nobody else can have it.
//! * The locks of one process never conflict with each other. So each `LockFile` keeps the set of bytes held here.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Mode, OFlags, fstat, lstat};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// A file whose bytes processes lock to show that they live. Its content does not matter; it is empty.
pub(crate) struct LockFile {
    descriptor: OwnedFd,
    path: PathBuf,
    identity: Identity,
    /// The process that opened it. A forked child inherits the value but none of the locks.
    process: u32,
    /// Bytes held by this process; no two overlap.
    held: Mutex<Vec<Range<u64>>>,
}

/// Who holds a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    /// The lowest byte of those asked for that it holds.
    pub(crate) byte: u64,
    /// Its process; unknown when that lives in another pid namespace.
    pub(crate) pid: Option<u32>,
    /// Whether it is this process.
    pub(crate) is_own: bool,
}

/// Locked bytes, released when the value is dropped.
#[must_use = "the lock ends with this value"]
pub(crate) struct Held {
    file: Arc<LockFile>,
    bytes: Range<u64>,
}

impl LockFile {
    /// Opens the file, making it with mode 0600 where it is missing; the same `Arc` as long as anybody here has it.
    ///
    /// # Errors
    /// `NotFound` without its directory, `Permission` for a link, a file of another kind or of another user.
    pub(crate) fn open(path: &Path) -> Result<Arc<Self>> {
        let mut files = Registry::current().files();
        loop {
            if let Some(found) = Self::find_in(&mut files, path)? {
                return Ok(found);
            }
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
                // No other descriptor of a new file is open here.
                Ok(descriptor) => return Self::register(&mut files, path, descriptor),
                Err(Errno::EXIST | Errno::INTR) => {}
                Err(error) => return Err(fail("open", path, error)),
            }
        }
    }

    /// Opens the file if it exists.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for `NotFound`.
    pub(crate) fn find(path: &Path) -> Result<Option<Arc<Self>>> {
        Self::find_in(&mut Registry::current().files(), path)
    }

    /// As [`try_hold`](Self::try_hold), until [`unlock`](Self::unlock), whatever becomes of the `Arc`.
    #[cfg(test)]
    fn try_lock(&self, byte: u64) -> Result<bool> {
        self.try_lock_range(byte..byte.saturating_add(1))
    }

    /// Ends what [`try_hold`](Self::try_hold) began; nothing happens to a byte that is not held here.
    ///
    /// # Errors
    /// `Closed` in a forked child.
    #[cfg(test)]
    fn unlock(&self, byte: u64) -> Result<()> {
        self.unlock_range(&(byte..byte.saturating_add(1)))
    }

    /// Takes the lock on one byte; `None` if another process, or another part of this one, has it.
    ///
    /// # Cost
    /// Two system calls; never blocks.
    ///
    /// # Errors
    /// `NotFound` when the file lost its name since it was opened: somebody swept an abandoned namespace, and locks on
    /// what is left mean nothing. Open it again. `Closed` in a forked child.
    pub(crate) fn try_hold(self: &Arc<Self>, byte: u64) -> Result<Option<Held>> {
        self.try_hold_range(byte..byte.saturating_add(1))
    }

    /// [`try_hold`](Self::try_hold) for several bytes: all or none.
    ///
    /// # Errors
    /// As [`try_hold`](Self::try_hold).
    pub(crate) fn try_hold_range(self: &Arc<Self>, bytes: Range<u64>) -> Result<Option<Held>> {
        let held = self.try_lock_range(bytes.clone())?;
        Ok(held.then(|| Held { file: Arc::clone(self), bytes }))
    }

    /// Who holds the lowest held byte of `bytes`, in any process.
    ///
    /// # Errors
    /// `Closed` in a forked child.
    pub(crate) fn holder(&self, bytes: Range<u64>) -> Result<Option<Holder>> {
        self.check_process()?;
        let held = self.held();
        let own = held.iter().filter(|own| overlap(own, &bytes)).map(|own| own.start.max(bytes.start)).min();
        let own = own.map(|byte| Holder { byte, pid: Some(self.process), is_own: true });
        // Finds the locks of other processes only.
        let found =
            self.record(libc::F_GETLK, libc::F_WRLCK, &bytes).map_err(|error| fail("lock", &self.path, error))?;
        if i32::from(found.l_type) == libc::F_UNLCK {
            return Ok(own);
        }
        let byte = u64::try_from(found.l_start).unwrap_or(0).max(bytes.start);
        let pid = u32::try_from(found.l_pid).ok().filter(|pid| *pid > 0);
        let other = Holder { byte, pid, is_own: false };
        Ok(Some(own.filter(|own| own.byte < byte).unwrap_or(other)))
    }

    /// Whether the path still names this file.
    ///
    /// # Errors
    /// When the path cannot be looked up, for another reason than that it is missing.
    pub(crate) fn is_current(&self) -> Result<bool> {
        match lstat(&self.path) {
            Ok(stat) => Ok(Identity::of(&stat) == self.identity),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(fail("lock", &self.path, error)),
        }
    }

    fn try_lock_range(&self, bytes: Range<u64>) -> Result<bool> {
        self.check_process()?;
        let mut held = self.held();
        if held.iter().any(|own| overlap(own, &bytes)) {
            return Ok(false);
        }
        match self.record(libc::F_SETLK, libc::F_WRLCK, &bytes) {
            Ok(_) => {}
            // POSIX allows either number.
            Err(Errno::AGAIN | Errno::ACCESS) => return Ok(false),
            Err(error) => return Err(fail("lock", &self.path, error)),
        }
        let is_current = self.is_current();
        if let Ok(true) = is_current {
            held.push(bytes);
            return Ok(true);
        }
        self.record(libc::F_SETLK, libc::F_UNLCK, &bytes).map_err(|error| fail("unlock", &self.path, error))?;
        is_current?;
        let context = format!("{} was removed since it was opened; open it again", self.path.display());
        Err(Error::new(ErrorKind::NotFound, "lock", context))
    }

    fn unlock_range(&self, bytes: &Range<u64>) -> Result<()> {
        self.check_process()?;
        let mut held = self.held();
        let Some(at) = held.iter().position(|own| own == bytes) else { return Ok(()) };
        self.record(libc::F_SETLK, libc::F_UNLCK, bytes).map_err(|error| fail("unlock", &self.path, error))?;
        held.swap_remove(at);
        Ok(())
    }

    /// One call of fcntl(2) about record locks.
    fn record(&self, command: libc::c_int, kind: libc::c_int, bytes: &Range<u64>) -> Result<libc::flock, Errno> {
        let offset = |byte: u64| libc::off_t::try_from(byte).map_err(|_| Errno::OVERFLOW);
        let start = offset(bytes.start)?;
        // A length of 0 would mean "to the end of the file".
        let len = offset(bytes.end)?.checked_sub(start).filter(|len| *len > 0).ok_or(Errno::INVAL)?;
        // SAFETY: all fields are integers, of which zero is a value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as libc::c_short;
        lock.l_whence = libc::SEEK_SET as libc::c_short;
        (lock.l_start, lock.l_len) = (start, len);
        loop {
            // SAFETY: the descriptor is open as long as `self`, and these commands take a pointer to a `flock`.
            if unsafe { libc::fcntl(self.descriptor.as_raw_fd(), command, &raw mut lock) } >= 0 {
                return Ok(lock);
            }
            match Errno::from_io_error(&io::Error::last_os_error()) {
                Some(Errno::INTR) => {}
                error => return Err(error.unwrap_or(Errno::IO)),
            }
        }
    }

    fn check_process(&self) -> Result<()> {
        if self.process == process::id() {
            return Ok(());
        }
        let context = format!("{} was opened before a fork; open it again", self.path.display());
        Err(Error::new(ErrorKind::Closed, "lock", context))
    }

    fn held(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        // A push or a removal is complete or did not begin, also where the holder panicked.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_in(files: &mut Files, path: &Path) -> Result<Option<Arc<Self>>> {
        // Closing a descriptor of this kind drops no locks, so it serves to learn which file it is.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty())) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(fail("open", path, error)),
        };
        let stat = fstat(&handle).map_err(|error| fail("open", path, error))?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || stat.st_uid != rustix::process::geteuid().as_raw() {
            let context = format!("{} must be a plain file of yours; remove it", path.display());
            return Err(Error::new(ErrorKind::Permission, "open", context));
        }
        if let Some(known) = files.get(&Identity::of(&stat)) {
            return Ok(Some(Arc::clone(known)));
        }
        // By the handle and not by the path, which may name another file by now, perhaps one that is open here.
        let by_handle = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let opened = rustix::io::retry_on_intr(|| rustix::fs::open(&by_handle, flags, Mode::empty()));
        Self::register(files, path, opened.map_err(|error| fail("open", path, error))?).map(Some)
    }

    /// Adds a file that the registry does not know.
    fn register(files: &mut Files, path: &Path, descriptor: OwnedFd) -> Result<Arc<Self>> {
        let stat = fstat(&descriptor).map_err(|error| fail("open", path, error))?;
        let identity = Identity::of(&stat);
        // Nobody can come by one of these while the registry is locked, so they may be closed, with what they hold.
        files.retain(|_, file| Arc::strong_count(file) > 1);
        let held = Mutex::new(Vec::new());
        let file = Arc::new(Self { descriptor, path: path.to_owned(), identity, process: process::id(), held });
        files.insert(identity, Arc::clone(&file));
        Ok(file)
    }
}

impl fmt::Debug for LockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LockFile({}, holds {:?})", self.path.display(), self.held())
    }
}

impl Held {
    /// The file that the bytes are of.
    pub(crate) fn file(&self) -> &Arc<LockFile> {
        &self.file
    }

    /// The first byte that is held.
    #[cfg(test)]
    fn byte(&self) -> u64 {
        self.bytes.start
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Fails in a forked child only, which holds nothing.
        let _ = self.file.unlock_range(&self.bytes);
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({}, {:?})", self.file.path.display(), self.bytes)
    }
}

/// Device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Identity(u64, u64);

impl Identity {
    fn of(stat: &rustix::fs::Stat) -> Self {
        Self(stat.st_dev, stat.st_ino)
    }
}

type Files = HashMap<Identity, Arc<LockFile>>;

/// The lock files that this process has open. It holds an `Arc` of each, so that a file is closed under its mutex only.
struct Registry {
    process: u32,
    files: Mutex<Files>,
}

impl Registry {
    /// This process's registry. A forked child begins a new one and leaves the old to itself, for ever: its mutex may have
    /// been locked by a thread that the child lacks, and closing one of its files would drop the child's own locks.
    fn current() -> &'static Self {
        static CURRENT: AtomicPtr<Registry> = AtomicPtr::new(ptr::null_mut());
        let process = process::id();
        loop {
            let found = CURRENT.load(Ordering::Acquire);
            // SAFETY: null, or from `Box::into_raw` below and never freed once it was stored.
            if let Some(registry) = unsafe { found.as_ref() }.filter(|registry| registry.process == process) {
                return registry;
            }
            let new = Box::into_raw(Box::new(Self { process, files: Mutex::default() }));
            if CURRENT.compare_exchange(found, new, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // SAFETY: from `Box::into_raw` above; it was not stored, so nobody else has it.
                drop(unsafe { Box::from_raw(new) });
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn fail(op: &'static str, path: &Path, error: Errno) -> Error {
    Error::io(op, path.display().to_string(), error.into())
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    use super::*;

    /// This test program again, in [`child`]; it answers what it is told, line by line.
    struct Other {
        process: Child,
        answers: BufReader<std::process::ChildStdout>,
    }

    impl Other {
        fn new(path: &Path) -> Self {
            let mut process = Command::new(env::current_exe().unwrap())
                .args(["service::lock::tests::child", "--exact", "--nocapture", "--ignored"])
                .env("LOCK_TEST_FILE", path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let answers = BufReader::new(process.stdout.take().unwrap());
            Self { process, answers }
        }

        fn ask(&mut self, order: &str) -> String {
            writeln!(self.process.stdin.as_mut().unwrap(), "{order}").unwrap();
            let mut line = String::new();
            loop {
                line.clear();
                assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "the child ended");
                if let Some((_, answer)) = line.trim().split_once("answer: ") {
                    return answer.to_owned();
                }
            }
        }

        fn pid(&self) -> u32 {
            self.process.id()
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    #[test]
    #[ignore = "no test: the other process of the tests here"]
    fn child() {
        let Some(path) = env::var_os("LOCK_TEST_FILE").map(PathBuf::from) else { return };
        let file = LockFile::open(&path).unwrap();
        for line in io::stdin().lines() {
            let line = line.unwrap();
            let (order, byte) = line.split_once(' ').unwrap_or((&line, "0"));
            let byte = byte.parse().unwrap();
            let answer = match order {
                "lock" => format!("{:?}", file.try_lock(byte).unwrap()),
                "unlock" => format!("{:?}", file.unlock(byte)),
                "holder" => format!("{:?}", file.holder(byte..byte + 1).unwrap().map(|holder| holder.pid)),
                "fork" => fork(&file).to_string(),
                _ => panic!("{order}"),
            };
            println!("answer: {answer}");
        }
    }

    /// Leaves a child behind that has all descriptors and outlives this process by seconds; 0 where it held a lock.
    fn fork(file: &Arc<LockFile>) -> i32 {
        // SAFETY: the child calls nothing but sleep and _exit, after one look at the values it inherited.
        match unsafe { libc::fork() } {
            0 => {
                let refused = file.try_lock(9).is_err();
                // SAFETY: both may be called in a forked child.
                unsafe {
                    libc::close(0);
                    libc::close(1);
                    libc::close(2);
                    libc::sleep(if refused { 5 } else { 0 });
                    libc::_exit(0)
                }
            }
            pid => pid,
        }
    }

    fn file() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("members");
        (directory, path)
    }

    #[test]
    fn one_file_a_process() {
        let (_directory, path) = file();
        assert!(LockFile::find(&path).unwrap().is_none());
        let one = LockFile::open(&path).unwrap();
        let other = LockFile::open(&path).unwrap();
        assert!(Arc::ptr_eq(&one, &other));
        let linked = path.with_extension("link");
        fs::hard_link(&path, &linked).unwrap();
        assert!(Arc::ptr_eq(&one, &LockFile::open(&linked).unwrap()), "by another name");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn own_locks_conflict() {
        let (_directory, path) = file();
        let file = LockFile::open(&path).unwrap();
        assert!(file.try_lock(3).unwrap());
        assert!(!file.try_lock(3).unwrap());
        assert!(!LockFile::open(&path).unwrap().try_lock(3).unwrap());
        assert!(file.try_hold_range(0..10).unwrap().is_none());
        let held = file.try_hold(4).unwrap().unwrap();
        let own = Holder { byte: 3, pid: Some(process::id()), is_own: true };
        assert_eq!(file.holder(0..10).unwrap(), Some(own));
        assert_eq!(file.holder(4..10).unwrap(), Some(Holder { byte: held.byte(), ..own }));
        assert_eq!(file.holder(5..10).unwrap(), None);
        drop(held);
        assert_eq!(file.holder(4..10).unwrap(), None);
        file.unlock(3).unwrap();
        file.unlock(3).unwrap();
        assert!(file.try_lock(3).unwrap());
        assert!(file.try_lock(u64::MAX).is_err(), "beyond what the kernel counts to");
    }

    #[test]
    fn other_processes_see_locks() {
        let (_directory, path) = file();
        let file = LockFile::open(&path).unwrap();
        let mut other = Other::new(&path);
        assert!(file.try_lock(1).unwrap());
        assert_eq!(other.ask("lock 1"), "false");
        assert_eq!(other.ask("holder 1"), format!("Some(Some({}))", process::id()));
        assert_eq!(other.ask("lock 2"), "true");
        assert!(!file.try_lock(2).unwrap());
        let holder = Holder { byte: 2, pid: Some(other.pid()), is_own: false };
        assert_eq!(file.holder(2..4097).unwrap(), Some(holder));
        assert_eq!(file.holder(0..4097).unwrap().unwrap().byte, 1, "the lowest");
        // Opening and dropping another handle on the file costs nobody a lock.
        drop(LockFile::open(&path).unwrap());
        LockFile::open(&path.with_extension("x")).unwrap();
        assert_eq!(other.ask("lock 1"), "false");
        file.unlock(1).unwrap();
        assert_eq!(other.ask("lock 1"), "true");
        assert_eq!(other.ask("unlock 2"), "Ok(())");
        assert!(file.try_lock(2).unwrap());
    }

    #[test]
    fn death_unlocks() {
        let (_directory, path) = file();
        let file = LockFile::open(&path).unwrap();
        let mut other = Other::new(&path);
        assert_eq!(other.ask("lock 7"), "true");
        assert!(file.holder(7..8).unwrap().is_some());
        other.process.kill().unwrap();
        other.process.wait().unwrap();
        assert_eq!(file.holder(7..8).unwrap(), None);
        assert!(file.try_lock(7).unwrap());
    }

    #[test]
    fn a_forked_child_holds_nothing() {
        let (_directory, path) = file();
        let file = LockFile::open(&path).unwrap();
        let mut other = Other::new(&path);
        assert_eq!(other.ask("lock 7"), "true");
        let pid: i32 = other.ask("fork").parse().unwrap();
        assert!(pid > 0);
        assert_eq!(other.ask("holder 7"), "Some(Some({}))".replace("{}", &other.pid().to_string()));
        other.process.kill().unwrap();
        other.process.wait().unwrap();
        // The lock is gone at once although a descriptor of the file is still open in the child.
        assert_eq!(file.holder(7..8).unwrap(), None);
        let lives = rustix::process::test_kill_process(rustix::process::Pid::from_raw(pid).unwrap()).is_ok();
        assert!(lives, "the child ended before the test did");
    }

    #[test]
    fn a_swept_file_is_noticed() {
        let (_directory, path) = file();
        let file = LockFile::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(file.try_lock(0).unwrap_err().kind(), ErrorKind::NotFound);
        let new = LockFile::open(&path).unwrap();
        assert!(!Arc::ptr_eq(&file, &new));
        assert!(new.try_lock(0).unwrap());
        assert_eq!(file.try_lock(0).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn links_and_other_kinds_are_refused() {
        let (directory, path) = file();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert_eq!(LockFile::open(&path).unwrap_err().kind(), ErrorKind::Permission);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(LockFile::open(&path).unwrap_err().kind(), ErrorKind::Permission);
        assert!(LockFile::open(&directory.path().join("none/members")).unwrap_err().is_not_found());
    }

    #[test]
    fn threads_open_and_close_at_once() {
        let (_directory, path) = file();
        let mut other = Other::new(&path);
        let end = Instant::now() + Duration::from_millis(300);
        let turns: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|byte| {
                    let path = &path;
                    scope.spawn(move || {
                        let mut turns = 0;
                        while Instant::now() < end {
                            let held =
                                LockFile::open(path).unwrap().try_hold(byte).unwrap().expect("one thread a byte");
                            // Unused files are closed here, and must not be the one above.
                            drop(LockFile::open(&path.with_extension(byte.to_string())).unwrap());
                            drop(held);
                            turns += 1;
                        }
                        let last = LockFile::open(path).unwrap();
                        assert!(last.try_lock(byte).unwrap());
                        std::mem::forget(last);
                        turns
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(turns > 4);
        for byte in 0..4 {
            assert_eq!(other.ask(&format!("lock {byte}")), "false");
        }
    }
}
