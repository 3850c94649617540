//! Whether memory can be had, before it is asked for: a cgroup answers with SIGKILL.
//!
//! Over the limit of a memory cgroup, `fallocate` and `MADV_POPULATE_WRITE` do not fail: the kernel kills. So whoever is
//! about to take memory asks here first, and refuses with the numbers. What others take between the answer and its use
//! is covered only by a margin that is not promised: a fifth of what is left, and a sixteenth of the limit.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::error::{Error, ErrorKind, Result};

/// What this process may still take, and what says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    /// `u64::MAX` where nothing could be read.
    pub(crate) bytes: u64,
    /// The tightest source with its numbers: `cgroup /sys/fs/cgroup/memory/job1: limit 64.0 MiB, in use 20.1 MiB`.
    pub(crate) limit: String,
}

/// The least that any source leaves, without a margin for what others take meanwhile: the machine's available memory, and every memory
/// cgroup from that of this process up to the root, of version 1 and 2.
///
/// # Cost
/// Reads `/proc/meminfo` and `/proc/self/cgroup`, a file for each group above this process and three for each that has a
/// limit. About 60 us, 20 more for each limit; nothing is cached but where cgroups are mounted.
pub(crate) fn room() -> Room {
    #[cfg(test)]
    if let Some(room) = tests::PRETENDED.take() {
        tests::PRETENDED.set(Some(room.clone()));
        return room;
    }
    let room = Machine::this().and_then(Machine::room);
    room.unwrap_or_else(|error| Room { bytes: 0, limit: format!("the limits of memory cannot be read: {error}") })
}

/// Whether `len` more bytes may be taken.
///
/// # Cost
/// That of [`room`].
///
/// # Errors
/// `NoSpace` with what is needed, what there is, the limit that says so, and what helps.
pub(crate) fn check(len: u64) -> Result<()> {
    room().check(len)
}

/// How much shared memory to take when nobody said: half of the machine's or of the tightest cgroup's limit, in whole MiB;
/// 0 when neither can be read.
pub(crate) fn default_budget() -> u64 {
    Machine::this().and_then(Machine::default_budget).unwrap_or(0)
}

/// The pool of huge pages of the default size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct HugePages {
    /// Bytes of one; 0 where the kernel has none.
    pub(crate) size: u64,
    pub(crate) total: u64,
    /// Pages that nobody holds and nobody has been promised.
    pub(crate) free: u64,
}

/// What is in the pool now.
///
/// # Cost
/// Reads `/proc/meminfo`, 20 us.
pub(crate) fn huge_pages() -> HugePages {
    let meminfo = Machine::this().and_then(|machine| machine.read("proc/meminfo"));
    HugePages::parse(&meminfo.unwrap_or_default())
}

/// Whether shared memory may have transparent huge pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transparent {
    /// `always`, `within_size`, `advise`, `never`, `deny`, `force`, or empty where the kernel has no say.
    pub(crate) state: String,
    /// Bytes of one page.
    pub(crate) size: u64,
}

impl Transparent {
    /// Whether memory that asks by `MADV_HUGEPAGE` gets them.
    pub(crate) fn on_request(&self) -> bool {
        matches!(self.state.as_str(), "always" | "within_size" | "advise" | "force")
    }
}

/// The state of `/sys/kernel/mm/transparent_hugepage/shmem_enabled`.
pub(crate) fn shmem_transparent() -> Transparent {
    Machine::this().and_then(Machine::shmem_transparent).unwrap_or_default()
}

/// What this process may lock or register with a network card, `None` when that is unlimited (`RLIMIT_MEMLOCK`).
pub(crate) fn lockable() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// Bytes as people read them: `64.0 MiB`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount(pub(crate) u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(bytes) = *self;
        let unit = [(30, "GiB"), (20, "MiB"), (10, "KiB")].into_iter().find(|(shift, _)| bytes >> shift > 0);
        match unit {
            Some((shift, name)) => write!(f, "{:.1} {name}", bytes as f64 / (1u64 << shift) as f64),
            None => write!(f, "{bytes} B"),
        }
    }
}

impl Room {
    fn check(&self, len: u64) -> Result<()> {
        if len <= self.bytes {
            return Ok(());
        }
        let text = format!(
            "{} needed, {} may be taken ({}): ask the batch system for more memory, or lower {BUDGET}",
            Amount(len),
            Amount(self.bytes),
            self.limit
        );
        Err(Error::new(ErrorKind::NoSpace, "reserve", text))
    }
}

impl HugePages {
    fn parse(meminfo: &str) -> Self {
        let number = |name| field(meminfo, name).unwrap_or(0);
        Self {
            size: number("Hugepagesize"),
            total: number("HugePages_Total"),
            free: number("HugePages_Free").saturating_sub(number("HugePages_Rsvd")),
        }
    }
}

/// The files that tell, below a directory that is `/` outside tests.
struct Machine {
    root: PathBuf,
    mounts: Vec<Mount>,
}

impl Machine {
    fn this() -> io::Result<&'static Self> {
        // Mounts are read once: there can be thousands, and those of cgroups stay for the life of a process.
        static THIS: OnceLock<Machine> = OnceLock::new();
        match THIS.get() {
            Some(machine) => Ok(machine),
            None => Self::at(Path::new("/")).map(|machine| THIS.get_or_init(|| machine)),
        }
    }

    fn at(root: &Path) -> io::Result<Self> {
        let mut machine = Self { root: root.to_owned(), mounts: Vec::new() };
        machine.mounts = machine.read("proc/self/mountinfo")?.lines().filter_map(Mount::parse).collect();
        Ok(machine)
    }

    fn room(&self) -> io::Result<Room> {
        let meminfo = self.read("proc/meminfo")?;
        let machine = field(&meminfo, "MemAvailable").map(|available| {
            let total = field(&meminfo, "MemTotal").unwrap_or(0);
            let limit = format!("this machine: {} of {} available", Amount(available), Amount(total));
            Room { bytes: promised(available, total), limit }
        });
        let groups = self.groups()?.into_iter().map(|group| group.room());
        let tightest = machine.into_iter().chain(groups).min_by_key(|room| room.bytes);
        Ok(tightest.unwrap_or(Room { bytes: u64::MAX, limit: "no limit known".to_owned() }))
    }

    fn default_budget(&self) -> io::Result<u64> {
        let total = field(&self.read("proc/meminfo")?, "MemTotal");
        let limits = self.groups()?.into_iter().map(|group| group.limit);
        let tightest = total.into_iter().chain(limits).min().unwrap_or(0);
        Ok((tightest / 2) & !((1 << 20) - 1))
    }

    fn shmem_transparent(&self) -> io::Result<Transparent> {
        let folder = Path::new("sys/kernel/mm/transparent_hugepage");
        Ok(Transparent {
            state: chosen(&self.read(folder.join("shmem_enabled"))?).unwrap_or_default().to_owned(),
            size: self.read(folder.join("hpage_pmd_size"))?.trim().parse().unwrap_or(2 << 20),
        })
    }

    /// The groups with a limit that this process is in, from its own up to the root, of both versions.
    fn groups(&self) -> io::Result<Vec<Group>> {
        let memberships = self.read("proc/self/cgroup")?;
        let mut groups = Vec::new();
        for (version, path) in memberships.lines().filter_map(membership) {
            let candidates = || self.mounts.iter().filter(|mount| mount.version == version);
            let of_path = candidates().find_map(|mount| Some((mount, path.strip_prefix(&mount.group).ok()?)));
            // Within a container the path may lead outside of what is mounted; the mount itself is then the nearest.
            let Some((mount, below)) = of_path.or_else(|| candidates().next().map(|mount| (mount, Path::new(""))))
            else {
                continue;
            };
            let leaf: PathBuf = mount.at.components().chain(below.components()).collect();
            for folder in leaf.ancestors().take_while(|folder| folder.starts_with(&mount.at)) {
                groups.extend(self.group(version, folder)?);
            }
        }
        Ok(groups)
    }

    /// The group in a folder, `None` when it has no limit.
    fn group(&self, version: Version, folder: &Path) -> io::Result<Option<Group>> {
        let number = |name: &str| Ok::<_, io::Error>(self.read(folder.join(name))?.trim().parse::<u64>().ok());
        let mut limit = UNLIMITED;
        for name in version.limits() {
            limit = number(name)?.map_or(limit, |found| found.min(limit));
        }
        if limit == UNLIMITED {
            return Ok(None);
        }
        let used = number(version.used())?.unwrap_or(0);
        let stat = self.read(folder.join("memory.stat"))?;
        let cached =
            version.cached().into_iter().filter_map(|name| stat_field(&stat, name)).fold(0, u64::saturating_add);
        Ok(Some(Group { folder: folder.to_owned(), limit, used: used.saturating_sub(cached) }))
    }

    /// The text of a file, empty where there is none to read: that limits nothing.
    ///
    /// But a process that has no descriptor left must not conclude that nothing limits it.
    fn read(&self, path: impl AsRef<Path>) -> io::Result<String> {
        let path = path.as_ref();
        match fs::read_to_string(self.root.join(path.strip_prefix("/").unwrap_or(path))) {
            Ok(text) => Ok(text),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::MFILE) => Err(io::Error::other("as many files are open as RLIMIT_NOFILE allows")),
                Some(Errno::NFILE | Errno::NOMEM) => Err(error),
                _ => Ok(String::new()),
            },
        }
    }
}

/// A memory cgroup with a limit.
struct Group {
    folder: PathBuf,
    limit: u64,
    /// Without what the kernel gives up when asked: file cache that is not shared memory.
    used: u64,
}

impl Group {
    fn room(&self) -> Room {
        let Self { folder, limit, used } = self;
        Room {
            bytes: promised(limit.saturating_sub(*used), *limit),
            limit: format!("cgroup {}: limit {}, in use {}", folder.display(), Amount(*limit), Amount(*used)),
        }
    }
}

/// A mounted hierarchy of cgroups that can limit memory.
struct Mount {
    version: Version,
    /// The group that is seen at the mount point.
    group: PathBuf,
    at: PathBuf,
}

impl Mount {
    /// Reads a line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
    fn parse(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (group, at) = (mount.next()?, mount.next()?);
        let mut system = system.split(' ');
        let version = match (system.next()?, system.nth(1)?) {
            ("cgroup2", _) => Version::V2,
            ("cgroup", options) if options.split(',').any(|option| option == "memory") => Version::V1,
            _ => return None,
        };
        Some(Self { version, group: group.into(), at: at.into() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    fn limits(self) -> &'static [&'static str] {
        match self {
            Self::V1 => &["memory.limit_in_bytes"],
            // Above `high` nobody is killed, but who takes memory that cannot be reclaimed is slowed to a standstill.
            Self::V2 => &["memory.max", "memory.high"],
        }
    }

    fn used(self) -> &'static str {
        match self {
            Self::V1 => "memory.usage_in_bytes",
            Self::V2 => "memory.current",
        }
    }

    /// Lines of `memory.stat` that count reclaimable file cache, that of groups below included.
    fn cached(self) -> [&'static str; 2] {
        match self {
            Self::V1 => ["total_active_file", "total_inactive_file"],
            Self::V2 => ["active_file", "inactive_file"],
        }
    }
}

/// Version and group of a line `ID:CONTROLLERS:PATH` of `/proc/self/cgroup`, if it can limit memory.
fn membership(line: &str) -> Option<(Version, &Path)> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let version = match controllers {
        "" => Version::V2,
        _ if controllers.split(',').any(|controller| controller == "memory") => Version::V1,
        _ => return None,
    };
    // A group outside of this namespace is shown as `/..`; a removed one has a suffix.
    let path = path.strip_suffix(" (deleted)").unwrap_or(path);
    let outside = Path::new(path).components().any(|part| part.as_os_str() == "..");
    Some((version, Path::new(if outside { "" } else { path })))
}

/// A number of `/proc/meminfo`, in bytes where the line says kB.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?.trim();
    match value.strip_suffix("kB") {
        Some(kib) => kib.trim().parse::<u64>().ok()?.checked_mul(1 << 10),
        None => value.parse().ok(),
    }
}

fn stat_field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.trim().parse().ok()
}

/// The word in brackets, as the kernel marks what is chosen: `always [madvise] never`.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

/// How much of what is left of a limit may be promised.
///
/// Four fifths, for what others take meanwhile. And never the last of the limit, which a run of small pieces would reach,
/// each having four fifths of what the one before it left.
fn promised(left: u64, limit: u64) -> u64 {
    let spared = (limit / 16).min(1 << 30);
    (left - left / 5).min(left.saturating_sub(spared))
}

/// Version 2 writes `max`, which is no number, for "no limit", and version 1 nearly 2^63.
const UNLIMITED: u64 = 1 << 60;

/// What bounds the memory that the node service takes.
const BUDGET: &str = "PROXYSTORE_SHM_BYTES";

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// What `room` tells this thread instead of the truth. Refusals are tested with it: a test that asked for more than
        /// the machine has would, on the day that the check is broken, take all memory from everybody.
        pub(in super::super) static PRETENDED: Cell<Option<Room>> = const { Cell::new(None) };
    }

    const MEMINFO: &str = "MemTotal:       24684084 kB\nMemFree:        20937044 kB\nMemAvailable:   10485760 kB\n\
                           HugePages_Total:      12\nHugePages_Free:       10\nHugePages_Rsvd:        3\n\
                           Hugepagesize:       2048 kB\n";
    const HYBRID_MOUNTS: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                                 34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime - cgroup cgroup rw,cpuset\n\
                                 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory\n\
                                 41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const HYBRID_GROUPS: &str = "9:name=systemd:/\n4:cpuacct,memory:/slurm/job1\n3:cpuset:/slurm\n0::/user.slice\n";
    const V1_MAX: &str = "9223372036854771712\n";

    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Machine) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let machine = Machine::at(root.path()).unwrap();
        (root, machine)
    }

    #[test]
    fn the_machine_alone() {
        let (_root, machine) = machine(&[("proc/meminfo", MEMINFO)]);
        assert_eq!(
            machine.room().unwrap(),
            Room { bytes: 8 << 30, limit: "this machine: 10.0 GiB of 23.5 GiB available".to_owned() }
        );
        assert_eq!(machine.default_budget().unwrap(), (24_684_084 / 2 / 1024) << 20);
        assert_eq!(HugePages::parse(MEMINFO), HugePages { size: 2 << 20, total: 12, free: 7 });
    }

    #[test]
    fn version_1_beside_an_empty_version_2() {
        let (_root, machine) = machine(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", HYBRID_GROUPS),
            ("proc/self/mountinfo", HYBRID_MOUNTS),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", V1_MAX),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "1073741824\n"),
            ("sys/fs/cgroup/memory/slurm/memory.limit_in_bytes", "67108864\n"),
            ("sys/fs/cgroup/memory/slurm/memory.usage_in_bytes", "25165824\n"),
            (
                "sys/fs/cgroup/memory/slurm/memory.stat",
                "active_file 7\ntotal_inactive_file 3145728\ntotal_active_file 1048576\n",
            ),
            ("sys/fs/cgroup/memory/slurm/job1/memory.limit_in_bytes", "134217728\n"),
            ("sys/fs/cgroup/memory/slurm/job1/memory.usage_in_bytes", "0\n"),
        ]);
        let room = machine.room().unwrap();
        assert_eq!(room.limit, "cgroup /sys/fs/cgroup/memory/slurm: limit 64.0 MiB, in use 20.0 MiB");
        assert_eq!(room.bytes, promised(44 << 20, 64 << 20));
        assert_eq!(machine.default_budget().unwrap(), 32 << 20);

        assert!(room.check(35 << 20).is_ok());
        let error = room.check(36 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let text = error.to_string();
        for part in ["36.0 MiB needed", "35.2 MiB may be taken", &room.limit, "batch system", "PROXYSTORE_SHM_BYTES"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn version_2_nested() {
        let (_root, machine) = machine(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/system.slice/slurmstepd.scope/job_7/step_0\n"),
            ("proc/self/mountinfo", "24 23 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/slurmstepd.scope/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.max", "4294967296\n"),
            ("sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.current", "4294967296\n"),
            ("sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/memory.stat", "inactive_file 1073741824\n"),
            ("sys/fs/cgroup/system.slice/slurmstepd.scope/job_7/step_0/memory.max", "max\n"),
        ]);
        let room = machine.room().unwrap();
        assert_eq!(room.bytes, promised(1 << 30, 4 << 30));
        assert!(room.limit.ends_with("job_7: limit 4.0 GiB, in use 3.0 GiB"), "{}", room.limit);
        assert_eq!(machine.default_budget().unwrap(), 2 << 30);
    }

    #[test]
    fn high_is_a_limit_too() {
        let (_root, machine) = machine(&[
            ("proc/self/cgroup", "0::/job\n"),
            ("proc/self/mountinfo", "24 23 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/job/memory.max", "max\n"),
            ("sys/fs/cgroup/job/memory.high", "1048576\n"),
        ]);
        assert_eq!(machine.room().unwrap().limit, "cgroup /sys/fs/cgroup/job: limit 1.0 MiB, in use 0 B");
    }

    /// Docker without a namespace of cgroups: the path begins with the group that is mounted.
    #[test]
    fn containers() {
        let limit = "sys/fs/cgroup/memory/memory.limit_in_bytes";
        let mount = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        for path in ["/docker/abc", "/docker/abc/inner", "/elsewhere", "/../other", "/docker/abc (deleted)"] {
            let (_root, machine) = machine(&[
                ("proc/self/cgroup", &format!("4:memory:{path}\n")),
                ("proc/self/mountinfo", mount),
                (limit, "1048576\n"),
            ]);
            assert_eq!(
                machine.room().unwrap().limit,
                "cgroup /sys/fs/cgroup/memory: limit 1.0 MiB, in use 0 B",
                "{path}"
            );
        }
    }

    #[test]
    fn garbage_limits_nothing() {
        let garbage =
            ["", "\n", ":", "::", "0:", "0::", "4:memory", "a - b", " - ", "-1", "MemAvailable: x kB", "\u{0}"];
        for text in garbage {
            let (_root, machine) = machine(&[
                ("proc/meminfo", text),
                ("proc/self/cgroup", text),
                ("proc/self/mountinfo", text),
                ("sys/kernel/mm/transparent_hugepage/shmem_enabled", text),
            ]);
            assert_eq!(machine.room().unwrap().bytes, u64::MAX, "{text}");
            assert_eq!(machine.default_budget().unwrap(), 0, "{text}");
            assert_eq!(machine.shmem_transparent().unwrap().state, "", "{text}");
            let (_root, machine) = self::machine(&[
                ("proc/meminfo", MEMINFO),
                ("proc/self/cgroup", HYBRID_GROUPS),
                ("proc/self/mountinfo", HYBRID_MOUNTS),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", text),
            ]);
            assert_eq!(machine.room().unwrap().bytes, 8 << 30, "{text}");
        }
        let (_root, machine) = machine(&[("proc/meminfo", "MemAvailable: 18446744073709551615 kB\n")]);
        assert_eq!(machine.room().unwrap().bytes, u64::MAX);
    }

    #[test]
    fn in_use_beyond_the_limit_leaves_nothing() {
        let (_root, machine) = machine(&[
            ("proc/self/cgroup", "0::/\n"),
            ("proc/self/mountinfo", "24 23 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/memory.max", "0\n"),
            ("sys/fs/cgroup/memory.current", "4096\n"),
        ]);
        assert_eq!(machine.room().unwrap().bytes, 0);
        assert!(machine.room().unwrap().check(1).is_err());
        assert!(machine.room().unwrap().check(0).is_ok());
    }

    #[test]
    fn transparent_huge_pages() {
        for (text, state, on_request) in [
            ("always within_size advise [never] deny force\n", "never", false),
            ("always within_size [advise] never deny force\n", "advise", true),
            ("[always] within_size advise never deny force\n", "always", true),
            ("always within_size advise never [deny] force\n", "deny", false),
        ] {
            let (_root, machine) = machine(&[("sys/kernel/mm/transparent_hugepage/shmem_enabled", text)]);
            let found = machine.shmem_transparent().unwrap();
            assert_eq!((found.state.as_str(), found.on_request(), found.size), (state, on_request, 2 << 20));
        }
    }

    #[test]
    fn small_pieces_do_not_reach_the_limit() {
        let (limit, mut left) = (64 << 20, 60 << 20);
        assert_eq!(promised(left, limit), 48 << 20);
        while promised(left, limit) > 0 {
            left -= promised(left, limit);
        }
        assert_eq!(left, 4 << 20);
        assert_eq!(promised(4 << 30, 1 << 40), 3 << 30, "a gigabyte is enough to spare");
        assert_eq!((promised(0, 0), promised(0, u64::MAX)), (0, 0));
    }

    #[test]
    fn amounts() {
        let text = |bytes| Amount(bytes).to_string();
        assert_eq!([text(0), text(1023), text(1024)], ["0 B", "1023 B", "1.0 KiB"]);
        assert_eq!([text(64 << 20), text(3 << 29)], ["64.0 MiB", "1.5 GiB"]);
    }

    #[test]
    fn this_machine() {
        let room = room();
        assert!(room.bytes > 0 && room.bytes < 1 << 50, "{room:?}");
        assert!(default_budget() > 0);
        assert_eq!(check(u64::MAX).unwrap_err().kind(), ErrorKind::NoSpace);
    }
}
