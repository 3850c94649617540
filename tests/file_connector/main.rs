//! What is particular to files: shared directories, full disks, killed producers, racing processes, memory.
//!
//! The children that the tests start are this program again, with `--child NAME ARGUMENTS`.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BufMut;
use libtest_mimic::{Arguments, Failed, Trial};
use proxystore::connectors::FileConnector;
use proxystore::{Capabilities, Connector, ConnectorConfig, ErrorKind, Format, Key, RegionMut};
use tempfile::TempDir;

mod children;
mod deferred;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--child") {
        return children::run(&arguments[1], &arguments[2..]);
    }
    let mut trials = vec![
        trial("put_get_evict_take", put_get_evict_take),
        trial("reservations", reservations),
        trial("mapped_reservation_is_committed_without_a_copy", mapped_reservation_is_committed_without_a_copy),
        trial("batches", batches),
        trial("location_is_canonical", location_is_canonical),
        trial("options", options),
        trial("default_location", default_location),
        trial("close_deletes_nothing", close_deletes_nothing),
        trial("regions_outlive_everything", regions_outlive_everything),
        trial("keys_of_others", keys_of_others),
        trial("wrong_length_is_corrupt", wrong_length_is_corrupt),
        trial("only_regular_files_are_objects", only_regular_files_are_objects),
        trial("committed_objects_are_read_only", committed_objects_are_read_only),
        trial("removed_directory", removed_directory),
        trial("more_reservations_than_open_files", || children::succeed(&["reserves_many"], Path::new("/"))),
        slow("more_regions_than_mappings", "needs 3 GiB of memory", || {
            children::succeed(&["maps_many"], Path::new("/"))
        }),
        trial("evict_races_get", evict_races_get),
        trial("one_taker_among_processes", one_taker_among_processes),
        trial("killed_producer_leaves_nothing", killed_producer_leaves_nothing),
        trial("abandoned_reservation_leaves_nothing", abandoned_reservation_leaves_nothing),
        needs(children::can_unshare(), "full_disk", || children::in_own_mounts("full_disk")),
        needs(children::can_unshare(), "read_only_file_system", || children::in_own_mounts("read_only_file_system")),
        needs(children::can_be_nobody(), "unwritable_directory", unwritable_directory),
        needs(children::can_trace(), "fsync_order", fsync_order),
        slow("larger_than_2_gib", "needs 5 GiB of /tmp", larger_than_2_gib),
        slow("peak_memory_of_put_and_get", "needs 1 GiB of /tmp and of memory", || peak_memory("put")),
        slow("peak_memory_of_commit_and_get", "needs 1 GiB of /tmp and of memory", || peak_memory("commit")),
    ];
    trials.extend(deferred::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn trial(name: &str, run: fn()) -> Trial {
    Trial::test(name, move || {
        run();
        Ok(())
    })
}

/// A trial that is ignored, with the reason in brackets, where something is `missing`.
fn needs(missing: Result<(), String>, name: &str, run: impl FnOnce() + Send + 'static) -> Trial {
    let trial = Trial::test(name, move || {
        run();
        Ok::<(), Failed>(())
    });
    match missing {
        Ok(()) => trial,
        Err(reason) => trial.with_ignored_flag(true).with_kind(reason),
    }
}

fn slow(name: &str, reason: &str, run: impl FnOnce() + Send + 'static) -> Trial {
    needs(Err(format!("slow: {reason}, run with --ignored")), name, run)
}

/// A store in a directory that is removed at the end.
fn store() -> (TempDir, Arc<FileConnector>) {
    let directory = tempfile::tempdir().unwrap();
    let store = FileConnector::new(directory.path().join("store")).unwrap();
    (directory, Arc::new(store))
}

fn open(url: &str) -> proxystore::Result<FileConnector> {
    FileConnector::open(&url.parse::<ConnectorConfig>()?)
}

/// All files under `directory`, by name.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

fn files_of(store: &FileConnector) -> Vec<PathBuf> {
    files(Path::new(store.config().location()))
}

/// `len` bytes that tell objects and positions apart.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let block: Vec<u8> = (0..4096u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect();
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let n = (len - bytes.len()).min(block.len());
        bytes.extend_from_slice(&block[..n]);
    }
    bytes
}

/// Sizes on both sides of every boundary: empty, a page, process memory or mapping, several pages and a bit.
const SIZES: [usize; 7] = [0, 1, 4096, 65_536, 65_537, 1 << 20, (3 << 20) + 17];

fn put_get_evict_take() {
    let (_directory, store) = store();
    for (seed, len) in SIZES.into_iter().enumerate() {
        let bytes = pattern(seed as u8, len);
        let key = store.put(&bytes, Format { codec: 7, fingerprint: 9 }).wait().unwrap();
        assert_eq!((key.len(), key.format()), (len as u64, Format { codec: 7, fingerprint: 9 }));
        assert!(store.exists(&key).wait().unwrap());
        let region = store.get(&key).wait().unwrap().unwrap();
        assert_eq!(*region, bytes[..], "{len}");
        assert_eq!(region.as_ptr().addr() % proxystore::region::ALIGNMENT * usize::from(len > 0), 0);
        store.evict(&key).wait().unwrap();
        store.evict(&key).wait().unwrap();
        assert!(store.get(&key).wait().unwrap().is_none() && !store.exists(&key).wait().unwrap());
        assert!(store.take(&key).wait().unwrap().is_none());

        let key = store.put(&bytes, Format::RAW).wait().unwrap();
        assert_eq!(*store.take(&key).wait().unwrap().unwrap(), bytes[..]);
        assert!(store.take(&key).wait().unwrap().is_none() && store.get(&key).wait().unwrap().is_none());
    }
    assert_eq!(files_of(&store), [] as [PathBuf; 0]);
}

fn reservations() {
    let (_directory, store) = store();
    for (seed, len) in SIZES.into_iter().enumerate() {
        let bytes = pattern(seed as u8, len);
        for written in [0, len / 2, len] {
            let mut region = store.reserve(len).unwrap();
            assert_eq!((region.capacity(), region.len()), (len, 0));
            region.put_slice(&bytes[..written]);
            let key = store.commit(region, Format::RAW).wait().unwrap();
            assert_eq!(key.len(), written as u64);
            assert_eq!(*store.take(&key).wait().unwrap().unwrap(), bytes[..written]);
        }
        drop(store.reserve(len).unwrap());
        // Memory of the process, and of another directory, is copied.
        let other_directory = tempfile::tempdir().unwrap();
        let other = FileConnector::new(other_directory.path()).unwrap();
        for mut region in [RegionMut::heap(len).unwrap(), other.reserve(len).unwrap()] {
            region.put_slice(&bytes);
            let key = store.commit(region, Format::RAW).wait().unwrap();
            assert_eq!(*store.take(&key).wait().unwrap().unwrap(), bytes[..]);
        }
        assert_eq!(files_of(&other), [] as [PathBuf; 0]);
    }
    assert_eq!(files_of(&store), [] as [PathBuf; 0]);

    // A reservation can also be kept by its owner.
    let mut region = store.reserve(1 << 20).unwrap();
    region.initialize().fill(3);
    assert!(region.freeze().iter().all(|byte| *byte == 3));
    assert_eq!(store.reserve(usize::MAX).unwrap_err().kind(), ErrorKind::TooLarge);
}

fn mapped_reservation_is_committed_without_a_copy() {
    let (_directory, store) = store();
    if !store.capabilities().contains(Capabilities::ZERO_COPY_PUT) {
        return println!("this file system copies");
    }
    let again = FileConnector::new(store.config().location()).unwrap();
    for committer in [&store, &again] {
        let mut region = store.reserve(1 << 20).unwrap();
        region.put_slice(b"x");
        let inode = inode_mapped_at(region.as_slice().as_ptr().addr());
        assert!(inode > 0, "not a file");
        let key = committer.commit(region, Format::RAW).wait().unwrap();
        let file = files_of(&store).pop().unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::ino(&file.metadata().unwrap()), inode);
        assert_eq!(file.metadata().unwrap().len(), 1);
        store.evict(&key).wait().unwrap();
    }
}

/// Inode of the file mapped at `address`, 0 for memory of the process: proc_pid_maps(5).
fn inode_mapped_at(address: usize) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let of = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-')?;
        let range = usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?;
        range.contains(&address).then(|| fields[4].parse().ok())?
    };
    maps.lines().find_map(of).unwrap()
}

fn batches() {
    let (_directory, store) = store();
    let objects: Vec<Vec<u8>> = SIZES.iter().map(|len| pattern(5, *len)).collect();
    let regions = objects.iter().map(|bytes| {
        let mut region = store.reserve(bytes.len()).unwrap();
        region.put_slice(bytes);
        (region, Format::RAW)
    });
    let keys = Arc::clone(&store).commit_batch(regions.collect()).wait().unwrap();
    store.evict(&keys[1]).wait().unwrap();
    let found = store.get_batch(&keys).wait().unwrap();
    for (index, region) in found.iter().enumerate() {
        assert_eq!(region.as_deref(), (index != 1).then_some(&objects[index][..]));
    }
    let there = store.exists_batch(&keys).wait().unwrap();
    assert!(there.iter().enumerate().all(|(index, there)| *there == (index != 1)));
    store.evict_batch(&keys).wait().unwrap();
    assert!(!store.exists_batch(&keys).wait().unwrap().contains(&true));
    assert!(store.get_batch(&[]).wait().unwrap().is_empty());
    let foreign = Key::new("memory", &[1; 16], 1, Format::RAW).unwrap();
    assert_eq!(store.get_batch(&[keys[0], foreign]).wait().unwrap_err().kind(), ErrorKind::ForeignKey);
}

fn location_is_canonical() {
    let directory = tempfile::tempdir().unwrap();
    let real = directory.path().canonicalize().unwrap().join("a b/c%d/store");
    let store = FileConnector::new(&real).unwrap();
    assert_eq!(store.config().location(), real.to_str().unwrap());
    use std::os::unix::fs::PermissionsExt;
    for made in [&real, &real.parent().unwrap().to_owned()] {
        assert_eq!(made.metadata().unwrap().permissions().mode() & 0o7777, 0o700, "{made:?}");
    }
    let key = store.put(b"hello", Format::RAW).wait().unwrap();

    let link = directory.path().join("link");
    std::os::unix::fs::symlink(real.parent().unwrap(), &link).unwrap();
    let round_about = format!("{}/../c%d/store/", link.display());
    for location in [round_about, format!("{}/./", real.display())] {
        let same = FileConnector::new(&location).unwrap();
        assert_eq!(same.config(), store.config(), "{location}");
    }
    // What a token carries: the URL, read in another process with another working directory.
    children::succeed(&["reads", &store.config().to_string(), &key.to_string(), "hello"], Path::new("/"));
    children::succeed(&["opens_relative", real.to_str().unwrap()], real.parent().unwrap());
}

fn options() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().canonicalize().unwrap().display().to_string();
    for (query, canonical) in
        [("", ""), ("?fsync=none", ""), ("?fsync=data", "?fsync=data"), ("?fsync=dir", "?fsync=dir")]
    {
        let store = open(&format!("file://{place}{query}")).unwrap();
        assert_eq!(store.config().to_string(), format!("file://{place}{canonical}"));
        let mut region = store.reserve(100_000).unwrap();
        region.put_slice(&pattern(1, 70_000));
        let keys = [store.put(b"x", Format::RAW).wait().unwrap(), store.commit(region, Format::RAW).wait().unwrap()];
        assert_eq!(store.get(&keys[1]).wait().unwrap().unwrap().len(), 70_000);
        // Also when nobody waits.
        drop(store.put(b"detached", Format::RAW));
        let limit = Instant::now() + Duration::from_secs(10);
        while files_of(&store).len() < 3 {
            assert!(Instant::now() < limit, "a put was lost");
            std::thread::sleep(Duration::from_millis(5));
        }
        files_of(&store).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    }
    for query in ["?fsync=yes", "?fsync=", "?fsnyc=data", "?fsync=data&mode=1"] {
        let error = open(&format!("file://{place}{query}")).unwrap_err();
        assert_eq!((error.kind(), error.connector()), (ErrorKind::Config, Some("file")), "{query}: {error}");
    }
    std::fs::write(directory.path().join("file"), b"").unwrap();
    for location in ["file", "file/below"] {
        let error = FileConnector::new(directory.path().join(location)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{location}: {error}");
    }
}

/// What reaches the disk, and when: the system calls of a put and a commit, in order.
fn fsync_order() {
    let directory = tempfile::tempdir().unwrap();
    for (policy, expected) in [
        ("none", &["linkat", "linkat"][..]),
        ("data", &["fdatasync", "linkat", "fdatasync", "linkat"]),
        ("dir", &["fdatasync", "linkat", "fsync", "fdatasync", "linkat", "fsync"]),
    ] {
        let place = directory.path().join(policy);
        let mut calls = children::calls_of(&["puts_two", &format!("file://{}?fsync={policy}", place.display())]);
        // The first put asks once whether names can be given later, by a link that cannot be made.
        assert_eq!(calls.remove(0), "linkat");
        assert_eq!(calls, expected, "{policy}");
    }
}

fn default_location() {
    let temporary = tempfile::tempdir().unwrap();
    let path =
        temporary.path().canonicalize().unwrap().join(format!("proxystore-{}", rustix::process::geteuid().as_raw()));
    let child = |expected: &str| {
        let mut child = children::command(&["opens_default", expected]);
        children::check(child.env("TMPDIR", temporary.path()).output().unwrap());
    };
    child(path.to_str().unwrap());
    child(path.to_str().unwrap());
    // Somebody may have been there before.
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o770)).unwrap();
    child("Permission");
    std::fs::remove_dir(&path).unwrap();
    std::fs::create_dir(temporary.path().join("elsewhere")).unwrap();
    std::fs::set_permissions(temporary.path().join("elsewhere"), PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(temporary.path().join("elsewhere"), &path).unwrap();
    child("Permission");
}

fn close_deletes_nothing() {
    let (_directory, store) = store();
    let key = store.put(b"stays", Format::RAW).wait().unwrap();
    let region = store.reserve(1 << 20).unwrap();
    store.close().unwrap();
    store.close().unwrap();
    for error in [
        store.put(b"x", Format::RAW).wait().unwrap_err(),
        store.get(&key).wait().unwrap_err(),
        store.exists(&key).wait().unwrap_err(),
        store.evict(&key).wait().unwrap_err(),
        store.take(&key).wait().unwrap_err(),
        store.commit(region, Format::RAW).wait().unwrap_err(),
        store.reserve(1).unwrap_err(),
        store.declare(Format::RAW).unwrap_err(),
        store.get_when_committed(&key).wait().unwrap_err(),
        store.commit_at(&key, RegionMut::heap(0).unwrap()).wait().unwrap_err(),
        store.get_batch(&[]).wait().unwrap_err(),
        Arc::clone(&store).commit_batch(vec![]).wait().unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    }
    let again = FileConnector::new(store.config().location()).unwrap();
    drop(store);
    assert_eq!(&*again.get(&key).wait().unwrap().unwrap(), b"stays");
}

fn regions_outlive_everything() {
    let (directory, store) = store();
    let objects: Vec<_> = SIZES.into_iter().map(|len| pattern(len as u8, len)).collect();
    let regions: Vec<_> = objects
        .iter()
        .map(|bytes| {
            let key = store.put(bytes, Format::RAW).wait().unwrap();
            let region = store.get(&key).wait().unwrap().unwrap();
            store.evict(&key).wait().unwrap();
            region
        })
        .collect();
    store.close().unwrap();
    drop(store);
    drop(directory);
    for (region, bytes) in regions.iter().zip(&objects) {
        assert_eq!(**region, bytes[..]);
    }
}

fn keys_of_others() {
    let (_directory, ours) = store();
    let (_other_directory, theirs) = store();
    let key = theirs.put(b"theirs", Format::RAW).wait().unwrap();
    assert!(ours.get(&key).wait().unwrap().is_none() && !ours.exists(&key).wait().unwrap());
    assert!(ours.take(&key).wait().unwrap().is_none());
    ours.evict(&key).wait().unwrap();
    assert!(theirs.exists(&key).wait().unwrap());

    let foreign = Key::new("memory", key.locator(), 6, Format::RAW).unwrap();
    assert_eq!(theirs.get(&foreign).wait().unwrap_err().kind(), ErrorKind::ForeignKey);
    for locator in [&key.locator()[..15], &[0; 17], b"../../etc/passwd-"] {
        let forged = Key::new("file", locator, 6, Format::RAW).unwrap();
        for error in [
            theirs.get(&forged).wait().unwrap_err(),
            theirs.exists(&forged).wait().unwrap_err(),
            theirs.evict(&forged).wait().unwrap_err(),
            theirs.take(&forged).wait().unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        }
    }
}

fn wrong_length_is_corrupt() {
    let (_directory, store) = store();
    for len in [0, 10, 100_000] {
        let key = store.put(&pattern(1, len), Format::RAW).wait().unwrap();
        for wrong in [len as u64 + 1, (len as u64).saturating_sub(1), 1 << 40] {
            if wrong == len as u64 {
                continue;
            }
            let forged = Key::new("file", key.locator(), wrong, Format::RAW).unwrap();
            for error in [
                store.get(&forged).wait().unwrap_err(),
                store.exists(&forged).wait().unwrap_err(),
                store.take(&forged).wait().unwrap_err(),
                store.evict(&forged).wait().unwrap_err(),
            ] {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            }
        }
        assert_eq!(store.get(&key).wait().unwrap().unwrap().len(), len, "untouched by the wrong keys");
    }
}

fn only_regular_files_are_objects() {
    let (directory, store) = store();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, b"secret").unwrap();
    for what in ["directory", "link", "pipe"] {
        // A deferred key knows no length that would give the impostor away.
        let key = store.declare(Format::RAW).unwrap();
        store.commit_at(&key, RegionMut::heap(0).unwrap()).wait().unwrap();
        let file = files_of(&store).pop().unwrap();
        std::fs::remove_file(&file).unwrap();
        match what {
            "directory" => std::fs::create_dir(&file).unwrap(),
            "link" => std::os::unix::fs::symlink(&secret, &file).unwrap(),
            _ => assert!(Command::new("mkfifo").arg(&file).status().unwrap().success()),
        }
        assert_eq!(store.get(&key).wait().unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
        assert_eq!(store.take(&key).wait().unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
        assert_eq!(store.exists(&key).wait().unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
        std::fs::remove_file(&file).or_else(|_| std::fs::remove_dir(&file)).unwrap();
    }
}

fn committed_objects_are_read_only() {
    use std::os::unix::fs::PermissionsExt;
    let (_directory, store) = store();
    store.put(b"small", Format::RAW).wait().unwrap();
    store.commit(store.reserve(1 << 20).unwrap(), Format::RAW).wait().unwrap();
    let files = files_of(&store);
    assert_eq!(files.len(), 2);
    for file in files {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o400);
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.len() == 32 && name.bytes().all(|digit| digit.is_ascii_hexdigit()), "{name}");
    }
}

fn removed_directory() {
    let (_directory, store) = store();
    let key = store.put(b"x", Format::RAW).wait().unwrap();
    std::fs::remove_dir_all(store.config().location()).unwrap();
    assert!(store.get(&key).wait().unwrap().is_none());
    let error = store.put(b"y", Format::RAW).wait().unwrap_err();
    assert!(error.kind() == ErrorKind::Io && error.context().contains("removed"), "{error}");
}

fn evict_races_get() {
    let (_directory, store) = store();
    let reads = AtomicUsize::new(0);
    let misses = AtomicUsize::new(0);
    let wins = AtomicUsize::new(0);
    const ROUNDS: usize = 300;
    for round in 0..ROUNDS {
        let len = [100, 70_000][round % 2];
        let bytes = pattern(round as u8, len);
        let key = store.put(&bytes, Format::RAW).wait().unwrap();
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (store, key, bytes, start, reads, misses, wins) =
                    (&store, &key, &bytes, &start, &reads, &misses, &wins);
                scope.spawn(move || {
                    start.wait();
                    for _ in 0..3 {
                        match store.get(key).wait().unwrap() {
                            Some(region) => {
                                assert_eq!(*region, bytes[..]);
                                reads.fetch_add(1, Ordering::Relaxed);
                            }
                            None => _ = misses.fetch_add(1, Ordering::Relaxed),
                        }
                        store.exists(key).wait().unwrap();
                    }
                    if thread % 2 == 0 {
                        store.evict(key).wait().unwrap();
                    } else if let Some(region) = store.take(key).wait().unwrap() {
                        assert_eq!(*region, bytes[..]);
                        wins.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(!store.exists(&key).wait().unwrap());
    }
    let [reads, misses, wins] = [reads, misses, wins].map(AtomicUsize::into_inner);
    println!("evict_races_get: {reads} reads, {misses} misses, {wins} takes of {ROUNDS} objects");
    assert!(reads > 0 && misses > 0, "no race took place");
}

/// 64 takers, 16 threads in each of 4 processes, for each of 40 objects.
fn one_taker_among_processes() {
    let (_directory, store) = store();
    let keys: Vec<Key> =
        (0..40).map(|i| store.put(&pattern(i, 5000 * (i as usize)), Format::RAW).wait().unwrap()).collect();
    let gate = store.put(b"", Format::RAW).wait().unwrap();
    let mut arguments = vec!["takes".to_owned(), store.config().to_string(), gate.to_string()];
    arguments.extend(keys.iter().map(Key::to_string));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let takers: Vec<_> =
        (0..4).map(|_| children::command(&arguments).stdout(Stdio::piped()).spawn().unwrap()).collect();
    // The children spin until the gate opens, so that they start together.
    std::thread::sleep(Duration::from_millis(300));
    store.evict(&gate).wait().unwrap();
    let mut wins = vec![0; keys.len()];
    let mut winners = [0; 4];
    for (index, taker) in takers.into_iter().enumerate() {
        let output = taker.wait_with_output().unwrap();
        for line in children::check(output).lines() {
            wins[line.parse::<usize>().unwrap()] += 1;
            winners[index] += 1;
        }
    }
    println!("one_taker_among_processes: objects won by process: {winners:?}");
    assert_eq!(wins, vec![1; keys.len()]);
    assert_eq!(files_of(&store), [] as [PathBuf; 0]);
}

/// Kills the producer of a large object while its file grows.
fn killed_producer_leaves_nothing() {
    let (_directory, store) = store();
    for round in 0..5 {
        let mut child = children::command(&["puts", &store.config().to_string()]).spawn().unwrap();
        let caught = children::wait_for_file_of(child.id(), round * (24 << 20), children::PUT_LEN as u64);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(caught, "the put ended before it could be interrupted");
        assert_eq!(files_of(&store), [] as [PathBuf; 0]);
    }
}

fn abandoned_reservation_leaves_nothing() {
    let (_directory, store) = store();
    let mut child =
        children::command(&["reserves", &store.config().to_string()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "half full\n");
    assert_eq!(files_of(&store), [] as [PathBuf; 0], "nothing is visible before the commit");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(files_of(&store), [] as [PathBuf; 0]);
}

fn unwritable_directory() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o555)).unwrap();
    let mut child = children::command(&["is_refused", directory.path().to_str().unwrap()]);
    children::check(children::as_nobody(&mut child).output().unwrap());
}

fn larger_than_2_gib() {
    let (_directory, store) = store();
    let len = (2 << 30) + 4097;
    let mut bytes = vec![0; len];
    for place in [0, 0x7fff_efff, 0x7fff_f000, (2 << 30) - 1, 2 << 30, len - 1] {
        bytes[place] = 1 + (place % 251) as u8;
    }
    let put = store.put(&bytes, Format::RAW).wait().unwrap();
    let mut region = store.reserve(len).unwrap();
    region.put_slice(&bytes);
    let committed = store.commit(region, Format::RAW).wait().unwrap();
    for key in [put, committed] {
        assert_eq!(key.len(), len as u64);
        assert!(*store.get(&key).wait().unwrap().unwrap() == bytes[..]);
        assert!(*store.take(&key).wait().unwrap().unwrap() == bytes[..]);
    }
}

fn peak_memory(how: &str) {
    let (_directory, store) = store();
    let output = children::command(&["peaks", &store.config().to_string(), how]).output().unwrap();
    let text = children::check(output);
    let (peak, object) = text.trim().split_once(' ').unwrap();
    let ratio = peak.parse::<f64>().unwrap() / object.parse::<f64>().unwrap();
    println!("peak_memory of {how} and get: VmHWM {peak} of {object} bytes, {ratio:.4}");
    assert!(ratio <= 1.05, "{ratio}");
}
