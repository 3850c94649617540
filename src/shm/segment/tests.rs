//! Segments against this kernel: seals, limits, other users, children, signals. The ignored ones need root.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Rlimit, setrlimit};

use super::preflight::Room;
use super::preflight::tests::PRETENDED;
use super::*;

const MIB: usize = 1 << 20;

#[test]
fn memory_is_shared_sealed_and_private_to_the_user() {
    let segment = Segment::create(&unique(), 3 * page_size() + 1).unwrap();
    assert_eq!(segment.len(), 4 * page_size());
    assert!(blocks(&segment) >= segment.len() as u64);

    let (writer, reader) = (segment.map(Access::Write).unwrap(), segment.map(Access::Read).unwrap());
    assert_eq!((writer.len(), reader.len()), (segment.len(), segment.len()));
    for at in [0, page_size(), segment.len() - 1] {
        // SAFETY: `at` lies in both mappings, and only this thread uses them.
        unsafe {
            assert_eq!(reader.as_ptr().add(at).read_volatile(), 0);
            writer.as_ptr().add(at).write_volatile(7);
            assert_eq!(reader.as_ptr().add(at).read_volatile(), 7);
        }
    }

    for len in [0, segment.len() - 1, segment.len() + 1, 2 * segment.len()] {
        assert_eq!(rustix::fs::ftruncate(segment.as_fd(), len as u64), Err(Errno::PERM), "{len}");
    }
    assert_eq!(rustix::fs::fcntl_add_seals(segment.as_fd(), SealFlags::WRITE), Err(Errno::PERM));
    assert_eq!(rustix::fs::fstat(segment.as_fd()).unwrap().st_mode & 0o7777, 0o600);
    assert!(rustix::io::fcntl_getfd(segment.as_fd()).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
}

#[test]
fn adopts_what_create_made() {
    let segment = Segment::create(&unique(), page_size()).unwrap();
    let sent = segment.try_clone().unwrap();
    let adopted = Segment::adopt(sent.fd, page_size()).unwrap();
    assert_eq!(identity(&adopted), identity(&segment));
    assert_eq!((adopted.len(), adopted.pages()), (page_size(), Pages::Base));
    let other = Segment::create(&unique(), page_size()).unwrap();
    assert_ne!(identity(&other), identity(&segment));

    // A descriptor that only reads.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&segment.as_fd()));
    let adopted = Segment::adopt(File::open(path).unwrap().into(), page_size()).unwrap();
    assert_eq!(adopted.map(Access::Write).unwrap_err().kind(), ErrorKind::Permission);
    assert!(adopted.map(Access::Read).is_ok());
}

#[test]
fn adopts_nothing_else() {
    let len = 4 * page_size();
    let memfd = |seals| {
        let fd = rustix::fs::memfd_create(unique(), MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR).unwrap();
        rustix::fs::ftruncate(&fd, len as u64).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    };
    assert!(Segment::adopt(memfd(SIZE_SEALS), len).is_ok());

    let file = tempfile::tempfile().unwrap();
    file.set_len(len as u64).unwrap();
    let shared_memory = tempfile::tempfile_in("/dev/shm").unwrap();
    shared_memory.set_len(len as u64).unwrap();
    let folder = File::open("/").unwrap();
    let invalid: [(&str, OwnedFd, usize); 11] = [
        ("unsealed", memfd(SealFlags::empty()), len),
        ("may shrink", memfd(SealFlags::GROW), len),
        ("may grow", memfd(SealFlags::SHRINK), len),
        ("shorter than announced", memfd(SIZE_SEALS), len + page_size()),
        ("longer than announced", memfd(SIZE_SEALS), len - page_size()),
        ("nothing announced", memfd(SIZE_SEALS), 0),
        ("absurd length", memfd(SIZE_SEALS), usize::MAX),
        ("regular file", file.into(), len),
        ("file of /dev/shm", shared_memory.into(), len),
        ("folder", folder.into(), len),
        ("pipe", rustix::pipe::pipe().unwrap().0, len),
    ];
    for (what, fd, len) in invalid {
        assert_eq!(Segment::adopt(fd, len).unwrap_err().kind(), ErrorKind::Invalid, "{what}");
    }

    let open = memfd(SIZE_SEALS);
    rustix::fs::fchmod(&open, Mode::RUSR | Mode::WUSR | Mode::ROTH).unwrap();
    assert_eq!(Segment::adopt(open, len).unwrap_err().kind(), ErrorKind::Permission);
}

#[test]
#[ignore = "needs root, to give a segment to another user"]
fn adopts_nothing_of_other_users() {
    let segment = Segment::create(&unique(), page_size()).unwrap();
    rustix::fs::fchown(segment.as_fd(), Some(rustix::fs::Uid::from_raw(12_345)), None).unwrap();
    let error = Segment::adopt(segment.try_clone().unwrap().fd, page_size()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission);
    assert!(error.to_string().contains("user 12345"), "{error}");
}

#[test]
fn sparse_takes_memory_when_it_is_reserved() {
    let segment = Segment::create_sparse(&unique(), 64 * MIB).unwrap();
    assert_eq!((blocks(&segment), segment.pages()), (0, Pages::Base));
    segment.reserve(MIB + 1, 3 * MIB - 2).unwrap();
    assert_eq!(blocks(&segment), 3 * MIB as u64);
    segment.reserve(0, 0).unwrap();
    segment.reserve(2 * MIB, MIB).unwrap();
    assert_eq!(blocks(&segment), 3 * MIB as u64, "reserved already");

    let mapping = segment.map(Access::Write).unwrap();
    // SAFETY: in the mapping, which only this thread uses.
    unsafe { mapping.as_ptr().add(2 * MIB).write_volatile(9) };
    segment.reserve(0, 4 * MIB).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { mapping.as_ptr().add(2 * MIB).read_volatile() }, 9, "kept");
    segment.release(MIB, 2 * MIB).unwrap();
    assert_eq!(blocks(&segment), 2 * MIB as u64);
    segment.release(0, 0).unwrap();
    segment.reserve(MIB, 2 * MIB).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { mapping.as_ptr().add(2 * MIB).read_volatile() }, 0, "given back");
}

#[test]
fn populated_pages_do_not_fault() {
    let segment = Segment::create(&unique(), 8 * MIB).unwrap();
    for access in [Access::Write, Access::Read] {
        let mapping = segment.map(access).unwrap();
        mapping.populate(1, segment.len() - 1).unwrap();
        mapping.populate(segment.len(), 0).unwrap();
        let before = faults();
        for at in (0..segment.len()).step_by(page_size()) {
            // SAFETY: in the mapping, which only this thread uses.
            unsafe {
                match access {
                    Access::Read => assert_eq!(mapping.as_ptr().add(at).read_volatile(), 0),
                    Access::Write => mapping.as_ptr().add(at).write_volatile(0),
                }
            }
        }
        assert!(faults() - before < 20, "{access:?}: {} faults", faults() - before);
    }
}

#[test]
fn ranges_and_names_are_checked() {
    let segment = Segment::create_sparse(&unique(), page_size()).unwrap();
    let mapping = segment.map(Access::Read).unwrap();
    for (offset, len) in [(0, page_size() + 1), (page_size() + 1, 0), (1, usize::MAX), (usize::MAX, 1)] {
        for refused in [segment.reserve(offset, len), segment.release(offset, len), mapping.populate(offset, len)] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid, "{offset} {len}");
        }
    }
    for name in ["a\0b", &"x".repeat(250)] {
        assert_eq!(Segment::create(name, 1).unwrap_err().kind(), ErrorKind::Invalid);
    }
    for (len, kind) in [(0, ErrorKind::Invalid), (usize::MAX, ErrorKind::TooLarge), (1 << 63, ErrorKind::TooLarge)] {
        assert_eq!(Segment::create(&unique(), len).unwrap_err().kind(), kind);
        assert_eq!(Segment::create_sparse(&unique(), len).unwrap_err().kind(), kind);
    }
}

#[test]
fn beyond_the_room_is_refused_with_numbers() {
    PRETENDED.set(Some(Room { bytes: MIB as u64, limit: "a pretended limit".to_owned() }));
    let name = unique();
    let error = Segment::create(&name, MIB + 1).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    let text = error.to_string();
    for part in ["1.0 MiB needed", "1.0 MiB may be taken (a pretended limit)", "batch system"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(held(&name), (0, 0));

    let sparse = Segment::create_sparse(&name, 4 * MIB).unwrap();
    assert_eq!(sparse.reserve(0, MIB + 1).unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(blocks(&sparse), 0);
    sparse.reserve(0, MIB).unwrap();
    PRETENDED.set(None);
    sparse.reserve(0, 4 * MIB).unwrap();
}

#[test]
fn drop_closes_and_unmaps() {
    let name = unique();
    let segment = Segment::create(&name, page_size()).unwrap();
    assert_eq!(held(&name), (1, 0));
    let second = segment.try_clone().unwrap();
    let (reader, writer) = (segment.map(Access::Read).unwrap(), second.map(Access::Write).unwrap());
    drop(segment);
    assert_eq!(held(&name), (1, 2));
    drop((second, reader));
    assert_eq!(held(&name), (0, 1));
    drop(writer);
    assert_eq!(held(&name), (0, 0));
}

#[test]
fn children_and_core_dumps_see_nothing() {
    let name = unique();
    let segment = Segment::create(&name, page_size()).unwrap();
    let mapping = segment.map(Access::Write).unwrap();
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let own = smaps.split_once(&name).unwrap().1;
    let flags = own.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    assert!(flags.contains(" dc ") && flags.contains(" dd "), "{flags}");

    let address = mapping.as_ptr().as_ptr().cast();
    // SAFETY: the child makes nothing but system calls: msync, which fails with ENOMEM where nothing is mapped, _exit.
    let status = unsafe {
        let probe = || libc::msync(address, page_size(), libc::MS_ASYNC);
        assert_eq!(probe(), 0);
        let child = libc::fork();
        if child == 0 {
            libc::_exit(if probe() == -1 && *libc::__errno_location() == libc::ENOMEM { 0 } else { 1 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    };
    assert_eq!(status, 0, "the child had the mapping");
}

#[test]
fn many_threads_map_one_segment() {
    let name = unique();
    let segment = Segment::create(&name, 16 * page_size()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    segment.map(Access::Write).unwrap().populate(0, segment.len()).unwrap();
                }
            });
        }
    });
    assert_eq!(held(&name), (1, 0));
}

#[test]
fn pages_tell_their_size() {
    assert_eq!(Pages::Base.to_string(), format!("{} KiB pages", page_size() >> 10));
    assert_eq!(Pages::Transparent.to_string(), "transparent huge pages");
}

#[test]
fn open_files_run_out() {
    in_child("open_files_run_out", || {
        limit(Resource::Nofile, 8);
        let name = unique();
        let mut segments = Vec::new();
        let error = loop {
            match Segment::create(&name, page_size()) {
                Ok(segment) => segments.push(segment),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
        assert!(!segments.is_empty());

        // With the very last one in use, what limits memory cannot be read, and that is no licence.
        let sparse = Segment::create_sparse(&name, page_size()).unwrap();
        let error = sparse.try_clone().unwrap_err();
        assert!(error.to_string().contains("RLIMIT_NOFILE allows (8)"), "{error}");
        let error = sparse.reserve(0, page_size()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("RLIMIT_NOFILE"), "{error}");
        drop(sparse);

        drop(segments.pop());
        segments.push(Segment::create(&name, page_size()).unwrap());
        let count = segments.len();
        segments.clear();
        assert_eq!(held(&name), (0, 0));
        assert!(count >= 3, "{count}");
    });
}

#[test]
fn address_space_runs_out() {
    in_child("address_space_runs_out", || {
        let name = unique();
        let segment = Segment::create(&name, 64 * MIB).unwrap();
        limit(Resource::As, address_space() + 16 * MIB as u64);
        let error = segment.map(Access::Write).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let text = error.to_string();
        assert!(text.contains("64.0 MiB of address space needed, RLIMIT_AS is"), "{text}");
        assert_eq!(held(&name), (1, 0));
        assert!(Segment::create(&name, MIB).unwrap().map(Access::Read).is_ok());
    });
}

#[test]
fn file_size_is_limited() {
    in_child("file_size_is_limited", || {
        limit(Resource::Fsize, MIB as u64);
        let error = Segment::create(&unique(), MIB + 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("RLIMIT_FSIZE is 1.0 MiB"), "{error}");
        assert!(Segment::create(&unique(), MIB).is_ok());
    });
}

#[test]
fn signals_delay_nothing() {
    extern "C" fn nothing(_: libc::c_int) {}
    in_child("signals_delay_nothing", || {
        // SAFETY: the handler does nothing; the structure is plain data that the kernel reads.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            assert_eq!(libc::sigaction(libc::SIGALRM, &action, ptr::null_mut()), 0);
        }
        // SAFETY: has no preconditions.
        let target = unsafe { libc::pthread_self() };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    // SAFETY: the scope keeps the thread, which is the one of this test, from ending before this one.
                    assert_eq!(unsafe { libc::pthread_kill(target, libc::SIGALRM) }, 0);
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            let start = Instant::now();
            let segment = Segment::create(&unique(), 128 * MIB).unwrap();
            segment.map(Access::Write).unwrap().populate(0, segment.len()).unwrap();
            done.store(true, Ordering::Relaxed);
            assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        });
    });
}

#[test]
#[ignore = "needs root and a writable memory cgroup of version 1"]
fn a_cgroup_refuses_instead_of_killing() {
    const TEST: &str = "a_cgroup_refuses_instead_of_killing";
    let group = std::path::PathBuf::from(format!("/sys/fs/cgroup/memory/proxystore-{}", unique()));
    if is_child(TEST) {
        let error = Segment::create(&unique(), 128 * MIB).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let text = error.to_string();
        assert!(text.contains("128.0 MiB needed") && text.contains("limit 64.0 MiB, in use"), "{text}");
        println!("{text}");

        // What the check grants is there, and no more.
        let name = unique();
        let sparse = Segment::create_sparse(&name, 128 * MIB).unwrap();
        let granted = (0..128).take_while(|at| sparse.reserve(at * MIB, MIB).is_ok()).count();
        assert!((50..61).contains(&granted), "{granted} MiB");
        sparse.map(Access::Write).unwrap().populate(0, granted * MIB).unwrap();
        println!("granted {granted} MiB of 64");
        return;
    }
    std::fs::create_dir(&group).unwrap();
    let done = std::panic::catch_unwind(|| {
        std::fs::write(group.join("memory.limit_in_bytes"), "64M").unwrap();
        run_child(TEST, Some(&group.join("cgroup.procs")));
    });
    std::fs::remove_dir(&group).unwrap();
    done.unwrap();
}

#[test]
#[ignore = "needs root, and changes the pool of huge pages of this machine for a moment"]
fn huge_pages_first() {
    let pool = "/proc/sys/vm/nr_hugepages";
    let before = std::fs::read_to_string(pool).unwrap();
    let wanted = before.trim().parse::<u64>().unwrap() + 4;
    std::fs::write(pool, wanted.to_string()).unwrap();
    let done = std::panic::catch_unwind(|| {
        let free = preflight::huge_pages().free;
        assert!(free >= 4, "the kernel gave too few");
        let size = huge_page_size();
        assert_eq!(Pages::Huge.to_string(), format!("{} MiB huge pages", size >> 20));
        let segment = Segment::create(&unique(), size + 1).unwrap();
        assert_eq!((segment.pages(), segment.len()), (Pages::Huge, 2 * size));
        assert_eq!(preflight::huge_pages().free, free - 2);
        let mapping = segment.map(Access::Write).unwrap();
        mapping.populate(page_size(), size).unwrap();
        // SAFETY: in the mapping, which only this thread uses.
        unsafe { mapping.as_ptr().add(segment.len() - 1).write_volatile(1) };
        let adopted = Segment::adopt(segment.try_clone().unwrap().fd, segment.len()).unwrap();
        assert_eq!(adopted.pages(), Pages::Huge);
        segment.release(0, size).unwrap();
        assert_eq!(preflight::huge_pages().free, free - 1);

        let small = Segment::create(&unique(), size - 1).unwrap();
        assert_eq!(small.pages(), Pages::Base, "would be mostly waste");
        let large = Segment::create(&unique(), (free as usize) * size).unwrap();
        assert_ne!(large.pages(), Pages::Huge, "the pool has too few");
    });
    std::fs::write(pool, before).unwrap();
    done.unwrap();
}

#[test]
#[ignore = "needs root, and changes shmem_enabled of this machine for a moment"]
fn transparent_huge_pages_next() {
    let switch = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let before = preflight::shmem_transparent().state;
    std::fs::write(switch, "advise").unwrap();
    let done = std::panic::catch_unwind(|| {
        let name = unique();
        let segment = Segment::create(&name, 32 * MIB).unwrap();
        assert_eq!(segment.pages(), Pages::Transparent);
        assert!(blocks(&segment) >= segment.len() as u64);
        let mapping = segment.map(Access::Read).unwrap();
        mapping.populate(0, segment.len()).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let own = smaps.split_once(&name).unwrap().1;
        let huge = own.lines().find(|line| line.starts_with("ShmemPmdMapped:")).unwrap();
        assert!(huge.contains("32768 kB"), "{huge}");
    });
    std::fs::write(switch, before).unwrap();
    done.unwrap();
}

#[test]
#[ignore = "prints figures; build with --release"]
fn figures() {
    let time = |what: &str, work: &mut dyn FnMut()| {
        let mut times: Vec<Duration> = (0..5)
            .map(|_| {
                let start = Instant::now();
                work();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("{what}: {:?} (least {:?})", times[2], times[0]);
    };
    let len = 256 * MIB;
    time("room, 1000 times", &mut || (0..1000).for_each(|_| assert!(preflight::room().bytes > 0)));
    time("huge_pages, 1000 times", &mut || (0..1000).for_each(|_| assert!(preflight::huge_pages().free < 1 << 40)));
    time("create and drop 256 MiB", &mut || drop(Segment::create(&unique(), len).unwrap()));
    time("create_sparse and drop 256 MiB", &mut || drop(Segment::create_sparse(&unique(), len).unwrap()));
    time("reserve 256 x 1 MiB", &mut || {
        let sparse = Segment::create_sparse(&unique(), len).unwrap();
        (0..256).for_each(|at| sparse.reserve(at * MIB, MIB).unwrap());
    });
    let segment = Segment::create(&unique(), len).unwrap();
    println!("{}", segment.pages());
    for access in [Access::Read, Access::Write] {
        time(&format!("map and unmap, {access:?}"), &mut || drop(segment.map(access).unwrap()));
        time(&format!("map, populate, unmap, {access:?}"), &mut || {
            segment.map(access).unwrap().populate(0, len).unwrap();
        });
    }
}

/// A name that no other segment of this process has.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("segment-test-{}-{}.", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Descriptors and mappings that this process has of segments with a name.
fn held(name: &str) -> (usize, usize) {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let open = links.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let open = open.filter(|target| target.to_string_lossy().contains(name)).count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (open, maps.lines().filter(|line| line.contains(name)).count())
}

/// Bytes that a segment takes.
fn blocks(segment: &Segment) -> u64 {
    rustix::fs::fstat(segment.as_fd()).unwrap().st_blocks as u64 * 512
}

/// Page faults of this thread.
fn faults() -> i64 {
    // SAFETY: getrusage fills the plain structure.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &mut usage), 0);
        usage.ru_minflt
    }
}

fn limit(resource: Resource, to: u64) {
    setrlimit(resource, Rlimit { current: Some(to), maximum: Some(to) }).unwrap();
}

/// Runs `child` in a process of its own: this binary, once more, with this test alone.
fn in_child(test: &str, child: impl FnOnce()) {
    match is_child(test) {
        true => {
            child();
            println!("child ran");
        }
        false => assert!(run_child(test, None).contains("child ran")),
    }
}

fn is_child(test: &str) -> bool {
    std::env::var_os("SEGMENT_TEST_CHILD").is_some_and(|name| name == test)
}

fn run_child(test: &str, group: Option<&std::path::Path>) -> String {
    let mut command = Command::new("sh");
    // A process enters a group by writing 0.
    command.args(["-c", "[ -z \"$0\" ] || echo 0 > \"$0\" || exit 99; exec \"$@\""]);
    command.arg(group.unwrap_or(std::path::Path::new("")));
    command.arg(std::env::current_exe().unwrap()).arg(format!("shm::segment::tests::{test}"));
    command.args(["--exact", "--include-ignored", "--nocapture", "--test-threads=1"]);
    let output = command.env("SEGMENT_TEST_CHILD", test).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// Device and inode.
fn identity(segment: &Segment) -> (u64, u64) {
    let stat = rustix::fs::fstat(segment.as_fd()).unwrap();
    (stat.st_dev, stat.st_ino)
}
