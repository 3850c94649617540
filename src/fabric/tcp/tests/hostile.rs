//! Strangers, and peers that have the secret and talk nonsense.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::liveness::{next_frame, proved, puppet, reach};
use super::*;
use crate::fabric::tcp::frame::{Decoder, Frame, Kind, encode, padding};

/// Until the other side closes.
fn rest(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => rest,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => rest,
        Err(error) => panic!("it was not closed: {error}"),
    }
}

#[test]
fn another_secret_or_job_stays_out() {
    let site = Site::new(options());
    let strangers =
        [identity(&Arc::new(Secret::random()), 1), Identity { job: "other".to_owned(), ..identity(&site.secret, 1) }];
    for stranger in strangers {
        let requester = Tcp::new(stranger, options());
        let error = requester.connect(site.contact, soon()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
        assert!(error.to_string().contains(&site.contact.to_string()), "{error}");
    }
    assert_eq!(site.echo.asked.load(SeqCst), 0);
    assert_eq!(echo(&site.peer(), "own").unwrap(), "own");
}

#[test]
fn a_recorded_handshake_is_refused() {
    let site = Site::new(options());
    // In the middle of a real one, writing down what both say.
    let middle = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let contact = middle.local_addr().unwrap();
    let owner = site.contact;
    let recorder = std::thread::spawn(move || {
        let (mut left, _) = middle.accept().unwrap();
        let mut right = TcpStream::connect(owner).unwrap();
        let mut said = [vec![0; 56], vec![0; 80], vec![0; 40], vec![0; 8]];
        for (i, message) in said.iter_mut().enumerate() {
            let (from, to) = if i % 2 == 0 { (&mut left, &mut right) } else { (&mut right, &mut left) };
            from.read_exact(message).unwrap();
            to.write_all(message).unwrap();
        }
        said
    });
    assert!(site.requester.connect(contact, soon()).is_ok());
    let said = recorder.join().unwrap();

    let mut again = TcpStream::connect(owner).unwrap();
    again.write_all(&[&said[0][..], &said[2]].concat()).unwrap();
    again.write_all(&encode(Kind::Ask, 1, b"echo replayed", &[], None).unwrap()).unwrap();
    let answer = rest(&mut again);
    assert!(answer.len() <= 80 + 8, "a challenge and a refusal, no answer: {answer:?}");
    assert_eq!(site.echo.asked.load(SeqCst), 0);
}

#[test]
fn garbage_is_closed_at_once_and_silence_at_the_deadline() {
    let site = Site::new(Options { handshake: Duration::from_secs(60), ..options() });
    let mut garbage = TcpStream::connect(site.contact).unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(rest(&mut garbage), b"");

    let site = Site::new(Options { handshake: Duration::from_millis(300), ..options() });
    let mut half_open = TcpStream::connect(site.contact).unwrap();
    let mut slow = TcpStream::connect(site.contact).unwrap();
    let writer = slow.try_clone().unwrap();
    std::thread::spawn(move || {
        // A byte now and then, as a right one would begin.
        for byte in [0xf4, b'p', b'x', b'h', 1, 0, 1, 1].into_iter().chain([0; 48]) {
            std::thread::sleep(Duration::from_millis(200));
            if (&writer).write_all(&[byte]).is_err() {
                break;
            }
        }
    });
    let begun = Instant::now();
    assert_eq!(rest(&mut half_open), b"");
    assert_eq!(rest(&mut slow), b"");
    // The right message would have taken it 11 seconds.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(echo(&site.peer(), "own").unwrap(), "own");
}

#[test]
fn strangers_do_not_keep_others_out() {
    let site = Site::new(Options { handshakes: 4, ..options() });
    let strangers: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(site.contact).unwrap()).collect();
    // Each of them may take half a second of one of four places, in turn.
    let peer = site.requester.connect(site.contact, Instant::now() + Duration::from_secs(9)).unwrap();
    assert_eq!(echo(&peer, "own").unwrap(), "own");
    drop(strangers);
}

#[test]
fn frames_that_make_no_sense_end_their_connection_alone() {
    let site = Site::new(options());
    let bystander = site.peer();
    let ask = |number| encode(Kind::Ask, number, b"hold it", &[], None).unwrap();
    let mut damaged = ask(1);
    damaged[40] ^= 1;
    let mut long = ask(1);
    long[24..28].copy_from_slice(&u32::MAX.to_le_bytes());
    let crc = crc32fast::hash(&long[..32]);
    long[32..36].copy_from_slice(&crc.to_le_bytes());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"no frame at all, but long enough to be taken for one".to_vec()),
        ("a damaged head", damaged),
        ("a huge head", long),
        ("an answer to an owner", encode(Kind::Answer, 1, b"", &[], None).unwrap()),
        ("a beat of a requester", Frame::bare(Kind::Beat, 0).encode().unwrap()),
        ("the same question twice", [ask(1), ask(1)].concat()),
        ("numbers that fall", [ask(2), ask(1)].concat()),
        ("the end of a question that was not asked", Frame::bare(Kind::Abandon, 1).encode().unwrap()),
    ];
    for (what, bytes) in cases {
        let mut stream = proved(&site);
        stream.write_all(&bytes).unwrap();
        assert_eq!(rest(&mut stream), b"", "{what}");
    }
    assert_eq!(echo(&bystander, "on").unwrap(), "on");
}

#[test]
fn a_truncated_question_is_none() {
    let site = Site::new(options());
    let frame = encode(Kind::Ask, 1, b"echo x", &[], None).unwrap();
    for sent in [1, 35, 36, frame.len() - 1] {
        let mut stream = proved(&site);
        stream.write_all(&frame[..sent]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(rest(&mut stream), b"");
    }
    assert_eq!(site.echo.asked.load(SeqCst), 0);
}

#[test]
fn questions_beyond_the_bound_are_refused() {
    let site = Site::new(Options { held: 3, ..options() });
    let peer = site.peer();
    let held: Vec<_> = (0..3).map(|i| ask(&peer, format!("hold {i}"))).collect();
    assert_eq!(kind(ask(&peer, "hold 4").wait()), ErrorKind::Cancelled);
    site.echo.release("1").reply(b"1".to_vec(), Vec::new());
    assert_eq!(held.into_iter().nth(1).unwrap().wait().unwrap().0, b"1");
    eventually("the dropped ones are given up", || echo(&peer, "on").is_ok());
}

#[test]
fn owners_that_talk_nonsense_are_left() {
    let answer = |number| {
        let frame = encode(Kind::Answer, number, b"a", &[3], None).unwrap();
        [&frame[..], b"abc", &[0; 64][..padding(3)]].concat()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("garbage", b"no frame at all, but long enough to be taken for one".to_vec()),
        ("an answer to no question", answer(2)),
        ("a refusal of no question", Frame::bare(Kind::Refusal, 2).encode().unwrap()),
        ("a question", encode(Kind::Ask, 1, b"", &[], None).unwrap()),
        ("the same answer twice", [answer(1), answer(1)].concat()),
    ];
    for (what, bytes) in cases {
        let site = Site::new(options());
        let contact = puppet(&site, move |mut stream| {
            next_frame(&mut stream, &mut Decoder::default());
            stream.write_all(&bytes).unwrap();
            let _ = stream.read(&mut [0; 100]);
        });
        let peer = reach(&site, contact);
        match ask(&peer, "send 3").wait() {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}"),
            Ok(_) => assert_eq!(what, "the same answer twice"),
        }
        eventually(what, || !peer.is_up());
        assert_eq!(kind(echo(&peer, "x")), ErrorKind::PeerDown, "{what}");
    }
}

#[test]
fn damaged_bytes_are_noticed_where_they_are_checked() {
    let site = Site::new(options());
    let contact = puppet(&site, |mut stream| {
        let mut decoder = Decoder::default();
        for (bytes, number) in [(b"abc", 1), (b"abd", 2), (b"abc", 3)] {
            assert_eq!(next_frame(&mut stream, &mut decoder).number, number);
            let frame = encode(Kind::Answer, number, b"", &[3], Some(&[crc32fast::hash(b"abc")])).unwrap();
            stream.write_all(&[&frame[..], bytes, &[0; 64][..padding(3)]].concat()).unwrap();
        }
        let _ = stream.read(&mut [0; 100]);
    });
    let peer = reach(&site, contact);
    assert_eq!(ask(&peer, "x").wait().unwrap().1, b"abc");
    assert_eq!(kind(ask(&peer, "x").wait()), ErrorKind::Corrupt);
    assert_eq!(ask(&peer, "x").wait().unwrap().1, b"abc");
}
