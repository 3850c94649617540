//! Configuration as a value: URL, TOML and serde forms of a store and of its connector, all strict.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::environment::{parse_bytes, parse_duration};
use crate::error::{Error, ErrorKind, Result};
use crate::key::is_scheme;

/// What opens a connector: scheme, location and options, as in `file:///scratch/run42?fsync=data`.
///
/// The canonical URL (options sorted, everything that needs it percent-encoded) is its identity: two configurations with
/// the same URL are one connector in a process.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectorConfig {
    scheme: String,
    location: String,
    options: BTreeMap<String, String>,
}

impl ConnectorConfig {
    /// Longest URL, in bytes.
    pub const MAX_URL: usize = 4096;

    /// Names a connector without options.
    pub fn new(scheme: impl Into<String>, location: impl Into<String>) -> Self {
        Self { scheme: scheme.into(), location: location.into(), options: BTreeMap::new() }
    }

    /// Adds an option.
    #[must_use]
    pub fn with_option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }

    /// The scheme, which selects the row of the connector table.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What stands between `://` and `?`, decoded: a path, a name, a host; what it means is the connector's affair.
    pub fn location(&self) -> &str {
        &self.location
    }

    /// An option's value.
    pub fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// All options, sorted by name.
    pub fn options(&self) -> impl Iterator<Item = (&str, &str)> {
        self.options.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// An option parsed by `parse`.
    ///
    /// # Errors
    /// `Config` naming the option and what is `expected` when the value does not parse.
    pub fn parse_option<T>(
        &self,
        name: &str,
        expected: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.option(name) else { return Ok(None) };
        match parse(text) {
            Some(value) => Ok(Some(value)),
            None => Err(wrong(format!("{name}={text}: expected {expected}")).with_connector(self.scheme.clone())),
        }
    }

    /// Refuses options that are not in `known`: almost always typing errors.
    ///
    /// # Errors
    /// `Config` with the nearest known name.
    pub fn check_options(&self, known: &[&str]) -> Result<()> {
        match self.options.keys().find(|name| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let all = known.iter().copied().chain(STORE_OPTIONS);
                Err(unknown_option(name, all).with_connector(self.scheme.clone()))
            }
        }
    }
}

impl fmt::Display for ConnectorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_url(f, self, std::iter::empty())
    }
}

impl fmt::Debug for ConnectorConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectorConfig({self})")
    }
}

impl FromStr for ConnectorConfig {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        if url.len() > Self::MAX_URL {
            return Err(malformed(format!("{} bytes, a store URL has at most {}", url.len(), Self::MAX_URL)));
        }
        let Some((scheme, rest)) = url.split_once(':') else {
            return Err(malformed(format!("{url:?} has no scheme; write for example file:///scratch/me or memory://")));
        };
        if !is_scheme(scheme) {
            return Err(malformed(format!("{scheme:?} is not a scheme")));
        }
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        if rest.contains('#') {
            return Err(malformed("a store URL has no fragment; write # as %23"));
        }
        let (location, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut config = Self::new(scheme, percent_decode(location)?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let Some((name, value)) = pair.split_once('=') else {
                return Err(malformed(format!("option {pair:?} has no value; write {pair}=VALUE")));
            };
            let (name, value) = (percent_decode(name)?, percent_decode(value)?);
            if config.options.contains_key(&name) {
                return Err(malformed(format!("option {name} is given twice")));
            }
            config.options.insert(name, value);
        }
        check_len(&config)?;
        Ok(config)
    }
}

impl Serialize for ConnectorConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ConnectorConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// What opens a store: its connector and how this process treats the objects.
///
/// One value, four forms that convert into each other without loss: this struct, a URL
/// (`file:///scratch/run42?fsync=data&cache_bytes=1GiB`), TOML, and any serde format.
///
/// # Examples
/// ```
/// use proxystore::StoreConfig;
///
/// let config: StoreConfig = "memory://run42?cache_bytes=64MiB&deadline=2s".parse()?;
/// assert_eq!(config.cache_bytes, Some(64 << 20));
/// assert_eq!(StoreConfig::from_toml(&config.to_toml())?, config);
/// # Ok::<(), proxystore::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct StoreConfig {
    /// The connector.
    pub connector: ConnectorConfig,
    /// Byte budget of the cache of resolved objects; 0 disables it. Default: `PROXYSTORE_CACHE_BYTES`, else 256 MiB.
    pub cache_bytes: Option<u64>,
    /// Most objects in the cache, in addition to the byte budget. Default: no limit.
    pub cache_objects: Option<u64>,
    /// Deadline of every operation that sets none itself. Default: `PROXYSTORE_TIMEOUT`, else 10 s.
    pub deadline: Option<Duration>,
    /// Whether operations are timed and counted, see [`Store::metrics`](crate::Store::metrics). Costs two clock readings an
    /// operation. Default: off.
    pub metrics: bool,
}

impl StoreConfig {
    /// A store on `connector` with every default.
    pub fn new(connector: ConnectorConfig) -> Self {
        Self { connector, cache_bytes: None, cache_objects: None, deadline: None, metrics: false }
    }

    /// Reads the TOML form.
    ///
    /// # Errors
    /// `Config` with line and column, on unknown keys too.
    ///
    /// # Examples
    /// ```
    /// let config = proxystore::StoreConfig::from_toml(r#"
    ///     connector = "file:///scratch/run42?fsync=data"
    ///     cache_bytes = "1GiB"
    ///     deadline = "30s"
    /// "#)?;
    /// assert_eq!(config.connector.location(), "/scratch/run42");
    /// # Ok::<(), proxystore::Error>(())
    /// ```
    pub fn from_toml(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| wrong("store configuration").with_source(error))
    }

    /// Reads a TOML file.
    ///
    /// # Errors
    /// As [`from_toml`](Self::from_toml), and the operating system's.
    pub fn from_toml_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let text =
            std::fs::read_to_string(path).map_err(|error| Error::io("open", path.display().to_string(), error))?;
        Self::from_toml(&text)
    }

    /// Writes the TOML form.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a flat table of strings, numbers and booleans is always TOML")
    }
}

impl fmt::Display for StoreConfig {
    /// The canonical URL: the identity of the store.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = [
            ("cache_bytes", self.cache_bytes.map(|n| n.to_string())),
            ("cache_objects", self.cache_objects.map(|n| n.to_string())),
            ("deadline", self.deadline.map(|d| print_duration(d).to_string())),
            ("metrics", self.metrics.then(|| "on".to_owned())),
        ];
        write_url(f, &self.connector, own.iter().filter_map(|(name, value)| Some((*name, value.as_deref()?))))
    }
}

impl fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreConfig({self})")
    }
}

impl FromStr for StoreConfig {
    type Err = Error;

    fn from_str(url: &str) -> Result<Self> {
        let mut connector: ConnectorConfig = url.parse()?;
        let mut own = |name: &str| connector.options.remove(name);
        let cache_bytes = parse_own("cache_bytes", own("cache_bytes"), "bytes, as 64MiB", parse_bytes)?;
        let cache_objects = parse_own("cache_objects", own("cache_objects"), "a number", |text| text.parse().ok())?;
        let deadline = parse_own("deadline", own("deadline"), "a duration, as 10s", positive_duration)?;
        let metrics = parse_own("metrics", own("metrics"), "on or off", parse_switch)?.unwrap_or(false);
        let config = Self { connector, cache_bytes, cache_objects, deadline, metrics };
        check_len(&config)?;
        Ok(config)
    }
}

impl Serialize for StoreConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !serializer.is_human_readable() {
            return serializer.collect_str(self);
        }
        Table {
            connector: self.connector.clone(),
            cache_bytes: self.cache_bytes.map(Quantity::Number),
            cache_objects: self.cache_objects,
            deadline: self.deadline.map(|limit| Quantity::Text(print_duration(limit))),
            metrics: self.metrics,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StoreConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if !deserializer.is_human_readable() {
            return String::deserialize(deserializer)?.parse().map_err(de::Error::custom);
        }
        let table = Table::deserialize(deserializer)?;
        if let Some(name) = table.connector.options.keys().find(|name| STORE_OPTIONS.contains(&name.as_str())) {
            return Err(de::Error::custom(format!("{name} belongs beside `connector`, not into its URL")));
        }
        let read = |quantity: Quantity| match quantity {
            Quantity::Number(n) => Some(n),
            Quantity::Text(text) => parse_bytes(&text),
        };
        let time = |quantity: Quantity| match quantity {
            Quantity::Number(n) => Some(Duration::from_secs(n)).filter(is_deadline),
            Quantity::Text(text) => positive_duration(&text),
        };
        let cache_bytes = match table.cache_bytes {
            Some(text) => {
                Some(read(text).ok_or_else(|| de::Error::custom("cache_bytes: expected bytes, as \"64MiB\""))?)
            }
            None => None,
        };
        let deadline = match table.deadline {
            Some(text) => {
                Some(time(text).ok_or_else(|| de::Error::custom("deadline: expected a duration, as \"10s\""))?)
            }
            None => None,
        };
        let Table { connector, cache_objects, metrics, .. } = table;
        Ok(Self { connector, cache_bytes, cache_objects, deadline, metrics })
    }
}

/// The human-readable serde form of a `StoreConfig`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    connector: ConnectorConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_bytes: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cache_objects: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    deadline: Option<Quantity>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    metrics: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Quantity {
    Number(u64),
    Text(String),
}

/// Options of the store itself; a connector must not use these names.
pub(crate) const STORE_OPTIONS: [&str; 4] = ["cache_bytes", "cache_objects", "deadline", "metrics"];

/// The error for a scheme, option or word that is not known, with the nearest that is.
pub(crate) fn unknown_option<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Error {
    let mut known: Vec<&str> = known.collect();
    known.sort_unstable();
    let hint = match nearest(name, &known) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("known are: {}", known.join(", ")),
    };
    wrong(format!("unknown option {name:?}; {hint}"))
}

/// The known word within two edits of `word`.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known.iter().map(|name| (edits(word, name), *name)).filter(|(d, _)| *d <= 2).min().map(|(_, name)| name)
}

/// Levenshtein distance in bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substitute = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn write_url<'a>(
    f: &mut fmt::Formatter<'_>,
    connector: &'a ConnectorConfig,
    own: impl Iterator<Item = (&'a str, &'a str)>,
) -> fmt::Result {
    write!(f, "{}://", connector.scheme)?;
    percent_encode(f, &connector.location, b"/:@,;+~*!$()[]")?;
    let mut options: Vec<(&str, &str)> = connector.options().chain(own).collect();
    options.sort_unstable();
    for (i, (name, value)) in options.into_iter().enumerate() {
        f.write_str(if i == 0 { "?" } else { "&" })?;
        percent_encode(f, name, b"")?;
        f.write_str("=")?;
        percent_encode(f, value, b"/:@,;+~*!$()[]")?;
    }
    Ok(())
}

fn percent_encode(f: &mut fmt::Formatter<'_>, text: &str, also_plain: &[u8]) -> fmt::Result {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._".contains(&byte) || also_plain.contains(&byte) {
            write!(f, "{}", byte as char)?;
        } else {
            write!(f, "%{byte:02X}")?;
        }
    }
    Ok(())
}

fn percent_decode(text: &str) -> Result<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|b| (b as char).to_digit(16));
        match (digit(), digit()) {
            (Some(high), Some(low)) => out.push((high * 16 + low) as u8),
            _ => return Err(malformed(format!("{text:?} has a % that two hexadecimal digits do not follow"))),
        }
    }
    if out.contains(&0) {
        return Err(malformed("a store URL cannot hold a zero byte"));
    }
    String::from_utf8(out).map_err(|error| malformed("a store URL must be UTF-8").with_source(error))
}

fn parse_own<T>(
    name: &'static str,
    text: Option<String>,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>> {
    let Some(text) = text else { return Ok(None) };
    parse(&text).map(Some).ok_or_else(|| wrong(format!("{name}={text}: expected {expected}")))
}

fn positive_duration(text: &str) -> Option<Duration> {
    parse_duration(text).filter(is_deadline)
}

/// Whether a deadline has a text form: 0 is none, and 600,000 years of microseconds are enough.
fn is_deadline(limit: &Duration) -> bool {
    (1..=u128::from(u64::MAX)).contains(&limit.as_micros())
}

/// The shortest exact text of a duration; anything below a microsecond is rounded up, for a deadline of 0 is none.
fn print_duration(limit: Duration) -> String {
    let micros = limit.as_nanos().div_ceil(1000).min(u128::from(u64::MAX));
    match micros {
        n if n % 1_000_000 == 0 => format!("{}s", n / 1_000_000),
        n if n % 1000 == 0 => format!("{}ms", n / 1000),
        n => format!("{n}us"),
    }
}

/// Refuses a configuration whose canonical URL, which percent-encoding may make longer, no token could carry.
fn check_len(config: &impl fmt::Display) -> Result<()> {
    let len = config.to_string().len();
    match len <= ConnectorConfig::MAX_URL {
        true => Ok(()),
        false => {
            let most = ConnectorConfig::MAX_URL;
            Err(malformed(format!("{len} bytes with special characters encoded, a store URL has at most {most}")))
        }
    }
}

/// Reads `on`/`off`.
pub(crate) fn parse_switch(text: &str) -> Option<bool> {
    match text {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

fn malformed(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "parse", context)
}

fn wrong(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Config, "configure", context)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn url_forms() {
        for (text, canonical) in [
            ("memory:", "memory://"),
            ("memory://", "memory://"),
            ("memory:run", "memory://run"),
            ("file:///a%20b/c?fsync=data", "file:///a%20b/c?fsync=data"),
            ("file:///x?metrics=on&cache_bytes=1KiB&fsync=all", "file:///x?cache_bytes=1024&fsync=all&metrics=on"),
            ("file:///x?deadline=1500ms&metrics=off", "file:///x?deadline=1500ms"),
        ] {
            assert_eq!(text.parse::<StoreConfig>().unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn bad_urls_say_why() {
        for (text, kind, part) in [
            ("", ErrorKind::Invalid, "no scheme"),
            ("/scratch/me", ErrorKind::Invalid, "file:///scratch/me"),
            ("File:///x", ErrorKind::Invalid, "not a scheme"),
            ("file:///x?fsync", ErrorKind::Invalid, "fsync=VALUE"),
            ("file:///x?a=1&a=2", ErrorKind::Invalid, "twice"),
            ("file:///%zz", ErrorKind::Invalid, "hexadecimal"),
            ("file:///%ff", ErrorKind::Invalid, "UTF-8"),
            ("file:///a%00b", ErrorKind::Invalid, "zero byte"),
            ("file:///a#b", ErrorKind::Invalid, "%23"),
            ("file:///x?cache_bytes=lots", ErrorKind::Config, "bytes, as 64MiB"),
            ("file:///x?deadline=0s", ErrorKind::Config, "duration"),
            ("file:///x?deadline=18446744073709551615s", ErrorKind::Config, "duration"),
            ("file:///x?metrics=maybe", ErrorKind::Config, "on or off"),
        ] {
            let error = text.parse::<StoreConfig>().unwrap_err();
            assert_eq!(error.kind(), kind, "{text}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let long = format!("file:///{}", "x".repeat(ConnectorConfig::MAX_URL));
        assert_eq!(long.parse::<StoreConfig>().unwrap_err().kind(), ErrorKind::Invalid);
        let longer_when_encoded = format!("file:///{}", " ".repeat(ConnectorConfig::MAX_URL - 100));
        assert_eq!(longer_when_encoded.parse::<StoreConfig>().unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn unknown_options_are_refused_with_a_hint() {
        let config: ConnectorConfig = "file:///x?fsnyc=data".parse().unwrap();
        let error = config.check_options(&["fsync", "mode"]).unwrap_err();
        assert!(error.to_string().contains("did you mean fsync?"), "{error}");
        let config: ConnectorConfig = "file:///x?cache_byte=1".parse().unwrap();
        assert!(config.check_options(&[]).unwrap_err().to_string().contains("did you mean cache_bytes?"));
        assert_eq!(nearest("completely", &["fsync"]), None);
    }

    #[test]
    fn toml_is_strict() {
        for (text, part) in [
            ("connector = 5", "string"),
            ("", "connector"),
            ("connector = \"memory://\"\ncolour = 1", "colour"),
            ("connector = \"memory://?cache_bytes=1\"", "beside"),
            ("connector = \"memory://\"\ncache_bytes = \"lots\"", "64MiB"),
        ] {
            let error = StoreConfig::from_toml(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        let config = StoreConfig::from_toml("connector = \"memory://a\"\ncache_bytes = 7\ndeadline = 3").unwrap();
        assert_eq!(config.to_string(), "memory://a?cache_bytes=7&deadline=3s");
    }

    proptest! {
        #[test]
        fn all_forms_round_trip(location in "[^\0]{0,40}", options in prop::collection::btree_map("[a-z_]{1,8}", "[^\0]{0,12}", 0..4),
                                cache_bytes in any::<Option<u64>>(), cache_objects in any::<Option<u32>>(),
                                deadline in prop::option::of(1u64..1 << 50), metrics in any::<bool>()) {
            let mut connector = ConnectorConfig::new("file", location);
            for (name, value) in options {
                prop_assume!(!STORE_OPTIONS.contains(&name.as_str()));
                connector = connector.with_option(name, value);
            }
            // The URL form strips one leading `//`, which the canonical form always has.
            let mut config = StoreConfig::new(connector);
            config.cache_bytes = cache_bytes.map(|n| n >> 1);
            config.cache_objects = cache_objects.map(u64::from);
            config.deadline = deadline.map(Duration::from_micros);
            config.metrics = metrics;
            prop_assume!(config.to_string().len() <= ConnectorConfig::MAX_URL);
            prop_assert_eq!(&config.to_string().parse::<StoreConfig>().unwrap(), &config);
            prop_assert_eq!(&StoreConfig::from_toml(&config.to_toml()).unwrap(), &config);
            prop_assert_eq!(&serde_json::from_str::<StoreConfig>(&serde_json::to_string(&config).unwrap()).unwrap(), &config);
            prop_assert_eq!(&postcard::from_bytes::<StoreConfig>(&postcard::to_allocvec(&config).unwrap()).unwrap(), &config);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _ = text.parse::<StoreConfig>();
            let _ = StoreConfig::from_toml(&text);
        }
    }
}
