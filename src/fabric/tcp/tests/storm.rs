//! Many at once, and nothing left of them.

use super::*;

fn count(folder: &str) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn two_hundred_connect_at_once_and_leave_nothing() {
    let site = Site::new(Options { silence: Duration::from_secs(10), ..options() });
    // What the process keeps: the reactor with its two descriptors, threads of pools.
    assert_eq!(echo(&site.peer(), "first").unwrap(), "first");
    eventually("the first is gone", || established(site.contact) == 0);
    let (descriptors, threads) = (count("/proc/self/fd"), count("/proc/self/task"));
    for _ in 0..3 {
        std::thread::scope(|scope| {
            for i in 0..200 {
                let site = &site;
                scope.spawn(move || {
                    let peer = site.requester.connect(site.contact, Instant::now() + Duration::from_secs(30)).unwrap();
                    assert_eq!(echo(&peer, &i.to_string()).unwrap(), i.to_string());
                });
            }
        });
    }
    eventually("no descriptor is left", || count("/proc/self/fd") <= descriptors);
    eventually("no thread is left", || count("/proc/self/task") <= threads);
    assert_eq!(site.echo.asked.load(SeqCst), 601);
}
