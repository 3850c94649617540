//! Reading without a question, on a fabric that reads what a test says: memory that was used again, in part or whole.

use std::collections::HashMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::fabric::fake::{Net, Time};
use crate::fabric::{Answer, Call, Landing, Listener, Peer, Service, Spot};
use crate::service::client::Options;
use crate::service::export::Export;
use crate::shm::class::Place;
use crate::sync::lock;

const OWNER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);

/// What is in the owner's memory, for those who read it themselves.
#[derive(Default)]
struct Memory {
    bytes: Mutex<HashMap<(u16, u64), Vec<u8>>>,
    reads: AtomicU64,
}

struct Reading {
    inner: Arc<dyn Fabric>,
    memory: Arc<Memory>,
}

struct Reader {
    inner: Arc<dyn Peer>,
    memory: Arc<Memory>,
}

impl Fabric for Reading {
    fn scheme(&self) -> &'static str {
        self.inner.scheme()
    }

    fn listen(&self, addresses: &[SocketAddr], service: Arc<dyn Service>) -> Result<Box<dyn Listener>> {
        self.inner.listen(addresses, service)
    }

    fn connect(&self, contact: SocketAddr, deadline: Instant) -> Result<Arc<dyn Peer>> {
        let inner = self.inner.connect(contact, deadline)?;
        Ok(Arc::new(Reader { inner, memory: Arc::clone(&self.memory) }))
    }
}

impl Peer for Reader {
    fn instance(&self) -> u64 {
        self.inner.instance()
    }

    fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    fn request(self: Arc<Self>, call: Call) -> Pending<Answer> {
        Arc::clone(&self.inner).request(call)
    }

    fn close(&self) {
        self.inner.close();
    }

    fn reads(&self) -> bool {
        true
    }

    fn read(&self, spot: Spot, mut into: Landing, _: Instant) -> Result<Landing> {
        self.memory.reads.fetch_add(1, Relaxed);
        match lock(&self.memory.bytes).get(&(spot.segment, spot.offset)) {
            Some(bytes) => {
                into.write(bytes);
                Ok(into)
            }
            None => Err(Error::new(ErrorKind::Unavailable, "get", "nothing is read there")),
        }
    }
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reading")
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

struct Site {
    net: Net,
    owner: DimConnector,
    other: DimConnector,
    memory: Arc<Memory>,
    _listener: Box<dyn Listener>,
}

impl Site {
    /// Two memories that no other test has objects in.
    fn new(name: &str, options: &[(&str, &str)]) -> Self {
        let net = Net::new(Time::Auto, 5);
        let memory = Arc::new(Memory::default());
        let attach = |side: &str| {
            let options = Options {
                namespace: format!("test-{name}-{side}-{}", std::process::id()),
                budget: Some(32 << 20),
                displace: None,
                timeout: Duration::from_secs(20),
                may_host: true,
            };
            Client::attach(&options).unwrap()
        };
        let [own, other] = ["owner", "other"].map(attach);
        let export = Export::new(Arc::clone(&own));
        let fabric: Arc<dyn Fabric> = Arc::new(net.node(OWNER).instance(own.instance()));
        let listener = fabric.listen(&[(OWNER, 0).into()], Arc::new(Arc::clone(&export))).unwrap();
        export.set_contact(listener.contact());
        let config = ConnectorConfig::new("fake", name);
        let config = options.iter().fold(config, |config, (name, value)| config.with_option(*name, *value));
        let owner = DimConnector::new(config.clone(), own, listener.contact(), &[7; 16], fabric).unwrap();
        let inner = Arc::new(net.node(OTHER).instance(other.instance()));
        let fabric = Arc::new(Reading { inner, memory: Arc::clone(&memory) });
        let other = DimConnector::new(config, other, (OTHER, 9).into(), &[7; 16], fabric).unwrap();
        Self { net, owner, other, memory, _listener: listener }
    }

    fn put(&self, bytes: &[u8]) -> Key {
        let key = self.owner.put(bytes, Format::RAW).wait().unwrap();
        self.holds(&key, bytes);
        key
    }

    /// From now on, these bytes are where the object is, or was.
    fn holds(&self, key: &Key, bytes: &[u8]) {
        let place = Place::from_bits(self.owner.objects.signer.address("get", key).unwrap().place);
        lock(&self.memory.bytes).insert((place.segment(), place.offset()), bytes.to_vec());
    }

    fn get(&self, key: &Key) -> Option<Vec<u8>> {
        self.other.get(key).deadline(Duration::from_secs(10)).wait().unwrap().map(|region| region.to_vec())
    }

    /// Until its bytes would be known again.
    fn learn(&self, key: &Key, bytes: &[u8]) {
        for _ in 0..2 {
            assert!(self.get(key).is_some_and(|found| found == bytes));
        }
    }

    /// Questions so far, and reads without one.
    fn counts(&self) -> (u64, u64) {
        (self.net.traffic(OTHER).messages, self.memory.reads.load(Relaxed))
    }

    /// What an operation took: questions, and reads without one.
    fn counted<T>(&self, operation: impl FnOnce() -> T) -> (T, u64, u64) {
        let before = self.counts();
        let result = operation();
        let after = self.counts();
        (result, after.0 - before.0, after.1 - before.1)
    }
}

const FOR_LONG: &[(&str, &str)] = &[("replicas", "off"), ("lease", "1h")];

#[test]
fn what_came_twice_is_read_without_a_question() {
    let site = Site::new("reads-twice", FOR_LONG);
    let bytes = vec![5; 9000];
    let key = site.put(&bytes);
    for _ in 0..2 {
        let (found, asked, read) = site.counted(|| site.get(&key));
        assert!(found.unwrap() == bytes && asked > 0 && read == 0);
    }
    for _ in 0..3 {
        assert_eq!(site.counted(|| site.get(&key)), (Some(bytes.clone()), 0, 1));
    }
    // A fabric that can no more leaves it to answers.
    lock(&site.memory.bytes).clear();
    let (found, asked, read) = site.counted(|| site.get(&key));
    assert!(found.unwrap() == bytes && asked > 0 && read == 1);
}

#[test]
fn what_is_torn_is_not_shown() {
    let site = Site::new("reads-torn", FOR_LONG);
    let bytes = vec![5; 9000];
    let key = site.put(&bytes);
    for at in [0, 1, 4095, 4096, 8999] {
        site.holds(&key, &bytes);
        site.learn(&key, &bytes);
        let mut torn = bytes.clone();
        torn[at..].fill(6);
        site.holds(&key, &torn);
        let (found, asked, read) = site.counted(|| site.get(&key));
        assert!(found.unwrap() == bytes && asked > 0 && read == 1, "torn at {at}");
    }
}

#[test]
fn memory_that_was_used_again_shows_nobody_elses_bytes() {
    let site = Site::new("reads-reused", FOR_LONG);
    let bytes = vec![5; 5000];
    let key = site.put(&bytes);
    site.learn(&key, &bytes);
    site.owner.evict(&key).wait().unwrap();
    site.holds(&key, &[9; 5000]);
    assert_eq!(site.get(&key), None);
}

#[test]
fn what_was_evicted_is_not_read_without_leave() {
    let site = Site::new("reads-asks", &[("replicas", "off")]);
    let bytes = vec![5; 5000];
    let key = site.put(&bytes);
    site.learn(&key, &bytes);
    let (found, asked, read) = site.counted(|| site.get(&key));
    assert!(found.unwrap() == bytes && asked > 0 && read == 1);
    site.owner.evict(&key).wait().unwrap();
    assert_eq!(site.get(&key), None);
}

#[test]
fn what_was_evicted_is_read_no_longer_than_allowed() {
    let site = Site::new("reads-lease", &[("replicas", "off"), ("lease", "2s")]);
    let bytes = vec![5; 5000];
    let key = site.put(&bytes);
    site.learn(&key, &bytes);
    std::thread::sleep(Duration::from_millis(2200));
    // Asked again, it is fresh for as long again.
    assert!(site.get(&key).is_some());
    assert_eq!(site.counted(|| site.get(&key)), (Some(bytes), 0, 1));
    site.owner.evict(&key).wait().unwrap();
    std::thread::sleep(Duration::from_millis(2200));
    assert_eq!(site.get(&key), None);
}

#[test]
fn what_this_process_ended_is_not_read() {
    let site = Site::new("reads-own", FOR_LONG);
    let bytes = vec![5; 5000];
    let keys = [site.put(&bytes), site.put(&bytes)];
    keys.iter().for_each(|key| site.learn(key, &bytes));
    site.other.evict(&keys[0]).wait().unwrap();
    assert!(site.other.take(&keys[1]).wait().unwrap().is_some());
    assert_eq!(keys.map(|key| site.get(&key)), [None, None]);
}

#[test]
fn what_ends_by_itself_is_asked_for_at_its_end() {
    let site = Site::new("reads-ttl", FOR_LONG);
    let bytes = vec![5; 5000];
    let mut region = site.owner.reserve(bytes.len()).unwrap();
    bytes::BufMut::put_slice(&mut region, &bytes);
    let options = PutOptions::new().time_to_live(Duration::from_secs(3));
    let key = site.owner.commit_with(region, Format::RAW, &options).wait().unwrap();
    site.holds(&key, &bytes);
    site.learn(&key, &bytes);
    assert_eq!(site.counted(|| site.get(&key)), (Some(bytes), 0, 1));
    std::thread::sleep(Duration::from_millis(3200));
    assert_eq!(site.get(&key), None);
}

/// Copies that this node keeps are read where they lie; those that it had to give up, at their owner.
#[test]
fn a_copy_that_was_given_up_is_read_again() {
    let site = Site::new("reads-copies", &[("lease", "1h")]);
    let bytes = vec![5; 5000];
    let key = site.put(&bytes);
    let address = site.owner.objects.signer.address("get", &key).unwrap();
    let give_up = || site.other.objects.client.forget_replica(remote::origin(&address)).unwrap();
    for _ in 0..2 {
        assert_eq!(site.get(&key).unwrap(), bytes);
        give_up();
    }
    assert_eq!(site.counted(|| site.get(&key)), (Some(bytes.clone()), 0, 1));
    assert_eq!(site.counted(|| site.get(&key)), (Some(bytes), 0, 0));
}

/// What happens between two gets of an object.
#[derive(Clone, Debug)]
enum Between {
    Nothing,
    /// Its memory has, from there on, bytes of another object.
    Torn(prop::sample::Index, u8),
    Evicted,
    EvictedHere,
    Unreadable,
}

fn between() -> impl Strategy<Value = Between> {
    prop_oneof![
        3 => Just(Between::Nothing),
        3 => (any::<prop::sample::Index>(), 1..=255u8).prop_map(|(at, by)| Between::Torn(at, by)),
        1 => Just(Between::Evicted),
        1 => Just(Between::EvictedHere),
        1 => Just(Between::Unreadable),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_get_is_whole_or_nothing(len in 1..10_000usize, steps in prop::collection::vec(between(), 1..20)) {
        static SITE: std::sync::OnceLock<Site> = std::sync::OnceLock::new();
        let site = SITE.get_or_init(|| Site::new("reads-any", FOR_LONG));
        let bytes: Vec<u8> = (0..len).map(|i| ((i * 7) ^ (i >> 8)) as u8).collect();
        let key = site.put(&bytes);
        let mut is_live = true;
        for step in steps {
            match &step {
                Between::Nothing => site.holds(&key, &bytes),
                Between::Torn(at, by) => {
                    let mut torn = bytes.clone();
                    torn[at.index(len)..].iter_mut().for_each(|byte| *byte ^= by);
                    site.holds(&key, &torn);
                }
                Between::Evicted => {
                    site.owner.evict(&key).wait().unwrap();
                    is_live = false;
                    // Used again.
                    site.holds(&key, &vec![0xee; len]);
                }
                Between::EvictedHere => {
                    site.other.evict(&key).wait().unwrap();
                    is_live = false;
                }
                Between::Unreadable => lock(&site.memory.bytes).clear(),
            }
            match site.get(&key) {
                Some(found) => prop_assert!(found == bytes, "other bytes after {step:?}"),
                None => prop_assert!(!is_live, "lost after {step:?}"),
            }
        }
        let _ = site.owner.evict(&key).wait();
    }
}
