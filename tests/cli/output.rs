//! Where `get` writes to: whole files or none.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;
use std::time::Duration;

use crate::{Room, failed, names, noise, succeeded};

#[test]
fn files_are_replaced_as_a_whole_and_keep_their_mode() {
    let room = Room::new();
    let token = room.put(b"new", &[]);
    let directory = room.path().join("out");
    fs::create_dir(&directory).unwrap();
    let (file, link) = (directory.join("file"), directory.join("link"));
    fs::write(&file, "old and longer").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    symlink(&file, &link).unwrap();
    succeeded(&room.run(&["get", &token, "-o", link.to_str().unwrap()]));
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(names(&directory).len(), 2);

    // A name without a directory.
    let mut command = room.command(&["get", &token, "--output", "plain"]);
    succeeded(&command.current_dir(&directory).output().unwrap());
    assert_eq!(fs::read(directory.join("plain")).unwrap(), b"new");
}

#[test]
fn failures_leave_what_was_there() {
    let room = Room::new();
    let token = room.put(b"x", &[]);
    let directory = room.path().join("out");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("file"), "old").unwrap();
    let missing = directory.join("missing/file");
    failed(&room.run(&["get", &token, "-o", missing.to_str().unwrap()]), 1, &["missing/file", "No such file"]);
    failed(&room.run(&["get", &token, "-o", directory.to_str().unwrap()]), 1, &["is a directory"]);
    succeeded(&room.run(&["evict", &token]));
    failed(&room.run(&["get", &token, "-o", directory.join("file").to_str().unwrap()]), 3, &["no such object"]);
    assert_eq!(
        (names(&directory), fs::read(directory.join("file")).unwrap()),
        (vec!["file".to_owned()], b"old".to_vec())
    );
}

#[test]
fn devices_are_written_to_and_not_replaced() {
    let room = Room::new();
    let token = room.put(&noise(100_000), &[]);
    succeeded(&room.run(&["get", &token, "-o", "/dev/null"]));
    failed(&room.run(&["get", &token, "-o", "/dev/full"]), 1, &["/dev/full", "No space"]);
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    failed(&room.command(&["get", &token]).stdout(full).output().unwrap(), 1, &["standard output", "No space"]);
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    assert_eq!(room.run(&["get", &token, "-o", "-"]).stdout.len(), 100_000);
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let room = Room::new();
    let token = room.put(&noise(4 << 20), &[]);
    let mut get = room.command(&["get", &token]);
    let mut get = get.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut head = [0; 10];
    let mut stdout = get.stdout.take().unwrap();
    stdout.read_exact(&mut head).unwrap();
    drop(stdout);
    succeeded(&get.wait_with_output().unwrap());
    assert_eq!(head, noise(10)[..]);
}

#[test]
fn a_kill_leaves_a_whole_file_or_none() {
    let room = Room::new();
    let bytes = noise(32 << 20);
    let token = room.put(&bytes, &[]);
    let directory = room.path().join("out");
    fs::create_dir(&directory).unwrap();
    let target = directory.join("file");
    for signal in [rustix::process::Signal::KILL, rustix::process::Signal::INT] {
        let mut partial = 0;
        for step in 0..24 {
            let mut get = room.command(&["get", &token, "-o", target.to_str().unwrap()]).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(2 * step));
            let pid = rustix::process::Pid::from_child(&get);
            // It may have ended before, but nobody has waited for it, so the number is still its own.
            rustix::process::kill_process(pid, signal).unwrap();
            get.wait().unwrap();
            match names(&directory).as_slice() {
                [] => partial += 1,
                [name] => {
                    assert_eq!(name, "file");
                    assert!(fs::read(&target).unwrap() == bytes);
                    fs::remove_file(&target).unwrap();
                }
                more => panic!("left behind: {more:?}"),
            }
        }
        assert!(partial > 0, "no kill came before the end");
    }
}

#[test]
fn the_watcher_removes_what_a_killed_get_left() {
    // What guards files that must have a name, on file systems that have no others.
    let room = Room::new();
    let file = room.path().join("part");
    fs::write(&file, "x").unwrap();
    let mut watcher = room.command(&["remove-at-eof", file.to_str().unwrap()]).stdin(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(file.exists());
    drop(watcher.stdin.take());
    assert!(watcher.wait().unwrap().success() && !file.exists());
}
