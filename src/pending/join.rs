//! Operations made of operations: continue one, wait for many.

use std::task::{Context, Poll};
use std::time::Instant;

use super::{Pending, Source};
use crate::error::Result;
use std::future::Future;
use std::pin::Pin;

/// Applies a function to the result of another source.
pub(super) struct Then<T, F> {
    source: Box<dyn Source<T>>,
    f: Option<F>,
}

impl<T, F> Then<T, F> {
    pub(super) fn new(source: Box<dyn Source<T>>, f: F) -> Self {
        Self { source, f: Some(f) }
    }

    fn apply<U>(&mut self, result: Result<T>) -> Result<U>
    where
        F: FnOnce(Result<T>) -> Result<U>,
    {
        match self.f.take() {
            Some(f) => f(result),
            None => Err(super::taken()),
        }
    }
}

impl<T, U, F> Source<U> for Then<T, F>
where
    T: Send + 'static,
    F: FnOnce(Result<T>) -> Result<U> + Send + 'static,
{
    fn wait(&mut self, deadline: Option<Instant>) -> Result<U> {
        let result = self.source.wait(deadline);
        self.apply(result)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<U>> {
        match self.source.poll(cx) {
            Poll::Ready(result) => Poll::Ready(self.apply(result)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn detach(mut self: Box<Self>, deadline: Option<Instant>) {
        if self.f.is_some() {
            super::pool::spawn(Box::new(move || drop(self.wait(deadline))));
        }
    }
}

/// Runs a second operation after the first.
pub(super) struct Chain<T, U, F> {
    first: Option<(Box<dyn Source<T>>, F)>,
    second: Option<Pending<U>>,
}

impl<T, U, F> Chain<T, U, F> {
    pub(super) fn new(first: Box<dyn Source<T>>, f: F) -> Self {
        Self { first: Some((first, f)), second: None }
    }
}

impl<T, U, F> Source<U> for Chain<T, U, F>
where
    T: Send + 'static,
    U: Send + 'static,
    F: FnOnce(T) -> Pending<U> + Send + 'static,
{
    fn wait(&mut self, deadline: Option<Instant>) -> Result<U> {
        if let Some((mut first, f)) = self.first.take() {
            self.second = Some(f(first.wait(deadline)?));
        }
        let Some(mut second) = self.second.take() else { return Err(super::taken()) };
        (second.limit, second.explicit) = (deadline, deadline.is_some());
        second.wait()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<U>> {
        if let Some((mut first, f)) = self.first.take() {
            match first.poll(cx) {
                Poll::Ready(Ok(value)) => self.second = Some(f(value)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.first = Some((first, f));
                    return Poll::Pending;
                }
            }
        }
        match &mut self.second {
            Some(second) => Pin::new(second).poll(cx),
            None => Poll::Ready(Err(super::taken())),
        }
    }

    fn detach(mut self: Box<Self>, deadline: Option<Instant>) {
        if self.first.is_some() {
            super::pool::spawn(Box::new(move || drop(self.wait(deadline))));
        }
    }
}

/// Waits for all of a list.
pub(super) struct All<T> {
    operations: Vec<Pending<T>>,
    results: Vec<Option<T>>,
}

impl<T> All<T> {
    pub(super) fn new(operations: Vec<Pending<T>>) -> Self {
        let results = operations.iter().map(|_| None).collect();
        Self { operations, results }
    }
}

impl<T: Send> Source<Vec<T>> for All<T> {
    fn wait(&mut self, deadline: Option<Instant>) -> Result<Vec<T>> {
        let mut values = Vec::with_capacity(self.operations.len());
        for (mut operation, known) in self.operations.drain(..).zip(self.results.drain(..)) {
            if deadline.is_some() {
                (operation.limit, operation.explicit) = (deadline, true);
            }
            values.push(match known {
                Some(value) => value,
                None => operation.wait()?,
            });
        }
        Ok(values)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<T>>> {
        let mut missing = false;
        for (operation, slot) in self.operations.iter_mut().zip(&mut self.results) {
            if slot.is_some() {
                continue;
            }
            match Pin::new(operation).poll(cx) {
                Poll::Ready(Ok(value)) => *slot = Some(value),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => missing = true,
            }
        }
        match missing {
            true => Poll::Pending,
            false => Poll::Ready(Ok(self.results.drain(..).flatten().collect())),
        }
    }
}
