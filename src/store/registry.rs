//! The stores of this process, one per canonical URL.
//!
//! Identity is the content of the configuration, not a name that two parts of a program could give to different stores.
//! A child of fork begins with none: stores that it inherited work on where their connectors can, but are not found here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::{Store, builder};
use crate::codec::Codecs;
use crate::config::StoreConfig;
use crate::connectors;
use crate::error::{Error, ErrorKind, Result};
use crate::process::PerProcess;
use crate::sync::lock;

/// A place for one store. Its lock is held while the store is opened, so one URL is opened once and holds up no other.
type Place = Arc<Mutex<Option<Store>>>;

pub(super) fn by_url(url: &str) -> Result<Store> {
    // Proxies carry canonical URLs: one look-up finds their store.
    if let Some(store) = known(url) {
        return Ok(store);
    }
    by_config(&url.parse()?)
}

pub(super) fn by_config(config: &StoreConfig) -> Result<Store> {
    let url = config.to_string();
    let place = place(&url);
    let mut opened = lock(&place);
    if let Some(store) = opened.as_ref().filter(|store| store.is_usable()) {
        return Ok(store.clone());
    }
    let store = builder::open(config, connectors::open(&config.connector)?, Codecs::default());
    if *store.inner.url == *url {
        *opened = Some(store.clone());
        return Ok(store);
    }
    // The connector knows a better name, for example an absolute path; that one is the identity.
    drop(opened);
    let canonical = self::place(&store.inner.url);
    let mut opened = lock(&canonical);
    if let Some(first) = opened.as_ref().filter(|first| first.is_usable()) {
        // `close` of a connector never deletes, so the second handle may go.
        store.inner.connector.close()?;
        return Ok(first.clone());
    }
    *opened = Some(store.clone());
    Ok(store)
}

/// Registers a store that was made outside.
pub(super) fn insert(store: Store) -> Result<Store> {
    let place = place(&store.inner.url);
    let mut opened = lock(&place);
    if opened.as_ref().is_some_and(|first| first.is_usable()) {
        let context = format!("this process has a store {} already; close that one first", store.inner.url);
        return Err(Error::new(ErrorKind::AlreadyExists, "open", context));
    }
    *opened = Some(store.clone());
    Ok(store)
}

/// Takes a closed store out.
pub(super) fn forget(store: &Store) {
    let mut stores = lock(places());
    if let Some(place) = stores.get(&*store.inner.url) {
        // A place that is locked is being opened, hence not this store's any more.
        if place.try_lock().is_ok_and(|opened| opened.as_ref() == Some(store)) {
            stores.remove(&*store.inner.url);
        }
    }
}

fn known(url: &str) -> Option<Store> {
    let place = Arc::clone(lock(places()).get(url)?);
    let opened = lock(&place);
    opened.clone().filter(|store| store.is_usable())
}

fn place(url: &str) -> Place {
    let mut places = lock(places());
    if let Some(place) = places.get(url) {
        return Arc::clone(place);
    }
    Arc::clone(places.entry(url.to_owned()).or_default())
}

fn places() -> &'static Mutex<HashMap<String, Place>> {
    static PLACES: PerProcess<Mutex<HashMap<String, Place>>> = PerProcess::new();
    PLACES.get(Mutex::default)
}
