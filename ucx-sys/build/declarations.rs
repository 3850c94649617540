//! Declarations from the headers: `bindings.rs` (types and constants), `functions.rs` (the functions, in a form that
//! can be linked or loaded), `layout.rs` (what the layout test compares).

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, panic};

/// Headers whose declarations are public and not deprecated.
const FILES: &[&str] = &[
    r".*/ucp/api/ucp\.h",
    r".*/ucp/api/ucp_def\.h",
    r".*/ucp/api/ucp_version\.h",
    r".*/ucs/type/status\.h",
    r".*/ucs/type/thread_mode\.h",
    r".*/ucs/memory/memory_type\.h",
];

/// What those headers declare and a newer UCX calls deprecated: each has a successor with the suffix `_nbx`, or is it.
const DEPRECATED: &[&str] = &[
    "ucp_(put|get)_nbi",
    "ucp_(put|get|atomic_fetch|am_send|stream_send|stream_recv|tag_send|tag_send_sync|tag_recv|tag_msg_recv)_nb",
    "ucp_(ep_close|ep_flush|worker_flush)_nb",
    "ucp_tag_(send|recv)_nbr",
    "ucp_atomic_post",
    "ucp_request_alloc",
    "ucp_worker_set_am_handler",
];

/// Tables and functions of libucs that its headers declare beside the types that we need.
const INTERNAL: &[&str] = &["ucs_memory_type_(names|descs)", "ucs_thread_mode_names"];

/// Types of the C library; crate `libc` has them.
const FROM_LIBC: &[&str] = &["FILE", "_IO_.*", "sockaddr", "sockaddr_storage", "socklen_t"];

/// Writes all three files to the output directory.
pub(crate) fn generate() -> Result<(), String> {
    println!("cargo:rerun-if-env-changed=UCX_HOME");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    let include = include_directory()?;
    let text = declarations(&include)?;
    let (functions, bindings) = split(&text);
    let header = fs::read_to_string(include.join("ucp/api/ucp.h")).map_err(|error| format!("ucp.h: {error}"))?;
    let from = format!("from the headers of UCX {}", version(&include)?);
    write(&out, "bindings.rs", &format!("// Generated {from}; see scripts/regenerate.\n\n{bindings}"))?;
    write(
        &out,
        "functions.rs",
        &format!("// Generated {from}; see scripts/regenerate.\n\n{}", table(&functions, &header)),
    )?;
    write(&out, "layout.rs", &format!("// Generated {from}; see scripts/regenerate.\n\n{}", layout(&bindings)))
}

/// `UCX_HOME/include`, else the first directory of the compiler's usual ones that has the headers.
fn include_directory() -> Result<PathBuf, String> {
    let home = env::var_os("UCX_HOME").map(|home| Path::new(&home).join("include"));
    let found = home.into_iter().chain(["/usr/local/include", "/usr/include"].map(PathBuf::from));
    found
        .clone()
        .find(|directory| directory.join("ucp/api/ucp.h").is_file())
        .ok_or_else(|| format!("no ucp/api/ucp.h in {:?}", found.collect::<Vec<_>>()))
}

fn declarations(include: &Path) -> Result<String, String> {
    let mut builder = bindgen::Builder::default()
        .header_contents("ucx.h", "#include <ucp/api/ucp.h>\n#include <ucs/debug/debug.h>\n")
        .clang_arg(format!("-I{}", include.display()))
        .allowlist_function("ucs_debug_disable_signal")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_default(true)
        .generate_comments(false)
        .layout_tests(false)
        .use_core()
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|error| error.to_string())?)
        .formatter(bindgen::Formatter::Prettyplease)
        .disable_header_comment();
    for file in FILES {
        builder = builder.allowlist_file(file);
    }
    for name in DEPRECATED.iter().chain(INTERNAL) {
        builder = builder.blocklist_item(name);
    }
    for name in FROM_LIBC {
        builder = builder.blocklist_type(name);
    }
    // bindgen panics where there is no libclang.
    let generated = panic::catch_unwind(panic::AssertUnwindSafe(|| builder.generate()))
        .map_err(|_| "libclang was not found; LIBCLANG_PATH names its directory".to_owned())?;
    Ok(generated.map_err(|error| error.to_string())?.to_string())
}

/// The declarations of functions, one string each from `fn` to `;`, and the rest.
fn split(text: &str) -> (Vec<String>, String) {
    let (mut functions, mut rest) = (Vec::new(), String::new());
    let mut inside: Option<String> = None;
    for line in text.lines() {
        match &mut inside {
            None if line == "unsafe extern \"C\" {" => inside = Some(String::new()),
            None => {
                rest.push_str(line);
                rest.push('\n');
            }
            Some(block) if line == "}" => {
                let functions_of_block = block.split(';').map(str::trim).filter(|one| one.starts_with("pub fn"));
                functions.extend(functions_of_block.map(|one| one.trim_start_matches("pub ").to_owned()));
                inside = None;
            }
            Some(block) => {
                block.push_str(line.trim());
                block.push(' ');
            }
        }
    }
    (functions, rest)
}

/// The invocation of `functions!`, each function with the line of ucp.h where its contract stands.
fn table(functions: &[String], header: &str) -> String {
    let mut text = "functions! {\n".to_owned();
    for function in functions {
        let name = function.trim_start_matches("fn ").split('(').next().unwrap_or_default();
        let place = match declared(header, name) {
            Some(line) => format!("`ucp/api/ucp.h:{line}`"),
            None if name == "ucs_status_string" => "`ucs/type/status.h`".to_owned(),
            None => "`ucs/debug/debug.h`".to_owned(),
        };
        // A trailing comma is the formatter's affair.
        let function = function.replace("::core::ffi::", "").replace(", )", ")").replace("( ", "(");
        let function = match function.len() {
            0..=WIDTH => function,
            _ => function.replacen('(', "(\n        ", 1).replace(", ", ",\n        ").replacen(')', ",\n    )", 1),
        };
        let _ = writeln!(text, "    /// {place}\n    {function};");
    }
    text.push_str("}\n");
    text
}

/// The line of the header, from 1, on which a function is declared.
fn declared(header: &str, name: &str) -> Option<usize> {
    let pattern = format!("{name}(");
    let declares = |line: &str| {
        let at = line.find(&pattern);
        at.is_some_and(|at| {
            !line.trim_start().starts_with('*') && !line[..at].ends_with(|c: char| c == '_' || c.is_alphanumeric())
        })
    };
    header.lines().position(declares).map(|line| line + 1)
}

/// Tables of all structures with their fields, and of all constants.
fn layout(bindings: &str) -> String {
    let (mut structures, mut constants) = (String::new(), String::new());
    let mut inside: Option<(&str, Vec<&str>)> = None;
    for line in bindings.lines() {
        if let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) {
            inside = Some((name, Vec::new()));
        } else if line == "}" {
            // Opaque ones have no public field, and no size in C.
            if let Some((name, fields)) = inside.take().filter(|(_, fields)| !fields.is_empty()) {
                let _ = writeln!(structures, "    structure!({name}, [{}]),", fields.join(", "));
            }
        } else if let Some((_, fields)) = &mut inside {
            fields
                .extend(line.trim().strip_prefix("pub ").and_then(|rest| rest.split_once(':')).map(|(field, _)| field));
        } else if let Some((name, _)) = line.strip_prefix("pub const ").and_then(|rest| rest.split_once(':')) {
            let _ = writeln!(constants, "    constant!({name}),");
        }
    }
    format!(
        "pub(crate) const STRUCTURES: &[Structure] = &[\n{structures}];\n\n\
         pub(crate) const CONSTANTS: &[(&str, i128)] = &[\n{constants}];\n"
    )
}

/// `1.13`, from ucp_version.h.
fn version(include: &Path) -> Result<String, String> {
    let text = fs::read_to_string(include.join("ucp/api/ucp_version.h")).map_err(|error| error.to_string())?;
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name));
        line.map(|rest| rest.trim().to_owned()).ok_or_else(|| format!("ucp_version.h has no {name}"))
    };
    Ok(format!("{}.{}", number("UCP_API_MAJOR")?, number("UCP_API_MINOR")?))
}

/// Longest declaration on one line; the formatter leaves the inside of a macro alone.
const WIDTH: usize = 110;

fn write(directory: &Path, name: &str, text: &str) -> Result<(), String> {
    let path = directory.join(name);
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}
