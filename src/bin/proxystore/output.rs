//! `Output`: bytes to a terminal, a pipe, a device, or a file that is there as a whole or not at all.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher;
use std::io::{self, IsTerminal, Read, Write, stdin, stdout};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use clap::Args;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::progress::Progress;

/// Where `get` writes to. First [`stage`](Self::stage), which may fail without a trace, then [`publish`](Self::publish).
pub(crate) enum Output {
    Stdout {
        force: bool,
    },
    /// Something that exists and is no regular file: a pipe, a device.
    Special(File, String),
    New(NewFile),
}

impl Output {
    pub(crate) fn open(path: Option<&Path>, force: bool) -> Result<Self, Failure> {
        let Some(path) = path.filter(|path| *path != Path::new("-")) else { return Ok(Self::Stdout { force }) };
        let fail = |error| Failure::io(path.display(), error);
        match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Err(Failure::new(format_args!("{}: is a directory", path.display()))),
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(fail)?;
                Ok(Self::Special(file, path.display().to_string()))
            }
            // A link stays one; what it leads to is replaced.
            Ok(_) => Ok(Self::New(NewFile::create(&path.canonicalize().map_err(fail)?).map_err(fail)?)),
            Err(_) => Ok(Self::New(NewFile::create(path).map_err(fail)?)),
        }
    }

    /// Does all that can be done, and undone, before the bytes are seen.
    pub(crate) fn stage(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout { force: false } if stdout().is_terminal() && is_binary(bytes) => {
                Err(Failure::new("the object is binary and standard output a terminal; use -o FILE, or --force"))
            }
            Self::Stdout { .. } | Self::Special(..) => Ok(()),
            Self::New(new) => write_all(&new.file, bytes).map_err(|error| Failure::io(new.target.display(), error)),
        }
    }

    /// Makes the bytes that were staged visible.
    pub(crate) fn publish(self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Self::Stdout { .. } => {
                // Past the line buffer, which would cut the bytes into pieces.
                let out = stdout().lock();
                match rustix::io::dup(&out) {
                    Ok(handle) => write_all(&File::from(handle), bytes).map_err(Failure::stdout),
                    Err(error) => Err(Failure::stdout(error.into())),
                }
            }
            Self::Special(file, name) => write_all(&file, bytes).map_err(|error| Failure::io(name, error)),
            Self::New(new) => {
                let name = new.target.display().to_string();
                new.publish().map_err(|error| Failure::io(name, error))
            }
        }
    }
}

/// A file being written that has no name, so that the kernel frees it whatever ends this process.
///
/// Where the file system has no such files (NFS, FUSE) it has a name beside the target's, and a second process that
/// removes it when this one ends early.
pub(crate) struct NewFile {
    file: File,
    target: PathBuf,
    watched: Option<Watched>,
}

impl NewFile {
    fn create(target: &Path) -> io::Result<Self> {
        let directory = match target.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let (file, watched) = match create_nameless(directory)? {
            Some(file) => (file, None),
            None => {
                let (file, watched) = Watched::create(target)?;
                (file, Some(watched))
            }
        };
        if let Ok(metadata) = fs::metadata(target) {
            // What is replaced was made readable to somebody on purpose.
            file.set_permissions(metadata.permissions())?;
        }
        Ok(Self { file, target: target.to_owned(), watched })
    }

    fn publish(self) -> io::Result<()> {
        if let Some(watched) = self.watched {
            return fs::rename(&watched.path, &self.target);
        }
        match link(&self.file, &self.target) {
            Err(Errno::EXIST) => {}
            result => return Ok(result?),
        }
        // Only a name replaces a name; it is there for two system calls.
        let name = beside(&self.target);
        link(&self.file, &name)?;
        fs::rename(&name, &self.target).inspect_err(|_| {
            // The failure to report is the first one.
            let _ = fs::remove_file(&name);
        })
    }
}

/// A file with a name for the time being, and the process that watches over it.
struct Watched {
    path: PathBuf,
    watcher: Child,
}

impl Watched {
    fn create(target: &Path) -> io::Result<(File, Self)> {
        let path = beside(target);
        let mut command = Command::new(std::env::current_exe()?);
        // In a process group of its own: Ctrl-C ends all of ours.
        command.arg("remove-at-eof").arg(&path).process_group(0);
        let watcher = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let watched = Self { path, watcher };
        let file = OpenOptions::new().write(true).create_new(true).open(&watched.path)?;
        Ok((file, watched))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.watcher.stdin.take());
        // It removes the file, unless that has its final name by now. Nobody is left to tell of a failure.
        let _ = self.watcher.wait();
    }
}

/// Waits for the end of standard input and removes a file
#[derive(Args)]
pub(crate) struct RemoveAtEof {
    path: PathBuf,
}

impl RemoveAtEof {
    pub(crate) fn run(self) -> Result<(), Failure> {
        // Nothing is ever written to it, so any end of the reading is the end of the writer.
        let _ = stdin().read(&mut [0]);
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Failure::io(self.path.display(), error)),
            _ => Ok(()),
        }
    }
}

/// `None` when the file system cannot make a file without a name, or cannot name it afterwards.
fn create_nameless(directory: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(directory, flags, Mode::from_raw_mode(0o666)) {
        Ok(file) => {
            let file = File::from(file);
            // A link to a name that is taken is never made, and tells whether it could be.
            Ok((link(&file, directory) == Err(Errno::EXIST)).then_some(file))
        }
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn link(file: &File, name: &Path) -> rustix::io::Result<()> {
    let file = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, file, CWD, name, AtFlags::SYMLINK_FOLLOW)
}

/// A name in the target's directory that nobody else uses, on whatever node.
fn beside(target: &Path) -> PathBuf {
    // Its key is the kernel's random.
    let random = RandomState::new().hash_one(std::process::id());
    target.with_file_name(format!(".proxystore-{random:016x}.part"))
}

fn write_all(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut progress = Progress::new("get", Some(bytes.len()));
    for step in bytes.chunks(STEP) {
        file.write_all(step)?;
        progress.advance(step.len());
    }
    Ok(())
}

/// Whether the beginning is nothing that a person could read.
fn is_binary(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(64 << 10)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // The cut may have hit the middle of a character.
        Err(error) if error.error_len().is_none() && head.len() < bytes.len() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or("\0")
        }
        Err(_) => return true,
    };
    text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))
}

/// Bytes between two looks at the progress bar.
const STEP: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_from_binary() {
        assert!(!is_binary(b""));
        assert!(!is_binary("Zürich\n\tok\r\n".as_bytes()));
        assert!(is_binary(b"\x1b[31m"), "escape sequences are for terminals, not from strangers");
        assert!(is_binary(&[0xff, 0xfe]));
        let mut long = vec![b'a'; (64 << 10) - 1];
        long.extend_from_slice("ü".as_bytes());
        assert!(!is_binary(&long), "a character across the cut");
    }
}
