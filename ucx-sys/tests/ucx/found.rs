//! Which UCX is taken.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use ucx_sys::{Origin, UCS_ERR_NO_MEMORY, UCS_ERR_UNREACHABLE, UCS_OK, Version};

use crate::{Row, child};

pub(crate) const CHILDREN: &[Row] = &[("look", look), ("bound", bound), ("resident", resident)];
pub(crate) const TESTS: &[Row] = &[("bound", || drop(child::run("bound", &[])))];
pub(crate) const LOADED: &[Row] = &[
    ("a_directory_is_taken_whole", a_directory_is_taken_whole),
    ("parts_of_two_are_refused", parts_of_two_are_refused),
    ("what_is_in_the_process_is_taken", what_is_in_the_process_is_taken),
    ("a_package_is_found_after_a_library_that_will_not_do", a_package_is_found),
];

/// Prints how UCX was found, and the files of it that are in the process.
fn look() {
    match ucx_sys::load() {
        Ok(ucx) => {
            println!("{}\n{}", ucx.origin(), ucx.file().unwrap().display());
            for file in mapped() {
                println!("{}", file.display());
            }
        }
        Err(error) => {
            print!("{error}");
            std::process::exit(1);
        }
    }
}

/// Many threads load, others read the environment: there is one library, and `PATH` is never missing.
fn bound() {
    let (done, reading) = (AtomicBool::new(false), Barrier::new(3));
    let all = thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    reading.wait();
                    while !done.load(Ordering::Relaxed) {
                        // SAFETY: nobody changes this variable.
                        assert!(!unsafe { libc::getenv(c"PATH".as_ptr()) }.is_null());
                    }
                })
            })
            .collect();
        reading.wait();
        let loaders: Vec<_> = (0..8).map(|_| scope.spawn(ucx_sys::load)).collect();
        let all: Vec<_> = loaders.into_iter().map(|loader| loader.join().unwrap().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        all
    });
    assert!(all.iter().all(|ucx| std::ptr::eq(*ucx, all[0])));

    let ucx = all[0];
    assert!(ucx.version() >= ucx_sys::MINIMUM_VERSION);
    assert!(ucx.file().unwrap().is_absolute(), "{ucx:?}");
    // SAFETY: a literal of the library.
    let said = unsafe { CStr::from_ptr(ucx.ucp_get_version_string()) }.to_str().unwrap();
    assert!(said.starts_with(&ucx.version().to_string()), "{said}, {}", ucx.version());
    let since = |minor| ucx.version() >= Version { major: 1, minor, release: 0 };
    assert_eq!(ucx.newer().ucp_memh_pack.is_some(), since(14), "{ucx:?}");
    assert_eq!(ucx.newer().ucp_dt_query.is_some(), since(14), "{ucx:?}");
    assert_eq!(ucx.newer().ucp_rkey_compare.is_some(), since(16), "{ucx:?}");

    assert_eq!(ucx.describe(UCS_OK), "Success");
    assert_ne!(ucx.describe(UCS_ERR_NO_MEMORY), ucx.describe(UCS_ERR_UNREACHABLE));
    assert!((i8::MIN..=i8::MAX).all(|status| !ucx.describe(status).is_empty()));
    assert_eq!(ucx.origin() == &Origin::Linked, ucx_sys::LINKED);
}

/// Loads the file `UCX_SYS_TEST_FILE` as some other part of a program would, then looks.
fn resident() {
    let file = std::env::var_os("UCX_SYS_TEST_FILE").unwrap();
    let (directory, file) = (Path::new(&file).parent().unwrap(), Path::new(&file));
    for part in PARTS.map(|part| directory.join(part)).iter().map(PathBuf::as_path).chain([file]) {
        // SAFETY: UCX's own constructors.
        let library = unsafe { libloading::Library::new(part) }.unwrap();
        std::mem::forget(library);
    }
    look();
}

fn a_directory_is_taken_whole() {
    let copy = Copy::new(&ALL);
    let lib = copy.path().to_owned();
    let file = lib.join("libucp.so.0");
    let home = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(&lib, home.path().join("lib")).unwrap();
    let none = || "".to_owned();
    for (named, ucx_home, origin) in [
        (lib.display().to_string(), none(), "PROXYSTORE_UCX_LIB"),
        (file.display().to_string(), none(), "PROXYSTORE_UCX_LIB"),
        (none(), home.path().display().to_string(), "UCX_HOME"),
        // What names the library outright comes before what names a place.
        (lib.display().to_string(), "/nowhere".to_owned(), "PROXYSTORE_UCX_LIB"),
    ] {
        let said = child::run("look", &[("PROXYSTORE_UCX_LIB", &named), ("UCX_HOME", &ucx_home)]);
        let mut lines = said.lines();
        assert_eq!(lines.next(), Some(origin), "{said}");
        let files: Vec<_> = lines.skip(1).map(|line| Path::new(line).canonicalize().unwrap()).collect();
        assert_eq!(files.len(), ALL.len(), "{said}");
        assert!(files.iter().all(|file| file.parent() == Some(&lib)), "{said}");
    }
}

fn parts_of_two_are_refused() {
    let copy = Copy::new(&["libucp.so.0"]);
    let error = child::start("look", &[("PROXYSTORE_UCX_LIB", &copy.path())]).unwrap_err();
    // A libucp that is much newer than the parts does not even load.
    let reasons = ["of another UCX", "undefined symbol", "cannot open shared object"];
    assert!(reasons.iter().any(|reason| error.contains(reason)), "{error}");
}

fn what_is_in_the_process_is_taken() {
    let (one, other) = (Copy::new(&ALL), Copy::new(&ALL));
    let file = one.path().join("libucp.so.0");
    for home in ["".as_ref(), other.path()] {
        let said =
            child::run("resident", &[("UCX_SYS_TEST_FILE", &file), ("UCX_HOME", &home), ("PROXYSTORE_UCX_LIB", &"")]);
        assert_eq!(
            said.lines().take(2).collect::<Vec<_>>(),
            ["already in the process", file.to_str().unwrap()],
            "{said}"
        );
        assert_eq!(said.lines().count(), 2 + ALL.len(), "a second copy: {said}");
    }
    let named: &[(&str, &dyn AsRef<std::ffi::OsStr>)] =
        &[("UCX_SYS_TEST_FILE", &file), ("PROXYSTORE_UCX_LIB", &other.path())];
    let error = child::start("resident", named).unwrap_err();
    assert!(error.contains("is in the process already, and two UCX cannot be mixed"), "{error}");
    // Parts without a libucp: whatever the loader finds would be mixed with them.
    let parts: &[(&str, &dyn AsRef<std::ffi::OsStr>)] =
        &[("UCX_SYS_TEST_FILE", &one.path().join("libuct.so.0")), ("PROXYSTORE_UCX_LIB", &"")];
    let error = child::start("resident", parts).unwrap_err();
    assert!(error.contains("libucp.so.0 (the loader's path): ") && error.contains("cannot be mixed"), "{error}");
    // The same one, named.
    let said = child::run("resident", &[("UCX_SYS_TEST_FILE", &file), ("PROXYSTORE_UCX_LIB", &one.path())]);
    assert!(said.starts_with("PROXYSTORE_UCX_LIB\n"), "{said}");
}

fn a_package_is_found() {
    let (copy, package, broken) = (Copy::new(&ALL), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = package.path().join("ucx.pc");
    let path = copy.path().display();
    fs::write(&file, format!("prefix={path}\nlibdir=${{prefix}}/.\nVersion: 1\n")).unwrap();
    fs::write(broken.path().join("libucp.so.0"), "no library").unwrap();
    let environment: &[(&str, &dyn AsRef<std::ffi::OsStr>)] = &[
        ("PROXYSTORE_UCX_LIB", &""),
        ("UCX_HOME", &""),
        ("LD_LIBRARY_PATH", &broken.path()),
        ("PKG_CONFIG_PATH", &package.path()),
    ];
    let said = child::run("look", environment);
    assert_eq!(said.lines().next(), file.to_str(), "{said}");
    assert!(said.lines().skip(2).all(|line| Path::new(line).parent() == Some(copy.path())), "{said}");
}

/// Libraries of the UCX that is tested, copied to a directory of their own.
struct Copy(tempfile::TempDir, PathBuf);

impl Copy {
    fn new(files: &[&str]) -> Self {
        let said = child::run("look", &[]);
        let from = Path::new(said.lines().nth(1).unwrap()).parent().unwrap().to_owned();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().canonicalize().unwrap();
        for file in files {
            fs::copy(from.join(file), path.join(file)).unwrap();
        }
        Self(directory, path)
    }

    fn path(&self) -> &Path {
        assert!(self.0.path().is_dir());
        &self.1
    }
}

/// Files of the four libraries that are mapped into this process.
fn mapped() -> Vec<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut files: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.split_once('/'))
        .map(|(_, path)| PathBuf::from(format!("/{path}")))
        .collect();
    let ours = |file: &PathBuf| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        ALL.iter().any(|library| name.starts_with(library))
    };
    files.retain(ours);
    files.sort();
    files.dedup();
    files
}

const PARTS: [&str; 3] = ["libucm.so.0", "libucs.so.0", "libuct.so.0"];
const ALL: [&str; 4] = ["libucm.so.0", "libucs.so.0", "libuct.so.0", "libucp.so.0"];
