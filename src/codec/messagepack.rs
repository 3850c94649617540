//! MessagePack, for readers in other languages.

use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::encoder::Encoder;
use super::object::{Object, corrupt};
use super::{fingerprint, id};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Format;
use crate::region::Region;

/// A serde value stored as MessagePack (structs as maps by field name), which Python, JavaScript and C read as well.
///
/// # Cost
/// Encoding gathers in a buffer and copies once; decoding copies. A tenth of postcard's speed or less, and byte
/// vectors grow by half unless they are `bytes::Bytes` or `serde_bytes`.
#[derive(Debug, PartialEq)]
pub struct MessagePack<T>(pub Arc<T>);

impl<T> MessagePack<T> {
    /// Wraps a value to be put.
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> Clone for MessagePack<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for MessagePack<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Object for MessagePack<T> {
    type Target = T;
    type View = Self;

    fn format() -> Format {
        Format { codec: id::MESSAGEPACK, fingerprint: fingerprint::of_serde::<T>() }
    }

    fn encode(&self, out: &mut Encoder<'_>) -> Result<()> {
        let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
        self.0.serialize(&mut serializer).map_err(|error| {
            Error::new(ErrorKind::Codec, "put", "MessagePack cannot represent the value").with_source(error)
        })
    }

    fn view(region: Region) -> Result<Self> {
        let mut rest = &region[..];
        let value = rmp_serde::from_read(&mut rest)
            .map_err(|error| corrupt::<T>("not MessagePack of this type").with_source(error))?;
        match rest.len() {
            0 => Ok(Self::new(value)),
            n => Err(corrupt::<T>(format!("{n} bytes follow the value"))),
        }
    }
}
