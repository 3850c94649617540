//! The hosts do what the other tests believe of them.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Trial;

use crate::hosts::{Cluster, Host, PATIENCE, Worker, missing, missing_for, program, script};
use crate::{bare, needs, row};

pub(crate) fn trials() -> Vec<Trial> {
    let hosts = missing();
    vec![
        needs(&hosts, "hosts_are_apart", 20, hosts_are_apart),
        needs(&hosts, "hosts_cut_and_healed", 20, hosts_cut_and_healed),
        needs(&hosts, "hosts_parted_and_joined", 20, hosts_parted_and_joined),
        needs(&hosts, "hosts_blocked_one_way", 20, hosts_blocked_one_way),
        needs(&hosts, "hosts_lose_packets", 20, hosts_lose_packets),
        needs(&hosts, "hosts_are_limited", 40, hosts_are_limited),
        needs(&hosts, "hosts_are_delayed", 20, hosts_are_delayed),
        needs(&hosts, "hosts_crash_and_boot", 20, hosts_crash_and_boot),
        needs(&hosts, "hosts_killed_alone", 20, hosts_killed_alone),
        needs(&hosts, "hosts_freeze_and_thaw", 20, hosts_freeze_and_thaw),
        needs(&hosts, "hosts_count_bytes", 20, hosts_count_bytes),
        needs(&hosts, "workers_end_with_their_handles", 20, workers_end_with_their_handles),
        needs(&hosts, "clusters_do_not_meet", 20, clusters_do_not_meet),
        needs(&hosts, "clusters_leave_nothing", 40, clusters_leave_nothing),
        needs(&missing_for(as_nobody()), "clusters_of_other_users", 20, clusters_of_other_users),
        row("the_probe_gives_reasons", 5, the_probe_gives_reasons),
    ]
}

fn hosts_are_apart() {
    let cluster = Cluster::new(3);
    let hosts = cluster.hosts::<3>();
    let mut seen = BTreeSet::from([std::fs::read_to_string(BOOT_ID).unwrap().trim().to_owned()]);
    for host in &hosts {
        assert_eq!(host.print(&["hostname"]), host.name);
        assert!(seen.insert(host.boot_id()), "boot ids are not their own");
        for directory in ["/tmp", "/run", "/dev/shm"] {
            let path = format!("{directory}/{}-{}", cluster.name(), host.name);
            host.print(&["touch", &path]);
            for other in hosts.iter().filter(|other| other.name != host.name) {
                assert!(!other.run(&["test", "-e", &path]).status.success(), "{path} on {}", other.name);
            }
            assert!(!Path::new(&path).exists(), "{path} on the machine");
        }
        assert!(process_count(host) <= IDLE);
        assert_eq!(host.print(&["sh", "-c", "cd /sys/class/net && echo *"]), "eth0 lo");
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        assert_eq!(ping(&hosts[from], &Echo::on(&hosts[to]), 5), 5);
    }
    assert_eq!(hosts[0].run(&["sh", "-c", "exit 3"]).status.code(), Some(3));
    let missing = hosts[0].run(&["/no/such/program"]);
    assert_eq!(missing.status.code(), Some(127));
}

fn hosts_cut_and_healed() {
    let cluster = Cluster::new(3);
    let [one, two, three] = cluster.hosts();
    let there = Echo::on(&two);
    let mut worker = one.worker();
    worker.expect(&there.order(5), "5");
    two.cut();
    worker.expect(&there.order(5), "0");
    assert_eq!(ping(&one, &Echo::on(&three), 5), 5);
    two.heal();
    worker.expect(&there.order(5), "5");
}

fn hosts_parted_and_joined() {
    let cluster = Cluster::new(3);
    let [one, two, three] = cluster.hosts();
    let peers = [Echo::on(&one), Echo::on(&two), Echo::on(&three)];
    one.part(&two);
    assert_eq!([ping(&one, &peers[1], 5), ping(&two, &peers[0], 5)], [0, 0]);
    assert_eq!([ping(&one, &peers[2], 5), ping(&three, &peers[1], 5)], [5, 5]);
    // It outlives a restart.
    two.crash();
    two.boot();
    let again = Echo::on(&two);
    assert_eq!([ping(&one, &again, 3), ping(&two, &peers[0], 3)], [0, 0]);
    one.join(&two);
    assert_eq!([ping(&one, &again, 5), ping(&two, &peers[0], 5)], [5, 5]);
}

fn hosts_blocked_one_way() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let (mut here, mut there) = (Echo::on(&one), Echo::on(&two));
    one.block(&two);
    assert_eq!([ping(&one, &there, 5), ping(&two, &here, 5)], [0, 0]);
    assert_eq!([here.heard(), there.heard()], [5, 0]);
    one.unblock(&two);
    assert_eq!([ping(&one, &there, 5), ping(&two, &here, 5)], [5, 5]);
    // For long: no neighbour is asked for and not found, which would be an error, not silence.
    one.block(&two);
    let mut worker = one.worker();
    worker.expect(&there.order(14), "0");
    assert_eq!(there.heard(), 5);
}

fn hosts_lose_packets() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let there = Echo::on(&two);
    two.shape(&["loss=10%"]);
    // 19 % of the echoes are lost, there or back; four standard deviations.
    let back = ping(&one, &there, 100);
    assert!((65..=97).contains(&back), "{back} of 100 came back with 10 % of losses each way");
    two.unshape();
    assert_eq!(ping(&one, &there, 100), 100);
}

fn hosts_are_limited() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let (_server, address) = server(&two);
    let mut worker = one.worker();
    // By the token bucket, and by the wire; the burst that either lets through is an eighth of it.
    for shape in [&["rate=10mbit"][..], &["rate=10mbit", "delay=100us"]] {
        two.shape(shape);
        let rate: f64 = worker.ask(&format!("bandwidth {address} {} 1 1", 2 << 20)).parse().unwrap();
        assert!((0.2e6..1.5e6).contains(&rate), "{rate} bytes a second with {shape:?}");
    }
    two.unshape();
    let rate: f64 = worker.ask(&format!("bandwidth {address} {} 1 3", 2 << 20)).parse().unwrap();
    assert!(rate > 3e6, "{rate} bytes a second without a limit");
}

fn hosts_are_delayed() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let (_server, address) = server(&two);
    let mut worker = one.worker();
    two.shape(&["delay=5ms", "jitter=1ms"]);
    let nanos: u64 = worker.ask(&format!("latency {address} 8 20")).parse().unwrap();
    assert!((10_000_000..200_000_000).contains(&nanos), "{nanos} ns there and back with 5 ms each way");
}

fn hosts_crash_and_boot() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let (there, before) = (Echo::on(&two), two.boot_id());
    let (mut victim, address) = server(&two);
    let mut worker = one.worker();
    worker.ask(&format!("latency {address} 8 1")).parse::<u64>().unwrap();
    two.print(&["touch", "/dev/shm/lost", "/tmp/lost", "/run/lost"]);
    two.crash();
    victim.dies();
    assert_eq!(ping(&one, &there, 3), 0);
    assert!(!two.run(&["true"]).status.success(), "a host that is off runs something");
    two.boot();
    assert_ne!(two.boot_id(), before);
    assert_eq!(two.print(&["hostname"]), two.name);
    assert_eq!(two.print(&["sh", "-c", "ls -d /dev/shm/* /tmp/lost /run/lost 2>/dev/null || :"]), "");
    assert_eq!(ping(&one, &Echo::on(&two), 5), 5);
}

fn hosts_killed_alone() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let mut own = Command::new("sleep").arg("60").spawn().unwrap();
    let (mut here, mut victims) = (one.worker(), [two.worker(), two.worker()]);
    let inside: usize = two
        .print(&["sh", "-c", "sleep 60 >/dev/null 2>&1 & sleep 60 >/dev/null 2>&1 & set -- /proc/[0-9]*; echo $#"])
        .parse()
        .unwrap();
    assert!(inside >= 6, "{inside}");
    two.kill();
    for victim in &mut victims {
        victim.dies();
    }
    assert!(own.try_wait().unwrap().is_none(), "a process of the machine was killed");
    assert_ne!(here.ask("pid"), "");
    assert!(Path::new(&format!("/proc/{}", std::os::unix::process::parent_id())).exists());
    // The host itself is as good as before.
    assert!(process_count(&two) <= IDLE);
    assert_eq!(ping(&two, &Echo::on(&one), 3), 3);
    own.kill().unwrap();
    own.wait().unwrap();
}

fn hosts_freeze_and_thaw() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let there = Echo::on(&two);
    let mut worker = two.worker();
    two.freeze();
    worker.tell("pid");
    assert_eq!(worker.reply_within(Duration::from_millis(300)), None, "a frozen host answers");
    assert_eq!(ping(&one, &there, 3), 0);
    two.thaw();
    assert_ne!(worker.reply(), "");
    assert_eq!(ping(&one, &there, 3), 3);
}

fn hosts_count_bytes() {
    let cluster = Cluster::new(2);
    let [one, two] = cluster.hosts();
    let (_server, address) = server(&two);
    let mut worker = one.worker();
    let before = [one.traffic(), two.traffic()];
    assert_eq!(before[0].received, one.traffic().received, "an idle host receives");
    let count = 4;
    worker.ask(&format!("bandwidth {address} {} 4 {}", 16 << 20, count - 1)).parse::<u64>().unwrap();
    let after = [one.traffic(), two.traffic()];
    let expected = f64::from(count * (16 << 20));
    for moved in [after[0].received - before[0].received, after[1].sent - before[1].sent] {
        let ratio = moved as f64 / expected;
        assert!((1.0..1.05).contains(&ratio), "{moved} bytes on the wire for {expected}");
    }
    let nanos: u64 = worker.ask(&format!("latency {address} {} 50", bare::REQUEST)).parse().unwrap();
    assert!((1_000..1_000_000_000).contains(&nanos), "{nanos} ns");
}

fn workers_end_with_their_handles() {
    let cluster = Cluster::new(1);
    let [one] = cluster.hosts();
    let mut workers: Vec<Worker> = (0..3).map(|_| one.worker()).collect();
    let number = workers[0].id().to_owned();
    workers[0].kill();
    // A moment until its init has reaped it.
    one.print(&[
        "sh",
        "-c",
        &format!("for i in $(seq 100); do [ -e /proc/{number} ] || exit 0; sleep 0.1; done; exit 1"),
    ]);
    workers[1].end();
    drop(workers);
    let begun = Instant::now();
    while process_count(&one) > IDLE {
        assert!(begun.elapsed() < PATIENCE, "processes are left");
    }
}

fn clusters_do_not_meet() {
    let clusters = [Cluster::new(2), Cluster::new(2)];
    let [one, two] = clusters[0].hosts();
    let [stranger, _] = clusters[1].hosts();
    let mut there = Echo::on(&two);
    assert_eq!([ping(&one, &there, 5), ping(&stranger, &there, 5)], [5, 0]);
    assert_eq!(there.heard(), 5);
    stranger.crash();
    assert_eq!(ping(&one, &there, 5), 5);
}

/// Dropped, its maker killed, its holder killed: no process, no namespace, no file, no mount is left.
fn clusters_leave_nothing() {
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let cluster = Cluster::new(2);
    let busy = busy(&cluster);
    let name = cluster.name().to_owned();
    let spaces = namespaces(&name);
    assert!(spaces.len() >= 3, "{spaces:?}");
    drop(cluster);
    assert_gone(&name, &spaces);
    drop(busy);

    for victim in ["maker", "holder"] {
        let mut maker = Command::new(program()).arg("--maker").stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(maker.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let (name, holder) = said.trim().split_once(' ').unwrap();
        let spaces = namespaces(name);
        assert!(spaces.len() >= 3, "{spaces:?}");
        match victim {
            "maker" => maker.kill().unwrap(),
            // SAFETY: a system call without memory; the holder is a child of our child, which has not waited for it.
            _ => assert_eq!(unsafe { libc::kill(holder.parse().unwrap(), libc::SIGKILL) }, 0),
        }
        assert_gone(name, &spaces);
        let _ = maker.kill();
        maker.wait().unwrap();
    }
    assert_eq!(mounts(), before);
}

/// Makes hosts, says which, and waits for a death: its own, or that of what holds them.
pub(crate) fn maker() -> i32 {
    let cluster = Cluster::new(2);
    let _busy = busy(&cluster);
    crate::worker::say(&format!("{} {}", cluster.name(), cluster.holder()));
    std::thread::sleep(PATIENCE);
    0
}

fn clusters_of_other_users() {
    let cluster = Cluster::made_by(as_nobody(), 2);
    let name = cluster.name().to_owned();
    // The user's own processes find it; nobody else's do, root's aside.
    let inside = |words: &[&str]| as_nobody().env("HOSTS_NAME", &name).args(words).output().unwrap();
    let said = |words: &[&str]| String::from_utf8_lossy(&inside(words).stdout).trim().to_owned();
    assert_eq!(said(&["exec", "n1", "id", "-u"]), "0");
    assert_eq!(said(&["exec", "n1", "hostname"]), "n1");
    let own = std::fs::read_to_string(BOOT_ID).unwrap();
    let boots = [said(&["exec", "n1", "cat", BOOT_ID]), said(&["exec", "n2", "cat", BOOT_ID]), own.trim().to_owned()];
    assert_eq!(boots.iter().collect::<BTreeSet<_>>().len(), 3, "{boots:?}");
    for words in
        [&["shape", "n1", "delay=1ms"][..], &["block", "n1", "n2"], &["kill", "n1"], &["crash", "n2"], &["boot", "n2"]]
    {
        let output = inside(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    drop(cluster);
    assert_eq!(processes(&name), Vec::<u32>::new());
}

fn the_probe_gives_reasons() {
    let mut poor = Command::new("bash");
    poor.arg(script()).env("PATH", "/nonexistent");
    let reason = missing_for(poor).unwrap_err();
    assert!(reason.contains("needs"), "{reason}");
}

/// A worker that sends datagrams back.
struct Echo {
    worker: Worker,
    address: String,
}

impl Echo {
    fn on(host: &Host) -> Self {
        let mut worker = host.worker();
        let port = worker.ask("echo");
        Self { worker, address: format!("{}:{port}", host.address) }
    }

    /// How many it received.
    fn heard(&mut self) -> u32 {
        self.worker.ask("heard").parse().unwrap()
    }

    /// The order that pings it.
    fn order(&self, count: u32) -> String {
        format!("ping {} {count}", self.address)
    }
}

/// How many of `count` come back.
#[track_caller]
fn ping(from: &Host, to: &Echo, count: u32) -> u32 {
    from.worker().ask(&to.order(count)).parse().unwrap()
}

/// A bare server there and its address.
fn server(host: &Host) -> (Worker, String) {
    let mut worker = host.worker();
    let address = format!("{}:{}", host.address, worker.ask("serve"));
    (worker, address)
}

fn process_count(host: &Host) -> usize {
    host.print(&["sh", "-c", "set -- /proc/[0-9]*; echo $#"]).parse().unwrap()
}

/// Everything that a cluster can have running.
fn busy(cluster: &Cluster) -> Vec<Worker> {
    let hosts: [Host; 2] = cluster.hosts();
    hosts[0].shape(&["delay=1ms"]);
    hosts[1].print(&["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & touch /tmp/here /run/here /dev/shm/here"]);
    hosts.iter().map(Host::worker).collect()
}

/// The processes of a cluster: its name is in the environment of all of them.
fn processes(cluster: &str) -> Vec<u32> {
    let wanted = format!("HOSTS_NAME={cluster}");
    numbers()
        .filter(|number| {
            let environment = std::fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
        })
        .collect()
}

/// The network namespaces of a cluster: its switch's and its hosts'.
fn namespaces(cluster: &str) -> BTreeSet<String> {
    let own = namespace_of(std::process::id());
    processes(cluster).into_iter().filter_map(namespace_of).filter(|space| Some(space) != own.as_ref()).collect()
}

fn namespace_of(process: u32) -> Option<String> {
    Some(std::fs::read_link(format!("/proc/{process}/ns/net")).ok()?.to_string_lossy().into_owned())
}

fn numbers() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Soon.
#[track_caller]
fn assert_gone(cluster: &str, spaces: &BTreeSet<String>) {
    let begun = Instant::now();
    loop {
        let left = processes(cluster);
        let held: Vec<_> =
            numbers().filter(|number| namespace_of(*number).is_some_and(|space| spaces.contains(&space))).collect();
        if left.is_empty() && held.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE / 2, "left of {cluster}: {left:?} {held:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    for directory in ["/tmp", "/var/tmp", "/run", "/dev/shm"] {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let name = entry.file_name();
            assert!(
                !name.to_string_lossy().contains(cluster) && name != "here" && name != "hosts",
                "{directory}/{name:?}"
            );
        }
    }
}

/// The script, run by the user nobody.
fn as_nobody() -> Command {
    let mut command = Command::new(script());
    // SAFETY: a system call without arguments.
    if unsafe { libc::geteuid() } == 0 {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// Processes of a host that does nothing: its init, what that waits for, and what counts.
const IDLE: usize = 3;
const NOBODY: u32 = 65534;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
