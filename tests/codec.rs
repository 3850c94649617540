//! Codecs: what is viewed in place, what is refused, what happens with bytes that nobody wrote.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use proptest::prelude::*;
use proxystore::codec::{self, Decoded, Encoder, Object};
use proxystore::{ConnectorExt, Error, ErrorKind, Format, Key, Proxy, Region, Result, Store};
use serde::{Deserialize, Deserializer, Serialize};

mod probe;
use probe::{Mode, Probe};

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
struct Particle {
    position: [f64; 3],
    id: u32,
    tags: Vec<String>,
    charge: Option<i8>,
}

fn particle() -> Particle {
    Particle { position: [1.0, -2.5, 3.25], id: 7, tags: vec!["a".into(), "β".into()], charge: Some(-1) }
}

fn round_trip<T: Object + ?Sized>(store: &Store, value: &T) -> T::View {
    let key = store.put(value).wait().unwrap();
    store.get::<T>(&key).wait().unwrap().unwrap()
}

#[test]
fn serde_types_round_trip() {
    let store = Store::open("memory://codec-serde").unwrap();
    assert_eq!(*round_trip(&store, &particle()), particle());
    let map: BTreeMap<String, (u64, char)> = [("one".into(), (1, 'x')), ("two".into(), (2, '∞'))].into();
    assert_eq!(*round_trip(&store, &map), map);
    let hash: HashMap<u8, Vec<bool>> = [(1, vec![true]), (2, vec![])].into();
    assert_eq!(*round_trip(&store, &hash), hash);
    assert_eq!(
        *round_trip(&store, &Some(vec![Ok::<u8, String>(1), Err("no".into())])),
        Some(vec![Ok(1), Err("no".into())])
    );
    assert_eq!(*round_trip(&store, &u128::MAX), u128::MAX);
    assert_eq!(*round_trip(&store, &f64::NEG_INFINITY), f64::NEG_INFINITY);
    // Around the size from which objects are encoded straight into the connector's memory.
    for n in [65_530usize, 65_536, 65_540, 300_000] {
        let value: Vec<Option<u8>> = (0..n / 2).map(|i| Some(i as u8)).collect();
        assert_eq!(*round_trip(&store, &value), value);
    }
}

#[test]
fn views_of_plain_data_are_the_connectors_memory() {
    let (probe, builder) = Probe::builder("codec-in-place");
    let store = builder.build().unwrap();
    fn same(view: *const u8, probe: &Probe, key: &Key) {
        let region = probe.fetch(key).wait().unwrap();
        assert_eq!(view, region.as_ptr());
    }
    let key = store.put(&[1.0f64, 2.0][..]).wait().unwrap();
    let view = store.get::<[f64]>(&key).wait().unwrap().unwrap();
    same(view.as_ptr().cast(), &probe, &key);
    let key = store.put(&b"bytes"[..]).wait().unwrap();
    let view = store.get::<[u8]>(&key).wait().unwrap().unwrap();
    same(view.as_ptr(), &probe, &key);
    assert_eq!(view.region().as_ptr(), view.as_ptr());
    let view = store.get::<Bytes>(&key).wait().unwrap().unwrap();
    same(view.as_ptr(), &probe, &key);
    same(Bytes::clone(&view).slice(2..).as_ptr().wrapping_sub(2), &probe, &key);
    let key = store.put("text").wait().unwrap();
    let view = store.get::<str>(&key).wait().unwrap().unwrap();
    same(view.as_ptr(), &probe, &key);
    // Through a proxy as well, and from memory that was filled in place.
    let mut slice = store.reserve_slice::<u32>(1000).unwrap();
    slice[999] = 42;
    let written = slice.as_ptr();
    let proxy: Proxy<[u32]> = slice.commit().wait().unwrap();
    assert_eq!(proxy[999], 42);
    assert_eq!(proxy.as_ptr(), written, "not one copy on the whole way");
    let mut out = store.reserve(16).unwrap();
    bytes::BufMut::put_slice(&mut *out, b"in place");
    let written = out.as_slice().as_ptr();
    let proxy = out.commit().wait().unwrap();
    assert_eq!((&*proxy, proxy.as_ptr()), (&b"in place"[..], written));
}

#[test]
fn plain_types_read_each_other() {
    let store = Store::open("memory://codec-interoperate").unwrap();
    let numbers = vec![1.5f64, -0.0, f64::MAX];
    let vector = store.put(&numbers).wait().unwrap();
    let slice = store.put(&numbers[..]).wait().unwrap();
    assert_eq!(vector.format(), slice.format());
    for key in [vector, slice] {
        assert_eq!(&*store.get::<[f64]>(&key).wait().unwrap().unwrap(), numbers);
        assert_eq!(*store.get::<Vec<f64>>(&key).wait().unwrap().unwrap(), numbers);
    }
    let bytes = Bytes::from_static(b"bytes");
    for key in [store.put(&bytes), store.put(&bytes[..]), store.put(&bytes.to_vec())] {
        let key = key.wait().unwrap();
        assert_eq!(*store.get::<Bytes>(&key).wait().unwrap().unwrap(), bytes);
        assert_eq!(*store.get::<[u8]>(&key).wait().unwrap().unwrap(), bytes[..]);
        assert_eq!(*store.get::<Vec<u8>>(&key).wait().unwrap().unwrap(), bytes[..]);
    }
    for key in [store.put("text"), store.put(&"text".to_owned())] {
        let key = key.wait().unwrap();
        assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "text");
        assert_eq!(&**store.get::<String>(&key).wait().unwrap().unwrap(), "text");
    }
    // Bytes of no declared type are bytes.
    let raw = store.connector().put(b"raw", Format::RAW).wait().unwrap();
    assert_eq!(&*store.get::<[u8]>(&raw).wait().unwrap().unwrap(), b"raw");
    assert_eq!(&**store.get::<Bytes>(&raw).wait().unwrap().unwrap(), &b"raw"[..]);
    assert_eq!(store.get::<str>(&raw).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(store.get::<[f64]>(&raw).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
}

mod pod {
    #![expect(unsafe_code, reason = "plain data is a promise of its author")]

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) struct Point {
        pub(crate) x: f32,
        pub(crate) y: f32,
    }

    // SAFETY: two floats without padding; all zero bits are a value.
    unsafe impl bytemuck::Zeroable for Point {}
    // SAFETY: see `Zeroable`; any bits are a value.
    unsafe impl bytemuck::Pod for Point {}

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) struct Nothing;

    // SAFETY: no bits at all.
    unsafe impl bytemuck::Zeroable for Nothing {}
    // SAFETY: no bits at all.
    unsafe impl bytemuck::Pod for Nothing {}

    #[repr(C, align(128))]
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub(crate) struct Wide(pub(crate) [u8; 128]);

    // SAFETY: bytes without padding.
    unsafe impl bytemuck::Zeroable for Wide {}
    // SAFETY: see `Zeroable`; any bits are a value.
    unsafe impl bytemuck::Pod for Wide {}
}

use pod::{Nothing, Point, Wide};

#[test]
fn plain_structs_of_the_user() {
    let store = Store::open("memory://codec-pod").unwrap();
    let points = [Point { x: 1.0, y: 2.0 }, Point { x: 3.0, y: 4.0 }];
    let key = store.put(&points[..]).wait().unwrap();
    assert_eq!(&*store.get::<[Point]>(&key).wait().unwrap().unwrap(), points);
    // Same size and alignment, another meaning.
    assert_eq!(store.get::<[[f32; 2]]>(&key).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(store.get::<[f32]>(&key).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(store.get::<[u64]>(&key).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
}

#[test]
fn plain_structs_that_regions_cannot_hold_are_refused() {
    let store = Store::open("memory://codec-pod-refused").unwrap();
    // How many of nothing there were is not in their bytes.
    assert_eq!(store.put(&[Nothing; 3][..]).wait().unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(store.put_batch([&[Nothing; 3][..]]).wait().unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(store.reserve_slice::<Nothing>(3).unwrap_err().kind(), ErrorKind::Unsupported);
    assert_eq!(store.reserve_slice::<Wide>(3).unwrap_err().kind(), ErrorKind::Unsupported);
    // What is aligned more strictly than a region may lie well by luck; it is an error or the right thing.
    let key = store.put(&[Wide([7; 128])][..]).wait().unwrap();
    match store.get::<[Wide]>(&key).wait() {
        Ok(view) => assert_eq!(view.unwrap()[0], Wide([7; 128])),
        Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt),
    }
}

#[test]
fn zero_length_objects_of_every_type() {
    let (probe, store) = Probe::store("codec-empty");
    // Connectors may lend any empty memory, aligned or not.
    for mode in [Mode::Ready, Mode::Instead(Region::default())] {
        probe.set(mode);
        assert!(round_trip::<[f64]>(&store, &[]).is_empty());
        assert!(round_trip::<[u128]>(&store, &[]).is_empty());
        assert!(round_trip::<[Point]>(&store, &[]).is_empty());
        assert!(round_trip::<[u8]>(&store, &[]).is_empty());
        assert!(round_trip::<Vec<f64>>(&store, &vec![]).is_empty());
        assert!(round_trip::<Vec<u128>>(&store, &vec![]).is_empty());
        assert!(round_trip::<Bytes>(&store, &Bytes::new()).is_empty());
        assert!(round_trip::<str>(&store, "").is_empty());
        assert!(round_trip::<String>(&store, &String::new()).is_empty());
        round_trip::<()>(&store, &());
        assert_eq!(*round_trip::<[(); 3]>(&store, &[(), (), ()]), [(), (), ()]);
    }
    probe.set(Mode::Ready);
    assert!(round_trip::<Vec<String>>(&store, &vec![]).is_empty());
    assert!(store.reserve_slice::<f64>(0).unwrap().commit().wait().unwrap().is_empty());
    assert!(store.reserve(0).unwrap().commit().wait().unwrap().is_empty());
}

/// Declares the same name with another shape, as another version of a program would.
macro_rules! version {
    ($module:ident, $($item:tt)*) => {
        mod $module {
            use super::*;
            #[derive(Serialize, Deserialize, Debug)]
            $($item)*
        }
    };
}

version!(
    same,
    pub(crate) struct Particle {
        position: [f64; 3],
        id: u32,
        tags: Vec<String>,
        charge: Option<i8>,
    }
);
version!(
    reordered,
    pub(crate) struct Particle {
        id: u32,
        position: [f64; 3],
        tags: Vec<String>,
        charge: Option<i8>,
    }
);
version!(
    renamed,
    pub(crate) struct Particle {
        position: [f64; 3],
        number: u32,
        tags: Vec<String>,
        charge: Option<i8>,
    }
);
version!(
    retyped,
    pub(crate) struct Particle {
        position: [f64; 3],
        id: i32,
        tags: Vec<String>,
        charge: Option<i8>,
    }
);
version!(
    deeper,
    pub(crate) struct Particle {
        position: [f64; 3],
        id: u32,
        tags: Vec<String>,
        charge: Option<u8>,
    }
);
version!(
    longer,
    pub(crate) struct Particle {
        position: [f64; 4],
        id: u32,
        tags: Vec<String>,
        charge: Option<i8>,
    }
);
version!(
    shorter,
    pub(crate) struct Particle {
        position: [f64; 3],
        id: u32,
        tags: Vec<String>,
    }
);
version!(
    other,
    pub(crate) struct Body {
        position: [f64; 3],
        id: u32,
        tags: Vec<String>,
        charge: Option<i8>,
    }
);

#[test]
fn another_type_is_refused_before_a_byte_moves() {
    let (probe, store) = Probe::store("codec-mismatch");
    let key = store.put(&particle()).wait().unwrap();
    fn refused<T: Object + ?Sized>(store: &Store, key: &Key) {
        let error = store.get::<T>(key).wait().map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TypeMismatch, "{error}");
        let error = store.take::<T>(key).wait().map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TypeMismatch, "{error}");
        let proxy: Proxy<T> = store.proxy_from_key(key).unwrap();
        assert_eq!(Proxy::try_get(&proxy).map(drop).unwrap_err().kind(), ErrorKind::TypeMismatch);
    }
    refused::<reordered::Particle>(&store, &key);
    refused::<renamed::Particle>(&store, &key);
    refused::<retyped::Particle>(&store, &key);
    refused::<deeper::Particle>(&store, &key);
    refused::<longer::Particle>(&store, &key);
    refused::<shorter::Particle>(&store, &key);
    refused::<other::Body>(&store, &key);
    refused::<Vec<Particle>>(&store, &key);
    refused::<[u8]>(&store, &key);
    refused::<str>(&store, &key);
    assert_eq!(probe.gets(), 0);
    assert_eq!(probe.takes.load(Ordering::SeqCst), 0);
    // Declared elsewhere, but the same.
    assert!(store.get::<same::Particle>(&key).wait().unwrap().is_some());
    // Numbers of one size.
    let key = store.put(&[1u64][..]).wait().unwrap();
    refused::<[i64]>(&store, &key);
    refused::<[f64]>(&store, &key);
    refused::<Vec<u32>>(&store, &key);
    assert_eq!(probe.gets(), 1);
}

#[test]
fn what_follows_a_proxy_in_a_struct_is_checked_too() {
    #[derive(Serialize, Deserialize)]
    struct Task {
        input: Proxy<Vec<f64>>,
        key: Key,
        steps: u32,
    }
    mod retyped {
        use super::*;
        #[derive(Serialize, Deserialize, Debug)]
        pub(super) struct Task {
            input: Proxy<Vec<f64>>,
            key: Key,
            steps: f32,
        }
    }
    let store = Store::open("memory://codec-task").unwrap();
    let input = store.proxy(&vec![1.0]).wait().unwrap();
    let task = Task { key: *Proxy::key(&input).unwrap(), input, steps: 1 };
    let key = store.put(&task).wait().unwrap();
    assert_eq!(store.get::<Task>(&key).wait().unwrap().unwrap().input[0], 1.0);
    assert_eq!(store.get::<retyped::Task>(&key).wait().map(drop).unwrap_err().kind(), ErrorKind::TypeMismatch);
}

#[test]
fn a_decoder_that_panics_or_refuses_is_an_error() {
    #[derive(Serialize, Debug)]
    struct Fragile(u8);
    impl<'de> Deserialize<'de> for Fragile {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            match u8::deserialize(deserializer)? {
                3 => panic!("three is too much"),
                4 => Err(serde::de::Error::custom("four is refused")),
                n => Ok(Self(n)),
            }
        }
    }
    let store = Store::open("memory://codec-fragile").unwrap();
    assert_eq!(round_trip(&store, &Fragile(2)).0, 2);
    let key = store.put(&Fragile(3)).wait().unwrap();
    for _ in 0..2 {
        let error = store.get::<Fragile>(&key).wait().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Codec);
        assert!(error.to_string().contains("three is too much"), "{error}");
        assert_eq!(store.get_batch::<Fragile>(&[key]).wait().unwrap_err().kind(), ErrorKind::Codec);
    }
    let key = store.put(&Fragile(4)).wait().unwrap();
    assert_eq!(store.get::<Fragile>(&key).wait().unwrap_err().kind(), ErrorKind::Corrupt);
}

/// Decodes `bytes` as if a `T` of the right format had been put.
fn forge<T: Object + ?Sized>(store: &Store, bytes: &[u8]) -> Result<Option<T::View>> {
    let key = store.connector().put(bytes, T::format()).wait().unwrap();
    let view = store.get::<T>(&key).wait();
    store.evict(&key).wait().unwrap();
    view
}

fn is_refusal<V>(view: Result<Option<V>>) -> bool {
    matches!(view, Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Codec))
}

#[test]
fn bytes_of_the_wrong_length_are_corrupt() {
    let store = Store::open("memory://codec-lengths").unwrap();
    assert!(is_refusal(forge::<[f64]>(&store, &[0; 9])));
    assert!(is_refusal(forge::<Vec<f64>>(&store, &[0; 7])));
    assert!(is_refusal(forge::<[Point]>(&store, &[0; 12])));
    assert!(is_refusal(forge::<str>(&store, b"\xff\xfe")));
    assert!(is_refusal(forge::<String>(&store, b"\xc3")));
    assert!(is_refusal(forge::<Particle>(&store, b"")));
    assert!(is_refusal(forge::<()>(&store, b"more than nothing")));
    assert!(is_refusal(forge::<bool>(&store, &[2])));
    // A length that promises 2^60 elements is refused and not believed.
    let huge = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f];
    assert!(is_refusal(forge::<Vec<String>>(&store, &huge)));
    assert!(is_refusal(forge::<Vec<(u64, u64)>>(&store, &huge)));
    assert!(is_refusal(forge::<BTreeMap<u64, u64>>(&store, &huge)));
}

#[test]
fn a_key_with_a_forged_length_or_format_gives_no_view() {
    let store = Store::open("memory://codec-forged").unwrap();
    let key = store.put(&[1.0f64, 2.0][..]).wait().unwrap();
    for len in [0, 8, 15, 17, 24, u64::MAX - 1] {
        let forged = Key::new("memory", key.locator(), len, key.format()).unwrap();
        assert_eq!(store.get::<[f64]>(&forged).wait().map(drop).unwrap_err().kind(), ErrorKind::Corrupt, "{len}");
    }
    // The format is what the reader believes; plain data of the right length decodes, whatever it means.
    let forged = key.with_format(<[u64]>::format());
    assert_eq!(store.get::<[u64]>(&forged).wait().unwrap().unwrap()[0], 1.0f64.to_bits());
    let forged = key.with_format(<str>::format());
    let _ = store.get::<str>(&forged).wait();
    let forged = key.with_format(Particle::format());
    assert!(is_refusal(store.get::<Particle>(&forged).wait()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_decode_or_err(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let store = Store::open("memory://codec-arbitrary").unwrap();
        let _ = forge::<Particle>(&store, &bytes);
        let _ = forge::<Vec<Particle>>(&store, &bytes);
        let _ = forge::<BTreeMap<String, Option<char>>>(&store, &bytes);
        let _ = forge::<Proxy<Vec<f64>>>(&store, &bytes);
        prop_assert_eq!(forge::<str>(&store, &bytes).is_ok(), std::str::from_utf8(&bytes).is_ok());
        prop_assert_eq!(forge::<[u32]>(&store, &bytes).is_ok(), bytes.len() % 4 == 0);
        prop_assert!(forge::<[u8]>(&store, &bytes).is_ok());
        #[cfg(feature = "msgpack")]
        {
            let _ = forge::<codec::MessagePack<Particle>>(&store, &bytes);
            let _ = forge::<codec::MessagePack<HashMap<String, Vec<f64>>>>(&store, &bytes);
        }
        #[cfg(feature = "rkyv")]
        {
            let _ = forge::<codec::Archive<archived::Tree>>(&store, &bytes).map(|view| view.map(|tree| tree.sum()));
        }
    }

    #[test]
    fn damaged_bytes_decode_or_err(cut in 0usize..200, bit in 0usize..1600) {
        let store = Store::open("memory://codec-damaged").unwrap();
        fn damage<T: Object>(store: &Store, value: &T, cut: usize, bit: usize) -> [Result<Option<T::View>>; 2] {
            let key = store.put(value).wait().unwrap();
            let mut bytes = store.get_region(&key).wait().unwrap().unwrap().to_vec();
            let truncated = forge::<T>(store, &bytes[..cut % bytes.len()]);
            let at = bit % (bytes.len() * 8);
            bytes[at / 8] ^= 1 << (at % 8);
            [truncated, forge::<T>(store, &bytes)]
        }
        let [truncated, _] = damage(&store, &particle(), cut, bit);
        prop_assert!(is_refusal(truncated));
        #[cfg(feature = "msgpack")]
        {
            let [truncated, _] = damage(&store, &codec::MessagePack::new(particle()), cut, bit);
            prop_assert!(is_refusal(truncated));
        }
        #[cfg(feature = "rkyv")]
        {
            let [truncated, flipped] = damage(&store, &codec::Archive(archived::tree()), cut, bit);
            // What validates can be walked without harm.
            for view in [truncated, flipped] {
                let _ = view.map(|view| view.map(|tree| tree.sum()));
            }
        }
    }

    #[test]
    fn any_numbers_and_text_round_trip(numbers in prop::collection::vec(any::<u64>(), 0..100), text in ".{0,50}") {
        let store = Store::open("memory://codec-round-trip").unwrap();
        prop_assert_eq!(&*round_trip::<[u64]>(&store, &numbers), &numbers[..]);
        prop_assert_eq!(&*round_trip(&store, &numbers), &numbers);
        prop_assert_eq!(&*round_trip::<str>(&store, &text), &*text);
        let both = (text, numbers);
        prop_assert_eq!(&*round_trip(&store, &both), &both);
    }
}

#[cfg(feature = "msgpack")]
#[test]
fn message_pack_is_what_others_read() {
    use proxystore::codec::MessagePack;
    let store = Store::open("memory://codec-msgpack").unwrap();
    let key = store.put(&MessagePack::new(particle())).wait().unwrap();
    assert_eq!(*store.get::<MessagePack<Particle>>(&key).wait().unwrap().unwrap(), particle());
    // A map by field name, for readers that know no Rust.
    let bytes = store.get_region(&key).wait().unwrap().unwrap();
    let value: serde_json::Value = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!(value["id"], 7);
    assert_eq!(value["tags"][1], "β");
    assert_eq!(store.get::<Particle>(&key).wait().unwrap_err().kind(), ErrorKind::TypeMismatch);
    let error = store.get::<MessagePack<retyped::Particle>>(&key).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TypeMismatch);
    let mut longer = bytes.to_vec();
    longer.push(0xc0);
    assert!(is_refusal(forge::<MessagePack<Particle>>(&store, &longer)));
}

#[cfg(feature = "rkyv")]
mod archived {
    #[derive(rkyv::Archive, rkyv::Serialize, Debug)]
    pub(crate) struct Tree {
        pub(crate) name: String,
        pub(crate) values: Vec<u64>,
    }

    pub(crate) fn tree() -> Tree {
        Tree { name: "a name longer than what is stored inline".into(), values: (1..=10).collect() }
    }

    impl ArchivedTree {
        pub(crate) fn sum(&self) -> u64 {
            self.values.iter().fold(self.name.len() as u64, |sum, n| sum.wrapping_add(n.to_native()))
        }
    }
}

#[cfg(feature = "rkyv")]
#[test]
fn archives_are_viewed_in_place() {
    use proxystore::codec::Archive;
    let (probe, store) = Probe::store("codec-rkyv");
    let key = store.put(&Archive(archived::tree())).wait().unwrap();
    let view = store.get::<Archive<archived::Tree>>(&key).wait().unwrap().unwrap();
    assert_eq!((&*view.name, view.values[9].to_native()), ("a name longer than what is stored inline", 10));
    let region = probe.fetch(&key).wait().unwrap();
    let inside = region.as_ptr_range();
    assert!(inside.contains(&view.values.as_ptr().cast()) && inside.contains(&view.name.as_ptr()));
    assert_eq!(view.region().as_ptr(), region.as_ptr());
    assert!(is_refusal(forge::<Archive<archived::Tree>>(&store, &region[..region.len() - 1])));
}

/// Stores text backwards.
fn backwards(id: u16) -> impl codec::Codec<str> + Clone {
    codec::from_fns::<str>(
        id,
        |text, out: &mut Encoder<'_>| out.write(text.chars().rev().collect::<String>().as_bytes()),
        |region| {
            let text = std::str::from_utf8(&region).map_err(|_| Error::new(ErrorKind::Corrupt, "get", "not text"))?;
            let text: String = text.chars().rev().collect();
            <str as Object>::view(Region::copy_from_slice(text.as_bytes())?)
        },
    )
}

#[test]
fn custom_codecs_of_a_call() {
    let (probe, store) = Probe::store("codec-per-call");
    let key = store.put_with("abc", &backwards(0xa001)).wait().unwrap();
    assert_eq!(key.format().codec, 0xa001);
    assert_eq!(&*store.get_region(&key).wait().unwrap().unwrap(), b"cba");
    assert_eq!(&*store.get_with::<str>(&key, backwards(0xa001)).wait().unwrap().unwrap(), "abc");
    assert!(!store.is_cached(&key), "the cache knows one view of an object");
    let got = probe.gets();
    // Without the codec, the error names it and nothing is fetched.
    for error in [
        store.get::<str>(&key).wait().map(drop).unwrap_err(),
        store.get_batch::<str>(&[key]).wait().map(drop).unwrap_err(),
        store.take::<str>(&key).wait().map(drop).unwrap_err(),
        Proxy::try_get(&store.proxy_from_key::<str>(&key).unwrap()).map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
        assert!(error.to_string().contains("0xa001"), "{error}");
    }
    // With another one, or for another type, it is a mismatch, before anything moves.
    let error = store.get_with::<str>(&key, backwards(0xa002)).wait().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TypeMismatch);
    let numbers = codec::from_fns::<u64>(0xa001, |_, _| Ok(()), |_| Ok(Decoded::new(0)));
    assert_eq!(store.get_with::<u64>(&key, numbers).wait().map(drop).unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(probe.gets(), got);
    assert!(store.exists(&key).wait().unwrap());
    // Reserved numbers are nobody's.
    assert_eq!(store.put_with("abc", &backwards(0x7fff)).wait().unwrap_err().kind(), ErrorKind::Config);
    assert!(store.put_with("abc", &backwards(codec::id::FIRST_CUSTOM)).wait().is_ok());
    assert_eq!(store.get_with::<str>(&key, backwards(3)).wait().map(drop).unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn custom_codecs_of_a_store() {
    let (_, builder) = Probe::builder("codec-per-store");
    let store = builder.codec::<str>(backwards(0xa010)).build().unwrap();
    let key = store.put("abc").wait().unwrap();
    assert_eq!(&*store.get_region(&key).wait().unwrap().unwrap(), b"cba");
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "abc");
    let keys = store.put_batch(["de", "fg"]).wait().unwrap();
    assert_eq!(&*store.get_region(&keys[1]).wait().unwrap().unwrap(), b"gf");
    assert_eq!(store.get_batch::<str>(&keys).wait().unwrap()[0].as_deref(), Some("de"));
    assert_eq!(&*store.take::<str>(&keys[0]).wait().unwrap().unwrap(), "de");
    let (promise, proxy) = store.promise::<str>().unwrap();
    promise.set("hij").wait().unwrap();
    assert_eq!(&*proxy, "hij");
    assert_eq!(&*store.get_region(Proxy::key(&proxy).unwrap()).wait().unwrap().unwrap(), b"jih");
    // Other types keep their own; objects that the type's own codec wrote stay readable.
    let key = store.put(&"owned".to_owned()).wait().unwrap();
    assert_eq!(&*store.get_region(&key).wait().unwrap().unwrap(), b"owned");
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "owned");
    // The last codec of a type writes, all read.
    let (_, builder) = Probe::builder("codec-per-store-2");
    let store = builder.codec::<str>(backwards(0xa011)).codec::<str>(backwards(0xa012)).build().unwrap();
    assert_eq!(store.put("abc").wait().unwrap().format().codec, 0xa012);
    let key = store.put_with("abc", &backwards(0xa011)).wait().unwrap();
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "abc");
}

#[test]
fn custom_codecs_of_the_process() {
    let store = Store::open("memory://codec-per-process").unwrap();
    let key = store.put_with("abc", &backwards(0xa020)).wait().unwrap();
    assert_eq!(store.get::<str>(&key).wait().map(drop).unwrap_err().kind(), ErrorKind::Codec);
    codec::register::<str>(backwards(0xa020)).unwrap();
    assert_eq!(&*store.get::<str>(&key).wait().unwrap().unwrap(), "abc");
    assert_eq!(codec::register::<str>(backwards(0xa020)).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(codec::register::<str>(backwards(1)).unwrap_err().kind(), ErrorKind::Config);
    // It reads; what is written stays the type's own.
    assert_eq!(store.put("abc").wait().unwrap().format(), <str>::format());
}

#[test]
fn a_proxy_resolved_by_a_codec_of_the_call_keeps_its_manners() {
    let (probe, store) = Probe::store("codec-proxy-with");
    let proxy = store.proxy_with("abc", &backwards(0xa030)).wait().unwrap();
    assert_eq!(Proxy::try_get(&proxy).map(drop).unwrap_err().kind(), ErrorKind::Codec);
    assert_eq!(&*Proxy::resolve_with(&proxy, backwards(0xa030)).wait().unwrap(), "abc");
    assert!(Proxy::is_resolved(&proxy));
    assert_eq!(&*proxy, "abc");
    assert_eq!(probe.gets(), 1);
    assert_eq!(&*Proxy::resolve_with(&proxy, backwards(0xa030)).wait().unwrap(), "abc");
    assert_eq!(probe.gets(), 1, "resolved once");
    // One-time proxies stay one-time.
    let once = Proxy::once(store.proxy_with("once", &backwards(0xa030)).wait().unwrap());
    let token = once.to_token().unwrap();
    let key = *Proxy::key(&once).unwrap();
    assert_eq!(&*Proxy::resolve_with(&once, backwards(0xa030)).wait().unwrap(), "once");
    assert!(!store.exists(&key).wait().unwrap());
    let loser: Proxy<str> = token.parse().unwrap();
    let error = Proxy::resolve_with(&loser, backwards(0xa030)).wait().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let local: Proxy<str> = Proxy::from_factory(|| <str as Object>::view(Region::default()));
    let error = Proxy::resolve_with(&local, backwards(0xa030)).wait().map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}
