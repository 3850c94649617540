//! `Address`: where an object lies, on whichever node.

use std::net::{IpAddr, SocketAddr};

use siphasher::sip::SipHasher24;

use crate::error::{Error, ErrorKind, Result};
use crate::key::{Format, Key, Reader};
use crate::shm::table::Id;

/// Node, memory and slot of an object.
///
/// ```text
/// 4 or 6, address (4 or 16 bytes), port   whom to ask: the node service's control address
/// instance                                number of its memory; another one there means that this one is gone
/// slot, generation, place                 as in the locators of `shm`
/// ```
/// All numbers little-endian; 35 or 47 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Address {
    pub(crate) contact: SocketAddr,
    pub(crate) instance: u64,
    pub(crate) id: Id,
    /// [`NO_PLACE`](super::locator::NO_PLACE) for a declared object.
    pub(crate) place: u64,
}

/// A node, as others reach it: the first part of an address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Node {
    pub(crate) contact: SocketAddr,
    pub(crate) instance: u64,
}

/// Makes and checks keys of objects anywhere in the job.
///
/// A key ends in eight bytes of SipHash-2-4 over locator and length, under a key that is derived from the job's secret: what
/// does not come from this job makes nobody connect anywhere.
pub(crate) struct Signer {
    scheme: &'static str,
    hasher: SipHasher24,
}

/// What the keys of one memory at one address have in common.
pub(crate) struct Stamp {
    template: Key,
    /// What is signed: the length, then the address, whose last part is the object's own.
    signed: [u8; 8 + MOST],
    len: usize,
}

impl Address {
    /// Appends the binary form.
    pub(crate) fn encode(&self, out: &mut impl Extend<u8>) {
        let mut bytes = [0; MOST];
        let len = self.write(&mut bytes);
        out.extend(bytes[..len].iter().copied());
    }

    fn write(&self, out: &mut [u8; MOST]) -> usize {
        let at = Node { contact: self.contact, instance: self.instance }.write(out);
        out[at..at + OWN].copy_from_slice(&super::locator::end(self.id, self.place));
        at + OWN
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub(crate) fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let Node { contact, instance } = Node::decode(input)?;
        let slot = u32::from_le_bytes(input.array()?);
        let generation = u64::from_le_bytes(input.array()?);
        let place = u64::from_le_bytes(input.array()?);
        if generation >> Id::GENERATION_BITS != 0 {
            return Err(invalid("an impossible generation"));
        }
        Ok(Self { contact, instance, id: Id { slot, generation }, place })
    }
}

impl Node {
    /// Appends the binary form: that with which an address of an object there begins.
    pub(crate) fn encode(&self, out: &mut impl Extend<u8>) {
        let mut bytes = [0; MOST];
        let len = self.write(&mut bytes);
        out.extend(bytes[..len].iter().copied());
    }

    fn write(&self, out: &mut [u8; MOST]) -> usize {
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            out[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        match self.contact.ip() {
            IpAddr::V4(ip) => {
                put(&[4]);
                put(&ip.octets());
            }
            IpAddr::V6(ip) => {
                put(&[6]);
                put(&ip.octets());
            }
        }
        put(&self.contact.port().to_le_bytes());
        put(&self.instance.to_le_bytes());
        at
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// `Invalid` for anything else.
    pub(crate) fn decode(input: &mut Reader<'_>) -> Result<Self> {
        let ip = match input.byte()? {
            4 => IpAddr::from(input.array::<4>()?),
            6 => IpAddr::from(input.array::<16>()?),
            _ => return Err(invalid("an address of no known family")),
        };
        let port = u16::from_le_bytes(input.array()?);
        Ok(Self { contact: SocketAddr::new(ip, port), instance: u64::from_le_bytes(input.array()?) })
    }
}

impl Signer {
    pub(crate) fn new(scheme: &'static str, key: &[u8; 16]) -> Self {
        Self { scheme, hasher: SipHasher24::new_with_key(key) }
    }

    /// The key of an object.
    ///
    /// # Cost
    /// A hash of 43 or 55 bytes; allocates nothing.
    ///
    /// # Errors
    /// None: a locator fits into a key.
    #[inline]
    pub(crate) fn key(&self, address: &Address, len: u64, format: Format) -> Result<Key> {
        let mut locator = [0; MOST];
        let end = address.write(&mut locator);
        let mac = self.mac(&locator[..end], len);
        locator[end..end + MAC].copy_from_slice(&mac);
        Key::new(self.scheme, &locator[..end + MAC], len, format)
    }

    /// What the keys of the memory have in common in which the object at `address` lies.
    ///
    /// # Errors
    /// None, as of [`key`](Self::key).
    pub(crate) fn stamp(&self, address: &Address) -> Result<Stamp> {
        let mut locator = [0; MOST];
        let end = address.write(&mut locator);
        let mut signed = [0; 8 + MOST];
        signed[8..8 + end].copy_from_slice(&locator[..end]);
        Ok(Stamp { template: self.key(address, 0, Format::RAW)?, signed, len: 8 + end })
    }

    /// As [`key`](Self::key), of another object of the same memory.
    ///
    /// # Cost
    /// A hash of 43 or 55 bytes and a copy of a key.
    #[inline]
    pub(crate) fn stamped(&self, stamp: &Stamp, id: Id, place: u64, len: u64, format: Format) -> Key {
        let mut signed = stamp.signed;
        signed[..8].copy_from_slice(&len.to_le_bytes());
        let own = super::locator::end(id, place);
        signed[stamp.len - OWN..stamp.len].copy_from_slice(&own);
        let mut end = [0; OWN + MAC];
        end[..OWN].copy_from_slice(&own);
        end[OWN..].copy_from_slice(&self.hasher.hash(&signed[..stamp.len]).to_le_bytes());
        stamp.template.sibling(&end, len, format)
    }

    /// Where the object of a key lies.
    ///
    /// # Errors
    /// `Invalid` for a locator that is none, `Unauthorized` for a key that this job did not make.
    #[inline]
    pub(crate) fn address(&self, op: &'static str, key: &Key) -> Result<Address> {
        let located = key.locator().split_last_chunk::<MAC>();
        let Some((address, mac)) = located else { return Err(invalid("a locator of some bytes")) };
        if self.mac(address, key.len()) != *mac {
            let context = "the key was not made in this job: its authentication code does not fit the job's secret";
            return Err(Error::new(ErrorKind::Unauthorized, op, context).with_connector(self.scheme));
        }
        let mut input = Reader::new(address, "locator");
        let address = Address::decode(&mut input)?;
        input.finish()?;
        Ok(address)
    }

    fn mac(&self, locator: &[u8], len: u64) -> [u8; MAC] {
        let mut signed = [0; MOST + 8];
        let signed = &mut signed[..locator.len().min(MOST) + 8];
        let (numbers, rest) = signed.split_at_mut(8);
        numbers.copy_from_slice(&len.to_le_bytes());
        rest.copy_from_slice(&locator[..rest.len()]);
        self.hasher.hash(signed).to_le_bytes()
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.scheme)
    }
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::Invalid, "locator", what)
}

/// Bytes of an address that are the object's own: slot, generation and place.
const OWN: usize = super::locator::END;

/// Bytes of the authentication code of a key.
const MAC: usize = 8;

/// The longest address with its code.
const MOST: usize = 1 + 16 + 2 + 8 + 4 + 8 + 8 + MAC;

#[cfg(test)]
mod tests {
    use super::*;

    fn address(contact: &str) -> Address {
        Address {
            contact: contact.parse().unwrap(),
            instance: 0x1122_3344_5566_7788,
            id: Id { slot: 7, generation: 1 << 60 },
            place: 0xabcd,
        }
    }

    #[test]
    fn keys_lead_back() {
        let signer = Signer::new("tcp", &[7; 16]);
        for contact in ["10.1.2.3:12345", "[fe80::1]:1"] {
            let key = signer.key(&address(contact), 4096, Format::RAW).unwrap();
            assert_eq!(signer.address("get", &key).unwrap(), address(contact));
            assert!(key.locator().len() <= 55);
        }
    }

    #[test]
    fn stamped_keys_are_keys() {
        let signer = Signer::new("tcp", &[7; 16]);
        for contact in ["10.1.2.3:12345", "[fe80::1]:1"] {
            let other = Address { id: Id { slot: 1, generation: 2 }, place: 3, ..address(contact) };
            let stamp = signer.stamp(&other).unwrap();
            for (len, format) in [(0, Format::RAW), (4096, Format { codec: 3, fingerprint: 9 })] {
                let Address { id, place, .. } = address(contact);
                let key = signer.stamped(&stamp, id, place, len, format);
                assert_eq!(key, signer.key(&address(contact), len, format).unwrap());
            }
        }
    }

    #[test]
    fn any_other_bit_is_no_key() {
        let signer = Signer::new("tcp", &[7; 16]);
        let key = signer.key(&address("10.1.2.3:12345"), 4096, Format::RAW).unwrap();
        for bit in 0..key.locator().len() * 8 {
            let mut locator = key.locator().to_vec();
            locator[bit / 8] ^= 1 << (bit % 8);
            let forged = Key::new("tcp", &locator, 4096, Format::RAW).unwrap();
            assert_eq!(signer.address("get", &forged).unwrap_err().kind(), ErrorKind::Unauthorized, "bit {bit}");
        }
        let longer = Key::new("tcp", key.locator(), 4097, Format::RAW).unwrap();
        assert_eq!(signer.address("get", &longer).unwrap_err().kind(), ErrorKind::Unauthorized);
        let short = Key::new("tcp", &key.locator()[..7], 4096, Format::RAW).unwrap();
        assert_eq!(signer.address("get", &short).unwrap_err().kind(), ErrorKind::Invalid);
        let long = Key::new("tcp", &[0; 64], 4096, Format::RAW).unwrap();
        assert!(signer.address("get", &long).is_err());
    }

    #[test]
    fn another_secret_is_another_job() {
        let key = Signer::new("tcp", &[7; 16]).key(&address("10.1.2.3:12345"), 1, Format::RAW).unwrap();
        let error = Signer::new("tcp", &[8; 16]).address("get", &key).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized);
    }
}
