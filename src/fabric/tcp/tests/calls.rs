//! Questions and answers, by threads and by tasks.

use super::*;

#[test]
fn heads_and_parts_arrive() {
    let site = Site::new(options());
    let peer = site.peer();
    assert_eq!(peer.instance(), 2);
    assert!(peer.is_up());
    assert_eq!(echo(&peer, "hello").unwrap(), "hello");
    for lens in [vec![0], vec![1], vec![3, 0, 5], vec![4096], vec![10_000, 1, 4096], vec![3 << 20, 7], vec![77; 1000]] {
        let text: Vec<String> = lens.iter().map(|len| len.to_string()).collect();
        let (head, bytes) = ask(&peer, format!("send {}", text.join(" "))).wait().unwrap();
        assert_eq!(head, format!("send {}", text.join(" ")).into_bytes());
        let longest = pattern(*lens.iter().max().unwrap());
        let expected: Vec<u8> = lens.iter().flat_map(|len| longest[..*len].to_vec()).collect();
        assert!(bytes == expected, "{lens:?}");
    }
}

#[test]
fn checksums_are_sent_and_compared() {
    let site = Site::new(Options { checksums: true, ..options() });
    let (_, bytes) = ask(&site.peer(), "send 100000 0 3").wait().unwrap();
    assert!(bytes == [&pattern(100_000)[..], &pattern(100_000)[..3]].concat());
}

#[test]
fn the_longest_head_and_the_most_parts() {
    let site = Site::new(options());
    let peer = site.peer();
    let long = "x".repeat(crate::fabric::MAX_HEAD - 5);
    assert_eq!(echo(&peer, &long).unwrap(), long);
    assert_eq!(kind(ask(&peer, vec![b'x'; crate::fabric::MAX_HEAD + 1]).wait()), ErrorKind::TooLarge);
    let most = vec!["3"; crate::fabric::MAX_PARTS].join(" ");
    assert_eq!(ask(&peer, format!("send {most}")).wait().unwrap().1.len(), 3 * crate::fabric::MAX_PARTS);
    // One part too many is the service's mistake: its question is refused, the connection goes on.
    assert_eq!(kind(ask(&peer, format!("send {most} 3")).wait()), ErrorKind::Cancelled);
    assert_eq!(echo(&peer, "on").unwrap(), "on");
}

#[test]
fn answers_come_in_any_order() {
    let site = Site::new(options());
    let peer = site.peer();
    let (first, second) = (ask(&peer, "hold first"), ask(&peer, "hold second"));
    site.echo.release("second").reply(b"2".to_vec(), Vec::new());
    assert_eq!(second.wait().unwrap().0, b"2");
    site.echo.release("first").reply(b"1".to_vec(), vec![Bytes::from_static(b"one")]);
    assert_eq!(first.wait().unwrap(), (b"1".to_vec(), b"one".to_vec()));
}

#[test]
fn refused_and_panicked_questions_end() {
    // A panic is printed with its stack, which takes a busy machine seconds.
    let site = Site::new(Options { silence: Duration::from_secs(60), ..options() });
    let peer = site.peer();
    assert_eq!(kind(ask(&peer, "drop").wait()), ErrorKind::Cancelled);
    assert_eq!(kind(ask(&peer, "panic").wait()), ErrorKind::Cancelled);
    assert_eq!(echo(&peer, "still").unwrap(), "still");
}

#[test]
fn bytes_that_nobody_wants_are_thrown_away() {
    let site = Site::new(options());
    let peer = site.peer();
    let call = Call::small(b"send 1000000".to_vec());
    assert_eq!(kind(Arc::clone(&peer).request(call).wait()), ErrorKind::Corrupt);
    assert_eq!(echo(&peer, "next").unwrap(), "next");
}

#[test]
fn landings_of_another_size_are_refused() {
    struct Wrong;
    impl Land for Wrong {
        fn land(&mut self, _: &[u8], _: &[u64]) -> Result<Vec<Landing>> {
            Ok(Parts::of(RegionMut::heap(8)?, &[8])?.1)
        }
    }
    let site = Site::new(options());
    let peer = site.peer();
    let call = Call { head: b"send 9".to_vec().into(), land: Box::new(Wrong).into(), lane: 0 };
    assert_eq!(kind(Arc::clone(&peer).request(call).wait()), ErrorKind::Corrupt);
    assert_eq!(echo(&peer, "next").unwrap(), "next");
}

#[test]
fn a_deadline_abandons_the_call_and_not_the_stream() {
    let site = Site::new(options());
    let peer = site.peer();
    let begun = Instant::now();
    assert_eq!(kind(ask(&peer, "hold it").deadline(Duration::from_millis(60)).wait()), ErrorKind::Timeout);
    assert!(begun.elapsed() < site.options.silence, "{:?}", begun.elapsed());
    let held = site.echo.release("it");
    eventually("the owner knows that nobody waits", || !held.is_wanted());
    held.reply(Vec::new(), vec![pattern(100_000)]);
    assert_eq!(echo(&peer, "next").unwrap(), "next");
}

#[test]
fn an_answer_abandoned_half_way_lands_and_the_stream_goes_on() {
    let site = Site::new(options());
    let peer = site.peer();
    *lock(&site.echo.content) = pattern(64 << 20);
    for _ in 0..20 {
        // Too long to arrive in time, and so abandoned somewhere in the middle.
        let late = ask(&peer, format!("send {}", 64 << 20)).deadline(Duration::from_millis(2)).wait();
        assert!(late.is_err());
        assert_eq!(echo(&peer, "next").unwrap(), "next");
    }
}

#[test]
fn dropped_calls_are_told_to_the_owner() {
    let site = Site::new(options());
    let peer = site.peer();
    drop(ask(&peer, "hold it"));
    let held = site.echo.release("it");
    eventually("the owner knows that nobody waits", || !held.is_wanted());
    drop(held);
    assert_eq!(echo(&peer, "next").unwrap(), "next");
}

#[test]
fn many_threads_share_a_connection() {
    let site = Site::new(Options { silence: Duration::from_secs(10), ..options() });
    let peer = site.peer();
    std::thread::scope(|scope| {
        for thread in 0..16 {
            let peer = &peer;
            scope.spawn(move || {
                for i in 0..200 {
                    match (thread + i) % 5 {
                        0 => assert!(ask(peer, "send 20000 3").wait().unwrap().1.len() == 20_003),
                        1 => drop(ask(peer, "send 30000").deadline(Duration::from_micros(50)).wait()),
                        _ => assert_eq!(echo(peer, &format!("{thread} {i}")).unwrap(), format!("{thread} {i}")),
                    }
                }
            });
        }
    });
}

#[test]
fn a_waiter_takes_over_from_one_that_leaves() {
    // The reactor looks at all streams each sixteenth of that: each 20 seconds.
    let site = Site::new(Options { silence: Duration::from_secs(320), ..options() });
    let peer = site.peer();
    std::thread::scope(|scope| {
        // The first one leads, and leaves at its deadline while the second one waits for it to read.
        let leader = scope.spawn(|| ask(&peer, "hold b").deadline(Duration::from_millis(100)).wait());
        let b = site.echo.release("b");
        let follower = scope.spawn(|| ask(&peer, "hold c").deadline(Duration::from_secs(30)).wait());
        let c = site.echo.release("c");
        assert_eq!(kind(leader.join().unwrap()), ErrorKind::Timeout);
        let begun = Instant::now();
        c.reply(b"c".to_vec(), Vec::new());
        assert_eq!(follower.join().unwrap().unwrap().0, b"c");
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody but it could read: {:?}", begun.elapsed());
        drop(b);
    });
}

#[test]
fn tasks_of_a_single_threaded_runtime() {
    let site = Site::new(options());
    let peer = site.peer();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for i in 0..50 {
            let peer = Arc::clone(&peer);
            tasks.push(tokio::spawn(async move {
                assert_eq!(ask(&peer, format!("echo {i}")).await.unwrap().0, i.to_string().into_bytes());
                assert_eq!(ask(&peer, "send 100000").await.unwrap().1.len(), 100_000);
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let late = ask(&peer, "hold it").deadline(Duration::from_millis(50)).await;
        assert_eq!(kind(late), ErrorKind::Timeout);
    });
}

#[test]
fn tasks_and_threads_together() {
    let site = Site::new(Options { silence: Duration::from_secs(10), ..options() });
    let peer = site.peer();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let peer = &peer;
            scope.spawn(move || {
                for i in 0..100 {
                    let asked = ask(peer, format!("echo {thread} {i}"));
                    let (head, _) = match thread % 2 {
                        0 => futures::executor::block_on(asked).unwrap(),
                        _ => asked.wait().unwrap(),
                    };
                    assert_eq!(head, format!("{thread} {i}").into_bytes());
                }
            });
        }
    });
}

#[test]
fn a_call_that_nobody_waits_for_arrives_anyway() {
    let site = Site::new(Options { silence: Duration::from_secs(1), ..options() });
    let peer = site.peer();
    *lock(&site.echo.content) = pattern(32 << 20);
    let begun = ask(&peer, format!("send {}", 32 << 20));
    // Longer than the owner waits for one who does not read.
    std::thread::sleep(site.options.silence * 3);
    assert_eq!(begun.wait().unwrap().1.len(), 32 << 20);
}

#[test]
fn lanes_carry_calls_side_by_side() {
    let site = Site::new(Options { lanes: 3, ..options() });
    let peer = site.peer();
    assert_eq!(peer.lanes(), 3);
    eventually("the lanes are connected", || {
        for i in 0..6 {
            assert_eq!(ask_on(&peer, "send 50000", i).wait().unwrap().1.len(), 50_000);
        }
        established(site.contact) == 3
    });
    // The end of one is the end of all.
    peer.close();
    assert!(!peer.is_up());
    for lane in 0..3 {
        assert_eq!(kind(ask_on(&peer, "echo x", lane).wait()), ErrorKind::PeerDown);
    }
    eventually("no lane is left", || established(site.contact) == 0);
}
