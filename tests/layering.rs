//! The structure of the crate, checked: modules point one way, `unsafe` stays where it is listed, and the lists of
//! connectors agree. All checks read the sources as text.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proxystore::connectors::{FEATURES, TABLE};
use proxystore::environment::VARIABLES;

/// The only modules that may contain `unsafe`, each under an `unsafe_code` expectation where it is declared.
const UNSAFE: &[&str] = &[
    "bin::proxystore::margo",
    "bin::proxystore::ucp",
    "codec::archive",
    "codec::plain",
    "connectors::file::mapping",
    "fabric::descriptor",
    "fabric::landing",
    "fabric::margo::native",
    "fabric::tcp::scatter",
    "fabric::ucx::admission",
    "fabric::ucx::connections",
    "fabric::ucx::context",
    "fabric::ucx::endpoint",
    "fabric::ucx::exit",
    "fabric::ucx::memory",
    "fabric::ucx::operation",
    "fabric::ucx::worker",
    "process",
    "region",
    "service::client",
    "service::keeper",
    "service::link",
    "service::lock",
    "service::signals",
    "service::wire",
    "shm::futex",
    "shm::mapped",
    "shm::segment",
];

/// As `UNSAFE`, of modules that exist in tests only.
const UNSAFE_IN_TESTS: &[&str] = &["fabric::tcp::fork", "fabric::ucx::tests::hostile", "shm::table::bytes"];

/// Cargo features that are no connectors.
const OTHER_FEATURES: &[&str] =
    &["default", "msgpack", "rkyv", "metrics", "tracing", "conformance", "failpoints", "cli"];

#[test]
fn modules_point_one_way() {
    assert_none("modules that use one listed above them in src/lib.rs", upward_uses(&sources("src")));
}

#[test]
fn unsafe_is_where_it_is_listed() {
    assert_none("unsafe outside the list", unsafe_outside(&sources("src"), &[UNSAFE, UNSAFE_IN_TESTS].concat()));
    let declared = unsafe_declarations(&sources("src"));
    let listed: BTreeSet<String> = UNSAFE.iter().map(|name| name.to_string()).collect();
    assert_eq!(declared, listed, "modules declared with expect(unsafe_code), and the list in tests/layering.rs");
}

#[test]
fn features_are_the_table() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("a manifest");
    let features: BTreeSet<&str> =
        manifest["features"].as_table().expect("a table").keys().map(String::as_str).collect();
    let known: BTreeSet<&str> = FEATURES.iter().chain(OTHER_FEATURES).copied().collect();
    assert_eq!(
        features, known,
        "features of Cargo.toml, and connectors::FEATURES with the others of tests/layering.rs"
    );

    assert_eq!(
        table_rows(&read("src/connectors/mod.rs")),
        FEATURES,
        "rows of connectors::TABLE, and connectors::FEATURES"
    );
    for row in TABLE {
        assert!(FEATURES.contains(&row.scheme), "{} of connectors::TABLE is not in connectors::FEATURES", row.scheme);
    }
}

#[test]
fn the_readme_lists_the_connectors() {
    assert!(root("README.md").exists(), "there is no README.md, which has to list the connectors");
    let listed = markdown_connectors(&read("README.md"));
    assert_eq!(listed, FEATURES, "the README's table with the header `connector`, and connectors::FEATURES");
}

#[test]
fn variables_are_documented() {
    let places = ["src", "scripts", "examples", "slurm", "benches", ".ci"].into_iter().flat_map(sources);
    let readme = root("README.md").exists().then(|| ("README.md".to_owned(), read("README.md")));
    let mut unknown = Vec::new();
    for (path, text) in places.chain(readme) {
        for name in variables(&text) {
            if VARIABLES.iter().all(|known| known.name != name) {
                unknown.push(format!("{path}: {name}"));
            }
        }
    }
    assert_none("PROXYSTORE_* names that environment::VARIABLES lacks", unknown);
}

#[test]
fn files_are_one_noun_of_readable_length() {
    let long = sources("src").into_iter().filter(|(_, text)| text.lines().count() > 700).map(|(path, _)| path);
    assert_none("files of over 700 lines", long.collect());
    let shapeless = ["utils.rs", "common.rs", "helpers.rs", "types.rs", "misc.rs"];
    let found = sources("src").into_iter().map(|(path, _)| path);
    assert_none(
        "files named after nothing",
        found.filter(|path| shapeless.iter().any(|name| path.ends_with(name))).collect(),
    );
}

#[test]
fn documentation_compiles() {
    let mut fences = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources(".")) {
        if path.ends_with(".rs") || path.ends_with(".md") {
            fences.extend(ignored_fences(&text).into_iter().map(|line| format!("{path}:{line}")));
        }
    }
    assert_none("code fences that nothing compiles", fences);
}

/// What the checks above do find, on sources made up for it.
mod mutations {
    use super::*;

    fn crate_of(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let lib = "/// mod ghost;\n#[cfg(feature = \"x\")]\npub mod top;\nmod middle;\npub mod base;\n\
                   pub use base::{Low, Lower as Lowest};\npub use top::High;";
        [("src/lib.rs", lib)].iter().chain(files).map(|(path, text)| (path.to_string(), text.to_string())).collect()
    }

    #[test]
    fn downward_uses_pass() {
        let files = [
            ("src/top.rs", "use crate::middle::X; use crate::{base, Low};"),
            ("src/top/part.rs", "use crate::top::Y; use super::Z; use crate::High;"),
            ("src/middle.rs", "//! crate::top\n/* crate::top */ const S: &str = \"crate::top\"; use crate::base::Low;"),
            ("src/base.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::top::X; fn g() { if true {} } }"),
            ("src/bin/tool/main.rs", "use crate::top;"),
        ];
        assert_eq!(upward_uses(&crate_of(&files)), Vec::<String>::new());
    }

    #[test]
    fn upward_uses_are_found() {
        for text in [
            "use crate::top::X;",
            "fn f() { crate :: top::f() }",
            "use crate::{base, top::X};",
            "use crate::{base::{self, a::{b}}, top};",
            "use crate::High;",
            "use super::top::X;",
            "macro_rules! m { () => { $crate::top::f() } }",
            "#[cfg(test)]\nmod tests { }\nuse crate::top::X;",
            "#[cfg(test)]\nuse crate::base::X;\nuse crate::top::X;",
            "const C: char = '\"'; use crate::top::X; const D: &str = \"\\\"\";",
            "fn f<'a>(x: &'a str) { crate::top::f::<'a>(x) }",
            "const R: &str = r#\"\"quoted\"\"#; use crate::top::X;",
        ] {
            let found = upward_uses(&crate_of(&[("src/middle.rs", text)]));
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
        assert_eq!(upward_uses(&crate_of(&[("src/middle/deep/x.rs", "use crate::top;")])).len(), 1);
        assert_eq!(upward_uses(&crate_of(&[("src/other.rs", "use crate::base;")])).len(), 1, "a module of no rank");
    }

    #[test]
    fn unsafe_is_found() {
        let files =
            [("src/top.rs", "unsafe { f() }"), ("src/base/x.rs", "// unsafe\nfn f() { \"unsafe\"; unsafe_code }")];
        assert_eq!(unsafe_outside(&crate_of(&files), &["middle"]).len(), 1);
        assert_eq!(unsafe_outside(&crate_of(&files), &["top"]), Vec::<String>::new());
        let nested = [("src/base/x.rs", "unsafe impl Send for X {}")];
        assert_eq!(unsafe_outside(&crate_of(&nested), &["base"]), Vec::<String>::new());
        assert_eq!(unsafe_outside(&crate_of(&nested), &["base::x"]), Vec::<String>::new());
        assert_eq!(unsafe_outside(&crate_of(&nested), &["base::y"]).len(), 1);
    }

    #[test]
    fn unsafe_declarations_are_found() {
        let declaration =
            "#[cfg(feature = \"file\")]\n#[expect(unsafe_code, reason = \"mmap\")]\npub mod file;\npub mod memory;";
        let found = unsafe_declarations(&crate_of(&[("src/connectors/mod.rs", declaration)]));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["connectors::file"]);
        let folded =
            "#[expect(\n    unsafe_code,\n    reason = \"mmap\"\n)]\npub mod file;\n#[deny(unsafe_code)]\nmod b;";
        let found = unsafe_declarations(&crate_of(&[("src/connectors/mod.rs", folded)]));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["connectors::file"]);
        let found = unsafe_declarations(&crate_of(&[("src/base.rs", "#[expect(unsafe_code)] mod x;")]));
        assert_eq!(found.into_iter().collect::<Vec<_>>(), ["base::x"]);
        for hidden in ["#![allow(unsafe_code)]", "#[allow(unsafe_code)]\nfn f() {}"] {
            let found = unsafe_declarations(&crate_of(&[("src/base.rs", hidden)]));
            assert_eq!(found.into_iter().collect::<Vec<_>>(), ["base (not at a declaration)"], "{hidden}");
        }
    }

    #[test]
    fn tables_are_read() {
        let source = "pub const TABLE: &[R] = &[\n#[cfg(feature = \"memory\")]\nmemory::REGISTRATION,\n\
                      #[cfg(feature = \"wrong\")]\nfile::REGISTRATION,\n];";
        assert_eq!(table_rows(source), ["memory", "file (under another feature)"]);
        let text = "| a | b |\n|---|---|\n| `x` | 1 |\n\n| Connector | b |\n|---|---|\n| `memory` | 1 |\n| [`file`](x) | 2 |\n\n| `z` |";
        assert_eq!(markdown_connectors(text), ["memory", "file"]);
        assert_eq!(
            variables("a $PROXYSTORE_STORE, PROXYSTORE_* and PROXYSTORE_X9_Y."),
            ["PROXYSTORE_STORE", "PROXYSTORE_X9_Y"]
        );
        assert_eq!(ignored_fences("/// ```ignore\n/// ```\n``` rust,ignore\n```no_run\n"), [1, 3]);
    }
}

/// `path: use` for every use of a module by one that stands below it.
fn upward_uses(sources: &[(String, String)]) -> Vec<String> {
    let lib = sources.iter().find(|(path, _)| path == "src/lib.rs").expect("src/lib.rs").1.as_str();
    let order = modules(lib);
    let exports = exports(lib);
    let rank = |name: &str| order.iter().position(|module| module == name);
    let mut found = Vec::new();
    for (path, text) in sources {
        if path == "src/lib.rs" || path.starts_with("src/bin/") {
            continue;
        }
        let (module, _) = module_of(path);
        let Some(own) = rank(&module) else {
            found.push(format!("{path}: src/lib.rs has no `mod {module};`"));
            continue;
        };
        let mut used = uses(&code(text), "crate");
        if path.matches('/').count() == 1 {
            used.extend(uses(&code(text), "super"));
        }
        for name in used {
            let target = exports.get(&name).unwrap_or(&name);
            if rank(target).is_some_and(|rank| rank < own) {
                found.push(format!("{path}: crate::{name}"));
            }
        }
    }
    found
}

/// `path:` for every file with `unsafe` that lies in none of the modules.
fn unsafe_outside(sources: &[(String, String)], allowed: &[&str]) -> Vec<String> {
    let contains = |text: &str| words(&code(text)).any(|word| word == "unsafe");
    let is_allowed = |path: &str| {
        let module = full_module(path);
        allowed
            .iter()
            .any(|name| module.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::")))
    };
    let offends = |(path, text): &&(String, String)| contains(text) && !is_allowed(path);
    sources.iter().filter(offends).map(|(path, _)| path.clone()).collect()
}

/// `connectors::file::mapping` for `src/connectors/file/mapping.rs`.
fn full_module(path: &str) -> String {
    let path =
        path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod").trim_end_matches("/main");
    path.replace('/', "::")
}

/// Modules whose declaration lifts the lint, where they are declared.
fn unsafe_declarations(sources: &[(String, String)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, text) in sources {
        let family = match path.as_str() {
            "src/lib.rs" => String::new(),
            path => format!("{}::", full_module(path)),
        };
        let mut lifted = false;
        for line in code(text).lines().map(str::trim) {
            lifted |= line.contains("unsafe_code") && !line.contains("deny(") && !line.contains("forbid(");
            // Attributes may stand on the declaration's line or before it.
            let item = line.rsplit(']').next().unwrap_or(line).trim();
            match declared(item) {
                _ if !lifted => continue,
                Some(name) => drop(found.insert(format!("{family}{name}"))),
                None if !line.starts_with("#!") && !item.ends_with([';', '{', '}']) => continue,
                None => drop(found.insert(format!("{} (not at a declaration)", module_of(path).1))),
            }
            lifted = false;
        }
    }
    found
}

/// Modules that a file declares, in order.
fn modules(text: &str) -> Vec<String> {
    code(text).lines().filter_map(|line| declared(line.trim())).map(str::to_owned).collect()
}

/// The name in a line `pub mod NAME;`.
fn declared(line: &str) -> Option<&str> {
    let line = line.strip_prefix("pub(crate) ").or(line.strip_prefix("pub ")).unwrap_or(line);
    line.strip_prefix("mod ")?.strip_suffix(';')
}

/// The module behind each name that src/lib.rs exports.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let text = code(lib);
    let mut names = BTreeMap::new();
    for statement in text.split(';').filter_map(|part| part.split("use ").nth(1)) {
        let Some((module, rest)) = statement.trim().split_once("::") else { continue };
        // The last word of `Lower as Lowest` is the name; path segments in between do no harm.
        for item in rest.split([',', '{', '}']) {
            if let Some(name) = words(item).last() {
                names.insert(name.to_owned(), module.to_owned());
            }
        }
    }
    names
}

/// First segments of the paths that begin with `root::`, in groups too.
fn uses(code: &str, root: &str) -> Vec<String> {
    let compact: String =
        code.split_whitespace().collect::<Vec<_>>().join(" ").replace(" ::", "::").replace(":: ", "::");
    let mut found = Vec::new();
    for (at, _) in compact.match_indices(&format!("{root}::")) {
        if compact[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &compact[at + root.len() + 2..];
        let Some(group) = rest.strip_prefix('{') else {
            found.extend(words(rest).next().map(str::to_owned));
            continue;
        };
        let (mut depth, mut first) = (0, true);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => first = true,
                ' ' => {}
                _ if first && depth == 0 => {
                    found.extend(words(&group[i..]).next().map(str::to_owned));
                    first = false;
                }
                _ => {}
            }
        }
    }
    found
}

/// Schemes of the rows in the source of `connectors::TABLE`.
fn table_rows(source: &str) -> Vec<String> {
    let table =
        source.split_once("const TABLE").and_then(|(_, rest)| rest.split_once("];")).expect("connectors::TABLE").0;
    let lines: Vec<&str> = table.lines().map(str::trim).collect();
    let mut rows = Vec::new();
    for pair in lines.windows(2) {
        if let Some(name) = pair[1].strip_suffix("::REGISTRATION,") {
            let feature = format!("feature = \"{name}\"");
            let gates = [format!("#[cfg({feature})]"), format!("#[cfg(all({feature}, not(any(loom, shuttle))))]")];
            match gates.iter().any(|gate| gate == pair[0]) {
                true => rows.push(name.to_owned()),
                false => rows.push(format!("{name} (under another feature)")),
            }
        }
    }
    rows
}

/// First cells of the first table whose header begins with `connector`, without decoration.
fn markdown_connectors(text: &str) -> Vec<String> {
    let cell =
        |line: &str| line.trim().strip_prefix('|').and_then(|row| Some(row.split('|').next()?.trim().to_owned()));
    let mut lines =
        text.lines().skip_while(|line| cell(line).is_none_or(|cell| !cell.eq_ignore_ascii_case("connector")));
    lines.next();
    let rows = lines.skip(1).map_while(cell);
    rows.filter_map(|cell| Some(cell.split('`').nth(1)?.trim_end_matches("://").to_owned())).collect()
}

fn variables(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| word.len() > "PROXYSTORE_".len() && word.starts_with("PROXYSTORE_");
    words(text).filter(is_name).collect()
}

fn ignored_fences(text: &str) -> Vec<usize> {
    let is_ignored = |line: &str| {
        let line = line.trim().trim_start_matches(['/', '!']).trim();
        line.strip_prefix("```").is_some_and(|info| words(info).any(|word| word == "ignore"))
    };
    text.lines().enumerate().filter(|(_, line)| is_ignored(line)).map(|(i, _)| i + 1).collect()
}

fn words(text: &str) -> impl DoubleEndedIterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Top module, and module with one family member, of a file: `src/connectors/file/map.rs` is of `connectors::file`.
fn module_of(path: &str) -> (String, String) {
    let parts: Vec<&str> = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect();
    match parts[..] {
        [top] | [top, "mod"] => (top.to_owned(), top.to_owned()),
        [top, part, ..] => (top.to_owned(), format!("{top}::{part}")),
        [] => unreachable!("split gives at least one part"),
    }
}

/// The text without comments, without what stands in literals, and without items under `#[cfg(test)]`.
fn code(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |at| at + 2)
        } else if let Some(len) = literal(rest, &out) {
            out.push_str("\"\"");
            len
        } else {
            out.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    while let Some(at) = out.find("#[cfg(test)]").or_else(|| out.find("#[cfg(all(test")) {
        let item = out[at..].find([';', '{']).map_or(out.len(), |i| at + i);
        let mut depth = 0;
        let end = out[item..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            (depth == 0).then_some(item + i + 1)
        });
        out.replace_range(at..end.unwrap_or(out.len()), "");
    }
    out
}

/// Length of the string or character literal that `rest` begins with; lifetimes are none.
fn literal(rest: &str, before: &str) -> Option<usize> {
    let in_word = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    if let Some(raw) = rest.strip_prefix('r').filter(|_| !in_word || before.ends_with('b')) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = 1 + hashes + 1;
            return Some(body + rest[body..].find(&close)? + close.len());
        }
    }
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut escaped = false;
    for (i, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(i + 1),
            // 'a without a closing quote right behind is a lifetime.
            _ if quote == '\'' && i > 1 && !rest.starts_with("'\\") => return None,
            _ => {}
        }
    }
    None
}

/// Path below the repository and text of each readable file in a folder; of `.`, only the files right there.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root(folder)];
    while let Some(path) = folders.pop() {
        for entry in fs::read_dir(&path).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if folder != "." {
                    folders.push(path);
                }
            } else if let Ok(text) = fs::read_to_string(&path) {
                let name = path.strip_prefix(root("")).expect("below the repository");
                found.push((name.to_string_lossy().trim_start_matches("./").to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(root(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[track_caller]
fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}
