//! What runs on a host: orders on standard input, an answer each.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::bare;
#[cfg(feature = "ucx")]
use crate::ucp;

/// Obeys until standard input ends.
pub(crate) fn run() -> i32 {
    say(&format!("ready {}", std::process::id()));
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        say(&obey(&words).unwrap_or_else(|error| format!("error {error}")));
    }
    0
}

pub(crate) fn say(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = writeln!(output, "{}", text.replace('\n', " ")).and_then(|()| output.flush());
}

pub(crate) fn obey(words: &[&str]) -> std::io::Result<String> {
    let number = |text: &str| text.parse::<usize>().expect("a number");
    Ok(match *words {
        ["pid"] => std::process::id().to_string(),
        ["echo"] => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let port = socket.local_addr()?.port();
            std::thread::spawn(move || echo(&socket));
            port.to_string()
        }
        ["heard"] => HEARD.load(Ordering::Relaxed).to_string(),
        ["ping", peer, count] => ping(peer, number(count))?,
        ["serve"] => bare::serve(),
        // Takes a port, lets everybody in and says nothing.
        ["occupy", port] => {
            let listener = TcpListener::bind(format!("0.0.0.0:{port}"))?;
            std::thread::spawn(move || listener.incoming().collect::<Vec<_>>());
            "done".to_owned()
        }
        ["latency", server, len, count] => bare::latency(server, number(len), number(count))?.as_nanos().to_string(),
        ["bandwidth", server, len, streams, count] => {
            format!("{:.0}", bare::bandwidth(server, number(len), number(streams), number(count))?)
        }
        // Which UCX this process has, or takes now.
        #[cfg(feature = "ucx")]
        ["ucp_version"] => {
            let found = ucx_sys::load().map_err(|error| std::io::Error::other(error.to_string()))?;
            found.version().to_string()
        }
        // An owner of the bare UCP loop with so many bytes; its contact in hexadecimal digits.
        #[cfg(feature = "ucx")]
        ["ucp_own", len] => bare_ucp::own(number(len))?,
        // Nanoseconds to a contact's first byte.
        #[cfg(feature = "ucx")]
        ["ucp_connect", contact, room] => bare_ucp::connect(contact, number(room))?,
        // Median nanoseconds of one of `count` fetches of that shape, and which way they come.
        #[cfg(feature = "ucx")]
        ["ucp_fetch", len, window, pieces, progress, count] => {
            let shape = ucp::Shape { len: number(len), window: number(window), pieces: number(pieces) };
            bare_ucp::fetch(shape, progress == "busy", number(count))?
        }
        // As for UCP, of the bare Margo loop: contact, median nanoseconds of a fetch.
        #[cfg(feature = "margo")]
        ["margo_own", len] => bare_margo::own(number(len))?,
        #[cfg(feature = "margo")]
        ["margo_connect", contact, room] => bare_margo::connect(contact, number(room))?,
        #[cfg(feature = "margo")]
        ["margo_fetch", len, count] => bare_margo::fetch(number(len), number(count))?,
        _ => panic!("no such order: {words:?}"),
    })
}

/// The bare Margo loop of this process.
#[cfg(feature = "margo")]
mod bare_margo {
    use std::cell::RefCell;
    use std::io;
    use std::time::Instant;

    use crate::bare::{WARM, median};
    use crate::margo_loop::{Owner, Requester};

    thread_local! {
        static REQUESTER: RefCell<Option<Requester>> = const { RefCell::new(None) };
    }

    pub(super) fn own(len: usize) -> io::Result<String> {
        let owner = Owner::start(PROTOCOL, &vec![7; len])?;
        let contact = owner.contact().iter().map(|byte| format!("{byte:02x}")).collect();
        // Until the process ends.
        std::mem::forget(owner);
        Ok(contact)
    }

    pub(super) fn connect(contact: &str, room: usize) -> io::Result<String> {
        let digits = |at: usize| u8::from_str_radix(&contact[at..at + 2], 16).map_err(io::Error::other);
        let contact = (0..contact.len()).step_by(2).map(digits).collect::<io::Result<Vec<u8>>>()?;
        let requester = Requester::connect(PROTOCOL, &contact, room)?;
        REQUESTER.set(Some(requester));
        Ok("done".to_owned())
    }

    pub(super) fn fetch(len: usize, count: usize) -> io::Result<String> {
        let requester = REQUESTER.take().ok_or(io::ErrorKind::NotConnected)?;
        let (begun, mut requester) = (Instant::now(), requester);
        while begun.elapsed() < WARM {
            requester = requester.fetch(count / 10 + 1, len)?.0;
        }
        let (requester, times) = requester.fetch(count, len)?;
        REQUESTER.set(Some(requester));
        Ok(median(times).as_nanos().to_string())
    }

    const PROTOCOL: &str = "ofi+tcp";
}

/// The bare UCP loop of this process, which may ask one owner at a time.
#[cfg(feature = "ucx")]
mod bare_ucp {
    use std::cell::RefCell;

    use crate::ucp::{Contact, Owner, Progress, Requester, Settings, Shape};

    thread_local! {
        static REQUESTER: RefCell<Option<Requester>> = const { RefCell::new(None) };
    }

    /// Nobody else is on the network of the hosts: their owners let themselves be read.
    fn settings() -> Settings {
        Settings::new(&["eth0".to_owned()]).one_sided()
    }

    pub(super) fn own(len: usize) -> std::io::Result<String> {
        let owner = Owner::start(&settings(), len, &[7; 4096])?;
        let contact = owner.contact().to_bytes();
        // To the end of the process.
        std::mem::forget(owner);
        Ok(contact.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub(super) fn connect(contact: &str, room: usize) -> std::io::Result<String> {
        let digits = contact.as_bytes().chunks(2).map(|two| std::str::from_utf8(two).expect("ASCII"));
        let bytes: Vec<u8> = digits.map(|two| u8::from_str_radix(two, 16).expect("hexadecimal digits")).collect();
        let requester = Requester::connect(&settings(), &Contact::from_bytes(&bytes)?, room)?;
        let took = requester.first_contact;
        REQUESTER.set(Some(requester));
        Ok(took.as_nanos().to_string())
    }

    pub(super) fn fetch(shape: Shape, busy: bool, count: usize) -> std::io::Result<String> {
        let progress = if busy { Progress::Busy } else { Progress::Hybrid };
        REQUESTER.with_borrow_mut(|requester| {
            let requester = requester.as_mut().expect("it is connected");
            let way = requester.best(shape, progress)?;
            let median = if shape.window > 1 {
                requester.fetch(count, shape, way, progress)? / count as u32
            } else {
                let times = (0..count).map(|_| requester.fetch(1, shape, way, progress));
                crate::bare::median(times.collect::<std::io::Result<_>>()?)
            };
            Ok(format!("{} {way:?}", median.as_nanos()))
        })
    }
}

fn echo(socket: &UdpSocket) {
    let mut bytes = [0; 2048];
    loop {
        match socket.recv_from(&mut bytes) {
            Ok((len, from)) => {
                HEARD.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&bytes[..len], from);
            }
            // The answer to an echo that nobody waited for.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
            Err(error) => panic!("echo: {error}"),
        }
    }
}

/// How many of `count` datagrams of 1 KiB come back, waiting [`ECHO`] for each.
fn ping(peer: &str, count: usize) -> std::io::Result<String> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut back = 0;
    for number in 0..count as u64 {
        let mut bytes = [0; 1024];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        socket.send_to(&bytes, peer)?;
        let begun = Instant::now();
        while let Some(left) = ECHO.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) {
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut bytes) {
                Ok(_) if bytes[..8] == number.to_le_bytes() => {
                    back += 1;
                    break;
                }
                // Of an earlier one.
                Ok(_) => {}
                Err(_) => break,
            }
        }
    }
    Ok(back.to_string())
}

/// An echo that takes longer is lost.
const ECHO: Duration = Duration::from_millis(250);

/// Datagrams that the echo received.
static HEARD: AtomicU64 = AtomicU64::new(0);
