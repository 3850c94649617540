//! `proxystore get`.

use std::path::PathBuf;

use clap::Args;
use proxystore::codec::Object;
use proxystore::token::Access;
use proxystore::{Error, ErrorKind, Proxy};

use crate::failure::Failure;
use crate::object::{Named, ObjectArgs};
use crate::output::Output;

/// Write the bytes of an object to standard output or to a file
///
/// The bytes are the stored ones, whatever type a program wrote them as. An object that is promised but not there yet is
/// waited for. A one-time token is used up, unless writing to a file fails.
#[derive(Args)]
#[command(after_help = "\
Examples:
  proxystore get \"$token\" -o model.bin
  proxystore put big.tar | proxystore get - | tar t")]
pub(crate) struct Get {
    #[command(flatten)]
    object: ObjectArgs,
    /// Write to this file, which is complete or untouched at any moment, even after a kill
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write bytes that are no text even to a terminal
    #[arg(short, long)]
    force: bool,
}

impl Get {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let named = self.object.open()?;
        let mut output = Output::open(self.output.as_deref(), self.force)?;
        let proxy = named.bytes()?;
        let bytes = self.object.timeout.bound(Proxy::resolve(&proxy)).wait()?;
        output.stage(&bytes)?;
        if named.access == Access::Take {
            // Only now, so that a full disk or a wrong path costs nobody the object.
            self.take(&named)?;
        }
        output.publish(&bytes)
    }

    /// Uses a one-time token up, if nobody was faster.
    fn take(&self, named: &Named) -> Result<(), Failure> {
        let key = named.key.with_format(<[u8]>::format());
        match self.object.timeout.bound(named.store.take::<[u8]>(&key)).wait()? {
            Some(_) => Ok(()),
            None => Err(Error::new(ErrorKind::NotFound, "get", "somebody else has read this one-time object").into()),
        }
    }
}
