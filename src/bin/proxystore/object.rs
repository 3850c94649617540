//! The arguments that name an object, and what they name.

use std::io::Read;
use std::time::Duration;

use clap::Args;
use proxystore::codec::Object;
use proxystore::service::Namespace;
use proxystore::token::Access;
use proxystore::{Key, Pending, Proxy, Store, Token, environment};

use crate::failure::Failure;
use crate::namespace;

/// A token and how long to wait for what it names.
#[derive(Args)]
pub(crate) struct ObjectArgs {
    /// What `proxystore put` or a program printed; `-` reads it from standard input
    token: String,
    #[command(flatten)]
    pub(crate) timeout: Timeout,
}

#[derive(Args)]
pub(crate) struct Timeout {
    /// Give up an operation on the store after this long, as 250ms, 10s, 2m [default: the store's own deadline]
    #[arg(long, value_name = "DURATION", value_parser = parse_timeout)]
    timeout: Option<Duration>,
}

/// An object of a store that is open.
pub(crate) struct Named {
    pub(crate) store: Store,
    pub(crate) key: Key,
    pub(crate) access: Access,
}

impl ObjectArgs {
    pub(crate) fn open(&self) -> Result<Named, Failure> {
        let token = match self.token.as_str() {
            "-" => read_token()?,
            token => token.to_owned(),
        };
        match token.parse()? {
            Token::Object { url, key, access, .. } => {
                if url.starts_with("shm:") {
                    let name = namespace::name_of(&url)?;
                    // Opening it would only make fresh memory.
                    if !Namespace::is_held(&name)? {
                        return Err(Failure::not_found(format_args!(
                            "no such object: no process holds shm://{name} any more; `proxystore serve` keeps it"
                        )));
                    }
                }
                Ok(Named { store: Store::open(&url)?, key, access })
            }
            Token::Factory { name, .. } => Err(Failure::new(format_args!(
                "the token names factory {name:?} of a program; only a program that registers it can resolve it"
            ))),
            _ => Err(Failure::new("the token is of a kind that this version does not know")),
        }
    }
}

impl Named {
    /// A proxy of the object's bytes, whatever type they were written as.
    pub(crate) fn bytes(&self) -> Result<Proxy<[u8]>, Failure> {
        Ok(self.store.proxy_from_key(&self.key.with_format(<[u8]>::format()))?)
    }
}

impl Timeout {
    /// Bounds an operation by what the user asked for; the store's deadline is there already.
    pub(crate) fn bound<T>(&self, operation: Pending<T>) -> Pending<T> {
        match self.timeout {
            Some(limit) => operation.deadline(limit),
            None => operation,
        }
    }
}

fn read_token() -> Result<String, Failure> {
    let mut token = String::new();
    // Base64 takes 4 characters for 3 bytes; anything longer is no token, and says so when it is parsed.
    let limit = 2 * Token::MAX_BYTES as u64;
    match std::io::stdin().lock().take(limit).read_to_string(&mut token) {
        Ok(_) => Ok(token),
        Err(error) => Err(Failure::io("token on standard input", error)),
    }
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    match environment::parse_duration(text) {
        Some(limit) if !limit.is_zero() => Ok(limit),
        _ => Err("expected a duration above zero, as 250ms, 10s, 2m".to_owned()),
    }
}
