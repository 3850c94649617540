//! Family `part`: bytes of answers, and the memory that they land in.

use super::head::UNFIT;
use super::*;
use crate::fabric::MAX_PARTS;

/// Answers `parts N LEN` with N parts of that length, and others with themselves.
fn serve_parts(ends: &Ends, released: &Released) -> (Box<dyn Listener>, Arc<dyn Peer>) {
    let released = released.clone();
    ends.serve(move |call| {
        let Some((count, len)) = parse(call.head) else { return echo(call) };
        let parts = (0..count).map(|i| released.part(pattern(i, len))).collect();
        let head = call.head.to_vec();
        call.responder.reply(head, parts);
    })
}

fn parse(head: &[u8]) -> Option<(usize, usize)> {
    let text = std::str::from_utf8(head).ok()?.strip_prefix("parts ")?;
    let (count, len) = text.split_once(' ')?;
    Some((count.parse().ok()?, len.parse().ok()?))
}

#[track_caller]
fn check(peer: &Arc<dyn Peer>, count: usize, len: usize) {
    let question = format!("parts {count} {len}");
    let (head, parts) = fetch(peer, question.as_str());
    assert_eq!(head, question.as_bytes());
    assert_eq!(parts.len(), count, "parts of {question}");
    for (i, part) in parts.into_iter().enumerate() {
        assert!(part == pattern(i, len), "part {i} of {question} holds other bytes");
    }
}

/// Any number of parts up to the greatest.
pub(super) fn counts(ends: &Ends) {
    let released = Released::default();
    let (_listener, peer) = serve_parts(ends, &released);
    let counts = [0, 1, 2, 3, 16, 17, 1023, 1024, 1025, MAX_PARTS];
    for count in counts {
        check(&peer, count, 9);
    }
    ends.soon("parts are released", || released.count() == counts.iter().sum::<usize>());
}

/// One part more is no answer, and harms no other.
pub(super) fn too_many(ends: &Ends) {
    let released = Released::default();
    let (_listener, peer) = serve_parts(ends, &released);
    let (call, _room) = roomy(format!("parts {} 1", MAX_PARTS + 1));
    refused("too many parts", ask(&peer, call).wait(), UNFIT);
    still_good(&peer);
    ends.soon("parts are released", || released.count() == MAX_PARTS + 1);
}

/// Lengths around those at which mechanisms change.
pub(super) fn lengths(ends: &Ends) {
    let (_listener, peer) = serve_parts(ends, &Released::default());
    for base in [1usize, 64, 4096, 8192, 65_536, 1 << 20] {
        for len in [base - 1, base, base + 1] {
            check(&peer, 1, len);
        }
        check(&peer, 3, base + 7);
    }
}

/// A part of 64 MiB.
pub(super) fn large(ends: &Ends) {
    let (_listener, peer) = serve_parts(ends, &Released::default());
    check(&peer, 1, LARGE);
    check(&peer, 2, LARGE / 4 + 1);
    still_good(&peer);
}

/// Parts of no bytes keep their places.
pub(super) fn of_no_bytes(ends: &Ends) {
    let (_listener, peer) = ends.serve(|call| {
        let parts = [&b""[..], b"abc", b"", b"", b"d", b""].map(Bytes::copy_from_slice).to_vec();
        call.responder.reply(b"mixed".to_vec(), parts);
    });
    let (head, parts) = fetch(&peer, "x");
    assert_eq!(head, b"mixed");
    assert_eq!(parts, [&b""[..], b"abc", b"", b"", b"d", b""]);
    let (_listener, peer) = serve_parts(ends, &Released::default());
    check(&peer, 1, 0);
    check(&peer, 5, 0);
    still_good(&peer);
}

/// Landings may lie in any order, each in memory of its own.
pub(super) fn scattered(ends: &Ends) {
    let (_listener, peer) = serve_parts(ends, &Released::default());
    let rooms = Arc::new(Mutex::new(Vec::new()));
    let made = Arc::clone(&rooms);
    let places = Arc::new(Mutex::new(Vec::new()));
    let chosen = Arc::clone(&places);
    let call = choose("parts 5 3000", move |_, lens| {
        let mut landings = Vec::new();
        for len in lens.iter().rev() {
            let (room, mut one) = Room::new(&[*len as usize])?;
            lock(&made).push(room);
            landings.append(&mut one);
        }
        landings.reverse();
        lock(&made).reverse();
        *lock(&chosen) = landings.iter().map(Landing::addresses).collect();
        Ok(landings)
    });
    let answer = ask(&peer, call).wait().unwrap();
    let found: Vec<_> = answer.parts.iter().map(Landing::addresses).collect();
    assert_eq!(found, *lock(&places), "the answer is where `land` wanted it");
    for (i, (room, landing)) in lock(&rooms).drain(..).zip(answer.parts).enumerate() {
        assert!(room.bytes(vec![landing])[0] == pattern(i, 3000), "part {i}");
    }
}

/// What `land` says is how the request ends, and the bytes are thrown away.
pub(super) fn land_refuses(ends: &Ends) {
    let released = Released::default();
    let (_listener, peer) = serve_parts(ends, &released);
    for len in [1, 100_000, 3 << 20] {
        let call = choose(format!("parts 2 {len}"), |_, _| Err(Error::new(ErrorKind::NoSpace, "get", "not for me")));
        let error = refused("refused", ask(&peer, call).wait(), &[ErrorKind::NoSpace]);
        assert!(error.context().contains("not for me"), "{error}");
        still_good(&peer);
        check(&peer, 2, 10);
    }
    ends.soon("parts are released", || released.count() == 12);
}

/// Landings that are not what was asked for are an error, and nothing else.
pub(super) fn landings_unfit(ends: &Ends) {
    let released = Released::default();
    let (_listener, peer) = serve_parts(ends, &released);
    let wrong: [&[usize]; 6] = [&[], &[1000], &[1000, 1000, 1000], &[999, 1000], &[1000, 1001], &[2000, 0]];
    for lens in wrong {
        let call = choose("parts 2 1000", move |_, _| Room::new(lens).map(|(_, landings)| landings));
        let result = ask(&peer, call).wait();
        assert!(result.is_err(), "landings of {lens:?} were taken for 2 parts of 1000");
        still_good(&peer);
    }
    check(&peer, 2, 1000);
    ends.soon("parts are released", || released.count() == 2 * wrong.len() + 2);
}

/// `land` is called once, with the head and the lengths that were sent.
pub(super) fn land_once(ends: &Ends) {
    let (_listener, peer) = ends.serve(|call| {
        let parts = [3, 0, 70_000].map(|len| Bytes::from(pattern(len, len))).to_vec();
        call.responder.reply(b"the head".to_vec(), parts);
    });
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let call = choose("x", move |head, lens| {
        count.fetch_add(1, Ordering::SeqCst);
        match (head, lens) {
            (b"the head", [3, 0, 70_000]) => Room::new(&[3, 0, 70_000]).map(|(_, landings)| landings),
            _ => Err(Error::new(ErrorKind::Invalid, "get", format!("land({head:?}, {lens:?})"))),
        }
    });
    let answer = ask(&peer, call).wait().unwrap();
    assert_eq!((answer.head.as_slice(), answer.parts.len()), (&b"the head"[..], 3));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// Parts of an answer that has none to have are refused.
pub(super) fn uncalled_for(ends: &Ends) {
    let released = Released::default();
    let (_listener, peer) = serve_parts(ends, &released);
    let result = ask(&peer, Call::small(b"parts 1 100000".to_vec())).wait();
    refused("parts that nobody asked for", result, &[ErrorKind::Corrupt]);
    still_good(&peer);
    ends.soon("parts are released", || released.count() == 1);
}

/// Parts are held until they are sent, which is not before there is a landing, and no longer.
pub(super) fn held_until_sent(ends: &Ends) {
    let released = Released::default();
    let (_listener, peer) = serve_parts(ends, &released);
    let (early, count) = (Arc::new(AtomicUsize::new(0)), released.clone());
    let seen = Arc::clone(&early);
    // More than any socket takes before somebody reads.
    let call = choose(format!("parts 1 {LARGE}"), move |_, lens| {
        seen.fetch_add(count.count(), Ordering::SeqCst);
        Room::new(&lens.iter().map(|len| *len as usize).collect::<Vec<_>>()).map(|(_, landings)| landings)
    });
    ask(&peer, call).wait().unwrap();
    assert_eq!(early.load(Ordering::SeqCst), 0, "the part was released before it could be sent");
    ends.soon("the part is released", || released.count() == 1);
}
