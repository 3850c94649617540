use std::fmt;
use std::ops::{Deref, DerefMut};

/// A structure that UCX fills in, with room behind it for the fields that newer versions have.
///
/// UCX writes what `field_mask` names, and so far nothing else; a structure that a newer library knows to be larger must still
/// not be the last thing on a stack. The largest growth from 1.12 to 1.22 is 32 bytes (`ucp_ep_attr_t`), the room is
/// [`Oversize::ROOM`].
///
/// # Examples
/// ```
/// use ucx_sys::{Oversize, UCP_EP_ATTR_FIELD_NAME, ucp_ep_attr_t};
///
/// let mut attributes = Oversize::<ucp_ep_attr_t>::zeroed();
/// attributes.field_mask = u64::from(UCP_EP_ATTR_FIELD_NAME);
/// // unsafe { ucx.ucp_ep_query(endpoint, attributes.as_mut_ptr()) };
/// assert_eq!(attributes.name[0], 0);
/// ```
#[repr(C, align(16))]
pub struct Oversize<T> {
    known: T,
    room: [u8; ROOM],
}

impl<T: Default> Oversize<T> {
    /// Bytes behind the structure.
    pub const ROOM: usize = ROOM;

    /// A structure whose bytes are all zero, as the `Default` of all structures of this crate is.
    pub fn zeroed() -> Self {
        Self { known: T::default(), room: [0; ROOM] }
    }

    /// What UCX is given: a pointer that may be used for the room too.
    pub fn as_mut_ptr(&mut self) -> *mut T {
        (&raw mut *self).cast()
    }
}

impl<T> Deref for Oversize<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.known
    }
}

impl<T> DerefMut for Oversize<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.known
    }
}

impl<T> fmt::Debug for Oversize<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oversize").field("known", &std::any::type_name::<T>()).finish_non_exhaustive()
    }
}

const ROOM: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ucp_context_attr_t, ucp_ep_attr_t};

    #[test]
    fn there_is_room_behind() {
        fn check<T: Default>() {
            let mut one = Oversize::<T>::zeroed();
            let (begin, len) = (one.as_mut_ptr().cast::<u8>(), size_of::<T>() + Oversize::<T>::ROOM);
            assert!(size_of_val(&one) >= len);
            for at in 0..len {
                // SAFETY: within `one`, whose provenance `as_mut_ptr` carries.
                unsafe {
                    assert_eq!(begin.add(at).read(), 0, "byte {at}");
                    begin.add(at).write(0xff);
                }
            }
        }
        check::<ucp_ep_attr_t>();
        check::<ucp_context_attr_t>();
    }
}
