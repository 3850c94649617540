//! Factories of the user's own: closures, types, those that travel.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use proxystore::codec::{Decoded, Object, Slice};
use proxystore::factory::{self, Factory, PortableFactory};
use proxystore::{Error, ErrorKind, Proxy, Region, Result, Store, Token};
use serde::{Deserialize, Deserializer, Serialize};

#[test]
fn a_closure_runs_once_for_all_threads_and_clones() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let proxy = Proxy::from_fn(move || {
        count.fetch_add(1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(30));
        Ok(vec![1.0, 2.0])
    });
    assert!(!Proxy::is_resolved(&proxy));
    let barrier = Barrier::new(16);
    thread::scope(|scope| {
        for _ in 0..16 {
            let clone = proxy.clone();
            let barrier = &barrier;
            scope.spawn(move || {
                barrier.wait();
                assert_eq!(clone[1], 2.0);
            });
        }
    });
    assert_eq!(proxy[0], 1.0);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[test]
fn a_factory_of_a_view() {
    let proxy: Proxy<[f64]> = Proxy::from_factory(|| {
        let mut region = proxystore::RegionMut::heap(16)?;
        region.initialize()[8..].copy_from_slice(&2.5f64.to_le_bytes());
        Slice::new(region.freeze())
    });
    assert_eq!(*proxy, [0.0, 2.5]);
}

/// A factory with state.
struct Squares {
    up_to: u64,
    runs: Mutex<u32>,
}

impl Factory<Vec<u64>> for Squares {
    fn resolve(&self) -> Result<Decoded<Vec<u64>>> {
        *self.runs.lock().unwrap() += 1;
        Ok(Decoded::new((0..self.up_to).map(|n| n * n).collect()))
    }
}

#[test]
fn a_type_is_a_factory() {
    let proxy: Proxy<Vec<u64>> = Proxy::from_factory(Squares { up_to: 10, runs: Mutex::new(0) });
    assert_eq!(proxy.iter().sum::<u64>(), 285);
    assert!(format!("{proxy:?}").contains("local factory"));
}

#[test]
fn a_failure_is_not_final() {
    let runs = AtomicUsize::new(0);
    let proxy = Proxy::from_fn(move || match runs.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => Err(Error::new(ErrorKind::Io, "resolve", "not yet")),
        2 => panic!("worse"),
        n => Ok(n),
    });
    assert_eq!(Proxy::try_get(&proxy).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(Proxy::resolve_all([&proxy, &proxy.clone()]).wait().unwrap_err().kind(), ErrorKind::Io);
    let error = Proxy::try_get(&proxy).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(error.to_string().contains("worse"), "{error}");
    assert_eq!(*proxy, 3);
    assert_eq!(*proxy, 3);
}

#[test]
fn a_factory_may_use_other_proxies() {
    let store = Store::open("memory://factory-uses-proxies").unwrap();
    let parts: Vec<Proxy<Vec<u64>>> = store.proxy_batch(&[vec![1, 2], vec![3]]).wait().unwrap();
    let sum = Proxy::from_fn(move || {
        Proxy::resolve_all(&parts).wait()?;
        Ok(parts.iter().flat_map(|part| part.iter()).sum::<u64>())
    });
    let twice = {
        let sum = sum.clone();
        Proxy::from_fn(move || Ok(Proxy::try_get(&sum)? * 2))
    };
    assert_eq!(*twice, 12);
    assert!(Proxy::is_resolved(&sum));
}

#[test]
fn many_nested_factories_do_not_exhaust_the_pool() {
    // Each prefetch occupies a pool thread that waits for another one.
    let mut proxy = Proxy::from_fn(|| Ok(1u64));
    for _ in 0..100 {
        let inner = proxy;
        proxy = Proxy::from_fn(move || {
            Proxy::prefetch(&inner);
            thread::sleep(Duration::from_micros(100));
            Ok(*inner + 1)
        });
    }
    Proxy::prefetch(&proxy);
    assert_eq!(
        futures::executor::block_on(Proxy::resolve(&proxy).deadline(Duration::from_secs(20))).map(|n| *n).unwrap(),
        101
    );
}

#[test]
fn a_factory_has_no_deadline_but_the_callers() {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = std::sync::Mutex::new(released);
    let proxy = Proxy::from_fn(move || {
        let _ = released.lock().unwrap().recv();
        Ok(5)
    });
    let error = Proxy::resolve(&proxy).deadline(Duration::from_millis(20)).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);
    let wait = async { Proxy::resolve(&proxy).deadline(Duration::from_millis(20)).await };
    assert_eq!(futures::executor::block_on(wait).unwrap_err().kind(), ErrorKind::Timeout);
    drop(release);
    assert_eq!(*proxy, 5);
}

/// A factory that travels.
#[derive(Serialize, Deserialize)]
struct Repeat {
    word: String,
    times: usize,
}

impl Factory<String> for Repeat {
    fn resolve(&self) -> Result<Decoded<String>> {
        Ok(Decoded::new(self.word.repeat(self.times)))
    }
}

impl PortableFactory<String> for Repeat {
    const NAME: &'static str = "repeat";
}

#[test]
fn a_portable_factory_travels() {
    let proxy = Proxy::from_portable(&Repeat { word: "ab".into(), times: 3 }).unwrap();
    let copies: Vec<Proxy<String>> = vec![
        proxy.to_token().unwrap().parse().unwrap(),
        Proxy::from_token_bytes(&proxy.to_token_bytes().unwrap()).unwrap(),
        serde_json::from_str(&serde_json::to_string(&proxy).unwrap()).unwrap(),
        postcard::from_bytes(&postcard::to_allocvec(&proxy).unwrap()).unwrap(),
        #[cfg(feature = "msgpack")]
        rmp_serde::from_slice(&rmp_serde::to_vec(&proxy).unwrap()).unwrap(),
    ];
    for copy in copies {
        assert!(!Proxy::is_resolved(&copy));
        assert!(format!("{copy:?}").contains("repeat"));
        assert!(Proxy::key(&copy).is_none());
        assert_eq!(&*copy, "ababab");
    }
    assert_eq!(&*proxy, "ababab");
    assert!(Proxy::token(&proxy).unwrap().key().is_none());
    // What comes out of a store is one as well.
    let store = Store::open("memory://factory-in-store").unwrap();
    let outer = store.proxy(&proxy).wait().unwrap();
    let outer: Proxy<Proxy<String>> = outer.to_token().unwrap().parse().unwrap();
    assert_eq!(**outer, "ababab");
}

/// A token as another process would have made it, whose factories this one may not know.
fn token_of(name: &str, payload: &[u8]) -> Token {
    let mut out = vec![1, 3, u8::try_from(name.len()).unwrap()];
    out.extend_from_slice(name.as_bytes());
    out.push(u8::try_from(payload.len()).unwrap());
    out.extend_from_slice(payload);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    Token::from_bytes(&out).unwrap()
}

#[derive(Serialize, Deserialize)]
struct Late(u8);

impl Factory<u8> for Late {
    fn resolve(&self) -> Result<Decoded<u8>> {
        Ok(Decoded::new(self.0))
    }
}

impl PortableFactory<u8> for Late {
    const NAME: &'static str = "late";
}

#[test]
fn a_factory_must_be_registered_where_it_is_used() {
    let proxy: Proxy<u8> = token_of("late", &[7]).into();
    let error = Proxy::try_get(&proxy).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("late") && error.to_string().contains("register"), "{error}");
    factory::register::<u8, Late>().unwrap();
    factory::register::<u8, Late>().unwrap();
    assert_eq!(*proxy, 7, "the same proxy works once the factory is known");
    // Under another type there is no such factory.
    let other: Proxy<u16> = token_of("late", &[7]).into();
    assert_eq!(Proxy::try_get(&other).unwrap_err().kind(), ErrorKind::Unsupported);
    // Damaged state is an error of the use.
    let damaged: Proxy<u8> = token_of("late", &[]).into();
    assert_eq!(Proxy::try_get(&damaged).unwrap_err().kind(), ErrorKind::Invalid);
    let longer: Proxy<u8> = token_of("late", &[7, 8]).into();
    assert_eq!(Proxy::try_get(&longer).unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn one_name_is_one_factory() {
    #[derive(Serialize, Deserialize)]
    struct Impostor(u8);
    impl Factory<String> for Impostor {
        fn resolve(&self) -> Result<Decoded<String>> {
            Ok(Decoded::new("impostor".into()))
        }
    }
    impl PortableFactory<String> for Impostor {
        const NAME: &'static str = "repeat";
    }
    factory::register::<String, Repeat>().unwrap();
    assert_eq!(factory::register::<String, Impostor>().unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(Proxy::from_portable(&Impostor(1)).map(drop).unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn state_that_cannot_travel_is_refused() {
    struct Heavy(Vec<u8>);
    impl Serialize for Heavy {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            match self.0.is_empty() {
                true => Err(serde::ser::Error::custom("on purpose")),
                false => self.0.serialize(serializer),
            }
        }
    }
    impl<'de> Deserialize<'de> for Heavy {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            Vec::deserialize(deserializer).map(Self)
        }
    }
    impl Factory<usize> for Heavy {
        fn resolve(&self) -> Result<Decoded<usize>> {
            Ok(Decoded::new(self.0.len()))
        }
    }
    impl PortableFactory<usize> for Heavy {
        const NAME: &'static str = "heavy";
    }
    let error = Proxy::<usize>::from_portable(&Heavy(vec![0; 64 << 10])).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(Proxy::<usize>::from_portable(&Heavy(vec![])).map(drop).unwrap_err().kind(), ErrorKind::Codec);
    // The largest that is accepted can be read back.
    let largest = Proxy::<usize>::from_portable(&Heavy(vec![0; 63 << 10])).unwrap();
    let copy: Proxy<usize> = largest.to_token().unwrap().parse().unwrap();
    assert_eq!(*copy, 63 << 10);
}

#[test]
fn state_that_panics_when_read_is_an_error() {
    #[derive(Serialize)]
    struct Trap;
    impl<'de> Deserialize<'de> for Trap {
        fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
            panic!("trapped")
        }
    }
    impl Factory<i16> for Trap {
        fn resolve(&self) -> Result<Decoded<i16>> {
            Ok(Decoded::new(0))
        }
    }
    impl PortableFactory<i16> for Trap {
        const NAME: &'static str = "trap";
    }
    let proxy = Proxy::<i16>::from_portable(&Trap).unwrap();
    let error = Proxy::try_get(&proxy).unwrap_err();
    assert!(error.to_string().contains("trapped"), "{error}");
}

#[test]
fn once_and_views_of_factories() {
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let proxy = Proxy::once(Proxy::from_fn(move || Ok(count.fetch_add(1, Ordering::SeqCst))));
    assert_eq!((*proxy, *proxy), (0, 0));
    assert_eq!(Proxy::into_inner(proxy).unwrap(), 0);
    let text: Proxy<str> = Proxy::from_factory(|| <str as Object>::view(Region::copy_from_slice(b"text")?));
    assert_eq!(&*Proxy::into_view(text).unwrap(), "text");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}
