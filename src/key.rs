//! `Key`: where an object lies and what it is, in at most 96 bytes.
//!
//! Three forms, all strict on input: the in-memory struct, a binary form (varints, little-endian, CRC-32 at the end)
//! and a URL-safe text form `scheme:BASE64URL`. Decoding never panics and never allocates more than the input's length.

use std::cell::Cell;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, ErrorKind, Result};

/// Names one object of one connector.
///
/// Keys are values: `Eq`, `Hash`, `Copy`-cheap to clone, independent of any connection. A key carries the scheme of its
/// connector, the connector's own locator, the object's length and its [`Format`], so that a consumer can refuse a wrong
/// type before it moves a byte. A key is not a secret and grants nothing by itself.
///
/// ```text
/// byte  0..8   len           object length in bytes, u64::MAX while unknown (deferred keys)
///       8..16  fingerprint   type fingerprint
///      16..18  codec         codec id
///      18, 19  lengths       of scheme and locator
///      20..32  scheme        at most 12 bytes, [a-z][a-z0-9+.-]*
///      32..96  locator       at most 64 bytes, opaque, the connector's own
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    len: u64,
    fingerprint: u64,
    codec: u16,
    scheme_len: u8,
    locator_len: u8,
    scheme: [u8; Self::MAX_SCHEME],
    locator: [u8; Self::MAX_LOCATOR],
}

/// What the bytes of an object mean: the codec that wrote them and the fingerprint of the type they hold.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Format {
    /// Codec id: see [`codec`](crate::codec) for the assigned numbers; `0x8000` and above are the user's.
    pub codec: u16,
    /// Fingerprint of the type's schema; 0 means "unchecked".
    pub fingerprint: u64,
}

impl Format {
    /// Plain bytes of no declared type.
    pub const RAW: Self = Self { codec: 0, fingerprint: 0 };
}

impl Key {
    /// Longest scheme, in bytes.
    pub const MAX_SCHEME: usize = 12;
    /// Longest locator, in bytes.
    pub const MAX_LOCATOR: usize = 64;
    /// Longest binary form, in bytes: see [`Key::to_bytes`].
    pub const MAX_ENCODED: usize = 1 + 1 + Self::MAX_SCHEME + 2 + 8 + 10 + 1 + Self::MAX_LOCATOR + 4;
    /// The length of an object that is not known yet: its key was declared before the object was committed.
    pub const UNKNOWN_LEN: u64 = u64::MAX;

    /// Makes a key from a connector's locator.
    ///
    /// # Errors
    /// `Invalid` when scheme or locator break the bounds in the layout above, or the locator is empty.
    pub fn new(scheme: &str, locator: &[u8], len: u64, format: Format) -> Result<Self> {
        if !is_scheme(scheme) || scheme.len() > Self::MAX_SCHEME {
            return Err(invalid(format!("{scheme:?} is not a scheme (1 to {} of a-z 0-9 + . -)", Self::MAX_SCHEME)));
        }
        if locator.is_empty() || locator.len() > Self::MAX_LOCATOR {
            return Err(invalid(format!("locator of {} bytes, allowed are 1 to {}", locator.len(), Self::MAX_LOCATOR)));
        }
        let mut key = Self {
            len,
            fingerprint: format.fingerprint,
            codec: format.codec,
            scheme_len: scheme.len() as u8,
            locator_len: locator.len() as u8,
            scheme: [0; Self::MAX_SCHEME],
            locator: [0; Self::MAX_LOCATOR],
        };
        key.scheme[..scheme.len()].copy_from_slice(scheme.as_bytes());
        key.locator[..locator.len()].copy_from_slice(locator);
        Ok(key)
    }

    /// The scheme of the connector that made the key.
    pub fn scheme(&self) -> &str {
        // `new` admits ASCII only, so the fallback is never taken.
        std::str::from_utf8(&self.scheme[..self.scheme_len as usize]).unwrap_or("")
    }

    /// The connector's own name for the object; opaque to everybody else.
    #[inline]
    pub fn locator(&self) -> &[u8] {
        &self.locator[..self.locator_len as usize]
    }

    /// Length of the object in bytes, or [`Key::UNKNOWN_LEN`].
    #[expect(clippy::len_without_is_empty, reason = "a zero-length object still has a key")]
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is known: false only for keys that were declared ahead of their object.
    #[inline]
    pub fn is_len_known(&self) -> bool {
        self.len != Self::UNKNOWN_LEN
    }

    /// What the object's bytes mean.
    #[inline]
    pub fn format(&self) -> Format {
        Format { codec: self.codec, fingerprint: self.fingerprint }
    }

    /// A key of the same connector: `self` with another end of the locator, length and format.
    #[cfg(all(feature = "shm", not(any(loom, shuttle))))]
    #[inline]
    pub(crate) fn sibling<const N: usize>(&self, end: &[u8; N], len: u64, format: Format) -> Self {
        let mut key = *self;
        let at = usize::from(self.locator_len).saturating_sub(N);
        key.locator[at..at + N].copy_from_slice(end);
        (key.len, key.codec, key.fingerprint) = (len, format.codec, format.fingerprint);
        key
    }

    /// Whether the connector of `other` made this key too, as far as schemes tell.
    #[cfg(all(feature = "shm", not(any(loom, shuttle))))]
    #[inline]
    pub(crate) fn has_scheme_of(&self, other: &Self) -> bool {
        self.scheme == other.scheme && self.scheme_len == other.scheme_len
    }

    /// The same object under another format, for a codec that the caller vouches for.
    #[must_use]
    pub fn with_format(mut self, format: Format) -> Self {
        (self.codec, self.fingerprint) = (format.codec, format.fingerprint);
        self
    }

    /// Appends the binary form without scheme and checksum, for containers that carry both themselves.
    pub(crate) fn encode_body(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.codec.to_le_bytes());
        out.extend_from_slice(&self.fingerprint.to_le_bytes());
        // 0 stands for "unknown", so that the common short lengths stay one byte.
        put_varint(out, self.len.wrapping_add(1));
        out.push(self.locator_len);
        out.extend_from_slice(self.locator());
    }

    /// Reads what [`encode_body`](Self::encode_body) wrote.
    pub(crate) fn decode_body(scheme: &str, input: &mut Reader<'_>) -> Result<Self> {
        let codec = u16::from_le_bytes(input.array()?);
        let fingerprint = u64::from_le_bytes(input.array()?);
        let len = input.varint()?.wrapping_sub(1);
        let locator_len = input.byte()?;
        let locator = input.take(locator_len as usize)?;
        Self::new(scheme, locator, len, Format { codec, fingerprint })
    }

    /// The binary form, at most [`Key::MAX_ENCODED`] bytes: version, scheme, format, length, locator, CRC-32.
    ///
    /// # Cost
    /// One allocation.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::MAX_ENCODED);
        out.push(VERSION);
        out.push(self.scheme_len);
        out.extend_from_slice(self.scheme().as_bytes());
        self.encode_body(&mut out);
        seal(&mut out);
        out
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// `Invalid` on anything that [`Key::to_bytes`] cannot have written: truncated, bit-flipped, oversized, trailing bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > Self::MAX_ENCODED {
            return Err(invalid(format!("{} bytes, a key has at most {}", bytes.len(), Self::MAX_ENCODED)));
        }
        let mut input = Reader::new(unseal(bytes)?, "key");
        let version = input.byte()?;
        if version != VERSION {
            return Err(invalid(format!("key version {version}, this library reads {VERSION}")));
        }
        let scheme_len = input.byte()?;
        let scheme =
            std::str::from_utf8(input.take(scheme_len as usize)?).map_err(|_| invalid("scheme is not ASCII"))?;
        let key = Self::decode_body(scheme, &mut input)?;
        input.finish()?;
        Ok(key)
    }
}

impl Hash for Key {
    /// Hashes the locator alone: it is what makes a key unique.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.locator());
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.scheme(), URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({}:", self.scheme())?;
        for byte in self.locator() {
            write!(f, "{byte:02x}")?;
        }
        match self.is_len_known() {
            true => write!(f, ", {} B, codec {})", self.len, self.codec),
            false => write!(f, ", deferred, codec {})", self.codec),
        }
    }
}

impl FromStr for Key {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((scheme, body)) = text.split_once(':') else {
            return Err(invalid("a key reads scheme:BASE64URL"));
        };
        let key = Self::from_bytes(&decode_base64(body, Self::MAX_ENCODED)?)?;
        if key.scheme() != scheme {
            return Err(invalid(format!("prefix {scheme:?} and content {:?} disagree", key.scheme())));
        }
        Ok(key)
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.to_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sample = || Self::new("sample", &[0], 0, Format::RAW);
        deserialize_text_or_bytes(deserializer, "a proxystore key", str::parse, Self::from_bytes, sample)
    }
}

/// Runs `f`, in which keys and tokens deserialise from anything: a type that holds one can be traced to its end, although
/// the tracer knows no valid key.
pub(crate) fn with_samples<T>(f: impl FnOnce() -> T) -> T {
    struct Restore(bool);

    impl Drop for Restore {
        fn drop(&mut self) {
            SAMPLES.set(self.0);
        }
    }

    let _restore = Restore(SAMPLES.replace(true));
    f()
}

thread_local! {
    static SAMPLES: Cell<bool> = const { Cell::new(false) };
}

/// Deserialises a type with a text form in human-readable formats and a byte form in all others.
pub(crate) fn deserialize_text_or_bytes<'de, D, T>(
    deserializer: D,
    expecting: &'static str,
    text: fn(&str) -> Result<T>,
    bytes: fn(&[u8]) -> Result<T>,
    sample: fn() -> Result<T>,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
{
    struct Visitor<T> {
        expecting: &'static str,
        text: fn(&str) -> Result<T>,
        bytes: fn(&[u8]) -> Result<T>,
        sample: fn() -> Result<T>,
    }

    impl<'de, T> de::Visitor<'de> for Visitor<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.expecting)
        }

        fn visit_str<E: de::Error>(self, value: &str) -> Result<T, E> {
            (self.text)(value).map_err(E::custom)
        }

        fn visit_bytes<E: de::Error>(self, value: &[u8]) -> Result<T, E> {
            let value = if SAMPLES.get() { (self.sample)() } else { (self.bytes)(value) };
            value.map_err(E::custom)
        }

        fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<T, A::Error> {
            // Formats without a byte type hand bytes over as a sequence. The size hint is not trusted.
            let mut collected = Vec::new();
            while let Some(byte) = seq.next_element::<u8>()? {
                collected.push(byte);
            }
            (self.bytes)(&collected).map_err(de::Error::custom)
        }
    }

    let visitor = Visitor { expecting, text, bytes, sample };
    if deserializer.is_human_readable() {
        deserializer.deserialize_str(visitor)
    } else {
        deserializer.deserialize_bytes(visitor)
    }
}

/// Decodes URL-safe base64 after bounding the decoded length by `max` bytes.
pub(crate) fn decode_base64(text: &str, max: usize) -> Result<Vec<u8>> {
    if text.len() > max.div_ceil(3) * 4 {
        return Err(invalid(format!("{} characters, more than any valid form has", text.len())));
    }
    URL_SAFE_NO_PAD.decode(text).map_err(|error| invalid("not URL-safe base64").with_source(error))
}

/// Appends the CRC-32 of all bytes so far.
pub(crate) fn seal(out: &mut Vec<u8>) {
    let crc = crc32fast::hash(out);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// Checks and strips what [`seal`] appended.
pub(crate) fn unseal(bytes: &[u8]) -> Result<&[u8]> {
    let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
        return Err(invalid(format!("{} bytes are too few", bytes.len())));
    };
    if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
        return Err(invalid("checksum differs: the text was truncated or damaged on its way"));
    }
    Ok(body)
}

/// Appends `value` as LEB128.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads a byte string front to back; every failure is `Invalid` and says where.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.rest.split_at_checked(n) else {
            return Err(invalid(format!("{} ends {} bytes early", self.what, n - self.rest.len())));
        };
        self.rest = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(crate) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// Reads a LEB128 number; refuses the overlong forms that [`put_varint`] never writes.
    pub(crate) fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if (bits << shift) >> shift != bits || (byte == 0 && shift > 0) {
                return Err(invalid(format!("{} holds a malformed number", self.what)));
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(invalid(format!("{} holds a malformed number", self.what)))
    }

    /// Bytes that were not read.
    #[cfg(all(feature = "tcp", not(any(loom, shuttle))))]
    pub(crate) fn left(&self) -> usize {
        self.rest.len()
    }

    /// The rest must be empty.
    pub(crate) fn finish(self) -> Result<()> {
        match self.rest.len() {
            0 => Ok(()),
            n => Err(invalid(format!("{} is followed by {n} bytes that do not belong to it", self.what))),
        }
    }
}

/// Fills `bytes` from the kernel's random source: for names that nobody may guess.
#[cfg(any(feature = "memory", feature = "file", feature = "shm"))]
pub(crate) fn fill_random(bytes: &mut [u8]) {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::rand::getrandom(&mut *rest, rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => rest = &mut rest[n..],
            Err(rustix::io::Errno::INTR) => {}
            // No such call fails on Linux 3.17 and later with these arguments.
            Err(error) => panic!("getrandom: {error}"),
        }
    }
}

/// A number that nobody may guess.
#[cfg(any(feature = "memory", feature = "shm"))]
pub(crate) fn random_number() -> u64 {
    let mut bytes = [0; 8];
    fill_random(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Whether `scheme` has the letters of one, whatever its length.
pub(crate) fn is_scheme(scheme: &str) -> bool {
    matches!(scheme.as_bytes(), [b'a'..=b'z', rest @ ..]
        if rest.iter().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'+' | b'.' | b'-')))
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "parse", context)
}

/// Version of the binary form.
const VERSION: u8 = 1;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Key {
        Key::new("file", &[7; 16], 1 << 33, Format { codec: 1, fingerprint: 0xdead_beef_0123_4567 }).unwrap()
    }

    #[test]
    fn layout_and_forms() {
        assert_eq!(size_of::<Key>(), 96);
        let key = sample();
        assert!(key.to_bytes().len() <= Key::MAX_ENCODED);
        let text = key.to_string();
        assert_eq!(text.parse::<Key>().unwrap(), key);
        assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_.+".contains(&b)), "{text}");
        assert_eq!(serde_json::from_str::<Key>(&serde_json::to_string(&key).unwrap()).unwrap(), key);
        let binary = postcard::to_allocvec(&key).unwrap();
        assert_eq!(postcard::from_bytes::<Key>(&binary).unwrap(), key);
    }

    #[test]
    fn text_form_is_stable() {
        // Changing this line changes the key format: bump VERSION and write it in the CHANGELOG.
        let key = Key::new("memory", b"abc", 5, Format { codec: 2, fingerprint: 1 }).unwrap();
        assert_eq!(key.to_string(), "memory:AQZtZW1vcnkCAAEAAAAAAAAABgNhYmOqfVKJ");
    }

    #[test]
    fn bounds() {
        for (scheme, locator) in [
            ("", &b"x"[..]),
            ("Memory", b"x"),
            ("0day", b"x"),
            ("much-too-long-a-scheme", b"x"),
            ("ok", b""),
            ("ok", &[0; 65]),
        ] {
            assert_eq!(Key::new(scheme, locator, 0, Format::RAW).unwrap_err().kind(), ErrorKind::Invalid, "{scheme}");
        }
        let largest = Key::new("abcdefghijkl", &[0xff; 64], Key::UNKNOWN_LEN - 1, Format::RAW).unwrap();
        assert_eq!(largest.to_bytes().len(), Key::MAX_ENCODED);
        let deferred = Key::new("memory", b"x", Key::UNKNOWN_LEN, Format::RAW).unwrap();
        assert!(!Key::from_bytes(&deferred.to_bytes()).unwrap().is_len_known());
    }

    #[test]
    fn every_truncation_and_bit_flip_is_refused() {
        let bytes = sample().to_bytes();
        for n in 0..bytes.len() {
            assert_eq!(Key::from_bytes(&bytes[..n]).unwrap_err().kind(), ErrorKind::Invalid);
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Key::from_bytes(&flipped).unwrap_err().kind(), ErrorKind::Invalid, "bit {bit}");
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(Key::from_bytes(&longer).is_err());
    }

    proptest! {
        #[test]
        fn round_trip(scheme in "[a-z][a-z0-9+.-]{0,11}", locator in prop::collection::vec(any::<u8>(), 1..=64),
                      len in any::<u64>(), codec in any::<u16>(), fingerprint in any::<u64>()) {
            let key = Key::new(&scheme, &locator, len, Format { codec, fingerprint }).unwrap();
            prop_assert_eq!(Key::from_bytes(&key.to_bytes()).unwrap(), key);
            prop_assert_eq!(key.to_string().parse::<Key>().unwrap(), key);
        }

        #[test]
        fn varint_round_trip(value in any::<u64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(Reader::new(&out, "x").varint().unwrap(), value);
        }

        #[test]
        fn sealed_garbage_decodes_or_errs(mut bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            seal(&mut bytes);
            if let Ok(key) = Key::from_bytes(&bytes) {
                // Strict: whatever decodes is exactly what would be written.
                prop_assert_eq!(key.to_bytes(), bytes);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,200}") {
            let _ = text.parse::<Key>();
        }
    }
}
