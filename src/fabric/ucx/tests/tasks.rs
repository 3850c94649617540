//! What tasks wait for.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::hostile::soon;
use super::idle::site_of;
use crate::fabric::ucx::Options;
use crate::fabric::{Call, Fabric};

/// By the thread of the process that drives for tasks it would be there at a second look at the earliest.
#[test]
fn an_answer_that_is_quick_is_there_at_the_first_look() {
    let long = Duration::from_secs(10);
    let (requester, _held, listener) = site_of(&Options { spin: long, look: long, ..Options::default() });
    let peer = requester.connect(listener.contact(), soon()).unwrap();
    let is_there = |_| {
        let asked = pin!(Arc::clone(&peer).request(Call::small(b"x".to_vec())));
        match asked.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => &answer.unwrap().head[..] == b"x",
            // Somebody drove, as after the connection was made, for a moment.
            Poll::Pending => {
                std::thread::sleep(Duration::from_millis(300));
                false
            }
        }
    };
    assert!((0..20).any(is_there), "somebody else drives each time");
}
