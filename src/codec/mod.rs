//! How objects become bytes and bytes become views: one trait, and the codecs behind it.
//!
//! The type decides. Nobody passes serializers around, and a consumer that names another type is refused before a byte
//! is interpreted:
//!
//! | type | codec (id) | put | get | view |
//! |---|---|---|---|---|
//! | `[T]` of plain data ([`bytemuck::Pod`]) | plain (2) | one copy, memcpy speed | no copy | `&[T]` in place |
//! | `[u8]` | plain (2) | one copy | no copy | `&[u8]` in place |
//! | `str` | text (3) | one copy | no copy, UTF-8 checked once | `&str` in place |
//! | [`bytes::Bytes`] | plain (2) | one copy | no copy | `&Bytes` sharing the region |
//! | `Vec` of a primitive number | plain (2) | one copy | one copy | `&Vec` |
//! | `String` | text (3) | one copy | one copy | `&String` |
//! | any other serde type | postcard (1) | encoded once, straight into place | decoded once | `&T` |
//! | [`MessagePack<T>`](MessagePack) (feature `msgpack`) | MessagePack (5) | encoded | decoded once | `&T` |
//! | [`Archive<T>`](Archive) (feature `rkyv`) | rkyv (4) | encoded, one copy | validated once, no copy | `&T::Archived` in place |
//! | any, by a [`Codec`] of yours | yours (0x8000 up) | yours | yours | the type's |
//!
//! The rows of plain data interoperate: what was put as `Vec<f64>` can be viewed in place as `[f64]`, and text likewise.
//! `cargo bench --bench codec` prints the throughput of each beside `memcpy`; figures of one machine stand in
//! ARCHITECTURE.md.

mod custom;
mod encoder;
mod fingerprint;
mod object;
#[expect(unsafe_code, reason = "views keep pointers into regions that they own")]
mod plain;

#[cfg(feature = "rkyv")]
#[expect(unsafe_code, reason = "views keep pointers into regions that they own")]
mod archive;
#[cfg(feature = "msgpack")]
mod messagepack;

pub use custom::{Codec, from_fns, register};
pub use encoder::Encoder;
pub use object::{Decoded, Object};
pub use plain::{Slice, Text};

#[cfg(feature = "rkyv")]
pub use archive::{Archive, ArchiveView};
#[cfg(feature = "msgpack")]
pub use messagepack::MessagePack;

pub(crate) use custom::{Codecs, check_id};
pub(crate) use object::{check_codec, check_format, decode, encode, encode_region};

/// Codec ids. Numbers are part of the key format and never change; `0x8000` and above are free for users.
pub mod id {
    /// Bytes of no declared type.
    pub const RAW: u16 = 0;
    /// serde types by postcard.
    pub const POSTCARD: u16 = 1;
    /// Plain data in memory order.
    pub const PLAIN: u16 = 2;
    /// UTF-8.
    pub const TEXT: u16 = 3;
    /// rkyv archives.
    pub const RKYV: u16 = 4;
    /// serde types by MessagePack.
    pub const MESSAGEPACK: u16 = 5;
    /// First id of the users' own.
    pub const FIRST_CUSTOM: u16 = 0x8000;
}
