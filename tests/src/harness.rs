//! Runs the tests, and looks afterwards that nothing is left.
//!
//! Rust's own harness ends the process when the last test is done: nothing that tests share is dropped, and
//! nobody can look at what they left. So the test program has a `main` of its own, which calls [`run`]; its
//! command line and its output are those of Rust's.

use std::process::ExitCode;
use std::time::Instant;

use libtest_mimic::{Arguments, Completion, Trial};

use crate::{data, host};

/// A test: its name and what it does.
pub type Test = (&'static str, fn());

/// The tests of a module, by the names of their functions, which are the sentences they prove. `in "group::"` comes
/// before the names of a group of modules.
#[macro_export]
macro_rules! tests {
    (in $group:literal: $($module:ident: $($name:ident),+ $(,)?);+ $(;)?) => {
        vec![$($((
            concat!($group, stringify!($module), "::", stringify!($name)),
            $module::$name as fn(),
        )),+),+]
    };
    ($($module:ident: $($name:ident),+ $(,)?);+ $(;)?) => {
        vec![$($((concat!(stringify!($module), "::", stringify!($name)), $module::$name as fn())),+),+]
    };
}

/// Runs `tests` and then `last`, which looks at what they left in the directory of this run.
///
/// Without usable KVM no test runs: each says so and counts as ignored. With it none is skipped.
pub fn run(tests: Vec<Test>, last: Test) -> ExitCode {
    let arguments = Arguments::from_args();
    if arguments.list {
        let all = tests.into_iter().chain([last]).map(|test| trial(test, Ok(())));
        return libtest_mimic::run(&arguments, all.collect()).exit_code();
    }
    data::begin();
    // Before the variable below is ours: whoever runs the tests may have named another program by it.
    let ready = match host::no_kvm() {
        Some(_) => Ok(()),
        None => host::pin(),
    };
    // SAFETY: no other thread runs yet that could read the environment meanwhile.
    unsafe { std::env::set_var("SPORE_VM", host::vm_program()) };
    let trials = tests.into_iter().map(|test| trial(test, ready.clone()));
    let tested = libtest_mimic::run(&arguments, trials.collect());
    let unfiltered = Arguments {
        filter: None,
        skip: Vec::new(),
        ignored: false,
        ..arguments
    };
    let left = libtest_mimic::run(&unfiltered, vec![trial(last, ready)]);
    data::end();
    match tested.has_failed() {
        true => tested.exit_code(),
        false => left.exit_code(),
    }
}

fn trial((name, test): Test, ready: Result<(), String>) -> Trial {
    Trial::ignorable_test(name, move || {
        if let Some(why) = host::no_kvm() {
            eprintln!("SKIPPED: no usable KVM: {name} ({why})");
            return Ok(Completion::ignored_with("no usable KVM"));
        }
        ready?;
        let started = Instant::now();
        test();
        eprintln!("[{:5.1} s] {name}", started.elapsed().as_secs_f64());
        Ok(Completion::Completed)
    })
}
