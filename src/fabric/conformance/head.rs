//! Family `head`: small questions and their answers.

use super::*;

/// What is asked arrives, and so does what is answered.
pub(super) fn round_trip(ends: &Ends) {
    let (_listener, peer) = ends.serve(|call| {
        let head: Vec<u8> = call.head.iter().rev().copied().collect();
        call.responder.reply(head, Vec::new());
    });
    for len in [1, 2, 63, 64, 65, 1000, 4095, 4096, 4097] {
        let head = pattern(len, len);
        let answer = ask(&peer, Call::small(head.clone())).wait().unwrap();
        assert!(answer.head.iter().rev().eq(&head), "{len} bytes came back changed");
        assert!(answer.parts.is_empty());
    }
}

/// A head of no bytes is carried or refused, and nothing else comes of it.
pub(super) fn empty(ends: &Ends) {
    let (_listener, peer) = ends.serve(echo);
    if let Ok(answer) = ask(&peer, Call::small(Vec::new())).wait() {
        assert_eq!(&answer.head[..], b"");
    }
    still_good(&peer);
}

/// Heads of the greatest length pass, both ways.
pub(super) fn longest(ends: &Ends) {
    let (_listener, peer) = ends.serve(echo);
    let head = pattern(3, MAX_HEAD);
    assert!(ask(&peer, Call::small(head.clone())).wait().unwrap().head[..] == head);
    still_good(&peer);
}

/// A byte more is refused before anybody hears of it.
pub(super) fn too_long(ends: &Ends) {
    let longest = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&longest);
    let (_listener, peer) = ends.serve(move |call| {
        seen.fetch_max(call.head.len(), Ordering::SeqCst);
        echo(call);
    });
    let result = ask(&peer, Call::small(vec![1; MAX_HEAD + 1])).wait();
    refused("a question too long", result, &[ErrorKind::TooLarge, ErrorKind::Invalid]);
    still_good(&peer);
    assert!(longest.load(Ordering::SeqCst) <= MAX_HEAD, "the service was asked");
}

/// A head too long is no answer, and harms no other.
pub(super) fn answer_too_long(ends: &Ends) {
    let (_listener, peer) = ends.serve(|call| match call.head {
        b"long" => call.responder.reply(vec![1; MAX_HEAD + 1], Vec::new()),
        _ => echo(call),
    });
    let result = ask(&peer, Call::small(b"long".to_vec())).wait();
    refused("an answer too long", result, UNFIT);
    still_good(&peer);
}

/// Both sides know whose memory the other has, and where the owner is.
pub(super) fn identity(ends: &Ends) {
    let (listener, peer) = ends.serve(|call| {
        let from = call.from.to_le_bytes().to_vec();
        call.responder.reply(from, Vec::new());
    });
    assert_eq!(peer.instance(), ends.instance, "instance of the owner");
    let contact = listener.contact();
    assert!(contact.port() != 0 && ends.addresses.iter().any(|address| address.ip() == contact.ip()), "{contact}");
    let answer = ask(&peer, Call::small(b"who".to_vec())).wait().unwrap();
    assert_eq!(&answer.head[..], ends.from.to_le_bytes(), "instance of the requester");
    assert!(peer.lanes() >= 1 && peer.is_up());
}

/// A responder that is dropped ends the question.
pub(super) fn nobody_answers(ends: &Ends) {
    let (_listener, peer) = ends.serve(|call| match call.head {
        ECHO => echo(call),
        _ => drop(call.responder),
    });
    let begin = Instant::now();
    refused("dropped", ask(&peer, Call::small(b"x".to_vec())).wait(), &[ErrorKind::Cancelled]);
    assert!(begin.elapsed() < SOON, "it took {:?}", begin.elapsed());
    still_good(&peer);
}

/// Any number is a lane.
pub(super) fn lanes(ends: &Ends) {
    let (_listener, peer) = ends.serve(echo);
    for lane in [0, 1, 2, 3, 100, usize::MAX] {
        let call = Call { lane, ..Call::small(lane.to_string().into_bytes()) };
        assert_eq!(&ask(&peer, call).wait().unwrap().head[..], lane.to_string().as_bytes());
    }
}

/// How an answer that must not be ends.
pub(super) const UNFIT: &[ErrorKind] =
    &[ErrorKind::Cancelled, ErrorKind::Corrupt, ErrorKind::TooLarge, ErrorKind::Invalid];
