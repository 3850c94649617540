//! What is fuzzed: everything that reads bytes from outside, with what must hold for whatever it accepts.
//!
//! A target is a function here, a row of [`TARGETS`], a `[[bin]]` in `fuzz/Cargo.toml` with its two lines in
//! `fuzz_targets/`, and a folder of inputs in `corpus/`. `tests/fuzz_corpus.rs` includes this file and replays the folders
//! with a stable compiler.

use proxystore::{ConnectorConfig, ErrorKind, Key, StoreConfig};

/// A target: a panic is a finding.
pub type Target = fn(&[u8]);

/// All targets, by the name of their folder in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[("key", key), ("config", config)];

/// Both forms of a key, and the binary form behind a checksum that is right.
pub fn key(data: &[u8]) {
    key_from_bytes(data);
    // No fuzzer guesses a CRC, so what lies behind it is reached by adding it here.
    let mut sealed = data.to_vec();
    sealed.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
    key_from_bytes(&sealed);
    if let Ok(text) = std::str::from_utf8(data) {
        match text.parse::<Key>() {
            Ok(key) => assert_eq!(key.to_string(), text, "one text a key"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid),
        }
    }
}

fn key_from_bytes(bytes: &[u8]) {
    match Key::from_bytes(bytes) {
        Ok(key) => {
            assert_eq!(key.to_bytes(), bytes, "one byte string a key");
            assert!((1..=Key::MAX_LOCATOR).contains(&key.locator().len()));
            assert!((1..=Key::MAX_SCHEME).contains(&key.scheme().len()));
            assert_eq!(key.to_string().parse::<Key>().expect("what is written is read"), key);
            let rebuilt = Key::new(key.scheme(), key.locator(), key.len(), key.format());
            assert_eq!(rebuilt.expect("the parts are valid"), key);
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid),
    }
}

/// A store's configuration as URL and as TOML.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for parsed in [text.parse::<StoreConfig>(), StoreConfig::from_toml(text)] {
        match parsed {
            Ok(config) => config_round_trip(&config),
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Config), "{error}");
                assert!(!error.to_string().is_empty());
            }
        }
    }
}

fn config_round_trip(config: &StoreConfig) {
    let url = config.to_string();
    // Percent-encoding may make it longer than what was read.
    if url.len() <= ConnectorConfig::MAX_URL {
        assert_eq!(&url.parse::<StoreConfig>().expect("what is written is read"), config, "as URL");
        assert_eq!(&StoreConfig::from_toml(&config.to_toml()).expect("what is written is read"), config, "as TOML");
    }
}
