//! Plain data: slices, text, bytes, and vectors of numbers, moved at memcpy speed and viewed in place.

use std::any::{Any, TypeId, type_name};
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;

use bytemuck::Pod;
use bytes::Bytes;

use super::encoder::Encoder;
use super::object::{Object, corrupt};
use super::{fingerprint, id};
use crate::error::{Error, ErrorKind, Result};
use crate::key::Format;
use crate::region::Region;

/// A slice of plain data, in place in the memory of its region.
///
/// # Cost
/// Dereferencing costs what it costs for a `Box<[T]>`. Cloning adds a reference to the region.
#[derive(Clone)]
pub struct Slice<T> {
    first: NonNull<T>,
    len: usize,
    region: Region,
}

impl<T: Pod> Slice<T> {
    /// Views the bytes of `region` as elements.
    ///
    /// # Errors
    /// `Corrupt` when the length is no multiple of the element's size, or the memory is not aligned for it.
    pub fn new(region: Region) -> Result<Self> {
        if region.is_empty() {
            // An empty region may lie anywhere.
            return Ok(Self { first: NonNull::dangling(), len: 0, region });
        }
        let elements: &[T] = bytemuck::try_cast_slice(&region)
            .map_err(|error| corrupt::<[T]>(format!("{} bytes are no such slice: {error}", region.len())))?;
        let (first, len) = (NonNull::from(elements).cast(), elements.len());
        Ok(Self { first, len, region })
    }
}

impl<T> Slice<T> {
    /// The memory behind.
    pub fn region(&self) -> &Region {
        &self.region
    }
}

impl<T> Deref for Slice<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: pointer and length come from a checked cast of the region's bytes in `new`, or the length is 0 and the
        // pointer aligned. The region keeps the bytes alive and unchanged while `self` lives, and moving a region does not
        // move its bytes.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

// SAFETY: a `Slice` only gives shared access to immutable bytes read as `T`, so it is as shareable as `&[T]`; the region
// is `Send + Sync` itself.
unsafe impl<T: Sync> Send for Slice<T> {}
// SAFETY: see `Send`.
unsafe impl<T: Sync> Sync for Slice<T> {}

impl<T: fmt::Debug> fmt::Debug for Slice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Text, in place in the memory of its region.
#[derive(Clone)]
pub struct Text(Region);

impl Text {
    /// Views the bytes of `region` as text.
    ///
    /// # Errors
    /// `Corrupt` when they are not UTF-8.
    pub fn new(region: Region) -> Result<Self> {
        match std::str::from_utf8(&region) {
            Ok(_) => Ok(Self(region)),
            Err(error) => Err(corrupt::<str>(error)),
        }
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        // SAFETY: `new` checked these bytes, and a region never changes.
        unsafe { std::str::from_utf8_unchecked(&self.0) }
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Pod + Send + Sync> Object for [T] {
    type Target = [T];
    type View = Slice<T>;

    fn format() -> Format {
        format_of_elements::<T>()
    }

    fn in_place(&self) -> Option<&[u8]> {
        // How many elements of no size there were cannot be read from their bytes: `encode` refuses them.
        if size_of::<T>() == 0 { None } else { Some(bytemuck::cast_slice(self)) }
    }

    fn encode(&self, out: &mut Encoder<'_>) -> Result<()> {
        if size_of::<T>() == 0 {
            let context = format!("elements of `{}` have no size", type_name::<Self>());
            return Err(Error::new(ErrorKind::Codec, "put", context));
        }
        out.write(bytemuck::cast_slice(self))
    }

    fn view(region: Region) -> Result<Slice<T>> {
        Slice::new(region)
    }
}

impl Object for str {
    type Target = str;
    type View = Text;

    fn format() -> Format {
        TEXT
    }

    fn in_place(&self) -> Option<&[u8]> {
        Some(self.as_bytes())
    }

    fn encode(&self, out: &mut Encoder<'_>) -> Result<()> {
        out.write(self.as_bytes())
    }

    fn view(region: Region) -> Result<Text> {
        Text::new(region)
    }
}

/// The serde types that are plain data underneath, with their elements.
macro_rules! for_each_number {
    ($visit:ident) => {
        $visit!(u8, i8, u16, i16, u32, i32, u64, i64, u128, i128, f32, f64)
    };
}

/// The plain format of `T`, if `T` is one of the owned types that have it.
pub(super) fn format_of_owned<T: 'static>() -> Option<Format> {
    let this = TypeId::of::<T>();
    macro_rules! number {
        ($($number:ty),*) => {$(
            if this == TypeId::of::<Vec<$number>>() {
                return Some(format_of_elements::<$number>());
            }
        )*};
    }
    for_each_number!(number);
    if this == TypeId::of::<Bytes>() {
        return Some(format_of_elements::<u8>());
    }
    (this == TypeId::of::<String>()).then_some(TEXT)
}

/// The bytes of `value`, if its type is one of those.
pub(super) fn bytes_of_owned<T: 'static>(value: &T) -> Option<&[u8]> {
    let value: &dyn Any = value;
    macro_rules! number {
        ($($number:ty),*) => {$(
            if let Some(numbers) = value.downcast_ref::<Vec<$number>>() {
                return Some(bytemuck::cast_slice(numbers));
            }
        )*};
    }
    for_each_number!(number);
    if let Some(bytes) = value.downcast_ref::<Bytes>() {
        return Some(bytes);
    }
    value.downcast_ref::<String>().map(String::as_bytes)
}

/// A `T` made of plain bytes, if its type is one of those that own their elements.
pub(super) fn owned_from_bytes<T: 'static>(region: &Region) -> Option<Result<T>> {
    let this = TypeId::of::<T>();
    macro_rules! number {
        ($($number:ty),*) => {$(
            if this == TypeId::of::<Vec<$number>>() {
                return own(Slice::<$number>::new(region.clone()).map(|slice| slice.to_vec()));
            }
        )*};
    }
    for_each_number!(number);
    match this == TypeId::of::<String>() {
        true => own(Text::new(region.clone()).map(|text| str::to_owned(&text))),
        false => None,
    }
}

/// Converts `Result<U>` to `Result<T>` where both are the same type, as the caller has found out.
fn own<U: 'static, T: 'static>(value: Result<U>) -> Option<Result<T>> {
    let mut value = Some(value);
    let same = (&mut value as &mut dyn Any).downcast_mut::<Option<Result<T>>>().and_then(Option::take);
    debug_assert!(same.is_some(), "{} is no {}", type_name::<U>(), type_name::<T>());
    same
}

fn format_of_elements<T: 'static>() -> Format {
    Format { codec: id::PLAIN, fingerprint: fingerprint::of_plain::<T>() }
}

const TEXT: Format = Format { codec: id::TEXT, fingerprint: fingerprint::of_name("str") };
