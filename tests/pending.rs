//! `Pending` under every executor and under none: who runs what, when it ends, and that it always does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use proxystore::pending::{Completer, Source};
use proxystore::{Error, ErrorKind, Pending, Result};

/// Long enough that only a lost wake-up reaches it.
const FOREVER: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(30);

// -- Who waits -------------------------------------------------------------------------------------------------------

type End = fn(Pending<u64>) -> Result<u64>;

/// Ways to end an operation; each test below runs under all of them.
const ENDS: [(&str, End); 4] = [
    ("no executor", |pending| pending.wait()),
    ("futures", |pending| futures::executor::block_on(pending)),
    ("tokio current-thread", |pending| tokio_current_thread().block_on(pending)),
    ("tokio multi-thread", |pending| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async { tokio::spawn(pending).await.unwrap() })
    }),
];

fn tokio_current_thread() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn channel_completed_after(delay: Duration) -> Pending<u64> {
    let (completer, pending) = Pending::channel();
    thread::spawn(move || {
        thread::sleep(delay);
        completer.complete(Ok(7));
    });
    pending
}

/// A call that cannot be interrupted.
fn sleep(time: Duration) -> Pending<()> {
    Pending::blocking(move || {
        thread::sleep(time);
        Ok(())
    })
}

#[test]
fn every_representation_ends_under_every_executor() {
    for (name, end) in ENDS {
        assert_eq!(end(Pending::ready(Ok(7))).unwrap(), 7, "{name}");
        assert_eq!(end(Pending::blocking(|| Ok(7))).unwrap(), 7, "{name}");
        assert_eq!(end(Pending::blocking(|| Ok(7)).start()).unwrap(), 7, "{name}");
        assert_eq!(end(Pending::blocking_until(|_| Ok(7))).unwrap(), 7, "{name}");
        assert_eq!(end(channel_completed_after(SHORT)).unwrap(), 7, "{name}");
        assert_eq!(end(channel_completed_after(Duration::ZERO)).unwrap(), 7, "{name}");
        let failed = Pending::ready(Err(Error::new(ErrorKind::NoSpace, "put", "")));
        assert_eq!(end(failed).unwrap_err().kind(), ErrorKind::NoSpace, "{name}");
    }
}

#[test]
fn continuations_run_under_every_executor() {
    for (name, end) in ENDS {
        for make in [|| Pending::ready(Ok(1)), || Pending::blocking(|| Ok(1)), || channel_completed_after(SHORT)] {
            let make = || -> Pending<u64> { make() };
            assert_eq!(end(make().and_then(|_| Ok(2))).unwrap(), 2, "{name}");
            assert_eq!(end(make().then(|_| Err(Error::new(ErrorKind::Io, "x", "")))).unwrap_err().op(), "x", "{name}");
            assert_eq!(end(make().chain(|_| Pending::ready(Ok(3)))).unwrap(), 3, "{name}");
            assert_eq!(end(make().chain(|_| Pending::blocking(|| Ok(4)))).unwrap(), 4, "{name}");
            assert_eq!(end(make().chain(|_| channel_completed_after(SHORT))).unwrap(), 7, "{name}");
            let sum = Pending::all(vec![make(), Pending::blocking(|| Ok(10)), channel_completed_after(SHORT)]);
            let sum = end(sum.and_then(|values| Ok(values[1] * 100 + values[2])));
            assert_eq!(sum.unwrap(), 1007, "{name}: in the order given");
        }
    }
}

#[test]
fn dropped_completer_gives_cancelled() {
    for (name, end) in ENDS {
        let (completer, pending) = Pending::channel();
        let other = thread::spawn(move || {
            thread::sleep(SHORT);
            drop(completer);
        });
        assert_eq!(end(pending).unwrap_err().kind(), ErrorKind::Cancelled, "{name}");
        other.join().unwrap();
    }
}

#[test]
fn a_panic_of_the_call_gives_cancelled_with_its_message() {
    for (name, end) in ENDS {
        for (prepare, how) in [
            ((|p| p) as fn(Pending<u64>) -> Pending<u64>, "plain"),
            (|p| p.deadline(FOREVER), "with a deadline"),
            (Pending::start, "started"),
        ] {
            let error = end(prepare(Pending::blocking(|| panic!("no {}", "luck")))).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Cancelled, "{name}, {how}");
            assert!(error.to_string().contains("no luck"), "{name}, {how}: {error}");
        }
    }
}

#[test]
fn the_pool_survives_panics() {
    /// Panics once more while the panic is thrown away.
    struct Grenade;
    impl Drop for Grenade {
        fn drop(&mut self) {
            panic!("again");
        }
    }
    let error = Pending::<()>::blocking(|| std::panic::panic_any(Grenade)).wait().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
    // More than the pool has threads: were one lost each time, the last call would wait for ever.
    for _ in 0..64 {
        drop(Pending::<()>::blocking(|| std::panic::panic_any(Grenade)));
        drop(Pending::blocking(|| Ok(Grenade)));
    }
    assert_eq!(Pending::blocking(|| Ok(7)).start().deadline(FOREVER).wait().unwrap(), 7);
}

#[test]
fn a_panicking_waker_harms_nobody_else() {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics");
        }
    }
    let bomb = Waker::from(Arc::new(Bomb));
    let mut cx = Context::from_waker(&bomb);
    // The completing thread goes on.
    let (completer, pending) = Pending::channel();
    let mut pending = pin!(pending);
    assert!(pending.as_mut().poll(&mut cx).is_pending());
    thread::spawn(move || completer.complete(Ok(7))).join().unwrap();
    assert_eq!(ready(pending.as_mut().poll(&mut cx)).unwrap(), 7);
    // So does the timer's.
    let (_completer, pending) = Pending::<()>::channel();
    let mut pending = pin!(pending.deadline(SHORT));
    assert!(pending.as_mut().poll(&mut cx).is_pending());
    thread::sleep(2 * SHORT);
    let (_completer, pending) = Pending::<()>::channel();
    let end = in_time(move || futures::executor::block_on(pending.deadline(SHORT)));
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Timeout);
}

// -- Where a blocking call runs ----------------------------------------------------------------------------------------

fn thread_of_the_call() -> Pending<thread::ThreadId> {
    Pending::blocking(|| Ok(thread::current().id()))
}

#[test]
fn a_blocking_call_runs_on_the_waiting_thread() {
    let here = thread::current().id();
    assert_eq!(thread_of_the_call().wait().unwrap(), here);
    assert_eq!(thread_of_the_call().default_deadline(FOREVER).wait().unwrap(), here);
    assert_eq!(thread_of_the_call().then(|id| id).wait().unwrap(), here);
    assert_eq!(thread_of_the_call().chain(|id| Pending::blocking(move || Ok(id))).wait().unwrap(), here);
    assert_eq!(thread_of_the_call().chain(|_| thread_of_the_call()).wait().unwrap(), here);
    let both = Pending::all(vec![thread_of_the_call(), thread_of_the_call()]).default_deadline(FOREVER);
    assert_eq!(both.wait().unwrap(), [here, here]);
    let until = Pending::blocking_until(|_| Ok(thread::current().id()));
    assert_eq!(until.deadline(FOREVER).wait().unwrap(), here, "a call that minds its deadline needs no other thread");
}

#[test]
fn a_blocking_call_runs_beside_the_executor() {
    let here = thread::current().id();
    assert_ne!(futures::executor::block_on(thread_of_the_call()).unwrap(), here);
    assert_ne!(tokio_current_thread().block_on(thread_of_the_call()).unwrap(), here);
    let chained = thread_of_the_call().chain(|_| thread_of_the_call());
    assert_ne!(futures::executor::block_on(chained).unwrap(), here);
    assert_ne!(thread_of_the_call().start().wait().unwrap(), here);
    assert_ne!(thread_of_the_call().deadline(FOREVER).wait().unwrap(), here, "it must be possible to leave it behind");
}

#[test]
fn a_started_call_runs_though_nobody_waits() {
    let (sender, receiver) = mpsc::channel();
    let pending = Pending::blocking(move || Ok(sender.send(7))).start();
    assert_eq!(receiver.recv_timeout(FOREVER).unwrap(), 7);
    pending.wait().unwrap().unwrap();
}

#[test]
fn wait_inside_a_current_thread_task_does_not_hang() {
    let sum = in_time(|| {
        tokio_current_thread().block_on(async {
            let task = tokio::spawn(async {
                let waited = Pending::blocking(|| Ok(1)).start().wait()? + channel_completed_after(SHORT).wait()?;
                Ok::<_, Error>(waited + Pending::blocking(|| Ok(10)).wait()?)
            });
            task.await.unwrap()
        })
    });
    assert_eq!(sum.unwrap(), 18);
}

// -- Deadlines -------------------------------------------------------------------------------------------------------

#[test]
fn deadlines_end_in_timeout() {
    for (name, end) in ENDS {
        for delay in [Duration::ZERO, SHORT] {
            let (_completer, pending) = Pending::channel();
            let begin = Instant::now();
            assert_eq!(end(pending.deadline(delay)).unwrap_err().kind(), ErrorKind::Timeout, "{name}");
            assert!((delay..FOREVER).contains(&begin.elapsed()), "{name}: after {:?}", begin.elapsed());
        }
        let (_completer, pending) = Pending::channel();
        assert_eq!(end(pending.default_deadline(SHORT)).unwrap_err().kind(), ErrorKind::Timeout, "{name}");
        let pending = channel_completed_after(SHORT).deadline(FOREVER);
        assert_eq!(end(pending).unwrap(), 7, "{name}: in time");
    }
}

#[test]
fn an_uninterruptible_call_is_left_behind_in_time_and_goes_on() {
    for (name, end) in ENDS {
        let (release, released) = mpsc::channel::<()>();
        let (sender, receiver) = mpsc::channel();
        let call = move || {
            let _ = released.recv();
            let _ = sender.send("done");
            Ok(7)
        };
        let begin = Instant::now();
        assert_eq!(end(Pending::blocking(call).deadline(SHORT)).unwrap_err().kind(), ErrorKind::Timeout, "{name}");
        assert!((SHORT..FOREVER).contains(&begin.elapsed()), "{name}");
        release.send(()).unwrap();
        assert_eq!(receiver.recv_timeout(FOREVER).unwrap(), "done", "{name}");
    }
}

#[test]
fn a_default_deadline_does_not_cut_an_uninterruptible_call() {
    for (name, end) in ENDS {
        let slow = || sleep(3 * SHORT).and_then(|()| Ok(7));
        assert_eq!(end(slow().default_deadline(SHORT)).unwrap(), 7, "{name}");
        assert_eq!(end(slow().default_deadline(SHORT).start()).unwrap(), 7, "{name}: started");
    }
}

#[test]
fn a_default_yields_to_what_was_asked_for() {
    for (name, end) in ENDS {
        let asked = channel_completed_after(3 * SHORT).deadline(FOREVER).default_deadline(SHORT);
        assert_eq!(end(asked).unwrap(), 7, "{name}");
        let (_completer, pending) = Pending::channel();
        let later = pending.default_deadline(FOREVER).deadline(SHORT);
        assert_eq!(end(later).unwrap_err().kind(), ErrorKind::Timeout, "{name}");
    }
}

#[test]
fn a_cooperative_call_gets_its_deadline() {
    for (name, end) in ENDS {
        let call = |limit: Option<Instant>| Ok(limit.map_or(0, |at| at.duration_since(Instant::now()).as_secs()));
        assert_eq!(end(Pending::blocking_until(call)).unwrap(), 0, "{name}");
        assert!((15..=20).contains(&end(Pending::blocking_until(call).deadline(FOREVER)).unwrap()), "{name}");
        let then = Pending::blocking_until(call).and_then(Ok).default_deadline(FOREVER);
        assert!((15..=20).contains(&end(then).unwrap()), "{name}");
    }
}

#[test]
fn deadlines_of_the_parts_hold_beside_that_of_the_whole() {
    fn never() -> (Completer<u64>, Pending<u64>) {
        Pending::channel()
    }
    for (name, end) in ENDS {
        let timeout = |pending: Pending<u64>| in_time(move || end(pending)).unwrap_err().kind();
        for whole in [
            (|p| p) as fn(Pending<u64>) -> Pending<u64>,
            |p| p.default_deadline(2 * FOREVER),
            |p| p.deadline(2 * FOREVER),
        ] {
            // The second part of a chain, after a blocking and after a waiting first.
            let (_completer, second) = never();
            let chain = Pending::blocking(|| Ok(1)).chain(|_| second.deadline(SHORT));
            assert_eq!(timeout(whole(chain)), ErrorKind::Timeout, "{name}");
            let (_completer, second) = never();
            let chain = channel_completed_after(SHORT).chain(|_| second.deadline(SHORT));
            assert_eq!(timeout(whole(chain)), ErrorKind::Timeout, "{name}");
            // One of many.
            let (_completer, one) = never();
            let all = Pending::all(vec![channel_completed_after(SHORT), one.deadline(SHORT)]);
            assert_eq!(timeout(whole(all.and_then(|values| Ok(values[0])))), ErrorKind::Timeout, "{name}");
        }
        // And the whole's where the parts have none.
        let (_completer, second) = never();
        let chain = channel_completed_after(Duration::ZERO).chain(|_| second);
        assert_eq!(timeout(chain.deadline(2 * SHORT)), ErrorKind::Timeout, "{name}");
        let (_completer, second) = never();
        let chain = Pending::blocking(|| Ok(1)).chain(|_| second);
        assert_eq!(timeout(chain.default_deadline(SHORT)), ErrorKind::Timeout, "{name}: a default bounds what waits");
        if name == "no executor" {
            let (completer, first) = never();
            completer.complete(Ok(1));
            let asked = first.chain(|_| channel_completed_after(40 * SHORT).deadline(FOREVER));
            assert_eq!(
                end(asked.default_deadline(20 * SHORT)).unwrap(),
                7,
                "what was asked for comes before a default"
            );
        }
        let (_completer, one) = never();
        let all = Pending::all(vec![one]).and_then(|values| Ok(values[0]));
        assert_eq!(timeout(all.deadline(SHORT)), ErrorKind::Timeout, "{name}");
        let (release, released) = mpsc::channel::<()>();
        let stuck = channel_completed_after(Duration::ZERO).chain(|_| {
            Pending::blocking(move || {
                let _ = released.recv();
                Ok(1)
            })
        });
        assert_eq!(timeout(stuck.deadline(2 * SHORT)), ErrorKind::Timeout, "{name}: a call inside a chain");
        drop(release);
    }
}

#[test]
fn a_continuation_sees_the_timeout() {
    for (name, end) in ENDS {
        let (_completer, pending) = Pending::channel();
        let rescued = pending.deadline(SHORT).then(|result: Result<u64>| match result {
            Err(error) if error.kind() == ErrorKind::Timeout => Ok(42),
            other => other,
        });
        assert_eq!(end(rescued).unwrap(), 42, "{name}");
        let (_completer, pending) = Pending::<u64>::channel();
        let chain = pending.chain(|_| Pending::ready(Ok(1))).then(|result| Ok(u64::from(result.is_err())));
        assert_eq!(end(chain.deadline(SHORT)).unwrap(), 1, "{name}");
    }
}

#[test]
fn an_earlier_deadline_is_not_overslept() {
    // The timer sleeps for the far one when the near one comes.
    let (_far, pending) = Pending::<()>::channel();
    let mut far = pin!(pending.deadline(FOREVER));
    assert!(far.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    thread::sleep(SHORT);
    let (_near, pending) = Pending::<()>::channel();
    let begin = Instant::now();
    let end = in_time(move || futures::executor::block_on(pending.deadline(SHORT)));
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Timeout);
    assert!(begin.elapsed() < FOREVER / 2, "{:?}", begin.elapsed());
}

#[test]
fn many_deadlines_fire_each_in_its_turn() {
    let ends = in_time(|| {
        tokio_current_thread().block_on(async {
            let tasks: Vec<_> = (0..500u64)
                .map(|i| {
                    let (completer, pending) = Pending::<()>::channel();
                    // Falling, so that each is the earliest when it is set.
                    let limit = Duration::from_millis(550 - i);
                    let begin = Instant::now();
                    tokio::spawn(async move {
                        let end = pending.deadline(limit).await;
                        drop(completer);
                        (end.unwrap_err().kind() == ErrorKind::Timeout, begin.elapsed().saturating_sub(limit))
                    })
                })
                .collect();
            let mut ends = Vec::new();
            for task in tasks {
                ends.push(task.await.unwrap());
            }
            ends
        })
    });
    assert!(ends.iter().all(|(timeout, late)| *timeout && *late < Duration::from_secs(5)), "{ends:?}");
}

#[test]
fn an_alarm_does_not_keep_its_task() {
    let waker = Arc::new(Flag::default());
    let (completer, pending) = Pending::channel();
    let mut pending = Box::pin(pending.deadline(Duration::from_secs(3600)));
    assert!(pending.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&waker)))).is_pending());
    completer.complete(Ok(1));
    assert!(pending.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&waker)))).is_ready());
    assert_eq!(Arc::strong_count(&waker), 1, "the end took the alarm back");
    let (_completer, second) = Pending::<()>::channel();
    let mut second = Box::pin(second.deadline(Duration::from_secs(3600)));
    assert!(second.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&waker)))).is_pending());
    drop(second);
    assert_eq!(Arc::strong_count(&waker), 1, "so does dropping");
}

// -- Detaching -------------------------------------------------------------------------------------------------------

#[test]
fn dropping_detaches() {
    let (sender, receiver) = mpsc::channel();
    drop(Pending::blocking(move || Ok(sender.send(thread::current().id()))));
    assert_ne!(receiver.recv_timeout(FOREVER).unwrap(), thread::current().id(), "blocking: it still runs, elsewhere");

    let (completer, pending) = Pending::channel();
    assert!(!completer.is_detached());
    drop(pending);
    assert!(completer.is_detached());
    let value = Arc::new(());
    completer.complete(Ok(Arc::clone(&value)));
    assert_eq!(Arc::strong_count(&value), 1, "a result for nobody is dropped");

    let (completer, pending) = Pending::channel();
    completer.complete(Ok(Arc::clone(&value)));
    drop(pending);
    assert_eq!(Arc::strong_count(&value), 1, "also one that was there already");
}

#[test]
fn dropping_releases_the_task() {
    let flag = Arc::new(Flag::default());
    let (completer, pending) = Pending::<()>::channel();
    let mut pending = Box::pin(pending);
    assert!(pending.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&flag)))).is_pending());
    drop(pending);
    assert_eq!(Arc::strong_count(&flag), 1, "though the completer lives on");
    drop(completer);
    assert_eq!(flag.count(), 0);
}

#[test]
fn a_failure_in_all_detaches_the_rest() {
    for wait in [true, false] {
        let (sender, receiver) = mpsc::channel();
        let failing = Pending::blocking(|| Err(Error::new(ErrorKind::Io, "x", "")));
        let all = Pending::all(vec![failing, Pending::blocking(move || Ok(sender.send(()).is_ok()))]);
        let end = if wait { all.wait() } else { futures::executor::block_on(all) };
        assert_eq!(end.unwrap_err().op(), "x");
        receiver.recv_timeout(FOREVER).unwrap();
    }
}

#[test]
fn a_result_is_taken_once() {
    let (completer, pending) = Pending::channel();
    completer.complete(Ok(7));
    let mut pending = pin!(pending);
    let mut cx = Context::from_waker(Waker::noop());
    assert_eq!(ready(pending.as_mut().poll(&mut cx)).unwrap(), 7);
    assert_eq!(ready(pending.as_mut().poll(&mut cx)).unwrap_err().kind(), ErrorKind::Cancelled);
}

// -- Wakers ----------------------------------------------------------------------------------------------------------

#[test]
fn the_last_waker_counts() {
    let (first, second) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
    let (completer, pending) = Pending::channel();
    let mut pending = pin!(pending);
    for flag in [&first, &first, &second] {
        assert!(pending.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(flag)))).is_pending());
    }
    completer.complete(Ok(7));
    assert_eq!((first.count(), second.count()), (0, 1));
}

#[test]
fn the_last_waker_meets_the_deadline() {
    let (first, second) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
    let (_completer, pending) = Pending::<()>::channel();
    let mut pending = pin!(pending.deadline(SHORT));
    for flag in [&first, &second] {
        assert!(pending.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(flag)))).is_pending());
    }
    let begin = Instant::now();
    while second.count() == 0 {
        assert!(begin.elapsed() < FOREVER, "not woken");
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(first.count(), 0);
}

#[test]
fn polled_then_waited_for() {
    let mut cx = Context::from_waker(Waker::noop());
    let mut pending = channel_completed_after(SHORT);
    assert!(std::pin::Pin::new(&mut pending).poll(&mut cx).is_pending());
    assert_eq!(pending.wait().unwrap(), 7);
    let mut pending = Pending::all(vec![Pending::ready(Ok(1)), channel_completed_after(SHORT), Pending::ready(Ok(3))]);
    assert!(std::pin::Pin::new(&mut pending).poll(&mut cx).is_pending());
    assert_eq!(pending.wait().unwrap(), [1, 7, 3]);
    let mut pending = channel_completed_after(Duration::ZERO).chain(|_| channel_completed_after(4 * SHORT));
    thread::sleep(2 * SHORT);
    assert!(std::pin::Pin::new(&mut pending).poll(&mut cx).is_pending(), "in the second part");
    assert_eq!(pending.wait().unwrap(), 7);
}

/// A task that lives only in its waker, and holds the completer of what the next task polls.
#[test]
fn a_waker_may_own_the_completer() {
    struct Owner(#[expect(dead_code, reason = "held for its drop")] Mutex<Option<Completer<u64>>>);
    impl Wake for Owner {
        fn wake(self: Arc<Self>) {}
    }
    let (completer, pending) = Pending::channel();
    let mut pending = Box::pin(pending);
    let owner = Waker::from(Arc::new(Owner(Mutex::new(Some(completer)))));
    assert!(pending.as_mut().poll(&mut Context::from_waker(&owner)).is_pending());
    drop(owner);
    // Registering another waker drops the first one, with it the completer, which ends the operation just then.
    let end = in_time(move || {
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(Arc::clone(&flag));
        let first = pending.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(first.is_ready() || flag.count() == 1, "woken for what changed meanwhile");
        match first {
            Poll::Ready(end) => end,
            Poll::Pending => ready(pending.as_mut().poll(&mut Context::from_waker(&waker))),
        }
    });
    assert_eq!(end.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn a_pending_moves_between_tasks() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for _ in 0..200 {
        let (completer, mut pending) = Pending::channel();
        let polled = Pending::all(vec![Pending::ready(Ok(1)), Pending::blocking(|| Ok(2))]);
        let end = runtime.block_on(async move {
            let mut polled = Box::pin(polled);
            assert!(poll_once(polled.as_mut()).await.is_none_or(|end| end.is_ok()));
            let _ = poll_once(std::pin::Pin::new(&mut pending)).await;
            let other = tokio::spawn(pending);
            completer.complete(Ok(7));
            other.await.unwrap()
        });
        assert_eq!(end.unwrap(), 7);
    }
    // All of a list, first polled here and then awaited in another task.
    let (completer, one) = Pending::channel();
    let (mut all, flag) = (Box::pin(Pending::all(vec![one])), Arc::new(Flag::default()));
    assert!(all.as_mut().poll(&mut Context::from_waker(&Waker::from(Arc::clone(&flag)))).is_pending());
    let end = in_time(move || {
        runtime.block_on(async move {
            let other = tokio::spawn(all);
            sleep(SHORT).await.unwrap();
            completer.complete(Ok(7));
            other.await.unwrap()
        })
    });
    assert_eq!(end.unwrap(), [7]);
    assert_eq!(flag.count(), 0, "only the task that polled last is woken");
}

// -- Many ------------------------------------------------------------------------------------------------------------

#[test]
fn thousands_of_operations() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let sum = in_time(move || {
        runtime.block_on(async {
            let mut tasks = Vec::new();
            let (sender, receiver) = mpsc::channel::<(Completer<u64>, u64)>();
            thread::spawn(move || receiver.into_iter().for_each(|(completer, i)| completer.complete(Ok(i))));
            for i in 0..4000u64 {
                let pending = match i % 4 {
                    0 => Pending::ready(Ok(i)),
                    1 => Pending::blocking(move || Ok(i)).deadline(FOREVER),
                    2 => {
                        let (completer, pending) = Pending::channel();
                        sender.send((completer, i)).unwrap();
                        pending.default_deadline(FOREVER)
                    }
                    _ => Pending::blocking(move || Ok(i)).start().chain(|i| Pending::blocking(move || Ok(i))),
                };
                tasks.push(tokio::spawn(pending));
            }
            let mut sum = 0;
            for task in tasks {
                sum += task.await.unwrap().unwrap();
            }
            sum
        })
    });
    assert_eq!(sum, 4000 * 3999 / 2);
}

#[test]
fn all_of_many_costs_few_polls() {
    /// Counts its polls, and ends when it is told to.
    struct Counted(Arc<AtomicUsize>, Pending<usize>);
    impl Source<usize> for Counted {
        fn wait(&mut self, _deadline: Option<Instant>) -> Result<usize> {
            unreachable!("awaited only")
        }
        fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            std::pin::Pin::new(&mut self.1).poll(cx)
        }
    }
    const MANY: usize = 2000;
    let polls = Arc::new(AtomicUsize::new(0));
    let (mut completers, mut operations) = (Vec::new(), Vec::new());
    for _ in 0..MANY {
        let (completer, pending) = Pending::channel();
        completers.push(completer);
        operations.push(Pending::from_source(Counted(Arc::clone(&polls), pending)));
    }
    let mut all = Pending::all(operations);
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(Arc::clone(&flag));
    let mut cx = Context::from_waker(&waker);
    let mut all = std::pin::Pin::new(&mut all);
    assert!(all.as_mut().poll(&mut cx).is_pending());
    // The last first, each followed by a poll: the worst order for whoever polls everything.
    for (i, completer) in completers.into_iter().enumerate().rev() {
        let woken = flag.count();
        completer.complete(Ok(i));
        assert_eq!(flag.count(), woken + 1);
        match all.as_mut().poll(&mut cx) {
            Poll::Pending => assert!(i > 0),
            Poll::Ready(end) => assert_eq!(end.unwrap(), (0..MANY).collect::<Vec<_>>()),
        }
    }
    assert_eq!(polls.load(Ordering::Relaxed), 2 * MANY);
}

#[test]
fn calls_that_wait_for_calls_do_not_fill_the_pool() {
    // Deeper and wider than the pool, whose limit is some dozens.
    fn nest(depth: u32) -> Pending<u32> {
        Pending::blocking(move || match depth {
            0 => Ok(1),
            _ => nest(depth - 1).start().wait(),
        })
        .start()
    }
    let sum = in_time(|| Pending::all((0..100).map(|_| nest(5)).collect()).wait());
    assert_eq!(sum.unwrap().iter().sum::<u32>(), 100);
    // More than once on the same thread.
    let thrice = || (0..3).try_for_each(|_| Pending::blocking(|| Ok(())).start().wait());
    in_time(move || Pending::all((0..100).map(|_| Pending::blocking(thrice).start()).collect()).wait()).unwrap();
    // Through other threads too: the call that completes stands behind those that wait.
    let sum = in_time(|| {
        let (completers, waiting): (Vec<_>, Vec<_>) = (0..100)
            .map(|_| {
                let (completer, pending) = Pending::channel();
                (completer, Pending::blocking(move || pending.wait()).start())
            })
            .unzip();
        drop(Pending::blocking(move || {
            completers.into_iter().for_each(|completer| completer.complete(Ok(1)));
            Ok(())
        }));
        Pending::all(waiting).wait()
    });
    assert_eq!(sum.unwrap().iter().sum::<u32>(), 100);
}

#[test]
fn the_pool_stays_small() {
    let most = || {
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let calls = (0..200)
            .map(|_| {
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                Pending::blocking(move || {
                    most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(5));
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                })
                .start()
            })
            .collect();
        Pending::all(calls).wait().unwrap();
        most.load(Ordering::SeqCst)
    };
    let limit = (4 * thread::available_parallelism().unwrap().get()).max(8);
    let before = most();
    assert!((2..=limit).contains(&before), "{before} at once, {limit} allowed");
    // Calls that wait lend their places: many more threads than allowed, for as long as that takes.
    let (completers, waiting): (Vec<_>, Vec<_>) = (0..100)
        .map(|_| {
            let (completer, pending) = Pending::channel();
            (completer, Pending::blocking(move || pending.wait()).start())
        })
        .unzip();
    completers.into_iter().for_each(|completer| completer.complete(Ok(())));
    Pending::all(waiting).wait().unwrap();
    thread::sleep(SHORT);
    let after = most();
    assert!((2..=limit).contains(&after), "{after} at once afterwards, {limit} allowed");
}

#[test]
fn an_idle_thread_is_woken() {
    let begin = Instant::now();
    for _ in 0..5 {
        Pending::blocking(|| Ok(())).start().wait().unwrap();
        thread::sleep(SHORT);
    }
    // Not by its own timeout, which is five seconds.
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[test]
fn threads_that_ended_are_made_again() {
    let limit = (4 * thread::available_parallelism().unwrap().get()).max(8);
    Pending::all((0..limit).map(|_| sleep(SHORT).start()).collect()).wait().unwrap();
    // Longer than a thread stays idle.
    thread::sleep(Duration::from_millis(5500));
    in_time(|| sleep(SHORT).start().wait()).unwrap();
}

// -- Cost ------------------------------------------------------------------------------------------------------------

#[test]
fn ready_allocates_nothing() {
    assert_eq!(allocations(|| assert_eq!(Pending::ready(Ok(7)).wait().unwrap(), 7)), 0);
    let continued = || {
        let pending = Pending::ready(Ok(7)).deadline(FOREVER).default_deadline(FOREVER).start();
        let pending = pending.and_then(|n| Ok(n + 1)).then(|n| n).chain(|n| Pending::ready(Ok(n)));
        assert!(pending.is_ready());
        let mut pending = pin!(pending);
        assert_eq!(ready(pending.as_mut().poll(&mut Context::from_waker(Waker::noop()))).unwrap(), 8);
    };
    assert_eq!(allocations(continued), 0);
    assert_eq!(allocations(|| drop(Pending::ready(Ok([7; 64])))), 0);
    // What the documentation promises of the others.
    assert_eq!(allocations(|| Pending::blocking(|| Ok(7)).wait().map(drop).unwrap()), 0, "a call without captures");
    let value = 7;
    assert_eq!(allocations(|| Pending::blocking(move || Ok(value)).wait().map(drop).unwrap()), 1);
    let complete = || {
        let (completer, pending) = Pending::channel();
        completer.complete(Ok(7));
        assert_eq!(pending.wait().unwrap(), 7);
    };
    assert_eq!(allocations(complete), 2);
    let all = || drop(Pending::all(Vec::from([Pending::ready(Ok(1)), Pending::ready(Ok(2))])).wait().unwrap());
    assert!(allocations(all) <= 2, "the argument, the results");
}

fn allocations(f: impl FnOnce()) -> usize {
    let before = counting::ALLOCATIONS.get();
    f();
    counting::ALLOCATIONS.get() - before
}

#[global_allocator]
static ALLOCATOR: counting::Counting = counting::Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe by contract")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        pub(super) static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts each thread's allocations.
    pub(super) struct Counting;

    // SAFETY: delegates to the system's allocator.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            ALLOCATIONS.set(ALLOCATIONS.get() + 1);
            // SAFETY: the caller's promise is passed on.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: the caller's promise is passed on.
            unsafe { System.dealloc(pointer, layout) }
        }
    }
}

// -- Tools -----------------------------------------------------------------------------------------------------------

#[derive(Default)]
struct Flag(AtomicUsize);

impl Flag {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn ready<T>(poll: Poll<T>) -> T {
    match poll {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("not ready"),
    }
}

async fn poll_once<F: Future + Unpin>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Runs `f` on a thread of its own, and fails instead of hanging when it does.
fn in_time<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || {
        let _ = sender.send(f());
    });
    match receiver.recv_timeout(FOREVER) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let payload = thread.join().unwrap_err();
            std::panic::resume_unwind(payload)
        }
    }
}
