//! The fabric beside bare sockets that do the same, in turn; medians.
//!
//! `cargo test --release --all-features --lib -- --ignored --nocapture fabric::tcp::tests::measure`

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;

use super::*;

/// Lands in memory that went round before.
struct Again {
    memory: Option<RegionMut>,
    whole: mpsc::Sender<Parts>,
}

impl Land for Again {
    fn land(&mut self, _: &[u8], parts: &[u64]) -> Result<Vec<Landing>> {
        let memory = self.memory.take().expect("it is asked once");
        let (whole, landings) = Parts::of(memory, &parts.iter().map(|len| *len as usize).collect::<Vec<_>>())?;
        let _ = self.whole.send(whole);
        Ok(landings)
    }
}

fn get(peer: &Arc<dyn Peer>, len: usize, lane: usize, memory: RegionMut) -> Pending<RegionMut> {
    let (sender, receiver) = mpsc::channel();
    let head = format!("send {len}").into_bytes();
    let call = Call { head: head.into(), land: Box::new(Again { memory: Some(memory), whole: sender }).into(), lane };
    Arc::clone(peer)
        .request(call)
        .and_then(move |answer| Ok(receiver.try_recv().expect("it landed").join(answer.parts)?.emptied()))
}

/// An owner without a fabric: reads eight bytes with a length, writes so many.
fn bare(content: Bytes) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_nodelay(true).unwrap();
        let mut len = [0; 8];
        while stream.read_exact(&mut len).is_ok() {
            stream.write_all(&content[..u64::from_le_bytes(len) as usize]).unwrap();
        }
    });
    stream.set_nodelay(true).unwrap();
    stream
}

fn bare_get(stream: &mut TcpStream, len: usize, memory: &mut [u8]) {
    stream.write_all(&(len as u64).to_le_bytes()).unwrap();
    stream.read_exact(&mut memory[..len]).unwrap();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "a measurement of some seconds, for a machine that does nothing else"]
fn beside_bare_sockets() {
    let site = Site::new(Options { lanes: 2, silence: Duration::from_secs(10), ..options() });
    let peer = site.peer();
    let content = pattern(256 << 20);
    *lock(&site.echo.content) = content.clone();
    let mut stream = bare(content);
    println!("{:>12} {:>12} {:>12} {:>8} {:>12} {:>8}", "bytes", "bare us", "tcp us", "ratio", "2 lanes us", "ratio");
    for (len, rounds) in [(8, 20_000), (4096, 20_000), (65_536, 4000), (1 << 20, 400), (16 << 20, 40), (256 << 20, 7)] {
        let mut memory = RegionMut::heap(len).unwrap();
        memory.initialize();
        memory = memory.emptied();
        let mut bare_memory = vec![1; len];
        let mut halves = [RegionMut::heap(len / 2).unwrap(), RegionMut::heap(len / 2).unwrap()];
        let (mut ours, mut theirs, mut wide) = (Vec::new(), Vec::new(), Vec::new());
        let warm = rounds / 10 + 3;
        for turn in 0..3 * (rounds + warm) {
            // In turn, and each as often after each other, since what one leaves in the caches helps the next.
            let (round, which) = (turn / 3, (turn + turn / 3 % 2 * (turn % 3)) % 3);
            let begun = Instant::now();
            match which {
                0 => memory = get(&peer, len, 0, memory).wait().unwrap(),
                1 => bare_get(&mut stream, len, &mut bare_memory),
                _ => {
                    let [first, second] = halves;
                    let (first, second) = (get(&peer, len / 2, 0, first), get(&peer, len / 2, 1, second));
                    halves = std::thread::scope(|scope| {
                        if len < 1 << 20 {
                            return [first.wait().unwrap(), second.wait().unwrap()];
                        }
                        let second = scope.spawn(|| second.wait().unwrap());
                        [first.wait().unwrap(), second.join().unwrap()]
                    });
                }
            }
            let took = begun.elapsed();
            if round >= warm {
                [&mut ours, &mut theirs, &mut wide][which].push(took);
            }
        }
        let (ours, theirs, wide) = (median(ours), median(theirs), median(wide));
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!(
            "{len:>12} {:>12.1} {:>12.1} {:>8.2} {:>12.1} {:>8.2}",
            micros(theirs),
            micros(ours),
            micros(ours) / micros(theirs),
            micros(wide),
            micros(wide) / micros(theirs)
        );
    }
}
