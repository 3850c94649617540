//! `TokenBuffer`: a token in a buffer whose size both sides know before they talk.

use std::fmt;

use super::{Token, invalid};
use crate::error::{Error, ErrorKind, Result};

/// A token in `N` bytes: what `MPI_Bcast`, a Fortran `character(len=N)` or a record of a file carries.
///
/// Plain bytes without a pointer in them. They hold the token's text, then zeros; blanks in their place, with which Fortran pads,
/// are read too. In C it is a `char[N]` that ends in zero unless the text takes all of it. 256 bytes have room for a token of
/// a store whose URL has up to 120 characters.
///
/// # Examples
/// ```
/// use proxystore::token::TokenBuffer;
/// use proxystore::{Proxy, Store};
///
/// # fn main() -> proxystore::Result<()> {
/// # fn broadcast(_: &mut [u8]) {}
/// let store = Store::open("memory://buffer")?;
/// let field: Proxy<[f64]> = store.proxy(&[1.0, 2.0][..]).wait()?;
/// let mut buffer: TokenBuffer = field.to_token_buffer()?; // on the root; `TokenBuffer::EMPTY` on the other ranks
/// broadcast(buffer.as_mut_bytes()); // MPI_Bcast of N bytes
/// let field: Proxy<[f64]> = Proxy::from_token_buffer(&buffer)?;
/// assert_eq!(field[1], 2.0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct TokenBuffer<const N: usize = 256>([u8; N]);

impl<const N: usize> TokenBuffer<N> {
    /// No token: zeros, what a receiver starts from.
    pub const EMPTY: Self = Self([0; N]);

    /// Writes a token.
    ///
    /// # Cost
    /// Two small allocations.
    ///
    /// # Errors
    /// `TooLarge` when its text has more than `N` characters.
    pub fn new(token: &Token) -> Result<Self> {
        let text = token.to_string();
        let mut bytes = [0; N];
        let Some(room) = bytes.get_mut(..text.len()) else {
            let context = format!("a token of {} characters in a buffer of {N} bytes", text.len());
            return Err(Error::new(ErrorKind::TooLarge, "encode", context));
        };
        room.copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }

    /// Takes bytes that came from elsewhere. Looks at none of them; [`token`](Self::token) does.
    pub const fn from_bytes(bytes: [u8; N]) -> Self {
        Self(bytes)
    }

    /// The bytes to send.
    pub const fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// Where to receive.
    pub fn as_mut_bytes(&mut self) -> &mut [u8; N] {
        &mut self.0
    }

    /// Whether there is no token: zeros and blanks alone.
    pub fn is_empty(&self) -> bool {
        self.text().is_empty()
    }

    /// Reads the token. Opens and fetches nothing.
    ///
    /// # Errors
    /// `Invalid` for anything but the text of a token followed by zeros or blanks.
    pub fn token(&self) -> Result<Token> {
        let text = self.text();
        if text.is_empty() {
            return Err(invalid(format!("no token in a buffer of {N} bytes: was anything received?")));
        }
        match std::str::from_utf8(text) {
            // `Token` forgives blanks around a token, as a line of a file may have.
            Ok(text) if !text.contains(char::is_whitespace) => text.parse(),
            _ => Err(invalid("a token buffer that does not begin with the text of a token")),
        }
    }

    /// What is before the padding.
    fn text(&self) -> &[u8] {
        let end = self.0.iter().rposition(|byte| !matches!(byte, 0 | b' ')).map_or(0, |last| last + 1);
        &self.0[..end]
    }
}

impl<const N: usize> Default for TokenBuffer<N> {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl<const N: usize> TryFrom<&[u8]> for TokenBuffer<N> {
    type Error = Error;

    /// One of many that came together, as from `MPI_Allgather`: `N` bytes each.
    fn try_from(bytes: &[u8]) -> Result<Self> {
        match bytes.try_into() {
            Ok(bytes) => Ok(Self(bytes)),
            Err(_) => Err(invalid(format!("{} bytes for a token buffer of {N}", bytes.len()))),
        }
    }
}

impl<const N: usize> fmt::Debug for TokenBuffer<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenBuffer<{N}>({:?})", String::from_utf8_lossy(self.text()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::{Format, Key};
    use crate::token::Access;

    fn sample() -> Token {
        let key = Key::new("tcp", &[7; 39], 1 << 30, Format { codec: 2, fingerprint: u64::MAX }).unwrap();
        Token::Object { url: "tcp://slurm-4711".into(), key, access: Access::Get }
    }

    #[test]
    fn tokens_come_back() {
        let token = sample();
        let buffer = TokenBuffer::<256>::new(&token).unwrap();
        assert_eq!(TokenBuffer::from_bytes(*buffer.as_bytes()).token().unwrap(), token);
        assert_eq!(TokenBuffer::<256>::try_from(&buffer.as_bytes()[..]).unwrap(), buffer);
        assert_eq!(size_of_val(&buffer), 256);
    }

    #[test]
    fn fortran_pads_with_blanks() {
        let token = sample();
        let mut buffer = TokenBuffer::<256>::new(&token).unwrap();
        buffer.as_mut_bytes().iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
        assert_eq!(buffer.token().unwrap(), token);
        // What C makes of it.
        buffer.as_mut_bytes()[255] = 0;
        assert_eq!(buffer.token().unwrap(), token);
        assert!(TokenBuffer::from_bytes([b' '; 8]).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        const LEN: usize = 108;
        let token = sample();
        assert_eq!(token.to_string().len(), LEN);
        assert_eq!(TokenBuffer::<LEN>::new(&token).unwrap().token().unwrap(), token, "without padding");
        let error = TokenBuffer::<{ LEN - 1 }>::new(&token).unwrap_err();
        assert_eq!((error.kind(), error.context().contains("108")), (ErrorKind::TooLarge, true), "{error}");
        assert_eq!(TokenBuffer::<256>::try_from(&[0; 255][..]).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(TokenBuffer::<0>::new(&token).unwrap_err().kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn nothing_received_is_said() {
        assert!(TokenBuffer::<256>::default().is_empty());
        let error = TokenBuffer::<256>::EMPTY.token().unwrap_err();
        assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("received"), "{error}");
        assert_eq!(TokenBuffer::<0>::EMPTY.token().unwrap_err().kind(), ErrorKind::Invalid);
    }

    #[test]
    fn one_wrong_byte_is_refused() {
        let buffer = TokenBuffer::<256>::new(&sample()).unwrap();
        for at in 0..256 {
            for byte in [b'A', b'\n', 0, b' ', 0xff] {
                let mut bytes = *buffer.as_bytes();
                // Zeros and blanks behind the text are one as good as the other.
                if bytes[at] == byte || (bytes[at] == 0 && byte == b' ') {
                    continue;
                }
                bytes[at] = byte;
                let read = TokenBuffer::from_bytes(bytes).token();
                assert_eq!(read.unwrap_err().kind(), ErrorKind::Invalid, "{byte:#x} at {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_are_refused_or_written_so(mut bytes: [u8; 64], whole: bool) {
            if whole {
                let token = Token::Factory { name: "n".into(), payload: bytes[..16].into() };
                bytes = *TokenBuffer::<64>::new(&token).unwrap().as_bytes();
            }
            match TokenBuffer::from_bytes(bytes).token() {
                Ok(token) => prop_assert_eq!(*TokenBuffer::<64>::new(&token).unwrap().as_bytes(), bytes),
                Err(error) => prop_assert_eq!((error.kind(), whole), (ErrorKind::Invalid, false)),
            }
        }
    }
}
