//! Where packages say that Margo lies: files `margo.pc`, read without running pkg-config, since a process that has registered
//! memory should not fork.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Directories of packages and, per directory, the files that may name one. `PKG_CONFIG_PATH` comes first.
pub(crate) fn files(path: Option<OsString>) -> Vec<PathBuf> {
    let own = path.as_deref().map(std::env::split_paths).into_iter().flatten();
    let triplet = format!("/usr/lib/{}-linux-gnu/pkgconfig", std::env::consts::ARCH);
    let usual = [
        "/usr/local/lib/pkgconfig",
        "/usr/local/lib64/pkgconfig",
        &triplet,
        "/usr/lib64/pkgconfig",
        "/usr/lib/pkgconfig",
    ];
    let mut files: Vec<PathBuf> = Vec::new();
    for directory in own.chain(usual.map(PathBuf::from)).filter(|directory| directory.is_absolute()) {
        let file = directory.join("margo.pc");
        if file.is_file() && !files.contains(&file) {
            files.push(file);
        }
    }
    files
}

/// `libdir` of a file, or why there is none.
pub(crate) fn directory(file: &Path) -> Result<PathBuf, String> {
    let mut text = Vec::new();
    File::open(file)
        .and_then(|open| open.take(LONGEST).read_to_end(&mut text))
        .map_err(|error| format!("cannot be read: {error}"))?;
    let text = String::from_utf8(text).map_err(|_| "is not text".to_owned())?;
    let here = file.parent().unwrap_or(Path::new("/"));
    match variable(&text, &here.to_string_lossy(), "libdir") {
        Some(found) if Path::new(&found).is_absolute() => Ok(PathBuf::from(found)),
        Some(found) => Err(format!("its libdir {found:?} is not absolute")),
        None => Err("has no libdir".to_owned()),
    }
}

/// The value of a variable, with `${others}` that stand above it filled in.
fn variable(text: &str, here: &str, wanted: &str) -> Option<String> {
    let mut known = HashMap::from([("pcfiledir", here.to_owned())]);
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else { continue };
        let (name, mut rest) = (name.trim(), value.trim());
        let mut filled = String::new();
        while let Some((before, after)) = rest.split_once("${") {
            let (other, behind) = after.split_once('}')?;
            filled.push_str(before);
            filled.push_str(known.get(other)?);
            // A few lines can double a value each.
            if filled.len() as u64 > LONGEST {
                return None;
            }
            rest = behind;
        }
        filled.push_str(rest);
        if name == wanted {
            return Some(filled);
        }
        known.insert(name, filled);
    }
    None
}

/// No file `margo.pc` is longer, in bytes, and no directory.
const LONGEST: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() {
        let text =
            "# c\nprefix = /opt/margo\nexec_prefix=${prefix}\nlibdir = ${exec_prefix}/lib\nLibs: -L${libdir} -lmargo\n";
        assert_eq!(variable(text, "/x", "libdir").as_deref(), Some("/opt/margo/lib"));
        assert_eq!(variable("libdir=${pcfiledir}/..", "/x", "libdir").as_deref(), Some("/x/.."));
        for wrong in ["", "libdir", "libdir=${prefix", "libdir=${prefix}/lib", "prefix=/a\n", "libdir=${libdir}"] {
            assert_eq!(variable(wrong, "/x", "libdir"), None, "{wrong:?}");
        }
    }

    #[test]
    fn values_that_grow_end() {
        let mut text = "a0=0123456789\n".to_owned();
        for at in 1..64 {
            text.push_str(&format!("a{at}=${{a{0}}}${{a{0}}}\n", at - 1));
        }
        assert_eq!(variable(&text, "/x", "a63"), None);
    }

    #[test]
    fn files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("margo.pc");
        for (text, expected) in [
            (&b"libdir=/l"[..], Ok(PathBuf::from("/l"))),
            (b"libdir=l", Err("its libdir \"l\" is not absolute".to_owned())),
            (b"x", Err("has no libdir".to_owned())),
            (b"\xff", Err("is not text".to_owned())),
        ] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(super::directory(&file), expected);
        }
        let path = std::env::join_paths([Path::new("relative"), directory.path(), directory.path()]).unwrap();
        let found = files(Some(path));
        assert_eq!(found.first(), Some(&file));
        assert_eq!(found.iter().filter(|found| **found == file).count(), 1);
    }
}
