//! What UCX is told, by a URL and without one.

use std::time::Duration;

use crate::error::ErrorKind;
use crate::fabric::ucx::context::{Context, Setting};
use crate::fabric::ucx::{OneSided, Options, settings};

fn options(url: &str) -> Options {
    Options::of(&url.parse().unwrap()).unwrap()
}

fn value(settings: &[Setting], name: &str) -> Option<String> {
    let mut all = settings.iter().filter(|setting| setting.name == name);
    let found = all.next().map(|setting| setting.value.clone());
    assert!(all.next().is_none(), "{name} is set twice");
    found
}

#[test]
fn what_a_url_says_is_set() {
    let options = options("ucx://x?devices=eth7,mlx5_0:1&tls=rc,tcp&rndv=64KiB&spin=5us&idle=7s&one_sided=auto");
    let settings = settings(&options);
    for (name, wanted) in [("NET_DEVICES", "eth7,mlx5_0:1"), ("TLS", "rc,tcp"), ("RNDV_THRESH", "65536")] {
        assert_eq!(value(&settings, name).as_deref(), Some(wanted), "{name}");
    }
    // These are no settings of UCX.
    assert_eq!((options.spin, options.idle), (Duration::from_micros(5), Duration::from_secs(7)));
    assert_eq!(options.one_sided, OneSided::Auto);
}

#[test]
fn a_url_that_says_nothing_leaves_the_defaults() {
    let options = options("ucx://x");
    let default = Options::default();
    assert_eq!((options.spin, options.idle), (default.spin, default.idle));
    assert_eq!(options.one_sided, OneSided::Off);
    let settings = settings(&options);
    assert_eq!(value(&settings, "TLS").as_deref(), Some("^sm"));
    assert_eq!(value(&settings, "RNDV_THRESH"), None);
    for url in ["ucx://x?spin=soon", "ucx://x?rndv=much", "ucx://x?devices=", "ucx://x?tls=", "ucx://x?one_sided=yes"] {
        assert_eq!(Options::of(&url.parse().unwrap()).unwrap_err().kind(), ErrorKind::Config, "{url}");
    }
}

/// UCX says so by failing: with the transports and devices that it would choose, it works.
#[test]
fn what_a_url_says_reaches_ucx() {
    let opens = |url| Context::new(&settings(&options(url)));
    opens("ucx://x?devices=lo&tls=tcp&rndv=64KiB").unwrap();
    for url in ["ucx://x?devices=lo&tls=none_such", "ucx://x?devices=none_such&tls=tcp"] {
        assert_eq!(opens(url).unwrap_err().kind(), ErrorKind::Unavailable, "{url}");
    }
}

#[test]
fn the_requester_reads_where_there_is_an_adapter() {
    let scheme = |devices: &[&str]| {
        let devices = devices.iter().map(|device| (*device).to_owned()).collect();
        let settings = settings(&Options { devices, ..Options::default() });
        settings.into_iter().find(|setting| setting.name == "RNDV_SCHEME").map(|setting| setting.value)
    };
    assert_eq!(scheme(&["eth0", "mlx5_0:1"]).as_deref(), Some("get_zcopy"));
    assert_eq!(scheme(&["eth0", "ib0"]), None);
}

#[test]
fn no_step_waits_for_a_connection_where_ucx_survives_one_that_fails() {
    let sets = |settings: Vec<Setting>| settings.iter().any(|setting| setting.name == "TCP_CONN_NB");
    let version = ucx_sys::load().unwrap().version();
    assert_eq!(sets(settings(&Options::default())), version.minor >= 14, "{version:?}");
}
