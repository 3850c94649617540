//! What is not taken for UCX, and what is said about it.

use std::path::Path;
use std::process::Command;

use crate::{Row, child};

pub(crate) const TESTS: &[Row] =
    &[("what_will_not_do_is_refused", what_will_not_do_is_refused), ("every_attempt_is_told", every_attempt_is_told)];

fn what_will_not_do_is_refused() {
    let version = |major, minor| {
        format!("void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) {{ *a = {major}; *b = {minor}; *c = 3; }}")
    };
    for (source, reason) in [
        (version(1, 11), "is UCX 1.11.3, older than 1.12.0"),
        (version(0, 99), "is UCX 0.99.3, older than 1.12.0"),
        (version(2, 0), "is UCX 2.0.3, whose interface is another one"),
        (version(1, 30), "lacks ucs_status_string, ucp_lib_query, "),
        ("int nothing;".to_owned(), "lacks ucp_get_version"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        compile(&source, &directory.path().join("libucp.so.0"));
        let error = child::start("look", &[("PROXYSTORE_UCX_LIB", &directory.path())]).unwrap_err();
        assert!(error.contains(&format!("libucp.so.0 (PROXYSTORE_UCX_LIB): {reason}")), "{reason}: {error}");
        assert!(error.contains("no usable UCX") && error.contains("install UCX 1.12"), "{error}");
    }
}

fn every_attempt_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let named = |name: &Path| child::start("look", &[("PROXYSTORE_UCX_LIB", &name)]).unwrap_err();
    let error = named(&path.join("nothing"));
    assert!(error.contains("/nothing (PROXYSTORE_UCX_LIB): is neither a file nor a directory"), "{error}");
    let error = named(path);
    assert!(error.contains("/libucp.so.0 (PROXYSTORE_UCX_LIB): there is no such file"), "{error}");
    let text = path.join("text.so");
    std::fs::write(&text, "no library").unwrap();
    let error = named(&text);
    assert!(error.contains("/text.so (PROXYSTORE_UCX_LIB): ") && error.contains("too short"), "{error}");

    // Nothing anywhere: what the machine has is hidden behind a file that is no library, its packages behind nothing.
    std::fs::write(path.join("libucp.so.0"), "no library").unwrap();
    std::fs::write(path.join("ucx.pc"), "libdir=here\n").unwrap();
    let home = path.join("home");
    let environment: &[(&str, &dyn AsRef<std::ffi::OsStr>)] =
        &[("PROXYSTORE_UCX_LIB", &""), ("UCX_HOME", &home), ("LD_LIBRARY_PATH", &path), ("PKG_CONFIG_PATH", &path)];
    let said = child::start("look", environment).unwrap_or_else(|error| error);
    if let Some(attempts) = said.strip_prefix("no usable UCX: ") {
        for part in [
            "ucx.pc): its libdir \"here\" is not absolute",
            "home/lib/libucp.so.0 (UCX_HOME): there is no such file",
            "home/lib64/libucp.so.0 (UCX_HOME): there is no such file",
            "libucp.so.0 (the loader's path): ",
        ] {
            assert!(attempts.contains(part), "{part}: {said}");
        }
    } else {
        // The machine's own package was found behind all of that.
        assert!(said.lines().next().unwrap().ends_with("/ucx.pc"), "{said}");
    }
}

fn compile(source: &str, library: &Path) {
    let file = library.with_extension("c");
    std::fs::write(&file, source).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(library).arg(&file);
    assert!(compiler.status().unwrap().success());
}
