//! `Slots`: operations that are under way, by numbers that are used again.

use std::sync::{Mutex, MutexGuard};

use crate::error::{Error, ErrorKind, Result};
use crate::process;
use crate::sync::lock;

/// See the module. It keeps the memory of [`MOST`] at most.
///
/// In a forked child it has no place and no operation: threads of the parent may have held its lock.
pub(super) struct Slots<T> {
    places: Mutex<Places<T>>,
    generation: u32,
}

struct Places<T> {
    /// Nothing where the number is free, or somebody has the operation in hands.
    all: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        let places = Mutex::new(Places { all: Vec::new(), free: Vec::new() });
        Self { places, generation: process::generation() }
    }
}

impl<T> Slots<T> {
    fn places(&self) -> Option<MutexGuard<'_, Places<T>>> {
        (self.generation == process::generation()).then(|| lock(&self.places))
    }

    /// A number for an operation.
    ///
    /// # Errors
    /// The operation, when there are too many.
    pub(super) fn insert(&self, operation: T) -> std::result::Result<u64, Box<T>> {
        let Some(mut places) = self.places() else { return Err(Box::new(operation)) };
        if let Some(number) = places.free.pop() {
            places.all[number] = Some(operation);
            return Ok(number as u64);
        }
        if places.all.len() >= MOST {
            drop(places);
            return Err(Box::new(operation));
        }
        places.all.push(Some(operation));
        Ok(places.all.len() as u64 - 1)
    }

    /// The operation, whose number stays its own.
    ///
    /// # Errors
    /// `Forked` in a child of the process that it is one of, `Cancelled` when somebody has it.
    pub(super) fn take(&self, number: u64) -> Result<T> {
        let Some(mut places) = self.places() else {
            let context = "the operation is the parent process's; open the store again after fork";
            return Err(Error::new(ErrorKind::Forked, "get", context));
        };
        places.all.get_mut(number as usize).and_then(Option::take).ok_or_else(ended)
    }

    /// Puts it back.
    pub(super) fn put(&self, number: u64, operation: T) {
        if let Some(place) = self.places().as_mut().and_then(|places| places.all.get_mut(number as usize)) {
            *place = Some(operation);
        }
    }

    /// Frees a number; what is left of its operation is to be dropped where no lock is held.
    #[must_use]
    pub(super) fn free(&self, number: u64) -> Option<T> {
        let mut places = self.places()?;
        let left = places.all.get_mut(number as usize)?.take();
        places.free.push(number as usize);
        left
    }
}

pub(super) fn ended() -> Error {
    Error::new(ErrorKind::Cancelled, "get", "the result was taken before")
}

/// Most operations that have numbers.
const MOST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_used_again_and_there_are_not_more_than_that() {
        let slots = Slots::default();
        let numbers: Vec<u64> = (0..MOST).map(|at| slots.insert(at).unwrap()).collect();
        assert_eq!(slots.insert(MOST).unwrap_err(), Box::new(MOST));
        assert_eq!((slots.take(numbers[3]).ok(), slots.take(numbers[3]).ok()), (Some(3), None));
        // Its number is not free by that.
        assert!(slots.insert(MOST).is_err());
        slots.put(numbers[3], 33);
        assert_eq!((slots.free(numbers[3]), slots.free(numbers[7])), (Some(33), Some(7)));
        assert_eq!(slots.insert(70).unwrap(), numbers[7]);
        assert_eq!((slots.take(numbers[7]).ok(), slots.take(MOST as u64).ok()), (Some(70), None));
    }

    #[test]
    #[cfg(not(miri))]
    fn a_forked_child_does_not_wait_for_a_lock_that_its_parent_had() {
        let slots = Slots::default();
        let number = slots.insert(1).unwrap();
        let held = lock(&slots.places);
        assert!(crate::fabric::tcp::fork::in_child(|| {
            assert!(slots.free(number).is_none());
            slots.put(number, 2);
            assert_eq!(slots.take(number).unwrap_err().kind(), ErrorKind::Forked);
            assert!(slots.insert(3).is_err());
        }));
        drop(held);
        assert_eq!(slots.take(number).unwrap(), 1);
    }
}
