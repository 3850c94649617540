//! What is not taken for Margo, and what is said about it. The libraries here are there to be refused: none works.

use std::path::{Path, PathBuf};
use std::process::Command;

use margo_sys::StartError;

use crate::process::options;
use crate::{Row, child};

pub(crate) const CHILDREN: &[Row] = &[("strange", strange)];
pub(crate) const TESTS: &[Row] = &[
    ("what_will_not_do_is_refused", what_will_not_do_is_refused),
    ("every_attempt_is_told", every_attempt_is_told),
    ("another_layout_is_noticed", || drop(another_layout_is_noticed())),
];

fn version(major: u32, minor: u32) -> String {
    format!(
        "int HG_Version_get(unsigned *a, unsigned *b, unsigned *c) {{ *a = {major}; *b = {minor}; *c = 3; return 0; }}"
    )
}

fn what_will_not_do_is_refused() {
    for (source, reason) in [
        (version(2, 0), "has Mercury 2.0.3, older than 2.1.0"),
        (version(1, 9), "has Mercury 1.9.3, older than 2.1.0"),
        (version(3, 0), "has Mercury 3.0.3, whose interface is another one"),
        (version(2, 4), "lacks margo_init_ext, margo_finalize, "),
        ("int HG_Version_get(void) { return 7; }".to_owned(), "has a Mercury that does not tell its version (7)"),
        ("int nothing;".to_owned(), "lacks HG_Version_get"),
    ] {
        let library = Library::new(&source);
        let error = child::start("look", &[("PROXYSTORE_MARGO_LIB", &library.directory())]).unwrap_err();
        assert!(error.contains(&format!("libmargo.so (PROXYSTORE_MARGO_LIB): {reason}")), "{reason}: {error}");
        assert!(error.contains("no usable Margo") && error.contains("install margo 0.19.2"), "{error}");
    }
    // Margo before 0.19.2 lacks the calls with callbacks, and nothing else.
    let all =
        missing().into_iter().filter(|name| !["margo_crespond", "margo_bulk_ctransfer_timed"].contains(&&name[..]));
    let source: String = all.map(|name| format!("int {name}(void) {{ return 0; }}\n")).collect();
    let library = Library::new(&(version(2, 4) + &source));
    let error = child::start("look", &[("PROXYSTORE_MARGO_LIB", &library.directory())]).unwrap_err();
    assert!(
        error.contains("lacks margo_crespond, margo_bulk_ctransfer_timed: margo 0.19.2 or newer has all"),
        "{error}"
    );
}

fn every_attempt_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let named = |name: &Path| child::start("look", &[("PROXYSTORE_MARGO_LIB", &name)]).unwrap_err();
    let error = named(&path.join("nothing"));
    assert!(error.contains("/nothing (PROXYSTORE_MARGO_LIB): is neither a file nor a directory"), "{error}");
    let error = named(path);
    assert!(error.contains("/libmargo.so (PROXYSTORE_MARGO_LIB): there is no such file"), "{error}");

    // Nothing anywhere: what the machine has is hidden behind files that are no libraries.
    for name in ["libmargo.so", "libmargo.so.0"] {
        std::fs::write(path.join(name), "no library").unwrap();
    }
    std::fs::write(path.join("margo.pc"), "libdir=here\n").unwrap();
    std::fs::create_dir(path.join("lib")).unwrap();
    std::fs::write(path.join("lib/libmargo.so"), "no library").unwrap();
    let said = child::start(
        "look",
        &[
            ("PROXYSTORE_MARGO_LIB", &""),
            ("LD_LIBRARY_PATH", &path),
            ("PKG_CONFIG_PATH", &path),
            ("CMAKE_PREFIX_PATH", &path),
        ],
    )
    .unwrap_or_else(|error| error);
    if let Some(attempts) = said.strip_prefix("no usable Margo: ") {
        for part in [
            "margo.pc): its libdir \"here\" is not absolute",
            "libmargo.so (the loader's path): ",
            "libmargo.so.0 (the loader's path): ",
            "lib/libmargo.so (CMAKE_PREFIX_PATH): ",
        ] {
            assert!(attempts.contains(part), "{part}: {said}");
        }
    } else {
        // The machine's own package was found behind all of that.
        assert!(said.lines().next().unwrap().ends_with("/margo.pc"), "{said}");
    }
}

/// A library that does not read its configuration as it is written is not used.
fn another_layout_is_noticed() -> String {
    let special = ["margo_init_ext", "margo_get_progress_timeout_ub_msec"];
    let rest: String = missing()
        .into_iter()
        .filter(|name| !special.contains(&&name[..]))
        .map(|name| format!("int {name}(void) {{ return 0; }}\n"))
        .collect();
    let source = version(2, 4)
        + &rest
        + "void *margo_init_ext(void) { return &HG_Version_get; }\n\
           int margo_get_progress_timeout_ub_msec(void *mid, unsigned *value) { *value = 100; return 0; }\n";
    let library = Library::new(&source);
    child::run("strange", &[("PROXYSTORE_MARGO_LIB", &library.directory())])
}

fn strange() {
    let margo = margo_sys::load().unwrap();
    let error = margo.start(&options("na+sm")).unwrap_err();
    assert_eq!(error, StartError::Layout { expected: 20, seen: 100 });
    assert!(error.to_string().contains("another layout"), "{error}");
}

/// All names that are looked for, as the error lists them.
fn missing() -> Vec<String> {
    let library = Library::new(&version(2, 4));
    let error = child::start("look", &[("PROXYSTORE_MARGO_LIB", &library.directory())]).unwrap_err();
    let names = error.split_once("lacks ").unwrap().1.split_once(": margo").unwrap().0;
    let names: Vec<String> = names.split(", ").map(str::to_owned).collect();
    assert!(names.len() > 30, "{names:?}");
    names
}

/// A compiled library `libmargo.so`, in a directory of its own.
struct Library(tempfile::TempDir);

impl Library {
    fn new(source: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (file, library) = (directory.path().join("margo.c"), directory.path().join("libmargo.so"));
        std::fs::write(&file, source).unwrap();
        let status = Command::new("cc").args(["-w", "-shared", "-fPIC", "-o"]).arg(library).arg(file).status().unwrap();
        assert!(status.success());
        Self(directory)
    }

    fn directory(&self) -> PathBuf {
        self.0.path().to_owned()
    }
}
