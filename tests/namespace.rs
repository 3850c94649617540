//! `service::Namespace`: what a look from outside tells, and that leaving leaves nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(feature = "shm")]

use std::time::Duration;

use proxystore::connector::PutOptions;
use proxystore::service::{self, Namespace};
use proxystore::token::Access;
use proxystore::{Key, Proxy, Store, Token};

#[test]
fn objects_promises_views_and_the_end() {
    let name = format!("test-namespace-{}", std::process::id());
    assert!(!Namespace::is_held(&name).unwrap() && Namespace::find(&name).unwrap().is_none());
    assert_eq!(Namespace::directory(&name).unwrap(), None, "looking makes nothing");

    let store = Store::open(&format!("shm://{name}?cache_bytes=0")).unwrap();
    let plain = store.put(&[7u8; 1000][..]).wait().unwrap();
    let options = PutOptions::new().time_to_live(Duration::from_secs(3600)).evict_with_producer();
    let bound = store.with(options).put(&[1u8][..]).wait().unwrap();
    let (promise, proxy) = store.promise::<[u8]>().unwrap();
    let promised = *Proxy::key(&proxy).unwrap();
    let view = store.get_region(&plain).wait().unwrap().unwrap();

    let namespace = Namespace::find(&name).unwrap().unwrap();
    assert!(service::namespaces().unwrap().contains(&name) && !namespace.evicts());
    assert_eq!(namespace.objects().unwrap().count(), 3);
    let look = |key: &Key| namespace.object(key).unwrap().unwrap();
    let object = look(&plain);
    assert_eq!((object.key, object.len, object.capacity, object.pins), (plain, 1000, 1024, 1));
    assert_eq!((object.owner, object.expires_in), (Some(std::process::id()), None));
    assert!(!object.is_promised && !object.ends_with_producer && object.idle.unwrap() < Duration::from_secs(60));
    let object = look(&bound);
    assert!(object.ends_with_producer && object.pins == 0);
    assert!((3000..=3600).contains(&object.expires_in.unwrap().as_secs()));
    let object = look(&promised);
    assert_eq!((object.key, object.is_promised, object.len, object.capacity), (promised, true, 0, 0));
    let access = |object| match namespace.token(&object) {
        Token::Object { access, .. } => access,
        other => panic!("{other:?}"),
    };
    assert_eq!((access(object), access(look(&plain))), (Access::WhenCommitted, Access::Get));

    // A kept promise is one object, by the key of the promise.
    promise.set(b"kept").wait().unwrap();
    let object = look(&promised);
    assert_eq!((object.is_promised, object.len, namespace.objects().unwrap().count()), (false, 4, 3));
    let kept: Proxy<[u8]> = namespace.token(&object).to_string().parse().unwrap();
    assert_eq!(&*kept, b"kept");
    drop(kept);

    let stats = namespace.stats().unwrap();
    assert_eq!((stats.host, stats.supervised, stats.clients.len()), (std::process::id(), false, 1));
    assert_eq!((stats.clients[0].pins, stats.clients[0].pinned_bytes), (1, 1024));
    drop(view);
    store.evict(&plain).wait().unwrap();
    assert_eq!(namespace.object(&plain).unwrap(), None);
    assert!(namespace.collect().unwrap() > 0);
    assert!(!Namespace::remove_abandoned(&name).unwrap(), "it is in use");

    // Another memory's key is nothing here.
    let elsewhere = Store::open(&format!("shm://{name}-2")).unwrap();
    let foreign = elsewhere.put(&[1u8][..]).wait().unwrap();
    assert_eq!(namespace.object(&foreign).unwrap(), None);

    let last = store.put(&[7u8; 100][..]).wait().unwrap();
    let view = store.get::<[u8]>(&last).wait().unwrap().unwrap();
    service::leave();
    assert!(store.put(&[1u8][..]).wait().is_err() && namespace.stats().is_err() && namespace.objects().is_err());
    assert_eq!(*view, [7; 100], "views stay");
    assert!(Namespace::is_held(&name).unwrap(), "until the process ends, since they do");
}
