//! What is fuzzed: everything that reads bytes from outside, with what must hold for whatever it accepts.
//!
//! A target is a function here, a row of [`TARGETS`], a `[[bin]]` in `fuzz/Cargo.toml` with its two lines in
//! `fuzz_targets/`, and a folder of inputs in `corpus/`. `tests/fuzz_corpus.rs` includes this file and replays the folders
//! with a stable compiler.

use std::sync::OnceLock;

use proxystore::codec::{Archive, MessagePack, Object};
use proxystore::launch::{Job, expand};
use proxystore::{ConnectorConfig, ErrorKind, Key, Proxy, Store, StoreConfig, Token};
use serde::{Deserialize, Serialize};

/// A target: a panic is a finding.
pub type Target = fn(&[u8]);

/// All targets, by the name of their folder in `corpus/`.
pub const TARGETS: &[(&str, Target)] = &[
    ("key", key),
    ("config", config),
    ("token", token),
    ("codec", codec),
    ("message", message),
    ("rebuild", rebuild),
    ("launch", launch),
    ("frame", frame),
    ("question", question),
    #[cfg(feature = "margo")]
    ("margo", margo),
    #[cfg(feature = "ucx")]
    ("ucx", ucx),
];

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

/// A table of shared memory over which somebody scribbled, taken over by a new service.
pub fn rebuild(data: &[u8]) {
    proxystore::service::check_rebuild(data);
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

/// Both forms of a token, and the binary form behind a checksum that is right.
pub fn token(data: &[u8]) {
    token_from_bytes(data);
    let mut sealed = data.to_vec();
    sealed.extend_from_slice(&crc32fast::hash(data).to_le_bytes());
    token_from_bytes(&sealed);
    if let Ok(text) = std::str::from_utf8(data) {
        match text.parse::<Token>() {
            Ok(token) => assert_eq!(token.to_string(), text.trim(), "one text a token"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid),
        }
    }
}

fn token_from_bytes(bytes: &[u8]) {
    match Token::from_bytes(bytes) {
        Ok(token) => {
            assert_eq!(token.to_bytes(), bytes, "one byte string a token");
            assert_eq!(token.to_string().parse::<Token>().expect("what is written is read"), token);
            // A proxy of it opens nothing and knows the same.
            let proxy = Proxy::<[u8]>::from(token.clone());
            assert!(!Proxy::is_resolved(&proxy));
            assert_eq!(Proxy::token(&proxy).expect("it came from one"), token);
        }
        Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid),
    }
}

/// Stored bytes that are anything, read as a type that the first byte chooses: a view, or a typed error.
pub fn codec(data: &[u8]) {
    reads(data);
}

/// Whether the bytes were such a value.
pub fn reads(data: &[u8]) -> bool {
    let Some((which, bytes)) = data.split_first() else { return false };
    match which % 10 {
        0 => read::<Record>(bytes, |record| drop(record.clone())),
        1 => read::<[f64]>(bytes, |numbers| drop(numbers.to_vec())),
        2 => read::<str>(bytes, |text| assert!(text.chars().count() <= text.len())),
        3 => read::<String>(bytes, |text| assert_eq!(text.as_bytes(), bytes)),
        4 => read::<Vec<u32>>(bytes, |numbers| assert_eq!(numbers.len() * 4, bytes.len())),
        5 => read::<proxystore::bytes::Bytes>(bytes, |shared| assert_eq!(shared, bytes)),
        6 => read::<MessagePack<Record>>(bytes, |record| drop(record.clone())),
        7 => read::<Archive<Record>>(bytes, |record| drop(format!("{record:?}"))),
        8 => read::<Vec<Option<Shape>>>(bytes, |shapes| drop(shapes.clone())),
        _ => read::<Proxy<[u8]>>(bytes, |proxy| assert!(!Proxy::is_resolved(proxy))),
    }
}

fn read<T: Object + ?Sized>(bytes: &[u8], touch: impl Fn(&T::Target)) -> bool {
    static STORE: OnceLock<Store> = OnceLock::new();
    let store = STORE.get_or_init(|| Store::open("memory://fuzz?cache_bytes=0").expect("a store in memory"));
    let key = store.connector().put(bytes, T::format()).wait().expect("room for it");
    match store.take::<T>(&key).wait() {
        Ok(view) => {
            touch(&view.expect("just put"));
            true
        }
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::Codec | ErrorKind::Corrupt), "{error}");
            false
        }
    }
}

/// An environment, a variable a line, and a list of hosts.
pub fn launch(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let names = expand(text).unwrap_or_default();
    for name in names.iter().take(64) {
        assert_eq!(expand(name).expect("a name is a list"), [name.as_str()]);
    }
    let read = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned);
    match Job::from_environment(&read, "n2") {
        Ok(job) => {
            assert!((1..=64).contains(&job.id.len()) && !job.id.contains('/'), "{:?}", job.id);
            assert!(job.rank.zip(job.size).is_none_or(|(rank, size)| rank < size), "{job:?}");
            assert!(job.node_id.is_none_or(|id| job.nodes.is_empty() || (id as usize) < job.nodes.len()), "{job:?}");
        }
        Err(error) => {
            let kinds = [ErrorKind::Config, ErrorKind::Invalid, ErrorKind::TooLarge];
            assert!(kinds.contains(&error.kind()), "{error}");
        }
    }
}

/// A packet between client and node service, as it is and behind a header that is right.
pub fn message(data: &[u8]) {
    let kinds = proxystore::service::check_packet(data);
    assert!(kinds <= 1, "a packet is one kind of message");
    let Some((op, rest)) = data.split_first() else { return };
    let whole: Vec<u8> = [0xb1, *op].into_iter().chain([0; 8]).chain(rest.iter().copied()).collect();
    proxystore::service::check_packet(&whole);
}

/// What nodes ask each other, and the answers.
pub fn question(data: &[u8]) {
    proxystore::service::check_question(data);
    // As it is, few inputs have the version.
    proxystore::service::check_question(&[&[0xc2], data].concat());
}

/// What comes over a TCP connection: frames as they are, a frame whose checksums are right, and either side of a handshake.
pub fn frame(data: &[u8]) {
    proxystore::service::check_frames(data);
    let mut sealed = data.to_vec();
    if let Some(header) = sealed.first_chunk_mut::<36>() {
        header[..4].copy_from_slice(&[0xf5, b'p', b'x', 1]);
        let parts = usize::from(u16::from_le_bytes([header[6], header[7]]));
        let head = u32::from_le_bytes([header[24], header[25], header[26], header[27]]) as usize;
        let described = 36 + head + parts * if header[5] == 1 { 12 } else { 8 };
        let described = described.next_multiple_of(64) - 36;
        if let Some(description) = data[36..].get(..described) {
            header[28..32].copy_from_slice(&crc32fast::hash(description).to_le_bytes());
        }
        let crc = crc32fast::hash(&header[..32]);
        header[32..].copy_from_slice(&crc.to_le_bytes());
        proxystore::service::check_frames(&sealed);
    }
    proxystore::service::check_handshake(data);
    if let [side, kind, rest @ ..] = data {
        let prefix = [*side, 0xf4, b'p', b'x', b'h', 1, 0, 1, *kind];
        proxystore::service::check_handshake(&[&prefix, rest].concat());
    }
}

/// What comes over UCX, and on its control connection: as it is, and a message whose checksum is right.
#[cfg(feature = "ucx")]
pub fn ucx(data: &[u8]) {
    proxystore::service::check_messages(data);
    let Some((header, rest)) = data.split_first_chunk::<40>() else { return };
    let mut header = *header;
    // No more than 255 parts and 64 KiB of head.
    [1..4, 5..8, 26..28, 32..40].into_iter().for_each(|zeros| header[zeros].fill(0));
    let described = usize::from(header[4]) * 8 + usize::from(u16::from_le_bytes([header[24], header[25]]));
    let Some(description) = rest.get(..described) else { return };
    let checksum = crc32fast::hash(&[&header, description].concat());
    header[32..36].copy_from_slice(&checksum.to_le_bytes());
    // Short descriptions are of the header.
    let own = if described > 512 { 0 } else { described.min(255) as u8 };
    proxystore::service::check_messages(&[&[own], &header[..], rest].concat());
}

/// What `margo://` says in RPCs and on its control connections: as it is, and behind checksums that are right.
#[cfg(feature = "margo")]
pub fn margo(data: &[u8]) {
    proxystore::service::check_margo(data);
    let crc = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes();
    // A message's is of all that follows.
    proxystore::service::check_margo(&[&crc(data), data].concat());
    // A description's is of its table, whose end its counts and lengths give.
    if let Some(end) = described(data) {
        proxystore::service::check_margo(&[&crc(&data[..end]), data].concat());
    }
}

/// Where the table of an answer's description ends that begins behind its checksum.
#[cfg(feature = "margo")]
fn described(data: &[u8]) -> Option<usize> {
    let number = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?) as usize);
    let short = |at: usize| Some(usize::from(u16::from_le_bytes(data.get(at..at + 2)?.try_into().ok()?)));
    let (head, parts, sources) = (number(0)?, number(4)?, short(8)?);
    let mut at = 12_usize.checked_add(head)?;
    for _ in 0..sources {
        at = at.checked_add(6)?.checked_add(short(at.checked_add(4)?)?)?;
    }
    at.checked_add(parts.checked_mul(18)?).filter(|end| *end <= data.len())
}

/// One of everything that a codec treats differently.
#[derive(Clone, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(derive(Debug))]
pub struct Record {
    name: String,
    id: u64,
    weights: Vec<f32>,
    shape: Option<Shape>,
    pairs: Vec<(i16, bool)>,
}

/// A choice.
#[derive(Clone, Debug, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
#[rkyv(derive(Debug))]
pub enum Shape {
    /// Nothing in it.
    Dot,
    /// One value.
    Line(f64),
    /// Named values.
    Box {
        /// Width.
        w: f64,
        /// Height.
        h: char,
    },
}

/// Encoded samples of every type that [`codec`] reads, for the seed corpus.
pub fn codec_samples() -> Vec<Vec<u8>> {
    fn sample<T: Object + ?Sized>(which: u8, value: &T) -> Vec<u8> {
        let store = Store::open("memory://fuzz-samples?cache_bytes=0").expect("a store in memory");
        let key = store.put(value).wait().expect("room for it");
        let bytes = store.get_region(&key).wait().expect("it is there").expect("just put");
        [&[which], &bytes[..]].concat()
    }
    let record = Record {
        name: "beam".into(),
        id: 7,
        weights: vec![0.5, -1.0],
        shape: Some(Shape::Box { w: 2.0, h: 'h' }),
        pairs: vec![(-3, true), (4, false)],
    };
    let shapes = vec![None, Some(Shape::Dot), Some(Shape::Line(1.5))];
    vec![
        sample(0, &record),
        sample::<[f64]>(1, &[1.0, 2.0]),
        sample::<str>(2, "Grüße"),
        sample(3, &"text".to_owned()),
        sample(4, &vec![1u32, 2, 3]),
        sample(5, &proxystore::bytes::Bytes::from_static(b"bytes")),
        sample(6, &MessagePack::new(record.clone())),
        sample(7, &Archive(record)),
        sample(8, &shapes),
    ]
}
