//! The functions of the library as a table of pointers, filled once.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

#[allow(unused_imports, reason = "newer headers have functions with other types of the C library")]
use libc::{FILE, sockaddr, sockaddr_storage, socklen_t};

use crate::bindings::*;
use crate::library::Ucx;

/// Finds a function by its name.
pub(crate) type Lookup<'a> = &'a dyn Fn(&'static CStr) -> Option<*mut c_void>;

/// For each function: its pointer in [`Symbols`], and a method of [`Ucx`] that calls it.
macro_rules! functions {
    ($($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?;)*) => {
        /// Every function that UCX 1.12 has, or there is no [`Symbols`].
        pub(crate) struct Symbols {
            $($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
        }

        #[cfg(linked)]
        unsafe extern "C" {
            $(pub(crate) fn $name($($argument: $type),*) $(-> $result)?;)*
        }

        impl Symbols {
            /// # Errors
            /// The names that `lookup` did not find.
            ///
            /// # Safety
            /// What `lookup` finds under a name is the function of that name of a UCX of version 1.12 or newer, and stays.
            #[cfg(not(linked))]
            pub(crate) unsafe fn find(lookup: Lookup<'_>) -> Result<Self, Vec<&'static CStr>> {
                let mut missing = Vec::new();
                $(let $name = name!($name, lookup, missing);)*
                if !missing.is_empty() {
                    return Err(missing);
                }
                Ok(Self {
                    // SAFETY: not null; the caller says that it is this function, whose type only grew new flags since 1.12.
                    $($name: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($type),*) $(-> $result)?>($name) },)*
                })
            }

            /// Those that the linker bound.
            #[cfg(linked)]
            pub(crate) fn linked() -> Self {
                Self { $($name,)* }
            }
        }

        impl Ucx {
            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The contract is the comment in the header. Handles are alive and came from this library, a worker is used in
                /// the thread mode that it has, and memory stays valid until the operation that was given it has completed.
                #[allow(clippy::too_many_arguments, reason = "the declaration in C")]
                #[inline]
                pub unsafe fn $name(&self, $($argument: $type),*) $(-> $result)? {
                    // SAFETY: the caller's, for the same arguments.
                    unsafe { (self.symbols.$name)($($argument),*) }
                }
            )*
        }
    };
}

#[cfg(not(linked))]
macro_rules! name {
    ($name:ident, $lookup:ident, $missing:ident) => {{
        const NAME: &CStr = match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
            Ok(name) => name,
            Err(_) => panic!("a name with a zero byte"),
        };
        let found = $lookup(NAME).unwrap_or(std::ptr::null_mut());
        if found.is_null() {
            $missing.push(NAME);
        }
        found
    }};
}

#[cfg(not(regenerated))]
include!("functions.rs");
#[cfg(regenerated)]
include!(concat!(env!("OUT_DIR"), "/functions.rs"));
