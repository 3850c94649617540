//! A bare loop of requests and replies over TCP sockets, the reference for what crosses hosts: no framing beyond a length,
//! no authentication, no copy in user space, buffers that are warm.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Bytes of a request: about what asks for an object. The first eight are the length of the reply, little-endian.
pub(crate) const REQUEST: usize = 64;

/// For how long what is measured runs before that: a connection that was idle begins slowly, with caches that others used.
pub(crate) const WARM: Duration = Duration::from_millis(150);

/// Serves until the process ends; the address.
pub(crate) fn serve() -> String {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    port.to_string()
}

fn answer(mut stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let (mut request, mut bytes) = ([0; REQUEST], Vec::new());
    loop {
        stream.read_exact(&mut request).ok()?;
        let len = u64::from_le_bytes(request[..8].try_into().ok()?) as usize;
        if bytes.len() < len {
            bytes = vec![7; len];
        }
        stream.write_all(&bytes[..len]).ok()?;
    }
}

/// Median time of a request and its reply of `len` bytes, of `count`.
pub(crate) fn latency(server: &str, len: usize, count: usize) -> std::io::Result<Duration> {
    let mut stream = connect(server)?;
    let mut bytes = vec![1; len];
    Ok(median(times(count, || fetch(&mut stream, &mut bytes))?))
}

/// Runs that for [`WARM`], and then `count` times more; how long each took.
pub(crate) fn times<E>(count: usize, mut run: impl FnMut() -> Result<(), E>) -> Result<Vec<Duration>, E> {
    let begun = Instant::now();
    while begun.elapsed() < WARM {
        run()?;
    }
    let timed = || {
        let begun = Instant::now();
        run().map(|()| begun.elapsed())
    };
    std::iter::repeat_with(timed).take(count).collect()
}

pub(crate) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Bytes a second of the best of `count` transfers of `len` bytes, each spread over so many streams.
pub(crate) fn bandwidth(server: &str, len: usize, streams: usize, count: usize) -> std::io::Result<f64> {
    let mut connections = (0..streams).map(|_| connect(server)).collect::<std::io::Result<Vec<_>>>()?;
    let mut bytes = vec![1; len];
    let mut best = Duration::MAX;
    // The first fills the server's pages.
    for number in 0..=count {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let parts = bytes.chunks_mut(len.div_ceil(streams)).zip(&mut connections);
            let threads: Vec<_> = parts.map(|(part, stream)| scope.spawn(move || fetch(stream, part))).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
        })?;
        if number > 0 {
            best = best.min(begun.elapsed());
        }
    }
    Ok(len as f64 / best.as_secs_f64())
}

fn connect(server: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(server)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn fetch(stream: &mut TcpStream, bytes: &mut [u8]) -> std::io::Result<()> {
    let mut request = [0; REQUEST];
    request[..8].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    stream.write_all(&request)?;
    stream.read_exact(bytes)
}
