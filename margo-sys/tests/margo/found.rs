//! Which Margo is taken.

use std::path::{Path, PathBuf};
use std::{fs, thread};

use margo_sys::{HG_HOSTUNREACH, HG_SUCCESS, HG_TIMEOUT};

use crate::{Row, child};

pub(crate) const CHILDREN: &[Row] = &[("look", look), ("bound", bound), ("resident", resident)];
pub(crate) const TESTS: &[Row] = &[
    ("bound", || drop(child::run("bound", &[]))),
    ("variables_lead_to_it", variables_lead_to_it),
    ("what_is_in_the_process_is_taken", what_is_in_the_process_is_taken),
];

/// Prints how Margo was found, its file, and what it offers.
fn look() {
    match margo_sys::load() {
        Ok(margo) => {
            println!("{}\n{}", margo.origin(), margo.file().unwrap().display());
            // An old one cannot say: then it is tried.
            for address in ["na+sm", "ofi+tcp"] {
                if margo.protocols().is_none_or(|all| all.iter().any(|one| one.serves(address))) {
                    println!("{address}");
                }
            }
        }
        Err(error) => {
            print!("{error}");
            std::process::exit(1);
        }
    }
}

/// Many threads load: there is one library, and it says what it is.
fn bound() {
    let all = thread::scope(|scope| {
        let loaders: Vec<_> = (0..8).map(|_| scope.spawn(margo_sys::load)).collect();
        loaders.into_iter().map(|loader| loader.join().unwrap().unwrap()).collect::<Vec<_>>()
    });
    assert!(all.iter().all(|margo| std::ptr::eq(*margo, all[0])));
    let margo = all[0];
    assert!(margo.mercury_version() >= margo_sys::MINIMUM_MERCURY);
    assert!(margo.file().unwrap().is_absolute() && margo.parts().count() == 2, "{margo:?}");
    assert_eq!(margo.describe(HG_SUCCESS), "HG_SUCCESS");
    assert_eq!(margo.describe(HG_TIMEOUT), "HG_TIMEOUT");
    assert_eq!(margo.describe(HG_HOSTUNREACH), "HG_HOSTUNREACH");
    if let Some(protocols) = margo.protocols() {
        assert!(protocols.iter().all(|one| !one.plugin.is_empty() && !one.name.is_empty()), "{protocols:?}");
        assert!(!protocols.is_empty());
    }
}

/// Loads the file `MARGO_SYS_TEST_FILE` as some other part of a program would, then looks.
fn resident() {
    let file = std::env::var_os("MARGO_SYS_TEST_FILE").unwrap();
    // SAFETY: Margo's own constructors.
    std::mem::forget(unsafe { libloading::Library::new(file) }.unwrap());
    look();
}

fn variables_lead_to_it() {
    let file = file();
    let lib = file.parent().unwrap();
    let (packages, broken, prefix) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let package = packages.path().join("margo.pc");
    fs::write(&package, format!("prefix={}\nlibdir=${{prefix}}\nVersion: 1\n", lib.display())).unwrap();
    fs::write(broken.path().join("libmargo.so"), "no library").unwrap();
    fs::create_dir(prefix.path().join("lib64")).unwrap();
    std::os::unix::fs::symlink(&file, prefix.path().join("lib64/libmargo.so")).unwrap();
    let none = Path::new("");
    let nowhere = packages.path().join("nothing");
    let prefixes = format!("{}:{}", broken.path().display(), prefix.path().display());
    let prefixes = Path::new(&prefixes);
    for (named, path, packages, prefixes, origin) in [
        (file.as_path(), none, none, none, "PROXYSTORE_MARGO_LIB"),
        (lib, none, none, none, "PROXYSTORE_MARGO_LIB"),
        (none, lib, none, none, "the loader's path"),
        (none, broken.path(), packages.path(), none, package.to_str().unwrap()),
        (none, broken.path(), nowhere.as_path(), prefixes, "CMAKE_PREFIX_PATH"),
        // What names the library outright comes before what names a place.
        (lib, broken.path(), packages.path(), prefixes, "PROXYSTORE_MARGO_LIB"),
    ] {
        let said = child::run(
            "look",
            &[
                ("PROXYSTORE_MARGO_LIB", &named),
                ("LD_LIBRARY_PATH", &path),
                ("PKG_CONFIG_PATH", &packages),
                ("CMAKE_PREFIX_PATH", &prefixes),
            ],
        );
        assert_eq!(said.lines().next(), Some(origin), "{said}");
    }
}

fn what_is_in_the_process_is_taken() {
    let file = file();
    let said = child::run("resident", &[("MARGO_SYS_TEST_FILE", &file), ("PROXYSTORE_MARGO_LIB", &"")]);
    assert_eq!(said.lines().next(), Some("already in the process"), "{said}");
}

/// The Margo that is tested.
fn file() -> PathBuf {
    let said = child::run("look", &[]);
    Path::new(said.lines().nth(1).unwrap()).canonicalize().unwrap()
}
