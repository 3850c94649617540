//! The declarations of this crate, compared with what a C compiler says about the headers of this machine.
//!
//! Headers are found by pkg-config, which `PKG_CONFIG_PATH` guides.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::fmt::Write;
use std::mem::offset_of;
use std::path::Path;
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use margo_sys::*;

fn main() {
    let arguments = Arguments::from_args();
    let flags = flags();
    let trial = |name, run: fn(&[String]) -> Result<(), Failed>| match &flags {
        Ok(flags) => {
            let flags = flags.clone();
            Trial::test(name, move || run(&flags))
        }
        Err(reason) => {
            let failure = Failed::from(reason);
            Trial::test(name, || Err(failure)).with_ignored_flag(true).with_kind(reason.as_str())
        }
    };
    let trials = vec![
        trial("constants_and_structures", constants_and_structures),
        trial("functions", functions),
        trial("differences_are_found", differences_are_found),
    ];
    libtest_mimic::run(&arguments, trials).exit();
}

fn constants_and_structures(flags: &[String]) -> Result<(), Failed> {
    let mut text = String::new();
    for (name, value) in CONSTANTS {
        writeln!(text, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    for (expression, value) in [
        ("sizeof(hg_return_t)", size_of::<hg_return_t>()),
        ("sizeof(hg_size_t)", size_of::<hg_size_t>()),
        ("sizeof(hg_id_t)", size_of::<hg_id_t>()),
        ("sizeof(hg_bulk_op_t)", size_of::<hg_bulk_op_t>()),
        ("sizeof(ABT_pool)", size_of::<ABT_pool>()),
        ("offsetof(struct margo_init_info, json_config)", offset_of!(margo_init_info, json_config)),
        ("offsetof(struct na_protocol_info, next)", offset_of!(na_protocol_info, next)),
        ("offsetof(struct na_protocol_info, class_name)", offset_of!(na_protocol_info, class_name)),
        ("offsetof(struct na_protocol_info, protocol_name)", offset_of!(na_protocol_info, protocol_name)),
        ("offsetof(struct na_protocol_info, device_name)", offset_of!(na_protocol_info, device_name)),
    ] {
        writeln!(text, "_Static_assert({expression} == {value}, \"{expression}\");").unwrap();
    }
    // Room for more fields than any version has.
    for (name, size) in
        [("margo_init_info", size_of::<margo_init_info>()), ("hg_diag_counters", size_of::<hg_diag_counters>())]
    {
        writeln!(text, "_Static_assert(sizeof(struct {name}) <= {size}, \"{name}\");").unwrap();
    }
    compiles(flags, &text)
}

/// Each function has the type that `symbols.rs` gives it.
fn functions(flags: &[String]) -> Result<(), Failed> {
    let text: String = FUNCTIONS
        .iter()
        .map(|(name, kind)| {
            format!("_Static_assert(__builtin_types_compatible_p(__typeof__({name}), {kind}), \"{name}\");\n")
        })
        .collect();
    compiles(flags, &text)
}

/// The comparison itself fails when something is not as it was declared.
fn differences_are_found(flags: &[String]) -> Result<(), Failed> {
    for wrong in [
        "_Static_assert(HG_TIMEOUT == 19, \"\");",
        "_Static_assert(__builtin_types_compatible_p(__typeof__(margo_destroy), int(int)), \"\");",
    ] {
        assert!(compiles(flags, wrong).is_err(), "{wrong}");
    }
    Ok(())
}

/// Flags for the compiler, or why there are none.
fn flags() -> Result<Vec<String>, String> {
    let asked = Command::new("pkg-config").args(["--cflags", "margo"]).output();
    let output = asked.map_err(|_| "no pkg-config".to_owned())?;
    if !output.status.success() {
        return Err("no headers of Margo: pkg-config knows no margo (PKG_CONFIG_PATH)".to_owned());
    }
    let flags: Vec<String> = String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect();
    compiles(&flags, "").map_err(|error| error.message().unwrap_or("no C compiler").to_owned())?;
    Ok(flags)
}

fn compiles(flags: &[String], text: &str) -> Result<(), Failed> {
    let directory = tempfile::tempdir()?;
    let source = directory.path().join("ask.c");
    let headers = "#include <stddef.h>\n#include <margo.h>\n#include <margo-logging.h>\n#include <mercury_proc.h>\n\
                   #include <mercury_core.h>\n#include <na_types.h>\n";
    std::fs::write(&source, format!("{headers}{text}"))?;
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compiler.args(flags).args(["-w", "-c", "-o"]).args([Path::new("/dev/null"), &source]);
    let output = compiler.output().map_err(|error| format!("no C compiler: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned().into()),
    }
}

macro_rules! constants {
    ($($name:ident)*) => {
        &[$((stringify!($name), $name as i64)),*]
    };
}

const CONSTANTS: &[(&str, i64)] = constants!(
    HG_SUCCESS HG_AGAIN HG_NOMEM HG_INVALID_ARG HG_PROTOCOL_ERROR HG_OVERFLOW HG_HOSTUNREACH HG_TIMEOUT HG_CANCELED
    HG_BULK_PUSH HG_BULK_PULL HG_BULK_READ_ONLY HG_BULK_WRITE_ONLY
    MARGO_CLIENT_MODE MARGO_SERVER_MODE MARGO_DEFAULT_PROVIDER_ID MARGO_LOG_ERROR MARGO_LOG_CRITICAL ABT_SUCCESS
);

const FUNCTIONS: &[(&str, &str)] = &[
    ("margo_init_ext", "margo_instance_id(const char *, int, const struct margo_init_info *)"),
    ("margo_finalize", "void(margo_instance_id)"),
    ("margo_get_class", "hg_class_t *(margo_instance_id)"),
    ("margo_get_progress_timeout_ub_msec", "int(margo_instance_id, unsigned *)"),
    ("margo_set_log_level", "int(margo_instance_id, margo_log_level)"),
    ("margo_addr_self", "hg_return_t(margo_instance_id, hg_addr_t *)"),
    ("margo_addr_lookup", "hg_return_t(margo_instance_id, const char *, hg_addr_t *)"),
    ("margo_addr_to_string", "hg_return_t(margo_instance_id, char *, hg_size_t *, hg_addr_t)"),
    ("margo_addr_free", "hg_return_t(margo_instance_id, hg_addr_t)"),
    (
        "margo_provider_register_name",
        "hg_id_t(margo_instance_id, const char *, hg_proc_cb_t, hg_proc_cb_t, hg_rpc_cb_t, uint16_t, ABT_pool)",
    ),
    ("margo_get_handler_pool", "int(margo_instance_id, ABT_pool *)"),
    ("margo_register_data", "hg_return_t(margo_instance_id, hg_id_t, void *, void (*)(void *))"),
    ("margo_registered_data", "void *(margo_instance_id, hg_id_t)"),
    ("margo_registered_disable_response", "hg_return_t(margo_instance_id, hg_id_t, int)"),
    ("margo_create", "hg_return_t(margo_instance_id, hg_addr_t, hg_id_t, hg_handle_t *)"),
    ("margo_destroy", "hg_return_t(hg_handle_t)"),
    ("margo_provider_forward_timed", "hg_return_t(uint16_t, hg_handle_t, void *, double)"),
    (
        "margo_provider_cforward_timed",
        "hg_return_t(uint16_t, hg_handle_t, void *, double, void (*)(void *, hg_return_t), void *)",
    ),
    ("margo_crespond", "hg_return_t(hg_handle_t, void *, void (*)(void *, hg_return_t), void *)"),
    ("margo_get_input", "hg_return_t(hg_handle_t, void *)"),
    ("margo_free_input", "hg_return_t(hg_handle_t, void *)"),
    ("margo_get_output", "hg_return_t(hg_handle_t, void *)"),
    ("margo_free_output", "hg_return_t(hg_handle_t, void *)"),
    (
        "margo_bulk_create",
        "hg_return_t(margo_instance_id, hg_uint32_t, void **, const hg_size_t *, hg_uint8_t, hg_bulk_t *)",
    ),
    ("margo_bulk_free", "hg_return_t(hg_bulk_t)"),
    (
        "margo_bulk_transfer_timed",
        "hg_return_t(margo_instance_id, hg_bulk_op_t, hg_addr_t, hg_bulk_t, size_t, hg_bulk_t, size_t, size_t, double)",
    ),
    (
        "margo_bulk_ctransfer_timed",
        "hg_return_t(margo_instance_id, hg_bulk_op_t, hg_addr_t, hg_bulk_t, size_t, hg_bulk_t, size_t, size_t, double, \
         void (*)(void *, hg_return_t), void *)",
    ),
    ("margo_hg_handle_get_instance", "margo_instance_id(hg_handle_t)"),
    ("__margo_internal_set_handle_data", "hg_return_t(hg_handle_t)"),
    ("HG_Version_get", "hg_return_t(unsigned *, unsigned *, unsigned *)"),
    ("HG_Error_to_string", "const char *(hg_return_t)"),
    ("HG_Cancel", "hg_return_t(hg_handle_t)"),
    ("HG_Bulk_get_serialize_size", "hg_size_t(hg_bulk_t, unsigned long)"),
    ("HG_Bulk_serialize", "hg_return_t(void *, hg_size_t, unsigned long, hg_bulk_t)"),
    ("HG_Bulk_deserialize", "hg_return_t(hg_class_t *, hg_bulk_t *, const void *, hg_size_t)"),
    ("hg_proc_save_ptr", "void *(hg_proc_t, hg_size_t)"),
    ("hg_proc_restore_ptr", "hg_return_t(hg_proc_t, void *, hg_size_t)"),
    ("ABT_init", "int(int, char **)"),
    ("HG_Core_get_na_protocol_info", "hg_return_t(const char *, struct na_protocol_info **)"),
    ("HG_Core_free_na_protocol_info", "void(struct na_protocol_info *)"),
    ("HG_Class_get_counters", "hg_return_t(const hg_class_t *, struct hg_diag_counters *)"),
    ("HG_Set_log_level", "void(const char *)"),
];
