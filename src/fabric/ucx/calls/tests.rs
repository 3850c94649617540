//! Calls without UCX: what is owed, what fits, what is bounded.

use super::*;
use crate::fabric::Land;

/// Is never asked.
struct Nowhere;

impl Land for Nowhere {
    fn land(&mut self, _: &[u8], _: &[u64]) -> Result<Vec<Landing>> {
        unreachable!("nothing comes")
    }
}

const LINK: u64 = 7;

/// Calls 1 to 3 of a connection.
fn calls() -> Calls {
    let mut calls = Calls::default();
    for number in 1..4 {
        calls.insert(LINK, number, Box::new(Nowhere).into());
    }
    calls
}

fn part() -> Data {
    Data::Copied(vec![1; 10])
}

/// What is to be done after it.
fn done<R>(step: impl FnOnce(&mut After) -> R) -> R {
    let mut after = After::default();
    let result = step(&mut after);
    after.run();
    result
}

#[track_caller]
fn come(calls: &mut Calls, link: u64, number: u64) {
    assert!(calls.part(link, number, 0, 1, part(), &mut After::default()).is_err());
}

#[test]
fn parts_of_calls_that_ended_are_owed_until_they_came() {
    let mut calls = calls();
    done(|after| calls.end(1, Ok(Answer { head: Head::new(), parts: Landings::new() }), after));
    assert!(!calls.are_left());
    done(|after| calls.end_before(2, Err(Error::new(ErrorKind::NoSpace, "get", "x")), Some(2), after));
    done(|after| calls.abandon(3, after));
    come(&mut calls, LINK, 2);
    // Of another connection's peer.
    come(&mut calls, LINK + 1, 2);
    calls.unwanted(LINK + 1, 3, 0);
    assert!(calls.left.contains_key(&2) && calls.left.contains_key(&3) && calls.are_open(LINK));
    come(&mut calls, LINK, 2);
    assert!(!calls.left.contains_key(&2));
    come(&mut calls, LINK, 3);
    calls.unwanted(LINK, 3, 2);
    assert!(calls.are_left() && calls.are_open(LINK));
    come(&mut calls, LINK, 3);
    assert!(!calls.are_left() && !calls.are_open(LINK));
}

#[test]
fn parts_that_come_together_go_to_their_places_once() {
    let mut calls = calls();
    let landing = |len| Landing::whole(crate::region::RegionMut::heap(len).unwrap(), len).unwrap();
    let mut landings: Landings = [2, 3, 0, 4].map(landing).into_iter().collect();
    assert!(calls.begin(LINK, 1).is_some() && !calls.are_early(1));
    assert_eq!(landings[0].write(b"ab"), 2);
    assert!(calls.expect(1, Head::from_slice(b"head"), landings, 1).is_ok_and(|early| early.is_empty()));
    let mut fill = |link, index, here, bytes: &[u8]| done(|after| calls.fill(link, 1, index, here, bytes, after));
    // Another's, what is here, beyond the last one, too short, too long.
    assert!(!fill(LINK + 1, 1, 1, b"cde") && !fill(LINK, 0, 1, b"ab") && !fill(LINK, 0, 2, b"abcde"));
    assert!(!fill(LINK, 3, 2, b"fghi") && !fill(LINK, 1, 2, b"cd") && !fill(LINK, 1, 1, b"cdef"));
    assert!(fill(LINK, 2, 2, b"fghi") && !fill(LINK, 2, 2, b"fghi") && !fill(LINK, 1, 2, b"cde"));
    assert!(fill(LINK, 1, 1, b"cde") && !fill(LINK, 1, 1, b"cde"));
    let answer = calls.take(1).unwrap().unwrap();
    let bytes: Vec<Vec<u8>> =
        answer.parts.into_iter().map(|part| part.into_room().unwrap().as_slice().to_vec()).collect();
    assert_eq!((&answer.head[..], bytes.concat()), (&b"head"[..], b"abcdefghi".to_vec()));
    assert_eq!(calls.open.len(), 2);
}

#[test]
fn parts_that_come_together_are_owed_one_by_one() {
    let mut calls = calls();
    let part = |calls: &mut Calls, here| {
        assert!(calls.part(LINK, 3, 0, here, part(), &mut After::default()).is_err());
    };
    done(|after| calls.abandon(3, after));
    part(&mut calls, 2);
    calls.unwanted(LINK, 3, 5);
    part(&mut calls, 2);
    assert!(calls.are_left());
    part(&mut calls, 1);
    assert!(!calls.are_left());
}

#[test]
fn an_end_after_a_call_was_given_up_forgives_no_parts() {
    let mut calls = calls();
    let error = || Err(Error::new(ErrorKind::NoSpace, "get", "x"));
    done(|after| calls.abandon(3, after));
    done(|after| calls.end_before(3, error(), None, after));
    done(|after| calls.end_before(3, error(), Some(2), after));
    come(&mut calls, LINK, 3);
    // What is known counts.
    done(|after| calls.end(3, error(), after));
    assert!(calls.are_left());
    come(&mut calls, LINK, 3);
    assert!(!calls.are_left());
    done(|after| calls.abandon(2, after));
    done(|after| calls.end(2, error(), after));
    assert!(!calls.are_left());
}

#[test]
fn a_part_that_does_not_fit_is_owed_no_more() {
    let mut calls = calls();
    done(|after| calls.misfit(LINK + 1, 1, 1, after));
    assert!(calls.is_wanted(LINK, 1) && !calls.is_wanted(LINK + 1, 1));
    done(|after| calls.misfit(LINK, 1, 2, after));
    done(|after| calls.misfit(LINK, 1, 2, after));
    assert!(!calls.is_wanted(LINK, 1) && calls.are_left());
    calls.unwanted(LINK, 1, 3);
    assert!(calls.are_left());
    come(&mut calls, LINK, 1);
    assert!(!calls.are_left());
}

#[test]
fn a_connection_that_fails_owes_nothing() {
    let mut calls = calls();
    done(|after| calls.abandon(3, after));
    done(|after| calls.fail(LINK, &Error::new(ErrorKind::PeerDown, "get", "x"), after));
    assert!(!calls.are_left() && !calls.are_open(LINK));
    assert_eq!(calls.take(1).unwrap().unwrap_err().kind(), ErrorKind::PeerDown);
}

#[test]
fn an_answer_is_fetched_once_before_it_has_landings() {
    let mut calls = calls();
    assert!(!calls.claim(LINK + 1, 1) && !calls.claim(LINK, 9));
    assert!(calls.claim(LINK, 1) && !calls.claim(LINK, 1));
}

#[test]
fn what_overtakes_an_answer_is_bounded() {
    let mut calls = calls();
    let most =
        |calls: &mut Calls| calls.part(LINK, 1, 0, 1, Data::Copied(vec![0; MOST_EARLY / 2]), &mut After::default());
    assert!(matches!(most(&mut calls), Ok(None)) && matches!(most(&mut calls), Ok(None)));
    come(&mut calls, LINK, 1);
}
