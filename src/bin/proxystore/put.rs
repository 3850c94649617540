//! `proxystore put`.

use std::fs::File;
use std::io::{Read, Seek, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::Args;
use proxystore::service::Namespace;
use proxystore::{Capabilities, Key, Proxy, Store, environment};
use serde::Serialize;

use crate::failure::Failure;
use crate::namespace;
use crate::object::Timeout;
use crate::progress::Progress;

/// Store a file as plain bytes and print its token
///
/// Programs read the object as `Proxy<[u8]>`. It stays until it is evicted, or read once where it was put with --once. Shared
/// memory lives as long as any process that uses it: `proxystore serve` keeps it. A put that nobody would keep is refused, or,
/// where no store was named, goes to a directory, and says so.
#[derive(Args)]
#[command(after_help = "\
Examples:
  proxystore put model.bin
  proxystore put model.bin --store file:///scratch/me --json
  tar c run42 | proxystore put - --once")]
pub(crate) struct Put {
    /// The file; `-` reads standard input
    file: PathBuf,
    /// Where to, as file:///scratch/me [default: $PROXYSTORE_STORE, else shm:// if some process holds it, else a directory]
    #[arg(long, value_name = "URL")]
    store: Option<String>,
    /// Make a one-time token: the first who reads the object has it, and it is gone
    #[arg(long)]
    once: bool,
    /// Print {"token","key","len","store"} instead of the token
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    timeout: Timeout,
}

impl Put {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut source = Source::open(&self.file)?;
        let store = self.open()?;
        let key = match source.len()? {
            Some(len) => source.copy_sized(&store, len, &self.timeout)?,
            None => source.copy_to_end(&store, &self.timeout)?,
        };
        let told = self.tell(&store, &key);
        if told.is_err() {
            // Nobody knows the token, so nobody could ever remove the object. The failure to report is the first one.
            let _ = store.evict(&key).wait();
        }
        told
    }

    /// Opens a store whose objects outlive this process.
    fn open(&self) -> Result<Store, Failure> {
        let url = match &self.store {
            Some(url) => url.clone(),
            None => environment::default_store(),
        };
        if url.starts_with("shm:") && !Namespace::is_held(&namespace::name_of(&url)?)? {
            // A URL that somebody chose is not replaced by another one.
            let is_chosen =
                self.store.is_some() || std::env::var_os("PROXYSTORE_STORE").is_some_and(|url| !url.is_empty());
            if is_chosen {
                return Err(unheld(&url));
            }
            let store = Store::open("file://")?;
            eprintln!(
                "proxystore: no process holds shared memory, so the object goes to {}; `proxystore serve` keeps objects in memory",
                store.config().connector
            );
            return Ok(store);
        }
        let store = Store::open(&url)?;
        check_reach(&store)?;
        Ok(store)
    }

    /// Prints what the caller asked for.
    fn tell(&self, store: &Store, key: &Key) -> Result<(), Failure> {
        let proxy: Proxy<[u8]> = store.proxy_from_key(key)?;
        let token = if self.once { Proxy::once(proxy) } else { proxy }.to_token()?;
        let line = if self.json {
            let put = Told { token, key: key.to_string(), len: key.len(), store: store.config().to_string() };
            serde_json::to_string(&put).map_err(Failure::new)?
        } else {
            token
        };
        let mut out = stdout();
        writeln!(out, "{line}").and_then(|()| out.flush()).map_err(|error| Failure::io("cannot print the token", error))
    }
}

fn unheld(url: &str) -> Failure {
    Failure::new(format_args!(
        "no other process holds {url}, so the object would end with this command: start `proxystore serve` first, or use --store \
         file:///DIRECTORY"
    ))
}

#[derive(Serialize)]
struct Told {
    token: String,
    key: String,
    len: u64,
    store: String,
}

/// Refuses stores whose objects would be gone before anybody could read the token.
fn check_reach(store: &Store) -> Result<(), Failure> {
    let connector = &store.config().connector;
    if namespace::SCHEMES.contains(&connector.scheme()) {
        // Whoever held the memory may have ended since, and this process taken its place.
        let stats = match Namespace::find(connector.location())? {
            Some(namespace) => namespace.stats()?,
            None => return Err(unheld(&connector.to_string())),
        };
        if stats.host == std::process::id() && stats.clients.len() <= 1 {
            return Err(unheld(&connector.to_string()));
        }
    }
    if store.connector().capabilities().contains(Capabilities::CROSS_PROCESS | Capabilities::OUTLIVES_PRODUCER) {
        return Ok(());
    }
    let url = store.config();
    Err(Failure::new(format_args!("objects of {url} end with this process; use --store file:///DIRECTORY")))
}

/// What is stored: a file or standard input.
struct Source {
    file: File,
    name: String,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            let name = "standard input".to_owned();
            return match stdin().as_fd().try_clone_to_owned() {
                Ok(handle) => Ok(Self { file: handle.into(), name }),
                Err(error) => Err(Failure::io(name, error)),
            };
        }
        let name = path.display().to_string();
        match File::open(path) {
            Ok(file) => Ok(Self { file, name }),
            Err(error) => Err(Failure::io(name, error)),
        }
    }

    /// What is left of a file of known length; `None` for pipes, and for files that state none, as those of /proc.
    fn len(&mut self) -> Result<Option<usize>, Failure> {
        let len = self.file.metadata().and_then(|metadata| match metadata.is_file() && metadata.len() > 0 {
            true => Ok(Some(metadata.len().saturating_sub(self.file.stream_position()?))),
            false => Ok(None),
        });
        match len.map_err(|error| Failure::io(&self.name, error))? {
            Some(len) => {
                usize::try_from(len).map(Some).map_err(|_| Failure::new(format_args!("{}: too large", self.name)))
            }
            None => Ok(None),
        }
    }

    /// Reads into the memory where the object stays. What is appended to the file meanwhile is not read.
    fn copy_sized(&mut self, store: &Store, len: usize, timeout: &Timeout) -> Result<Key, Failure> {
        let mut object = store.reserve(len)?;
        let mut progress = Progress::new("put", Some(len));
        let memory = object.initialize();
        let mut filled = 0;
        while filled < len {
            let end = len.min(filled + STEP);
            match self.read(&mut memory[filled..end])? {
                0 => break,
                n => {
                    filled += n;
                    progress.advance(n);
                }
            }
        }
        if filled < len {
            // The file became shorter, or lied as those of /sys do.
            return Ok(timeout.bound(store.put(&memory[..filled])).wait()?);
        }
        Ok(timeout.bound(object.commit_key()).wait()?)
    }

    /// Reads until the end into process memory, and copies from there once the length is known.
    fn copy_to_end(&mut self, store: &Store, timeout: &Timeout) -> Result<Key, Failure> {
        let mut progress = Progress::new("put", None);
        let mut chunks: Vec<Vec<u8>> = Vec::new();
        loop {
            // A small object takes one chunk, a large one no list of thousands.
            let capacity = (1 << 20 << chunks.len().min(6)) as usize;
            let mut chunk = Vec::new();
            chunk.try_reserve_exact(capacity).map_err(|error| Failure::new(format_args!("{}: {error}", self.name)))?;
            let read = (&self.file).take(capacity as u64).read_to_end(&mut chunk);
            let n = read.map_err(|error| Failure::io(&self.name, error))?;
            progress.advance(n);
            chunks.push(chunk);
            if n < capacity {
                break;
            }
        }
        drop(progress);
        let mut object = store.reserve(chunks.iter().map(Vec::len).sum())?;
        for chunk in chunks {
            // Each is freed as soon as it is copied.
            object.write_all(&chunk).map_err(|error| Failure::io(&self.name, error))?;
        }
        Ok(timeout.bound(object.commit_key()).wait()?)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match self.file.read(into) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                result => return result.map_err(|error| Failure::io(&self.name, error)),
            }
        }
    }
}

/// Bytes between two looks at the progress bar.
const STEP: usize = 4 << 20;
