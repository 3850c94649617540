//! `proxystore exists`.

use std::io::{Write, stdout};

use clap::Args;

use crate::failure::Failure;
use crate::object::ObjectArgs;

/// Ask whether an object can be read now: exit status 0 if so, 3 if not
#[derive(Args)]
pub(crate) struct Exists {
    #[command(flatten)]
    object: ObjectArgs,
    /// Print {"exists":true} or {"exists":false}
    #[arg(long)]
    json: bool,
}

impl Exists {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let exists = match self.object.open() {
            Err(failure) if failure.is_not_found() => false,
            named => {
                let named = named?;
                self.object.timeout.bound(named.store.exists(&named.key)).wait()?
            }
        };
        let told = match self.json {
            true => writeln!(stdout(), "{{\"exists\":{exists}}}").map_err(Failure::stdout),
            false => Ok(()),
        };
        match exists {
            true => told,
            // The status is the answer, whether or not somebody read the other one.
            false => Err(Failure::silent(Failure::NOT_FOUND)),
        }
    }
}
