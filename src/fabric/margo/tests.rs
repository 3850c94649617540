//! The fabric over the Margo of this machine: `PROXYSTORE_MARGO_LIB=... cargo test --all-features --lib -- --ignored margo`.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::fabric::conformance::{Ends, own_network};
use crate::launch::Secret;

fn identity(secret: &Arc<Secret>, instance: u64) -> Identity {
    Identity { secret: Arc::clone(secret), job: "test".to_owned(), instance }
}

/// Two nodes whose bytes move over a protocol.
fn ends(protocol: &str) -> Ends {
    let is = |text: &str| std::thread::current().name().is_some_and(|name| name.contains(text));
    let is_cut = is("silent");
    let secret = Arc::new(Secret::random());
    let silence = Duration::from_secs(if is_cut || is("held_answer") { 1 } else { 20 });
    let options = Options { protocol: Some(protocol.to_owned()), silence };
    Ends {
        requester: Arc::new(Margo::new(identity(&secret, 1), options.clone())),
        owner: Arc::new(Margo::new(identity(&secret, 2), options.clone())),
        addresses: vec!["127.0.0.1:0".parse().unwrap()],
        from: 1,
        instance: 2,
        silence,
        cut: is_cut.then(own_network),
        stranger: Some(Arc::new(Margo::new(identity(&Arc::new(Secret::random()), 3), options))),
        settle: Box::new(|| {}),
    }
}

mod sm {
    fn ends() -> super::Ends {
        super::ends("na+sm")
    }

    crate::fabric::conformance::suite!(
        ends,
        always: [ignore = "needs Margo with na+sm: --ignored"],
        cut: [ignore = "needs Margo with na+sm, and root for a network namespace of its own: --ignored"],
        stranger: [ignore = "needs Margo with na+sm: --ignored"]
    );
}

mod tcp_by_ofi {
    fn ends() -> super::Ends {
        super::ends("ofi+tcp")
    }

    crate::fabric::conformance::suite!(
        ends,
        always: [ignore = "needs Margo with ofi+tcp: --ignored"],
        cut: [ignore = "needs Margo with ofi+tcp, and root for a network namespace of its own: --ignored"],
        stranger: [ignore = "needs Margo with ofi+tcp: --ignored"]
    );
}
