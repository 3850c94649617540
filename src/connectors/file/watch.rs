//! Waiters for deferred keys: one thread a process, asleep until the kernel tells that a declaration is gone.

use std::collections::HashSet;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use super::SCHEME;
use super::directory::{Directory, Name};
use crate::error::{Error, ErrorKind};
use crate::pending::{Completer, Pending};
use crate::process::PerProcess;
use crate::sync::lock;

/// Ends when the object is committed, or can not be any more.
///
/// # Cost
/// One inotify watch, on the declaration itself, so that other objects of the directory wake nobody.
pub(super) fn until_settled(directory: &Arc<Directory>, name: Name) -> Pending<()> {
    let watcher = Watcher::of_this_process();
    let mut waiters = lock(&watcher.waiters);
    // Watched first and looked at then, so that no end between the two is missed. The lock keeps the thread from
    // dispatching an event before its waiter is in the table.
    let watch = watcher.inotify.as_ref().filter(|_| directory.file_system().is_local).and_then(|inotify| {
        let path = format!("/proc/self/fd/{}/{}", directory.handle().as_raw_fd(), name.declaration());
        let what = WatchFlags::ATTRIB | WatchFlags::DELETE_SELF | WatchFlags::DONT_FOLLOW;
        inotify::add_watch(inotify, path, what).ok()
    });
    if !matches!(directory.is_awaited(name), Ok(true)) {
        // Whoever reads next gets the object, or the error.
        watcher.release(watch, &waiters);
        return Pending::ready(Ok(()));
    }
    let (completer, pending) = Pending::channel();
    waiters.list.push(Waiter { directory: Arc::clone(directory), name, watch, completer });
    if !waiters.is_served {
        let thread = std::thread::Builder::new().name("proxystore-watch".into());
        waiters.is_served = thread.spawn(|| watcher.serve()).is_ok();
    }
    if !waiters.is_served {
        // Without a thread nobody would ever look: the waiters learn that by `Cancelled`.
        waiters.list.clear();
    }
    drop(waiters);
    watcher.wake();
    pending
}

/// Ends the waiting of those who came through the handle `directory`, which was closed.
pub(super) fn close(directory: &Arc<Directory>) {
    let Some(watcher) = WATCHER.current() else { return };
    let mut waiters = lock(&watcher.waiters);
    let (closed, open) = std::mem::take(&mut waiters.list)
        .into_iter()
        .partition::<Vec<_>, _>(|waiter| Arc::ptr_eq(&waiter.directory, directory));
    waiters.list = open;
    for waiter in &closed {
        watcher.release(waiter.watch, &waiters);
    }
    drop(waiters);
    // Outside the lock: wakers are foreign code.
    for waiter in closed {
        let error = Error::new(ErrorKind::Closed, "get", "the store was closed while it waited");
        waiter.completer.complete(Err(error.with_connector(SCHEME)));
    }
}

struct Watcher {
    /// None when the user has no more inotify instances; waiters are looked at in turn then.
    inotify: Option<OwnedFd>,
    /// Ends the thread's sleep.
    bell: Option<OwnedFd>,
    waiters: Mutex<Waiters>,
}

#[derive(Default)]
struct Waiters {
    list: Vec<Waiter>,
    /// Whether the thread runs.
    is_served: bool,
}

struct Waiter {
    directory: Arc<Directory>,
    name: Name,
    watch: Option<i32>,
    completer: Completer<()>,
}

impl Watcher {
    /// A forked child has no thread, so it makes its own.
    fn of_this_process() -> &'static Self {
        WATCHER.get(|| Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok(),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
            waiters: Mutex::default(),
        })
    }

    fn wake(&self) {
        if let Some(bell) = &self.bell {
            // Adds a number, whichever. Fails only when the counter is full, and then the bell rings already.
            let _ = rustix::io::write(bell, &[1; 8]);
        }
    }

    fn serve(&self) {
        let mut pause = LOOK_OFTEN;
        let mut looked = Instant::now();
        loop {
            self.sleep(pause.saturating_sub(looked.elapsed()));
            let mut waiters = lock(&self.waiters);
            let is_time = looked.elapsed() >= pause;
            if is_time {
                looked = Instant::now();
                if waiters.list.is_empty() {
                    waiters.is_served = false;
                    return;
                }
            }
            // From time to time all are looked at: those without a watch, and those whose producer died between making
            // the object visible and removing its declaration.
            let events = self.events();
            let mut ended = Vec::new();
            for index in (0..waiters.list.len()).rev() {
                let waiter = &waiters.list[index];
                let is_due = is_time || waiter.watch.is_some_and(|watch| events.contains(&watch));
                let is_over = waiter.completer.is_detached()
                    || (is_due && !matches!(waiter.directory.is_awaited(waiter.name), Ok(true)));
                if is_over {
                    let waiter = waiters.list.swap_remove(index);
                    self.release(waiter.watch, &waiters);
                    ended.push(waiter.completer);
                }
            }
            let all_watched = self.bell.is_some() && waiters.list.iter().all(|waiter| waiter.watch.is_some());
            pause = if all_watched { LOOK_SELDOM } else { LOOK_OFTEN };
            drop(waiters);
            // Outside the lock: wakers are foreign code.
            for completer in ended {
                completer.complete(Ok(()));
            }
        }
    }

    /// Sleeps until the kernel has events, the bell rings or `pause` is over.
    fn sleep(&self, pause: Duration) {
        let handles = [&self.inotify, &self.bell];
        let mut handles: Vec<_> = handles.into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let pause = Timespec { tv_sec: pause.as_secs() as i64, tv_nsec: pause.subsec_nanos().into() };
        // Interrupted is as good as woken: all that follows looks for itself.
        let _ = poll(&mut handles, Some(&pause));
        if let Some(bell) = &self.bell {
            // Empty is as good as emptied.
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }

    /// Watches that have seen something.
    fn events(&self) -> HashSet<i32> {
        let mut watches = HashSet::new();
        if let Some(inotify) = &self.inotify {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(inotify, &mut buffer);
            while let Ok(event) = reader.next() {
                watches.insert(event.wd());
            }
        }
        watches
    }

    /// Ends a watch that no waiter shares; the kernel has ended that of a removed file.
    fn release(&self, watch: Option<i32>, waiters: &Waiters) {
        if let (Some(inotify), Some(watch)) = (&self.inotify, watch) {
            if waiters.list.iter().all(|waiter| waiter.watch != Some(watch)) {
                let _ = inotify::remove_watch(inotify, watch);
            }
        }
    }
}

static WATCHER: PerProcess<Watcher> = PerProcess::new();

/// Between two looks at waiters that nobody tells anything.
const LOOK_OFTEN: Duration = Duration::from_millis(50);

/// Between two looks at waiters that inotify serves.
const LOOK_SELDOM: Duration = Duration::from_secs(1);
