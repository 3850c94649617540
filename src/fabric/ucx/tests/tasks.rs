//! What tasks wait for.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::hostile::soon;
use super::idle::site;
use crate::fabric::{Call, Fabric};

/// By the thread of the process that drives for tasks it would be there at a second look at the earliest.
#[test]
fn an_answer_that_is_quick_is_there_at_the_first_look() {
    let (requester, _held, listener) = site();
    let peer = requester.connect(listener.contact(), soon()).unwrap();
    let is_there = |_| {
        // Nobody drives for those before.
        std::thread::sleep(Duration::from_millis(5));
        let asked = pin!(Arc::clone(&peer).request(Call::small(b"x".to_vec())));
        matches!(asked.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(answer)) if &answer.head[..] == b"x")
    };
    assert!((0..1000).any(is_there), "a thousand answers were slow");
}
