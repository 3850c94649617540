//! The fabric over real sockets of this machine.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Options, Tcp};
use crate::error::{ErrorKind, Result};
use crate::fabric::handshake::Identity;
use crate::fabric::{Answer, Call, Fabric, Incoming, Land, Landing, Listener, Parts, Peer, Responder, Service};
use crate::launch::Secret;
use crate::pending::Pending;
use crate::region::RegionMut;
use crate::sync::lock;

mod calls;
mod hostile;
mod liveness;
mod measure;
mod storm;
mod suite;

/// Two nodes of one job.
pub(super) struct Site {
    pub(super) requester: Tcp,
    pub(super) listener: Option<Box<dyn Listener>>,
    pub(super) contact: SocketAddr,
    pub(super) echo: Arc<Echo>,
    pub(super) secret: Arc<Secret>,
    pub(super) options: Options,
}

/// Answers by what the head says: `echo TEXT`, `send LEN LEN ...`, `hold NAME`, `drop`, `panic`, `count`.
#[derive(Default)]
pub(super) struct Echo {
    pub(super) held: Mutex<HashMap<String, Responder>>,
    pub(super) asked: AtomicUsize,
    /// Reused by all answers of its length, or shorter.
    pub(super) content: Mutex<Bytes>,
}

pub(super) fn options() -> Options {
    Options { silence: Duration::from_secs(3), lanes: 1, ..Options::default() }
}

impl Site {
    pub(super) fn new(options: Options) -> Self {
        let secret = Arc::new(Secret::random());
        let echo = Arc::new(Echo::default());
        let owner = Tcp::new(identity(&secret, 2), options.clone());
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = owner.listen(&[any], Arc::clone(&echo) as _).unwrap();
        let requester = Tcp::new(identity(&secret, 1), options.clone());
        Self { requester, contact: listener.contact(), listener: Some(listener), echo, secret, options }
    }

    pub(super) fn peer(&self) -> Arc<dyn Peer> {
        self.requester.connect(self.contact, soon()).unwrap()
    }
}

pub(super) fn identity(secret: &Arc<Secret>, instance: u64) -> Identity {
    Identity { secret: Arc::clone(secret), job: "test".to_owned(), instance }
}

pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(15)
}

pub(super) fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| (i as u32).wrapping_mul(0x9e37_79b1).to_le_bytes()[3]).collect::<Vec<u8>>().into()
}

impl Service for Echo {
    fn answer(&self, call: Incoming<'_>) {
        self.asked.fetch_add(1, SeqCst);
        let head = std::str::from_utf8(call.head).unwrap();
        let (verb, rest) = head.split_once(' ').unwrap_or((head, ""));
        match verb {
            "echo" => call.responder.reply(rest.as_bytes().to_vec(), Vec::new()),
            "send" => {
                // A service must not block: what is long is made before.
                let lens: Vec<usize> = rest.split(' ').map(|len| len.parse().unwrap()).collect();
                let mut content = lock(&self.content);
                let longest = lens.iter().copied().max().unwrap_or(0);
                if content.len() < longest {
                    *content = pattern(longest);
                }
                let parts = lens.into_iter().map(|len| content.slice(..len)).collect();
                call.responder.reply(head.as_bytes().to_vec(), parts);
            }
            "hold" => drop(lock(&self.held).insert(rest.to_owned(), call.responder)),
            "panic" => panic!("asked to"),
            _ => drop(call.responder),
        }
    }
}

impl Echo {
    /// The responder of a question that was held back, once it is there.
    pub(super) fn release(&self, name: &str) -> Responder {
        let end = soon();
        loop {
            if let Some(responder) = lock(&self.held).remove(name) {
                return responder;
            }
            assert!(Instant::now() < end, "{name} was not asked");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Lands in memory of the heap.
pub(super) struct Heap(pub(super) std::sync::mpsc::Sender<Parts>);

impl Land for Heap {
    fn land(&mut self, _: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        let lens: Vec<usize> = parts.iter().map(|len| *len as usize).collect();
        let (whole, landings) = Parts::of(RegionMut::heap(lens.iter().sum())?, &lens)?;
        let _ = self.0.send(whole);
        Ok(landings)
    }
}

/// Asks, and gives head and bytes of the answer.
pub(super) fn ask(peer: &Arc<dyn Peer>, head: impl AsRef<[u8]>) -> Pending<(Vec<u8>, Vec<u8>)> {
    ask_on(peer, head, 0)
}

pub(super) fn ask_on(peer: &Arc<dyn Peer>, head: impl AsRef<[u8]>, lane: usize) -> Pending<(Vec<u8>, Vec<u8>)> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let call = Call { head: head.as_ref().to_vec().into(), land: Box::new(Heap(sender)).into(), lane };
    Arc::clone(peer).request(call).and_then(move |Answer { head, parts }| {
        let whole: Parts = receiver.try_recv().expect("it landed");
        Ok((head.into_vec(), whole.join(parts)?.as_slice().to_vec()))
    })
}

pub(super) fn echo(peer: &Arc<dyn Peer>, text: &str) -> Result<String> {
    let (head, _) = ask(peer, format!("echo {text}")).wait()?;
    Ok(String::from_utf8(head).unwrap())
}

/// Waits for something that happens elsewhere.
pub(super) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not so after twenty seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Established connections to an address, as the kernel counts them.
pub(super) fn established(contact: SocketAddr) -> usize {
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    let port = format!(":{:04X}", contact.port());
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2].ends_with(&port) && fields[3] == "01"
    };
    table.lines().skip(1).filter(is_one).count()
}
