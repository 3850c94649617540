//! `Encoder`: where codecs write, so that large objects are encoded straight into the connector's memory.

use std::cell::Cell;
use std::fmt;
use std::io;

use bytes::BufMut;
use serde::Serialize;

use crate::connector::{Connector, ConnectorExt, PutOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key};
use crate::pending::Pending;
use crate::region::{Appender, RegionMut};

/// Takes the encoded bytes of one object.
///
/// A codec that knows the length says so with [`reserve`](Self::reserve) and then writes into the memory where the object
/// will stay. One that does not just writes; the bytes gather in a buffer of the thread and are copied once.
///
/// Dropping an encoder, as when a codec fails, gives everything back.
pub struct Encoder<'a> {
    connector: &'a dyn Connector,
    scratch: Vec<u8>,
    region: Option<RegionMut>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(connector: &'a dyn Connector) -> Self {
        Self { connector, scratch: SCRATCH.take(), region: None }
    }

    /// Announces that `len` bytes in all will be written, at most.
    ///
    /// # Cost
    /// That of [`Connector::reserve`]; what was written before is copied.
    ///
    /// # Errors
    /// The connector's, such as `NoSpace`.
    pub fn reserve(&mut self, len: usize) -> Result<()> {
        let mut region = self.connector.reserve(len.max(self.len()))?;
        match self.region.take() {
            Some(old) => region.put_slice(old.as_slice()),
            None => region.put_slice(&self.scratch),
        }
        self.scratch.clear();
        self.region = Some(region);
        Ok(())
    }

    /// Appends `bytes`.
    ///
    /// # Cost
    /// One copy, into place after [`reserve`](Self::reserve).
    ///
    /// # Errors
    /// `Codec` when more is written than was announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.region {
            None => self.scratch.extend_from_slice(bytes),
            Some(region) if bytes.len() <= region.remaining_mut() => region.put_slice(bytes),
            Some(region) => {
                let context = format!("the codec announced {} bytes and wrote more", region.capacity());
                return Err(Error::new(ErrorKind::Codec, "put", context));
            }
        }
        Ok(())
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.region.as_ref().map_or(self.scratch.len(), RegionMut::len)
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Encodes a serde value by postcard: small ones in one pass, large ones in a pass that counts and one that writes
    /// into place.
    pub(super) fn write_postcard<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        let small = Small { scratch: &mut self.scratch, total: 0 };
        let total = postcard::serialize_with_flavor(value, small).map_err(refused)?;
        if total <= SMALL {
            return Ok(());
        }
        self.scratch.clear();
        self.reserve(total)?;
        let Some(region) = &mut self.region else { return Err(no_region()) };
        region.append(|out| postcard::serialize_with_flavor(value, InPlace(out))).map_err(refused)
    }

    pub(super) fn finish_region(mut self) -> Result<RegionMut> {
        if self.region.is_none() {
            self.reserve(self.scratch.len())?;
        }
        self.region.take().ok_or_else(no_region)
    }

    pub(super) fn finish(mut self, format: Format, options: &PutOptions) -> Pending<Key> {
        match self.region.take() {
            Some(region) => self.connector.commit_with(region, format, options),
            None => self.connector.put_with(&self.scratch, format, options),
        }
    }
}

impl io::Write for Encoder<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Encoder::write(self, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Encoder<'_> {
    fn drop(&mut self) {
        if self.scratch.capacity() <= SMALL {
            self.scratch.clear();
            SCRATCH.set(std::mem::take(&mut self.scratch));
        }
    }
}

impl fmt::Debug for Encoder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("len", &self.len()).field("reserved", &self.region.is_some()).finish()
    }
}

/// Keeps the first `SMALL` bytes and counts all.
struct Small<'a> {
    scratch: &'a mut Vec<u8>,
    total: usize,
}

impl postcard::ser_flavors::Flavor for Small<'_> {
    type Output = usize;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.total += 1;
        if self.total <= SMALL {
            self.scratch.push(byte);
        }
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.total = self.total.saturating_add(bytes.len());
        if self.total <= SMALL {
            self.scratch.extend_from_slice(bytes);
        }
        Ok(())
    }

    fn finalize(self) -> postcard::Result<usize> {
        Ok(self.total)
    }
}

/// Writes into the reserved region.
struct InPlace<'e, 'a>(&'e mut Appender<'a>);

impl postcard::ser_flavors::Flavor for InPlace<'_, '_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte).ok_or(postcard::Error::SerializeBufferFull)
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend(bytes).ok_or(postcard::Error::SerializeBufferFull)
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

fn no_region() -> Error {
    Error::new(ErrorKind::Codec, "put", "no region")
}

fn refused(error: postcard::Error) -> Error {
    Error::new(ErrorKind::Codec, "put", "postcard cannot represent the value").with_source(error)
}

thread_local! {
    /// One warm buffer a thread, so that small puts allocate nothing here.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Largest object that is gathered in the thread's buffer, in bytes.
const SMALL: usize = 64 << 10;
