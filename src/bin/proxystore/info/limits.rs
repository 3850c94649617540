//! The limits of this machine that bite: locked memory, open files, shared memory, the cgroup, huge pages.

use std::fs;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

/// In bytes where it is memory; `None` is "no limit" for limits, and "cannot be told" for the rest.
#[derive(Serialize)]
pub(super) struct Limits {
    cores: Option<usize>,
    memory_total: Option<u64>,
    memory_available: Option<u64>,
    cgroup_memory_limit: Option<u64>,
    cgroup_memory_used: Option<u64>,
    memlock_soft: Option<u64>,
    memlock_hard: Option<u64>,
    nofile_soft: Option<u64>,
    nofile_hard: Option<u64>,
    max_map_count: Option<u64>,
    shm: Option<Space>,
    tmp: Option<Space>,
    huge_pages: Vec<HugePages>,
    transparent_huge_pages: Option<String>,
}

#[derive(Serialize)]
struct Space {
    path: PathBuf,
    size: u64,
    free: u64,
}

#[derive(Serialize)]
struct HugePages {
    page_size: u64,
    total: u64,
    free: u64,
}

impl Limits {
    pub(super) fn collect() -> Self {
        let (memlock, nofile) = (getrlimit(Resource::Memlock), getrlimit(Resource::Nofile));
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cgroup = cgroup_memory();
        Self {
            cores: std::thread::available_parallelism().ok().map(usize::from),
            memory_total: meminfo_bytes(&meminfo, "MemTotal"),
            memory_available: meminfo_bytes(&meminfo, "MemAvailable"),
            cgroup_memory_limit: cgroup.map(|(limit, _)| limit),
            cgroup_memory_used: cgroup.and_then(|(_, used)| used),
            memlock_soft: memlock.current,
            memlock_hard: memlock.maximum,
            nofile_soft: nofile.current,
            nofile_hard: nofile.maximum,
            max_map_count: read_number(Path::new("/proc/sys/vm/max_map_count")),
            shm: Space::of(Path::new("/dev/shm")),
            tmp: Space::of(&std::env::temp_dir()),
            huge_pages: huge_pages(),
            transparent_huge_pages: chosen(Path::new("/sys/kernel/mm/transparent_hugepage/enabled")),
        }
    }

    /// Name and value of each, for people.
    pub(super) fn lines(&self) -> Vec<(String, String)> {
        let bytes = |n: Option<u64>, none: &str| n.map_or(none.to_owned(), |n| HumanBytes(n).to_string());
        let count = |n: Option<u64>, none: &str| n.map_or(none.to_owned(), |n| n.to_string());
        let cgroup = match (self.cgroup_memory_limit, self.cgroup_memory_used) {
            (Some(limit), Some(used)) => format!("{}, {} used", HumanBytes(limit), HumanBytes(used)),
            (limit, _) => bytes(limit, "none"),
        };
        let mut lines = vec![
            ("cores".to_owned(), count(self.cores.map(|n| n as u64), "unknown")),
            (
                "memory".to_owned(),
                format!("{}, {} available", bytes(self.memory_total, "?"), bytes(self.memory_available, "?")),
            ),
            ("cgroup memory limit".to_owned(), cgroup),
            (
                "RLIMIT_MEMLOCK".to_owned(),
                format!("{} (hard {})", bytes(self.memlock_soft, "unlimited"), bytes(self.memlock_hard, "unlimited")),
            ),
            (
                "RLIMIT_NOFILE".to_owned(),
                format!("{} (hard {})", count(self.nofile_soft, "unlimited"), count(self.nofile_hard, "unlimited")),
            ),
            ("vm.max_map_count".to_owned(), count(self.max_map_count, "unknown")),
        ];
        for space in [&self.shm, &self.tmp].into_iter().flatten() {
            let text = format!("{}, {} free", HumanBytes(space.size), HumanBytes(space.free));
            lines.push((space.path.display().to_string(), text));
        }
        if self.shm.is_none() {
            lines.push(("/dev/shm".to_owned(), "missing".to_owned()));
        }
        for pages in &self.huge_pages {
            let text = format!("{} of {} free", pages.free, pages.total);
            lines.push((format!("huge pages of {}", HumanBytes(pages.page_size)), text));
        }
        let transparent = self.transparent_huge_pages.clone().unwrap_or_else(|| "unknown".to_owned());
        lines.push(("transparent huge pages".to_owned(), transparent));
        lines
    }
}

impl Space {
    fn of(path: &Path) -> Option<Self> {
        let stat = rustix::fs::statvfs(path).ok()?;
        let block = stat.f_frsize;
        Some(Self { path: path.to_owned(), size: stat.f_blocks * block, free: stat.f_bavail * block })
    }
}

/// The tightest memory limit of the groups that this process is in, and what is used of that one.
fn cgroup_memory() -> Option<(u64, Option<u64>)> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    // A line is ID:CONTROLLERS:PATH; version 2 has ID 0 and names no controller.
    let groups = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        match controllers {
            "" => Some(tightest(Path::new("/sys/fs/cgroup"), path, "memory.max", "memory.current")),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                let root = Path::new("/sys/fs/cgroup/memory");
                Some(tightest(root, path, "memory.limit_in_bytes", "memory.usage_in_bytes"))
            }
            _ => None,
        }
    });
    groups.flatten().min()
}

/// The lowest limit from the group up to the root. Within a container the path may not lead anywhere; the root does.
fn tightest(root: &Path, path: &str, limit: &str, used: &str) -> Option<(u64, Option<u64>)> {
    let leaf = root.join(path);
    let groups = leaf.ancestors().take_while(|group| group.starts_with(root));
    let limits = groups.filter_map(|group| {
        // "max" is no number; version 1 writes nearly 2^63 for it.
        let limit = read_number(&group.join(limit)).filter(|limit| *limit < 1 << 60)?;
        Some((limit, read_number(&group.join(used))))
    });
    limits.min()
}

fn huge_pages() -> Vec<HugePages> {
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let mut pages: Vec<HugePages> = sizes
        .filter_map(|size| {
            let path = size.ok()?.path();
            let kib: u64 = path.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let total = read_number(&path.join("nr_hugepages"))?;
            Some(HugePages { page_size: kib << 10, total, free: read_number(&path.join("free_hugepages"))? })
        })
        .collect();
    pages.sort_by_key(|pages| pages.page_size);
    pages
}

/// The word in brackets, as the kernel marks what is chosen: `always [madvise] never`.
fn chosen(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo() {
        let text = "MemTotal:       24689764 kB\nMemAvailable:   23 kB\nHugePages_Total:       0\n";
        assert_eq!(meminfo_bytes(text, "MemAvailable"), Some(23 << 10));
        assert_eq!(meminfo_bytes(text, "Mem"), None);
        assert_eq!(meminfo_bytes(text, "HugePages_Total"), None);
    }
}
