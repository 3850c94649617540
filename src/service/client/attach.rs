//! How a process finds the service of a namespace, or becomes it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_queue::SegQueue;
use rustix::event::{PollFd, PollFlags, poll};

use super::agent::{Doorbell, Requests};
use super::{Client, Options};
use crate::environment;
use crate::error::{Error, ErrorKind, Result};
use crate::failpoint::failpoint;
use crate::process;
use crate::service::directory::Directory;
use crate::service::lock::{Held, LockFile};
use crate::service::message::{Reply, Request, kind_of};
use crate::service::server::{Inherited, Server, Setup, index_of};
use crate::service::wire::{Received, Sent, Socket};
use crate::shm::class::Class;
use crate::shm::layout::{Layout, client, word};
use crate::shm::mapped::Mapped;
use crate::shm::preflight;
use crate::shm::segment::{Access, Segment};
use crate::shm::table::Table;

/// What the service says to whom it takes in.
struct Welcome {
    tag: u64,
    instance: u64,
    ctl_len: u64,
    pin_page: u32,
    segments: Vec<(u16, u64)>,
    host: u32,
    fds: Vec<OwnedFd>,
}

/// Attaches for the first time.
pub(super) fn attach(options: &Options, directory: Directory) -> Result<Arc<Client>> {
    let hello = Request::Hello { layout: Layout::VERSION, reattach: None, segments: Vec::new() };
    let hello = packet(&hello)?;
    let deadline = Instant::now() + options.timeout;
    loop {
        let (link, welcome) = connect(options, &directory, &hello, &[], deadline, None)?;
        let link = Arc::new(link);
        let entered = enter(options, directory.clone(), Arc::clone(&link), welcome);
        if !matches!(entered, Ok(Some(_))) {
            // Or the place is taken until this process ends.
            let _ = link.send(&packet(&Request::Bye)?, &[]);
        }
        match entered? {
            Some(client) => return Ok(client),
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
            None => {
                return Err(Error::new(ErrorKind::Unavailable, "open", "services come and go").with_connector("shm"));
            }
        }
    }
}

/// Takes the place that a service gave; `None` when that service ended meanwhile and its successor gave the place up.
fn enter(options: &Options, directory: Directory, link: Arc<Socket>, welcome: Welcome) -> Result<Option<Arc<Client>>> {
    let mut fds = welcome.fds.into_iter();
    let ctl = fds.next().ok_or_else(|| unexpected("no control segment"))?;
    let ctl = Segment::adopt(ctl, welcome.ctl_len as usize)?;
    if ctl.len() < Layout::SHARED.words() * 8 {
        return Err(unexpected("a control segment of another size"));
    }
    let table = Table::new(Mapped::new(ctl.map(Access::Write)?), Layout::SHARED);
    if !table.is_ours() || table.header(word::INSTANCE).load(Relaxed) != welcome.instance {
        return Err(unexpected("a control segment of another version"));
    }
    let index = index_of(welcome.tag);
    let Some(member) = directory.try_member(u64::from(index))? else { return Ok(None) };
    // From here on nobody takes this process for dead; before, a new service may have.
    if table.client(index, client::TAG).load(Acquire) != welcome.tag {
        return Ok(None);
    }
    let client = Arc::new(Client {
        generation: process::generation(),
        options: options.clone(),
        directory,
        slots: AtomicU32::new(table.slots()),
        table,
        ctl,
        instance: welcome.instance,
        tag: welcome.tag,
        segments: (0..Layout::SHARED.segments).map(|_| OnceLock::new()).collect(),
        arrivals: Default::default(),
        pools: (0..Class::COUNT).map(|_| OnceLock::new()).collect(),
        #[cfg(feature = "tcp")]
        cells: Mutex::default(),
        pages: Mutex::new(vec![welcome.pin_page]),
        requests: Requests::default(),
        retired: SegQueue::new(),
        doorbell: Doorbell::new()?,
        link: Mutex::new(Some(link)),
        host: AtomicU32::new(welcome.host),
        lost: AtomicBool::new(false),
        may_host: AtomicBool::new(options.may_host),
        ended: AtomicBool::new(false),
        waiting: Default::default(),
        member: Mutex::new(Some(member)),
    });
    for ((index, len), fd) in welcome.segments.into_iter().zip(fds) {
        client.add_segment(index, Segment::adopt(fd, len as usize)?);
    }
    let agent = Arc::clone(&client);
    thread::Builder::new()
        .name("proxystore-agent".to_owned())
        .spawn(move || agent.serve_agent())
        .map_err(|error| Error::io("open", "the thread that talks to the node service", error))?;
    Ok(Some(client))
}

/// Attaches again after the service's death, as the one that it was, with the memory that it holds.
pub(super) fn reattach(client: &Client) -> Result<Socket> {
    let inherited = client.inherit()?;
    let segments = inherited.segments.iter().map(|(index, segment)| (*index, segment.len() as u64)).collect();
    let hello = Request::Hello { layout: Layout::VERSION, reattach: Some(client.tag), segments };
    let mut fds = vec![inherited.ctl.as_fd()];
    fds.extend(inherited.segments.values().map(Segment::as_fd));
    let deadline = Instant::now() + client.options.timeout.max(LEAST);
    let options = Options { may_host: client.may_host.load(Relaxed), ..client.options.clone() };
    let (link, welcome) = connect(&options, &client.directory, &packet(&hello)?, &fds, deadline, Some(client))?;
    if welcome.instance != client.instance || welcome.tag != client.tag {
        return Err(
            Error::new(ErrorKind::Stale, "open", "another service has taken the namespace").with_connector("shm")
        );
    }
    client.host.store(welcome.host, Relaxed);
    for ((index, len), fd) in welcome.segments.into_iter().zip(welcome.fds.into_iter().skip(1)) {
        if client.segments.get(usize::from(index)).is_some_and(|held| held.get().is_none()) {
            client.add_segment(index, Segment::adopt(fd, len as usize)?);
        }
    }
    Ok(link)
}

/// Finds a service that takes us in. Where there is none, becomes it: with the memory of `client`, or with fresh memory if
/// nobody holds any.
fn connect(
    options: &Options,
    directory: &Directory,
    hello: &[u8],
    fds: &[std::os::fd::BorrowedFd<'_>],
    deadline: Instant,
    client: Option<&Client>,
) -> Result<(Socket, Welcome)> {
    let begun = Instant::now();
    let mut pause = Duration::from_micros(200);
    let mut why = "nobody serves it".to_owned();
    loop {
        match Socket::connect(directory) {
            Ok(link) => match greet(&link, directory, hello, fds, deadline) {
                Ok(welcome) => return Ok((link, welcome)),
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    why = error.context().to_owned();
                }
                Err(error) => return Err(error),
            },
            Err(error) if matches!(error.kind(), ErrorKind::Permission | ErrorKind::Config | ErrorKind::Invalid) => {
                return Err(error);
            }
            Err(_) => {}
        }
        // A supervisor is quicker and better at it.
        let supervised = client.is_some_and(|client| client.table.header(word::SUPERVISED).load(Relaxed) != 0);
        let may_host = options.may_host && (!supervised || begun.elapsed() > SUPERVISOR);
        if may_host && host(options, directory, client)? {
            continue;
        }
        if !options.may_host && begun.elapsed() > SUPERVISOR {
            break;
        }
        if Instant::now() >= deadline {
            break;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    let members = LockFile::open(&directory.members())?;
    let holder = members.holder(MEMBERS)?;
    let context = match holder {
        Some(holder) => format!(
            "the node service of {:?} does not answer ({why}); process {} holds its memory",
            options.namespace,
            holder.pid.map_or("of another pid namespace".to_owned(), |pid| pid.to_string())
        ),
        None => format!("the namespace {:?} has no node service ({why})", options.namespace),
    };
    Err(Error::new(ErrorKind::Unavailable, "open", context).with_connector("shm"))
}

/// Says hello and waits for the answer.
fn greet(
    link: &Socket,
    directory: &Directory,
    hello: &[u8],
    fds: &[std::os::fd::BorrowedFd<'_>],
    deadline: Instant,
) -> Result<Welcome> {
    if !matches!(link.send(hello, fds), Ok(Sent::Done)) {
        return Err(Error::new(ErrorKind::Unavailable, "open", "the service hung up"));
    }
    let mut buffer = Vec::new();
    loop {
        match link.recv(&mut buffer) {
            Ok(Received::Packet { fds }) => {
                return match Reply::decode(&buffer)? {
                    Reply::Welcome { tag, instance, ctl_len, pin_page, segments, host, .. } => {
                        Ok(Welcome { tag, instance, ctl_len, pin_page, segments, host, fds })
                    }
                    Reply::Refused { kind, text, .. } => {
                        Err(Error::new(kind_of(kind), "open", text).with_connector("shm"))
                    }
                    _ => Err(unexpected("no welcome")),
                };
            }
            Ok(Received::WouldBlock) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Error::new(ErrorKind::Unavailable, "open", "it accepts connections and says nothing"));
                }
                let mut ready = [PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN)];
                let slice = left.min(SLICE).try_into().ok();
                if let Ok(0) = poll(&mut ready, slice.as_ref()) {
                    // A dead host's socket may live on in a child that it forked.
                    let file = LockFile::open(&directory.host_lock())?;
                    if file.holder(Directory::HOST..Directory::HOST + 1)?.is_none() {
                        return Err(Error::new(ErrorKind::Unavailable, "open", "its host ended"));
                    }
                }
            }
            Ok(Received::Closed) | Err(_) => {
                return Err(Error::new(ErrorKind::Unavailable, "open", "the service hung up"));
            }
        }
    }
}

/// Becomes the host of the namespace if nobody is, and nobody else should; whether it is worth trying to connect at once.
fn host(options: &Options, directory: &Directory, client: Option<&Client>) -> Result<bool> {
    let Some(host) = directory.try_host()? else { return Ok(false) };
    let members = LockFile::open(&directory.members())?;
    let inherited = match client {
        Some(client) => Some(client.inherit()?),
        // Somebody holds the memory of a former service, and takes over in a moment.
        None if members.holder(MEMBERS)?.is_some() => return Ok(false),
        None => None,
    };
    if inherited.is_some() {
        failpoint!("client.takeover");
    }
    let members = client.and_then(Client::members);
    start(options, directory, host, inherited, members)?;
    Ok(true)
}

fn start(
    options: &Options,
    directory: &Directory,
    host: Held,
    inherited: Option<Inherited>,
    members: Option<Arc<LockFile>>,
) -> Result<()> {
    let setup = Setup {
        directory: directory.clone(),
        host,
        budget: options.budget.or_else(environment::shm_bytes).unwrap_or_else(preflight::default_budget),
        prefault: 0,
        displace: options.displace.unwrap_or(false),
        inherited,
        members,
        keeper: None,
    };
    let server = Server::new(setup)?;
    thread::Builder::new()
        .name("proxystore-service".to_owned())
        .spawn(move || {
            if let Err(error) = server.run(true) {
                eprintln!("proxystore: warning: the node service ended: {error}");
            }
        })
        .map_err(|error| Error::io("open", "the thread of the node service", error))?;
    Ok(())
}

fn packet(request: &Request) -> Result<Vec<u8>> {
    let mut packet = Vec::new();
    request.encode(&mut packet)?;
    Ok(packet)
}

fn unexpected(what: &str) -> Error {
    Error::new(ErrorKind::Incompatible, "open", format!("the node service sent {what}")).with_connector("shm")
}

/// Bytes of the members file: one for each client, one for the supervisor.
const MEMBERS: std::ops::Range<u64> = 0..4097;

/// How long a host may be silent before its lock is looked at.
const SLICE: Duration = Duration::from_millis(100);

/// How long coming back may take at least, however short the deadlines of operations are.
const LEAST: Duration = Duration::from_secs(5);

/// How long a supervisor has to start a new service before clients do.
const SUPERVISOR: Duration = Duration::from_millis(1500);
