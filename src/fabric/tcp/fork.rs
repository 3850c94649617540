//! Connections across fork(2).

use std::os::fd::AsRawFd as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::tests::{Site, ask, echo, eventually, kind, options};
use crate::error::ErrorKind;

/// Whether `body` ends well in a forked child.
pub(crate) fn in_child(body: impl FnOnce()) -> bool {
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

#[test]
fn a_child_does_not_keep_the_port_of_a_parent_that_was_killed() {
    let (reader, writer) = std::io::pipe().unwrap();
    let own = writer.as_raw_fd();
    let (mut told, mut tell) = std::io::pipe().unwrap();
    // The one that is killed listens, and has a child that lives on.
    assert!(in_child(|| {
        let site = Site::new(options());
        let port = site.contact.port();
        // SAFETY: the child reads until nobody can write any more, and ends by `_exit`.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: the child's own copy, or it would wait for itself.
            unsafe { libc::close(own) };
            let _ = std::io::Read::read(&mut &reader, &mut [0]);
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        }
        std::io::Write::write_all(&mut tell, &port.to_le_bytes()).unwrap();
        std::mem::forget(site);
    }));
    let mut port = [0; 2];
    std::io::Read::read_exact(&mut told, &mut port).unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], u16::from_le_bytes(port)));
    eventually("the port is free", || super::socket::Socket::listen(address).is_ok());
    drop(writer);
}
