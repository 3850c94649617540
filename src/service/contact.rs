//! Where other nodes are answered for a memory: three words of its control segment.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::shm::layout::word;
use crate::shm::mem::Mem;
use crate::shm::table::Table;

/// Where other nodes are, or were last, answered for this memory; `None` where they never were.
///
/// # Cost
/// Three loads. While the address changes, which it does with the node's network only, it may be half the old one.
pub(crate) fn read<M: Mem>(table: &Table<M>) -> Option<SocketAddr> {
    let [word, low, high] = words(table);
    let ip = u128::from(low) | u128::from(high) << 64;
    (word & IS_THERE != 0).then(|| SocketAddr::new(Ipv6Addr::from(ip.to_le_bytes()).to_canonical(), word as u16))
}

/// The three words: the same as long as the address is.
///
/// # Cost
/// Three loads.
#[inline]
pub(crate) fn words<M: Mem>(table: &Table<M>) -> [u64; 3] {
    // SYNC POINT: `write`
    let word = table.header(word::CONTACT).load(Acquire);
    [word, table.header(word::CONTACT + 1).load(Relaxed), table.header(word::CONTACT + 2).load(Relaxed)]
}

/// Says so to all who have the memory mapped.
pub(crate) fn write<M: Mem>(table: &Table<M>, contact: SocketAddr) {
    let ip = match contact.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let ip = u128::from_le_bytes(ip.octets());
    table.header(word::CONTACT + 1).store(ip as u64, Relaxed);
    table.header(word::CONTACT + 2).store((ip >> 64) as u64, Relaxed);
    // SYNC POINT: `read`
    table.header(word::CONTACT).store(u64::from(contact.port()) | IS_THERE, Release);
}

/// Set in the word of a contact.
const IS_THERE: u64 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::layout::Layout;
    use crate::shm::mem::Heap;

    #[test]
    fn what_is_written_is_read() {
        let layout = Layout { pages: 1, cells: 1, slots: 1, sets: 1, ..Layout::SHARED };
        let table = Table::new(Heap::some(layout.words(), |at| at < word::CONTACT + 3), layout);
        assert_eq!(read(&table), None);
        for text in ["10.77.0.1:18600", "127.0.0.1:1", "255.255.255.255:65535", "[fe80::1]:10000", "[::1]:9"] {
            let contact: SocketAddr = text.parse().unwrap();
            write(&table, contact);
            assert_eq!(read(&table), Some(contact));
        }
    }
}
