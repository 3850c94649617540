//! Family `end`: how answers, waiting and connections end.

use super::*;

/// Holds everything but what [`still_good`] asks.
fn serve_held(ends: &Ends) -> (Box<dyn Listener>, Arc<dyn Peer>, Held) {
    let held = Held::default();
    let hold = held.clone();
    let (listener, peer) = ends.serve(move |call| match call.head {
        ECHO => echo(call),
        _ => hold.hold(call),
    });
    (listener, peer, held)
}

/// An answer is held back for longer than the silence limit, by an owner who lives.
pub(super) fn held_answer(ends: &Ends) {
    let (_listener, peer, held) = serve_held(ends);
    let limit = ends.silence * 3;
    thread::scope(|scope| {
        let asked = Arc::clone(&peer).request(Call::small(b"later".to_vec())).deadline(limit + LIMIT);
        let waiter = scope.spawn(|| asked.wait());
        ends.soon("the question arrives", || held.len() == 1);
        thread::sleep(limit);
        assert!(!waiter.is_finished(), "it ended though the owner lives: {:?}", waiter.join());
        assert!(peer.is_up() && held.wanted().len() == 1);
        held.take().into_iter().for_each(|(head, responder)| responder.reply(head, Vec::new()));
        assert_eq!(&waiter.join().unwrap().unwrap().head[..], b"later");
    });
    still_good(&peer);
}

/// An answer that comes after the deadline has no effect but that it is thrown away.
pub(super) fn gave_up(ends: &Ends) {
    let (_listener, peer, held) = serve_held(ends);
    let (call, sign) = watched("late");
    let begin = Instant::now();
    let result = Arc::clone(&peer).request(call).deadline(SHORT).wait();
    refused("a deadline", result, &[ErrorKind::Timeout]);
    assert!(begin.elapsed() >= SHORT && begin.elapsed() < SHORT + SOON, "it took {:?}", begin.elapsed());
    still_good(&peer);
    ends.soon("the question arrives", || held.len() == 1);
    ends.soon("what chooses landings is dropped", || sign.strong_count() == 0);
    ends.soon("nobody wants the answer", || held.wanted().is_empty());
    let released = Released::default();
    for (head, responder) in held.take() {
        responder.reply(head, vec![released.part(pattern(1, 100_000))]);
    }
    ends.soon("the part is released", || released.count() == 1);
    still_good(&peer);
}

/// The same where the answer was on its way.
pub(super) fn gave_up_on_parts(ends: &Ends) {
    let released = Released::default();
    let owned = released.clone();
    let (_listener, peer) = ends.serve(move |call| match call.head {
        ECHO => echo(call),
        _ => call.responder.reply(b"x".to_vec(), vec![owned.part(pattern(2, LARGE / 8))]),
    });
    let rounds = if cfg!(miri) { 2 } else { 8 };
    let mut lents = Vec::new();
    for round in 0..rounds {
        let (region, lent) = RegionMut::foreign(LARGE / 8).unwrap();
        let mut region = Some(region);
        let call = choose("x", move |_, lens| match (region.take(), lens) {
            (Some(region), [len]) => Ok(vec![Landing::whole(region, *len as usize)?]),
            _ => Err(Error::new(ErrorKind::Invalid, "get", "land was called again")),
        });
        let limit = Duration::from_micros(100 << round);
        if let Err(error) = Arc::clone(&peer).request(call).deadline(limit).wait() {
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        }
        lents.push(lent);
    }
    still_good(&peer);
    ends.soon("landings are released", || lents.iter().all(|lent| lent.strong_count() == 0));
    ends.soon("parts are released", || released.count() == rounds);
}

/// Nobody waits any more: the owner gets to know, and everything is released.
pub(super) fn dropped(ends: &Ends) {
    let (_listener, peer, held) = serve_held(ends);
    let (call, sign) = watched("dropped");
    drop(ask(&peer, call));
    let (second, kept) = (ask(&peer, Call::small(b"dropped too".to_vec())), ask(&peer, Call::small(b"kept".to_vec())));
    ends.soon("the question arrives", || held.heads().contains(&b"kept".to_vec()));
    drop(second);
    ends.soon("what chooses landings is dropped", || sign.strong_count() == 0);
    ends.soon("nobody wants the answers", || held.wanted() == [b"kept".to_vec()]);
    for (head, responder) in held.take() {
        responder.reply(head, Vec::new());
    }
    assert_eq!(&kept.wait().unwrap().head[..], b"kept");
    still_good(&peer);
}

/// An operation outlives the last handle of its connection.
pub(super) fn peer_dropped(ends: &Ends) {
    let (_listener, peer, held) = serve_held(ends);
    let asked = ask(&peer, Call::small(b"mine".to_vec()));
    drop(peer);
    ends.soon("the question arrives", || held.len() == 1);
    held.take().into_iter().for_each(|(head, responder)| responder.reply(head, Vec::new()));
    assert_eq!(&asked.wait().unwrap().head[..], b"mine");
}

/// A closed connection ends all that it was asked, and stays closed.
pub(super) fn closed(ends: &Ends) {
    let (_listener, peer, held) = serve_held(ends);
    let asked: Vec<_> = (0..3u8).map(|i| ask(&peer, Call::small(vec![i + 1]))).collect();
    ends.soon("the questions arrive", || held.len() == 3);
    let other = Arc::clone(&peer);
    let closer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        other.close();
        other.close();
    });
    for one in asked {
        refused("closed", one.wait(), &[ErrorKind::PeerDown]);
    }
    closer.join().unwrap();
    assert!(!peer.is_up());
    refused("closed before", ask(&peer, Call::small(b"x".to_vec())).wait(), &[ErrorKind::PeerDown]);
    assert!(!peer.is_up());
}

/// The owner notices that the requester is gone, and its answers go nowhere.
pub(super) fn closed_then_answered(ends: &Ends) {
    let (listener, peer, held) = serve_held(ends);
    let asked = ask(&peer, Call::small(b"x".to_vec()));
    ends.soon("the question arrives", || held.len() == 1);
    peer.close();
    refused("closed", asked.wait(), &[ErrorKind::PeerDown]);
    ends.soon("nobody wants the answer", || held.wanted().is_empty());
    let released = Released::default();
    for (head, responder) in held.take() {
        responder.reply(head, vec![released.part(vec![1; 1000])]);
    }
    ends.soon("the part is released", || released.count() == 1);
    still_good(&ends.connect(&*listener));
}

/// Requesters get to know that the listener is gone.
pub(super) fn listener_dropped(ends: &Ends) {
    let (listener, peer, held) = serve_held(ends);
    let asked: Vec<_> = (0..3u8).map(|i| ask(&peer, Call::small(vec![i + 1]))).collect();
    ends.soon("the questions arrive", || held.len() == 3);
    let begin = Instant::now();
    let contact = listener.contact();
    drop(listener);
    for one in asked {
        refused("no listener", one.wait(), &[ErrorKind::PeerDown]);
    }
    assert!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    ends.soon("the connection is down", || !peer.is_up());
    refused("no listener", ask(&peer, Call::small(b"x".to_vec())).wait(), &[ErrorKind::PeerDown]);
    let again = ends.requester.connect(contact, Instant::now() + Duration::from_secs(2));
    refused("connect", again, &[ErrorKind::PeerDown, ErrorKind::Timeout]);
    // Late answers go nowhere, and do no harm.
    let released = Released::default();
    held.take().into_iter().for_each(|(head, responder)| responder.reply(head, vec![released.part(vec![1; 10])]));
    ends.soon("the parts are released", || released.count() == 3);
}

/// A service, and its contact, are free when the listener is dropped.
pub(super) fn contact_free_again(ends: &Ends) {
    let witness = Arc::new(());
    let owned = Arc::clone(&witness);
    let (listener, peer) = ends.serve(move |call| {
        let _ = &owned;
        echo(call);
    });
    still_good(&peer);
    let contact = listener.contact();
    drop(listener);
    ends.soon("the service is dropped", || Arc::strong_count(&witness) == 1);
    let again = ends.owner.listen(&[contact], Arc::new(Answering(echo))).expect("the contact is free again");
    assert_eq!(again.contact(), contact);
    still_good(&ends.connect(&*again));
    ends.soon("the old connection is down", || !peer.is_up());
    refused("the old one", ask(&peer, Call::small(b"x".to_vec())).wait(), &[ErrorKind::PeerDown]);
}

/// A contact that is taken is not given again; the next free address is.
pub(super) fn contact_taken(ends: &Ends) {
    let (first, peer) = ends.serve(echo);
    let taken = first.contact();
    let error = ends.owner.listen(&[taken], Arc::new(Answering(echo))).expect_err("it is taken");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&taken.to_string()), "{error} names no address");
    let addresses: Vec<_> = std::iter::once(taken).chain(ends.addresses.clone()).collect();
    let second = ends.owner.listen(&addresses, Arc::new(Answering(echo))).expect("the next one is free");
    assert!(second.contact() != taken && second.contact().port() != 0, "{}", second.contact());
    still_good(&ends.connect(&*second));
    still_good(&peer);
}

/// Where nobody listens, nobody is reached, and that is known in time.
pub(super) fn nobody(ends: &Ends) {
    let contact = ends.listen(echo).contact();
    let begin = Instant::now();
    let result = ends.requester.connect(contact, begin + Duration::from_secs(2));
    refused("nobody", result, &[ErrorKind::PeerDown]);
    assert!(begin.elapsed() < Duration::from_secs(3), "it took {:?}", begin.elapsed());
}

/// A deadline that has passed ends a connect and a wait.
pub(super) fn deadline_passed(ends: &Ends) {
    let (listener, peer, _held) = serve_held(ends);
    let begin = Instant::now();
    let past = begin.checked_sub(Duration::from_millis(10)).unwrap_or(begin);
    if let Err(error) = ends.requester.connect(listener.contact(), past) {
        assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::PeerDown), "{error}");
    }
    let result = Arc::clone(&peer).request(Call::small(b"hold".to_vec())).deadline(Duration::ZERO).wait();
    refused("no time", result, &[ErrorKind::Timeout]);
    assert!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    still_good(&peer);
}

/// An owner that falls silent is down for all who wait, in time.
pub(super) fn silent_owner(ends: &Ends) {
    let (listener, peer, held) = serve_held(ends);
    let asked: Vec<_> = (0..3u8).map(|i| ask(&peer, Call::small(vec![i + 1]))).collect();
    ends.soon("the questions arrive", || held.len() == 3);
    let begin = Instant::now();
    cut(ends);
    thread::scope(|scope| {
        for one in asked {
            scope.spawn(|| refused("silence", one.wait(), &[ErrorKind::PeerDown]));
        }
    });
    assert!(begin.elapsed() < ends.silence * 3 + SOON, "it took {:?}", begin.elapsed());
    assert!(!peer.is_up());
    refused("after silence", ask(&peer, Call::small(b"x".to_vec())).wait(), &[ErrorKind::PeerDown]);
    ends.soon("nobody wants the answers", || held.wanted().is_empty());
    drop(listener);
}

/// A question to an owner that has fallen silent before it ends as well.
pub(super) fn silent_before(ends: &Ends) {
    let (_listener, peer, _held) = serve_held(ends);
    still_good(&peer);
    cut(ends);
    let begin = Instant::now();
    let (call, sign) = watched("x");
    refused("silence", ask(&peer, call).wait(), &[ErrorKind::PeerDown]);
    assert!(begin.elapsed() < ends.silence * 3 + SOON, "it took {:?}", begin.elapsed());
    ends.soon("what chooses landings is dropped", || sign.strong_count() == 0);
    assert!(!peer.is_up());
}

/// Nobody is reached through silence.
pub(super) fn silent_connect(ends: &Ends) {
    let listener = ends.listen(echo);
    cut(ends);
    let begin = Instant::now();
    let result = ends.requester.connect(listener.contact(), begin + Duration::from_secs(2));
    refused("silence", result, &[ErrorKind::PeerDown, ErrorKind::Timeout]);
    assert!(begin.elapsed() < Duration::from_secs(2) + SOON, "it took {:?}", begin.elapsed());
}

/// Who has another secret gets nowhere, and disturbs nobody.
pub(super) fn stranger(ends: &Ends) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (listener, peer) = ends.serve(move |call| {
        count.fetch_add(1, Ordering::SeqCst);
        echo(call);
    });
    let stranger = ends.stranger.as_ref().expect("this case needs a stranger");
    let begin = Instant::now();
    let result = stranger.connect(listener.contact(), begin + LIMIT);
    refused("another secret", result, &[ErrorKind::Unauthorized]);
    assert!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    still_good(&peer);
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the stranger was heard");
    let theirs = stranger.listen(&ends.addresses, Arc::new(Answering(echo)));
    if let Ok(theirs) = theirs {
        let result = ends.requester.connect(theirs.contact(), Instant::now() + LIMIT);
        refused("another secret", result, &[ErrorKind::Unauthorized]);
    }
}

fn cut(ends: &Ends) {
    ends.cut.as_ref().expect("this case needs a cut")();
}

/// A deadline that passes.
const SHORT: Duration = Duration::from_millis(40);
