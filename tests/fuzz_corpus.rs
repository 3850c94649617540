//! Replays every input that the fuzzers kept, with the stable compiler and without a fuzzer.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::{env, fs};

#[path = "../fuzz/src/targets.rs"]
#[allow(unreachable_pub, reason = "a library for the fuzzers, a private module here")]
mod targets;

use targets::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

#[test]
fn replay() {
    let mut findings = Vec::new();
    for (name, target) in TARGETS {
        let folder = fuzz().join("corpus").join(name);
        let mut inputs = 0;
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.unwrap().path();
            let input = fs::read(&path).unwrap();
            // Whole, and cut short at some sixteen places.
            let cuts = (0..input.len()).step_by(input.len() / 16 + 1).chain([input.len()]);
            for n in cuts {
                if catch_unwind(|| target(&input[..n])).is_err() {
                    findings.push((path.clone(), n));
                }
            }
            inputs += 1;
        }
        println!("{name}: {inputs} inputs");
        assert!(inputs > 0, "{} is empty", folder.display());
    }
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn samples_of_the_codec_target_are_valid() {
    for sample in targets::codec_samples() {
        assert!(targets::reads(&sample), "{sample:?}");
    }
}

#[cfg(feature = "margo")]
#[test]
fn samples_of_the_margo_target_are_valid() {
    let refused = ["part-nowhere", "trailing"];
    for entry in fs::read_dir(fuzz().join("corpus/margo")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.len() < 40 {
            let count = proxystore::service::check_margo(&fs::read(&path).unwrap());
            assert_eq!(count > 0, !refused.contains(&name), "{name}");
        }
    }
}

#[test]
fn samples_of_the_message_target_are_valid() {
    let refused = ["count-too-large", "trailing", "wrong-number"];
    for entry in fs::read_dir(fuzz().join("corpus/message")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        // Inputs that a fuzzer found are named by 40 digits.
        if name.len() < 40 {
            let kinds = proxystore::service::check_packet(&fs::read(&path).unwrap());
            assert_eq!(kinds, usize::from(!refused.contains(&name)), "{name}");
        }
    }
}

#[test]
fn samples_of_the_frame_target_are_valid() {
    for (name, frames) in [("ask", 1), ("abandon", 1), ("answer", 1), ("answer-checked", 1), ("beat", 1), ("two", 3)] {
        let input = fs::read(fuzz().join("corpus/frame").join(name)).unwrap();
        assert_eq!(proxystore::service::check_frames(&input), frames, "{name}");
    }
    let hello = fs::read(fuzz().join("corpus/frame/hello")).unwrap();
    assert!(proxystore::service::check_handshake(&hello), "not refused");
}

#[test]
fn samples_of_the_question_target_are_valid() {
    let questions = ["get", "exists-two", "retire", "wait", "bind", "join", "left", "pass"];
    for name in questions.into_iter().chain(["yes", "bound-missing", "from", "huge"]) {
        let input = fs::read(fuzz().join("corpus/question").join(name)).unwrap();
        assert_eq!(proxystore::service::check_question(&input), name != "huge", "{name}");
    }
}

#[cfg(feature = "ucx")]
#[test]
fn samples_of_the_ucx_target_are_valid() {
    for (name, is_message) in [
        ("ask", true),
        ("answer", true),
        ("answer-long", true),
        ("apart", true),
        ("apart-with-one", true),
        ("part", true),
        ("parts", true),
        ("refusal", true),
        ("abandon", true),
        ("alive", true),
        ("meet", false),
        ("hosts", false),
        ("welcome", false),
        ("refused", false),
        ("changed", false),
    ] {
        let input = fs::read(fuzz().join("corpus/ucx").join(name)).unwrap();
        assert_eq!(proxystore::service::check_messages(&input), is_message, "{name}");
    }
}

#[test]
fn every_target_is_everywhere() {
    let manifest = fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let folders = fs::read_dir(fuzz().join("corpus")).unwrap().count();
    assert_eq!(TARGETS.len(), folders, "one folder a target");
    assert_eq!(TARGETS.len(), manifest.matches("[[bin]]").count(), "one [[bin]] a target");
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} has no [[bin]]");
        assert!(fuzz().join("fuzz_targets").join(name).with_extension("rs").exists(), "{name} has no file");
    }
}
