//! Places at which a test can kill the process: every step of client and node service between which the truth changes.
//!
//! With the feature `failpoints`, `PROXYSTORE_FAILPOINT=NAME[:N]` kills the process (SIGKILL) at its Nth pass of that place.
//! Without the feature nothing of this is compiled.

/// Marks a place. The name must be one of [`NAMES`].
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::pass($name);
    };
}
pub(crate) use failpoint;

/// All places, in the order in which an object meets them.
#[cfg(feature = "failpoints")]
pub const NAMES: &[&str] = &[
    "client.leased",
    "client.put.begin",
    "client.put.copied",
    "client.put.published",
    "client.pinned",
    "client.viewing",
    "client.unpinned",
    "client.retired",
    "client.retired.told",
    "client.taken",
    "client.bind.published",
    "client.bind.bound",
    "client.replica.declared",
    "client.replica.displaced",
    "client.replica.claimed",
    "client.replica.published",
    "client.replica.bound",
    "client.replica.abandoned",
    "client.replica.retired",
    "client.arriving.published",
    "client.arriving.hinted",
    "client.arriving.advanced",
    "client.arriving.passing",
    "client.arriving.labelled",
    "client.arriving.abandoned",
    "client.reattach",
    "client.takeover",
    "service.accepted",
    "service.hello",
    "service.welcomed",
    "service.segment.created",
    "service.segment.announced",
    "service.lease.begin",
    "service.lease.half",
    "service.lease.granted",
    "service.lease.told",
    "service.dying.queued",
    "service.reclaim.begin",
    "service.reclaim.scanned",
    "service.reclaim.half",
    "service.reclaim.end",
    "service.replica.ended",
    "service.death.begin",
    "service.death.swept",
    "service.death.end",
    "service.rebuild.begin",
    "service.rebuild.end",
    "export.asked",
    "export.get.pinned",
    "export.evicted",
    "export.retired",
    "export.bind.written",
    "export.wait.arrived",
    "export.passing",
    "export.answering",
    "export.answered",
    "fabric.connected",
    "fabric.asked",
    "fabric.landing",
    "fabric.answered",
    "fabric.accepted",
    "fabric.proved",
    "fabric.question",
    "fabric.answer.half",
    "fabric.answer.sent",
    "ucx.met",
    "ucx.asked",
    "ucx.landing",
    "ucx.answered",
    "ucx.question",
    "ucx.answer.half",
    "ucx.answer.sent",
    "margo.met",
    "margo.asked",
    "margo.landing",
    "margo.answered",
    "margo.question",
    "margo.answer.half",
    "margo.answer.sent",
];

#[cfg(feature = "failpoints")]
pub(crate) fn pass(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static ARMED: OnceLock<Option<(String, AtomicI64)>> = OnceLock::new();
    debug_assert!(NAMES.contains(&name), "{name} is not in the list");
    let armed = ARMED.get_or_init(|| {
        let text = crate::environment::failpoint()?;
        let (name, passes) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), AtomicI64::new(passes.parse().unwrap_or(1))))
    });
    if let Some((armed, left)) = armed {
        if armed == name && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
