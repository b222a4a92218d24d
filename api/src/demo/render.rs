//! The report as a person reads it.

use std::fmt::Write;
use std::time::Duration;

use super::report::{ForkReport, Report};
use crate::ui;

const HEADER: [&str; 10] = [
    "ASKED (MiB)",
    "GRANTED",
    "MEMTOTAL",
    "READY",
    "GROWN IN",
    "WRITTEN",
    "SHRUNK TO",
    "RESIDENT",
    "AFTER",
    "PROOFS",
];

/// A few lines about the builds, a table of the forks, what did not hold, and what is left.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |words: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{words}");
    };
    let (oom, build, finalize) = (&report.oom, &report.build, &report.finalize);
    let verdict = if oom.as_expected {
        "as it must"
    } else {
        "NOT as it must"
    };
    line(format_args!(
        "with {} MiB   fails in {:.1} s, {verdict}: {}",
        oom.builder_memory_mb, oom.seconds, oom.error
    ));
    line(format_args!(
        "build           {:.1} s with {} MiB, content {}",
        build.seconds, build.builder_memory_mb, build.content_hash
    ));
    line(format_args!(
        "finalize        {:.1} s, asleep with {} MiB, of which {} are not zero",
        finalize.seconds,
        finalize.floor_mb,
        ui::bytes(finalize.memory_file_bytes)
    ));
    line(format_args!(""));
    let rows: Vec<_> = report.forks.iter().map(row).collect();
    for words in ui::layout(&HEADER, &rows) {
        line(format_args!("{words}"));
    }
    line(format_args!(""));
    if let Some(fork) = report.forks.last() {
        let names: Vec<_> = fork.proofs.keys().map(String::as_str).collect();
        line(format_args!("proofs          {}", names.join(", ")));
    }
    for fork in &report.forks {
        for failed in &fork.failed {
            line(format_args!(
                "FAILED          {} in the fork that asked for {} MiB\n  expected {}\n  found    {}",
                failed.proof, fork.requested_mb, failed.expected, failed.found
            ));
        }
    }
    match &report.leftovers[..] {
        [] => line(format_args!(
            "left            nothing: no process, socket, file, mount"
        )),
        left => left
            .iter()
            .for_each(|thing| line(format_args!("LEFT            {thing}"))),
    }
    line(format_args!(
        "{}",
        if report.ok {
            "every proof held"
        } else {
            "NOT every proof held"
        }
    ));
    text
}

fn row(fork: &ForkReport) -> Vec<String> {
    let took = |millis: f64| ui::took(Duration::from_secs_f64(millis.max(0.0) / 1e3));
    let grown = fork.granted_mb > fork.floor_mb;
    let if_grown = |text: String| if grown { text } else { "-".to_owned() };
    let clamped = if fork.granted_mb > fork.requested_mb {
        " (floor)"
    } else {
        ""
    };
    let held = fork.proofs.values().filter(|held| **held).count();
    vec![
        fork.requested_mb.to_string(),
        format!("{}{clamped}", fork.granted_mb),
        fork.mem_total_mb.to_string(),
        took(fork.ready_ms),
        if_grown(took(fork.grow_ms)),
        if_grown(format!("{} in {}", fork.written_mb, took(fork.fill_ms))),
        if_grown(format!("{} in {}", fork.shrunk_mb, took(fork.shrink_ms))),
        ui::bytes(fork.resident_before_bytes),
        ui::bytes(fork.resident_after_bytes),
        format!("{held} of {}", fork.proofs.len()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::proofs::Failed;

    #[test]
    fn a_failed_proof_is_shown_with_what_was_expected_and_found() {
        let mut fork = ForkReport {
            requested_mb: 512,
            floor_mb: 1024,
            granted_mb: 1024,
            ..ForkReport::default()
        };
        fork.proofs.insert("nonceInMemory".to_owned(), false);
        fork.failed.push(Failed {
            proof: "nonceInMemory".to_owned(),
            expected: "aa".to_owned(),
            found: "bb".to_owned(),
        });
        let report = Report {
            forks: vec![fork],
            leftovers: vec!["socket /x/vsock".to_owned()],
            ..Report::default()
        };
        let text = render(&report);
        for part in [
            "1024 (floor)",
            "0 of 1",
            "nonceInMemory in the fork that asked for 512 MiB",
            "expected aa",
            "found    bb",
            "LEFT            socket /x/vsock",
            "NOT every proof held",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_good_end_is_said() {
        let report = Report {
            ok: true,
            ..Report::default()
        };
        let text = render(&report);
        assert!(text.contains("nothing: no process, socket, file, mount"));
        assert!(text.ends_with("\nevery proof held\n"));
    }
}
