//! What runs in other processes: the parts of the children, and how to start them.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BufMut;
use proxystore::connectors::FileConnector;
use proxystore::{Connector, ErrorKind, Format, Key, RegionMut};

use crate::{files_of, open, pattern, store};

/// The part `name`. A panic is the child's failure.
pub(crate) fn run(name: &str, arguments: &[String]) {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match (name, &arguments[..]) {
        ("reads", [url, key, expected]) => {
            let region = open(url).unwrap().get(&key.parse().unwrap()).wait().unwrap().unwrap();
            assert_eq!(*region, *expected.as_bytes());
        }
        ("opens_relative", [expected]) => {
            for url in ["file:store", "file://./store", "file://../c%25d/store"] {
                assert_eq!(open(url).unwrap().config().location(), *expected, "{url}");
            }
        }
        ("opens_default", [expected]) => match open("file://") {
            Ok(store) => assert_eq!(store.config().location(), *expected),
            Err(error) => assert_eq!(format!("{:?}", error.kind()), *expected, "{error}"),
        },
        ("takes", [url, gate, keys @ ..]) => takes(url, gate, keys),
        ("puts", [url]) => {
            open(url).unwrap().put(&vec![1; PUT_LEN], Format::RAW).wait().unwrap();
        }
        ("puts_two", [url]) => {
            let store = open(url).unwrap();
            store.put(b"x", Format::RAW).wait().unwrap();
            store.commit(store.reserve(1 << 20).unwrap(), Format::RAW).wait().unwrap();
        }
        ("reserves", [url]) => {
            let store = open(url).unwrap();
            let mut region = store.reserve(8 << 20).unwrap();
            region.put_slice(&pattern(1, 4 << 20));
            println!("half full");
            std::thread::sleep(Duration::from_secs(60));
        }
        ("commits_at", [url, key, bytes]) => {
            let store = open(url).unwrap();
            let mut region = store.reserve(bytes.len()).unwrap();
            region.put_slice(bytes.as_bytes());
            store.commit_at(&key.parse().unwrap(), region).wait().unwrap();
        }
        ("reserves_many", []) => reserves_many(),
        ("maps_many", []) => maps_many(),
        ("is_refused", [directory]) => is_refused(Path::new(directory)),
        ("peaks", [url, how]) => peaks(url, how),
        ("full_disk", [directory]) => full_disk(Path::new(directory)),
        ("read_only_file_system", [directory]) => read_only_file_system(Path::new(directory)),
        other => panic!("no such part: {other:?}"),
    }
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--child").args(arguments);
    command
}

/// Runs a child in `directory` to its successful end.
pub(crate) fn succeed(arguments: &[&str], directory: &Path) {
    check(command(arguments).current_dir(directory).output().unwrap());
}

/// What a successful child printed.
pub(crate) fn check(output: Output) -> String {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", output.status, text(output.stderr));
    text(output.stdout)
}

/// The object of the producer that is killed.
pub(crate) const PUT_LEN: usize = 256 << 20;

fn takes(url: &str, gate: &str, keys: &[&str]) {
    let store = open(url).unwrap();
    let gate: Key = gate.parse().unwrap();
    let keys: Vec<Key> = keys.iter().map(|key| key.parse().unwrap()).collect();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while store.exists(&gate).wait().unwrap() {}
                for (index, key) in keys.iter().enumerate() {
                    if let Some(region) = store.take(key).wait().unwrap() {
                        assert_eq!(*region, pattern(index as u8, 5000 * index)[..]);
                        println!("{index}");
                    }
                }
            });
        }
    });
}

/// Waits until the process has a file without a name open that has grown beyond `from` bytes; false when it is complete,
/// or the process has ended.
pub(crate) fn wait_for_file_of(process: u32, from: u64, complete: u64) -> bool {
    let limit = Instant::now() + Duration::from_secs(30);
    while Instant::now() < limit {
        let Ok(handles) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
        for handle in handles.flatten() {
            let is_draft =
                std::fs::read_link(handle.path()).is_ok_and(|target| target.to_string_lossy().ends_with("(deleted)"));
            let len = std::fs::metadata(handle.path()).map_or(0, |file| file.len());
            if is_draft && len > from {
                return len < complete;
            }
        }
    }
    false
}

/// Whether tests may mount file systems of their own.
pub(crate) fn can_unshare() -> Result<(), String> {
    match Command::new("unshare").args(UNSHARE).args(["mount", "-t", "tmpfs", "none", "/mnt"]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err("no permission for a mount namespace".into()),
        Err(_) => Err("needs unshare(1) of util-linux".into()),
    }
}

/// Runs the part `name` in a mount namespace of its own, with an empty directory to mount on.
pub(crate) fn in_own_mounts(name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let mut unshare = Command::new("unshare");
    unshare.args(UNSHARE).arg(std::env::current_exe().unwrap());
    check(unshare.args(["--child", name]).arg(directory.path()).output().unwrap());
}

const UNSHARE: [&str; 3] = ["--map-root-user", "--mount", "--"];

/// Whether tests may see the system calls of their children.
pub(crate) fn can_trace() -> Result<(), String> {
    match Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err("no permission to trace".into()),
        Err(_) => Err("needs strace(1)".into()),
    }
}

/// The calls with which a child names files and brings them to the disk, in order.
pub(crate) fn calls_of(arguments: &[&str]) -> Vec<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=fdatasync,fsync,linkat,renameat2", "-e", "signal=none", "-o"]).arg(log.path());
    check(strace.arg(std::env::current_exe().unwrap()).arg("--child").args(arguments).output().unwrap());
    let text = std::fs::read_to_string(log.path()).unwrap();
    text.lines().filter_map(|line| Some(line.split_whitespace().nth(1)?.split_once('(')?.0.to_owned())).collect()
}

/// Whether there is a user who may not write everywhere: this one, or one that this one can become.
pub(crate) fn can_be_nobody() -> Result<(), String> {
    match as_nobody(&mut command(&["opens_default", "Permission"])).env("TMPDIR", "/").output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err("root may write everywhere, and nobody may not run this program".into()),
    }
}

pub(crate) fn as_nobody(command: &mut Command) -> &mut Command {
    match rustix::process::geteuid().is_root() {
        true => command.uid(65534).gid(65534),
        false => command,
    }
}

fn is_refused(directory: &Path) {
    let error = FileConnector::new(directory.join("below")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    // To read, it is good enough.
    let store = FileConnector::new(directory).unwrap();
    let unknown = Key::new("file", &[1; 16], 1, Format::RAW).unwrap();
    assert!(store.get(&unknown).wait().unwrap().is_none());
    let heap = || RegionMut::heap(1).unwrap();
    for error in [
        store.put(b"x", Format::RAW).wait().unwrap_err(),
        store.reserve(1 << 20).unwrap_err(),
        store.commit(heap(), Format::RAW).wait().unwrap_err(),
        store.declare(Format::RAW).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
    }
}

fn peaks(url: &str, how: &str) {
    const LEN: usize = 1 << 30;
    let block = pattern(7, 1 << 20);
    let store = open(url).unwrap();
    let key = if how == "put" {
        let mut bytes = Vec::with_capacity(LEN);
        (0..LEN / block.len()).for_each(|_| bytes.extend_from_slice(&block));
        store.put(&bytes, Format::RAW).wait().unwrap()
    } else {
        let mut region = store.reserve(LEN).unwrap();
        (0..LEN / block.len()).for_each(|_| region.put_slice(&block));
        store.commit(region, Format::RAW).wait().unwrap()
    };
    let region = store.get(&key).wait().unwrap().unwrap();
    assert!(region.len() == LEN && region.chunks(block.len()).all(|chunk| chunk == block));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    println!("{} {LEN}", peak.trim().parse::<usize>().unwrap() * 1024);
}

/// A process that may open few files still gets its reservations.
fn reserves_many() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let (_directory, store) = store();
    setrlimit(Resource::Nofile, Rlimit { current: Some(32), maximum: Some(32) }).unwrap();
    let regions: Vec<RegionMut> = (0..100)
        .map(|i| {
            let mut region = store.reserve(100_000).unwrap();
            region.put_slice(&pattern(i, 100_000));
            region
        })
        .collect();
    let keys = Arc::clone(&store)
        .commit_batch(regions.into_iter().map(|region| (region, Format::RAW)).collect())
        .wait()
        .unwrap();
    for (i, key) in keys.iter().enumerate() {
        assert_eq!(*store.take(key).wait().unwrap().unwrap(), pattern(i as u8, 100_000)[..]);
    }
}

/// A process that holds more regions than the kernel grants mappings still reads, and can still allocate.
fn maps_many() {
    let (_directory, store) = store();
    let bytes = pattern(1, 70_000);
    let key = store.put(&bytes, Format::RAW).wait().unwrap();
    let regions: Vec<_> = (0..66_000).map(|_| store.get(&key).wait().unwrap().unwrap()).collect();
    let grown = vec![1u8; 16 << 20];
    assert!(*regions[65_999] == bytes[..] && grown.len() > bytes.len());
}

fn mount(options: &str, directory: &Path) {
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "none"]).arg(directory).status();
    assert!(mount.unwrap().success());
}

/// Bytes and inodes that are free.
fn free(directory: &Path) -> (u64, u64) {
    let state = rustix::fs::statvfs(directory).unwrap();
    (state.f_bavail * state.f_frsize, state.f_ffree)
}

fn full_disk(directory: &Path) {
    mount("size=32m,nr_inodes=64", directory);
    let store = Arc::new(FileConnector::new(directory.join("store")).unwrap());
    let filled = |len: usize| {
        let mut region = RegionMut::heap(len).unwrap();
        region.put_slice(&pattern(2, len));
        (region, Format::RAW)
    };
    let resident = store.put(&pattern(1, 4 << 20), Format::RAW).wait().unwrap();
    let before = (files_of(&store), free(directory));
    let unchanged = |what: &str| assert_eq!((files_of(&store), free(directory)), before, "{what}");

    for attempt in 0..3 {
        let error = store.put(&pattern(2, 64 << 20), Format::RAW).wait().unwrap_err();
        assert!(error.kind() == ErrorKind::NoSpace && error.is_retryable(), "{error}");
        unchanged(&format!("put {attempt}"));
        let error = store.reserve(64 << 20).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        unchanged(&format!("reserve {attempt}"));
        let (region, format) = filled(64 << 20);
        let error = store.commit(region, format).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        unchanged(&format!("commit {attempt}"));
        let error = Arc::clone(&store).commit_batch(vec![filled(20 << 20), filled(20 << 20)]).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        unchanged(&format!("batch {attempt}"));
    }

    // What was reserved can be filled, whatever others do; what was not committed comes back.
    let mut region = store.reserve(20 << 20).unwrap();
    assert_eq!(store.put(&pattern(2, 20 << 20), Format::RAW).wait().unwrap_err().kind(), ErrorKind::NoSpace);
    region.put_slice(&pattern(3, 20 << 20));
    let key = store.commit(region, Format::RAW).wait().unwrap();
    assert!(*store.take(&key).wait().unwrap().unwrap() == pattern(3, 20 << 20)[..]);
    drop(store.reserve(20 << 20).unwrap());
    unchanged("after a reservation");

    // A declared key survives a commit for which there was no space.
    let declared = store.declare(Format::RAW).unwrap();
    let error = store.commit_at(&declared, filled(64 << 20).0).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    store.commit_at(&declared, filled(1 << 20).0).wait().unwrap();
    store.evict(&declared).wait().unwrap();
    unchanged("after a deferred key");

    // Files are a resource, too.
    let mut keys = Vec::new();
    let error = loop {
        match store.put(b"small", Format::RAW).wait() {
            Ok(key) => keys.push(key),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(store.declare(Format::RAW).unwrap_err().kind(), ErrorKind::NoSpace);
    assert!(keys.len() > 50);
    store.evict_batch(&keys).wait().unwrap();
    unchanged("after small objects");
    assert!(*store.get(&resident).wait().unwrap().unwrap() == pattern(1, 4 << 20)[..]);
}

fn read_only_file_system(directory: &Path) {
    mount("size=1m", directory);
    let location: PathBuf = directory.join("store");
    let store = FileConnector::new(&location).unwrap();
    let key = store.put(b"written", Format::RAW).wait().unwrap();
    assert_eq!(location.metadata().unwrap().mode() & 0o7777, 0o700);
    mount_read_only(directory);
    for store in [store, FileConnector::new(&location).unwrap()] {
        assert_eq!(&*store.get(&key).wait().unwrap().unwrap(), b"written");
        assert_eq!(store.put(b"x", Format::RAW).wait().unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(store.evict(&key).wait().unwrap_err().kind(), ErrorKind::Permission);
        assert_eq!(store.take(&key).wait().unwrap_err().kind(), ErrorKind::Permission);
    }
    assert_eq!(FileConnector::new(directory.join("other")).unwrap_err().kind(), ErrorKind::Permission);
}

fn mount_read_only(directory: &Path) {
    let status = Command::new("mount").args(["-o", "remount,ro"]).arg(directory).status();
    assert!(status.unwrap().success());
}
