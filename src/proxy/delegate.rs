//! Traits that a proxy passes on to its object: comparing, hashing, printing, iterating, calculating.
//!
//! Each resolves the proxy, and panics as [`Deref`](std::ops::Deref) does when that fails: with the caller's line, where the
//! standard library does not stand between (formatting, sorting). `Debug` is not among them.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Rem, Shl, Shr, Sub};

use super::Proxy;
use crate::codec::Object;

impl<T: Object + ?Sized> fmt::Display for Proxy<T>
where
    T::Target: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: Object + ?Sized, U: Object + ?Sized> PartialEq<Proxy<U>> for Proxy<T>
where
    T::Target: PartialEq<U::Target>,
{
    #[track_caller]
    fn eq(&self, other: &Proxy<U>) -> bool {
        **self == **other
    }
}

impl<T: Object + ?Sized> Eq for Proxy<T> where T::Target: Eq {}

impl<T: Object + ?Sized, U: Object + ?Sized> PartialOrd<Proxy<U>> for Proxy<T>
where
    T::Target: PartialOrd<U::Target>,
{
    #[track_caller]
    fn partial_cmp(&self, other: &Proxy<U>) -> Option<Ordering> {
        (**self).partial_cmp(&**other)
    }
}

impl<T: Object + ?Sized> Ord for Proxy<T>
where
    T::Target: Ord,
{
    #[track_caller]
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<T: Object + ?Sized> Hash for Proxy<T>
where
    T::Target: Hash,
{
    #[track_caller]
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl<T: Object + ?Sized> AsRef<T::Target> for Proxy<T> {
    #[track_caller]
    fn as_ref(&self) -> &T::Target {
        self
    }
}

impl<T: Object<Target = T> + ?Sized> Borrow<T> for Proxy<T> {
    #[track_caller]
    fn borrow(&self) -> &T {
        self
    }
}

impl<'a, T: Object + ?Sized> IntoIterator for &'a Proxy<T>
where
    &'a T::Target: IntoIterator,
{
    type Item = <&'a T::Target as IntoIterator>::Item;
    type IntoIter = <&'a T::Target as IntoIterator>::IntoIter;

    #[track_caller]
    fn into_iter(self) -> Self::IntoIter {
        (**self).into_iter()
    }
}

macro_rules! binary {
    ($($trait:ident $method:ident),* $(,)?) => {$(
        impl<'a, T: Object + ?Sized, R> $trait<R> for &'a Proxy<T>
        where
            &'a T::Target: $trait<R>,
        {
            type Output = <&'a T::Target as $trait<R>>::Output;

            #[track_caller]
            fn $method(self, right: R) -> Self::Output {
                (&**self).$method(right)
            }
        }
    )*};
}

binary! {
    Add add, Sub sub, Mul mul, Div div, Rem rem, BitAnd bitand, BitOr bitor, BitXor bitxor, Shl shl, Shr shr,
}

macro_rules! unary {
    ($($trait:ident $method:ident),* $(,)?) => {$(
        impl<'a, T: Object + ?Sized> $trait for &'a Proxy<T>
        where
            &'a T::Target: $trait,
        {
            type Output = <&'a T::Target as $trait>::Output;

            #[track_caller]
            fn $method(self) -> Self::Output {
                (&**self).$method()
            }
        }
    )*};
}

unary! { Neg neg, Not not }
