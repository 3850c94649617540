//! Connections that are not used.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::hostile::soon;
use super::identity;
use crate::fabric::ucx::{Options, Ucx};
use crate::fabric::{Call, Fabric, Incoming, Listener, Peer, Responder, Service};
use crate::launch::Secret;
use crate::sync::lock;

/// Answers at once, but for questions that it is told to hold.
struct Echo(Arc<Mutex<Vec<Responder>>>);

impl Service for Echo {
    fn answer(&self, call: Incoming<'_>) {
        match call.head {
            b"hold" => lock(&self.0).push(call.responder),
            head => call.responder.reply(head.to_vec(), Vec::new()),
        }
    }
}

fn site() -> (Ucx, Arc<Mutex<Vec<Responder>>>, Box<dyn Listener>) {
    site_of(&Options { idle: IDLE, ..Options::default() })
}

/// A requester, what its owner was told to hold, and where that answers.
pub(super) fn site_of(options: &Options) -> (Ucx, Arc<Mutex<Vec<Responder>>>, Box<dyn Listener>) {
    let secret = Arc::new(Secret::random());
    let options = Options { devices: vec!["lo".to_owned()], ..options.clone() };
    let ucx = |instance| Ucx::new(identity(&secret, instance), options.clone()).unwrap();
    let held: Arc<Mutex<Vec<Responder>>> = Arc::default();
    let listener = ucx(2).listen(&["127.0.0.1:0".parse().unwrap()], Arc::new(Echo(Arc::clone(&held)))).unwrap();
    (ucx(1), held, listener)
}

fn echo(peer: &Arc<dyn Peer>) {
    let answer = Arc::clone(peer).request(Call::small(b"x".to_vec())).deadline(Duration::from_secs(10)).wait();
    assert_eq!(&answer.unwrap().head[..], b"x");
}

#[test]
fn a_connection_that_is_not_used_is_closed_and_can_be_made_again() {
    let (requester, _, listener) = site();
    let peer = requester.connect(listener.contact(), soon()).unwrap();
    echo(&peer);
    // To ask whether it stands would be to use it.
    std::thread::sleep(IDLE * 4);
    assert!(!peer.is_up());
    let again = requester.connect(listener.contact(), soon()).unwrap();
    echo(&again);
}

#[test]
fn a_connection_that_is_used_or_owes_an_answer_is_not_closed() {
    let (requester, held, listener) = site();
    let owing = requester.connect(listener.contact(), soon()).unwrap();
    let asked = Arc::clone(&owing).request(Call::small(b"hold".to_vec())).deadline(Duration::from_secs(30));
    let used = requester.connect(listener.contact(), soon()).unwrap();
    for _ in 0..12 {
        std::thread::sleep(IDLE / 2);
        echo(&used);
    }
    lock(&held).drain(..).for_each(|responder| responder.reply(b"late".to_vec(), Vec::new()));
    assert_eq!(&asked.wait().unwrap().head[..], b"late");
}

const IDLE: Duration = Duration::from_millis(400);
