//! A network that can be cut.

use std::process::Command;

use rustix::thread::UnshareFlags;

/// Moves this thread, and those that it starts, into a network of their own; what cuts it.
#[expect(deprecated, reason = "only the network changes, and this thread has no socket yet")]
pub(crate) fn own_network() -> Box<dyn Fn() + Send + Sync> {
    rustix::thread::unshare(UnshareFlags::NEWNET).expect("the right to make a network namespace");
    let loopback = |state: &str| {
        let status = Command::new("ip").args(["link", "set", "lo", state]).status().expect("the program ip");
        assert!(status.success(), "ip link set lo {state}: {status}");
    };
    loopback("up");
    // Called on a thread that was started by this one, so that it is the same network.
    Box::new(move || loopback("down"))
}
