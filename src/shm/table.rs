//! `Table`: the slots, pins and clients of a namespace in shared memory, and the steps of the protocol.
