//! `Sizes`: what `--sizes` says.

use std::str::FromStr;

use proxystore::environment::parse_bytes;

/// Object sizes in bytes, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sizes(Vec<usize>);

impl Sizes {
    pub(super) fn all(&self) -> &[usize] {
        &self.0
    }
}

impl FromStr for Sizes {
    type Err = String;

    /// Reads `8,4096,1MiB`, `8..256MiB` (powers of 4), `8..256MiB*2`, and lists of these. Ranges include both ends.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut sizes = Vec::new();
        for item in text.split(',') {
            match item.split_once("..") {
                None => sizes.push(size(item)?),
                Some((first, rest)) => {
                    let (last, factor) = match rest.split_once('*') {
                        None => (rest, FACTOR),
                        Some((last, factor)) => (last, factor.trim().parse().map_err(|_| bad_factor(factor))?),
                    };
                    range(size(first)?, size(last)?, factor, &mut sizes)?;
                }
            }
        }
        Ok(Self(sizes))
    }
}

fn range(first: usize, last: usize, factor: usize, sizes: &mut Vec<usize>) -> Result<(), String> {
    if first > last {
        return Err(format!("the range {first}..{last} is empty"));
    }
    if factor < 2 {
        return Err(bad_factor(&factor.to_string()));
    }
    let mut size = first;
    while size < last {
        sizes.push(size);
        size = size.saturating_mul(factor);
    }
    sizes.push(last);
    Ok(())
}

fn size(text: &str) -> Result<usize, String> {
    match parse_bytes(text) {
        Some(0) => Err("a size of 0 has no bandwidth; the smallest is 1".to_owned()),
        Some(n) if n <= LARGEST => Ok(n as usize),
        Some(_) => Err(format!("{text}: at most 64GiB")),
        None => Err(format!("{text:?} is not a size; write for example 8,4096,1MiB or 8..256MiB")),
    }
}

fn bad_factor(text: &str) -> String {
    format!("factor {text:?}: expected a number of at least 2")
}

const FACTOR: usize = 4;

/// Keeps every product of a size in range; nobody has such memory either.
const LARGEST: u64 = 64 << 30;

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(text: &str) -> Result<Vec<usize>, String> {
        text.parse::<Sizes>().map(|sizes| sizes.0)
    }

    #[test]
    fn lists_and_ranges() {
        assert_eq!(sizes("8,4096,1MiB").unwrap(), [8, 4096, 1 << 20]);
        assert_eq!(sizes("8..128").unwrap(), [8, 32, 128]);
        assert_eq!(sizes("8..100").unwrap(), [8, 32, 100], "the end is included");
        assert_eq!(sizes("8..64*2").unwrap(), [8, 16, 32, 64]);
        assert_eq!(sizes("1, 1KiB .. 64KiB * 8").unwrap(), [1, 1024, 8192, 65536]);
        assert_eq!(sizes("5..5").unwrap(), [5]);
        assert_eq!(sizes("8..256MiB").unwrap().len(), 14);
        assert_eq!(sizes("8..256MiB*2").unwrap().len(), 26);
    }

    #[test]
    fn nonsense_says_why() {
        for (text, part) in [
            ("", "not a size"),
            ("8,,9", "not a size"),
            ("big", "not a size"),
            ("-1", "not a size"),
            ("0", "smallest"),
            ("9..8", "empty"),
            ("8..", "not a size"),
            ("..8", "not a size"),
            ("8..9*1", "at least 2"),
            ("8..9*x", "at least 2"),
            ("1..2..3", "not a size"),
            ("65GiB", "at most"),
            ("99999999999999999999", "not a size"),
        ] {
            let error = sizes(text).unwrap_err();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
