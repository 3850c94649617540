//! Tokens that no put has printed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proxystore::Token;

use crate::{Room, failed};

/// Replaces the scheme `file`, with a checksum that fits.
fn with_scheme(token: &str, scheme: &[u8; 4]) -> String {
    let mut bytes = token.parse::<Token>().unwrap().to_bytes();
    let at = bytes.windows(7).position(|window| window == b"file://").unwrap();
    bytes[at..at + 4].copy_from_slice(scheme);
    seal(bytes)
}

fn seal(mut bytes: Vec<u8>) -> String {
    bytes.truncate(bytes.len() - 4);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    format!("px1.{}", URL_SAFE_NO_PAD.encode(bytes))
}

#[test]
fn damaged_tokens_are_refused_by_every_command() {
    let room = Room::new();
    let token = room.put(b"x", &[]);
    let middle = token.len() / 2;
    let flipped = match token.as_bytes()[middle] {
        b'A' => "B",
        _ => "A",
    };
    let flipped = format!("{}{flipped}{}", &token[..middle], &token[middle + 1..]);
    for command in ["get", "exists", "evict"] {
        for bad in ["", " ", "px1.", "hello", "file:///tmp/x", &token[..middle], &flipped, &format!("{token}A")] {
            failed(&room.run(&[command, bad]), 1, &["parse: malformed input"]);
        }
        // More than an argument could hold, and more than is read.
        for len in [100_000, 1 << 20] {
            let long = format!("px1.{}", "A".repeat(len));
            failed(&room.run_with_input(&[command, "-"], long.as_bytes()), 1, &["parse: malformed input"]);
        }
        failed(&room.run_with_input(&[command, "-"], &[0xff; 10]), 1, &["token on standard input", "UTF-8"]);
    }
    assert_eq!(room.objects().len(), 1);
}

#[test]
fn tokens_of_unknown_schemes_say_what_there_is() {
    let room = Room::new();
    let token = room.put(b"x", &[]);
    failed(&room.run(&["get", &with_scheme(&token, b"filo")]), 1, &["unknown scheme", "did you mean file://?"]);
    failed(&room.run(&["get", &with_scheme(&token, b"qqqq")]), 1, &["unknown scheme", "memory, file"]);
}

#[test]
fn tokens_of_other_processes_memory_and_of_factories_say_so() {
    let room = Room::new();
    let store = proxystore::Store::open("memory://").unwrap();
    let token = store.proxy("x").wait().unwrap().to_token().unwrap();
    failed(&room.run(&["get", &token]), 1, &["another process", "file://"]);
    // Version, kind, name, payload, place for the checksum.
    let factory = seal([&[1, 3, 1][..], b"f", &[0], &[0; 4]].concat());
    failed(&room.run(&["get", &factory]), 1, &["factory \"f\""]);
}
