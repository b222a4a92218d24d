//! Reports as a person reads them.

use std::cmp::Ordering;
use std::fmt::Write;

use super::api::{ApiReport, Holdings};
use super::checkpoint::SaveReport;
use super::fork::ForkReport;
use super::grow::GrowReport;
use super::host::HostReport;
use super::live_fork::LiveForkReport;
use super::matrix::MatrixReport;
use super::proc::Memory;
use super::stats::Percentiles;
use crate::ui;

/// Lines under each other.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, words: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{words}");
    }

    fn table(&mut self, header: &[&str], rows: &[Vec<String>]) {
        for words in ui::layout(header, rows) {
            self.line(format_args!("{words}"));
        }
        self.line(format_args!(""));
    }

    fn markdown(&mut self, header: &[String], rows: impl Iterator<Item = Vec<String>>) {
        let rule = vec!["---".to_owned(); header.len()];
        for cells in [header.to_vec(), rule].into_iter().chain(rows) {
            self.line(format_args!("| {} |", cells.join(" | ")));
        }
        self.line(format_args!(""));
    }

    fn host(&mut self, host: &HostReport) {
        let load = |load: [f64; 3]| load.map(|average| format!("{average:.2}")).join(" ");
        self.line(format_args!(
            "host: Linux {}, KVM {}, {} cores, governor {}, THP {}, load {} before and {} after",
            host.kernel,
            host.kvm,
            host.cpus,
            host.governor,
            host.thp,
            load(host.load),
            load(host.load_after)
        ));
    }

    fn errors(&mut self, errors: &[String]) {
        for error in errors {
            self.line(format_args!("FAILED {error}"));
        }
    }
}

/// Microseconds as milliseconds.
fn millis(micros: f64) -> String {
    format!("{:.2}", micros / 1e3)
}

fn row(what: &str, percentiles: Option<&Percentiles>) -> Vec<String> {
    let mut cells = vec![what.to_owned()];
    match percentiles {
        Some(p) => {
            cells.push(p.samples_us.len().to_string());
            cells.extend([p.p50_us, p.p90_us, p.p99_us, p.max_us].map(millis));
        }
        None => cells.push("0".to_owned()),
    }
    cells
}

/// Header of tables of [`row`]s.
const PERCENTILES: [&str; 6] = ["MS", "N", "P50", "P90", "P99", "MAX"];

fn memory_row(what: String, memory: &Memory) -> Vec<String> {
    vec![
        what,
        ui::bytes(memory.private_dirty_bytes),
        ui::bytes(memory.pss_bytes),
    ]
}

/// Forks.
pub fn fork(report: &ForkReport) -> String {
    let mut page = Page::default();
    page.line(format_args!(
        "arm {}: {} of {} forks of {} at {} MiB, {} at a time, in {:.1} s",
        report.arm.name(),
        report.succeeded,
        report.count,
        report.image,
        report.memory_mb,
        report.concurrency,
        report.wall_ms / 1e3
    ));
    page.line(format_args!(""));
    let intervals = &report.intervals;
    let rows = [
        ("T1 state set", &intervals.t1),
        ("T2 first act", &intervals.t2),
        ("T3 READY", &intervals.t3),
        ("T4 first result", &intervals.t4),
    ];
    page.table(
        &PERCENTILES,
        &rows.map(|(what, percentiles)| row(what, percentiles.as_ref())),
    );
    let mut rows = Vec::new();
    if let Some(memory) = &report.memory {
        rows.push(memory_row(format!("idle, {} alive", memory.forks), &memory.idle));
        rows.push(memory_row("after 64 MiB written".to_owned(), &memory.worked));
    }
    if let Some(alive) = &report.alive {
        rows.push(memory_row(
            format!("at the end, {} alive", alive.forks),
            &alive.each,
        ));
    }
    if !rows.is_empty() {
        page.table(&["MEMORY OF ONE", "PRIVATE DIRTY", "PSS"], &rows);
    }
    let fan_outs = report.fan_outs.iter().map(|fan_out| {
        vec![
            fan_out.forks.to_string(),
            fan_out.succeeded.to_string(),
            format!("{:.1}", fan_out.wall_ms),
        ]
    });
    if !report.fan_outs.is_empty() {
        page.table(
            &["FAN-OUT", "READY", "ALL AFTER (ms)"],
            &fan_outs.collect::<Vec<_>>(),
        );
    }
    if let Some(bytes) = report.still_cached_bytes {
        page.line(format_args!(
            "in the page cache although dropped: {} at most",
            ui::bytes(bytes)
        ));
    }
    page.errors(&report.errors);
    if let Some(trace) = &report.trace {
        page.line(format_args!("the fork with the median T3:"));
        for line in trace.lines() {
            page.line(format_args!("  {line}"));
        }
        page.line(format_args!(""));
    }
    page.host(&report.host);
    page.0
}

/// Live forks.
pub fn live_fork(report: &LiveForkReport) -> String {
    let mut page = Page::default();
    page.line(format_args!(
        "{} live forks of {} at {} MiB with {} vCPUs at each size",
        report.count, report.image, report.memory_mb, report.cpus
    ));
    page.line(format_args!(""));
    let mut rows = Vec::new();
    for size in &report.sizes {
        let what = |what: &str| format!("{} MB touched: {what}", size.touched_mb);
        rows.push(row(&what("paused (T5)"), size.pause_us.as_ref()));
        rows.push(row(&what("seen in the guest"), size.guest_seen_us.as_ref()));
        rows.push(row(&what("seen when idle"), size.guest_idle_us.as_ref()));
    }
    page.table(&PERCENTILES, &rows);
    for size in &report.sizes {
        let steps: Vec<_> = size
            .steps
            .iter()
            .map(|(what, at_us)| format!("{what} {at_us:.0}"))
            .collect();
        page.line(format_args!(
            "the median pause at {} MB, in us since the stop: {}",
            size.touched_mb,
            steps.join(", ")
        ));
    }
    page.errors(&report.errors);
    page.host(&report.host);
    page.0
}

/// Growing and shrinking.
pub fn grow(report: &GrowReport) -> String {
    let mut page = Page::default();
    let rows = report.steps.iter().map(|step| {
        vec![
            step.from_mb.to_string(),
            step.to_mb.to_string(),
            step.mem_total_mb.to_string(),
            step.verified_ms.to_string(),
            millis(step.vmm_us),
            ui::bytes(step.resident_bytes),
        ]
    });
    page.table(
        &[
            "FROM (MiB)",
            "TO (MiB)",
            "MEMTOTAL",
            "VERIFIED AFTER (ms)",
            "OF WHICH VMM (ms)",
            "RESIDENT",
        ],
        &rows.collect::<Vec<_>>(),
    );
    page.errors(report.error.as_slice());
    page.host(&report.host);
    page.0
}

/// A daemon.
pub fn api(report: &ApiReport) -> String {
    let mut page = Page::default();
    let mut rows = Vec::new();
    for creates in &report.creates {
        let what = |what: &str| format!("{} at once: {what}", creates.concurrency);
        rows.push(row(&what("create"), creates.create.as_ref()));
        rows.push(row(&what("of which not the fork"), creates.share.as_ref()));
        rows.push(row(
            &what("create and exec (T4)"),
            creates.create_and_exec.as_ref(),
        ));
        rows.push(row(&what("delete"), creates.delete.as_ref()));
    }
    page.table(&PERCENTILES, &rows);
    for creates in &report.creates {
        let counts = |counts: &std::collections::BTreeMap<String, usize>| {
            let words: Vec<_> = counts
                .iter()
                .map(|(name, count)| format!("{name} {count}"))
                .collect();
            words.join(", ")
        };
        page.line(format_args!(
            "{} at once: {}; failed: {}",
            creates.concurrency,
            counts(&creates.origins),
            if creates.failed.is_empty() {
                "none".to_owned()
            } else {
                counts(&creates.failed)
            }
        ));
    }
    page.line(format_args!(
        "GET /v1/sandboxes/{{id}}: {:.0} a second",
        report.gets_per_second
    ));
    if let Some(growth) = &report.growth {
        let holdings = |had: Holdings| {
            format!(
                "{} descriptors, {} KiB, {} threads, {} files, {} control groups",
                had.descriptors, had.resident_kib, had.threads, had.files, had.groups
            )
        };
        page.line(format_args!(
            "the daemon before {} creates and deletes: {}; after: {}",
            growth.cycles,
            holdings(growth.before),
            holdings(growth.after)
        ));
    }
    page.line(format_args!(""));
    page.host(&report.host);
    page.0
}

/// Checkpoints.
pub fn checkpoint(report: &SaveReport) -> String {
    let mut page = Page::default();
    page.line(format_args!(
        "{} checkpoints of {} at {} MiB at each size",
        report.count, report.image, report.memory_mb
    ));
    page.line(format_args!(""));
    let mut rows = Vec::new();
    for size in &report.sizes {
        let what = |what: &str| format!("{} MB touched: {what}", size.touched_mb);
        rows.push(row(&what("paused"), size.pause_us.as_ref()));
        let total = format!("in all, {} written", ui::bytes(size.memory_file_bytes));
        rows.push(row(&what(&total), size.total_us.as_ref()));
    }
    page.table(&PERCENTILES, &rows);
    page.host(&report.host);
    page.0
}

/// The matrix, as Markdown.
pub fn matrix(report: &MatrixReport) -> String {
    let mut page = Page::default();
    page.line(format_args!(
        "A step of every kind on base {}. Seconds.",
        report.base
    ));
    page.line(format_args!(""));
    let mut header = vec!["builderMemoryMB".to_owned(), "boot".to_owned()];
    if let Some(build) = report.builds.first() {
        header.extend(build.steps.iter().map(|step| step.label.clone()));
    }
    header.push("finalize, at".to_owned());
    let builds = report.builds.iter().map(|build| {
        let mut cells = vec![build.builder_memory_mb.to_string(), seconds(build.boot_seconds)];
        cells.extend(build.steps.iter().map(|step| seconds(step.seconds)));
        cells.push(format!("{}, {}", seconds(build.finalize_seconds), build.floor_mb));
        cells
    });
    page.markdown(&header, builds);
    let header = [
        "floor (MiB)",
        "finalize (s)",
        "checkpoint on disk",
        "kept by the kernel",
    ];
    let floors = report.floors.iter().map(|floor| {
        vec![
            floor.floor_mb.to_string(),
            seconds(floor.finalize_seconds),
            ui::bytes(floor.disk_bytes),
            ui::bytes(floor.kept_kib << 10),
        ]
    });
    page.markdown(&header.map(str::to_owned), floors);
    let header = [
        "builderMemoryMB",
        "floor",
        "asked",
        "granted",
        "",
        "MemTotal (KiB)",
        "grown in (s)",
        "all in (s)",
    ];
    let forks = report.forks.iter().map(|fork| {
        let memory = &fork.memory;
        let what = match memory.requested_mb.cmp(&memory.floor_mb) {
            Ordering::Less => "clamped up",
            Ordering::Equal => "as it is",
            Ordering::Greater => "grown",
        };
        vec![
            fork.builder_memory_mb.to_string(),
            memory.floor_mb.to_string(),
            memory.requested_mb.to_string(),
            memory.granted_mb.to_string(),
            what.to_owned(),
            fork.mem_total_kib.to_string(),
            seconds(f64::from(u32::try_from(memory.took_ms).unwrap_or(u32::MAX)) / 1e3),
            seconds(fork.seconds),
        ]
    });
    page.markdown(&header.map(str::to_owned), forks);
    page.errors(report.error.as_slice());
    page.host(&report.host);
    page.0
}

fn seconds(seconds: f64) -> String {
    format!("{seconds:.1}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::fork::{FanOut, Intervals, MemoryReport};
    use crate::bench::source::Arm;

    fn report() -> ForkReport {
        let percentiles = Percentiles::of(&[1_000_000, 2_000_000]);
        let memory = Memory {
            private_dirty_bytes: 1 << 20,
            pss_bytes: 2 << 20,
        };
        ForkReport {
            arm: Arm::Cold,
            image: "x".to_owned(),
            memory_mb: 1024,
            count: 3,
            concurrency: 1,
            succeeded: 2,
            wall_ms: 1.0,
            intervals: Intervals {
                t1: percentiles.clone(),
                t2: percentiles.clone(),
                t3: percentiles,
                t4: None,
            },
            memory: Some(MemoryReport {
                forks: 5,
                idle: memory,
                worked: memory,
            }),
            alive: None,
            fan_outs: vec![FanOut {
                forks: 64,
                succeeded: 63,
                wall_ms: 700.0,
            }],
            still_cached_bytes: Some(0),
            errors: vec!["it was destroyed".to_owned()],
            trace: None,
            host: HostReport::look(),
        }
    }

    #[test]
    fn a_fork_that_failed_is_shown() {
        let text = fork(&report());
        for part in [
            "arm cold: 2 of 3 forks",
            "FAILED it was destroyed",
            "64       63",
            "load",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn the_names_are_those_that_programs_know() {
        let json = serde_json::to_value(report()).unwrap();
        for path in [
            "/arm",
            "/image",
            "/memoryMB",
            "/count",
            "/concurrency",
            "/succeeded",
            "/wallMs",
            "/intervals/t1/p50Us",
            "/intervals/t2/p90Us",
            "/intervals/t3/p99Us",
            "/intervals/t3/maxUs",
            "/intervals/t3/samplesUs",
            "/intervals/t4",
            "/memory/idle/privateDirtyBytes",
            "/memory/worked/pssBytes",
            "/host/thp",
        ] {
            assert!(json.pointer(path).is_some(), "{path} in {json}");
        }
        assert_eq!(json["arm"], "cold");
    }
}
