//! What runs on a host: orders on standard input, an answer each.

use std::io::Write;
use std::net::{TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::bare;

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

fn obey(words: &[&str]) -> std::io::Result<String> {
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
        _ => panic!("no such order: {words:?}"),
    })
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
