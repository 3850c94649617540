//! Models of processes that end at the same time.

use super::*;
use crate::shm::layout::client;
use crate::shm::table::Others;

/// Entries of the table, each with a tag and a process number.
fn clients(count: u32) -> Table<Heap> {
    let layout = Layout { clients: count, ..LAYOUT };
    let entries = layout.client(0)..layout.client(count);
    let table = Table::new(Heap::some(layout.words(), |index| entries.contains(&index)), layout);
    for index in 0..count {
        table.client(index, client::TAG).store(u64::from(index) + 1, Relaxed);
        table.client(index, client::PID).store(u64::from(process(index)), Relaxed);
    }
    table
}

fn process(index: u32) -> u32 {
    100 + index
}

/// What a host does that has waited long enough: whether it goes although others are there.
fn host_goes(table: &Table<Heap>, own: u32) -> bool {
    table.say_leaving(own, true);
    let goes = table.others(own) == Others::Stay;
    if !goes {
        // It waits for them.
        table.say_leaving(own, false);
    }
    goes
}

/// Whether a client goes and leaves everything to the host.
fn client_goes(table: &Table<Heap>, own: u32, host: u32) -> bool {
    table.say_leaving(own, true);
    !table.leaves(own, process(host))
}

#[test]
fn loom_one_of_two_who_leave_sees_the_other() {
    model(|seen| {
        let table = Arc::new(clients(2));
        let other = Arc::clone(&table);
        let client = thread::spawn(move || client_goes(&other, 1, 0));
        let host = host_goes(&table, 0);
        match (host, client.join().unwrap()) {
            (true, true) => panic!("nobody is left to end the service"),
            (true, false) => seen.note("the client succeeds the host"),
            (false, true) => seen.note("the host waits for the client"),
            (false, false) => seen.note("both saw the other"),
        }
    })
    .all(&["both saw the other", "the client succeeds the host", "the host waits for the client"]);
}

#[test]
fn loom_a_client_that_stays_is_there_for_the_service() {
    model(|_| {
        let table = Arc::new(clients(3));
        let other = Arc::clone(&table);
        // The third one does not leave.
        let client = thread::spawn(move || client_goes(&other, 1, 0));
        assert!(host_goes(&table, 0), "one stays, so the host may go");
        client.join().unwrap();
    });
}
