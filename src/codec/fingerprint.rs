//! Type fingerprints: 64 bits that two processes compute alike exactly when they mean the same type.
//!
//! For serde types the *schema* is hashed, not the name that the compiler prints: [`of_serde`] runs the type's
//! `Deserialize` against a tracer that answers every question with a small fixed value and hashes the questions, with the
//! names of structs, fields and variants. So two programs that declare the same struct agree wherever they declare it, and
//! a field that was added, renamed, retyped or moved is a `TypeMismatch` instead of wrong bytes: postcard itself would
//! decode them without a complaint.
//!
//! Each enum answers with variant *p* in pass *p*, so all variants are seen. A type that refuses the fixed values (a
//! validating constructor) ends the trace of that pass; what was hashed before still tells most types apart.

use std::any::{TypeId, type_name};
use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{PoisonError, RwLock};

use serde::de::value::U32Deserializer;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};

use crate::key::with_samples;
use crate::process::PerProcess;

/// Fingerprint of the schema of a serde type.
///
/// # Cost
/// Microseconds the first time for each type, a table look-up after that.
pub(super) fn of_serde<T: DeserializeOwned + 'static>() -> u64 {
    static KNOWN: PerProcess<RwLock<HashMap<TypeId, u64>>> = PerProcess::new();
    let known = KNOWN.get(RwLock::default);
    let this = TypeId::of::<T>();
    if let Some(hash) = known.read().unwrap_or_else(PoisonError::into_inner).get(&this) {
        return *hash;
    }
    let hash = trace::<T>();
    known.write().unwrap_or_else(PoisonError::into_inner).insert(this, hash);
    hash
}

/// Fingerprint of a plain-data element: its name without module path, size, alignment and byte order.
///
/// # Cost
/// A constant for the primitive numbers, tens of nanoseconds for other types.
pub(super) fn of_plain<T: 'static>() -> u64 {
    let this = TypeId::of::<T>();
    macro_rules! number {
        ($($number:ident),*) => {$(
            if this == TypeId::of::<$number>() {
                return const { plain(Fnv::new().bytes(stringify!($number).as_bytes()), size_of::<$number>(), align_of::<$number>()) };
            }
        )*};
    }
    number!(u8, i8, u16, i16, u32, i32, u64, i64, u128, i128, f32, f64);
    plain(Fnv::new().type_name(type_name::<T>()), size_of::<T>(), align_of::<T>())
}

/// Fingerprint of a format that one word names.
pub(super) const fn of_name(name: &str) -> u64 {
    Fnv::new().bytes(name.as_bytes()).0
}

const fn plain(name: Fnv, size: usize, align: usize) -> u64 {
    let layout = name.bytes(b"plain").number(size as u64).number(align as u64);
    layout.number(cfg!(target_endian = "big") as u64).0
}

fn trace<T: DeserializeOwned>() -> u64 {
    let mut trace = Trace { hash: Fnv::new(), pass: 0, most_variants: 1, events: 0, open: Vec::new() };
    while trace.pass < trace.most_variants.min(MAX_PASSES) {
        trace.events = 0;
        trace.open.clear();
        // Errors and panics of the type end the pass; the type is the same in every process, so they do too.
        let ended = catch_unwind(AssertUnwindSafe(|| with_samples(|| T::deserialize(&mut trace).is_ok())));
        trace.hash = trace.hash.number(u64::from(matches!(ended, Ok(true))));
        trace.pass += 1;
    }
    // 0 means "unchecked".
    trace.hash.0.max(1)
}

struct Trace {
    hash: Fnv,
    pass: usize,
    most_variants: usize,
    events: usize,
    /// Names of the types that are being deserialised, outermost first.
    open: Vec<&'static str>,
}

impl Trace {
    fn event(&mut self, kind: &str) -> Result<(), Ended> {
        self.events += 1;
        self.hash = self.hash.bytes(kind.as_bytes());
        match self.events <= MAX_EVENTS && self.open.len() <= MAX_DEPTH {
            true => Ok(()),
            false => Err(Ended),
        }
    }

    /// Whether the innermost type is inside itself, so that collections must come up empty for the trace to end.
    fn is_recursive(&self) -> bool {
        self.open.split_last().is_some_and(|(last, outer)| outer.contains(last))
    }

    fn inside<T>(&mut self, name: &'static str, f: impl FnOnce(&mut Self) -> Result<T, Ended>) -> Result<T, Ended> {
        self.open.push(name);
        let result = f(self);
        self.open.pop();
        result
    }
}

macro_rules! answer {
    ($($method:ident => $visit:ident($($value:expr)?)),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
            self.event(stringify!($method))?;
            visitor.$visit($($value)?)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Trace {
    type Error = Ended;

    // 1 and not 0, for types such as `NonZero`.
    answer! {
        deserialize_bool => visit_bool(true),
        deserialize_i8 => visit_i8(1),
        deserialize_i16 => visit_i16(1),
        deserialize_i32 => visit_i32(1),
        deserialize_i64 => visit_i64(1),
        deserialize_i128 => visit_i128(1),
        deserialize_u8 => visit_u8(1),
        deserialize_u16 => visit_u16(1),
        deserialize_u32 => visit_u32(1),
        deserialize_u64 => visit_u64(1),
        deserialize_u128 => visit_u128(1),
        deserialize_f32 => visit_f32(1.0),
        deserialize_f64 => visit_f64(1.0),
        deserialize_char => visit_char('1'),
        deserialize_str => visit_str("1"),
        deserialize_string => visit_str("1"),
        deserialize_bytes => visit_bytes(b"1"),
        deserialize_byte_buf => visit_bytes(b"1"),
        deserialize_unit => visit_unit(),
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Ended> {
        // postcard cannot decode such types either.
        self.event("any")?;
        Err(Ended)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.deserialize_any(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.event("identifier")?;
        visitor.visit_u32(0)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.event("option")?;
        match self.is_recursive() {
            true => visitor.visit_none(),
            false => visitor.visit_some(self),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Ended> {
        self.event("unit struct")?;
        self.event(name)?;
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Ended> {
        self.event("newtype struct")?;
        self.event(name)?;
        self.inside(name, |this| visitor.visit_newtype_struct(this))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.event("seq")?;
        let left = usize::from(!self.is_recursive());
        visitor.visit_seq(Elements { trace: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Ended> {
        self.event("tuple")?;
        self.hash = self.hash.number(len as u64);
        visitor.visit_seq(Elements { trace: self, left: len })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.event("tuple struct")?;
        self.event(name)?;
        self.hash = self.hash.number(len as u64);
        self.inside(name, |this| visitor.visit_seq(Elements { trace: this, left: len }))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Ended> {
        self.event("map")?;
        let left = usize::from(!self.is_recursive());
        visitor.visit_map(Elements { trace: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.event("struct")?;
        self.event(name)?;
        for field in fields {
            self.event(field)?;
        }
        self.inside(name, |this| visitor.visit_seq(Elements { trace: this, left: fields.len() }))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Ended> {
        self.event("enum")?;
        self.event(name)?;
        for variant in variants {
            self.event(variant)?;
        }
        self.most_variants = self.most_variants.max(variants.len());
        let index = (self.pass % variants.len().max(1)) as u32;
        self.inside(name, |this| visitor.visit_enum(Variant { trace: this, index }))
    }

    fn is_human_readable(&self) -> bool {
        // As postcard, so that types with two forms show the one that is stored.
        false
    }
}

/// The elements of a sequence or map, the fields of a struct.
struct Elements<'a> {
    trace: &'a mut Trace,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Elements<'_> {
    type Error = Ended;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Ended> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.trace).map(Some)
    }
}

impl<'de> de::MapAccess<'de> for Elements<'_> {
    type Error = Ended;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Ended> {
        de::SeqAccess::next_element_seed(self, seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Ended> {
        seed.deserialize(&mut *self.trace)
    }
}

/// The chosen variant of an enum.
struct Variant<'a> {
    trace: &'a mut Trace,
    index: u32,
}

impl<'de> de::EnumAccess<'de> for Variant<'_> {
    type Error = Ended;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Ended> {
        let index: U32Deserializer<Ended> = self.index.into_deserializer();
        Ok((seed.deserialize(index)?, self))
    }
}

impl<'de> de::VariantAccess<'de> for Variant<'_> {
    type Error = Ended;

    fn unit_variant(self) -> Result<(), Ended> {
        self.trace.event("unit variant")
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Ended> {
        self.trace.event("newtype variant")?;
        seed.deserialize(self.trace)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, Ended> {
        self.trace.event("tuple variant")?;
        self.trace.hash = self.trace.hash.number(len as u64);
        visitor.visit_seq(Elements { trace: self.trace, left: len })
    }

    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Ended> {
        self.trace.event("struct variant")?;
        for field in fields {
            self.trace.event(field)?;
        }
        visitor.visit_seq(Elements { trace: self.trace, left: fields.len() })
    }
}

/// The type refused a value, or the trace reached a bound.
#[derive(Debug)]
struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("trace ended")
    }
}

impl std::error::Error for Ended {}

impl de::Error for Ended {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

/// FNV-1a: small, `const`, the same everywhere; it tells types apart and resists nobody.
#[derive(Clone, Copy)]
struct Fnv(u64);

impl Fnv {
    const fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    const fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x0000_0100_0000_01b3))
    }

    const fn bytes(mut self, bytes: &[u8]) -> Self {
        let mut i = 0;
        while i < bytes.len() {
            self = self.byte(bytes[i]);
            i += 1;
        }
        // Ends every string, so that "ab","c" differs from "a","bc"; no name contains it.
        self.byte(0xff)
    }

    const fn number(self, number: u64) -> Self {
        self.bytes(&number.to_le_bytes())
    }

    /// Hashes a type's name without its module paths, which differ between programs: `a::B<c::D>` as `B<D>`.
    fn type_name(mut self, name: &str) -> Self {
        let mut start = 0;
        for (i, byte) in name.bytes().enumerate() {
            if byte.is_ascii() && !byte.is_ascii_alphanumeric() && byte != b'_' {
                if byte != b':' {
                    self = self.bytes(&name.as_bytes()[start..=i]);
                }
                start = i + 1;
            }
        }
        self.bytes(&name.as_bytes()[start..])
    }
}

/// Bounds on a trace, generous for real types: questions in a pass, types inside types, variants of one enum.
const MAX_EVENTS: usize = 20_000;
const MAX_DEPTH: usize = 64;
const MAX_PASSES: usize = 256;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::num::NonZeroU32;

    use serde::{Deserialize, Serialize};

    use super::*;

    /// Declares the same type in another module, as two programs would.
    macro_rules! declare {
        ($module:ident, $($item:tt)*) => {
            mod $module {
                #![allow(dead_code, reason = "only the shape of these types matters")]
                #[derive(serde::Serialize, serde::Deserialize)]
                $($item)*
            }
        };
    }

    declare!(
        a,
        pub(crate) struct Particle {
            x: f64,
            y: f64,
            id: u32,
        }
    );
    declare!(
        same,
        pub(crate) struct Particle {
            x: f64,
            y: f64,
            id: u32,
        }
    );
    declare!(
        renamed_field,
        pub(crate) struct Particle {
            x: f64,
            z: f64,
            id: u32,
        }
    );
    declare!(
        moved_field,
        pub(crate) struct Particle {
            y: f64,
            x: f64,
            id: u32,
        }
    );
    declare!(
        retyped_field,
        pub(crate) struct Particle {
            x: f64,
            y: f64,
            id: u64,
        }
    );
    declare!(
        added_field,
        pub(crate) struct Particle {
            x: f64,
            y: f64,
            id: u32,
            w: f64,
        }
    );
    declare!(
        renamed,
        pub(crate) struct Body {
            x: f64,
            y: f64,
            id: u32,
        }
    );
    declare!(
        shape,
        pub(crate) enum Shape {
            Dot,
            Line(f64),
            Box { w: f64, h: f64 },
        }
    );
    declare!(
        shape_same,
        pub(crate) enum Shape {
            Dot,
            Line(f64),
            Box { w: f64, h: f64 },
        }
    );
    declare!(
        shape_last,
        pub(crate) enum Shape {
            Dot,
            Line(f64),
            Box { w: f64, h: f32 },
        }
    );

    #[test]
    fn same_schema_same_fingerprint_and_any_difference_shows() {
        let first = of_serde::<a::Particle>();
        assert_eq!(first, of_serde::<same::Particle>());
        for other in [
            of_serde::<renamed_field::Particle>(),
            of_serde::<moved_field::Particle>(),
            of_serde::<retyped_field::Particle>(),
            of_serde::<added_field::Particle>(),
            of_serde::<renamed::Body>(),
            of_serde::<Vec<a::Particle>>(),
            of_serde::<Option<a::Particle>>(),
            of_serde::<(a::Particle,)>(),
        ] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn all_variants_count() {
        assert_eq!(of_serde::<shape::Shape>(), of_serde::<shape_same::Shape>());
        assert_ne!(of_serde::<shape::Shape>(), of_serde::<shape_last::Shape>());
    }

    #[test]
    fn primitives_differ() {
        let all = [
            of_serde::<u8>(),
            of_serde::<u16>(),
            of_serde::<u32>(),
            of_serde::<i32>(),
            of_serde::<f32>(),
            of_serde::<f64>(),
            of_serde::<bool>(),
            of_serde::<char>(),
            of_serde::<String>(),
            of_serde::<()>(),
            of_serde::<NonZeroU32>(),
            of_serde::<Vec<u8>>(),
            of_serde::<Vec<u16>>(),
            of_serde::<BTreeMap<u8, u16>>(),
            of_serde::<BTreeMap<u16, u8>>(),
            of_serde::<[u8; 3]>(),
            of_serde::<[u8; 4]>(),
        ];
        for (i, one) in all.iter().enumerate() {
            // NonZeroU32 asks what u32 asks, and is stored as it is.
            let same = all.iter().filter(|other| *other == one).count();
            assert_eq!(same, if i == 2 || i == 10 { 2 } else { 1 }, "type {i}");
        }
    }

    #[test]
    fn recursive_types_end() {
        #[derive(Serialize, Deserialize)]
        struct Tree {
            children: Vec<Tree>,
            value: f64,
        }
        #[derive(Serialize, Deserialize)]
        struct List {
            value: u32,
            next: Option<Box<List>>,
        }
        #[derive(Serialize, Deserialize)]
        enum Expression {
            Sum(Box<Expression>, Box<Expression>),
            Number(f64),
        }
        let all = [of_serde::<Tree>(), of_serde::<List>(), of_serde::<Expression>()];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    }

    #[test]
    fn plain_names_lose_their_paths() {
        fn hash(name: &str) -> u64 {
            Fnv::new().type_name(name).0
        }
        assert_eq!(hash("one::two::Pair<three::X, f64>"), hash("other::Pair<X, f64>"));
        assert_ne!(hash("one::Pair<X>"), hash("one::Pair<Y>"));
        assert_ne!(hash("X"), hash("Y"));
        assert_ne!(of_plain::<u32>(), of_plain::<f32>());
        assert_ne!(of_plain::<u8>(), of_plain::<i8>());
    }

    #[test]
    fn values_are_stable() {
        // Changing these lines changes the meaning of stored keys: write it in the CHANGELOG.
        assert_eq!(of_plain::<f64>(), PLAIN_F64);
        assert_eq!(of_serde::<Vec<String>>(), VEC_STRING);
    }

    const PLAIN_F64: u64 = 2729959294333079764;
    const VEC_STRING: u64 = 17162522914699193749;
}
