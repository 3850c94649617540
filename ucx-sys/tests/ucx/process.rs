//! What UCX does to the process that loads it: nothing that lasts.

use std::ffi::{CStr, OsString};
use std::path::PathBuf;
use std::{env, ptr};

use ucx_sys::*;

use crate::{Row, child};

pub(crate) const CHILDREN: &[Row] =
    &[("left_alone", left_alone), ("control", control), ("asked_for", asked_for), ("complains", complains)];

pub(crate) const TESTS: &[Row] = &[("the_process_is_left_alone", || drop(child::run("left_alone", &[])))];

pub(crate) const LOADED: &[Row] = &[
    // The check that the one above makes is able to fail: what UCX does when it is not kept from it is seen.
    ("an_unguarded_load_is_noticed", || drop(child::run("control", &[]))),
    ("what_the_user_asks_for_is_done", || {
        drop(child::run("asked_for", &[("UCX_HANDLE_ERRORS", &"bt"), ("UCX_MEM_EVENTS", &"y")]))
    }),
    ("complaints_go_to_standard_error", || {
        let said = child::start("complains", &[("UCX_TLS", &"nosuch")]).expect_err("standard error is empty");
        assert!(said.starts_with("refused\n") && said.contains("UCX"), "{said}");
    }),
];

/// Loads, and uses everything that could bring handlers or hooks along.
fn left_alone() {
    let before = Process::look();
    let ucx = ucx_sys::load().unwrap();
    use_it(ucx);
    let after = Process::look();
    if LINKED {
        // UCX came before `main`, so there was no `before`.
        assert!(after.handlers_of_ucx().is_empty(), "{:?}", after.handlers_of_ucx());
    } else {
        assert_eq!(before, after);
    }
}

/// Makes UCX say something.
fn complains() {
    let ucx = ucx_sys::load().unwrap();
    let params = ucp_params_t {
        field_mask: u64::from(UCP_PARAM_FIELD_FEATURES),
        features: u64::from(UCP_FEATURE_AM),
        ..Default::default()
    };
    let mut context = ptr::null_mut();
    // SAFETY: the pointers are good for the time of the call, which fails.
    assert_ne!(unsafe { ucx.ucp_init(&params, ptr::null(), &mut context) }, UCS_OK);
    println!("refused");
}

/// Loads as anybody would.
fn control() {
    let before = Process::look();
    // SAFETY: UCX's own constructors.
    let library = unsafe { libloading::Library::new(file()) }.unwrap();
    std::mem::forget(library);
    let after = Process::look();
    assert_ne!(before.code, after.code, "functions of the C library");
    assert!(!after.handlers_of_ucx().is_empty(), "signals");
    assert_ne!(before.signals, after.signals, "signals");
}

/// With UCX_HANDLE_ERRORS=bt and UCX_MEM_EVENTS=y the user gets both.
fn asked_for() {
    let before = Process::look();
    use_it(ucx_sys::load().unwrap());
    let after = Process::look();
    assert!(after.handlers_of_ucx().contains(&libc::SIGSEGV), "{:?}", after.handlers_of_ucx());
    assert_ne!(before.code, after.code);
    assert_eq!(before.environment, after.environment);
}

fn use_it(ucx: &Ucx) {
    let params = ucp_params_t {
        field_mask: u64::from(UCP_PARAM_FIELD_FEATURES),
        features: u64::from(UCP_FEATURE_RMA | UCP_FEATURE_AM | UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP),
        ..Default::default()
    };
    let mut memory = vec![0_u8; 1 << 20];
    // SAFETY: handles are used in the order in which they come and go; `memory` outlives its registration.
    unsafe {
        let mut context = ptr::null_mut();
        assert_eq!(ucx.ucp_init(&params, ptr::null(), &mut context), UCS_OK);
        let mut worker = ptr::null_mut();
        assert_eq!(ucx.ucp_worker_create(context, &ucp_worker_params_t::default(), &mut worker), UCS_OK);
        let map = ucp_mem_map_params_t {
            field_mask: u64::from(UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH),
            address: memory.as_mut_ptr().cast(),
            length: memory.len(),
            ..Default::default()
        };
        let mut registered = ptr::null_mut();
        assert_eq!(ucx.ucp_mem_map(context, &map, &mut registered), UCS_OK);
        ucx.ucp_worker_progress(worker);
        assert_eq!(ucx.ucp_mem_unmap(context, registered), UCS_OK);
        ucx.ucp_worker_destroy(worker);
        ucx.ucp_cleanup(context);
    }
}

/// The UCX that is tested, as the loader takes it.
fn file() -> PathBuf {
    match env::var_os("PROXYSTORE_UCX_LIB").map(PathBuf::from) {
        Some(directory) if directory.is_dir() => directory.join("libucp.so.0"),
        Some(file) => file,
        None => PathBuf::from("libucp.so.0"),
    }
}

/// What UCX could change.
#[derive(PartialEq, Debug)]
struct Process {
    signals: Vec<(i32, usize, i32, u64)>,
    stack: (usize, i32),
    code: Vec<(&'static CStr, [u8; 16])>,
    environment: Vec<(OsString, OsString)>,
}

impl Process {
    fn look() -> Self {
        let signals = (1..=64).filter_map(|signal| {
            // SAFETY: zero is a valid value; asked only.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: as above.
            let asked = unsafe { libc::sigaction(signal, ptr::null(), &mut action) };
            // SAFETY: a set of bits, of at least 64.
            let mask = unsafe { (&raw const action.sa_mask).cast::<u64>().read() };
            (asked == 0).then_some((signal, action.sa_sigaction, action.sa_flags, mask))
        });
        // SAFETY: as above.
        let mut stack: libc::stack_t = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        unsafe { libc::sigaltstack(ptr::null(), &mut stack) };
        let code = [c"munmap", c"mmap", c"mremap", c"madvise", c"shmat", c"shmdt", c"brk", c"sbrk"].map(|name| {
            // SAFETY: functions of the C library, of more than 16 bytes each.
            (name, unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()).cast::<[u8; 16]>().read() })
        });
        Self {
            signals: signals.collect(),
            stack: (stack.ss_sp.addr(), stack.ss_flags),
            code: code.to_vec(),
            environment: env::vars_os().collect(),
        }
    }

    /// Signals whose handler lies in a library of UCX.
    fn handlers_of_ucx(&self) -> Vec<i32> {
        let of_ucx = |address: usize| {
            // SAFETY: zero is a valid value.
            let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
            // SAFETY: any address may be asked for.
            let known = unsafe { libc::dladdr(ptr::without_provenance(address), &mut info) } != 0;
            // SAFETY: a string, as it is known.
            known && unsafe { CStr::from_ptr(info.dli_fname) }.to_bytes().windows(5).any(|part| part == b"libuc")
        };
        self.signals.iter().filter(|(_, handler, ..)| of_ucx(*handler)).map(|(signal, ..)| *signal).collect()
    }
}
