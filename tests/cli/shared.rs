//! Shared memory: `ls`, `stat`, `top`, `gc`, what `put` does without a service, and that looking makes nothing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Room, failed, names, noise, succeeded, text};

#[test]
fn a_service_keeps_objects_between_processes() {
    let room = Room::new();
    let serve = Serve::start(&room, "shm://t");
    let bytes = noise(300_000);
    let token = room.put(&bytes, &["--store", "shm://t"]);
    let small = room.put(b"x", &["--store", "shm://t"]);
    assert!(room.run(&["get", &token]).stdout == bytes);

    let list = room.run(&["ls", "shm://t", "--json"]);
    succeeded(&list);
    let rows: Vec<serde_json::Value> =
        text(&list.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fields = |row: &serde_json::Value| (row["len"].as_u64(), row["state"].as_str().map(str::to_owned));
    assert_eq!(
        rows.iter().map(fields).collect::<Vec<_>>(),
        [(Some(300_000), Some("live".to_owned())), (Some(1), Some("live".to_owned()))]
    );
    assert!(rows[0]["capacity"].as_u64() >= Some(300_000));
    // What is listed can be got.
    assert!(room.run(&["get", rows[0]["token"].as_str().unwrap()]).stdout == bytes);
    let table = text(&room.run(&["ls", "shm://t"]).stdout);
    assert!(table.starts_with("       SIZE") && table.contains("shm://t: 2 objects of 292.97 KiB"), "{table}");

    let one = room.run(&["stat", &small]);
    succeeded(&one);
    assert!(text(&one.stdout).contains("size    1 B, in a cell of 64 B"), "{}", text(&one.stdout));
    let all = room.run(&["stat", "shm://t", "--json"]);
    succeeded(&all);
    let stats: serde_json::Value = serde_json::from_slice(&all.stdout).unwrap();
    assert_eq!((stats["live"]["count"].as_u64(), stats["supervised"].as_bool()), (Some(2), Some(true)));
    assert_eq!((&stats["namespace"], &stats["policy"]), (&"t".into(), &"refuse".into()));
    let top = room.run(&["top", "shm://t"]);
    succeeded(&top);
    assert!(text(&top.stdout).contains("supervised by proxystore serve") && !text(&top.stdout).contains('\x1b'));
    let thrice = room.run(&["top", "shm://t", "--json", "--count", "3", "--interval", "10ms"]);
    assert_eq!(text(&thrice.stdout).lines().count(), 3);

    succeeded(&room.run(&["evict", &token]));
    assert_eq!(room.run(&["stat", &token]).status.code(), Some(3));
    let collected = room.run(&["gc", "shm://t"]);
    succeeded(&collected);
    assert!(text(&collected.stdout).starts_with("shm://t: "));
    succeeded(&room.run(&["exists", &small]));
    assert!(text(&room.run(&["info"]).stdout).contains("hosted by proxystore serve"));

    serve.end();
    assert_eq!(room.run(&["exists", &small, "--json"]).stdout, b"{\"exists\":false}\n");
    failed(&room.run(&["get", &small]), 3, &["no such object", "shm://t", "proxystore serve"]);
    succeeded(&room.run(&["evict", &small]));
    assert_eq!(names(room.runtime.path()), [""; 0]);
}

#[test]
fn a_put_that_nobody_would_keep_is_refused_or_goes_to_a_directory() {
    let room = Room::new();
    failed(&room.run(&["put", "/proc/version", "--store", "shm://"]), 1, &["shm://", "proxystore serve", "file:///"]);
    let mut chosen = room.command(&["put", "/proc/version"]);
    failed(&chosen.env("PROXYSTORE_STORE", "shm://t").output().unwrap(), 1, &["shm://t", "proxystore serve"]);
    let mut unnamed = room.command(&["put", "/proc/version"]);
    let output = unnamed.env_remove("PROXYSTORE_STORE").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("file://") && text(&output.stderr).contains("proxystore serve"));
    let token = text(&output.stdout);
    assert_eq!(room.run(&["get", token.trim()]).stdout, fs::read("/proc/version").unwrap());
    assert_eq!(names(room.runtime.path()), [""; 0]);

    let serve = Serve::start(&room, "shm://default");
    let output = room.command(&["put", "/proc/version"]).env_remove("PROXYSTORE_STORE").output().unwrap();
    succeeded(&output);
    assert_eq!(text(&room.run(&["ls", "shm://default", "--json"]).stdout).lines().count(), 1);
    serve.end();
}

#[test]
fn looking_makes_nothing_and_says_what_there_is() {
    let room = Room::new();
    for arguments in [&["ls", "shm://t"][..], &["stat", "shm://t"], &["top", "shm://t"]] {
        failed(&room.run(arguments), 1, &["no process holds shm://t", "proxystore serve", "no namespace of yours"]);
    }
    failed(&room.run(&["ls", "file:///tmp"]), 1, &["file://", "shm://NAME"]);
    failed(&room.run(&["ls", "shm://a b"]), 1, &["a b"]);
    succeeded(&room.run(&["info"]));
    assert_eq!(room.run(&["gc", "--all"]).stdout, b"no namespace of yours is on this node\n");
    assert_eq!(names(room.runtime.path()), [""; 0]);
    let serve = Serve::start(&room, "shm://other");
    failed(&room.run(&["ls", "shm://t"]), 1, &["in use on this node: shm://other"]);
    serve.end();
}

#[test]
fn gc_removes_what_nobody_holds() {
    let room = Room::new();
    for name in ["a", "b"] {
        let directory = room.runtime.path().join(name);
        fs::create_dir(&directory).unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(directory.join("members"), "").unwrap();
    }
    let serve = Serve::start(&room, "shm://c");
    let one = room.run(&["gc", "a", "--json"]);
    succeeded(&one);
    let done: serde_json::Value = serde_json::from_slice(&one.stdout).unwrap();
    assert_eq!((&done["namespace"], &done["removed"], &done["held"]), (&"a".into(), &true.into(), &false.into()));
    let all = room.run(&["gc", "--all"]);
    succeeded(&all);
    let all = text(&all.stdout);
    assert!(all.contains("shm://b: nobody holds it") && all.contains("shm://c: nothing free"), "{all}");
    assert_eq!(names(room.runtime.path()), ["c"]);
    serve.end();
    assert_eq!(names(room.runtime.path()), [""; 0]);
}

#[test]
fn a_bench_leaves_no_namespace() {
    let room = Room::new();
    let arguments = ["bench", "--connector", "shm", "--op", "put,get", "--sizes", "64", "--iterations", "3"];
    succeeded(&room.run(&arguments));
    assert_eq!(names(room.runtime.path()), [""; 0]);
}

/// `proxystore serve`, killed if the test fails.
struct Serve(Child);

impl Serve {
    fn start(room: &Room, url: &str) -> Self {
        let mut child = room.command(&["serve", url]).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let serve = Self(child);
        assert!(lines.any(|line| line.unwrap().contains("ready")), "it ends before it is ready");
        serve
    }

    fn end(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        let begin = Instant::now();
        while self.0.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(20), "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        // Ended already, where the test went well.
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}
