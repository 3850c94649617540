//! What Margo does to the process that loads and starts it: threads, and nothing else that lasts.

use std::ffi::OsString;
use std::{env, ptr};

use margo_sys::Options;

use crate::{Row, child};

pub(crate) const CHILDREN: &[Row] = &[("left_alone", left_alone), ("after_fork", after_fork)];
pub(crate) const TESTS: &[Row] = &[
    ("signals_and_environment_are_left_alone", || drop(child::run("left_alone", &[]))),
    ("a_forked_child_is_refused", || drop(child::run("after_fork", &[]))),
];

pub(crate) fn options(address: &str) -> Options {
    Options { address: address.to_owned(), listens: true, has_thread: true, progress_ms: 20, mercury: String::new() }
}

fn left_alone() {
    let before = (signals(), environment());
    let margo = margo_sys::load().unwrap();
    let mid = margo.start(&options("na+sm")).unwrap();
    // SAFETY: started above, ended once.
    unsafe { margo.margo_finalize(mid) };
    assert_eq!(before, (signals(), environment()));
}

fn after_fork() {
    let margo = margo_sys::load().unwrap();
    let mid = margo.start(&options("na+sm")).unwrap();
    // SAFETY: the child does what this test is about, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let refused = margo.start(&options("na+sm")) == Err(margo_sys::StartError::Forked);
        // SAFETY: ends the process.
        unsafe { libc::_exit(i32::from(!refused)) };
    }
    let mut status = -1;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(status, 0);
    // SAFETY: started above, ended once.
    unsafe { margo.margo_finalize(mid) };
}

fn environment() -> Vec<(OsString, OsString)> {
    env::vars_os().collect()
}

fn signals() -> Vec<(i32, usize, i32)> {
    let look = |signal| {
        // SAFETY: zero is a valid value; asked only.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        let asked = unsafe { libc::sigaction(signal, ptr::null(), &mut action) };
        (asked == 0).then_some((signal, action.sa_sigaction, action.sa_flags))
    };
    (1..=64).filter_map(look).collect()
}
