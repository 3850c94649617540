//! `Slots`: operations that are under way, by numbers that are used again.

use std::sync::Mutex;

use crate::sync::lock;

/// See the module. It keeps the memory of [`MOST`] at most.
pub(super) struct Slots<T>(Mutex<Places<T>>);

struct Places<T> {
    /// Nothing where the number is free, or somebody has the operation in hands.
    all: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slots<T> {
    fn default() -> Self {
        Self(Mutex::new(Places { all: Vec::new(), free: Vec::new() }))
    }
}

impl<T> Slots<T> {
    /// A number for an operation.
    ///
    /// # Errors
    /// The operation, when there are too many.
    pub(super) fn insert(&self, operation: T) -> Result<u64, Box<T>> {
        let mut places = lock(&self.0);
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
    pub(super) fn take(&self, number: u64) -> Option<T> {
        lock(&self.0).all.get_mut(number as usize)?.take()
    }

    /// Puts it back.
    pub(super) fn put(&self, number: u64, operation: T) {
        if let Some(place) = lock(&self.0).all.get_mut(number as usize) {
            *place = Some(operation);
        }
    }

    /// Frees a number; what is left of its operation is to be dropped where no lock is held.
    #[must_use]
    pub(super) fn free(&self, number: u64) -> Option<T> {
        let mut places = lock(&self.0);
        let left = places.all.get_mut(number as usize)?.take();
        places.free.push(number as usize);
        left
    }
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
        assert_eq!((slots.take(numbers[3]), slots.take(numbers[3])), (Some(3), None));
        // Its number is not free by that.
        assert!(slots.insert(MOST).is_err());
        slots.put(numbers[3], 33);
        assert_eq!((slots.free(numbers[3]), slots.free(numbers[7])), (Some(33), Some(7)));
        assert_eq!(slots.insert(70).unwrap(), numbers[7]);
        assert_eq!((slots.take(numbers[7]), slots.take(MOST as u64)), (Some(70), None));
    }
}
