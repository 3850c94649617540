//! The secret of a job, by which its nodes know each other.

use std::fmt;
use std::path::{Path, PathBuf};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

use super::Job;
use super::ranks::wrong;
use crate::environment;
use crate::error::Result;

mod file;

/// 32 bytes that the processes of a job know and nobody else does.
///
/// It is never shown, has no `Clone`, lies in one place of memory and is overwritten when dropped. It authenticates; it encrypts
/// nothing.
pub struct Secret {
    /// Boxed, or moving the value would leave copies.
    bytes: Bytes,
    source: SecretSource,
}

/// Where a secret comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecretSource {
    /// `PROXYSTORE_SECRET`.
    Variable,
    /// The file that `PROXYSTORE_SECRET_FILE` names.
    File(PathBuf),
    /// Derived from the user's file, which all nodes see that share a home, and the name of the job.
    User(PathBuf),
    /// The kernel's random source: nobody else has it.
    Random,
}

type Bytes = Box<Zeroizing<[u8; Secret::LEN]>>;

impl Secret {
    /// Its length, in bytes.
    pub const LEN: usize = 32;

    /// The secret of a job: `PROXYSTORE_SECRET`, else what the file `PROXYSTORE_SECRET_FILE` holds, else the HMAC of the job's name
    /// under the user's own secret. That lies in `$XDG_CONFIG_HOME/proxystore/secret` or `~/.config/proxystore/secret`, and is made
    /// when it is first needed: processes on nodes that share a home agree on one, also when they come at the same time.
    ///
    /// # Cost
    /// System calls; some milliseconds the first time for a user.
    ///
    /// # Errors
    /// `Config` for a secret that is not 64 hexadecimal digits, and where neither home nor variable is known; `Permission` for a file
    /// that is another user's or open to others; what the file system says.
    pub fn of_job(job: &Job) -> Result<Self> {
        Self::of(&process_paths, &job.id)
    }

    /// One that nobody else has.
    pub(crate) fn random() -> Self {
        let mut bytes = empty();
        crate::key::fill_random(&mut bytes[..]);
        Self { bytes, source: SecretSource::Random }
    }

    /// Where it comes from.
    pub fn source(&self) -> &SecretSource {
        &self.source
    }

    /// HMAC-SHA256 (RFC 2104) of a message for one purpose: what is right for one `domain` is wrong for every other, and where a part
    /// ends is part of the message.
    ///
    /// # Cost
    /// About a microsecond, and what SHA-256 takes for the bytes.
    pub fn mac(&self, domain: &str, parts: &[&[u8]]) -> [u8; 32] {
        self.digest(domain, parts).finalize().into_bytes().into()
    }

    /// Whether `tag` is the [`mac`](Self::mac) of the message. Takes as long for a wrong one as for the right one.
    ///
    /// # Cost
    /// As [`mac`](Self::mac).
    pub fn verify(&self, domain: &str, parts: &[&[u8]], tag: &[u8]) -> bool {
        self.digest(domain, parts).verify_slice(tag).is_ok()
    }

    /// The key of the short MAC in keys of objects. It tells nothing of the secret.
    pub fn key_mac_key(&self) -> [u8; 16] {
        let mut whole = self.mac("key of the mac in keys", &[]);
        let mut key = [0; 16];
        key.copy_from_slice(&whole[..16]);
        whole.zeroize();
        key
    }

    fn of(read: &dyn Fn(&str) -> Option<PathBuf>, id: &str) -> Result<Self> {
        let source = SecretSource::of(read)?;
        let bytes = match &source {
            SecretSource::Variable => {
                let text = read(environment::SECRET.name).unwrap_or_default().into_os_string().into_encoded_bytes();
                parse(&Zeroizing::new(text), environment::SECRET.name)?
            }
            SecretSource::File(path) => file::read(path)?,
            SecretSource::Random => return Ok(Self::random()),
            SecretSource::User(path) => Self { bytes: file::find_or_make(path)?, source: source.clone() }.of_name(id),
        };
        Ok(Self { bytes, source })
    }

    fn digest(&self, domain: &str, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut hmac = self.hmac();
        for part in [domain.as_bytes()].iter().chain(parts) {
            hmac.update(&(part.len() as u64).to_le_bytes());
            hmac.update(part);
        }
        hmac
    }

    /// The secret of the job of that name. Its message begins with a letter, those of [`digest`](Self::digest) with a length, whose
    /// eighth byte is zero.
    fn of_name(&self, id: &str) -> Bytes {
        let mut hmac = self.hmac();
        hmac.update(b"proxystore job ");
        hmac.update(id.as_bytes());
        let mut bytes = empty();
        bytes.copy_from_slice(&hmac.finalize().into_bytes());
        bytes
    }

    fn hmac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(&self.bytes[..]).expect("HMAC takes keys of any length")
    }
}

/// In constant time.
impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        other.verify("equality", &[], &self.mac("equality", &[]))
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("source", &self.source).finish_non_exhaustive()
    }
}

impl SecretSource {
    /// Where [`Secret::of_job`] would take the secret from, by the environment alone: nothing is opened or made.
    ///
    /// # Errors
    /// `Config` where neither a variable nor a home is known.
    pub fn seen() -> Result<Self> {
        Self::of(&process_paths)
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Variable | Self::Random => None,
            Self::File(path) | Self::User(path) => Some(path),
        }
    }

    fn of(read: &dyn Fn(&str) -> Option<PathBuf>) -> Result<Self> {
        if read(environment::SECRET.name).is_some() {
            return Ok(Self::Variable);
        }
        if let Some(path) = read(environment::SECRET_FILE.name) {
            return Ok(Self::File(path));
        }
        // A relative one counts as not set (XDG Base Directory Specification).
        let absolute = |name: &str| read(name).filter(|path| path.is_absolute());
        let config = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")));
        match config {
            Some(config) => Ok(Self::User(config.join("proxystore").join("secret"))),
            None => Err(wrong(
                "neither XDG_CONFIG_HOME nor HOME says where your secret lies; set PROXYSTORE_SECRET_FILE, the same on all nodes",
            )),
        }
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable => f.write_str("PROXYSTORE_SECRET"),
            Self::File(path) => write!(f, "{} (PROXYSTORE_SECRET_FILE)", path.display()),
            Self::User(path) => write!(f, "derived from {}", path.display()),
            Self::Random => f.write_str("random"),
        }
    }
}

fn process_paths(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn empty() -> Bytes {
    Box::new(Zeroizing::new([0; Secret::LEN]))
}

/// The bytes of 64 hexadecimal digits; `place` says where they stood.
fn parse(text: &[u8], place: &str) -> Result<Bytes> {
    let digits = text.trim_ascii();
    let mut bytes = empty();
    let is_right = digits.len() == 2 * Secret::LEN
        && digits.chunks_exact(2).zip(bytes.iter_mut()).all(|(pair, byte)| {
            let digit = |at: usize| (pair[at] as char).to_digit(16);
            digit(0).zip(digit(1)).map(|(high, low)| *byte = (high << 4 | low) as u8).is_some()
        });
    match is_right {
        true => Ok(bytes),
        // Without the text: it may be a secret with one digit too many.
        false => Err(wrong(format!(
            "{place} holds {} bytes that are not 64 hexadecimal digits; `openssl rand -hex 32` makes such",
            digits.len()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn secret(byte: u8) -> Secret {
        Secret { bytes: Box::new(Zeroizing::new([byte; 32])), source: SecretSource::Variable }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_mac_is_of_its_domain_and_parts() {
        let secret = secret(7);
        let tag = secret.mac("hello", &[b"ab", b"c"]);
        assert!(secret.verify("hello", &[b"ab", b"c"], &tag));
        for (domain, parts) in [
            ("hello", &[&b"a"[..], b"bc"][..]),
            ("hello", &[b"abc"]),
            ("hello", &[b"ab", b"c", b""]),
            ("hello", &[b"c", b"ab"]),
            ("hell", &[b"ab", b"c"]),
            ("welcome", &[b"ab", b"c"]),
        ] {
            assert!(!secret.verify(domain, parts, &tag), "{domain} {parts:?}");
        }
        for wrong in [&tag[..31], &[&tag[..], &[0]].concat(), &[], &[0; 32]] {
            assert!(!secret.verify("hello", &[b"ab", b"c"], wrong));
        }
        assert!(!super::tests::secret(8).verify("hello", &[b"ab", b"c"], &tag));
        for at in 0..32 {
            let mut flipped = tag;
            flipped[at] ^= 1;
            assert!(!secret.verify("hello", &[b"ab", b"c"], &flipped), "{at}");
        }
    }

    /// Other programs, and other versions of this one, have to compute the same: made with Python's `hmac` and `struct`.
    #[test]
    fn known_answers() {
        let secret = secret(7);
        assert_eq!(
            hex(&secret.mac("hello", &[b"ab", b"c"])),
            "a4b41d18f55304ed8b783bf483e942b02bd73e6b67eb7999c4f6ac7684aac25a"
        );
        assert_eq!(hex(&secret.key_mac_key()), "9bbdd171f804df5bb5bf917c3378af62");
        assert_eq!(
            hex(&secret.of_name("slurm-7")[..]),
            "ca57712c9ca7fd54addd29bac2bd88adb7e49383e7d3a3f9811658a956744dc7"
        );
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", secret(0xab)), "Secret { source: Variable, .. }");
        let digits = format!("{}x", "ab".repeat(32));
        let error = parse(digits.as_bytes(), "PROXYSTORE_SECRET").unwrap_err();
        assert!(error.to_string().contains("65 bytes") && !format!("{error:?}").contains("abab"), "{error:?}");
    }

    #[test]
    fn secrets_are_equal_or_not() {
        assert_eq!(secret(1), secret(1));
        assert_ne!(secret(1), secret(2));
    }

    #[test]
    fn digits() {
        let digits = "00ff7F80".repeat(8);
        assert_eq!(parse(format!(" {digits}\n").as_bytes(), "x").unwrap()[..4], [0, 0xff, 0x7f, 0x80]);
        let bad = digits.replacen('f', "g", 1);
        let wide = "é".repeat(32);
        let signed = digits.replacen("00", "+0", 1);
        for text in ["", "00", &digits[1..], &format!("{digits}00"), &bad, &wide, &signed, &"\0".repeat(64)] {
            assert_eq!(parse(text.as_bytes(), "x").unwrap_err().kind(), ErrorKind::Config, "{text:?}");
        }
    }

    #[test]
    fn secrets_of_jobs() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| (name == "HOME").then(|| home.path().to_owned());
        let derived = Secret::of(&at, "slurm-7").unwrap();
        assert_eq!(derived, Secret::of(&at, "slurm-7").unwrap());
        assert_ne!(derived, Secret::of(&at, "slurm-8").unwrap());
        // Who knows the secret of a job does not know the user's.
        let own = home.path().join(".config/proxystore/secret");
        assert_eq!(derived.source(), &SecretSource::User(own.clone()));
        assert_ne!(derived.bytes[..], file::read(&own).unwrap()[..]);

        // Given ones are the same for every job.
        let given = |name: &str| (name == "PROXYSTORE_SECRET").then(|| "ab".repeat(32).into());
        assert_eq!(Secret::of(&given, "a").unwrap(), secret(0xab));
        assert_eq!(Secret::of(&given, "b").unwrap(), secret(0xab));
        let of_file = |name: &str| (name == "PROXYSTORE_SECRET_FILE").then(|| own.clone());
        let from_file = Secret::of(&of_file, "a").unwrap();
        assert_eq!(from_file.bytes[..], file::read(&own).unwrap()[..]);
        // A file that the user named is not made.
        let missing = |name: &str| (name == "PROXYSTORE_SECRET_FILE").then(|| home.path().join("none"));
        assert_eq!(Secret::of(&missing, "a").unwrap_err().kind(), ErrorKind::NotFound);
        let short = |name: &str| (name == "PROXYSTORE_SECRET").then(|| "ab".into());
        assert_eq!(Secret::of(&short, "a").unwrap_err().kind(), ErrorKind::Config);
    }

    #[test]
    fn sources_in_order() {
        let all =
            [("PROXYSTORE_SECRET", "s"), ("PROXYSTORE_SECRET_FILE", "f"), ("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")];
        let from = |set: &[(&str, &str)]| {
            SecretSource::of(&|name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert_eq!(from(&all).unwrap(), SecretSource::Variable);
        assert_eq!(from(&all[1..]).unwrap(), SecretSource::File("f".into()));
        assert_eq!(from(&all[2..]).unwrap(), SecretSource::User("/c/proxystore/secret".into()));
        assert_eq!(from(&all[3..]).unwrap(), SecretSource::User("/h/.config/proxystore/secret".into()));
        let relative = [("XDG_CONFIG_HOME", "c"), ("HOME", "/h")];
        assert_eq!(from(&relative).unwrap(), SecretSource::User("/h/.config/proxystore/secret".into()));
        for nowhere in [&[][..], &[("HOME", "h")]] {
            assert_eq!(from(nowhere).unwrap_err().kind(), ErrorKind::Config);
        }
    }
}
