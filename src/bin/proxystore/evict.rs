//! `proxystore evict`.

use clap::Args;

use crate::failure::Failure;
use crate::object::ObjectArgs;

/// Remove an object; not an error when it is gone already
///
/// Whoever has mapped the object keeps its bytes.
#[derive(Args)]
pub(crate) struct Evict {
    #[command(flatten)]
    object: ObjectArgs,
}

impl Evict {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let named = match self.object.open() {
            // It went with its memory.
            Err(failure) if failure.is_not_found() => return Ok(()),
            named => named?,
        };
        Ok(self.object.timeout.bound(named.store.evict(&named.key)).wait()?)
    }
}
