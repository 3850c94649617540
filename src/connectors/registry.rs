//! Opening connectors by scheme: those of the table, and those that the program adds.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::{FEATURES, TABLE};
use crate::config::{ConnectorConfig, nearest};
use crate::connector::{Connector, Registration};
use crate::error::{Error, ErrorKind, Result};

/// Makes a connector of yours known to this process under its scheme, so that URLs, keys and proxies can name it.
///
/// # Errors
/// `AlreadyExists` when the scheme is taken by another registration.
pub fn register(registration: Registration) -> Result<()> {
    let mut extra = EXTRA.write().unwrap_or_else(PoisonError::into_inner);
    if FEATURES.contains(&registration.scheme) || extra.contains_key(registration.scheme) {
        let context = format!("scheme {} is registered", registration.scheme);
        return Err(Error::new(ErrorKind::AlreadyExists, "register", context));
    }
    extra.insert(registration.scheme, registration);
    Ok(())
}

/// All connectors known to this process: the table, then those registered.
pub fn registrations() -> Vec<Registration> {
    let extra = EXTRA.read().unwrap_or_else(PoisonError::into_inner);
    TABLE.iter().copied().chain(extra.values().copied()).collect()
}

/// Opens the connector that `config` describes; a new one each time.
///
/// # Cost
/// Whatever the connector does: may block on the file system or the network.
///
/// # Errors
/// `UnknownScheme` naming the feature to enable, `Config` on unknown options, and the connector's own.
pub fn open(config: &ConnectorConfig) -> Result<Arc<dyn Connector>> {
    let known = registrations();
    match known.iter().find(|row| row.scheme == config.scheme()) {
        Some(row) => {
            config.check_options(row.options)?;
            (row.open)(config)
        }
        None => Err(unknown_scheme(config.scheme(), &known)),
    }
}

fn unknown_scheme(scheme: &str, known: &[Registration]) -> Error {
    let schemes: Vec<&str> = known.iter().map(|row| row.scheme).chain(FEATURES.iter().copied()).collect();
    let hint = if FEATURES.contains(&scheme) {
        format!("this build lacks it; enable the cargo feature \"{scheme}\"")
    } else if let Some(near) = nearest(scheme, &schemes) {
        format!("did you mean {near}://?")
    } else {
        let have: Vec<&str> = known.iter().map(|row| row.scheme).collect();
        format!("this build has: {}; connectors::register adds one of your own", have.join(", "))
    };
    Error::new(ErrorKind::UnknownScheme, "open", format!("{scheme}://: {hint}"))
}

static EXTRA: RwLock<BTreeMap<&'static str, Registration>> = RwLock::new(BTreeMap::new());
