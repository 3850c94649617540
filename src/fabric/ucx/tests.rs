//! The fabric over UCX as it is installed, between two workers of this process.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::{Options, Ucx};
use crate::fabric::conformance::{Ends, own_network};
use crate::fabric::handshake::Identity;
use crate::launch::Secret;

#[cfg(test)]
#[expect(unsafe_code, reason = "peers that use all of UCX")]
mod hostile;
#[cfg(test)]
mod idle;
#[cfg(test)]
mod owners;
#[cfg(test)]
mod reads;
#[cfg(test)]
mod settings;
#[cfg(test)]
mod tasks;
#[cfg(test)]
mod unread;

/// A module of its own, since a case is named as a function that is used here.
mod cases {
    use super::ends;

    crate::fabric::conformance::suite!(
        ends,
        cut: [ignore = "cuts the loopback interface of a network namespace of its own; needs root: --ignored"],
        stranger: []
    );
}

fn identity(secret: &Arc<Secret>, instance: u64) -> Identity {
    Identity { secret: Arc::clone(secret), job: "test".to_owned(), instance }
}

/// A connection from that address of this host, where one comes about within a moment.
pub(super) fn connect_from(from: IpAddr, to: SocketAddr) -> Option<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
    bind(&socket, &SocketAddr::new(from, 0)).unwrap();
    let is_begun = matches!(connect(&socket, &to), Ok(()) | Err(Errno::INPROGRESS));
    let mut descriptors = [PollFd::new(&socket, PollFlags::OUT)];
    let moment = Timespec { tv_sec: 0, tv_nsec: 300_000_000 };
    let is_over = poll(&mut descriptors, Some(&moment)).unwrap() == 1;
    (is_begun && is_over && socket_error(&socket).unwrap().is_ok()).then(|| socket.into())
}

fn ends() -> Ends {
    let is = |text: &str| std::thread::current().name().is_some_and(|name| name.contains(text));
    let is_cut = is("silent");
    let secret = Arc::new(Secret::random());
    let silence = Duration::from_secs(if is_cut || is("held_answer") { 1 } else { 20 });
    let options = Options { silence, devices: vec!["lo".to_owned()], ..Options::default() };
    let ucx = |secret: &Arc<Secret>, instance| Arc::new(Ucx::new(identity(secret, instance), options.clone()).unwrap());
    Ends {
        requester: ucx(&secret, 1),
        owner: ucx(&secret, 2),
        addresses: vec!["127.0.0.1:0".parse().unwrap()],
        from: 1,
        instance: 2,
        silence,
        cut: is_cut.then(own_network),
        stranger: Some(ucx(&Arc::new(Secret::random()), 3)),
        settle: Box::new(|| {}),
    }
}

#[test]
fn it_is_told_whether_strangers_are_kept_out() {
    assert!(super::is_guarded());
    let mut settings = super::settings(&Options::default());
    settings.iter_mut().filter(|set| set.name == super::context::PORTS).for_each(|set| set.value = "0".to_owned());
    let context = Arc::new(super::Context::new(&settings).unwrap());
    assert!(!super::worker::Worker::new(&context).unwrap().is_guarded());
}
