//! `bench`: what it prints, and that it leaves nothing, however it ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Room, failed, names, succeeded, text};

#[test]
fn json_lines_have_the_promised_fields() {
    let room = Room::new();
    let output = room.run(&["bench", "--sizes", "8,65536,100000", "--iterations", "5", "--json"]);
    // What this machine lacks is left out, and nothing else is said.
    let said = text(&output.stderr);
    assert!(output.status.success() && said.lines().all(|line| line.contains(" is not measured: ")), "{said}");
    let out = text(&output.stdout);
    let mut seen = Vec::new();
    for line in out.lines() {
        let order: Vec<&str> = line.split('"').skip(1).step_by(2).filter(|word| FIELDS.contains(word)).collect();
        assert_eq!(order, FIELDS, "{line}");
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        // Gets over native libraries stand beside a second reference.
        let is_beside = ["ucp", "margo"].iter().any(|native| value["ref"] == *native);
        assert_eq!(value.as_object().unwrap().len(), FIELDS.len() + if is_beside { 4 } else { 0 }, "{line}");
        assert_eq!(value["beside_ratio"].is_f64(), is_beside, "{line}");
        let number = |name: &str| {
            value[name].as_f64().filter(|x| x.is_finite() && *x > 0.0).unwrap_or_else(|| panic!("{name}: {line}"))
        };
        let (p50, p99) = (number("p50_us"), number("p99_us"));
        assert!(p50 <= p99, "{line}");
        let size = value["size"].as_u64().unwrap();
        let (of, ratio) = match size < 65536 {
            true => ("latency", p50 / number("ref_p50_us")),
            false => ("bandwidth", number("mb_s") / number("ref_mb_s")),
        };
        assert_eq!(value["ratio_of"], of);
        // The figures are rounded, the smallest of them to a few parts in a hundred.
        assert!((number("ratio") / ratio - 1.0).abs() < 0.1, "{line}");
        let op = value["op"].as_str().unwrap().to_owned();
        let reference = match (op.as_str(), value["connector"].as_str()) {
            ("rtt", _) => "pipe",
            ("get" | "resolve" | "batch" | "window", Some("ucx")) => "ucp",
            ("get" | "resolve", Some("margo")) => "margo",
            ("get" | "resolve" | "window", Some("tcp" | "margo")) => "socket",
            ("batch" | "window", _) => "get",
            _ => "memcpy",
        };
        assert_eq!(value["ref"], reference, "{line}");
        seen.push((value["connector"].as_str().unwrap().to_owned(), op, size));
    }
    let mut expected = Vec::new();
    let has = |connector: &&str| !said.contains(&format!("proxystore: {connector} is not measured"));
    for connector in proxystore::connectors::TABLE.iter().map(|row| row.scheme).filter(has) {
        for op in ["put", "reserve", "get", "exists", "resolve", "batch", "window", "rtt"] {
            expected.extend([8, 65536, 100_000].map(|size| (connector.to_string(), op.to_owned(), size)));
        }
    }
    assert_eq!(seen, expected);
    #[cfg(feature = "ucx")]
    assert_eq!(ucx_sys::load().is_ok(), has(&"ucx"), "{said}");
    assert_eq!(names(room.path()), [""; 0]);
}

#[test]
#[cfg(feature = "ucx")]
fn what_cannot_be_opened_is_left_out_unless_it_is_named() {
    let room = Room::new();
    let arguments = ["bench", "--op", "exists", "--sizes", "8", "--iterations", "1"];
    let output = room.command(&arguments).env("PROXYSTORE_UCX_LIB", "/nonexistent").output().unwrap();
    assert!(output.status.success());
    let out = text(&output.stdout);
    assert!(out.contains("connector tcp") && !out.contains("connector ucx "), "{out}");
    assert!(text(&output.stderr).contains("ucx is not measured: ") && text(&output.stderr).contains("/nonexistent"));
    let mut command = room.command(&arguments);
    let output = command.args(["--connector", "ucx"]).env("PROXYSTORE_UCX_LIB", "/nonexistent").output().unwrap();
    failed(&output, 1, &["no usable UCX"]);
}

#[test]
fn columns_for_people_and_some_operations_of_a_url() {
    let room = Room::new();
    let url = format!("file://{}?fsync=none", room.path().display());
    let output =
        room.run(&["bench", "--connector", &url, "--op", "rtt,get", "--sizes", "8..32*2", "--time-budget", "5ms"]);
    succeeded(&output);
    let out = text(&output.stdout);
    let rows: Vec<&str> = out.lines().filter(|line| !line.starts_with('#')).collect();
    let sizes: Vec<&str> = rows.iter().filter_map(|row| row.split_whitespace().next()).collect();
    assert_eq!(sizes, ["8", "16", "32", "8", "16", "32"]);
    assert!(rows.iter().all(|row| row.split_whitespace().count() == 7), "{out}");
    assert!(out.starts_with("# proxystore ") && out.contains("# peer: process "), "{out}");
    assert_eq!(names(room.path()), [""; 0]);
}

#[test]
fn stores_that_cannot_be_opened_are_named() {
    let room = Room::new();
    failed(&room.run(&["bench", "--connector", "fil"]), 1, &["did you mean file"]);
    failed(&room.run(&["bench", "--connector", "file:///nonexistent"]), 1, &["/nonexistent", "No such file"]);
    failed(&room.run(&["bench", "--connector", "file:///tmp?nosuch=1"]), 1, &["unknown option"]);
    assert_eq!(names(room.path()), [""; 0]);
}

#[test]
fn a_killed_bench_leaves_neither_its_peer_nor_its_objects() {
    for signal in [Signal::KILL, Signal::INT, Signal::TERM] {
        // The object is small and the time long for get, and the other way round for rtt.
        for (op, size) in [("get", "8"), ("rtt", "64MiB"), ("put", "1MiB")] {
            let room = Room::new();
            let mut bench = Running::start(&room, op, size);
            assert!(is_alive(bench.peer) && names(room.path()).len() == 1);
            std::thread::sleep(Duration::from_millis(100));
            kill_process(Pid::from_child(&bench.child), signal).unwrap();
            assert!(!bench.child.wait().unwrap().success());
            wait_for(|| !is_alive(bench.peer), "the peer goes on");
            assert_eq!(names(room.path()), [""; 0], "{op} {signal:?}");
        }
    }
}

#[test]
fn a_killed_peer_is_an_error_and_no_hang() {
    for op in ["get", "rtt", "put"] {
        let room = Room::new();
        let mut bench = Running::start(&room, op, "4096");
        let peer = Pid::from_raw(bench.peer as i32).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let begin = Instant::now();
        kill_process(peer, Signal::KILL).unwrap();
        if op == "put" {
            // It needs the peer only between two sizes; nothing tells before.
            kill_process(Pid::from_child(&bench.child), Signal::KILL).unwrap();
            bench.child.wait().unwrap();
            continue;
        }
        let mut stderr = String::new();
        std::io::Read::read_to_string(&mut bench.child.stderr.take().unwrap(), &mut stderr).unwrap();
        assert_eq!(bench.child.wait().unwrap().code(), Some(1));
        assert!(stderr.contains("the peer died"), "{stderr}");
        assert!(begin.elapsed() < Duration::from_secs(30), "half of what it would measure");
        assert_eq!(names(room.path()), [""; 0]);
    }
}

/// A measurement that would take a minute, and its peer's process id.
struct Running {
    child: Child,
    peer: u32,
    _stdout: BufReader<std::process::ChildStdout>,
}

impl Running {
    fn start(room: &Room, op: &str, size: &str) -> Self {
        let mut command =
            room.command(&["bench", "--connector", "file", "--op", op, "--sizes", size, "--time-budget", "60s"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let peer = loop {
            let mut line = String::new();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "no header");
            if let Some(rest) = line.strip_prefix("# peer: process ") {
                break rest.split_whitespace().next().unwrap().parse().unwrap();
            }
        };
        Self { child, peer, _stdout: stdout }
    }
}

/// Whether the process runs; one that nobody has waited for yet does not.
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name in parentheses may hold anything.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

fn wait_for(mut condition: impl FnMut() -> bool, what: &str) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const FIELDS: [&str; 11] =
    ["connector", "op", "size", "p50_us", "p99_us", "mb_s", "ref", "ref_p50_us", "ref_mb_s", "ratio", "ratio_of"];
