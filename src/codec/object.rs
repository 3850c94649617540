//! `Object`: what can be put into a store, and how it is seen when it comes out.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::custom::{self, Codec, Codecs};
use super::encoder::Encoder;
use super::{fingerprint, id, plain};
use crate::connector::{Connector, ConnectorExt, PutOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Region, RegionMut};

/// A type whose values can be put into a store.
///
/// Implemented for every serde type, for `[T]` of plain data, `str`, and the wrappers of this module; see the table in
/// [`codec`](crate::codec). Implement it for a type of yours that is *not* a serde type to choose its representation;
/// a serde type gets another one through a wrapper or a [`Codec`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be put into a store",
    note = "derive serde::Serialize and serde::Deserialize for it (it must be Send + Sync + 'static and own its data),",
    note = "or bytemuck::Pod for the elements of a slice"
)]
pub trait Object: 'static {
    /// What a proxy of this type dereferences to.
    type Target: ?Sized;

    /// An owned, shared, cheaply cloned handle to an object that was read.
    type View: Deref<Target = Self::Target> + Clone + Send + Sync + 'static;

    /// Codec and type fingerprint, the same in every process that means the same type.
    fn format() -> Format;

    /// The encoded bytes, where the value already holds them as they are.
    fn in_place(&self) -> Option<&[u8]> {
        None
    }

    /// Writes the encoded bytes; called when [`in_place`](Self::in_place) has none.
    ///
    /// # Errors
    /// `Codec` when the value cannot be represented, or the encoder's own.
    fn encode(&self, out: &mut Encoder<'_>) -> Result<()>;

    /// Makes a view of encoded bytes, which may come from anywhere: must not panic on any of them.
    ///
    /// # Errors
    /// `Codec` or `Corrupt` when the bytes are no such object.
    fn view(region: Region) -> Result<Self::View>;
}

impl<T: Serialize + DeserializeOwned + Send + Sync + 'static> Object for T {
    type Target = T;
    type View = Decoded<T>;

    fn format() -> Format {
        plain::format_of_owned::<T>()
            .unwrap_or_else(|| Format { codec: id::POSTCARD, fingerprint: fingerprint::of_serde::<T>() })
    }

    fn in_place(&self) -> Option<&[u8]> {
        plain::bytes_of_owned(self)
    }

    fn encode(&self, out: &mut Encoder<'_>) -> Result<()> {
        out.write_postcard(self)
    }

    fn view(region: Region) -> Result<Self::View> {
        if TypeId::of::<T>() == TypeId::of::<Bytes>() {
            // The bytes themselves; `Any` is how a generic function says "T is Bytes here".
            let mut shared = Some(region.to_bytes());
            if let Some(bytes) = (&mut shared as &mut dyn Any).downcast_mut::<Option<T>>().and_then(Option::take) {
                return Ok(Decoded::new(bytes));
            }
        }
        if let Some(value) = plain::owned_from_bytes::<T>(&region) {
            return value.map(Decoded::new);
        }
        match postcard::take_from_bytes::<T>(&region) {
            Ok((value, [])) => Ok(Decoded::new(value)),
            Ok((_, rest)) => Err(corrupt::<T>(format!("{} bytes follow the value", rest.len()))),
            Err(error) => Err(corrupt::<T>("not a value of this type").with_source(error)),
        }
    }
}

/// An object that was decoded once and is shared since.
///
/// # Cost
/// One pointer; cloning adds a reference.
pub struct Decoded<T>(Arc<T>);

impl<T> Decoded<T> {
    /// Shares `value`.
    pub fn new(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// The value itself, if this is the last handle to it.
    ///
    /// # Errors
    /// Gives the handle back otherwise.
    pub fn try_unwrap(self) -> Result<T, Self> {
        Arc::try_unwrap(self.0).map_err(Self)
    }
}

impl<T> Clone for Decoded<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Decoded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: fmt::Debug> fmt::Debug for Decoded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Stores `value` by `codec`, or by its own.
///
/// # Errors
/// `Codec` when the codec fails or panics; nothing stays behind then.
pub(crate) fn encode<T: Object + ?Sized>(
    connector: &dyn Connector,
    value: &T,
    codec: Option<&dyn Codec<T>>,
    options: &PutOptions,
) -> Pending<Key> {
    let encoded = catch_unwind(AssertUnwindSafe(|| {
        let Some(codec) = codec else {
            if let Some(bytes) = value.in_place() {
                return Ok(connector.put_with(bytes, T::format(), options));
            }
            let mut out = Encoder::new(connector);
            value.encode(&mut out)?;
            return Ok(out.finish(T::format(), options));
        };
        let mut out = Encoder::new(connector);
        codec.encode(value, &mut out)?;
        Ok(out.finish(Format { codec: codec.id(), ..T::format() }, options))
    }));
    match encoded {
        Ok(Ok(pending)) => pending,
        Ok(Err(error)) => Pending::ready(Err(error)),
        Err(panic) => Pending::ready(Err(panicked::<T>("put", &*panic))),
    }
}

/// Encodes `value` into memory of the connector, to be committed later.
///
/// # Errors
/// As [`encode`].
pub(crate) fn encode_region<T: Object + ?Sized>(
    connector: &dyn Connector,
    value: &T,
    codec: Option<&dyn Codec<T>>,
) -> Result<(RegionMut, Format)> {
    catch_unwind(AssertUnwindSafe(|| {
        let mut out = Encoder::new(connector);
        match (codec, value.in_place()) {
            (Some(codec), _) => codec.encode(value, &mut out)?,
            (None, Some(bytes)) => {
                out.reserve(bytes.len())?;
                out.write(bytes)?;
            }
            (None, None) => value.encode(&mut out)?,
        }
        let own = T::format();
        Ok((out.finish_region()?, Format { codec: codec.map_or(own.codec, Codec::id), ..own }))
    }))
    .unwrap_or_else(|panic| Err(panicked::<T>("put", &*panic)))
}

/// Refuses a format that no codec of `T` reads.
///
/// # Errors
/// `TypeMismatch`, or `Codec` when the codec is a custom one that nobody registered.
pub(crate) fn check_format<T: Object + ?Sized>(format: Format, codecs: &Codecs) -> Result<()> {
    if format.codec >= id::FIRST_CUSTOM && codecs.find::<T>(format.codec).is_none() {
        return Err(no_codec::<T>(format));
    }
    let own = T::format();
    let expected = if format.codec >= id::FIRST_CUSTOM { Format { codec: format.codec, ..own } } else { own };
    matches::<T>(format, expected)
}

/// Refuses a format that the codec of that id does not read.
///
/// # Errors
/// `TypeMismatch`, or `Config` when the id is not the user's to give.
pub(crate) fn check_codec<T: Object + ?Sized>(format: Format, codec: u16) -> Result<()> {
    custom::check_id(codec)?;
    matches::<T>(format, Format { codec, ..T::format() })
}

fn matches<T: Object + ?Sized>(format: Format, expected: Format) -> Result<()> {
    let unchecked = format.fingerprint == 0 && format.codec == expected.codec;
    let raw = format == Format::RAW && expected == <[u8]>::format();
    if format == expected || unchecked || raw {
        return Ok(());
    }
    let context = format!(
        "the object was put as codec {} fingerprint {:016x}, `{}` is codec {} fingerprint {:016x}",
        format.codec,
        format.fingerprint,
        type_name::<T>(),
        expected.codec,
        expected.fingerprint,
    );
    Err(Error::new(ErrorKind::TypeMismatch, "get", context))
}

/// Makes a view of bytes of `format`, by `codec` or the one that the format names.
///
/// # Errors
/// `TypeMismatch` before anything is interpreted; `Codec` and `Corrupt` after.
pub(crate) fn decode<T: Object + ?Sized>(
    format: Format,
    region: Region,
    codec: Option<&dyn Codec<T>>,
    codecs: &Codecs,
) -> Result<T::View> {
    let registered = match codec {
        None if format.codec >= id::FIRST_CUSTOM => {
            Some(codecs.find::<T>(format.codec).ok_or_else(|| no_codec::<T>(format))?)
        }
        _ => None,
    };
    let codec = codec.or(registered.as_deref());
    let own = T::format();
    matches::<T>(format, Format { codec: codec.map_or(own.codec, Codec::id), ..own })?;
    catch_unwind(AssertUnwindSafe(|| match codec {
        Some(codec) => codec.decode(region),
        None => T::view(region),
    }))
    .unwrap_or_else(|panic| Err(panicked::<T>("get", &*panic)))
}

/// The error for bytes that are not a `T`.
pub(super) fn corrupt<T: ?Sized>(why: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Corrupt, "get", format!("`{}`: {why}", type_name::<T>()))
}

fn no_codec<T: ?Sized>(format: Format) -> Error {
    let context = format!(
        "`{}` was put with custom codec {:#06x}, which this process has not registered; call codec::register, \
         StoreBuilder::codec or Store::get_with",
        type_name::<T>(),
        format.codec,
    );
    Error::new(ErrorKind::Codec, "get", context)
}

fn panicked<T: ?Sized>(op: &'static str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    Error::new(ErrorKind::Codec, op, format!("the codec of `{}` panicked: {text}", type_name::<T>()))
}
