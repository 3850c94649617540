//! `Proxy`: what travels, who fetches, how it fails, what it passes on to its object.
#![cfg(feature = "memory")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Once};
use std::thread;
use std::time::{Duration, Instant};

use proxystore::codec::Object;
use proxystore::connector::Registration;
use proxystore::{Capabilities, Connector, Error, ErrorKind, Format, Key, Pending, Proxy, Store, Token, connectors};
use serde::{Deserialize, Serialize};

mod probe;
use probe::{Gate, Mode, Probe, eventually, in_time};

#[test]
fn any_number_of_threads_cause_one_get() {
    for cache_bytes in [0, 1 << 20] {
        let (probe, builder) = Probe::builder(&format!("proxy-flight-{cache_bytes}"));
        let store = builder.cache_bytes(cache_bytes).build().unwrap();
        probe.set(Mode::Slow(Duration::from_millis(50)));
        let proxy: Proxy<Vec<f64>> = store.proxy(&vec![1.0, 2.0]).wait().unwrap();
        let barrier = Barrier::new(64);
        let addresses: HashSet<usize> = thread::scope(|scope| {
            let threads: Vec<_> = (0..64)
                .map(|i| {
                    let clone = if i % 2 == 0 { Some(proxy.clone()) } else { None };
                    let (proxy, barrier) = (&proxy, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let proxy = clone.as_ref().unwrap_or(proxy);
                        assert_eq!(proxy[1], 2.0);
                        std::ptr::from_ref(&proxy[0]).addr()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(probe.gets(), 1);
        assert_eq!(addresses.len(), 1, "all see one object");
    }
}

#[test]
fn a_proxy_travels_as_text_bytes_and_through_serde() {
    let store = Store::open("memory://proxy-travels").unwrap();
    let proxy: Proxy<[f64]> = store.proxy(&[1.0, 2.0][..]).wait().unwrap();
    let copies: Vec<Proxy<[f64]>> = vec![
        proxy.to_token().unwrap().parse().unwrap(),
        Proxy::from_token_bytes(&proxy.to_token_bytes().unwrap()).unwrap(),
        Proxy::token(&proxy).unwrap().into(),
        serde_json::from_str(&serde_json::to_string(&proxy).unwrap()).unwrap(),
        serde_json::from_value(serde_json::to_value(&proxy).unwrap()).unwrap(),
        postcard::from_bytes(&postcard::to_allocvec(&proxy).unwrap()).unwrap(),
        #[cfg(feature = "msgpack")]
        rmp_serde::from_slice(&rmp_serde::to_vec(&proxy).unwrap()).unwrap(),
        #[cfg(feature = "msgpack")]
        rmp_serde::from_slice(&rmp_serde::to_vec_named(&proxy).unwrap()).unwrap(),
    ];
    assert_eq!(store.cache_stats().misses, 0, "travelling resolves nothing");
    for copy in copies {
        assert!(!Proxy::is_resolved(&copy));
        assert_eq!(Proxy::key(&copy), Proxy::key(&proxy));
        assert_eq!(Proxy::store(&copy).unwrap(), store);
        assert_eq!(*copy, [1.0, 2.0]);
    }
    // The text is one URL-safe word.
    assert!(proxy.to_token().unwrap().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)));
    // Inside other types.
    #[derive(Serialize, Deserialize)]
    struct Task {
        input: Proxy<[f64]>,
        steps: u32,
    }
    let task = serde_json::to_string(&Task { input: proxy, steps: 3 }).unwrap();
    let task: Task = serde_json::from_str(&task).unwrap();
    assert_eq!((task.input[0], task.steps), (1.0, 3));
}

#[test]
fn tokens_are_small() {
    // What a job would use, with the locators of the memory connector: 16 bytes.
    for url in ["memory://simulation-ensemble-0042", "memory:///lustre/project/abc123/user/run-2026-11-21"] {
        let store = Store::open(url).unwrap();
        for proxy in [
            store.proxy(&vec![0u8; 1 << 20][..]).wait().unwrap(),
            store.proxy_once(&[1u8][..]).wait().unwrap(),
            store.promise::<[u8]>().unwrap().1,
        ] {
            let (text, bytes) = (proxy.to_token().unwrap(), proxy.to_token_bytes().unwrap());
            assert!(text.len() <= 150, "{} characters: {text}", text.len());
            assert!(bytes.len() <= 100, "{} bytes", bytes.len());
            assert!(postcard::to_allocvec(&proxy).unwrap().len() <= 101);
        }
    }
}

#[test]
fn damaged_tokens_are_refused() {
    let store = Store::open("memory://proxy-damaged").unwrap();
    let token = store.proxy("x").wait().unwrap().to_token().unwrap();
    for cut in 0..token.len() {
        let error = token[..cut].parse::<Proxy<str>>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
    let quoted = serde_json::to_string(&token[..token.len() - 1]).unwrap();
    assert!(serde_json::from_str::<Proxy<str>>(&quoted).is_err());
    assert!(serde_json::from_str::<Proxy<str>>("17").is_err());
    assert!(postcard::from_bytes::<Proxy<str>>(&[3, 1, 2, 3]).is_err());
}

/// Writes a token for a store that need not exist.
fn token_of(url: &str, locator: &[u8], len: u64, format: Format) -> Vec<u8> {
    let mut out = vec![1, 0, u8::try_from(url.len()).unwrap()];
    out.extend_from_slice(url.as_bytes());
    out.extend_from_slice(&format.codec.to_le_bytes());
    out.extend_from_slice(&format.fingerprint.to_le_bytes());
    out.push(u8::try_from(len + 1).unwrap());
    out.push(u8::try_from(locator.len()).unwrap());
    out.extend_from_slice(locator);
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

#[test]
fn reading_a_proxy_opens_nothing() {
    static OPENED: AtomicUsize = AtomicUsize::new(0);
    connectors::register(Registration::new("counted", "process", "", &[], Capabilities::default(), |_| {
        OPENED.fetch_add(1, Ordering::SeqCst);
        Err(Error::new(ErrorKind::Io, "open", "not today"))
    }))
    .unwrap();
    let bytes = token_of("counted://x", &[1; 16], 5, <str>::format());
    let proxy: Proxy<str> = Proxy::from_token_bytes(&bytes).unwrap();
    let proxy: Proxy<str> = postcard::from_bytes(&postcard::to_allocvec(&proxy).unwrap()).unwrap();
    let proxy: Proxy<str> = serde_json::from_str(&serde_json::to_string(&proxy).unwrap()).unwrap();
    assert!(!format!("{proxy:?} {:?}", proxy.clone()).is_empty());
    assert_eq!(Proxy::key(&proxy).unwrap().scheme(), "counted");
    let once = Proxy::once(proxy.clone());
    assert!(once.to_token().is_ok());
    assert_eq!(OPENED.load(Ordering::SeqCst), 0);
    // Using it opens, and each further use tries again.
    for opened in 1..4 {
        assert_eq!(Proxy::try_get(&proxy).unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(OPENED.load(Ordering::SeqCst), opened);
    }
    assert_eq!(Proxy::store(&proxy).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(Proxy::resolve_all([&proxy]).wait().unwrap_err().kind(), ErrorKind::Io);
    let unknown: Proxy<str> = Proxy::from_token_bytes(&token_of("redis://x", &[1; 16], 5, <str>::format())).unwrap();
    assert_eq!(Proxy::try_get(&unknown).unwrap_err().kind(), ErrorKind::UnknownScheme);
}

#[test]
fn failures_are_not_final() {
    let (probe, store) = Probe::store("proxy-retry");
    let proxy: Proxy<str> = store.proxy("x").wait().unwrap();
    probe.set(Mode::Fail(ErrorKind::Io));
    for _ in 0..2 {
        assert_eq!(Proxy::try_get(&proxy).unwrap_err().kind(), ErrorKind::Io);
        assert!(!Proxy::is_resolved(&proxy));
    }
    assert!(catch_unwind(AssertUnwindSafe(|| proxy.len())).is_err());
    probe.set(Mode::Ready);
    assert_eq!(&*proxy, "x");
    let gone: Proxy<str> = store.proxy("gone").wait().unwrap();
    store.evict(Proxy::key(&gone).unwrap()).wait().unwrap();
    let error = Proxy::try_get(&gone).unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(error.op(), "resolve");
}

#[test]
fn all_threads_share_a_failure_and_then_a_success() {
    let (probe, store) = Probe::store("proxy-shared-failure");
    let proxy: Proxy<str> = store.proxy("x").wait().unwrap();
    let gate = Arc::new(Gate::default());
    probe.set(Mode::Behind(Arc::clone(&gate)));
    store.evict(Proxy::key(&proxy).unwrap()).wait().unwrap();
    thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| Proxy::try_get(&proxy).map(str::len).unwrap_err())).collect();
        eventually("one of them fetches", || gate.waiting.load(Ordering::SeqCst) == 1);
        gate.open();
        for thread in threads {
            assert!(thread.join().unwrap().is_not_found());
        }
    });
}

/// Runs `f`, which must panic, and returns message and place.
fn panic_of<T>(f: impl FnOnce() -> T) -> (String, String, u32) {
    type Seen = Option<(String, u32)>;
    thread_local!(static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let place = info.location().map(|place| (place.file().to_owned(), place.line()));
            let wanted = SEEN.with_borrow_mut(|seen| seen.as_mut().map(|seen| *seen = place).is_some());
            if !wanted {
                before(info);
            }
        }));
    });
    SEEN.set(Some(None));
    let payload = catch_unwind(AssertUnwindSafe(f)).map(drop).expect_err("a panic");
    let (file, line) = SEEN.take().flatten().expect("a place");
    let message = payload.downcast::<String>().map(|text| *text).unwrap_or_default();
    (message, file, line)
}

#[test]
fn a_panic_names_the_line_the_type_and_the_key() {
    let store = Store::open("memory://proxy-panic").unwrap();
    let make = || {
        let proxy: Proxy<Vec<f64>> = store.proxy(&vec![1.0]).wait().unwrap();
        store.evict(Proxy::key(&proxy).unwrap()).wait().unwrap();
        proxy
    };
    let (proxy, other) = (make(), make());
    let locator: String = Proxy::key(&proxy).unwrap().locator().iter().map(|byte| format!("{byte:02x}")).collect();
    // Each in one line, so that `line!()` is the caller's.
    type Case<'a> = (&'a str, u32, Box<dyn FnOnce() -> usize + 'a>);
    let cases: Vec<Case<'_>> = vec![
        ("deref", line!(), Box::new(|| proxy.len())),
        ("index", line!(), Box::new(|| proxy[0] as usize)),
        ("equality", line!(), Box::new(|| usize::from(proxy == other))),
        ("as_ref", line!(), Box::new(|| AsRef::<Vec<f64>>::as_ref(&proxy).len())),
        ("borrow", line!(), Box::new(|| std::borrow::Borrow::<Vec<f64>>::borrow(&proxy).len())),
        ("iteration", line!(), Box::new(|| (&proxy).into_iter().count())),
    ];
    for (what, expected, case) in cases {
        let (message, file, line) = panic_of(case);
        assert_eq!((file.as_str(), line), (file!(), expected), "{what}");
        for part in ["Vec<f64>", &locator, "memory://proxy-panic", "no such object"] {
            assert!(message.contains(part), "{what}: {part} is missing in: {message}");
        }
    }
    let number: Proxy<f64> = store.proxy(&1.0).wait().unwrap();
    store.evict(Proxy::key(&number).unwrap()).wait().unwrap();
    let (_, file, line) = panic_of(|| &number + 1.0);
    assert_eq!((file.as_str(), line), (file!(), line!() - 1));
    let (_, file, line) = panic_of(|| -&number);
    assert_eq!((file.as_str(), line), (file!(), line!() - 1));
}

#[test]
fn debug_never_resolves() {
    let (probe, store) = Probe::store("proxy-debug");
    let proxy: Proxy<Vec<f64>> = store.proxy(&vec![1.0]).wait().unwrap();
    let text = format!("{proxy:?}");
    for part in ["Vec<f64>", "memory://proxy-debug", "unresolved"] {
        assert!(text.contains(part), "{text}");
    }
    assert!(!Proxy::is_resolved(&proxy));
    assert_eq!(probe.gets(), 0);
    assert_eq!(proxy.len(), 1);
    assert!(format!("{proxy:?}").contains("resolved") && !format!("{proxy:?}").contains("unresolved"));
    let local = Proxy::<String>::from_fn(|| panic!("resolved by Debug"));
    assert!(format!("{local:?}").contains("unresolved"));
    let once = format!("{:?}", Proxy::once(proxy));
    assert!(once.contains("Take"), "{once}");
}

#[test]
fn a_wrong_type_is_refused_before_a_byte_moves() {
    let (probe, store) = Probe::store("proxy-type");
    let token = store.proxy(&vec![1.0f64]).wait().unwrap().to_token().unwrap();
    let wrong: Proxy<Vec<f32>> = token.parse().unwrap();
    let error = Proxy::try_get(&wrong).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TypeMismatch);
    assert!(error.to_string().contains("Vec<f32>"), "{error}");
    let wrong: Proxy<Vec<f32>> = Proxy::once(wrong);
    assert_eq!(Proxy::try_get(&wrong).unwrap_err().kind(), ErrorKind::TypeMismatch);
    assert_eq!(Proxy::resolve_all([&token.parse::<Proxy<String>>().unwrap()]).wait().unwrap_err().kind(), {
        ErrorKind::TypeMismatch
    });
    assert_eq!((probe.gets(), probe.batches.load(Ordering::SeqCst), probe.takes.load(Ordering::SeqCst)), (0, 0, 0));
    assert_eq!(*token.parse::<Proxy<Vec<f64>>>().unwrap(), [1.0]);
}

#[test]
fn a_one_time_proxy_has_one_winner_among_all_copies() {
    let (probe, store) = Probe::store("proxy-once");
    for slow in [false, true] {
        probe.set(if slow { Mode::Slow(Duration::from_millis(1)) } else { Mode::Ready });
        for _ in 0..20 {
            let proxy = store.proxy_once("single").wait().unwrap();
            let (token, key) = (proxy.to_token().unwrap(), *Proxy::key(&proxy).unwrap());
            let outcomes: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            let copy: Proxy<str> = token.parse().unwrap();
                            Proxy::try_get(&copy).map(str::to_owned)
                        })
                    })
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(
                outcomes.iter().filter(|outcome| outcome.as_deref().is_ok_and(|text| text == "single")).count(),
                1
            );
            assert!(outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).all(Error::is_not_found));
            assert!(!store.exists(&key).wait().unwrap());
            assert!(Proxy::try_get(&proxy).unwrap_err().is_not_found());
        }
    }
}

#[test]
fn clones_of_a_one_time_proxy_share_the_object() {
    let (probe, store) = Probe::store("proxy-once-clones");
    probe.set(Mode::Slow(Duration::from_millis(10)));
    let proxy = store.proxy_once("shared").wait().unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            let clone = proxy.clone();
            scope.spawn(move || assert_eq!(&*clone, "shared"));
        }
    });
    assert_eq!(&*proxy, "shared");
    assert_eq!(&*proxy.clone(), "shared");
    assert_eq!(probe.takes.load(Ordering::SeqCst), 1);
    // An ordinary copy of the same object finds it gone.
    let copy: Proxy<str> = store.proxy_from_key(Proxy::key(&proxy).unwrap()).unwrap();
    assert!(Proxy::try_get(&copy).unwrap_err().is_not_found());
    // Fetched ahead, it is not fetched twice.
    let proxy = store.proxy_once("ahead").wait().unwrap();
    Proxy::prefetch(&proxy);
    Proxy::prefetch(&proxy);
    assert_eq!(&*proxy, "ahead");
    Proxy::prefetch(&proxy);
    assert_eq!(probe.takes.load(Ordering::SeqCst), 2);
}

#[test]
fn once_makes_a_new_proxy_of_what_was_resolved() {
    let store = Store::open("memory://proxy-once-late").unwrap();
    let owned = store.proxy_owned(vec![1, 2, 3]).wait().unwrap();
    let key = *Proxy::key(&owned).unwrap();
    let once = Proxy::once(owned);
    // ProxyStore never evicted such objects: the producer's copy hid the store.
    assert_eq!(*once, [1, 2, 3]);
    assert!(!store.exists(&key).wait().unwrap());
    assert_eq!(*Proxy::once(once.clone()), *once, "a one-time proxy stays one");
}

#[test]
fn owned_proxies_have_their_object() {
    let (probe, store) = Probe::store("proxy-owned");
    let proxy = store.proxy_owned(vec![1, 2, 3]).wait().unwrap();
    assert!(Proxy::is_resolved(&proxy) && Proxy::is_resolved(&proxy.clone()));
    assert_eq!(*proxy, [1, 2, 3]);
    assert_eq!(probe.gets(), 0);
    let copy: Proxy<Vec<i32>> = proxy.to_token().unwrap().parse().unwrap();
    assert_eq!(*copy, *proxy);
    assert_eq!(probe.gets(), 1);
    probe.commits_left(0);
    assert_eq!(store.proxy_owned(1u8).wait().map(drop).unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn prefetch_fetches_in_the_background() {
    let (probe, store) = Probe::store("proxy-prefetch");
    let gate = Arc::new(Gate::default());
    probe.set(Mode::Behind(Arc::clone(&gate)));
    let proxies = store.proxy_batch(["a", "b", "c", "d"]).wait().unwrap();
    // Returns though no fetch can end, and no fetch waits for another one's end.
    proxies.iter().for_each(Proxy::prefetch);
    eventually("all are fetched at once", || gate.waiting.load(Ordering::SeqCst) == 4);
    assert!(!proxies.iter().any(Proxy::is_resolved));
    gate.open();
    eventually("all are here", || proxies.iter().all(Proxy::is_resolved));
    assert_eq!(proxies.iter().map(|proxy| proxy.len()).sum::<usize>(), 4);
    assert_eq!(probe.gets(), 4);
    // A failure shows at the first use, and the use after that tries again.
    let proxy: Proxy<str> = store.proxy("later").wait().unwrap();
    probe.set(Mode::Fail(ErrorKind::Io));
    Proxy::prefetch(&proxy);
    assert_eq!(Proxy::try_get(&proxy).unwrap_err().kind(), ErrorKind::Io);
    probe.set(Mode::Ready);
    assert_eq!(&*proxy, "later");
    // Dropping what waits loses nothing.
    probe.set(Mode::Slow(Duration::from_millis(10)));
    let proxy: Proxy<str> = store.proxy("dropped").wait().unwrap();
    drop(Proxy::resolve(&proxy));
    eventually("it is here", || Proxy::is_resolved(&proxy));
}

#[test]
fn resolve_all_of_every_kind() {
    let (first, first_store) = Probe::store("proxy-all-1");
    let (second, second_store) = Probe::store("proxy-all-2");
    let made = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&made);
    let resolved = first_store.proxy("resolved").wait().unwrap();
    assert_eq!(resolved.len(), 8);
    let once = first_store.proxy_once("once").wait().unwrap();
    let (promise, promised) = second_store.promise::<str>().unwrap();
    let mut proxies = first_store.proxy_batch(["one", "two", "three"]).wait().unwrap();
    proxies.extend(second_store.proxy_batch(["four", "five"]).wait().unwrap());
    proxies.push(proxies[0].clone());
    proxies.push(proxies[4].to_token().unwrap().parse().unwrap());
    proxies.push(resolved);
    proxies.push(once.clone());
    proxies.push(once);
    proxies.push(promised);
    proxies.push(Proxy::from_factory(move || {
        count.fetch_add(1, Ordering::SeqCst);
        <str as Object>::view(proxystore::Region::copy_from_slice(b"made")?)
    }));
    let keeper = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        promise.set("promised").wait().unwrap();
    });
    Proxy::resolve_all(&proxies).wait().unwrap();
    keeper.join().unwrap();
    assert!(proxies.iter().all(Proxy::is_resolved));
    let texts: Vec<&str> = proxies.iter().map(|proxy| &**proxy).collect();
    assert_eq!(
        texts,
        ["one", "two", "three", "four", "five", "one", "five", "resolved", "once", "once", "promised", "made"]
    );
    assert_eq!(made.load(Ordering::SeqCst), 1);
    // One operation a store; the single get is that of `resolved`.
    for (probe, gets) in [(&first, 1), (&second, 0)] {
        assert_eq!((probe.batches.load(Ordering::SeqCst), probe.gets()), (1, gets));
    }
    Proxy::resolve_all(&proxies).wait().unwrap();
    Proxy::<str>::resolve_all([]).wait().unwrap();
    assert_eq!(first.batches.load(Ordering::SeqCst), 1);
}

#[test]
fn resolve_all_resolves_what_it_can() {
    let (_, store) = Probe::store("proxy-all-missing");
    let proxies = store.proxy_batch(["zero", "one", "two"]).wait().unwrap();
    store.evict(Proxy::key(&proxies[1]).unwrap()).wait().unwrap();
    assert!(Proxy::resolve_all(&proxies).wait().unwrap_err().is_not_found());
    assert_eq!(proxies.iter().map(Proxy::is_resolved).collect::<Vec<_>>(), [true, false, true]);
    // The same when one of them is damaged or of another type.
    let key = store.put(&[1.0f64][..]).wait().unwrap();
    let damaged = store.connector().put(b"\xff", <str>::format()).wait().unwrap();
    for bad in [key, damaged] {
        let mut proxies = store.proxy_batch(["a", "b"]).wait().unwrap();
        proxies.insert(1, store.proxy_from_key::<str>(&bad).unwrap());
        let error = Proxy::resolve_all(&proxies).wait().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::TypeMismatch | ErrorKind::Corrupt), "{error}");
        assert_eq!(proxies.iter().map(Proxy::is_resolved).collect::<Vec<_>>(), [true, false, true], "{error}");
    }
}

#[test]
fn resolve_all_overlaps_stores() {
    let (first, first_store) = Probe::store("proxy-overlap-1");
    let (second, second_store) = Probe::store("proxy-overlap-2");
    let proxies = [first_store.proxy("a").wait().unwrap(), second_store.proxy("b").wait().unwrap()];
    let gate = Arc::new(Gate::default());
    first.set(Mode::Behind(Arc::clone(&gate)));
    second.set(Mode::Behind(Arc::clone(&gate)));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| Proxy::resolve_all(&proxies).wait());
        let both = in_time(|| gate.waiting.load(Ordering::SeqCst) == 2);
        gate.open();
        waiter.join().unwrap().unwrap();
        assert!(both, "one store after the other");
    });
}

#[test]
fn into_inner_clones_only_what_is_shared() {
    static CLONES: AtomicUsize = AtomicUsize::new(0);
    #[derive(Serialize, Deserialize, Debug, PartialEq)]
    struct Counted(u32);
    impl Clone for Counted {
        fn clone(&self) -> Self {
            CLONES.fetch_add(1, Ordering::SeqCst);
            Self(self.0)
        }
    }
    let uncached = Store::open("memory://proxy-into-uncached?cache_bytes=0").unwrap();
    let proxy = uncached.proxy(&Counted(1)).wait().unwrap();
    assert_eq!(Proxy::into_inner(proxy).unwrap(), Counted(1));
    let resolved = uncached.proxy(&Counted(2)).wait().unwrap();
    assert_eq!(resolved.0, 2);
    assert_eq!(Proxy::into_inner(resolved).unwrap(), Counted(2));
    assert_eq!(CLONES.load(Ordering::SeqCst), 0);
    let proxy = uncached.proxy(&Counted(3)).wait().unwrap();
    let clone = proxy.clone();
    assert_eq!(Proxy::into_inner(proxy).unwrap(), Counted(3));
    assert_eq!(CLONES.load(Ordering::SeqCst), 1);
    assert_eq!(*clone, Counted(3));
    let cached = Store::open("memory://proxy-into-cached").unwrap();
    let proxy = cached.proxy(&Counted(4)).wait().unwrap();
    assert_eq!(Proxy::into_inner(proxy).unwrap(), Counted(4));
    assert_eq!(CLONES.load(Ordering::SeqCst), 2);
    let view = Proxy::into_view(cached.proxy("view").wait().unwrap()).unwrap();
    assert_eq!(&*view, "view");
}

#[test]
#[allow(clippy::mutable_key_type, reason = "resolving a proxy does not change what it compares as")]
fn a_proxy_passes_on_what_its_object_can() {
    let store = Store::open("memory://proxy-delegate").unwrap();
    let float = |x: f64| store.proxy(&x).wait().unwrap();
    let int = |n: i64| store.proxy(&n).wait().unwrap();
    assert_eq!(&float(6.0) + 1.0, 7.0);
    assert_eq!(&float(6.0) - 1.0, 5.0);
    assert_eq!(&float(6.0) * 2.0, 12.0);
    assert_eq!(&float(6.0) / 2.0, 3.0);
    assert_eq!(&int(7) % 4, 3);
    assert_eq!(-&int(7), -7);
    assert_eq!(!&int(7), !7);
    assert_eq!((&int(6) & 3, &int(6) | 1, &int(6) ^ 3), (2, 7, 5));
    assert_eq!((&int(6) << 2i64, &int(6) >> 1i64), (24, 3));
    assert_eq!(*float(2.0) + *float(3.0), 5.0);
    // ProxyStore's f-strings failed; formats reach the object here.
    assert_eq!(format!("{:8.2}|{:<5}|", float(1.0 / 3.0), int(42)), "    0.33|42   |");
    let text = |s: &str| store.proxy(s).wait().unwrap();
    assert_eq!(format!("{:>5}", text("abc")), "  abc");
    assert_eq!(text("abc"), text("abc"));
    assert_ne!(text("abc"), text("abd"));
    assert_eq!(text("abc"), store.proxy(&"abc".to_owned()).wait().unwrap());
    assert!(text("abc") < text("abd"));
    assert_eq!(text("b").max(text("a")), text("b"));
    let set: BTreeSet<Proxy<str>> = ["c", "a", "b", "a"].into_iter().map(text).collect();
    assert_eq!(set.iter().map(|proxy| &**proxy).collect::<String>(), "abc");
    let map: HashMap<Proxy<str>, u32> = [(text("one"), 1), (text("two"), 2)].into();
    assert_eq!((map.get("one"), map.get("three")), (Some(&1), None));
    let map: HashMap<Proxy<String>, u32> = [(store.proxy(&"one".to_owned()).wait().unwrap(), 1)].into();
    let one = String::from("one");
    assert_eq!(map.get(&one), Some(&1));
    assert!(set.contains("b") && !set.contains("d"));
    let numbers: Proxy<Vec<i32>> = store.proxy(&vec![1, 2, 3]).wait().unwrap();
    let mut sum = 0;
    for n in &numbers {
        sum += n;
    }
    assert_eq!((sum, numbers[1], numbers[1..].len(), numbers.contains(&2)), (6, 2, 2, true));
    fn takes_slice(numbers: &[i32]) -> usize {
        numbers.len()
    }
    fn takes_ref(numbers: impl AsRef<Vec<i32>>) -> usize {
        numbers.as_ref().len()
    }
    assert_eq!(takes_slice(&numbers) + takes_ref(&numbers), 6);
}

#[test]
fn a_proxy_of_a_proxy() {
    let store = Store::open("memory://proxy-proxy").unwrap();
    let inner: Proxy<Vec<f64>> = store.proxy(&vec![1.0, 2.0]).wait().unwrap();
    let outer: Proxy<Proxy<Vec<f64>>> = store.proxy(&inner).wait().unwrap();
    let outer: Proxy<Proxy<Vec<f64>>> = outer.to_token().unwrap().parse().unwrap();
    assert!(!Proxy::is_resolved(&outer));
    assert!(!Proxy::is_resolved(&*outer));
    assert_eq!(outer[1], 2.0);
    assert!(Proxy::is_resolved(&*outer));
    // A local factory cannot be put.
    let local = Proxy::<Vec<f64>>::from_fn(|| Ok(vec![]));
    let error = store.put(&local).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec, "{error}");
    assert!(error.to_string().contains("postcard"), "{error}");
}

#[test]
fn a_promise_wakes_who_waits() {
    let (probe, store) = Probe::store("proxy-promise");
    let (promise, proxy) = store.promise::<Vec<f64>>().unwrap();
    assert!(!store.exists(promise.key()).wait().unwrap());
    let copy: Proxy<Vec<f64>> = proxy.to_token().unwrap().parse().unwrap();
    let waiters: Vec<_> = [proxy.clone(), copy, proxy]
        .into_iter()
        .map(|proxy| thread::spawn(move || Proxy::try_get(&proxy).map(|v| v[0])))
        .collect();
    eventually("all wait", || probe.waits.load(Ordering::SeqCst) == 2);
    thread::sleep(Duration::from_millis(30));
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
    promise.set(&vec![4.0]).wait().unwrap();
    for waiter in waiters {
        assert_eq!(waiter.join().unwrap().unwrap(), 4.0);
    }
    // ProxyStore polls each second; here each wait is one call of the connector.
    assert_eq!((probe.waits.load(Ordering::SeqCst), probe.gets()), (2, 0));
    let (promise, proxy) = store.promise::<str>().unwrap();
    let task = async { (&proxy).await.map(|view| view.len()) };
    let set = async { promise.set("async").await };
    let (len, set) = futures::executor::block_on(futures::future::join(task, set));
    assert_eq!((len.unwrap(), set.unwrap()), (5, ()));
}

#[test]
fn a_broken_promise_is_heard_of_at_once() {
    let (probe, store) = Probe::store("proxy-broken");
    let (promise, proxy) = store.promise::<str>().unwrap();
    let waiter = {
        let proxy = proxy.clone();
        thread::spawn(move || Proxy::try_get(&proxy).map(str::len).unwrap_err())
    };
    thread::sleep(Duration::from_millis(20));
    let start = Instant::now();
    drop(promise);
    assert_eq!(waiter.join().unwrap().kind(), ErrorKind::Cancelled);
    assert!(Proxy::try_get(&proxy).unwrap_err().is_not_found());
    // A value that cannot be encoded breaks it as well.
    let (promise, proxy) = store.promise::<Proxy<String>>().unwrap();
    let error = promise.set(&Proxy::from_fn(|| Ok(String::new()))).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Codec);
    assert!(Proxy::try_get(&proxy).map(drop).unwrap_err().is_not_found());
    // So does one that the connector has no room for.
    let (promise, proxy) = store.promise::<str>().unwrap();
    let waiter = thread::spawn(move || Proxy::try_get(&proxy).map(str::len).unwrap_err());
    thread::sleep(Duration::from_millis(20));
    probe.commits_left(0);
    assert_eq!(promise.set("x").wait().unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(waiter.join().unwrap().kind(), ErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_promise_is_kept_once() {
    let (probe, store) = Probe::store("proxy-twice");
    let (promise, proxy) = store.promise::<str>().unwrap();
    let key = *promise.key();
    let mut region = probe.reserve(5).unwrap();
    bytes::BufMut::put_slice(&mut region, b"first");
    probe.commit_at(&key, region).wait().unwrap();
    let error = promise.set("second").wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(&*proxy, "first", "and failing to set it again does not take it away");
    assert!(store.exists(&key).wait().unwrap());
}

#[test]
fn tasks_resolve_under_any_executor() {
    let (probe, store) = Probe::store("proxy-async");
    probe.set(Mode::Slow(Duration::from_millis(20)));
    async fn use_all(proxies: Vec<Proxy<str>>) -> usize {
        let views = futures::future::join_all(proxies.iter().map(Proxy::resolve)).await;
        let twice = (&proxies[0]).await.unwrap();
        views.into_iter().map(|view| view.unwrap().len()).sum::<usize>() + twice.len()
    }
    let make = || {
        let mut proxies = store.proxy_batch(["a", "bb", "ccc", "dddd"]).wait().unwrap();
        proxies.extend([proxies[0].clone(), proxies[0].clone()]);
        proxies
    };
    assert_eq!(futures::executor::block_on(use_all(make())), 13);
    let current = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(current.block_on(use_all(make())), 13);
    let multi = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    assert_eq!(multi.block_on(async { tokio::spawn(use_all(make())).await.unwrap() }), 13);
    assert_eq!(probe.gets(), 12, "one a proxy, whoever waits");
    // A task on a single thread has all of them under way before the first one ends.
    let gate = Arc::new(Gate::default());
    let proxies = make();
    probe.set(Mode::Behind(Arc::clone(&gate)));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| futures::executor::block_on(use_all(proxies)));
        let all = in_time(|| gate.waiting.load(Ordering::SeqCst) == 4);
        gate.open();
        assert_eq!(waiter.join().unwrap(), 13);
        assert!(all, "one after the other");
    });
}

#[test]
fn a_task_that_sleeps_holds_up_no_thread() {
    let (probe, store) = Probe::store("proxy-sleeping-task");
    probe.set(Mode::Slow(Duration::from_millis(20)));
    let proxy: Proxy<str> = store.proxy("x").wait().unwrap();
    // The task polls once and then blocks its only thread on the same proxy.
    let current = tokio::runtime::Builder::new_current_thread().build().unwrap();
    current.block_on(async {
        let mut task = std::pin::pin!(Proxy::resolve(&proxy));
        assert!(futures::future::poll_immediate(&mut task).await.is_none());
        assert_eq!(&*proxy, "x");
        assert_eq!(&*task.await.unwrap(), "x");
    });
    assert_eq!(probe.gets(), 1);
}

#[test]
fn who_joins_a_fetch_has_a_deadline_too() {
    let (probe, builder) = Probe::builder("proxy-follower");
    let store = builder.deadline(Duration::from_millis(100)).build().unwrap();
    let proxy: Proxy<str> = store.proxy("x").wait().unwrap();
    let gate = Arc::new(Gate::default());
    // A blocking call that nothing interrupts: whoever drives it is caught, those who only wait are not.
    probe.set(Mode::Behind(Arc::clone(&gate)));
    thread::scope(|scope| {
        scope.spawn(|| Proxy::try_get(&proxy).map(str::len));
        eventually("the fetch began", || gate.waiting.load(Ordering::SeqCst) == 1);
        let start = Instant::now();
        let follower = scope.spawn(|| Proxy::try_get(&proxy).map(str::len));
        eventually("the follower ended", || follower.is_finished() || start.elapsed() > Duration::from_secs(3));
        let ended = follower.is_finished();
        gate.open();
        assert!(ended);
        assert_eq!(follower.join().unwrap().unwrap_err().kind(), ErrorKind::Timeout);
    });
    assert_eq!(&*proxy, "x");
}

#[test]
fn tokens_compare_and_tell_their_key() {
    let store = Store::open("memory://proxy-token").unwrap();
    let proxy: Proxy<str> = store.proxy("x").wait().unwrap();
    let token = Proxy::token(&proxy).unwrap();
    assert_eq!(token, proxy.to_token().unwrap().parse::<Token>().unwrap());
    assert_eq!(token.key(), Proxy::key(&proxy));
    assert_ne!(token, Proxy::token(&Proxy::once(proxy)).unwrap());
    let key: Key = *token.key().unwrap();
    let pending: Pending<bool> = store.exists(&key);
    assert!(pending.wait().unwrap());
}

#[test]
fn a_proxy_of_a_closure_stays_at_home() {
    let local: Proxy<String> = Proxy::from_fn(|| Ok(String::new()));
    assert!(Proxy::key(&local).is_none());
    assert!(serde_json::to_string(&local).is_err());
    for refused in [
        Proxy::token(&local).map(drop),
        local.to_token().map(drop),
        local.to_token_bytes().map(drop),
        Proxy::store(&local).map(drop),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unsupported);
    }
}
