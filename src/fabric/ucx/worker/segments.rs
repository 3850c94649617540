//! That UCX takes the sizes of segments: a setting by a wrong name changes nothing, and old versions call that a success.

use std::sync::Arc;

use ucx_sys::{UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER, ucp_worker_attr_t};

use super::{Worker, check};
use crate::fabric::ucx::context::{Context, Setting, is_set_by_user};
use crate::fabric::ucx::{Options, settings};

/// The longest header of a message, which fits into one segment of TCP with what else is in it, and depends on nothing else.
fn longest_header(settings: &[Setting]) -> usize {
    let worker = Worker::new(&Arc::new(Context::new(settings).unwrap())).unwrap();
    let field_mask = u64::from(UCP_WORKER_ATTR_FIELD_MAX_AM_HEADER);
    let mut attributes = ucp_worker_attr_t { field_mask, ..Default::default() };
    // SAFETY: the worker is this thread's own, and `attributes` says which field is wanted.
    let status = unsafe { worker.ucx().ucp_worker_query(worker.raw.worker, &mut attributes) };
    check(worker.ucx(), "ask a worker", status).unwrap();
    attributes.max_am_header
}

#[test]
fn segments_of_tcp_are_as_long_as_the_settings_say() {
    let of_user = ["TCP_TX_SEG_SIZE", "TCP_RX_SEG_SIZE", "TLS"].into_iter().find(|name| is_set_by_user(name));
    assert_eq!(of_user, None, "with UCX_{of_user:?} this shows nothing");
    let options = Options { devices: vec!["lo".to_owned()], transports: Some("tcp".to_owned()), ..Options::default() };
    let all = settings(&options);
    let (segments, others): (Vec<_>, Vec<_>) = all.iter().cloned().partition(|set| set.name.ends_with("_SEG_SIZE"));
    assert_eq!(segments.len(), 2, "{segments:?}");
    // What is received in has to be as long as what is sent, or UCX refuses.
    let (ours, theirs) = (longest_header(&all), longest_header(&others));
    assert!((250 << 10..=256 << 10).contains(&ours), "{ours} bytes");
    assert!(theirs < 64 << 10, "{theirs} bytes without these settings");
}
