//! `spore bench live-fork`: how long a guest stands still when it is forked while it runs.

use serde::Serialize;
use spore_builder::Host;
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::Guest;
use spore_vmm::machine::Identity;

use super::BenchError;
use super::host::HostReport;
use super::image::Target;
use super::source::nanos;
use super::stats::Percentiles;
use super::worker::Watching;

/// How long a process in the guest watches the clock each time, in milliseconds.
const WATCH_MS: u64 = 1500;
/// How often it watches while nothing happens.
const IDLE_WATCHES: usize = 5;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct LiveForkPlan {
    /// Live forks at each size.
    pub count: usize,
    /// How much of the guest's memory a process in it has touched, in MiB.
    pub touched_mb: Vec<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LiveForkReport {
    /// Of which image.
    pub image: String,
    /// Memory of the guest.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Its vCPUs. With one the process that watches waits for the agent too.
    pub cpus: u8,
    /// Live forks at each size.
    pub count: usize,
    /// Size by size.
    pub sizes: Vec<Standstill>,
    /// Why forks failed that did, and why nothing was seen in the guest where nothing was.
    pub errors: Vec<String>,
    /// The machine.
    pub host: HostReport,
}

/// How long a guest of one size stood still.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Standstill {
    /// Memory a process in it had touched.
    #[serde(rename = "touchedMB")]
    pub touched_mb: u32,
    /// Live forks whose parent went on and whose child became READY.
    pub succeeded: usize,
    /// From the guest's last act to when its vCPUs were let go on, as the VMM sees it (T5).
    pub pause_us: Option<Percentiles>,
    /// The longest jump of the clock that a process in the guest saw around each live fork.
    pub guest_seen_us: Option<Percentiles>,
    /// The longest it saw while nothing was asked of the guest: what the machine itself takes.
    pub guest_idle_us: Option<Percentiles>,
    /// Where the middle pause went: steps and microseconds since the stop.
    pub steps: Vec<(String, f64)>,
}

/// Runs the benchmark; `say` is told what goes on.
///
/// # Errors
/// [`BenchError`]. Nothing is left either way.
pub fn run(
    host: &Host,
    target: &Target,
    cpus: u8,
    plan: &LiveForkPlan,
    say: &mut dyn FnMut(&str),
) -> Result<LiveForkReport, BenchError> {
    let mut report = LiveForkReport {
        image: target.image.clone(),
        memory_mb: target.memory_mb,
        cpus,
        count: plan.count,
        sizes: Vec::new(),
        errors: Vec::new(),
        host: HostReport::look(),
    };
    let checkpoint = target.open(host)?;
    for &touched_mb in &plan.touched_mb {
        say(&format!(
            "{} live forks of a guest of {} MiB that has touched {touched_mb}",
            plan.count, target.memory_mb
        ));
        let (mut guest, _holding) = target.touched(host, &checkpoint, touched_mb)?;
        let size = size(host, &mut guest, touched_mb, plan.count, &mut report.errors)?;
        report.sizes.push(size);
    }
    report.host = report.host.after();
    Ok(report)
}

/// All live forks of one guest.
fn size(
    host: &Host,
    guest: &mut Guest,
    touched_mb: u32,
    count: usize,
    errors: &mut Vec<String>,
) -> Result<Standstill, BenchError> {
    let mut idle = Vec::new();
    for _ in 0..IDLE_WATCHES {
        idle.push(Watching::start(guest, WATCH_MS)?.longest_gap_ns(0)?);
    }
    let (mut pauses, mut seen, mut succeeded) = (Vec::new(), Vec::new(), 0);
    for _ in 0..count {
        let watching = Watching::start(guest, WATCH_MS)?;
        let fork = guest.live_fork(host.store(), &[Identity::default()])?;
        let marks = fork.times.trace.marks();
        let until = marks.last().map_or_else(monotonic_ns, |&(_, at)| at);
        let since = marks.first().map_or(until, |&(_, at)| at);
        let steps = marks
            .iter()
            .map(|&(what, at)| (what.to_owned(), (at - since) as f64 / 1e3));
        pauses.push((nanos(fork.times.paused), steps.collect::<Vec<_>>()));
        for child in fork.forks {
            match child {
                // Its end is waited for here: it has half of the processors otherwise.
                Ok(child) => {
                    succeeded += 1;
                    drop(child);
                }
                Err(error) => errors.push(error.to_string()),
            }
        }
        // On a busy machine a fork may come after the end of the watch: then nothing is known of this one.
        match watching.longest_gap_ns(until) {
            Ok(gap) => seen.push(gap),
            Err(error @ BenchError::Worker(_)) => errors.push(error.to_string()),
            Err(error) => return Err(error),
        }
    }
    let all: Vec<_> = pauses.iter().map(|(pause, _)| *pause).collect();
    pauses.sort_by_key(|(pause, _)| *pause);
    let middle = pauses.len().saturating_sub(1) / 2;
    Ok(Standstill {
        touched_mb,
        succeeded,
        pause_us: Percentiles::of(&all),
        guest_seen_us: Percentiles::of(&seen),
        guest_idle_us: Percentiles::of(&idle),
        steps: pauses
            .into_iter()
            .nth(middle)
            .map(|(_, steps)| steps)
            .unwrap_or_default(),
    })
}
