//! `Driver`: the requester's worker, driven by whoever waits.

use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ucx_sys::UCS_OK;

use super::Options;
use super::calls::{After, Calls};
use super::context::{Context, failed};
use super::exit::EXIT;
use super::greeting;
use super::message::{Hello, Kind, Message, Welcome};
use super::numbered::Numbered;
use super::operation::{About, Body, Finished, Operation, Way};
use super::spin::Spin;
use super::worker::{Events, Worker};
use crate::error::{Error, ErrorKind, Result};
use crate::fabric::{Answer, Call, Peer};
use crate::failpoint::failpoint;
use crate::key::random_number;
use crate::pending::Pending;
use crate::sync::lock;

mod answers;

/// The worker of a process that asks, and what it has asked.
pub(super) struct Driver {
    core: Mutex<Core>,
    context: Arc<Context>,
    options: Options,
    events: Events,
    /// Wakes who drives and is asleep.
    poke: OwnedFd,
    /// Calls the process's own thread to drive.
    bell: OwnedFd,
    generation: u32,
}

struct Core {
    worker: Worker,
    address: Vec<u8>,
    links: Numbered<Link>,
    calls: Calls,
    /// Who drives waits for the kernel.
    asleep: bool,
    /// The process's own thread drives, for tasks, and makes way for threads.
    is_reactor: bool,
    /// The process's own thread sleeps until it is called: nothing has been going on for a while.
    rests: bool,
    spin: Spin,
}

/// A connection.
struct Link {
    /// How the owner names it.
    theirs: u64,
    control: Arc<dyn Peer>,
    /// From where its UCX connects.
    hosts: Vec<IpAddr>,
    failed: Option<Error>,
    /// Since when nothing was heard from the owner while it owed an answer.
    since: Instant,
    /// When it was last told that this side lives.
    said: Instant,
    /// Asked of the control connection while the owner takes long: it fails when the owner is dead or silent.
    watch: Option<Pending<Answer>>,
    /// Since unused connections were last looked for.
    is_used: bool,
    /// It owed something for too long when it was last looked at.
    is_late: bool,
}

impl Driver {
    /// # Errors
    /// Those of [`Context::new`]; `Io` for want of descriptors or threads.
    pub(super) fn new(context: Arc<Context>, options: &Options) -> Result<Arc<Self>> {
        let mut worker = Worker::new(&context)?;
        let address = worker.address()?;
        let (poke, bell) = (super::event()?, super::event()?);
        let events = worker.events();
        let (links, calls) = (Numbered::default(), Calls::default());
        let spin = Spin::new(options.spin);
        let core = Core { worker, address, links, calls, asleep: false, is_reactor: false, rests: true, spin };
        let generation = crate::process::generation();
        let (core, options) = (Mutex::new(core), options.clone());
        let this = Arc::new(Self { core, context, options, events, poke, bell, generation });
        let weak = Arc::downgrade(&this);
        let bell = this.bell.try_clone().map_err(|error| Error::io("connect", "an eventfd", error))?;
        std::thread::Builder::new()
            .name("proxystore-ucx".to_owned())
            .spawn(move || react(&weak, &bell))
            .map_err(|error| Error::io("connect", "a thread that drives for tasks", error))?;
        Ok(this)
    }

    /// Agrees with an owner, over a control connection, on how to name each other; the connection's number, and the owner's
    /// worker. From `hosts` the owner connects.
    ///
    /// # Errors
    /// `Unavailable` when the owner has no UCX, `PeerDown`, `Timeout`, `Corrupt`.
    pub(super) fn meet(&self, control: Arc<dyn Peer>, hosts: Vec<IpAddr>, deadline: Instant) -> Result<(u64, Vec<u8>)> {
        self.check_process()?;
        let (token, address) = {
            let mut core = lock(&self.core);
            core.worker.admit(&hosts);
            (random_number(), core.address.clone())
        };
        let met = match greeting::say(&control, &Hello::Meet { token, address }, deadline) {
            Ok(Welcome::Meet { token, address }) => Ok((token, address)),
            Ok(other) => Err(greeting::unexpected("connect", other)),
            Err(error) => Err(error),
        };
        let mut core = lock(&self.core);
        let linked = met.and_then(|(theirs, address)| {
            self.link(&mut core, (token, theirs), &address, control, hosts.clone())?;
            Ok((token, address))
        });
        if linked.is_err() {
            core.worker.dismiss(&hosts);
        }
        linked
    }

    /// Connects to a worker; it names the link by the second of these numbers.
    fn link(
        &self,
        core: &mut Core,
        (token, theirs): (u64, u64),
        address: &[u8],
        control: Arc<dyn Peer>,
        hosts: Vec<IpAddr>,
    ) -> Result<()> {
        let first = Message::new(Kind::Alive, theirs, 0).encode(&[], &[])?;
        core.worker.connect(token, address, first.header)?;
        let now = Instant::now();
        let link = Link {
            theirs,
            control,
            hosts,
            failed: None,
            since: now,
            said: now,
            watch: None,
            is_used: true,
            is_late: false,
        };
        core.links.insert(token, link);
        // It is driven until it stands, also where nobody asks anything.
        self.rouse(core);
        Ok(())
    }

    /// Whether a connection stands, for a while at least: who asks that is about to use it.
    pub(super) fn is_up(&self, link: u64) -> bool {
        let is_up = |link: &mut Link| {
            link.is_used = true;
            link.failed.is_none() && link.control.is_up()
        };
        self.generation == crate::process::generation() && lock(&self.core).links.get_mut(&link).is_some_and(is_up)
    }

    /// The opposite, asked by who does not use it.
    pub(super) fn is_over(&self, link: u64) -> bool {
        let is_over = |link: &Link| link.failed.is_some() || !link.control.is_up();
        lock(&self.core).links.get(&link).is_none_or(is_over)
    }

    /// Sends a question; the number of the call.
    ///
    /// # Errors
    /// `TooLarge`, `PeerDown`, `Forked`.
    pub(super) fn ask(&self, link: u64, call: Call) -> Result<u64> {
        self.check_process()?;
        let mut core = lock(&self.core);
        let Core { links, calls, worker, .. } = &mut *core;
        let Some(known) = links.get_mut(&link) else { return Err(closed()) };
        if let Some(error) = &known.failed {
            return Err(Error::new(ErrorKind::PeerDown, "request", error.context().to_owned()));
        }
        known.is_used = true;
        let number = calls.number();
        let encoded = Message::new(Kind::Ask, known.theirs, number).encode_in(&call.head, &[], worker.header())?;
        let is_first = !calls.are_open(link);
        calls.insert(link, number, call.land);
        let mut after = After::default();
        self.post(&mut core, link, encoded.header, encoded.prefix, &mut after);
        if let Some(known) = core.links.get_mut(&link).filter(|_| is_first) {
            known.since = Instant::now();
        }
        drop(core);
        after.run();
        failpoint!("ucx.asked");
        Ok(number)
    }

    /// Sends a message of few bytes, and sees to it that somebody drives it on.
    fn post(&self, core: &mut Core, link: u64, header: Vec<u8>, bytes: Vec<u8>, after: &mut After) {
        let body = if bytes.is_empty() { Body::None } else { Body::Own(bytes) };
        let operation = Operation { about: About::Message, header, body };
        match core.worker.send(link, operation, Way::Whole) {
            // It waits for the connection, or for room: that is somebody's work.
            None => self.rouse(core),
            Some(Finished { status: UCS_OK, .. }) => {}
            Some(Finished { status, .. }) => {
                let error = failed(self.context.ucx(), "send", status);
                self.fail(core, link, &error, after);
            }
        }
    }

    /// Ends a connection and all that it was asked.
    fn fail(&self, core: &mut Core, link: u64, error: &Error, after: &mut After) {
        let Some(known) = core.links.get_mut(&link).filter(|known| known.failed.is_none()) else { return };
        known.failed = Some(error.clone());
        let (watch, hosts) = (known.watch.take(), std::mem::take(&mut known.hosts));
        core.worker.close(link);
        core.worker.dismiss(&hosts);
        core.calls.fail(link, error, after);
        self.give_back(core, after);
        drop(watch);
        // Its operations end by being driven.
        self.rouse(core);
    }

    fn give_back(&self, core: &mut Core, after: &mut After) {
        for data in after.data.drain(..) {
            core.worker.release(data);
        }
    }

    /// Ends a connection from this side.
    pub(super) fn close(&self, link: u64) {
        if self.check_process().is_err() {
            return;
        }
        let mut after = After::default();
        let mut core = lock(&self.core);
        self.fail(&mut core, link, &closed(), &mut after);
        let control = core.links.get(&link).map(|known| Arc::clone(&known.control));
        drop(core);
        after.run();
        if let Some(control) = control {
            control.close();
        }
    }

    /// Ends connections that were not used since the last time; after how long to look again, if there are any.
    fn sweep(&self, swept: &mut Instant) -> Option<Duration> {
        let idle = Some(self.options.idle).filter(|idle| !idle.is_zero())?;
        let mut core = lock(&self.core);
        let is_due = swept.elapsed() >= idle;
        let Core { links, calls, .. } = &mut *core;
        let mut unused = Vec::new();
        let mut are_any = false;
        for (number, link) in links.iter_mut().filter(|(_, link)| link.failed.is_none()) {
            let is_used = calls.are_open(*number) || !is_due || link.is_used;
            link.is_used &= !is_due;
            match is_used {
                true => are_any = true,
                false => unused.push((*number, Arc::clone(&link.control))),
            }
        }
        let mut after = After::default();
        for (link, _) in &unused {
            let error = Error::new(ErrorKind::PeerDown, "request", "the connection was closed since nobody used it");
            self.fail(&mut core, *link, &error, &mut after);
        }
        drop(core);
        after.run();
        unused.into_iter().for_each(|(_, control)| control.close());
        if is_due {
            *swept = Instant::now();
        }
        are_any.then(|| idle.saturating_sub(swept.elapsed()))
    }

    /// Ends a connection of which nobody speaks any more.
    pub(super) fn forget(&self, link: u64) {
        if self.check_process().is_err() {
            return;
        }
        self.close(link);
        let mut core = lock(&self.core);
        // Its hosts were taken back when it failed.
        let gone = core.links.remove(&link);
        drop(core);
        drop(gone);
    }

    /// Sees to it that somebody drives.
    fn rouse(&self, core: &Core) {
        if !core.calls.led {
            super::ring(&self.bell);
        } else if core.asleep {
            super::ring(&self.poke);
        }
    }

    pub(super) fn check_process(&self) -> Result<()> {
        if self.generation == crate::process::generation() {
            return Ok(());
        }
        let context = "UCX of the parent process is not this one's; open the store again after fork";
        Err(Error::new(ErrorKind::Forked, "request", context))
    }

    // ------------------------------------------------------------------------------------------------------------------
    // Driving. Events are handled by one thread at a time, the one that leads, outside of the lock.

    /// Drives until the call `number` ended, whose result it gives, `until`, or, without a call, until nothing is left; then
    /// somebody else drives, if somebody has to.
    fn lead(&self, number: Option<u64>, until: Option<Instant>) -> Option<Result<Answer>> {
        let mut lead = Lead(Some(self));
        let mut after = After::default();
        let mut now = Instant::now();
        let mut looked = now;
        let mut spin = lock(&self.core).spin;
        spin.begin(now);
        loop {
            let mut core = lock(&self.core);
            let moved = self.progress(&mut core, now, &mut after);
            let events = core.worker.take_events();
            if !events.is_empty() {
                drop(core);
                after.run();
                events.into_iter().for_each(|event| self.handle(event));
                core = lock(&self.core);
            }
            let result = number.and_then(|number| core.calls.take(number));
            let are_others = core.calls.has_followers();
            let is_late = until.is_some_and(|until| now >= until);
            if result.is_some() || is_late || (number.is_none() && (are_others || !core.has_work())) {
                self.cease(&mut core, &mut after);
                lead.0 = None;
                drop(core);
                after.run();
                return result;
            }
            drop(core);
            after.run();
            let before = std::mem::replace(&mut now, Instant::now());
            if now.saturating_duration_since(before) >= LOOK {
                // It was held up, by a stop of the process or by who had the lock, and what owners said meanwhile is still to be read.
                lock(&self.core).links.values_mut().for_each(|link| link.since = now);
            }
            if now.saturating_duration_since(looked) >= LOOK {
                looked = now;
                self.look(now);
            }
            if moved {
                spin.begin(now);
            } else if spin.goes_on(now, are_others) || until.is_some_and(|until| now >= until) {
                std::hint::spin_loop();
            } else {
                now = self.sleep(until, &mut spin);
            }
        }
    }

    /// One step of UCX; whether there was anything.
    fn progress(&self, core: &mut Core, now: Instant, after: &mut After) -> bool {
        // One step: what came by it may be what is waited for, and a step costs a system call.
        let Core { worker, links, calls, .. } = core;
        let moved = worker.progress(&mut |header, bytes| answers::take(links, calls, after, now, header, bytes));
        self.give_back(core, after);
        moved
    }

    /// Waits for something to do, for a moment at most; the time after it.
    fn sleep(&self, until: Option<Instant>, spin: &mut Spin) -> Instant {
        let begun = Instant::now();
        {
            let mut core = lock(&self.core);
            // An error of arming is one of the next step.
            if !matches!(core.worker.arm(), Ok(true)) {
                spin.begin(begun);
                return begun;
            }
            core.asleep = true;
        }
        let left = until.map_or(LOOK, |until| until.saturating_duration_since(Instant::now()).min(LOOK));
        let timeout = timespec(left);
        let mut descriptors = [PollFd::new(&self.events, PollFlags::IN), PollFd::new(&self.poke, PollFlags::IN)];
        let woken = poll(&mut descriptors, Some(&timeout));
        if woken.is_ok() && !descriptors[1].revents().is_empty() {
            let _ = rustix::io::read(&self.poke, &mut [0u8; 8]);
        }
        let now = Instant::now();
        spin.slept(begun, now);
        let mut core = lock(&self.core);
        (core.asleep, core.spin) = (false, *spin);
        now
    }

    /// Looks after those who owe answers: a dead owner's control connection ends, a silent one's fails when it is asked.
    fn look(&self, now: Instant) {
        let silence = self.options.silence;
        let patience = (silence / 8).min(Duration::from_secs(1));
        let (mut after, mut watches) = (After::default(), Vec::new());
        let mut core = lock(&self.core);
        let waiting: Vec<u64> =
            core.links.iter().filter(|(_, link)| link.failed.is_none()).map(|(link, _)| *link).collect();
        for link in waiting {
            let is_owed = core.calls.are_open(link);
            let Some(known) = core.links.get_mut(&link) else { continue };
            let mut end = None;
            if EXIT.has_begun() {
                // It may have been done all the same.
                end = Some(Error::new(ErrorKind::PeerDown, "request", "the process exits"));
            } else if !known.control.is_up() {
                end = Some(Error::new(ErrorKind::PeerDown, "request", "the owner's control connection ended"));
            } else if !is_owed {
                // Dropped outside of the lock: it tells the owner.
                watches.push(known.watch.take());
                known.since = now;
            } else if known.watch.is_none() && now.saturating_duration_since(known.since) >= patience {
                known.watch = Some(Arc::clone(&known.control).request(Call::small(Hello::Watch.encode())));
            }
            let is_quiet = is_owed && now.saturating_duration_since(known.since.max(known.said)) >= patience;
            let (theirs, since) = (known.theirs, known.since);
            if let Some(watch) = &mut known.watch {
                let mut context = TaskContext::from_waker(Waker::noop());
                if let Poll::Ready(ended) = std::future::Future::poll(Pin::new(watch), &mut context) {
                    known.watch = None;
                    // It has no end of its own while the owner knows this connection.
                    end = Some(match ended {
                        Err(error) if error.kind() != ErrorKind::Cancelled => error,
                        _ => Error::new(ErrorKind::PeerDown, "request", "the owner has ended the connection"),
                    });
                }
            }
            if is_quiet && end.is_none() {
                known.said = now;
                // Bytes may be long on their way, and nothing else tells the owner that they are taken.
                if let Ok(encoded) = Message::new(Kind::Alive, theirs, 0).encode(&[], &[]) {
                    self.post(&mut core, link, encoded.header, Vec::new(), &mut after);
                }
            }
            let is_still = !core.worker.is_receiving() && now.saturating_duration_since(since) >= silence;
            let is_late = is_still && core.calls.is_overdue(link, now, silence);
            // Looked at twice: when this process was stopped, what came meanwhile is read in between.
            let was_late =
                core.links.get_mut(&link).is_some_and(|known| std::mem::replace(&mut known.is_late, is_late));
            if end.is_none() && is_late && was_late {
                let context = "the owner owes parts of an answer and sends nothing";
                end = Some(Error::new(ErrorKind::PeerDown, "request", context));
            }
            if let Some(error) = end {
                self.fail(&mut core, link, &error, &mut after);
            }
        }
        drop(core);
        after.run();
        drop(watches);
    }

    /// Waits for a call.
    pub(super) fn wait(&self, number: u64, deadline: Option<Instant>) -> Result<Answer> {
        self.check_process()?;
        loop {
            let mut core = lock(&self.core);
            let result = core.calls.take(number);
            let is_late = result.is_none() && deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if result.is_some() || is_late {
                core.calls.leave(number);
                let mut after = After::default();
                self.hand_on(&mut core, &mut after);
                drop(core);
                after.run();
                return result.unwrap_or_else(|| Err(late()));
            }
            if !core.calls.led {
                core.calls.led = true;
                core.calls.leave(number);
                drop(core);
                match self.lead(Some(number), deadline) {
                    Some(result) => return result,
                    None => continue,
                }
            }
            core.calls.follow(number);
            if core.is_reactor {
                // It makes way.
                self.rouse(&core);
            }
            drop(core);
            match deadline {
                None => std::thread::park(),
                Some(deadline) => std::thread::park_timeout(deadline.saturating_duration_since(Instant::now())),
            }
        }
    }

    /// Looks for the end of a call. Where nobody drives, the first look does, for about as long as a sleep would cost: an answer
    /// that is here by then has gone through no other thread.
    pub(super) fn poll(&self, number: u64, cx: &mut TaskContext<'_>) -> Poll<Result<Answer>> {
        if let Err(error) = self.check_process() {
            return Poll::Ready(Err(error));
        }
        let waker = cx.waker().clone();
        let mut core = lock(&self.core);
        let mut result = core.calls.take(number);
        if result.is_none() && !core.calls.led && !core.calls.is_watching(number) {
            core.calls.led = true;
            drop(core);
            result = self.lead(Some(number), Some(Instant::now() + self.options.look.min(self.options.spin)));
            core = lock(&self.core);
            result = result.or_else(|| core.calls.take(number));
        }
        let mut after = After::default();
        if let Some(result) = result {
            self.hand_on(&mut core, &mut after);
            drop(core);
            after.run();
            drop(waker);
            return Poll::Ready(result);
        }
        core.calls.watch(number, waker, &mut after);
        if !core.calls.led {
            self.rouse(&core);
        }
        drop(core);
        after.run();
        Poll::Pending
    }

    /// Gives up a call, where its result was not taken.
    pub(super) fn abandon(&self, number: u64, link: u64) {
        if self.check_process().is_err() {
            return;
        }
        let mut core = lock(&self.core);
        if !core.calls.knows(number) {
            return;
        }
        let mut after = After::default();
        let is_open = core.calls.abandon(number, &mut after);
        self.give_back(&mut core, &mut after);
        let theirs = core.links.get(&link).filter(|known| known.failed.is_none()).map(|known| known.theirs);
        if let (true, Some(theirs)) = (is_open, theirs) {
            if let Ok(encoded) = Message::new(Kind::Abandon, theirs, number).encode(&[], &[]) {
                self.post(&mut core, link, encoded.header, Vec::new(), &mut after);
            }
        }
        self.hand_on(&mut core, &mut after);
        drop(core);
        after.run();
    }

    /// Sees to it that somebody drives where somebody has to.
    fn hand_on(&self, core: &mut Core, after: &mut After) {
        if core.calls.led {
            return;
        }
        core.calls.promote(after);
        if !core.calls.has_followers() && core.has_work() {
            self.rouse(core);
        } else if std::mem::take(&mut core.rests) {
            // What UCX still has to say to the owner, as that all bytes are here, is said by then.
            super::ring(&self.bell);
        }
    }

    /// Drives no longer.
    fn cease(&self, core: &mut Core, after: &mut After) {
        core.calls.led = false;
        core.is_reactor = false;
        self.hand_on(core, after);
    }
}

impl Core {
    /// Whether somebody has to drive though no thread waits.
    fn has_work(&self) -> bool {
        self.calls.is_watched() || self.calls.are_left() || self.worker.is_busy()
    }
}

/// Driving, which is handed on also where it panics.
struct Lead<'a>(Option<&'a Driver>);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        if let Some(driver) = self.0 {
            let mut after = After::default();
            driver.cease(&mut lock(&driver.core), &mut after);
            after.run();
        }
    }
}

/// The thread that drives when nobody else does, until the driver is gone, and ends connections that are not used. After the
/// last call it looks a few times whether UCX has something left to do, which nothing tells.
fn react(driver: &Weak<Driver>, bell: &OwnedFd) {
    let mut quiet = RESTFUL;
    let (mut swept, mut sweep) = (Instant::now(), None);
    loop {
        let pause = if quiet < RESTFUL { Some(LOOK) } else { sweep };
        let pause = pause.map(timespec);
        let mut descriptors = [PollFd::new(bell, PollFlags::IN)];
        if poll(&mut descriptors, pause.as_ref()).is_err() {
            continue;
        }
        let Some(driver) = driver.upgrade() else { return };
        sweep = driver.sweep(&mut swept);
        if rustix::io::read(bell, &mut [0u8; 8]).is_ok() {
            quiet = 0;
        }
        let mut core = lock(&driver.core);
        // A thread that waits is better at it, and may be on its way.
        if core.calls.led || core.calls.has_followers() {
            quiet = 0;
            continue;
        }
        if !core.has_work() {
            quiet += 1;
            core.rests = quiet >= RESTFUL;
            core.calls.led = true;
            let mut after = After::default();
            driver.progress(&mut core, Instant::now(), &mut after);
            let events = core.worker.take_events();
            drop(core);
            after.run();
            events.into_iter().for_each(|event| driver.handle(event));
            // Not by `cease`, for which this would be something going on.
            let mut core = lock(&driver.core);
            core.calls.led = false;
            core.calls.promote(&mut after);
            if core.has_work() {
                // Whoever brought it found that somebody drove.
                super::ring(&driver.bell);
            }
            drop(core);
            after.run();
            continue;
        }
        quiet = 0;
        core.calls.led = true;
        core.is_reactor = true;
        drop(core);
        driver.lead(None, None);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Its thread holds no reference while it sleeps, and sees that this is gone.
        if self.generation == crate::process::generation() {
            super::ring(&self.bell);
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Driver({:?})", self.context)
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

pub(super) fn closed() -> Error {
    Error::new(ErrorKind::PeerDown, "request", "the connection was closed by this process")
}

fn late() -> Error {
    Error::new(ErrorKind::Timeout, "request", "the owner did not answer in time; it lives: retry, or wait longer")
}

/// How often who drives looks after the owners, and how long it sleeps at most.
const LOOK: Duration = Duration::from_millis(50);

/// Looks at nothing after which the process's own thread rests.
const RESTFUL: u32 = 3;
