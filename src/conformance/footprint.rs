//! What this process holds of the machine, read from Linux's `/proc`; nothing elsewhere.

use std::fs;

use super::case::{Check, Fault};
use super::subject::Subject;

/// Resources at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Footprint {
    /// Private memory in bytes (`RssAnon` of proc_pid_status(5)).
    memory: u64,
    /// Mappings.
    maps: u64,
    /// Open files.
    files: u64,
    /// Bytes in the subject's directories.
    disk: u64,
}

impl Footprint {
    pub(super) fn now(subject: &Subject) -> Self {
        let maps = fs::read_to_string("/proc/self/maps").map_or(0, |text| text.lines().count() as u64);
        let files = fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64);
        Self { memory: private_memory(), maps, files, disk: subject.disk_usage() }
    }

    /// Passes when the process has not grown by `bytes` or by dozens of handles since `self` was taken.
    #[track_caller]
    pub(super) fn check(&self, what: &str, bytes: u64, subject: &Subject) -> Check {
        let now = Self::now(subject);
        for (resource, before, after, slack) in [
            ("private memory", self.memory, now.memory, bytes),
            ("disk", self.disk, now.disk, bytes),
            ("mappings", self.maps, now.maps, HANDLES),
            ("open files", self.files, now.files, HANDLES),
        ] {
            if after > before + slack {
                return Err(Fault::new(format!("{what}: {resource} grew from {before} to {after}")));
            }
        }
        Ok(())
    }
}

/// Private memory of this process, in bytes.
pub(super) fn private_memory() -> u64 {
    field("/proc/self/status", "RssAnon:").unwrap_or(0)
}

/// Memory that a process can still get, in bytes, where the system tells: free, and within the control group.
pub(super) fn available() -> Option<u64> {
    let free = field("/proc/meminfo", "MemAvailable:")?;
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    match (number("/sys/fs/cgroup/memory.max"), number("/sys/fs/cgroup/memory.current")) {
        (Some(max), Some(current)) => Some(free.min(max.saturating_sub(current))),
        _ => Some(free),
    }
}

/// A line `NAME  123 kB`, in bytes.
fn field(path: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? << 10)
}

/// Mappings and files that thread stacks, pools and allocators may add by themselves.
const HANDLES: u64 = 64;
