//! The contract of a fabric.

use super::*;
use crate::fabric::conformance::{Ends, own_network};

/// A module of its own, since a case is named as a function that is used here.
mod cases {
    use super::ends;

    crate::fabric::conformance::suite!(
        ends,
        cut: [ignore = "cuts the loopback interface of a network namespace of its own; needs root: --ignored"],
        stranger: []
    );
}

fn ends() -> Ends {
    let is = |text: &str| std::thread::current().name().is_some_and(|name| name.contains(text));
    let is_cut = is("silent");
    let secret = Arc::new(Secret::random());
    // Some services of the suite make long answers, during which their thread says nothing.
    let silence = Duration::from_secs(if is_cut || is("held_answer") { 1 } else { 20 });
    let options = Options { lanes: 2, silence, ..Options::default() };
    Ends {
        requester: Arc::new(Tcp::new(identity(&secret, 1), options.clone())),
        owner: Arc::new(Tcp::new(identity(&secret, 2), options.clone())),
        addresses: vec!["127.0.0.1:0".parse().unwrap()],
        from: 1,
        instance: 2,
        silence: options.silence,
        cut: is_cut.then(own_network),
        stranger: Some(Arc::new(Tcp::new(identity(&Arc::new(Secret::random()), 3), options))),
        settle: Box::new(|| {}),
    }
}
