//! Connections across fork(2).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::tests::{Site, ask, echo, eventually, kind, options};
use crate::error::ErrorKind;

/// Whether `body` ends well in a forked child.
fn in_child(body: impl FnOnce()) -> bool {
    // SAFETY: the child has this thread alone; it does what this test is about, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let status = catch_unwind(AssertUnwindSafe(body)).map_or(1, |()| 0);
        // SAFETY: ends the process.
        unsafe { libc::_exit(status) };
    }
    let mut status = -1;
    eventually("the child ends", || {
        // SAFETY: waits for the child made above.
        unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) == child }
    });
    status == 0
}

#[test]
fn a_child_leaves_the_connections_of_its_parent_alone() {
    let mut site = Site::new(options());
    let peer = site.peer();
    assert_eq!(echo(&peer, "parent").unwrap(), "parent");
    let asked = ask(&peer, "hold it");
    let held = site.echo.release("it");
    let (childs_peer, childs_listener) = (Arc::clone(&peer), site.listener.take());
    let mut childs = Some((childs_peer, childs_listener, asked));
    assert!(in_child(|| {
        let (peer, listener, asked) = childs.take().unwrap();
        assert!(!peer.is_up());
        assert_eq!(kind(asked.wait()), ErrorKind::Forked);
        assert_eq!(kind(echo(&peer, "x")), ErrorKind::Forked);
        peer.close();
        drop((peer, listener));
        let own = site.peer();
        assert_eq!(echo(&own, "child").unwrap(), "child");
        assert_eq!(futures::executor::block_on(ask(&own, "echo task")).unwrap().0, b"task");
    }));
    let (_, listener, asked) = childs.take().unwrap();
    assert!(peer.is_up());
    assert_eq!(echo(&peer, "still").unwrap(), "still");
    held.reply(b"held".to_vec(), Vec::new());
    assert_eq!(asked.wait().unwrap().0, b"held");
    drop(listener);
    eventually("the end of the listener is seen, though a child had its descriptors", || !peer.is_up());
}
