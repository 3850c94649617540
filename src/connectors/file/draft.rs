//! Files being written: without a name where the kernel has that, else under one that tells who writes.

use std::ffi::CStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::str::FromStr;
use std::sync::Arc;

use rustix::fs::{self as sys, Dir, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::directory::{Directory, Name, OBJECT_MODE};

/// An object's file before it is published. Dropping it removes the file.
pub(super) struct Draft {
    file: File,
    /// Path in the directory; none for a file that the kernel frees by itself.
    name: Option<String>,
    directory: Arc<Directory>,
}

impl Draft {
    /// Makes an empty one.
    pub(super) fn create(directory: &Arc<Directory>) -> io::Result<Self> {
        if directory.has_nameless()? {
            let file = directory.create_nameless()?;
            return Ok(Self { file, name: None, directory: Arc::clone(directory) });
        }
        let name = format!("{DRAFTS}/{}-{}", Producer::this()?, Name::random());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let open = || sys::openat(directory.handle(), &name, flags, OBJECT_MODE);
        let file = match open() {
            Err(Errno::NOENT) => {
                match sys::mkdirat(directory.handle(), DRAFTS, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open()?
            }
            result => result?,
        };
        Ok(Self { file: file.into(), name: Some(name), directory: Arc::clone(directory) })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    pub(super) fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Gives the file `len` bytes and all the blocks for them, so that no later access finds the disk full.
    pub(super) fn reserve(&self, len: usize) -> io::Result<()> {
        loop {
            match sys::fallocate(&self.file, FallocateFlags::empty(), 0, len as u64) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return self.write_zeros(len),
                result => return Ok(result?),
            }
        }
    }

    fn write_zeros(&self, len: usize) -> io::Result<()> {
        let state = sys::fstatvfs(&self.file)?;
        if (len as u64) > state.f_bavail.saturating_mul(state.f_frsize) {
            // Not by trying: that would fill the disk for everybody until it fails.
            return Err(Errno::NOSPC.into());
        }
        let zeros = vec![0; len.min(1 << 20)];
        let mut left = len;
        while left > 0 {
            let n = left.min(zeros.len());
            (&self.file).write_all(&zeros[..n])?;
            left -= n;
        }
        Ok(())
    }

    /// The file has its final name.
    pub(super) fn keep(mut self) {
        self.name = None;
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Nobody is there to be told; the next process to open the store sweeps.
            let _ = self.directory.unlink(name);
        }
    }
}

/// Removes the drafts of producers that died on this node.
///
/// Leaves alone what it cannot judge: those of other nodes, other boots and other containers.
pub(super) fn sweep(directory: &Directory) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(drafts) = sys::openat(directory.handle(), DRAFTS, flags, Mode::empty()) else { return };
    let (Ok(this), Ok(entries)) = (Producer::this(), Dir::read_from(&drafts)) else { return };
    for entry in entries.flatten() {
        let Some(name) = CStr::to_str(entry.file_name()).ok() else { continue };
        let producer = name.rsplit_once('-').and_then(|(producer, _)| producer.parse::<Producer>().ok());
        if producer.is_some_and(|producer| producer.is_dead(&this)) {
            // A draft that cannot be removed is no reason not to open the store.
            let _ = directory.unlink(&format!("{DRAFTS}/{name}"));
        }
    }
}

/// A process, told apart from all others that ever ran, on any node: `BOOT-NAMESPACE-PID-START`.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Producer {
    /// Half of the boot id, which is random.
    boot: u64,
    /// Inode of the namespace in which the process id counts.
    namespace: u64,
    pid: i32,
    /// Start, in ticks since boot.
    start: u64,
}

impl Producer {
    fn this() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.replace('-', "");
        let boot = boot.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let namespace = fs::read_link("/proc/self/ns/pid")?;
        let namespace = namespace.to_str().and_then(|text| text.strip_prefix("pid:[")?.strip_suffix(']')?.parse().ok());
        let pid = std::process::id() as i32;
        match (boot, namespace, start_of(pid)?) {
            (Some(boot), Some(namespace), Some(start)) => Ok(Self { boot, namespace, pid, start }),
            _ => Err(io::Error::new(io::ErrorKind::Unsupported, "/proc does not tell who this process is")),
        }
    }

    /// Whether the process is provably gone, judged by `this` one.
    fn is_dead(&self, this: &Self) -> bool {
        if (self.boot, self.namespace) != (this.boot, this.namespace) {
            return false;
        }
        let Some(pid) = Pid::from_raw(self.pid) else { return false };
        test_kill_process(pid) == Err(Errno::SRCH)
            || matches!(start_of(self.pid), Ok(Some(start)) if start != self.start)
    }
}

impl fmt::Display for Producer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}-{}-{}", self.boot, self.namespace, self.pid, self.start)
    }
}

impl FromStr for Producer {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.split('-');
        let mut next = || parts.next().ok_or(());
        let boot = u64::from_str_radix(next()?, 16).map_err(drop)?;
        let namespace = next()?.parse().map_err(drop)?;
        let pid = next()?.parse().map_err(drop)?;
        let start = next()?.parse().map_err(drop)?;
        if parts.next().is_some() {
            return Err(());
        }
        Ok(Self { boot, namespace, pid, start })
    }
}

/// Field 22 of proc_pid_stat(5).
fn start_of(pid: i32) -> io::Result<Option<u64>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command, field 2, is in parentheses and may hold anything, these included.
    let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' '));
    Ok(fields.and_then(|mut fields| fields.nth(22 - 3)?.parse().ok()))
}

/// Subdirectory of drafts with a name, so that sweeping does not list all objects.
const DRAFTS: &str = ".tmp";

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;
    use crate::connectors::file::directory::Fsync;

    fn open(place: &std::path::Path) -> Arc<Directory> {
        let directory = Directory::open(place, Fsync::None).unwrap();
        directory.set_nameless(false);
        Arc::new(directory)
    }

    #[test]
    fn sweep_removes_what_dead_producers_left() {
        let place = tempfile::tempdir().unwrap();
        let directory = open(place.path());
        sweep(&directory);
        let mine = Draft::create(&directory).unwrap();

        let mut child = Command::new("sleep").arg("60").stdout(Stdio::null()).spawn().unwrap();
        let this = Producer::this().unwrap();
        let pid = child.id() as i32;
        let other = Producer { pid, start: start_of(pid).unwrap().unwrap(), ..this.clone() };
        let leave = |producer: &dyn fmt::Display| {
            let path = place.path().join(format!("{DRAFTS}/{producer}-{}", Name::random()));
            fs::write(&path, b"left behind").unwrap();
            path
        };
        let of_child = leave(&other);
        let of_former_process = leave(&Producer { start: this.start + 1, ..this.clone() });
        let kept = [
            leave(&Producer { boot: !this.boot, ..other.clone() }),
            leave(&Producer { namespace: 1, ..other.clone() }),
            leave(&"notes"),
            leave(&"1-2-3-4-5"),
            leave(&format!("{:016x}-{}-0-7", this.boot, this.namespace)),
            leave(&format!("{:016x}-{}--1-7", this.boot, this.namespace)),
        ];
        sweep(&directory);
        assert!(!of_former_process.exists(), "a process id that is in use again");
        assert!(of_child.exists(), "its producer lives");
        child.kill().unwrap();
        child.wait().unwrap();
        sweep(&directory);
        assert!(!of_child.exists());
        assert!(kept.iter().all(|path| path.exists()), "nobody knows whether those are dead");
        let mine_path = place.path().join(mine.name().unwrap());
        assert!(mine_path.exists());
        drop(mine);
        assert!(!mine_path.exists());
    }

    #[test]
    fn producer_round_trip() {
        let this = Producer::this().unwrap();
        assert_eq!(this.to_string().parse::<Producer>(), Ok(this.clone()));
        assert!(!this.is_dead(&this));
    }

    #[test]
    fn reservation_by_zeros() {
        let place = tempfile::tempdir().unwrap();
        let draft = Draft::create(&open(place.path())).unwrap();
        let error = draft.write_zeros(1 << 60).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(draft.file().metadata().unwrap().len(), 0, "refused before a byte was written");
        draft.write_zeros((2 << 20) + 5).unwrap();
        assert_eq!(draft.file().metadata().unwrap().len(), (2 << 20) + 5);
    }
}
