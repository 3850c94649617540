//! The contract of a fabric, over real sockets of this machine.

use std::sync::Arc;
use std::time::Duration;

use super::{Options, Tcp};
use crate::fabric::conformance::{self, Ends};
use crate::fabric::handshake::Identity;
use crate::launch::Secret;

conformance::suite!(ends, cut: [ignore = "nothing cuts connections of one host: tests/cluster has hosts"], stranger: []);

fn ends() -> Ends {
    let options = Options { silence: Duration::from_secs(1), lanes: 2, ..Options::default() };
    let (ours, theirs) = (Arc::new(Secret::random()), Arc::new(Secret::random()));
    let node = |secret: &Arc<Secret>, instance| {
        let identity = Identity { secret: Arc::clone(secret), job: "test".to_owned(), instance };
        Arc::new(Tcp::new(identity, options.clone()))
    };
    Ends {
        requester: node(&ours, 1),
        owner: node(&ours, 2),
        addresses: vec!["127.0.0.1:0".parse().unwrap()],
        from: 1,
        instance: 2,
        silence: options.silence,
        cut: None,
        stranger: Some(node(&theirs, 3)),
        settle: Box::new(|| {}),
    }
}
