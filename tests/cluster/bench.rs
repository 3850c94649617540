//! Gets between two hosts beside bare loops, in one run: `cluster --bench [ucx|margo] [latency|bandwidth|many|contact]`.
//!
//! A round is the bare loop and then ours. Ratios are medians of those of the rounds, with the smallest and the largest behind
//! them: what else the machine does concerns both sides of a round.

use crate::hosts::{Cluster, Worker, missing};
use crate::pair::{ENVIRONMENT, Fabric, MARGO, UCX};

/// Prints the tables, or one of them; the exit status.
pub(crate) fn main(fabric: Fabric, only: Option<&str>) -> i32 {
    if let Some(only) = only.filter(|only| !TABLES.contains(only)) {
        eprintln!("there is no table {only}; tables are {}", TABLES.join(", "));
        return 2;
    }
    if let Err(reason) = missing().and(fabric.missing()) {
        println!("ignored: {reason}");
        return 77;
    }
    // As Linux has it where nobody changed it: the machine's own may be meant for long ways, and pace what it sends.
    if std::env::var_os("HOSTS_CONGESTION").is_none() {
        // SAFETY: no other thread is there yet.
        unsafe { std::env::set_var("HOSTS_CONGESTION", "cubic") };
    }
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut server = one.worker();
    let address = format!("{}:{}", one.address, server.ask("serve"));
    let mut bare = two.worker();
    let environment = [ENVIRONMENT, &[("PROXYSTORE_TIMEOUT", "60s")]].concat();
    let start = |host: &crate::hosts::Host| host.start(&["--node", &fabric.direct()], &environment);
    let (mut owner, mut ours) = (start(&one), start(&two));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("medians of {ROUNDS} rounds, each the bare loops and then ours; a get crosses the network each time");
    let congestion = std::env::var("HOSTS_CONGESTION").unwrap_or_default();
    println!("congestion control {congestion}, load before: {}\n", load.trim());
    let mut run = Run { owner: &mut owner, ours: &mut ours, bare: &mut bare, socket: &address };
    if fabric == UCX {
        let contact = server.ask(&format!("ucp_own {}", LARGEST));
        let first = run.ucp(&contact);
        run.print(only, [Run::ucp_latencies, Run::ucp_bandwidths, Run::ucp_many]);
        if wants(only, "contact") {
            let mut fresh: Vec<f64> = Vec::new();
            let key = put(run.owner, 8);
            for _ in 0..ROUNDS {
                let mut worker = start(&two);
                fresh.push(number(&worker.ask(&format!("singles {key}"))) / 1e6);
            }
            println!("\nfirst get of a process {:.2} ms, bare endpoint and first byte {first:.2} ms", median(fresh));
            idle(&mut [("owner", &mut owner), ("requester", &mut ours)]);
        }
    } else if fabric == MARGO {
        let contact = server.ask(&format!("margo_own {LARGEST}"));
        run.bare.expect(&format!("margo_connect {contact} {LARGEST}"), "done");
        run.print(only, [|run| run.margo(&SMALL), |run| run.margo(&LARGE), Run::batch]);
        if wants(only, "contact") {
            idle(&mut [("owner", &mut owner), ("requester", &mut ours)]);
        }
    } else {
        run.print(only, [Run::latencies, Run::bandwidths, Run::batch]);
    }
    0
}

/// Who is measured.
struct Run<'a> {
    owner: &'a mut Worker,
    ours: &'a mut Worker,
    /// Runs the bare loops.
    bare: &'a mut Worker,
    /// The address of the bare socket.
    socket: &'a str,
}

impl Run<'_> {
    /// The tables in the order of [`TABLES`], or one of them.
    fn print(&mut self, only: Option<&str>, tables: [fn(&mut Self); 3]) {
        let wanted = TABLES.into_iter().zip(tables).filter(|(name, _)| wants(only, name));
        wanted.for_each(|(_, table)| table(self));
    }

    fn latencies(&mut self) {
        println!("{:>10}  {:>12}  {:>12}  {:>16}", "bytes", "bare us", "get us", "ratio");
        for len in SMALL {
            let key = put(self.owner, len);
            let (mut times, mut bares) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                bares.push(self.socket_latency(len, 2000));
                times.push(number(&self.ours.ask(&format!("latency {key} 2000"))) / 1e3);
            }
            let ratio = ratios(&times, &bares);
            println!("{len:>10}  {:>12.1}  {:>12.1}  {ratio:>16}", median(bares), median(times));
        }
    }

    fn bandwidths(&mut self) {
        println!(
            "\n{:>10}  {:>12}  {:>12}  {:>16}  {:>15}  {:>16}",
            "bytes", "get MB/s", "bare MB/s", "ratio", "4 bare streams", "ratio"
        );
        for len in LARGE {
            let key = put(self.owner, len);
            let (mut rates, mut bares, mut wides) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                bares.push(self.socket_bandwidth(len, 1));
                wides.push(self.socket_bandwidth(len, 4));
                rates.push(number(&self.ours.ask(&format!("bandwidth {key} {}", often(len)))) / 1e6);
            }
            let [one, four] = [ratios(&rates, &bares), ratios(&rates, &wides)];
            let (bare, wide, ours) = (median(bares), median(wides), median(rates));
            println!("{len:>10}  {ours:>12.0}  {bare:>12.0}  {one:>16}  {wide:>15.0}  {four:>16}");
            self.owner.expect(&format!("evict {key}"), "done");
        }
    }

    fn batch(&mut self) {
        let keys = puts(self.owner, 4096, 1000);
        let (mut singles, mut batches) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            singles.push(number(&self.ours.ask(&format!("singles {keys}"))) / 1e6);
            batches.push(number(&self.ours.ask(&format!("batch {keys}"))) / 1e6);
        }
        let (single, batch) = (median(singles), median(batches));
        println!(
            "\n1000 objects of 4096 bytes: {single:.2} ms one by one, {batch:.2} ms as a batch: {:.1} times",
            single / batch
        );
    }

    /// Below 64 KiB the times of a get and of an RPC with such an answer, from there on the bandwidths of a get and of
    /// a pull.
    fn margo(&mut self, sizes: &[usize]) {
        println!("{:>10}  {:>12}  {:>12}  {:>16}", "bytes", "bare us", "get us", "ratio");
        for &len in sizes {
            let key = put(self.owner, len);
            let count = if len < LARGE[0] { 2000 } else { often(len) };
            let (mut times, mut bares) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                bares.push(number(&self.bare.ask(&format!("margo_fetch {len} {count}"))) / 1e3);
                times.push(number(&self.ours.ask(&format!("latency {key} {count}"))) / 1e3);
            }
            let ratio = if len < 64 << 10 { ratios(&times, &bares) } else { ratios(&bares, &times) };
            println!("{len:>10}  {:>12.1}  {:>12.1}  {ratio:>16}", median(bares), median(times));
            self.owner.expect(&format!("evict {key}"), "done");
        }
    }

    /// Connects the bare UCP loop; milliseconds to the first byte.
    fn ucp(&mut self, contact: &str) -> f64 {
        let again = |bare: &mut Worker| number(&bare.ask(&format!("ucp_connect {contact} {LARGEST}"))) / 1e6;
        median((0..ROUNDS).map(|_| again(self.bare)).collect())
    }

    /// Microseconds of a fetch, and its way.
    fn fetch(&mut self, len: usize, window: usize, pieces: usize, progress: &str, count: usize) -> (f64, String) {
        let answer = self.bare.ask(&format!("ucp_fetch {len} {window} {pieces} {progress} {count}"));
        let (nanos, way) = answer.split_once(' ').unwrap_or_else(|| panic!("{answer}"));
        (number(nanos) / 1e3, way.to_owned())
    }

    /// Of the processor that both sides never leave, and of sides that sleep after 20 us.
    fn ucp_latencies(&mut self) {
        let heads = ["bytes", "busy us", "bare us", "way", "get us", "/ busy", "/ bare", "by a task", "socket us"];
        println!(
            "{:>10}  {:>9}  {:>9}  {:>10}  {:>9}  {:>16}  {:>16}  {:>9}  {:>9}",
            heads[0], heads[1], heads[2], heads[3], heads[4], heads[5], heads[6], heads[7], heads[8]
        );
        for len in SMALL {
            let key = put(self.owner, len);
            let (mut times, mut bares, mut busies, mut sockets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
            let mut tasks = Vec::new();
            let mut ways = String::new();
            for _ in 0..ROUNDS {
                busies.push(self.fetch(len, 1, 1, "busy", 2000).0);
                let (time, way) = self.fetch(len, 1, 1, "hybrid", 2000);
                bares.push(time);
                ways = way;
                sockets.push(self.socket_latency(len, 2000));
                times.push(number(&self.ours.ask(&format!("latency {key} 2000"))) / 1e3);
                tasks.push(number(&self.ours.ask(&format!("awaits {key} 2000"))) / 1e3);
            }
            let [beside_busy, beside_bare] = [ratios(&times, &busies), ratios(&times, &bares)];
            let (busy, bare, ours, socket) = (median(busies), median(bares), median(times), median(sockets));
            let task = median(tasks);
            println!(
                "{len:>10}  {busy:>9.1}  {bare:>9.1}  {ways:>10}  {ours:>9.1}  {beside_busy:>16}  {beside_bare:>16}  {task:>9.1}  {socket:>9.1}"
            );
        }
    }

    fn ucp_bandwidths(&mut self) {
        println!(
            "\n{:>10}  {:>10}  {:>10}  {:>10}  {:>16}  {:>11}  {:>16}",
            "bytes", "get MB/s", "bare MB/s", "way", "ratio", "socket MB/s", "ratio"
        );
        for len in LARGE {
            let key = put(self.owner, len);
            let (mut rates, mut bares, mut sockets) = (Vec::new(), Vec::new(), Vec::new());
            let mut ways = String::new();
            for _ in 0..ROUNDS {
                let (time, way) = self.fetch(len, 1, 1, "hybrid", often(len));
                bares.push(len as f64 / time);
                ways = way;
                // Medians all three, as the bare loop's is.
                sockets.push(len as f64 / self.socket_latency(len, often(len)));
                rates.push(len as f64 / (number(&self.ours.ask(&format!("latency {key} {}", often(len)))) / 1e3));
            }
            let [beside_bare, beside_socket] = [ratios(&rates, &bares), ratios(&rates, &sockets)];
            let (bare, socket, ours) = (median(bares), median(sockets), median(rates));
            println!(
                "{len:>10}  {ours:>10.0}  {bare:>10.0}  {ways:>10}  {beside_bare:>16}  {socket:>11.0}  {beside_socket:>16}"
            );
            self.owner.expect(&format!("evict {key}"), "done");
        }
    }

    /// Many at a time.
    fn ucp_many(&mut self) {
        let (keys, small) = (puts(self.owner, 65536, 64), puts(self.owner, 4096, 64));
        let (mut windows, mut bares, mut gathers, mut batches) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut alone, mut crowds) = (Vec::new(), Vec::new());
        // One kind after another: what was measured before leaves its traces in caches, and in which processor runs what.
        for _ in 0..ROUNDS {
            bares.push(self.fetch(65536, 64, 1, "hybrid", 8192).0);
            windows.push(number(&self.ours.ask(&format!("window 64 8192 {keys}"))) / 1e3);
        }
        for _ in 0..ROUNDS {
            gathers.push(self.fetch(64 * 4096, 1, 64, "hybrid", 500).0);
            batches.push(number(&self.ours.ask(&format!("batches 500 {small}"))) / 1e3);
        }
        for _ in 0..ROUNDS {
            alone.push(number(&self.ours.ask(&format!("crowd 1 4096 {keys}"))) / 1e3);
            crowds.push(number(&self.ours.ask(&format!("crowd 8 4096 {keys}"))) / 1e3);
        }
        let ratio = ratios(&bares, &windows);
        let (bare, ours) = (median(bares), median(windows));
        println!("\n64 gets of 64 KiB at a time: {ours:.1} us each, bare {bare:.1}: {ratio} of its bandwidth");
        let ratio = ratios(&batches, &gathers);
        let (bare, ours) = (median(gathers), median(batches));
        println!("a batch of 64 x 4 KiB: {ours:.1} us, bare gathered message {bare:.1}: {ratio}");
        let ratio = ratios(&alone, &crowds);
        let (one, eight) = (median(alone), median(crowds));
        println!("64 KiB by 1 thread {one:.1} us each, by 8 {eight:.1}: {ratio} of the bandwidth of one");
    }

    /// Microseconds.
    fn socket_latency(&mut self, len: usize, count: usize) -> f64 {
        number(&self.bare.ask(&format!("latency {} {len} {count}", self.socket))) / 1e3
    }

    fn socket_bandwidth(&mut self, len: usize, streams: usize) -> f64 {
        number(&self.bare.ask(&format!("bandwidth {} {len} {streams} {}", self.socket, often(len)))) / 1e6
    }
}

fn wants(only: Option<&str>, table: &str) -> bool {
    only.is_none_or(|only| only == table)
}

/// What processes use that are connected and have nothing to do.
fn idle(workers: &mut [(&str, &mut Worker)]) {
    let before: Vec<f64> = workers.iter_mut().map(|(_, worker)| number(&worker.ask("ticks"))).collect();
    std::thread::sleep(std::time::Duration::from_secs(5));
    for ((name, worker), before) in workers.iter_mut().zip(before) {
        println!("{name}, idle for 5 s: {:.0} ms of processor time", (number(&worker.ask("ticks")) - before) * 10.0);
    }
}

fn often(len: usize) -> usize {
    ((1 << 30) / len).clamp(4, 256)
}

fn puts(owner: &mut Worker, len: usize, count: usize) -> String {
    let answer = owner.ask(&format!("puts 1 {len} {count}"));
    answer.strip_prefix("keys ").expect("keys").to_owned()
}

fn put(owner: &mut Worker, len: usize) -> String {
    let answer = owner.ask(&format!("put 1 {len}"));
    answer.strip_prefix("key ").unwrap_or_else(|| panic!("put: {answer}")).to_owned()
}

fn number(answer: &str) -> f64 {
    answer.parse().unwrap_or_else(|_| panic!("{answer}"))
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The median of what one figure of each round is beside the other, and the extremes.
fn ratios(of: &[f64], beside: &[f64]) -> String {
    let mut all: Vec<f64> = of.iter().zip(beside).map(|(of, beside)| of / beside).collect();
    all.sort_by(f64::total_cmp);
    let (least, most) = (all[0], all[all.len() - 1]);
    format!("{:.2} ({least:.2}-{most:.2})", median(all))
}

const TABLES: [&str; 4] = ["latency", "bandwidth", "many", "contact"];

const ROUNDS: usize = 9;
const SMALL: [usize; 4] = [8, 1024, 4096, 65536];
const LARGE: [usize; 5] = [1 << 20, 4 << 20, 16 << 20, 64 << 20, LARGEST];
const LARGEST: usize = 256 << 20;
