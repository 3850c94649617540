//! The supervisor of `proxystore serve`: holds the memory while the service restarts.
//!
//! Two processes. The supervisor is small, single-threaded and does next to nothing, so that there is nothing in it to fail:
//! it holds the descriptors of all memory, and a lock that says so. The service is its child and does the work. It hands over
//! every segment as it makes it; when it dies, the next one gets all of them back and goes on where it stopped.

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::{self, Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Pid, Resource, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};

use super::directory::Directory;
use super::link::{FLAG, KeptCtl, PATIENCE, check_descriptors, send, unexpected, wait};
use super::message::Keep;
use super::signals::{Signals, set_mask, set_of};
use super::wire::{Received, Socket};
use crate::error::{Error, ErrorKind, Result};

/// What `proxystore serve` serves, and how.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// The namespace: `shm://NAMESPACE` names it.
    pub namespace: String,
    /// Most bytes of memory, where it is not for the service to choose.
    pub budget: Option<u64>,
    /// Whether objects that were not used for long make room for new ones when the memory is full.
    pub displace: bool,
    /// Whether memory is touched before it is needed, so that no put waits for pages.
    pub prefault: bool,
    /// How long the service may take to end in order; past it, the supervisor ends it.
    pub grace: Duration,
}

/// Supervises the service of a namespace until SIGTERM or SIGINT, which end it in order; a second one ends it at once.
///
/// The service is this program again, with the arguments that this process has and `--keeper-fd N` behind them: a program
/// that finds that flag is the service and does not call this. One that dies is started again, at most three times a
/// minute, and gets all memory back. Says what happens on standard error, a line an event.
///
/// To be called on the main thread, before there are others: signals are blocked here, and the service ends with the
/// thread that started it.
///
/// # Errors
/// `AlreadyExists` when the namespace is served already, `Closed` when the service dies again and again or cannot start,
/// `Timeout` when it did not end in order.
pub fn serve(options: &ServeOptions) -> Result<()> {
    let directory = Directory::open(&options.namespace)?;
    let Some(held) = directory.try_member(Directory::SUPERVISOR)? else {
        let context = format!("namespace {} is served by another process already", options.namespace);
        return Err(Error::new(ErrorKind::AlreadyExists, "serve", context));
    };
    let namespace = &options.namespace;
    let mut program = |keeper_fd: RawFd| {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("proxystore").args(env::args_os().skip(1)).arg(FLAG).arg(keeper_fd.to_string());
        command
    };
    let mut log = |event: &str| {
        // Nobody may be reading any more, which is no reason to end.
        let _ = writeln!(io::stderr(), "proxystore serve: {namespace}: {event}");
    };
    raise_descriptor_limit();
    let end = Supervisor::new(&mut program, &mut log, options.grace).run();
    drop(held);
    // False, and nothing removed, where clients go on with the memory.
    let _ = directory.remove();
    end
}

/// Starts the service, holds its memory, and starts it again.
struct Supervisor<'a> {
    /// The program of the service, which finds its connection at the descriptor given.
    program: &'a mut dyn FnMut(RawFd) -> Command,
    log: &'a mut dyn FnMut(&str),
    grace: Duration,
    memory: Memory,
    /// When the service was started again, the latest last.
    restarts: VecDeque<Instant>,
    was_ready: bool,
}

/// All memory of a namespace.
#[derive(Default)]
struct Memory {
    ctl: Option<KeptCtl>,
    segments: BTreeMap<u16, (OwnedFd, u64)>,
}

/// A running service; killed and waited for when dropped.
struct Service {
    process: Child,
    link: Option<Socket>,
}

/// How a service came to its end.
enum End {
    /// As it was told.
    Ordered,
    /// On its own.
    Died(ExitStatus),
}

impl<'a> Supervisor<'a> {
    fn new(program: &'a mut dyn FnMut(RawFd) -> Command, log: &'a mut dyn FnMut(&str), grace: Duration) -> Self {
        Self { program, log, grace, memory: Memory::default(), restarts: VecDeque::new(), was_ready: false }
    }

    fn run(mut self) -> Result<()> {
        // Before the first child, so that no signal is missed.
        let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD])?;
        // Some launchers leave it ignored, and then the kernel tells nobody how a child ended.
        // SAFETY: the default action is no function that could be wrong, and is to do nothing.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
        loop {
            let mut service = self.start()?;
            match self.watch(&mut service, &signals)? {
                End::Ordered => return Ok(()),
                End::Died(status) if !self.was_ready => {
                    let context = format!("the service ended before it was ready ({status})");
                    return Err(Error::new(ErrorKind::Closed, "serve", context));
                }
                End::Died(status) => self.check_rate(status)?,
            }
        }
    }

    /// Starts a service, and gives it all memory.
    fn start(&mut self) -> Result<Service> {
        let (link, theirs) = Socket::pair()?;
        let raw = theirs.as_fd().as_raw_fd();
        let parent = process::id();
        let orders = set_of(&[libc::SIGTERM, libc::SIGINT]);
        let mut command = (self.program)(raw);
        command.stdin(Stdio::null());
        // SAFETY: the closure makes system calls only, on values that it holds itself.
        unsafe {
            command.pre_exec(move || {
                // Not SIGTERM, which a service reads when it gets to it: one that hangs would keep the host's lock for ever.
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // It may have died before that call.
                if getppid().map(Pid::as_raw_nonzero).map(|pid| pid.get().unsigned_abs()) != Some(parent) {
                    return Err(Errno::SRCH.into());
                }
                // Orders until `connect` reads them.
                set_mask(libc::SIG_BLOCK, &orders)?;
                fcntl_setfd(BorrowedFd::borrow_raw(raw), FdFlags::empty())?;
                Ok(())
            });
        }
        let process = command.spawn().map_err(|error| Error::io("serve", "starting the service", error))?;
        // With the only other end in the child, this one is closed when the child ends.
        drop(theirs);
        let sent = self.memory.send(&link);
        let mut service = Service { process, link: Some(link) };
        match sent {
            // One that is dead already is noticed by whoever watches it.
            Err(error) if error.kind() != ErrorKind::Closed => {
                (self.log)(&format!("ending the service, which does not take its memory: {error}"));
                service.end()?;
            }
            _ => {}
        }
        Ok(service)
    }

    /// Goes along with a service until it ends.
    fn watch(&mut self, service: &mut Service, signals: &Signals) -> Result<End> {
        // When the service has to have ended: it was told to, or its connection is gone.
        let mut deadline = None;
        let mut draining = false;
        loop {
            let mut sources = vec![(signals.as_fd(), PollFlags::IN)];
            sources.extend(service.link.iter().map(|link| (link.as_fd(), PollFlags::IN)));
            // Without a connection SIGCHLD alone would tell the end; where another thread took that, looking does.
            let look = service.link.is_none().then(|| Instant::now() + Duration::from_millis(50));
            wait(&sources, deadline.into_iter().chain(look).min())?;
            drop(sources);
            while let Some(signal) = signals.next() {
                if signal == libc::SIGCHLD {
                    continue;
                }
                if draining {
                    (self.log)("told again: ending at once");
                    service.end()?;
                    return Ok(End::Ordered);
                }
                draining = true;
                deadline = Instant::now().checked_add(self.grace.saturating_add(PATIENCE));
                (self.log)("told to end: draining");
                if let Some(link) = &service.link {
                    // One that cannot be told is ended at the deadline.
                    let _ = send(link, &Keep::Drain, &[]);
                }
            }
            if let Err(error) = self.receive(service) {
                (self.log)(&format!("ending the service, which makes no sense: {error}"));
                service.end()?;
            }
            if service.link.is_none() && deadline.is_none() {
                deadline = Some(Instant::now() + PATIENCE);
            }
            let status = service.process.try_wait().map_err(|error| Error::io("serve", "waiting", error))?;
            if let Some(status) = status {
                // What it made until its end is kept too.
                let _ = self.receive(service);
                return Ok(match draining {
                    true => {
                        (self.log)(&format!("the service ended ({status})"));
                        End::Ordered
                    }
                    false => End::Died(status),
                });
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                service.end()?;
                if draining {
                    let allowed = self.grace.saturating_add(PATIENCE);
                    let context = format!("the service did not end within {allowed:?} and was killed");
                    return Err(Error::new(ErrorKind::Timeout, "serve", context));
                }
                (self.log)("the service closed its connection and was killed");
            }
        }
    }

    /// Takes what the service sent.
    fn receive(&mut self, service: &mut Service) -> Result<()> {
        let mut packet = Vec::new();
        while let Some(link) = &service.link {
            let mut fds = match link.recv(&mut packet)? {
                Received::Packet { fds } => fds,
                Received::WouldBlock => break,
                Received::Closed => {
                    service.link = None;
                    break;
                }
            };
            let message = Keep::decode(&packet)?;
            check_descriptors(&message, &fds)?;
            match (message, fds.pop()) {
                (Keep::Ctl { instance, len }, Some(descriptor)) => {
                    // Segments belong to one `ctl`.
                    self.memory =
                        Memory { ctl: Some(KeptCtl { descriptor, instance, len }), segments: BTreeMap::new() };
                }
                (Keep::Segment { index, len }, Some(descriptor)) => {
                    self.memory.segments.insert(index, (descriptor, len));
                }
                (Keep::Ready, _) => {
                    self.was_ready = true;
                    let bytes: u64 = self.memory.segments.values().map(|(_, len)| len).sum();
                    let count = self.memory.segments.len();
                    let pid = service.process.id();
                    (self.log)(&format!("ready: service {pid}, {count} segments, {bytes} bytes"));
                }
                (message, _) => return Err(unexpected(&message)),
            }
        }
        Ok(())
    }

    /// Whether another start is in order after a death.
    fn check_rate(&mut self, status: ExitStatus) -> Result<()> {
        let now = Instant::now();
        self.restarts.retain(|at| now.duration_since(*at) < PERIOD);
        if self.restarts.len() >= MOST_RESTARTS {
            let context = format!(
                "the service died {} times in {PERIOD:?}, the last time with {status}: giving up; clients go on without it",
                self.restarts.len() + 1
            );
            return Err(Error::new(ErrorKind::Closed, "serve", context));
        }
        self.restarts.push_back(now);
        (self.log)(&format!("the service died ({status}): starting it again"));
        Ok(())
    }
}

impl Memory {
    fn send(&self, link: &Socket) -> Result<()> {
        if let Some(KeptCtl { descriptor, instance, len }) = &self.ctl {
            send(link, &Keep::Ctl { instance: *instance, len: *len }, &[descriptor.as_fd()])?;
        }
        for (index, (descriptor, len)) in &self.segments {
            send(link, &Keep::Segment { index: *index, len: *len }, &[descriptor.as_fd()])?;
        }
        send(link, &Keep::Ready, &[])
    }
}

impl Service {
    /// Kills it, if it lives.
    fn end(&mut self) -> Result<()> {
        let ended = self.process.kill().and_then(|()| self.process.wait());
        ended.map(drop).map_err(|error| Error::io("serve", "ending the service", error))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// Lets this process and its children have as many descriptors as they may: one a segment is held.
fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Where it fails, all goes well up to the old limit.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Most starts after a death in [`PERIOD`].
const MOST_RESTARTS: usize = 3;
const PERIOD: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Read};
    use std::os::unix::process::ExitStatusExt;
    use std::path::{Path, PathBuf};
    use std::process::ChildStderr;

    use crate::service::link::{Kept, Order, connect};
    use rustix::event::{PollFd, Timespec, poll};
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::process::{kill_process, test_kill_process};

    use super::*;

    /// A supervisor in a process of its own, with a service that does what its name says.
    struct Serving {
        process: Child,
        log: BufReader<ChildStderr>,
        directory: tempfile::TempDir,
    }

    impl Serving {
        fn new(service: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let mut command = this_program("supervisor");
            command.env("KEEPER_TEST_SERVICE", service).env("KEEPER_TEST_DIRECTORY", directory.path());
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            let signals = set_of(&[libc::SIGTERM, libc::SIGINT, libc::SIGCHLD]);
            // SAFETY: one system call. It makes all threads of the test program block what a `main` would block first.
            unsafe { command.pre_exec(move || set_mask(libc::SIG_BLOCK, &signals).map(drop)) };
            let mut process = command.spawn().unwrap();
            let log = BufReader::new(process.stderr.take().unwrap());
            Self { process, log, directory }
        }

        /// The rest of the next line that begins so.
        fn line(&mut self, begin: &str) -> String {
            let mut line = String::new();
            loop {
                line.clear();
                assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "no line {begin:?}");
                if let Some(rest) = line.trim().strip_prefix(begin) {
                    return rest.to_owned();
                }
            }
        }

        /// Waits until the service is there; its process.
        fn ready(&mut self) -> Pid {
            let line = self.line("keeper: ready: service ");
            Pid::from_raw(line.split(',').next().unwrap().parse().unwrap()).unwrap()
        }

        fn tell(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.process), signal).unwrap();
        }

        /// What is left of its log, and how it ended.
        fn end(&mut self) -> (String, ExitStatus) {
            let mut log = String::new();
            self.log.read_to_string(&mut log).unwrap();
            (log, self.process.wait().unwrap())
        }

        /// What its services got when they started.
        fn report(&self) -> Vec<String> {
            self.lines_of("report")
        }

        /// What its services were told.
        fn orders(&self) -> Vec<String> {
            self.lines_of("orders")
        }

        fn lines_of(&self, file: &str) -> Vec<String> {
            let text = fs::read_to_string(self.directory.path().join(file)).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }
    }

    impl Drop for Serving {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    fn this_program(test: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args([&format!("service::keeper::tests::{test}"), "--exact", "--ignored", "--nocapture"]);
        command
    }

    #[test]
    #[ignore = "no test: the supervisor of the tests here"]
    fn supervisor() {
        if env::var_os("KEEPER_TEST_SERVICE").is_none() {
            return;
        }
        let mut program = |raw: RawFd| {
            let mut command = this_program("service");
            command.env("KEEPER_TEST_FD", raw.to_string()).stdout(Stdio::null());
            command
        };
        let mut log = |event: &str| eprintln!("keeper: {event}");
        let grace = Duration::from_millis(100);
        if let Err(error) = Supervisor::new(&mut program, &mut log, grace).run() {
            eprintln!("keeper: gave up: {error}");
        }
        // The last child was waited for, and there is no other.
        assert_eq!(rustix::process::wait(rustix::process::WaitOptions::NOHANG).unwrap_err(), Errno::CHILD);
    }

    #[test]
    #[ignore = "no test: the service of the tests here"]
    fn service() {
        let Some(raw) = env::var("KEEPER_TEST_FD").ok().and_then(|raw| raw.parse().ok()) else { return };
        let directory = PathBuf::from(env::var_os("KEEPER_TEST_DIRECTORY").unwrap());
        let does = env::var("KEEPER_TEST_SERVICE").unwrap();
        if does == "ends early" {
            return;
        }
        let mut kept = connect(raw).unwrap();
        assert!(connect(raw).is_err(), "once only");
        report(&directory, &kept);
        match &kept.ctl {
            None => {
                let ctl = memory(0);
                kept.link.keep_ctl(ctl.as_fd(), 1, 1).unwrap();
                kept.link.keep_segment(9, ctl.as_fd(), 1).unwrap();
                // Forgets the segment above.
                kept.link.keep_ctl(ctl.as_fd(), 7, 100).unwrap();
            }
            Some(ctl) => assert_eq!((ctl.instance, ctl.len, number(&ctl.descriptor)), (7, 100, 0)),
        }
        for (index, descriptor, len) in &kept.segments {
            assert_eq!((u64::from(*index) * 1000, *index), (*len, number(descriptor)));
        }
        let next = kept.segments.len() as u16;
        for index in next..next + 2 {
            kept.link.keep_segment(index, memory(index).as_fd(), u64::from(index) * 1000).unwrap();
        }
        kept.link.ready().unwrap();
        match does.as_str() {
            "dies" => die(),
            "dies twice" if next < 4 => die(),
            "babbles" => send(&kept.link.socket, &Keep::Drain, &[]).unwrap(),
            "hangs up" => drop(kept),
            "hangs" => {}
            _ => loop {
                wait(&[(kept.link.as_fd(), PollFlags::IN)], None).unwrap();
                while let Some(order) = kept.link.next().unwrap() {
                    append(&directory.join("orders"), &format!("{order:?}"));
                    if does == "lingers" {
                        // For as long as another order may take.
                        std::thread::sleep(Duration::from_millis(300));
                        assert_eq!(kept.link.next().unwrap(), None);
                    }
                    if order == Order::End || does != "stubborn" {
                        return;
                    }
                }
            },
        }
        std::thread::sleep(Duration::from_secs(20));
    }

    fn die() {
        let own = rustix::process::getpid();
        kill_process(own, Signal::KILL).unwrap();
    }

    fn memory(number: u16) -> OwnedFd {
        let descriptor = memfd_create("keeper-test", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::pwrite(&descriptor, &number.to_le_bytes(), 0).unwrap();
        descriptor
    }

    fn number(descriptor: &OwnedFd) -> u16 {
        let mut bytes = [0; 2];
        assert_eq!(rustix::io::pread(descriptor, &mut bytes, 0).unwrap(), 2);
        u16::from_le_bytes(bytes)
    }

    fn report(directory: &Path, kept: &Kept) {
        append(&directory.join("report"), &format!("{} {}", kept.ctl.is_some(), kept.segments.len()));
    }

    fn append(path: &Path, line: &str) {
        let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
        writeln!(file, "{line}").unwrap();
    }

    #[test]
    fn memory_survives_the_service() {
        let mut serving = Serving::new("dies twice");
        for segments in [2, 4, 6] {
            assert!(serving.line("keeper: ready: service ").contains(&format!(", {segments} segments, ")));
        }
        serving.tell(Signal::TERM);
        let (log, status) = serving.end();
        assert!(log.contains("told to end: draining") && log.contains("the service ended (exit status: 0)"), "{log}");
        assert!(status.success(), "{status}");
        assert_eq!(serving.report(), ["false 0", "true 2", "true 4"]);
        assert_eq!(serving.orders(), ["Drain"]);
    }

    #[test]
    fn it_gives_up_loudly() {
        let mut serving = Serving::new("dies");
        let (log, _) = serving.end();
        assert!(log.contains("gave up: serve: closed: the service died 4 times in 60s"), "{log}");
        assert!(log.contains("signal: 9"), "{log}");
        assert_eq!(serving.report().len(), 4);
    }

    #[test]
    fn a_service_that_cannot_start_is_not_started_again() {
        let mut serving = Serving::new("ends early");
        let (log, _) = serving.end();
        assert!(
            log.contains("gave up: serve: closed: the service ended before it was ready (exit status: 0)"),
            "{log}"
        );
        assert!(serving.report().is_empty());
    }

    #[test]
    fn a_second_signal_ends_at_once() {
        let mut serving = Serving::new("stubborn");
        let service = serving.ready();
        serving.tell(Signal::INT);
        serving.line("keeper: told to end: draining");
        serving.tell(Signal::TERM);
        let (log, status) = serving.end();
        assert!(log.contains("told again") && status.success(), "{log} {status}");
        assert!(test_kill_process(service).is_err(), "the service lives");
    }

    #[test]
    fn one_that_does_not_drain_is_ended() {
        let mut serving = Serving::new("stubborn");
        let service = serving.ready();
        serving.tell(Signal::TERM);
        let (log, _) = serving.end();
        assert!(log.contains("deadline passed: the service did not end within 5.1s"), "{log}");
        assert!(test_kill_process(service).is_err(), "the service lives");
    }

    #[test]
    fn a_signal_to_both_is_one_order() {
        let mut serving = Serving::new("lingers");
        let service = serving.ready();
        kill_process(service, Signal::TERM).unwrap();
        serving.tell(Signal::TERM);
        let (log, status) = serving.end();
        assert!(status.success() && log.contains("the service ended (exit status: 0)"), "{log} {status}");
        assert_eq!(serving.orders(), ["Drain"]);
    }

    #[test]
    fn the_service_ends_with_its_supervisor() {
        let mut serving = Serving::new("hangs");
        let service = serving.ready();
        let watch = rustix::process::pidfd_open(service, rustix::process::PidfdFlags::empty()).unwrap();
        serving.process.kill().unwrap();
        let status = serving.process.wait().unwrap();
        assert_eq!(status.signal(), Some(libc::SIGKILL));
        wait(&[(watch.as_fd(), PollFlags::IN)], Some(Instant::now() + PATIENCE)).unwrap();
        let mut end = [PollFd::new(&watch, PollFlags::IN)];
        assert_eq!(poll(&mut end, Some(&Timespec::default())).unwrap(), 1, "the service lives");
    }

    #[test]
    fn services_that_make_no_sense_are_replaced() {
        for (service, line) in [
            ("babbles", "keeper: ending the service, which makes no sense"),
            ("hangs up", "keeper: the service closed"),
        ] {
            let mut serving = Serving::new(service);
            serving.ready();
            serving.line(line);
            serving.line("keeper: the service died (signal: 9");
            serving.ready();
        }
    }
}
