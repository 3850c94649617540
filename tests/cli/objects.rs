//! `put`, `get`, `exists`, `evict`.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use proxystore::{Key, Proxy, Store, StoreConfig};

use crate::{Room, failed, noise, succeeded, text};

#[test]
fn bytes_come_back_as_they_went() {
    let room = Room::new();
    // None, some, and more than a chunk of what is read from a pipe.
    for len in [0, 1, 300, 64 << 10, 5_000_001] {
        let bytes = noise(len);
        let file = room.path().join("in");
        fs::write(&file, &bytes).unwrap();
        let from_file = room.run(&["put", file.to_str().unwrap()]);
        succeeded(&from_file);
        let from_redirection = room.command(&["put", "-"]).stdin(fs::File::open(&file).unwrap()).output().unwrap();
        succeeded(&from_redirection);
        let from_pipe = room.put(&bytes, &[]);
        for token in [text(&from_file.stdout), text(&from_redirection.stdout), from_pipe] {
            let to_stdout = room.run(&["get", token.trim()]);
            succeeded(&to_stdout);
            assert!(to_stdout.stdout == bytes, "{len} bytes");
            // The token with its line end, as `put` prints it.
            let to_file =
                room.run_with_input(&["get", "-", "-o", room.path().join("out").to_str().unwrap()], token.as_bytes());
            succeeded(&to_file);
            assert!(to_file.stdout.is_empty() && fs::read(room.path().join("out")).unwrap() == bytes, "{len} bytes");
            succeeded(&room.run(&["evict", token.trim()]));
        }
    }
    assert_eq!(room.objects(), [""; 0]);
}

#[test]
fn a_redirected_file_is_read_from_where_it_stands() {
    use std::io::{Seek, SeekFrom};

    let room = Room::new();
    fs::write(room.path().join("in"), b"head and tail").unwrap();
    let mut file = fs::File::open(room.path().join("in")).unwrap();
    file.seek(SeekFrom::Start(9)).unwrap();
    let put = room.command(&["put", "-"]).stdin(file).output().unwrap();
    succeeded(&put);
    assert_eq!(room.run(&["get", text(&put.stdout).trim()]).stdout, b"tail");
}

#[test]
fn files_that_state_no_true_length_are_read_to_their_end() {
    let room = Room::new();
    for path in ["/proc/version", "/sys/kernel/mm/transparent_hugepage/enabled"] {
        let Ok(bytes) = fs::read(path) else { continue };
        let put = room.run(&["put", path]);
        succeeded(&put);
        assert_eq!(room.run(&["get", text(&put.stdout).trim()]).stdout, bytes, "{path}");
    }
}

#[test]
fn json_names_token_key_len_and_store() {
    let room = Room::new();
    let output = room.run_with_input(&["put", "-", "--json"], b"hello");
    succeeded(&output);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let fields: Vec<&String> = value.as_object().unwrap().keys().collect();
    assert_eq!(fields.len(), 4, "{fields:?}");
    let key: Key = value["key"].as_str().unwrap().parse().unwrap();
    assert_eq!((value["len"].as_u64(), key.len()), (Some(5), 5));
    let config: StoreConfig = value["store"].as_str().unwrap().parse().unwrap();
    assert_eq!(config.to_string(), Store::open(&room.url()).unwrap().config().to_string());
    assert_eq!(room.run(&["get", value["token"].as_str().unwrap()]).stdout, b"hello");
}

#[test]
fn programs_and_the_tool_read_each_other() {
    let room = Room::new();
    let proxy: Proxy<[u8]> = room.put(b"from the tool", &[]).parse().unwrap();
    assert_eq!(&*proxy, b"from the tool");

    let store = Store::open(&room.url()).unwrap();
    let numbers = [1.5_f64, -2.0];
    let token = store.proxy(&numbers[..]).wait().unwrap().to_token().unwrap();
    assert_eq!(room.run(&["get", &token]).stdout, bytemuck::cast_slice::<f64, u8>(&numbers));
}

#[test]
fn a_store_url_beats_the_environment() {
    let room = Room::new();
    let url = format!("file://{}/other", room.path().display());
    let token = room.put(b"x", &["--store", &url]);
    assert_eq!((room.objects().len(), crate::names(&room.path().join("other")).len()), (0, 1));
    assert_eq!(room.run(&["get", &token]).stdout, b"x");
}

#[test]
fn one_time_tokens_work_once() {
    let room = Room::new();
    let token = room.put(b"once", &["--once"]);
    // A failure to write uses nothing up.
    failed(&room.run(&["get", &token, "-o", "/nonexistent/out"]), 1, &["/nonexistent/out"]);
    assert_eq!(room.run(&["get", &token]).stdout, b"once");
    failed(&room.run(&["get", &token]), 3, &["no such object"]);
    assert_eq!(room.objects(), [""; 0]);

    let token = room.put(b"once", &["--once"]);
    let runs: Vec<_> = (0..4)
        .map(|_| room.command(&["get", &token]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    let runs: Vec<_> = runs.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    assert_eq!(runs.iter().filter(|run| run.stdout == b"once").count(), 1);
    assert_eq!(runs.iter().filter(|run| run.status.code() == Some(3) && run.stdout.is_empty()).count(), 3);
}

#[test]
fn a_promised_object_is_waited_for() {
    let room = Room::new();
    let store = Store::open(&room.url()).unwrap();
    let (promise, proxy) = store.promise::<[u8]>().unwrap();
    let token = proxy.to_token().unwrap();
    let begin = Instant::now();
    failed(&room.run(&["get", &token, "--timeout", "200ms"]), 4, &["deadline passed"]);
    assert!((Duration::from_millis(200)..Duration::from_secs(9)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    let waiting = room.command(&["get", &token]).stdout(Stdio::piped()).spawn().unwrap();
    promise.set(b"kept").wait().unwrap();
    assert_eq!(waiting.wait_with_output().unwrap().stdout, b"kept");
}

#[test]
fn exists_and_evict() {
    let room = Room::new();
    let token = room.put(b"x", &[]);
    succeeded(&room.run(&["exists", &token]));
    assert_eq!(room.run(&["exists", &token, "--json"]).stdout, b"{\"exists\":true}\n");
    succeeded(&room.run_with_input(&["evict", "-"], token.as_bytes()));
    succeeded(&room.run(&["evict", &token]));
    let gone = room.run(&["exists", &token, "--json"]);
    assert_eq!((gone.status.code(), gone.stdout), (Some(3), b"{\"exists\":false}\n".to_vec()));
    assert_eq!(room.run(&["exists", &token]).status.code(), Some(3));
    failed(&room.run(&["get", &token]), 3, &["no such object"]);
}

#[test]
fn a_store_that_ends_with_the_process_is_refused() {
    let room = Room::new();
    let output = room.run_with_input(&["put", "-", "--store", "memory://"], b"x");
    failed(&output, 1, &["memory://", "end with this process", "file:///"]);
}

#[test]
fn what_cannot_be_read_is_named() {
    let room = Room::new();
    failed(&room.run(&["put", "/nonexistent"]), 1, &["/nonexistent", "No such file"]);
    failed(&room.run(&["put", "/"]), 1, &["directory"]);
    failed(&room.run(&["put", "/proc/version", "--store", "/scratch"]), 1, &["file:///scratch"]);
    failed(&room.run(&["put", "/proc/version", "--store", "file:///x?fsnyc=data"]), 1, &["did you mean fsync?"]);
    failed(&room.run(&["put", "/proc/version", "--store", "nosuch://"]), 1, &["nosuch", "memory, file"]);
    assert_eq!(room.objects(), [""; 0]);
}

#[test]
fn an_object_whose_token_nobody_got_does_not_stay() {
    let room = Room::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = room.command(&["put", "/proc/version"]).stdout(full).output().unwrap();
    failed(&output, 1, &["cannot print the token"]);
    let mut closed = room.command(&["put", "-"]);
    let mut closed = closed.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(closed.stdout.take());
    drop(closed.stdin.take());
    assert_eq!(closed.wait().unwrap().code(), Some(1));
    assert_eq!(room.objects(), [""; 0]);
}
