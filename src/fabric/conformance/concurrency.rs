//! Family `concurrency`: many questions at a time.

use futures::executor::block_on;
use futures::future::join_all;

use super::*;

/// Answers find their questions, in whatever order they come.
pub(super) fn out_of_order(ends: &Ends) {
    let held = Held::default();
    let hold = held.clone();
    let (_listener, peer) = ends.serve(move |call| hold.hold(call));
    let asked: Vec<_> = (0..10u8).map(|i| ask(&peer, Call::small(vec![i + 1]))).collect();
    ends.soon("the questions arrive", || held.len() == 10);
    let answerer = thread::spawn(move || {
        for (head, responder) in held.take().into_iter().rev() {
            responder.reply(vec![head[0] + 100], Vec::new());
        }
    });
    for (i, answer) in asked.into_iter().enumerate() {
        assert_eq!(&answer.wait().unwrap().head[..], [i as u8 + 101]);
    }
    answerer.join().unwrap();
}

/// A thousand at a time from 8 threads, with and without parts.
pub(super) fn many(ends: &Ends) {
    let released = Released::default();
    let owned = released.clone();
    let (_listener, peer) = ends.serve(move |call| {
        let number = read(call.head);
        let parts = (0..number % 4).map(|i| owned.part(pattern(number + i, number % 3 * 700))).collect();
        let head = call.head.to_vec();
        call.responder.reply(head, parts);
    });
    each(8, |thread| {
        let asked: Vec<_> = (0..EACH)
            .map(|i| {
                let number = thread * EACH + i;
                let (call, room) = roomy(written(number));
                (number, ask(&peer, call), room)
            })
            .collect();
        for (number, pending, room) in asked {
            let answer = pending.wait().unwrap();
            assert_eq!(&answer.head[..], written(number));
            assert_eq!(answer.parts.len(), number % 4);
            let Some(room) = lock(&room).take() else { continue };
            for (i, part) in room.bytes(answer.parts.into_vec()).into_iter().enumerate() {
                assert!(part == pattern(number + i, number % 3 * 700), "part {i} of {number}");
            }
        }
    });
    let parts: usize = (0..8 * EACH).map(|number| number % 4).sum();
    ends.soon("parts are released", || released.count() == parts);
}

/// Threads that block and tasks that are polled share a connection.
pub(super) fn threads_and_tasks(ends: &Ends) {
    let held = Held::default();
    let hold = held.clone();
    let (_listener, peer) = ends.serve(move |call| match call.head[0] % 2 {
        0 => echo(call),
        _ => hold.hold(call),
    });
    thread::scope(|scope| {
        let (peer, held) = (&peer, &held);
        let waiters: Vec<_> = (0..4u8)
            .map(|thread| {
                scope.spawn(move || {
                    let asked = (0..20).map(|i| ask(peer, Call::small(vec![i, thread])));
                    match thread % 2 {
                        0 => asked.map(|one| one.wait().unwrap().head.into_vec()).collect::<Vec<_>>(),
                        _ => block_on(join_all(asked)).into_iter().map(|one| one.unwrap().head.into_vec()).collect(),
                    }
                })
            })
            .collect();
        // A single answer at a time, so that a waiter that is not woken for its own is found out. The threads that block
        // ask for the next only after the last, hence no count of questions.
        while waiters.iter().any(|waiter| !waiter.is_finished()) {
            let next = lock(&held.0).pop();
            if let Some((head, responder)) = next {
                responder.reply(head, Vec::new());
            }
            thread::sleep(Duration::from_millis(1));
        }
        for (thread, waiter) in waiters.into_iter().enumerate() {
            let expected: Vec<_> = (0..20u8).map(|i| vec![i, thread as u8]).collect();
            assert_eq!(waiter.join().unwrap(), expected);
        }
    });
}

/// A question that is not answered holds nobody else up.
pub(super) fn nobody_waits(ends: &Ends) {
    let held = Held::default();
    let hold = held.clone();
    let (_listener, peer) = ends.serve(move |call| match call.head {
        b"hold" => hold.hold(call),
        _ => echo(call),
    });
    thread::scope(|scope| {
        let waiter = scope.spawn(|| ask(&peer, Call::small(b"hold".to_vec())).wait());
        ends.soon("the question arrives", || held.len() == 1);
        for _ in 0..10 {
            still_good(&peer);
        }
        assert!(!waiter.is_finished());
        held.take().into_iter().for_each(|(head, responder)| responder.reply(head, Vec::new()));
        assert_eq!(&waiter.join().unwrap().unwrap().head[..], b"hold");
    });
}

/// No question is put twice to the service.
pub(super) fn at_most_once(ends: &Ends) {
    let counts = Arc::new(Mutex::new(vec![0; 8 * EACH]));
    let seen = Arc::clone(&counts);
    let (_listener, peer) = ends.serve(move |call| {
        let number = read(call.head);
        lock(&seen)[number] += 1;
        // The slowest of them are given up.
        match number % 10 {
            9 => drop(call.responder),
            _ => echo(call),
        }
    });
    each(8, |thread| {
        let numbers = thread * EACH..(thread + 1) * EACH;
        let asked: Vec<_> = numbers.map(|number| (number, ask(&peer, Call::small(written(number))))).collect();
        for (number, pending) in asked {
            match number % 10 {
                9 => drop(refused("dropped", pending.wait(), &[ErrorKind::Cancelled])),
                8 => drop(pending),
                _ => drop(pending.wait().unwrap()),
            }
        }
    });
    still_count(ends, &counts);
}

#[track_caller]
fn still_count(ends: &Ends, counts: &Mutex<Vec<usize>>) {
    // Nothing tells when the last question that nobody waits for arrives; a second one would be on its way by then.
    (ends.settle)();
    thread::sleep(Duration::from_millis(50));
    for (number, count) in lock(counts).iter().enumerate() {
        let dropped = number % 10 == 8;
        assert!(*count == 1 || dropped && *count == 0, "question {number} was put {count} times");
    }
}

/// Connections to one listener live apart.
pub(super) fn connections(ends: &Ends) {
    let (listener, first) = ends.serve(echo);
    let others: Vec<_> = (0..5).map(|_| ends.connect(&*listener)).collect();
    still_good(&first);
    first.close();
    for other in &others {
        still_good(other);
    }
    drop(first);
    each(others.len(), |i| (0..10).for_each(|_| still_good(&others[i])));
}

/// Runs `body` on so many threads.
fn each(threads: usize, body: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for i in 0..threads {
            let body = &body;
            scope.spawn(move || body(i));
        }
    });
}

fn written(number: usize) -> Vec<u8> {
    (number as u64).to_le_bytes().to_vec()
}

fn read(head: &[u8]) -> usize {
    head.try_into().map_or(0, u64::from_le_bytes) as usize
}

/// Questions of one thread.
const EACH: usize = if cfg!(miri) { 12 } else { 125 };
