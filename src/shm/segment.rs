//! `Segment`: a sealed, reserved piece of memory that processes share by its descriptor.
//!
//! A segment is a memfd: it has no name that could be guessed or left behind, and vanishes with its last holder. Its size
//! is sealed, so that no holder can cut it under the others, and its pages are reserved when it is made, because a page
//! that cannot be had later is a SIGBUS for whoever touches it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;

use rustix::fs::{FallocateFlags, FileType, MemfdFlags, Mode, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

use super::preflight::{self, Amount};
use crate::error::{Error, ErrorKind, Result};

/// A memfd that is sealed (SHRINK, GROW, SEAL) and readable by this user alone.
///
/// Dropping it closes the descriptor; the memory goes when the last descriptor and mapping in any process have gone.
#[derive(Debug)]
pub(crate) struct Segment {
    fd: OwnedFd,
    len: usize,
    pages: Pages,
}

impl Segment {
    /// Makes a segment of at least `len` bytes, whole pages, every one of which is reserved and zero.
    ///
    /// Huge pages come from the pool when it has enough of them, and otherwise from `MADV_HUGEPAGE` where the system
    /// allows that for shared memory; what is left are base pages.
    ///
    /// # Cost
    /// Zeroes all memory: about 0.3 s a GiB with base pages, 0.05 s with huge ones. Blocks.
    ///
    /// # Errors
    /// `NoSpace` with the numbers, before or after asking the kernel; nothing is left behind then. `Invalid` for a length of
    /// zero and for a name that is no memfd's (249 bytes, no zero byte), `TooLarge` above `isize::MAX`.
    pub(crate) fn create(name: &str, len: usize) -> Result<Self> {
        if let Some(segment) = Self::create_huge(name, len)? {
            return Ok(segment);
        }
        let mut segment = Self::create_sparse(name, len)?;
        preflight::check(segment.len as u64)?;
        match segment.populate_transparent() {
            true => segment.pages = Pages::Transparent,
            false => segment.allocate(0, segment.len)?,
        }
        Ok(segment)
    }

    /// Makes a segment of at least `len` bytes, whole base pages, of which none is reserved.
    ///
    /// A piece must be [reserved](Self::reserve) before anything points to it.
    ///
    /// # Cost
    /// A few system calls; takes no memory.
    ///
    /// # Errors
    /// As [`create`](Self::create), except that memory cannot lack.
    pub(crate) fn create_sparse(name: &str, len: usize) -> Result<Self> {
        Self::sealed(name, round_up(len, page_size())?, MemfdFlags::empty(), Pages::Base)
    }

    /// Reserves the pages that hold `len` bytes from `offset` on. Those that were already reserved keep their content.
    ///
    /// # Cost
    /// That of [`preflight::check`], and zeroing: about 0.3 s a GiB of base pages. Blocks.
    ///
    /// # Errors
    /// `NoSpace` with the numbers: some of the pages may be reserved then, and stay so. `Invalid` outside the segment.
    pub(crate) fn reserve(&self, offset: usize, len: usize) -> Result<()> {
        self.contains("reserve", offset, len)?;
        preflight::check(len as u64)?;
        self.allocate(offset, len)
    }

    /// Takes a descriptor that another process sent: a sealed memfd of exactly `len` bytes that belongs to this user.
    ///
    /// Whether its pages are reserved cannot be told; that is the sender's promise.
    ///
    /// # Errors
    /// `Invalid` for anything that could be cut under this process or has another length, `Permission` for what belongs
    /// to another user or is open to others.
    pub(crate) fn adopt(fd: OwnedFd, len: usize) -> Result<Self> {
        let invalid = |text: String| Error::new(ErrorKind::Invalid, "adopt segment", text);
        let stat = rustix::fs::fstat(&fd).map_err(|errno| failed("adopt segment", "fstat", errno))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return Err(invalid(format!("the descriptor is a {kind:?}, not a memfd")));
        }
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| invalid("the file cannot be sealed".to_owned()))?;
        if !seals.contains(SIZE_SEALS) {
            return Err(invalid(format!("the file is not sealed against shrinking and growing: {seals:?}")));
        }
        if u64::try_from(stat.st_size) != Ok(len as u64) || len == 0 {
            return Err(invalid(format!("the segment has {} bytes, where {len} were announced", stat.st_size)));
        }
        let (owner, user) = (stat.st_uid, rustix::process::geteuid().as_raw());
        let mode = Mode::from_raw_mode(stat.st_mode);
        if owner != user || mode.intersects(Mode::RWXG | Mode::RWXO) {
            let text = format!("the segment belongs to user {owner} with mode {mode:?}, not to user {user} alone");
            return Err(Error::new(ErrorKind::Permission, "adopt segment", text));
        }
        let system = rustix::fs::fstatfs(&fd).map_err(|errno| failed("adopt segment", "fstatfs", errno))?;
        let pages = if system.f_type as u64 == HUGETLBFS { Pages::Huge } else { Pages::Base };
        Ok(Self { fd, len, pages })
    }

    /// Another descriptor of the segment, to be sent to another process later.
    pub(crate) fn descriptor(&self) -> Result<OwnedFd> {
        self.fd.try_clone().map_err(|error| Error::io("share segment", "dup", error))
    }

    /// The descriptor, to be sent to another process.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes, in whole pages.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What it is made of. An adopted segment shows transparent huge pages as base pages.
    pub(crate) fn pages(&self) -> Pages {
        self.pages
    }

    /// How many bytes from `offset` on have pages that somebody wrote to, up to the first that has none.
    ///
    /// # Errors
    /// `Io`.
    pub(crate) fn written_from(&self, offset: usize) -> Result<usize> {
        match rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Hole(offset as u64)) {
            Ok(hole) => Ok((hole as usize).saturating_sub(offset)),
            Err(errno) => Err(failed("size segment", "lseek", errno)),
        }
    }

    /// A second descriptor of the same segment.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).map_err(|errno| failed("clone segment", "dup", errno))?;
        Ok(Self { fd, len: self.len, pages: self.pages })
    }

    /// Maps the whole segment, shared. Children do not inherit the mapping, and core dumps leave it out.
    ///
    /// # Cost
    /// Three system calls. Pages fault when they are first touched: [`Mapping::populate`] does that at once.
    ///
    /// # Errors
    /// `NoSpace` naming the limit when the kernel has no address space for it, `Permission` for writing through a descriptor
    /// that only reads.
    pub(crate) fn map(&self, access: Access) -> Result<Mapping> {
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::Write => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: the kernel chooses the address, so no memory of this process is replaced.
        let address = unsafe { rustix::mm::mmap(ptr::null_mut(), self.len, protection, MapFlags::SHARED, &self.fd, 0) };
        let address = address.map_err(|errno| self.unmappable(errno))?;
        let address = NonNull::new(address.cast()).expect("the kernel maps nothing at address zero unless asked to");
        let mapping = Mapping { address, len: self.len, access };
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            mapping.advise(0, self.len, advice).map_err(|errno| failed("map segment", "madvise", errno))?;
        }
        Ok(mapping)
    }

    /// Gives the pages that lie wholly in `len` bytes from `offset` on back to the system; the bytes become zero.
    ///
    /// Whoever touches them later allocates them again without a check: `reserve` comes first.
    ///
    /// # Errors
    /// `Invalid` outside the segment.
    pub(crate) fn release(&self, offset: usize, len: usize) -> Result<()> {
        self.contains("release", offset, len)?;
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match len {
            0 => Ok(()),
            _ => retry(|| rustix::fs::fallocate(&self.fd, flags, offset as u64, len as u64))
                .map_err(|errno| failed("release", "fallocate", errno)),
        }
    }

    /// A segment of the pool of huge pages, `None` when that has too few.
    fn create_huge(name: &str, len: usize) -> Result<Option<Self>> {
        let pool = preflight::huge_pages();
        let size = pool.size as usize;
        // One that is smaller would be mostly waste.
        if size == 0 || len < size {
            return Ok(None);
        }
        let len = round_up(len, size)?;
        if (len / size) as u64 > pool.free {
            return Ok(None);
        }
        // Between the look and the call others may have taken them; a cgroup may allow fewer; the next kind serves as well.
        let Ok(segment) = Self::sealed(name, len, MemfdFlags::HUGETLB, Pages::Huge) else { return Ok(None) };
        Ok(segment.allocate(0, len).is_ok().then_some(segment))
    }

    /// An empty memfd of `len` bytes.
    fn sealed(name: &str, len: usize, flags: MemfdFlags, pages: Pages) -> Result<Self> {
        // Beyond this limit the kernel sends SIGXFSZ, which kills.
        if let Some(limit) = getrlimit(Resource::Fsize).current.filter(|limit| *limit < len as u64) {
            let (len, limit) = (Amount(len as u64), Amount(limit));
            let text = format!("{len} needed, RLIMIT_FSIZE is {limit}: raise it with `ulimit -f`");
            return Err(Error::new(ErrorKind::NoSpace, "reserve", text));
        }
        let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            // Linux before 6.3.
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
            other => other,
        };
        let fd = fd.map_err(|errno| match errno {
            Errno::INVAL => Error::new(ErrorKind::Invalid, "reserve", format!("{name:?} cannot name a memfd")),
            _ => failed("reserve", "memfd_create", errno),
        })?;
        let made: rustix::io::Result<()> = (|| {
            // Before anything is in it: a fresh memfd is open to every user.
            rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
            retry(|| rustix::fs::ftruncate(&fd, len as u64))?;
            rustix::fs::fcntl_add_seals(&fd, SIZE_SEALS | SealFlags::SEAL)
        })();
        made.map_err(|errno| failed("reserve", "sizing and sealing a memfd", errno))?;
        Ok(Self { fd, len, pages })
    }

    /// Reserves by writing through a mapping that asks for transparent huge pages; `false` where that cannot be.
    // The order is binding: pages that fallocate has put in place stay small.
    fn populate_transparent(&self) -> bool {
        let transparent = preflight::shmem_transparent();
        if !transparent.on_request() || (self.len as u64) < transparent.size {
            return false;
        }
        let Ok(mapping) = self.map(Access::Write) else { return false };
        mapping.advise(0, self.len, Advice::LinuxHugepage).is_ok()
            && mapping.advise(0, self.len, Advice::LinuxPopulateWrite).is_ok()
    }

    /// Reserves without asking whether memory is there.
    fn allocate(&self, offset: usize, len: usize) -> Result<()> {
        // Kernels that let any signal interrupt the call undo it then, so one long call might never end. Linux 6.18 does not.
        let step = match self.pages {
            Pages::Huge => huge_page_size(),
            _ => STEP,
        };
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let next = end.min((at + step) / step * step);
            retry(|| rustix::fs::fallocate(&self.fd, FallocateFlags::empty(), at as u64, (next - at) as u64))
                .map_err(|errno| failed("reserve", Amount(len as u64), errno))?;
            at = next;
        }
        Ok(())
    }

    fn contains(&self, op: &'static str, offset: usize, len: usize) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => {
                let text = format!("{len} bytes at {offset} of a segment of {}", self.len);
                Err(Error::new(ErrorKind::Invalid, op, text))
            }
        }
    }

    fn unmappable(&self, errno: Errno) -> Error {
        let len = Amount(self.len as u64);
        if errno != Errno::NOMEM {
            return failed("map segment", len, errno);
        }
        let text = match getrlimit(Resource::As).current {
            Some(limit) => format!(
                "{len} of address space needed, RLIMIT_AS is {} and this process has {} mapped: raise it with `ulimit -v`",
                Amount(limit),
                Amount(address_space())
            ),
            None => format!(
                "{len} of address space needed: this process may have too many mappings (vm.max_map_count), or the \
                 system too few {}",
                self.pages
            ),
        };
        Error::new(ErrorKind::NoSpace, "map segment", text).with_source(io::Error::from(errno))
    }
}

/// What a segment is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    Base,
    /// Base pages where the kernel found nothing larger: it was asked for huge ones, and does not tell.
    Transparent,
    Huge,
}

impl fmt::Display for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, name) = match self {
            Self::Base => (page_size(), "pages"),
            Self::Transparent => return f.write_str("transparent huge pages"),
            Self::Huge => (huge_page_size(), "huge pages"),
        };
        match size >> 20 {
            0 => write!(f, "{} KiB {name}", size >> 10),
            mib => write!(f, "{mib} MiB {name}"),
        }
    }
}

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    /// Reading, too.
    Write,
}

/// A whole segment in the address space of this process, until dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    len: usize,
    access: Access,
}

// SAFETY: a mapping belongs to the process, not to a thread: mmap(2) and munmap(2) ask for no particular one, and nothing
// here changes after construction.
unsafe impl Send for Mapping {}
// SAFETY: as above; a shared reference gives out an address and advice, and reads or writes no memory itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first byte, aligned to a page. Valid for `len` bytes while the mapping lives; for writing if it was mapped so.
    pub(crate) fn as_ptr(&self) -> NonNull<u8> {
        self.address
    }

    /// Bytes, in whole pages.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Enters the pages of a range into this process's page table, so that touching them does not fault. Only reserved
    /// ranges: a hole would be allocated unchecked.
    ///
    /// Linux before 5.14 cannot, and then nothing happens.
    ///
    /// # Cost
    /// 0.1 s a GiB of base pages to read and 0.2 s to write, next to nothing with huge ones. Blocks.
    ///
    /// # Errors
    /// `Invalid` outside the mapping, `NoSpace` when a hole cannot be filled.
    pub(crate) fn populate(&self, offset: usize, len: usize) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            let text = format!("{len} bytes at {offset} of a mapping of {}", self.len);
            return Err(Error::new(ErrorKind::Invalid, "populate", text));
        }
        let advice = match self.access {
            Access::Read => Advice::LinuxPopulateRead,
            Access::Write => Advice::LinuxPopulateWrite,
        };
        match self.advise(offset, len, advice) {
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            // What would be SIGBUS if it were touched.
            Err(Errno::FAULT) => Err(failed("populate", Amount(len as u64), Errno::NOMEM)),
            Err(errno) => Err(failed("populate", Amount(len as u64), errno)),
        }
    }

    /// Advises on the pages that hold a range inside the mapping, again when a signal interrupts.
    fn advise(&self, offset: usize, len: usize, advice: Advice) -> rustix::io::Result<()> {
        let first = offset / page_size() * page_size();
        // SAFETY: callers have checked that the range lies inside the mapping, so the address does.
        let address = unsafe { self.address.add(first) };
        // SAFETY: none of the advice used here changes the content of memory; the range is of this mapping alone, which
        // `&self` keeps.
        retry(|| unsafe { rustix::mm::madvise(address.as_ptr().cast(), offset - first + len, advice) })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this value owns the mapping, and whoever uses its address keeps the value.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.len) };
    }
}

/// An error for what the kernel refused, with the limit behind it where there is one.
fn failed(op: &'static str, what: impl fmt::Display, errno: Errno) -> Error {
    let limit = |resource| getrlimit(resource).current.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let text = match errno {
        Errno::MFILE => format!(
            "{what}: this process has as many files open as RLIMIT_NOFILE allows ({}): raise it with `ulimit -n`",
            limit(Resource::Nofile)
        ),
        Errno::NFILE => format!("{what}: this machine has as many files open as fs.file-max allows"),
        // Only after mlockall(2) does mapping memory lock it.
        Errno::AGAIN => format!(
            "{what}: locking memory exceeds RLIMIT_MEMLOCK ({} bytes): raise it with `ulimit -l`",
            limit(Resource::Memlock)
        ),
        Errno::NOSPC | Errno::NOMEM => {
            let room = preflight::room();
            format!(
                "{what}: the kernel has no memory for it, though {} looked available ({}); see vm.overcommit_memory",
                Amount(room.bytes),
                room.limit
            )
        }
        _ => return Error::io(op, what.to_string(), errno.into()),
    };
    Error::new(ErrorKind::NoSpace, op, text).with_source(io::Error::from(errno))
}

fn round_up(len: usize, page: usize) -> Result<usize> {
    if len == 0 {
        return Err(Error::new(ErrorKind::Invalid, "reserve", "a segment of no bytes"));
    }
    let rounded = len.checked_next_multiple_of(page).filter(|rounded| isize::try_from(*rounded).is_ok());
    rounded.ok_or_else(|| Error::new(ErrorKind::TooLarge, "reserve", format!("a segment of {len} bytes")))
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| {
        // SAFETY: sysconf reads a constant of the system.
        let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        usize::try_from(size).expect("POSIX has every system know its page size")
    })
}

/// That of the default pool, which a boot fixes.
fn huge_page_size() -> usize {
    static SIZE: OnceLock<usize> = OnceLock::new();
    *SIZE.get_or_init(|| preflight::huge_pages().size as usize)
}

/// Bytes of address space that this process has taken, as `RLIMIT_AS` counts.
fn address_space() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').next().and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * page_size() as u64
}

const SIZE_SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

/// Bytes per call of fallocate: less than a millisecond's work, and a multiple of every base page size.
const STEP: usize = 1 << 20;

/// What statfs(2) calls the file system of the pool of huge pages.
const HUGETLBFS: u64 = 0x958458f6;

#[cfg(test)]
mod tests;
