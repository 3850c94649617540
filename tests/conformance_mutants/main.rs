//! Does the conformance suite see anything? Connectors with one defect each, and the case that must fail for it.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Arguments, Failed, Trial};
use proxystore::conformance::{self, Subject, Verdict};
use proxystore::{ConnectorConfig, connectors};

use mutant::{MUTANT, MUTANT_LOG};

#[allow(unsafe_code, reason = "a connector that lends bad memory cannot be written without")]
mod mutant;

#[allow(dead_code, reason = "the example's main is not ours")]
#[path = "../../examples/custom_connector.rs"]
mod custom_connector;

/// Defect, and the case that it fails, of a connector over `memory`.
const IN_PROCESS: &[(&str, &str)] = &[
    ("capabilities_lie", "object::describes_itself"),
    ("config_of_another", "object::describes_itself"),
    ("get_last_byte_lost", "object::round_trip"),
    ("commit_last_byte_lost", "object::round_trip"),
    ("exists_never", "object::round_trip"),
    ("commit_refuses_empty", "object::zero_length"),
    ("get_hides_empty", "object::zero_length"),
    ("page_loses_a_byte", "object::lengths"),
    ("put_zeroes", "object::put_is_reserve_and_commit"),
    ("commit_whole_capacity", "object::partly_filled"),
    ("reserve_short", "object::partly_filled"),
    ("reserve_born_full", "object::partly_filled"),
    ("commit_drops_what_initialize_wrote", "object::written_in_place"),
    ("commit_drops_format", "object::format_travels"),
    ("key_checks_format", "object::format_travels"),
    ("commit_wraps_around", "object::many"),
    ("commit_shares_equal", "object::equal_bytes"),
    ("evict_nothing", "object::evicted_is_missing"),
    ("get_missing_errors", "object::evicted_is_missing"),
    ("exists_always", "object::evicted_is_missing"),
    ("take_keeps", "object::take_removes"),
    ("reserve_panics", "object::impossible_lengths"),
    ("reserve_touches", "object::reserve_touches_nothing"),
    ("await_never_wakes", "object::awaited"),
    ("get_blocks", "object::round_trip"),
    ("commit_late", "object::round_trip"),
    ("reserve_misaligned", "region::aligned"),
    ("get_bounces", "region::outlives_evict"),
    ("get_bounces", "region::outlives_take"),
    ("get_bounces", "region::clones"),
    ("evict_scribbles", "region::outlives_evict"),
    ("evict_scribbles", "region::outlives_take"),
    ("close_scribbles", "region::outlives_close"),
    ("drop_scribbles", "region::outlives_drop"),
    ("get_copies", "region::get_copies_nothing"),
    ("reserve_leaks", "region::dropped_reservation"),
    ("evict_keeps_memory", "region::evict_frees"),
    ("get_leaks", "region::dropped_regions"),
    ("reserve_same_twice", "region::side_by_side"),
    ("commit_own_only", "region::heap_memory"),
    ("commit_garbles_foreign", "region::foreign_memory"),
    ("commit_keeps_foreign", "region::foreign_memory_returned"),
    ("batch_empty_refused", "batch::empty"),
    ("batch_reversed", "batch::order"),
    ("commit_batch_reversed", "batch::order"),
    ("batch_skips_missing", "batch::missing_members"),
    ("batch_missing_errors", "batch::missing_members"),
    ("batch_repeats_once", "batch::repeated_members"),
    ("batch_skips_foreign", "batch::foreign_member"),
    ("evict_missing_errors", "batch::evict"),
    ("evict_batch_first_only", "batch::evict"),
    ("evict_nothing", "batch::all_or_nothing"),
    ("any_scheme", "key::other_scheme"),
    ("foreign_fails", "key::other_instance"),
    ("locator_prefix", "key::truncated"),
    ("locator_prefix", "key::extended"),
    ("locator_prefix", "key::flipped_bits"),
    ("locator_any", "key::forged"),
    ("length_ignored", "key::wrong_length"),
    ("take_removes_first", "key::wrong_length"),
    ("commit_reuses_key", "key::stale"),
    ("key_text_loses_format", "key::forms"),
    ("evict_missing_errors", "lifetime::evict_is_idempotent"),
    ("close_twice_errors", "lifetime::close_is_idempotent"),
    ("close_nothing", "lifetime::use_after_close"),
    ("close_spares_get", "lifetime::use_after_close"),
    ("close_spares_commit", "lifetime::use_after_close"),
    ("close_fails_others", "lifetime::close_in_the_middle"),
    ("drop_fails_reservations", "lifetime::reservation_outlives_connector"),
    ("get_needs_handle", "lifetime::operation_outlives_handle"),
    ("evict_lazy", "lifetime::detached_evict"),
    ("few_objects", "concurrency::own_objects"),
    ("get_torn", "concurrency::shared_keys"),
    ("commit_late", "concurrency::visible_at_once"),
    ("take_not_atomic", "concurrency::one_taker"),
    ("take_not_atomic", "concurrency::take_against_evict"),
    ("wait_locks", "concurrency::nobody_waits"),
    ("open_shares_close", "concurrency::first_use"),
    ("declare_len_zero", "deferred::commit_at"),
    ("declare_visible", "deferred::commit_at"),
    ("page_loses_a_byte", "deferred::lengths"),
    ("declare_drops_format", "deferred::format"),
    ("commit_at_any_format", "deferred::format"),
    ("commit_at_twice", "deferred::twice"),
    ("commit_at_twice", "deferred::one_committer"),
    ("commit_at_twice", "deferred::ordinary_key"),
    ("wait_wakes_one", "deferred::wakes"),
    ("wait_never_wakes", "deferred::wakes"),
    ("wait_ignores_deadline", "deferred::times_out"),
    ("wait_wakes_one", "deferred::abandoned_waiters"),
    ("evict_strands", "deferred::evict_ends_waiters"),
    ("evict_keeps_declared", "deferred::evicted"),
    ("take_undeclares", "deferred::take_before_commit"),
    ("commit_at_in_halves", "deferred::never_partial"),
    ("close_strands", "deferred::close_ends_waiters"),
    ("options_refused", "options::default_is_commit"),
    ("options_ignored", "options::no_time_to_live"),
    ("options_ignored", "options::no_evict_with_producer"),
];

/// The same over the connector of the example, whose objects other processes see.
const CROSS_PROCESS: &[(&str, &str)] = &[
    ("private_names", "lifetime::second_handle"),
    ("close_deletes", "lifetime::close_is_not_delete"),
    ("close_deletes", "lifetime::reopened"),
    ("private_names", "process::read_there"),
    ("get_last_byte_lost", "process::read_here"),
    ("get_remembers", "process::evict_there"),
    ("take_not_atomic", "process::one_taker"),
    ("close_deletes", "process::producer_ends"),
    ("private_names", "process::producer_killed"),
    ("get_torn", "process::killed_in_put"),
    ("get_torn", "process::killed_with_loans"),
    ("get_torn", "process::region_outlives_producer"),
    ("declares_nothing", "deferred::unsupported"),
    ("expires_early", "options::there_before"),
    ("expires_late", "options::missing_after"),
    ("exists_ignores_expiry", "options::missing_after"),
    ("expiry_scribbles", "options::regions_stay"),
    ("expires_all", "options::others_stay"),
    ("batch_drops_options", "options::batch"),
    ("expiry_is_private", "options::missing_there"),
    ("ephemeral_at_once", "options::producer_lives"),
    ("ephemeral_waits_for_close", "options::producer_killed"),
    ("ephemeral_kept_by_close", "options::producer_ended"),
    ("ephemeral_takes_all", "options::ordinary_stays"),
];

fn main() -> ExitCode {
    for registration in [custom_connector::REGISTRATION, MUTANT, MUTANT_LOG] {
        connectors::register(registration).expect("the scheme is free");
    }
    conformance::child_main();
    let mut trials = vec![
        Trial::test("sound::mutant", || sound(&in_process("none"))),
        Trial::test("sound::mutant-log", || sound(&cross_process("none"))),
        Trial::test("every_case_can_fail", every_case_can_fail),
    ];
    for (defect, case) in IN_PROCESS {
        trials.push(Trial::test(format!("{defect}::{case}"), || killed(in_process(defect), defect, case)));
    }
    for (defect, case) in CROSS_PROCESS {
        trials.push(Trial::test(format!("log::{defect}::{case}"), || killed(cross_process(defect), defect, case)));
    }
    let mut arguments = Arguments::from_args();
    // Some cases measure what the process holds.
    arguments.test_threads = Some(1);
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn in_process(defect: &'static str) -> Subject {
    Subject::new(MUTANT, move || Ok(ConnectorConfig::new("mutant", defect))).deadline(PATIENCE)
}

fn cross_process(defect: &'static str) -> Subject {
    let places = Subject::in_directories(MUTANT_LOG);
    let place = move || Ok(places.open()?.config().clone().with_option("defect", defect));
    Subject::new(MUTANT_LOG, place).deadline(PATIENCE)
}

/// The wrapper without a defect passes everything.
fn sound(subject: &Subject) -> Result<(), Failed> {
    for case in conformance::cases().iter().filter(|case| !case.slow) {
        if let Verdict::Failed(text) = case.run(subject) {
            return Err(format!("{case:?}: {text}").into());
        }
    }
    Ok(())
}

fn killed(mut subject: Subject, defect: &str, name: &str) -> Result<(), Failed> {
    let cases = conformance::cases();
    let case = cases.iter().find(|case| format!("{case:?}") == name).ok_or("there is no such case")?;
    let hangs = HANGS.contains(&defect);
    if hangs {
        subject = subject.deadline(Duration::from_secs(2));
    }
    match case.run(&subject) {
        Verdict::Failed(text) if text.contains("did not end within") && !hangs => {
            Err(format!("the case should see the defect, but {text}").into())
        }
        Verdict::Failed(text) => {
            println!("{text}");
            Ok(())
        }
        Verdict::Passed => Err("the case passes in spite of the defect".into()),
        Verdict::Ignored(reason) => Err(format!("the case did not run: {reason}").into()),
    }
}

/// What a case may take that ends; on a busy machine some take a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// Defects that only the clock reveals.
const HANGS: &[&str] = &[
    "get_blocks",
    "await_never_wakes",
    "wait_never_wakes",
    "wait_wakes_one",
    "wait_locks",
    "evict_strands",
    "close_strands",
];

/// A case that no defect fails proves nothing.
fn every_case_can_fail() -> Result<(), Failed> {
    let known: HashSet<&str> = IN_PROCESS.iter().chain(CROSS_PROCESS).map(|(_, case)| *case).collect();
    let names = conformance::cases().into_iter().filter(|case| !case.slow).map(|case| format!("{case:?}"));
    let unproved: Vec<String> =
        names.filter(|name| !known.contains(name.as_str()) && !UNPROVED.contains(&name.as_str())).collect();
    if unproved.is_empty() { Ok(()) } else { Err(format!("no defect fails {unproved:?}").into()) }
}

/// Cases for which a defect needs a connector with deferred keys across processes.
const UNPROVED: &[&str] = &["process::deferred_there", "process::killed_in_commit_at"];
