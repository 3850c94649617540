//! Where a node answers others when its network is away.

use std::time::Duration;

use libtest_mimic::Trial;

use crate::hosts::Cluster;
use crate::pair::{
    self, ENVIRONMENT, Fabric, Over, Row, SECOND, SILENCE, SLACK, assert_error, await_answer, node, put, successor,
};

pub(crate) fn trials() -> Vec<Trial> {
    pair::trials(ROWS, &Ok(()))
}

const ROWS: &[Row] = &[
    ("a_node_of_several_does_not_answer_at_its_loopback", 40, Over::Tcp, loopback),
    ("answering_is_tried_again", 60, Over::Tcp, tried_again),
];

/// Where the loopback is all there is, other nodes cannot come: keys that name it would lead each of them to itself.
fn loopback(fabric: Fabric) {
    let url = fabric.direct();
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    one.cut();
    let said = one.try_start(&["--node", &url], &[ENVIRONMENT, OF_SEVERAL].concat()).map(|_| ()).unwrap_err();
    assert_error(&said, &["Unavailable"]);
    assert!(said.contains("loopback"), "{said}");
    // A node that is alone may, for its own processes.
    let mut alone = one.start(&["--node", &url], ENVIRONMENT);
    let key = put(&mut alone, 1, 1000);
    alone.expect(&format!("get {key} 1"), "same");
    alone.end();
    one.heal();
    let mut owner = one.start(&["--node", &url], &[ENVIRONMENT, OF_SEVERAL].concat());
    let key = put(&mut owner, 2, 1000);
    node(fabric, &two).expect(&format!("get {key} 2"), "same");
}

/// A service that is restarted while its network is away answers others when that is back, though nobody asks it to.
fn tried_again(fabric: Fabric) {
    let url = fabric.direct();
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let environment = [ENVIRONMENT, OF_SEVERAL].concat();
    let _server = one.start(&["--serve"], &environment);
    let (mut producer, mut requester) = (one.start(&["--node", &url], &environment), node(fabric, &two));
    let key = put(&mut producer, 1, 1000);
    requester.expect(&format!("get {key} 1"), "same");
    let service = producer.ask("host");
    one.cut();
    one.print(&["sh", "-c", &format!("kill -KILL {service}")]);
    successor(&mut producer, &service);
    // Its first attempt fails.
    std::thread::sleep(SECOND + Duration::from_millis(500));
    one.heal();
    await_answer(&mut requester, &format!("get {key} 1"), "same", 2 * SILENCE + SLACK);
}

/// In the environment of a job of two nodes.
const OF_SEVERAL: &[(&str, &str)] = &[("PROXYSTORE_NODES", "n1,n2")];
