//! `Segment`: a sealed, reserved piece of memory that processes share by its descriptor.
