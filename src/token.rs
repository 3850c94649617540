//! `Token`: a proxy on its way: what travels instead of the data.

mod buffer;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::ConnectorConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key, Reader, decode_base64, deserialize_text_or_bytes, put_varint, seal, unseal};

pub use buffer::TokenBuffer;

/// Where a proxy's object comes from, independent of its type: printable, serialisable, small.
///
/// Two forms: bytes ([`to_bytes`](Self::to_bytes)) and URL-safe text (`Display`, `FromStr`). For an object of a store they
/// take 33 bytes and 48 characters more than the store's URL needs, for connectors with 16-byte locators. Reading a token
/// opens nothing and resolves nothing.
///
/// ```text
/// byte 0  version, 1
///      1  kind: 0 get, 1 take, 2 wait for a deferred key, 3 factory of the user's
/// kinds 0 to 2: length of the URL (varint), URL, codec (2), fingerprint (8), object length + 1 (varint),
///               length of the locator (1), locator
/// kind 3:       length of the name (1), name, length of the payload (varint), payload
/// last 4  CRC-32 of everything before
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Token {
    /// An object of a store.
    #[non_exhaustive]
    Object {
        /// Canonical URL of the store.
        url: Arc<str>,
        /// The object.
        key: Key,
        /// How it is read.
        access: Access,
    },
    /// A factory of the user's own, by the name under which the consumer registered it.
    #[non_exhaustive]
    Factory {
        /// Registered name.
        name: Box<str>,
        /// The factory's state, in postcard.
        payload: Box<[u8]>,
    },
}

/// How a proxy reads its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Access {
    /// Read, and leave in place.
    Get,
    /// Read and remove in one step; one reader wins.
    Take,
    /// Wait until the deferred key is committed, then read.
    WhenCommitted,
}

impl Token {
    /// Longest binary form, in bytes.
    pub const MAX_BYTES: usize = 64 << 10;

    /// The object's key, if the token is for an object of a store.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Object { key, .. } => Some(key),
            Self::Factory { .. } => None,
        }
    }

    /// The binary form.
    ///
    /// # Cost
    /// One allocation.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        out.push(VERSION);
        match self {
            Self::Object { url, key, access } => {
                out.push(*access as u8);
                put_varint(&mut out, url.len() as u64);
                out.extend_from_slice(url.as_bytes());
                key.encode_body(&mut out);
            }
            Self::Factory { name, payload } => {
                out.push(FACTORY);
                out.push(name.len() as u8);
                out.extend_from_slice(name.as_bytes());
                put_varint(&mut out, payload.len() as u64);
                out.extend_from_slice(payload);
            }
        }
        seal(&mut out);
        out
    }

    /// Reads the binary form.
    ///
    /// # Errors
    /// `Invalid` on anything that [`to_bytes`](Self::to_bytes) cannot have written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(invalid(format!("{} bytes, a token has at most {}", bytes.len(), Self::MAX_BYTES)));
        }
        let mut input = Reader::new(unseal(bytes)?, "token");
        let version = input.byte()?;
        if version != VERSION {
            return Err(invalid(format!("token version {version}, this library reads {VERSION}")));
        }
        let token = match input.byte()? {
            FACTORY => {
                let len = input.byte()?;
                let name = text(input.take(len as usize)?)?.into();
                let len = input.varint()?;
                let payload = input.take(usize::try_from(len).unwrap_or(usize::MAX))?.into();
                Self::Factory { name, payload }
            }
            kind => {
                let access = match kind {
                    0 => Access::Get,
                    1 => Access::Take,
                    2 => Access::WhenCommitted,
                    _ => return Err(invalid(format!("token of unknown kind {kind}"))),
                };
                let len = usize::try_from(input.varint()?).unwrap_or(usize::MAX);
                if len > ConnectorConfig::MAX_URL {
                    return Err(invalid(format!("a store URL of {len} bytes")));
                }
                let url = text(input.take(len)?)?;
                let Some((scheme, _)) = url.split_once(':') else { return Err(invalid("no store URL in it")) };
                let key = Key::decode_body(scheme, &mut input)?;
                Self::Object { url: url.into(), key, access }
            }
        };
        input.finish()?;
        Ok(token)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

impl FromStr for Token {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some(body) = text.trim().strip_prefix(PREFIX) else {
            return Err(invalid(format!("a token begins with {PREFIX}")));
        };
        Self::from_bytes(&decode_base64(body, Self::MAX_BYTES)?)
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            serializer.serialize_bytes(&self.to_bytes())
        }
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let sample = || {
            let key = Key::new("sample", &[0], 0, Format::RAW)?;
            Ok(Self::Object { url: "sample://".into(), key, access: Access::Get })
        };
        deserialize_text_or_bytes(deserializer, "a proxystore token", str::parse, Self::from_bytes, sample)
    }
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|error| invalid("text in it is not UTF-8").with_source(error))
}

fn invalid(context: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::Invalid, "parse", context)
}

/// Begins the text form.
const PREFIX: &str = "px1.";

/// Version of the binary form.
const VERSION: u8 = 1;

/// Kind of a factory's token; the others are `Access`.
const FACTORY: u8 = 3;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(access: Access) -> Token {
        let key = Key::new("file", &[7; 16], 1 << 30, Format { codec: 2, fingerprint: u64::MAX }).unwrap();
        Token::Object { url: "file:///scratch/project/user/run-2026-11-21".into(), key, access }
    }

    #[test]
    fn forms_round_trip_and_are_small() {
        for access in [Access::Get, Access::Take, Access::WhenCommitted] {
            let token = sample(access);
            assert_eq!(Token::from_bytes(&token.to_bytes()).unwrap(), token);
            assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
            assert_eq!(serde_json::from_str::<Token>(&serde_json::to_string(&token).unwrap()).unwrap(), token);
            assert_eq!(postcard::from_bytes::<Token>(&postcard::to_allocvec(&token).unwrap()).unwrap(), token);
            assert!(token.to_bytes().len() <= 100, "{}", token.to_bytes().len());
            assert!(token.to_string().len() <= 150, "{}", token.to_string().len());
            assert!(token.to_string().bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
        }
    }

    #[test]
    fn text_form_is_stable() {
        // Changing these lines changes the token format: bump VERSION and write it in the CHANGELOG.
        let key = Key::new("memory", b"abc", 5, Format { codec: 2, fingerprint: 1 }).unwrap();
        let token = Token::Object { url: "memory://".into(), key, access: Access::Get };
        assert_eq!(token.to_string(), "px1.AQAJbWVtb3J5Oi8vAgABAAAAAAAAAAYDYWJjdNfgjQ");
        let token = Token::Factory { name: "n".into(), payload: [1, 2].into() };
        assert_eq!(token.to_string(), "px1.AQMBbgIBAueLh68");
    }

    #[test]
    fn every_truncation_and_bit_flip_is_refused() {
        let bytes = sample(Access::Get).to_bytes();
        for n in 0..bytes.len() {
            assert_eq!(Token::from_bytes(&bytes[..n]).unwrap_err().kind(), ErrorKind::Invalid);
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Token::from_bytes(&flipped).unwrap_err().kind(), ErrorKind::Invalid, "bit {bit}");
        }
    }

    #[test]
    fn oversized_is_refused_before_it_is_decoded() {
        let long = format!("{PREFIX}{}", "A".repeat(10 << 20));
        assert_eq!(long.parse::<Token>().unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Token::from_bytes(&vec![0; Token::MAX_BYTES + 1]).unwrap_err().kind(), ErrorKind::Invalid);
        let mut lying = vec![VERSION, 0];
        put_varint(&mut lying, u64::MAX);
        seal(&mut lying);
        assert_eq!(Token::from_bytes(&lying).unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn a_valid_checksum_is_not_enough() {
        let refused = |mut bytes: Vec<u8>| {
            seal(&mut bytes);
            Token::from_bytes(&bytes).unwrap_err()
        };
        let body = |token: &Token| unseal(&token.to_bytes()).unwrap().to_vec();
        let object = body(&sample(Access::Get));
        for token in [sample(Access::Get), Token::Factory { name: "n".into(), payload: [1, 2].into() }] {
            let longer = [body(&token), vec![0]].concat();
            assert_eq!(refused(longer).kind(), ErrorKind::Invalid, "trailing byte");
        }
        let later = [&[VERSION + 1], &object[1..]].concat();
        assert!(refused(later).to_string().contains("version"));
        assert!(refused([&[VERSION, 9], &object[2..]].concat()).to_string().contains("kind"));
        let Token::Object { key, .. } = sample(Access::Get) else { unreachable!() };
        let url = format!("file://{}", "x".repeat(ConnectorConfig::MAX_URL));
        let long = Token::Object { url: url.into(), key, access: Access::Get };
        assert!(refused(body(&long)).to_string().contains("URL"));
        let heavy = Token::Factory { name: "n".into(), payload: vec![0; Token::MAX_BYTES].into() };
        assert!(refused(body(&heavy)).to_string().contains("at most"));
    }

    proptest! {
        #[test]
        fn sealed_garbage_decodes_or_errs(mut bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0u8..5) {
            bytes.splice(0..0, [VERSION, kind]);
            seal(&mut bytes);
            if let Ok(token) = Token::from_bytes(&bytes) {
                prop_assert_eq!(token.to_bytes(), bytes);
            }
        }

        #[test]
        fn arbitrary_text_never_panics(text in "(px1\\.)?.{0,200}") {
            let _ = text.parse::<Token>();
        }
    }
}
