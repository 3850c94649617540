//! `Layout`: what lies where in the control segment.

/// Where the parts of the control segment begin, in words of 8 bytes.
///
/// ```text
/// header            64 words    magic, version, instance, counts; see `word`
/// wait buckets      64 x 8      futex words of deferred keys, a cache line each
/// segments        1024 x 2      length in bytes, kind of pages
/// clients         4096 x 4      tag, process id, unused
/// page owners    32768 x 1      tag of the client that a page of pin cells belongs to, 0 when free
/// replicas        8192 x 8      which slots hold objects of other nodes, a cache line for each hash; see `table/replica.rs`
/// pin cells      32768 x 512    slot + 1 of an object in use, 0 when free
/// slots          2^24  x 8      see `slot`
/// ```
///
/// The segment is sparse: what is not in use yet is not reserved either, and nobody touches it before the counts in the
/// header say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    pub(crate) segments: u32,
    pub(crate) clients: u32,
    pub(crate) pages: u32,
    /// Pin cells in a page.
    pub(crate) cells: u32,
    /// Lines of the index of replicas, a power of two.
    pub(crate) sets: u32,
    /// Entries in such a line.
    pub(crate) ways: u32,
    pub(crate) slots: u32,
}

impl Layout {
    /// The one that processes share. A change is a change of [`VERSION`](Self::VERSION).
    pub(crate) const SHARED: Self =
        Self { segments: 1024, clients: 4096, pages: 32768, cells: 512, sets: 8192, ways: 8, slots: (1 << 24) - 1 };

    /// Version of layout and protocol: processes of different ones refuse each other.
    pub(crate) const VERSION: u64 = 3;

    #[inline]
    pub(crate) const fn bucket(&self, bucket: usize) -> usize {
        HEADER + bucket * LINE
    }

    #[inline]
    pub(crate) const fn segment(&self, segment: u16) -> usize {
        HEADER + BUCKETS * LINE + segment as usize * SEGMENT
    }

    #[inline]
    pub(crate) const fn client(&self, client: u32) -> usize {
        HEADER + BUCKETS * LINE + self.segments as usize * SEGMENT + client as usize * CLIENT
    }

    #[inline]
    pub(crate) const fn owner(&self, page: u32) -> usize {
        self.client(self.clients) + page as usize
    }

    /// The line of the index of replicas for a hash.
    pub(crate) const fn set(&self, digest: u64) -> u32 {
        digest as u32 & (self.sets - 1)
    }

    /// An entry of the index of replicas.
    #[inline]
    pub(crate) const fn entry(&self, set: u32, way: u32) -> usize {
        self.owner(self.pages) + (set * self.ways + way) as usize
    }

    #[inline]
    pub(crate) const fn cell(&self, cell: u32) -> usize {
        self.page_start() + cell as usize
    }

    #[inline]
    pub(crate) const fn slot(&self, slot: u32) -> usize {
        self.slot_start() + slot as usize * SLOT
    }

    /// Number of words in all.
    #[inline]
    pub(crate) const fn words(&self) -> usize {
        self.slot(self.slots)
    }

    /// Byte range of the tables that are reserved from the start.
    #[inline]
    pub(crate) const fn tables(&self) -> (usize, usize) {
        (0, self.page_start() * 8)
    }

    /// Byte range of pages of pin cells.
    #[inline]
    pub(crate) const fn page_bytes(&self, from: u32, to: u32) -> (usize, usize) {
        (self.cell(from * self.cells) * 8, (to - from) as usize * self.cells as usize * 8)
    }

    /// Byte range of slots.
    #[inline]
    pub(crate) const fn slot_bytes(&self, from: u32, to: u32) -> (usize, usize) {
        (self.slot(from) * 8, (to - from) as usize * SLOT * 8)
    }

    #[inline]
    const fn page_start(&self) -> usize {
        self.entry(self.sets, 0).next_multiple_of(ALIGN)
    }

    #[inline]
    const fn slot_start(&self) -> usize {
        (self.page_start() + self.pages as usize * self.cells as usize).next_multiple_of(ALIGN)
    }
}

/// Words of the header.
pub(crate) mod word {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const VERSION: usize = 1;
    /// Random; part of every key.
    pub(crate) const INSTANCE: usize = 2;
    /// Slots that are reserved, hence may be touched.
    pub(crate) const SLOTS: usize = 3;
    /// Pages of pin cells that are reserved.
    pub(crate) const PAGES: usize = 4;
    /// What the service wants clients to do; see `policy`.
    pub(crate) const POLICY: usize = 5;
    /// Not zero when a supervisor restarts the service, so that clients leave it some time.
    pub(crate) const SUPERVISED: usize = 6;
    /// Set once by whoever puts an object that expires.
    pub(crate) const EXPIRES: usize = 7;
    /// Counts up while the service lives, about once a second; on a line of its own.
    pub(crate) const EPOCH: usize = 8;
    /// Random; generations begin at what it makes of the slot's number.
    pub(crate) const SEED: usize = 16;
    /// Not zero once pages of free memory were given back to the system.
    pub(crate) const COOLED: usize = 19;
    /// Most bytes of data segments.
    pub(crate) const BUDGET: usize = 18;
    /// Where other nodes are answered: port (low 16 bits) and the family of the address, 0 while they are not; then the 16 bytes
    /// of the address, an older one mapped into the newer.
    #[cfg(feature = "tcp")]
    pub(crate) const CONTACT: usize = 24;
    /// How often the service was rebuilt from the table.
    pub(crate) const REBUILDS: usize = 17;
    /// Set once by whoever first lands an object of another node.
    pub(crate) const REPLICAS: usize = 20;
    /// Set once by whoever registers memory with a library that may pin its pages for an adapter.
    pub(crate) const REGISTERED: usize = 22;
    /// Most bytes of such objects; 0 when nobody shares them.
    pub(crate) const REPLICA_BUDGET: usize = 21;
}

/// Bits of the policy word.
pub(crate) mod policy {
    /// Readers stamp objects with the epoch, so that the least recently used one is known.
    pub(crate) const STAMP: u64 = 1;
}

/// Words of a client.
pub(crate) mod client {
    /// Number of the attachment, never given twice: 0 when the entry is free.
    pub(crate) const TAG: usize = 0;
    /// Process id as the service sees it, 0 when it cannot; with [`LEAVING`], which the client itself sets.
    pub(crate) const PID: usize = 1;

    /// The client's process is about to end.
    pub(crate) const LEAVING: u64 = 1 << 63;
}

/// Words of a slot.
pub(crate) mod slot {
    /// Generation and state; see `State`.
    pub(crate) const STATE: usize = 0;
    /// Where the cell lies, by the service. In a declared slot: what was committed to it.
    pub(crate) const PLACE: usize = 1;
    /// Length of the object in bytes. In the slot of a replica: the memory that it is a replica from.
    pub(crate) const LEN: usize = 2;
    /// Index of the cell's size class (16 bits) and number of the request that it was leased for, by the service.
    pub(crate) const CLASS: usize = 3;
    /// Tag of the client that leased the slot, by the service.
    pub(crate) const OWNER: usize = 4;
    /// Fingerprint of the object's type. In the slot of a replica: the original's slot, and above that where it arrives.
    pub(crate) const FINGERPRINT: usize = 5;
    /// Codec (16 bits), flags (16 bits), epoch of the last use (32 bits). In the slot of a replica the last are the time until
    /// which the original was there.
    pub(crate) const META: usize = 6;
    /// When the object expires, in milliseconds of CLOCK_BOOTTIME; 0 for never. In the slot of a replica: the original's generation.
    pub(crate) const EXPIRES: usize = 7;
}

/// `b"pxstore1"`, little-endian.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"pxstore1");

/// Wait buckets.
pub(crate) const BUCKETS: usize = 64;

/// Words of the header, a slot, ...
const HEADER: usize = 64;
const SEGMENT: usize = 2;
const CLIENT: usize = 4;
const SLOT: usize = 8;

/// Words in a cache line.
const LINE: usize = 8;

/// Words in a page of memory.
const ALIGN: usize = 512;
