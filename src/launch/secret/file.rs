//! Files that hold secrets.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use rustix::process::geteuid;
use zeroize::Zeroizing;

use super::{Bytes, empty, parse};
use crate::error::{Error, ErrorKind, Result};
use crate::key;

/// Reads a secret from a file that is this user's alone.
///
/// # Errors
/// `NotFound`; `Permission` for a file that is another user's or open to others; `Config` for one that holds no secret.
pub(super) fn read(path: &Path) -> Result<Bytes> {
    // Not blocking, or a FIFO would hold the process up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let handle = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| fail(path, error))?;
    let stat = rustix::fs::fstat(&handle).map_err(|error| fail(path, error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refuse(path, "is no file"));
    }
    if stat.st_uid != geteuid().as_raw() {
        return Err(refuse(path, &format!("belongs to user {}", stat.st_uid)));
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        let what =
            format!("has mode {mode:04o}: others may have read it, so make another one, with mode 0600; this one");
        return Err(refuse(path, &what));
    }
    // As much as shows that there is too much.
    let mut text = Zeroizing::new([0; 256]);
    let mut len = 0;
    let mut file = File::from(handle);
    loop {
        match file.read(&mut text[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("launch", path.display().to_string(), error)),
        }
    }
    parse(&text[..len], &path.display().to_string())
}

/// Reads the user's own secret; makes one where there is none. All who do so at the same time, on all nodes that share the
/// directory, get the same.
///
/// # Errors
/// As [`read`]; `Permission` for a directory that others may write to; when it cannot be made.
pub(super) fn find_or_make(path: &Path) -> Result<Bytes> {
    let directory = path.parent().unwrap_or(path);
    // A client of a network file system may for a second not see what another node made.
    for turn in 0..60 {
        match verify(directory).and_then(|()| read(path)) {
            Err(error) if error.is_not_found() => {}
            done => return done,
        }
        if turn > 0 {
            thread::sleep(Duration::from_millis(50));
        }
        make(path, directory)?;
    }
    let context = format!("{} is neither there nor can it be made", path.display());
    Err(Error::new(ErrorKind::Unavailable, "launch", context))
}

/// Makes a secret, complete before it has its name. When somebody else was first, that one's stays.
fn make(path: &Path, directory: &Path) -> Result<()> {
    let fail_at = |path: &Path, error: io::Error| Error::io("launch", path.display().to_string(), error);
    if let Some(parent) = directory.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(|error| fail_at(parent, error))?;
    }
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(fail_at(directory, error)),
        _ => verify(directory)?,
    }
    let draft = directory.join(format!(".secret.{:016x}", key::random_number()));
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::RUSR | Mode::WUSR;
    let handle = rustix::fs::open(&draft, flags, mode).map_err(|error| fail(&draft, error))?;
    // The umask may have taken away even the user's own rights.
    let written = rustix::fs::fchmod(&handle, mode).map_err(io::Error::from).and_then(|()| {
        let mut bytes = empty();
        key::fill_random(&mut bytes[..]);
        let mut text = Zeroizing::new(String::with_capacity(2 * bytes.len() + 1));
        for digit in bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]) {
            text.push(char::from_digit(digit.into(), 16).unwrap_or_default());
        }
        text.push('\n');
        let mut file = File::from(handle);
        file.write_all(text.as_bytes())?;
        // A file that is empty after a crash of the machine would refuse every later start.
        file.sync_all()
    });
    let named = written.and_then(|()| match fs::hard_link(&draft, path) {
        // File systems without hard links.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS)) => {
            Ok(rustix::fs::renameat_with(CWD, &draft, CWD, path, RenameFlags::NOREPLACE)?)
        }
        done => done,
    });
    // It has another name, or nobody needs it.
    let _ = fs::remove_file(&draft);
    match named {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(fail_at(path, error)),
        _ => Ok(()),
    }
}

/// Accepts a directory in which nobody else can put another file in the secret's place.
fn verify(directory: &Path) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let handle = rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| fail(directory, error))?;
    let stat = rustix::fs::fstat(&handle).map_err(|error| fail(directory, error))?;
    let mode = stat.st_mode & 0o7777;
    if stat.st_uid != geteuid().as_raw() {
        return Err(refuse(directory, &format!("belongs to user {}", stat.st_uid)));
    }
    match mode & 0o022 {
        0 => Ok(()),
        _ => Err(refuse(directory, &format!("has mode {mode:04o}, in which others can write"))),
    }
}

fn refuse(path: &Path, what: &str) -> Error {
    let context = format!("{} {what} cannot be used; correct it or set PROXYSTORE_SECRET_FILE", path.display());
    Error::new(ErrorKind::Permission, "launch", context)
}

fn fail(path: &Path, error: Errno) -> Error {
    Error::io("launch", path.display().to_string(), error.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::Barrier;

    use super::*;

    const DIGITS: &str = "0123456789abcdef0123456789ABCDEF0123456789abcdef0123456789abcdef";

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn all_who_come_at_once_agree() {
        for _ in 0..20 {
            let home = tempfile::tempdir().unwrap();
            let path = home.path().join(".config/proxystore/secret");
            let barrier = Barrier::new(8);
            let get = || {
                barrier.wait();
                find_or_make(&path).unwrap().to_vec()
            };
            let all: BTreeSet<Vec<u8>> = thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(get)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(all.len(), 1);
            assert!(all.contains(&find_or_make(&path).unwrap().to_vec()));
            let directory = path.parent().unwrap();
            assert_eq!((mode(directory), mode(&path)), (0o700, 0o600));
            // No draft stays.
            assert_eq!(fs::read_dir(directory).unwrap().count(), 1);
        }
    }

    #[test]
    fn two_users_have_two_secrets() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [one, other] =
            [one, other].map(|home| find_or_make(&home.path().join("proxystore/secret")).unwrap().to_vec());
        assert_ne!(one, other);
        assert_ne!(one, [0; 32]);
    }

    #[test]
    fn what_stands_in_the_file() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        for (text, is_secret) in [
            (DIGITS.to_owned(), true),
            (format!("{DIGITS}\n"), true),
            (format!("{DIGITS}0"), false),
            (String::new(), false),
            (DIGITS[1..].to_owned(), false),
            (format!("{DIGITS}\n{DIGITS}\n"), false),
            (DIGITS.repeat(1000), false),
            ("\0".repeat(64), false),
        ] {
            fs::write(&path, &text).unwrap();
            chmod(&path, 0o600);
            match read(&path) {
                Ok(bytes) => assert!(is_secret && bytes[..2] == [0x01, 0x23], "{text}"),
                Err(error) => assert!(!is_secret && error.kind() == ErrorKind::Config, "{error}"),
            }
        }
        fs::write(&path, [0xff; 64]).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.kind() == ErrorKind::Config && error.to_string().contains(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn files_of_others_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        fs::write(&path, DIGITS).unwrap();
        for wide in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644] {
            chmod(&path, wide);
            let error = read(&path).unwrap_err();
            assert!(
                error.kind() == ErrorKind::Permission && error.to_string().contains(&format!("{wide:04o}")),
                "{error}"
            );
            assert!(!format!("{error:?}").contains("0123456789"), "{error:?}");
        }
        chmod(&path, 0o400);
        assert!(read(&path).is_ok());
        // As a mounted secret has it: what counts is the file behind the link.
        symlink(&path, home.path().join("link")).unwrap();
        assert!(read(&home.path().join("link")).is_ok());

        assert_eq!(read(&home.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(read(home.path()).unwrap_err().kind(), ErrorKind::Permission);
        let fifo = home.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert_eq!(read(&fifo).unwrap_err().kind(), ErrorKind::Permission);
        if geteuid().is_root() {
            rustix::fs::chown(&path, Some(rustix::fs::Uid::from_raw(65534)), None).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.kind() == ErrorKind::Permission && error.to_string().contains("user 65534"), "{error}");
        } else {
            println!("ignored: a file of another user, which only root can make");
        }
    }

    #[test]
    fn directories_of_others_are_refused() {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("proxystore");
        let path = directory.join("secret");
        let secret = find_or_make(&path).unwrap().to_vec();
        for wide in [0o770, 0o720, 0o702, 0o777] {
            chmod(&directory, wide);
            let error = find_or_make(&path).unwrap_err();
            assert!(error.kind() == ErrorKind::Permission && error.to_string().contains("can write"), "{error}");
            // Nor is one made there.
            fs::rename(&path, home.path().join("kept")).unwrap();
            assert_eq!(find_or_make(&path).unwrap_err().kind(), ErrorKind::Permission);
            assert!(!path.exists());
            fs::rename(home.path().join("kept"), &path).unwrap();
        }
        chmod(&directory, 0o755);
        assert_eq!(find_or_make(&path).unwrap().to_vec(), secret);
        // A broken secret is not replaced: others may use it.
        fs::write(&path, "x").unwrap();
        assert_eq!(find_or_make(&path).unwrap_err().kind(), ErrorKind::Config);
        let elsewhere = home.path().join("file/proxystore/secret");
        fs::write(home.path().join("file"), "").unwrap();
        assert!(find_or_make(&elsewhere).is_err());
    }
}
