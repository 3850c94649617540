#![doc = include_str!("../README.md")]
#![allow(unsafe_code, reason = "a binding of a C library")]

mod declarations;
mod environment;
mod library;
mod load;
mod package;
mod search;
mod start;
mod symbols;

pub use declarations::*;
pub use library::{Margo, Origin, Protocol, Version};
pub use load::{Attempt, LoadError, MINIMUM_MARGO, MINIMUM_MERCURY, load};
pub use start::{Options, StartError};
