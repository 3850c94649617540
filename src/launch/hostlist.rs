//! Lists of hosts as Slurm writes them.

use crate::error::{Error, ErrorKind, Result};

/// The names in a list such as `login,n[1-3,07-09]`, in order.
///
/// An item is a name in which every pair of brackets stands for a choice of numbers: `r[1-2]n[01-02]-ib` are the four names
/// `r1n01-ib`, `r1n02-ib`, `r2n01-ib` and `r2n02-ib`. A number is as wide as the one that its range begins with. Names are of
/// `A-Z a-z 0-9 . _ -`. It is the form of `SLURM_JOB_NODELIST` (hostlists in Slurm's srun(1)).
///
/// # Cost
/// One allocation a name. At most 262,144 names and 16 MiB of them, whatever the list says.
///
/// # Errors
/// `Invalid` for what is no such list, `TooLarge` for one of more names.
///
/// # Examples
/// ```
/// # fn main() -> proxystore::Result<()> {
/// assert_eq!(proxystore::launch::expand("n[9-11],login")?, ["n9", "n10", "n11", "login"]);
/// # Ok(())
/// # }
/// ```
pub fn expand(list: &str) -> Result<Vec<String>> {
    let mut names = Names::default();
    for item in items(list) {
        let parts = parse_item(item).ok_or_else(|| malformed(list))?;
        // Before the first name is made: a choice of 10^18 numbers is short to write.
        let count = parts.iter().try_fold(1, |count: usize, part| count.checked_mul(part.count()?));
        if count.and_then(|count| count.checked_add(names.all.len())).is_none_or(|count| count > MAX_NAMES) {
            return Err(too_many(list));
        }
        names.add("", &parts).ok_or_else(|| too_many(list))?;
    }
    Ok(names.all)
}

/// Most names of a list: more than any machine has nodes.
const MAX_NAMES: usize = 1 << 18;

/// Most bytes of names.
const MAX_BYTES: usize = 16 << 20;

/// Longest name of a host, in bytes (RFC 1035).
const MAX_NAME: usize = 255;

#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Choice(Vec<Range>),
}

/// Numbers written with at least `width` digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u64,
    last: u64,
    width: usize,
}

impl Part<'_> {
    /// `None` for more than can be counted.
    fn count(&self) -> Option<usize> {
        match self {
            Self::Text(_) => Some(1),
            Self::Choice(ranges) => ranges.iter().try_fold(0, |count: usize, range| {
                let more = usize::try_from(range.last - range.first).ok()?.checked_add(1)?;
                count.checked_add(more)
            }),
        }
    }
}

#[derive(Default)]
struct Names {
    all: Vec<String>,
    bytes: usize,
}

impl Names {
    /// Adds the names that begin with `head`; `None` when they are too long together. Recursion is as deep as an item has
    /// parts, which [`parse_item`] bounds.
    fn add(&mut self, head: &str, parts: &[Part<'_>]) -> Option<()> {
        let Some((part, rest)) = parts.split_first() else {
            self.bytes += head.len();
            self.all.push(head.to_owned());
            return (self.bytes <= MAX_BYTES && head.len() <= MAX_NAME).then_some(());
        };
        match part {
            Part::Text(text) => self.add(&format!("{head}{text}"), rest),
            Part::Choice(ranges) => ranges.iter().try_for_each(|range| {
                let width = range.width;
                (range.first..=range.last).try_for_each(|number| self.add(&format!("{head}{number:0width$}"), rest))
            }),
        }
    }
}

/// The parts between the commas that stand outside brackets.
fn items(list: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0i32;
    list.split(move |c| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        c == ',' && depth == 0
    })
}

/// `None` for what is no item.
fn parse_item(item: &str) -> Option<Vec<Part<'_>>> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let mut parts = Vec::new();
    let mut rest = item;
    while !rest.is_empty() {
        // More choices than this have more names than a list, or stand for one name each.
        if parts.len() == 32 {
            return None;
        }
        let (part, after) = match rest.strip_prefix('[') {
            Some(choice) => {
                let (choice, after) = choice.split_once(']')?;
                (Part::Choice(choice.split(',').map(parse_range).collect::<Option<_>>()?), after)
            }
            None => {
                let (text, after) = rest.split_at(rest.find('[').unwrap_or(rest.len()));
                (Part::Text(text), after)
            }
        };
        if matches!(part, Part::Text(text) if text.len() > MAX_NAME || !text.bytes().all(is_allowed)) {
            return None;
        }
        parts.push(part);
        rest = after;
    }
    // `a[1-3]` is a host, `[1-3]` a list of numbers.
    matches!(parts.first(), Some(Part::Text(_))).then_some(parts)
}

/// `7`, `07-12`.
fn parse_range(range: &str) -> Option<Range> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |digits: &str| {
        let is_number = (1..=18).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten()
    };
    let range = Range { first: number(first)?, last: number(last)?, width: first.len() };
    (range.first <= range.last).then_some(range)
}

fn malformed(list: &str) -> Error {
    let context = format!("{:?} is no list of hosts such as n[01-04,7],login", beginning(list));
    Error::new(ErrorKind::Invalid, "launch", context)
}

fn too_many(list: &str) -> Error {
    let context = format!("{:?} names more than {MAX_NAMES} hosts, or names longer than any", beginning(list));
    Error::new(ErrorKind::TooLarge, "launch", context)
}

/// As much of a list as fits into a message.
fn beginning(list: &str) -> &str {
    list.char_indices().nth(60).map_or(list, |(at, _)| &list[..at])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        for (list, names) in [
            ("n1", &["n1"][..]),
            ("a[1-3,07-09],b", &["a1", "a2", "a3", "a07", "a08", "a09", "b"]),
            ("r[1-2]n[01-02]", &["r1n01", "r1n02", "r2n01", "r2n02"]),
            ("n[1,3]-ib.cluster", &["n1-ib.cluster", "n3-ib.cluster"]),
            ("n[8-11]", &["n8", "n9", "n10", "n11"]),
            ("n[08-11]", &["n08", "n09", "n10", "n11"]),
            ("n[98-101],n[007]", &["n98", "n99", "n100", "n101", "n007"]),
            ("x,x", &["x", "x"]),
            ("10.0.0.[1-2]", &["10.0.0.1", "10.0.0.2"]),
        ] {
            assert_eq!(expand(list).unwrap(), names, "{list}");
        }
    }

    #[test]
    fn malformed_lists() {
        let long = "n".repeat(MAX_NAME + 1);
        let deep = format!("n{}", "[1]".repeat(40));
        for list in [
            "",
            ",",
            "a,",
            "a,,b",
            "a[",
            "a]",
            "a[]",
            "a[1",
            "a1]",
            "a[1-]",
            "a[-1]",
            "a[3-1]",
            "a[1-2-3]",
            "a[1,]",
            "a[x]",
            "a[[1]]",
            "[1-3]",
            "a b",
            "a\n",
            "a[1 ]",
            "ä",
            "a/b",
            "a[+1]",
            "a[1234567890123456789]",
            &long,
            &deep,
        ] {
            assert_eq!(expand(list).unwrap_err().kind(), ErrorKind::Invalid, "{list:?}");
        }
    }

    #[test]
    fn hostile_lists_end_soon() {
        let many = ["n[1-1000000000]", "n[0-999999999999999999]", "a[1-512]b[1-513]", "a[1-2]b[0-99999]c[0-99999]"];
        let doubled = format!("n{}", "[0-1]".repeat(31));
        let summed = format!("n[{}]", ["0-999999999999999999"; 100].join(","));
        let repeated = ["n[1-200000]"; 2].join(",");
        // 2 * 10^5 names of 250 bytes.
        let long = format!("{}[1-200000]", "n".repeat(240));
        // Each part is short enough, the name is not.
        let name = format!("{}[1]{}", "a".repeat(200), "b".repeat(100));
        for list in many.into_iter().chain([&*doubled, &summed, &repeated, &long, &name]) {
            assert_eq!(expand(list).unwrap_err().kind(), ErrorKind::TooLarge, "{list}");
        }
        assert_eq!(expand("a[1-512]b[1-512]").unwrap().len(), MAX_NAMES);
    }

    proptest! {
        #[test]
        fn anything_is_an_answer(list in "[a-c0-3,.\\[\\]-]{0,40}") {
            if let Ok(names) = expand(&list) {
                // What is accepted are names: each is a list of itself.
                prop_assert!(!names.is_empty() && names.len() <= MAX_NAMES);
                for name in names.iter().take(64) {
                    prop_assert_eq!(expand(name).unwrap(), std::slice::from_ref(name));
                }
            }
        }

        #[test]
        fn any_text_is_an_answer(list in "\\PC*") {
            let _ = expand(&list);
        }

        #[test]
        fn ranges_are_what_they_say(head in "[a-z]{1,4}", first in 0u64..2000, more in 0u64..50, width in 1usize..6, tail in "[a-z]{0,3}") {
            let last = first + more;
            let names = expand(&format!("{head}[{first:0width$}-{last}]{tail}")).unwrap();
            let expected: Vec<String> = (first..=last).map(|n| format!("{head}{n:0width$}{tail}")).collect();
            prop_assert_eq!(names, expected);
        }
    }
}
