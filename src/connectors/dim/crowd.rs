//! Many nodes that fetch one large object at the same time, on the fake fabric: whose bytes they are, and from whom they come.

use std::net::Ipv4Addr;
use std::thread;

use super::*;
use crate::fabric::Listener;
use crate::fabric::fake::{Link, Net, Time};
use crate::service::client::Options;
use crate::service::export::Export;

/// A node: its memory, its answers and its store.
struct Node {
    host: Ipv4Addr,
    client: Arc<Client>,
    connector: DimConnector,
    listener: Option<Box<dyn Listener>>,
}

/// Nodes 10.0.0.1 and so on, the first of which has the objects.
struct Crowd {
    net: Net,
    nodes: Vec<Node>,
}

impl Crowd {
    fn new(test: &str, nodes: u8) -> Self {
        let net = Net::new(Time::Auto, 7);
        net.set_silence(Duration::from_millis(200));
        net.set_default(Link { latency: Duration::from_micros(50), ..Link::default() });
        let node = |number: u8| {
            let options = Options {
                namespace: format!("test-{test}-{number}-{}", std::process::id()),
                budget: Some(64 << 20),
                displace: None,
                timeout: Duration::from_secs(20),
                may_host: true,
            };
            let host = Ipv4Addr::new(10, 0, 0, number);
            let client = Client::attach(&options).unwrap();
            let fabric: Arc<dyn Fabric> = Arc::new(net.node(host).instance(client.instance()));
            let export = Export::new(Arc::clone(&client));
            let listener = fabric.listen(&[(host, 0).into()], Arc::new(Arc::clone(&export))).unwrap();
            export.set_contact(listener.contact());
            let config = ConnectorConfig::new("fake", test);
            let connector =
                DimConnector::new(config, Arc::clone(&client), listener.contact(), &[7; 16], fabric).unwrap();
            Node { host, client, connector, listener: Some(listener) }
        };
        let nodes = (1..=nodes).map(node).collect();
        Self { net, nodes }
    }

    fn put(&self, bytes: &[u8]) -> Key {
        self.nodes[0].connector.put(bytes, Format::RAW).wait().unwrap()
    }

    fn sent(&self, node: usize) -> u64 {
        self.net.traffic(self.nodes[node].host).sent
    }
}

fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

fn is_it(found: Result<Option<Region>>, bytes: &[u8]) -> bool {
    found.unwrap().is_some_and(|region| *region == *bytes)
}

const LEN: usize = 9 << 20;

#[test]
fn the_owner_sends_little_more_than_one_copy() {
    let crowd = Crowd::new("crowd-egress", 6);
    let bytes = content(LEN + 4711);
    let key = crowd.put(&bytes);
    thread::scope(|scope| {
        let gets: Vec<_> = crowd.nodes[1..]
            .iter()
            .map(|node| scope.spawn(|| is_it(node.connector.get(&key).wait(), &bytes)))
            .collect();
        assert!(gets.into_iter().all(|get| get.join().unwrap()));
    });
    let copies: Vec<u64> = (0..6).map(|node| crowd.sent(node) * 10 / LEN as u64).collect();
    // Tenths of a copy; five were fetched.
    assert!(copies.iter().all(|copies| *copies <= 21), "{copies:?}");
    assert!((46..56).contains(&copies.iter().sum::<u64>()), "{copies:?}");
}

#[test]
fn who_comes_later_gets_it_from_who_has_it() {
    let crowd = Crowd::new("crowd-later", 4);
    let bytes = content(LEN);
    let key = crowd.put(&bytes);
    for node in &crowd.nodes[1..] {
        assert!(is_it(node.connector.get(&key).wait(), &bytes));
        // The word that it has all comes by itself.
        crowd.net.run();
        thread::sleep(Duration::from_millis(50));
    }
    assert!(crowd.sent(0) < LEN as u64 * 11 / 10, "{} bytes", crowd.sent(0));
}

#[test]
fn a_node_that_has_it_no_more_is_replaced() {
    let crowd = Crowd::new("crowd-evicted", 3);
    let bytes = content(LEN);
    let key = crowd.put(&bytes);
    assert!(is_it(crowd.nodes[1].connector.get(&key).wait(), &bytes));
    thread::sleep(Duration::from_millis(50));
    let address = crowd.nodes[1].connector.locate("get", &key).unwrap();
    crowd.nodes[1].client.forget_replica(remote::origin(&address)).unwrap();
    assert!(is_it(crowd.nodes[2].connector.get(&key).wait(), &bytes));
}

#[test]
fn a_node_that_is_gone_is_replaced() {
    let mut crowd = Crowd::new("crowd-gone", 3);
    let bytes = content(LEN);
    let key = crowd.put(&bytes);
    assert!(is_it(crowd.nodes[1].connector.get(&key).wait(), &bytes));
    thread::sleep(Duration::from_millis(50));
    crowd.nodes[1].listener = None;
    assert!(is_it(crowd.nodes[2].connector.get(&key).wait(), &bytes));
}

#[test]
fn what_was_evicted_meanwhile_is_missing_everywhere() {
    let crowd = Crowd::new("crowd-missing", 3);
    let key = crowd.put(&content(LEN));
    crowd.nodes[0].connector.evict(&key).wait().unwrap();
    for node in &crowd.nodes[1..] {
        assert!(node.connector.get(&key).wait().unwrap().is_none());
    }
}

#[test]
fn what_was_evicted_among_others_is_missing_here_at_once() {
    let crowd = Crowd::new("crowd-evict-batch", 2);
    let keys = [crowd.put(&content(5000)), crowd.put(&content(LEN))];
    let here = &crowd.nodes[1].connector;
    for key in &keys {
        assert!(here.get(key).wait().unwrap().is_some());
    }
    here.evict_batch(&keys).wait().unwrap();
    for key in &keys {
        assert!(here.get(key).wait().unwrap().is_none());
    }
}

#[test]
fn an_object_in_a_batch_is_passed_on_too() {
    let crowd = Crowd::new("crowd-batch", 4);
    let bytes = content(LEN);
    let keys = [crowd.put(&bytes), crowd.put(&bytes[..100])];
    for node in &crowd.nodes[1..] {
        let found = node.connector.get_batch(&keys).wait().unwrap();
        assert!(found[0].as_deref() == Some(&bytes[..]) && found[1].as_deref() == Some(&bytes[..100]));
        thread::sleep(Duration::from_millis(50));
    }
    assert!(crowd.sent(0) < LEN as u64 * 11 / 10, "{} bytes", crowd.sent(0));
}

#[test]
fn nothing_stays_pinned() {
    let crowd = Crowd::new("crowd-pins", 4);
    let bytes = content(LEN);
    let key = crowd.put(&bytes);
    thread::scope(|scope| {
        for node in &crowd.nodes[1..] {
            scope.spawn(|| assert!(is_it(node.connector.get(&key).wait(), &bytes)));
        }
    });
    crowd.net.run();
    let patience = Instant::now() + Duration::from_secs(10);
    for node in &crowd.nodes {
        while !node.client.pin_counts().is_empty() {
            assert!(Instant::now() < patience, "{:?} at {}", node.client.pin_counts(), node.host);
            thread::sleep(Duration::from_millis(5));
        }
    }
}
