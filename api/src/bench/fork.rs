//! `spore bench fork`: how long forks of one arm take, what they cost, and how many can be had at once.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use serde::Serialize;
use spore_builder::Host;
use spore_protocol::ExecRequest;
use spore_vmm::clock::monotonic_ns;
use spore_vmm::guest::Guest;

use super::BenchError;
use super::host::HostReport;
use super::image::Target;
use super::proc::Memory;
use super::source::{Arm, Forked, Source, nanos};
use super::stats::Percentiles;
use super::worker;
use crate::timeline::Timeline;

/// Forks whose memory is looked at.
const MEMORY_FORKS: usize = 5;
/// What the workload writes to, in MiB.
const WORKLOAD_MB: u32 = 64;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct ForkPlan {
    /// How forks are made.
    pub arm: Arm,
    /// How many.
    pub count: usize,
    /// How many at the same time; the next so many follow when they are done.
    pub concurrency: usize,
    /// Whether all live until the last one is measured.
    pub keep: bool,
    /// Whether a command is run in each (T4).
    pub exec: bool,
    /// Whether a workload is run in some, and their memory looked at.
    pub memory: bool,
    /// Sizes of the fan-outs.
    pub fan_outs: Vec<usize>,
    /// Whether one of them is told in full.
    pub trace: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForkReport {
    /// How forks were made: as the pool says, not as was asked.
    pub arm: Arm,
    /// Of which image.
    pub image: String,
    /// Memory of each.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// How many were asked for.
    pub count: usize,
    /// How many at the same time.
    pub concurrency: usize,
    /// How many became who they should be and, if a command was run, answered.
    pub succeeded: usize,
    /// From the first that was asked for to the end of the last, with all that was waited for in between.
    pub wall_ms: f64,
    /// How long the steps took.
    pub intervals: Intervals,
    /// What each costs.
    pub memory: Option<MemoryReport>,
    /// All at once, if they were kept.
    pub alive: Option<Alive>,
    /// So many asked for at the same moment.
    pub fan_outs: Vec<FanOut>,
    /// Of the checkpoint's files, what was in the page cache although it was dropped; the most of all times.
    pub still_cached_bytes: Option<u64>,
    /// Why those that failed did.
    pub errors: Vec<String>,
    /// The fork with the median T3.
    pub trace: Option<Timeline>,
    /// The machine.
    pub host: HostReport,
}

/// How long the steps took, all from when the fork was asked for. A step that was not taken has no samples.
#[derive(Clone, Debug, Serialize)]
pub struct Intervals {
    /// The VMM's part: all state is set, it is let run.
    pub t1: Option<Percentiles>,
    /// The guest's first act, at the fork port.
    pub t2: Option<Percentiles>,
    /// READY: it is who it should be.
    pub t3: Option<Percentiles>,
    /// The result of its first command is here.
    pub t4: Option<Percentiles>,
}

/// What a fork costs: the middle of some.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryReport {
    /// Of how many, all of them alive.
    pub forks: usize,
    /// When it is READY.
    pub idle: Memory,
    /// When a program in it has written to 64 MiB.
    pub worked: Memory,
}

/// All that were kept, at the end.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Alive {
    /// How many.
    pub forks: usize,
    /// The middle one.
    pub each: Memory,
    /// All together.
    pub private_dirty_bytes: u64,
}

/// A fan-out.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FanOut {
    /// How many were asked for.
    pub forks: usize,
    /// How many became READY.
    pub succeeded: usize,
    /// Until the last was.
    pub wall_ms: f64,
}

/// How long the steps of one fork took, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    t1: u64,
    t2: Option<u64>,
    t3: Option<u64>,
    t4: Option<u64>,
}

/// One fork that worked.
struct Sample {
    guest: Guest,
    times: Times,
    timeline: Timeline,
}

/// Runs the benchmark; `say` is told what goes on.
///
/// # Errors
/// [`BenchError`]. A fork that fails is counted, not an error. Nothing is left either way.
pub fn run(
    host: &Host,
    target: &Target,
    plan: &ForkPlan,
    say: &mut dyn FnMut(&str),
) -> Result<ForkReport, BenchError> {
    if plan.arm == Arm::Cold && (plan.concurrency > 1 || plan.keep) {
        return Err(BenchError::Refused(
            "the arm `cold` makes one fork after the other: what others have mapped is in the page cache"
                .to_owned(),
        ));
    }
    let before = HostReport::look();
    let mut report = ForkReport {
        arm: plan.arm,
        image: target.image.clone(),
        memory_mb: target.memory_mb,
        count: plan.count,
        concurrency: plan.concurrency,
        succeeded: 0,
        wall_ms: 0.0,
        intervals: Intervals {
            t1: None,
            t2: None,
            t3: None,
            t4: None,
        },
        memory: None,
        alive: None,
        fan_outs: Vec::new(),
        still_cached_bytes: None,
        errors: Vec::new(),
        trace: None,
        host: before,
    };
    say(&format!(
        "{} forks of {} by arm `{}`, {} at a time",
        plan.count,
        target.image,
        plan.arm.name(),
        plan.concurrency
    ));
    let source = Source::open(host, target, plan.arm, plan.concurrency)?;
    many(&source, plan, &mut report)?;
    if plan.memory {
        say(&format!(
            "memory of {MEMORY_FORKS} forks, idle and after they wrote to {WORKLOAD_MB} MiB"
        ));
        report.memory = memory(&source, target)?;
    }
    drop(source);
    for &forks in &plan.fan_outs {
        say(&format!("a fan-out of {forks}"));
        let source = Source::open(host, target, plan.arm, forks)?;
        let fan_out = fan_out(&source, forks, &mut report.errors)?;
        report.fan_outs.push(fan_out);
    }
    report.host = report.host.after();
    Ok(report)
}

/// The forks that are measured one by one.
fn many(source: &Source<'_>, plan: &ForkPlan, report: &mut ForkReport) -> Result<(), BenchError> {
    let (mut samples, mut kept) = (Vec::new(), Vec::new());
    source.settle()?;
    let started = Instant::now();
    let mut asked = 0;
    while asked < plan.count {
        report.still_cached_bytes = report.still_cached_bytes.max(source.settle()?);
        let now = plan.concurrency.min(plan.count - asked);
        asked += now;
        for made in at_once(source, now, plan.exec)? {
            match made {
                Ok(sample) => {
                    samples.push((sample.times, sample.timeline));
                    match plan.keep {
                        true => kept.push(sample.guest),
                        false => source.destroy(sample.guest),
                    }
                }
                Err(error) => report.errors.push(error.to_string()),
            }
        }
    }
    report.wall_ms = millis(started.elapsed());
    report.succeeded = samples.len();
    let all = |field: fn(&Times) -> Option<u64>| {
        let some: Vec<_> = samples.iter().filter_map(|(times, _)| field(times)).collect();
        Percentiles::of(&some)
    };
    report.intervals = Intervals {
        t1: all(|times| Some(times.t1)),
        t2: all(|times| times.t2),
        t3: all(|times| times.t3),
        t4: all(|times| times.t4),
    };
    if plan.keep {
        report.alive = alive(&kept)?;
        kept.into_iter().for_each(|guest| source.destroy(guest));
    }
    if plan.trace {
        samples.sort_by_key(|(times, _)| times.t3);
        let middle = samples.len().saturating_sub(1) / 2;
        report.trace = samples.into_iter().nth(middle).map(|(_, timeline)| timeline);
    }
    Ok(())
}

/// So many forks, asked for at the same moment.
fn at_once(
    source: &Source<'_>,
    count: usize,
    exec: bool,
) -> Result<Vec<Result<Sample, BenchError>>, BenchError> {
    if count == 1 {
        return Ok(vec![one(source, exec)?]);
    }
    let ready = Barrier::new(count);
    std::thread::scope(|scope| {
        let start = || {
            scope.spawn(|| {
                ready.wait();
                one(source, exec)
            })
        };
        let threads: Vec<_> = (0..count).map(|_| start()).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    })
}

/// One fork. The outer error ends the benchmark, the inner one is a fork that failed.
fn one(source: &Source<'_>, exec: bool) -> Result<Result<Sample, BenchError>, BenchError> {
    Ok(match source.fork()? {
        Ok(forked) => measure(forked, exec),
        Err(error) => Err(error),
    })
}

fn measure(forked: Forked, exec: bool) -> Result<Sample, BenchError> {
    let Forked {
        mut guest,
        asked_ns,
        opened_ns,
    } = forked;
    let mut more = Vec::new();
    if let Some(opened_ns) = opened_ns {
        more.push(("checkpoint opened", opened_ns));
    }
    let mut t4 = None;
    if exec {
        let mut agent = worker::connect(&mut guest)?;
        more.push(("connected to the agent", monotonic_ns()));
        let output = agent.exec_collect(&ExecRequest::new(["true"]), b"");
        let output = output.map_err(|error| guest.explain(error))?;
        let answered_ns = monotonic_ns();
        if !output.outcome.status.success() {
            let status = output.outcome.status;
            return Err(BenchError::Worker(format!("`true` ended with {status:?}")));
        }
        more.push(("first command's result (T4)", answered_ns));
        t4 = Some(answered_ns - asked_ns);
    }
    // The guest counts from when whoever made it was asked, a moment after we were.
    let marks = guest.trace().marks();
    let inner = marks
        .iter()
        .find(|(what, _)| *what == "asked")
        .map_or(asked_ns, |(_, at)| *at);
    let since = |time: Duration| nanos(time) + inner.saturating_sub(asked_ns);
    let noted = guest.times();
    let times = Times {
        t1: since(noted.released),
        t2: noted.woke.map(since),
        t3: noted.ready.map(since),
        t4,
    };
    let timeline = Timeline::new(asked_ns, guest.trace(), &more);
    Ok(Sample {
        guest,
        times,
        timeline,
    })
}

fn alive(kept: &[Guest]) -> Result<Option<Alive>, BenchError> {
    let memory = kept
        .iter()
        .map(|guest| Memory::of(guest.pid()))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(Memory::median(&memory).map(|each| Alive {
        forks: memory.len(),
        each,
        private_dirty_bytes: memory.iter().map(|of_one| of_one.private_dirty_bytes).sum(),
    }))
}

/// What forks cost, several of them alive at once.
fn memory(source: &Source<'_>, target: &Target) -> Result<Option<MemoryReport>, BenchError> {
    let mut guests = Vec::new();
    for _ in 0..MEMORY_FORKS {
        source.settle()?;
        guests.push(source.fork()??.guest);
    }
    let look = |guests: &[Guest]| {
        guests
            .iter()
            .map(|guest| Memory::of(guest.pid()))
            .collect::<Result<Vec<_>, _>>()
    };
    let idle = look(&guests)?;
    let mut working = Vec::new();
    for guest in &mut guests {
        if !target.has_worker {
            worker::install(guest)?;
        }
        working.push(worker::touch(guest, WORKLOAD_MB)?);
    }
    let worked = look(&guests)?;
    drop(working);
    guests.into_iter().for_each(|guest| source.destroy(guest));
    source.settle()?;
    Ok(Memory::median(&idle)
        .zip(Memory::median(&worked))
        .map(|(idle, worked)| MemoryReport {
            forks: MEMORY_FORKS,
            idle,
            worked,
        }))
}

/// So many forks at the same moment, until the last is READY.
fn fan_out(source: &Source<'_>, forks: usize, errors: &mut Vec<String>) -> Result<FanOut, BenchError> {
    source.settle()?;
    let started = Instant::now();
    let made = at_once(source, forks, false)?;
    let wall_ms = millis(started.elapsed());
    let mut succeeded = 0;
    for fork in made {
        match fork {
            Ok(sample) => {
                succeeded += 1;
                source.destroy(sample.guest);
            }
            Err(error) => errors.push(format!("in a fan-out of {forks}: {error}")),
        }
    }
    Ok(FanOut {
        forks,
        succeeded,
        wall_ms,
    })
}

fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
