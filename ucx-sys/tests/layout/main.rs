//! The declarations of this crate, compared with what a C compiler says about the headers of this machine.
//!
//! Headers are looked for in `UCX_HOME/include`, else where the compiler looks.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use ucx_sys::*;

/// Name, size, and name and offset of each field.
type Structure = (&'static str, usize, &'static [(&'static str, usize)]);

macro_rules! structure {
    ($name:ident, [$($field:ident),*]) => {
        (stringify!($name), size_of::<$name>(), &[$((stringify!($field), offset_of!($name, $field))),*])
    };
}

macro_rules! constant {
    ($name:ident) => {
        (stringify!($name), $name as i128)
    };
}

include!("declared.rs");

/// `newer`, where the headers are that new.
const NEWER_STRUCTURES: &[Structure] = {
    use ucx_sys::newer::*;
    &[
        structure!(ucp_transport_entry_t, [transport_name, device_name]),
        structure!(ucp_transports_t, [entries, num_entries, entry_size]),
        structure!(ucp_ep_attr_t, [transports, user_data]),
        structure!(ucp_memh_pack_params_t, [field_mask, flags]),
        structure!(ucp_memh_buffer_release_params_t, [field_mask]),
        structure!(ucp_rkey_compare_params_t, [field_mask]),
        structure!(ucp_datatype_attr_t, [field_mask, packed_size, buffer, count]),
    ]
};

const NEWER_CONSTANTS: &[(&str, i128)] = {
    use ucx_sys::newer::*;
    &[
        constant!(UCP_AM_SEND_FLAG_COPY_HEADER),
        constant!(UCP_EP_ATTR_FIELD_TRANSPORTS),
        constant!(UCP_EP_ATTR_FIELD_USER_DATA),
        constant!(UCP_FEATURE_EXPORTED_MEMH),
        constant!(UCP_MEM_MAP_SYMMETRIC_RKEY),
        constant!(UCP_MEM_MAP_LOCK),
        constant!(UCP_ERR_HANDLING_MODE_FAILOVER),
        constant!(UCP_DATATYPE_ATTR_FIELD_PACKED_SIZE),
        constant!(UCP_DATATYPE_ATTR_FIELD_BUFFER),
        constant!(UCP_DATATYPE_ATTR_FIELD_COUNT),
        constant!(UCP_MEMH_PACK_PARAM_FIELD_FLAGS),
        constant!(UCP_MEMH_PACK_FLAG_EXPORT),
    ]
};

/// The version of the headers that have all of `newer`.
const NEWEST: u32 = UCP_VERSION(1, 21);

/// What the headers of 1.12 lack.
const SINCE_1_13: &[&str] = &[
    "ucp_ep_params.local_sockaddr",
    "ucp_request_param_t.memh",
    "UCP_EP_PARAM_FIELD_LOCAL_SOCK_ADDR",
    "UCP_OP_ATTR_FIELD_MEMH",
];

/// Constants that say where a list ends, or which version this is.
const MOVING: &[&str] = &["UCP_API_MINOR", "UCS_MEMORY_TYPE_LAST", "UCS_MEMORY_TYPE_UNKNOWN", "UCP_OP_ATTR_INDEX_MASK"];

fn main() {
    let arguments = Arguments::from_args();
    let headers = Headers::find();
    let trial = |name, run: fn(&Headers) -> Result<(), Failed>| match headers.clone() {
        Ok(headers) => Trial::test(format!("{name} (headers of {headers})"), move || run(&headers)),
        Err(Missing::Nothing(reason)) => ignored(name, reason),
        Err(Missing::Broken(reason)) => Trial::test(name, || Err(Failed::from(reason))),
    };
    libtest_mimic::run(
        &arguments,
        vec![
            trial("structures", structures),
            trial("constants", constants),
            match &headers {
                Ok(older) if older.version < NEWEST => {
                    ignored("newer", format!("the headers of {older} do not have it"))
                }
                _ => trial("newer", newer),
            },
            trial("macros", macros),
            Trial::test("differences_are_found", differences_are_found),
        ],
    )
    .exit();
}

/// Who asks for it all the same gets the reason as its failure.
fn ignored(name: &str, reason: String) -> Trial {
    let failure = Failed::from(&reason);
    Trial::test(name, || Err(failure)).with_ignored_flag(true).with_kind(reason)
}

/// Fields stand where they do in C; a structure has the size that it has in C, or is the smaller of both where the headers are
/// newer, the larger where they are older.
fn structures(headers: &Headers) -> Result<(), Failed> {
    let said = headers.ask(&questions(STRUCTURES, &[], headers.version))?;
    report(differences(STRUCTURES, &[], &said, headers.version))
}

fn constants(headers: &Headers) -> Result<(), Failed> {
    let fixed: Vec<_> = CONSTANTS.iter().filter(|(name, _)| !MOVING.contains(name)).copied().collect();
    assert!(fixed.len() > 150, "only {} constants", fixed.len());
    let said = headers.ask(&questions(&[], &fixed, headers.version))?;
    report(differences(&[], &fixed, &said, headers.version))
}

fn newer(headers: &Headers) -> Result<(), Failed> {
    let said = headers.ask(&questions(NEWER_STRUCTURES, NEWER_CONSTANTS, headers.version))?;
    report(differences(NEWER_STRUCTURES, NEWER_CONSTANTS, &said, headers.version))
}

/// What C computes with the macros that `inline.rs` writes in Rust.
fn macros(headers: &Headers) -> Result<(), Failed> {
    let mut questions = String::new();
    let mut expected: Vec<(String, i128)> = Vec::new();
    let mut ask = |expression: String, value: i128| {
        let name = format!("e{}", expected.len());
        writeln!(questions, "say(\"{name}\", (long long)({expression}));").unwrap();
        expected.push((name, value));
    };
    for status in -128..=127_i8 {
        let pointer = UCS_STATUS_PTR(status);
        ask(format!("(intptr_t)UCS_STATUS_PTR({status})"), pointer.addr() as i64 as i128);
        ask(format!("UCS_PTR_IS_ERR((void*)(intptr_t){status})"), UCS_PTR_IS_ERR(pointer).into());
        ask(format!("UCS_PTR_IS_PTR((void*)(intptr_t){status})"), UCS_PTR_IS_PTR(pointer).into());
        ask(format!("UCS_PTR_STATUS((void*)(intptr_t){status})"), UCS_PTR_STATUS(pointer).into());
        ask(format!("UCS_PTR_RAW_STATUS((void*)(intptr_t){status})"), UCS_PTR_RAW_STATUS(pointer).into());
        ask(format!("UCS_STATUS_IS_ERR({status})"), UCS_STATUS_IS_ERR(status).into());
        ask(format!("UCS_IS_LINK_ERROR({status})"), UCS_IS_LINK_ERROR(status).into());
        ask(format!("UCS_IS_ENDPOINT_ERROR({status})"), UCS_IS_ENDPOINT_ERROR(status).into());
    }
    for size in [1, 8, 4096, 1 << 40] {
        ask(format!("ucp_dt_make_contig({size}ull)"), ucp_dt_make_contig(size).into());
    }
    ask("ucp_dt_make_iov()".to_owned(), ucp_dt_make_iov().into());
    ask("UCP_VERSION(1, 13)".to_owned(), UCP_VERSION(1, 13).into());
    let said = headers.ask(&questions)?;
    let differ = |(name, value): &&(String, i128)| said.get(name) != Some(value);
    report(
        expected.iter().filter(differ).map(|(name, value)| format!("{name}: {value}, {:?}", said.get(name))).collect(),
    )
}

/// The comparison itself: it fails when anything is moved, missing, shrunk or changed.
fn differences_are_found() -> Result<(), Failed> {
    const FIELDS: &[(&str, usize)] = &[("a", 0), ("b", 8)];
    let ours: &[Structure] = &[("s_t", 16, FIELDS)];
    let said = |text: &str| answers(text);
    let count = |text: &str, version| differences(ours, &[("C", 3)], &said(text), version).len();
    let (old, same, new) = (UCP_VERSION(1, 12), UCP_API_VERSION, UCP_VERSION(1, 14));
    for (text, expected) in [
        ("s_t 16\ns_t.a 0\ns_t.b 8\nC 3\n", [0, 0, 0]),
        ("s_t 24\ns_t.a 0\ns_t.b 8\nC 3\n", [1, 1, 0]),
        ("s_t 8\ns_t.a 0\ns_t.b 8\nC 3\n", [0, 1, 1]),
        ("s_t 16\ns_t.a 0\ns_t.b 9\nC 3\n", [1, 1, 1]),
        ("s_t 16\ns_t.a 0\ns_t.b 8\nC 4\n", [1, 1, 1]),
        ("", [4, 4, 4]),
    ] {
        assert_eq!([old, same, new].map(|version| count(text, version)), expected, "{text}");
    }
    Ok(())
}

/// Headers of a UCX, and where they are.
#[derive(Clone)]
struct Headers {
    include: Option<String>,
    version: u32,
}

/// Why nothing can be compared.
#[derive(Clone)]
enum Missing {
    /// There is no compiler, or there are no headers.
    Nothing(String),
    /// There are, and they do not work.
    Broken(String),
}

impl Headers {
    fn find() -> Result<Self, Missing> {
        let home = std::env::var("UCX_HOME").ok().map(|home| format!("{home}/include"));
        let include = home.filter(|include| Path::new(include).join("ucp/api/ucp.h").is_file());
        let mut headers = Self { include, version: 0 };
        if let Err(error) = compiler().arg("--version").output() {
            return Err(Missing::Nothing(format!("no C compiler: {error}")));
        }
        let broken = |error: Failed| Missing::Broken(error.message().unwrap_or("no message").to_owned());
        let found = "#if __has_include(<ucp/api/ucp.h>)\nsay(\"found\", 1);\n#endif\n";
        if headers.compile("", found).map_err(broken)?.is_empty() {
            return Err(Missing::Nothing("no headers of UCX (package libucx-dev)".to_owned()));
        }
        let said = headers.ask("say(\"version\", UCP_API_VERSION);").map_err(broken)?;
        headers.version = u32::try_from(said["version"]).unwrap();
        Ok(headers)
    }

    /// What the calls of `say` in a program with the headers say.
    fn ask(&self, questions: &str) -> Result<HashMap<String, i128>, Failed> {
        self.compile("#include <ucp/api/ucp.h>", questions)
    }

    fn compile(&self, include: &str, questions: &str) -> Result<HashMap<String, i128>, Failed> {
        let directory = tempfile::tempdir()?;
        let (source, program) = (directory.path().join("ask.c"), directory.path().join("ask"));
        let text = format!(
            "#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n{include}\n\
             static void say(const char *name, long long value) {{ printf(\"%s %lld\\n\", name, value); }}\n\
             int main(void) {{\n{questions}return 0;\n}}\n"
        );
        std::fs::write(&source, text)?;
        let mut compiler = compiler();
        compiler
            .args(self.include.iter().map(|include| format!("-I{include}")))
            .arg("-w")
            .arg("-o")
            .arg(&program)
            .arg(&source);
        let output = compiler.output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        Ok(answers(&String::from_utf8(Command::new(&program).output()?.stdout)?))
    }
}

fn compiler() -> Command {
    Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()))
}

impl std::fmt::Display for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "UCX {}.{}",
            self.version >> UCP_VERSION_MAJOR_SHIFT,
            (self.version >> UCP_VERSION_MINOR_SHIFT) & 0xff
        )
    }
}

/// A call of `say` for each size, offset and value that headers of a version have.
fn questions(structures: &[Structure], constants: &[(&str, i128)], version: u32) -> String {
    let mut text = String::new();
    let mut ask = |name: &str, expression: &str| {
        if is_there(name, version) {
            writeln!(text, "say(\"{name}\", (long long){expression});").unwrap();
        }
    };
    for (name, _, fields) in structures {
        let in_c = if name.ends_with("_t") { (*name).to_owned() } else { format!("struct {name}") };
        ask(name, &format!("sizeof({in_c})"));
        for (field, _) in *fields {
            ask(&format!("{name}.{field}"), &format!("offsetof({in_c}, {field})"));
        }
    }
    for (name, _) in constants {
        ask(name, name);
    }
    text
}

fn is_there(name: &str, version: u32) -> bool {
    version >= UCP_VERSION(1, 13) || !SINCE_1_13.contains(&name)
}

/// Each line is a name and a number.
fn answers(text: &str) -> HashMap<String, i128> {
    text.lines()
        .map(|line| {
            let (name, value) = line.split_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

fn differences(
    structures: &[Structure],
    constants: &[(&str, i128)],
    said: &HashMap<String, i128>,
    version: u32,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |name: &str, ours: i128, fits: &dyn Fn(i128) -> bool| {
        let theirs = said.get(name);
        if is_there(name, version) && !theirs.is_some_and(|&theirs| fits(theirs)) {
            found.push(format!("{name}: {ours} in Rust, {theirs:?} in C"));
        }
    };
    for (name, size, fields) in structures {
        let size = *size as i128;
        compare(name, size, &|theirs| match version.cmp(&UCP_API_VERSION) {
            Ordering::Less => theirs <= size,
            Ordering::Equal => theirs == size,
            Ordering::Greater => theirs >= size,
        });
        for (field, offset) in *fields {
            let offset = *offset as i128;
            compare(&format!("{name}.{field}"), offset, &|theirs| theirs == offset);
        }
    }
    for (name, value) in constants {
        compare(name, *value, &|theirs| theirs == *value);
    }
    found
}

fn report(differences: Vec<String>) -> Result<(), Failed> {
    if differences.is_empty() { Ok(()) } else { Err(differences.join("\n").into()) }
}
