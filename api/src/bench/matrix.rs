//! `spore bench matrix`: a manifest with a step of every kind, built with little and much memory, finalized at small
//! and large floors, forked at sizes below and above them; and in each fork, whether all of it is there.
//!
//! The first thing that is not as it should be is an error, and ends it. It works in a data directory of its own, so
//! that every step runs and no image of the user's is touched.

mod recipe;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use spore_builder::observe::{BuildEvent, Observer};
use spore_builder::{Built, Cancel, Host, Options, Variant};
use spore_protocol::ExecRequest;
use spore_snapshot::CheckpointId;
use spore_snapshot::store::Image;
use spore_vmm::guest::{Granted, Guest};

use super::BenchError;
use super::host::HostReport;
use super::worker;
use crate::leftovers;
use crate::ui::BuildProgress;

/// What is built and forked, all in MiB.
#[derive(Clone, Debug)]
pub struct MatrixPlan {
    /// Memory of build VMs.
    pub builds_mb: Vec<u32>,
    /// Memory at rest.
    pub floors_mb: Vec<u32>,
    /// What forks of each floor ask for, beside half of their floor.
    pub sizes_mb: Vec<u32>,
}

/// What came of it. All that is in it held.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MatrixReport {
    /// The base.
    pub base: &'static str,
    /// One for each memory of a build VM.
    pub builds: Vec<BuildRow>,
    /// One for each floor.
    pub floors: Vec<FloorRow>,
    /// One for each fork.
    pub forks: Vec<ForkRow>,
    /// What was not as it should be, and ended it.
    pub error: Option<String>,
    /// The machine.
    pub host: HostReport,
}

/// A build without a cache.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildRow {
    /// Memory of the build VM.
    #[serde(rename = "builderMemoryMB")]
    pub builder_memory_mb: u32,
    /// Until its agent was up.
    pub boot_seconds: f64,
    /// Its steps, in order.
    pub steps: Vec<StepRow>,
    /// The floor it was finalized at.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// How long that took.
    pub finalize_seconds: f64,
}

/// A step.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepRow {
    /// What it was.
    pub label: String,
    /// Until its disk was sealed.
    pub seconds: f64,
}

/// A checkpoint of the image that was built last.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FloorRow {
    /// The floor.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// How long finalizing took.
    pub finalize_seconds: f64,
    /// What the checkpoint's directory takes on the host's disk. The disk layers are shared and not in it.
    pub disk_bytes: u64,
    /// What of its MemTotal a guest at this floor does not show, in KiB: its kernel keeps it.
    #[serde(rename = "keptKiB")]
    pub kept_kib: u64,
}

/// A fork in which everything was looked for and found.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ForkRow {
    /// Memory of the VM its image was built in.
    #[serde(rename = "builderMemoryMB")]
    pub builder_memory_mb: u32,
    /// What was asked, and what the guest has.
    pub memory: Granted,
    /// MemTotal, as a program in the guest read it when it had that, in KiB.
    #[serde(rename = "memTotalKiB")]
    pub mem_total_kib: u64,
    /// From asking for the fork to all of it found.
    pub seconds: f64,
}

/// Runs the matrix in `root`, where `host` has its store; `say` is told what goes on.
///
/// What is not as it should be ends it, and is in the report beside all that was found before.
///
/// # Errors
/// When there is nothing to do.
pub fn run(
    host: &Host,
    plan: &MatrixPlan,
    cancel: &Cancel,
    say: &mut dyn FnMut(&str),
) -> Result<MatrixReport, BenchError> {
    let mut report = MatrixReport {
        base: recipe::BASE,
        builds: Vec::new(),
        floors: Vec::new(),
        forks: Vec::new(),
        error: None,
        host: HostReport::look(),
    };
    let builds = plan.builds_mb.split_last();
    let (&last_mb, others_mb) =
        builds.ok_or_else(|| BenchError::Refused("no memory to build with".to_owned()))?;
    let first_floor_mb = plan.floors_mb.first();
    let &first_floor_mb = first_floor_mb.ok_or_else(|| BenchError::Refused("no floor".to_owned()))?;
    let mut run = Run {
        host,
        cancel,
        report: &mut report,
        say,
    };
    if let Err(error) = run.all(plan, others_mb, last_mb, first_floor_mb) {
        report.error = Some(error.to_string());
    }
    report.host = report.host.after();
    Ok(report)
}

impl Run<'_> {
    fn all(
        &mut self,
        plan: &MatrixPlan,
        others_mb: &[u32],
        last_mb: u32,
        first_floor_mb: u32,
    ) -> Result<(), BenchError> {
        for &builder_mb in others_mb {
            let built = self.build(builder_mb, first_floor_mb)?;
            let mut kept = None;
            self.fork(
                &built.checkpoint,
                builder_mb,
                first_floor_mb,
                first_floor_mb,
                &mut kept,
            )?;
        }
        let built = self.build(last_mb, first_floor_mb)?;
        for &floor_mb in &plan.floors_mb {
            let (checkpoint, finalize_seconds) = if floor_mb == first_floor_mb {
                (built.checkpoint, seconds(built.finalize.unwrap_or_default()))
            } else {
                self.finalize(&built.image, floor_mb)?
            };
            let disk_bytes = allocated(&self.host.store().checkpoint_dir(&checkpoint))?;
            let mut kept = None;
            for asked_mb in asked(floor_mb, &plan.sizes_mb) {
                self.fork(&checkpoint, last_mb, floor_mb, asked_mb, &mut kept)?;
            }
            self.report.floors.push(FloorRow {
                floor_mb,
                finalize_seconds,
                disk_bytes,
                kept_kib: kept.unwrap_or_default(),
            });
        }
        Ok(())
    }
}

/// What forks of a floor ask for: first less than it, which is clamped and so shows what a guest of this floor has.
fn asked(floor_mb: u32, sizes_mb: &[u32]) -> Vec<u32> {
    let mut asked: Vec<_> = sizes_mb.iter().copied().chain([floor_mb / 2]).collect();
    asked.sort_unstable();
    asked.dedup();
    asked
}

struct Run<'a> {
    host: &'a Host,
    cancel: &'a Cancel,
    report: &'a mut MatrixReport,
    say: &'a mut dyn FnMut(&str),
}

impl Run<'_> {
    fn build(&mut self, builder_mb: u32, floor_mb: u32) -> Result<Built, BenchError> {
        (self.say)(&format!("building with {builder_mb} MiB"));
        let options = Options {
            // Memory is not in the hash: the second build would be the first.
            no_cache: true,
            cancel: self.cancel.clone(),
            ..Options::default()
        };
        let mut steps = Steps::new();
        let built = spore_builder::build(
            self.host,
            &recipe::manifest(builder_mb, floor_mb)?,
            &options,
            &mut steps,
        )?;
        let (expected, found) = (recipe::KINDS.len(), steps.rows.len());
        let ran = built.build.is_some() && expected == found;
        wrong(ran, || {
            format!("of {expected} steps {found} ran in a build without a cache")
        })?;
        self.report.builds.push(BuildRow {
            builder_memory_mb: builder_mb,
            boot_seconds: steps.boot_seconds,
            steps: steps.rows,
            floor_mb,
            finalize_seconds: seconds(built.finalize.unwrap_or_default()),
        });
        Ok(built)
    }

    fn finalize(&mut self, image: &Image, floor_mb: u32) -> Result<(CheckpointId, f64), BenchError> {
        let started = Instant::now();
        let variant = Variant { floor_mb, vcpus: 1 };
        let checkpoint = spore_builder::build::variant(
            self.host,
            &image.record,
            variant,
            self.cancel,
            &mut BuildProgress::new(),
        )?;
        Ok((checkpoint, seconds(started.elapsed())))
    }

    /// Forks a checkpoint, asks for memory, and looks for everything in the guest. The first fork of a floor says
    /// what the kernel keeps of it; that is the same at every size.
    fn fork(
        &mut self,
        checkpoint: &CheckpointId,
        builder_mb: u32,
        floor_mb: u32,
        asked_mb: u32,
        kept: &mut Option<u64>,
    ) -> Result<(), BenchError> {
        if self.cancel.is_cancelled() {
            return Err(spore_builder::BuildError::Cancelled.into());
        }
        let what = format!("built with {builder_mb} MiB, floor {floor_mb}, asked for {asked_mb}");
        (self.say)(&what);
        let started = Instant::now();
        let checkpoint = self.host.store().open_checkpoint(checkpoint)?;
        let mut guest = Guest::fork(self.host.store(), &checkpoint)?;
        let mut agent = worker::connect(&mut guest)?;
        let memory = guest.resize(&mut agent, asked_mb)?;
        let expected = (floor_mb, asked_mb, asked_mb.max(floor_mb));
        let answered = (memory.floor_mb, memory.requested_mb, memory.granted_mb);
        wrong(answered == expected, || {
            format!("{what}: (floor, requested, granted) should be {expected:?} and is {answered:?}")
        })?;
        let output = agent.exec_collect(&ExecRequest::new(["/bin/sh", "-c", recipe::LOOK]), b"")?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let mem_total_kib = recipe::check(&said).map_err(|why| {
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            BenchError::Wrong(format!("{what}: {why}\n{errors}"))
        })?;
        let granted_kib = u64::from(memory.granted_mb) << 10;
        let keeps = granted_kib.saturating_sub(mem_total_kib);
        let known = *kept.get_or_insert(keeps);
        wrong(
            mem_total_kib < granted_kib && known < u64::from(floor_mb) << 10 >> 3,
            || format!("{what}: granted {granted_kib} KiB, and MemTotal is {mem_total_kib} KiB"),
        )?;
        wrong(keeps.abs_diff(known) <= KEPT_VARIES_KIB, || {
            format!("{what}: the kernel keeps {keeps} KiB, and {known} of the floor alone")
        })?;
        self.report.forks.push(ForkRow {
            builder_memory_mb: builder_mb,
            memory,
            mem_total_kib,
            seconds: seconds(started.elapsed()),
        });
        drop(agent);
        drop(guest);
        let left = leftovers::in_store(self.host.store().root());
        wrong(left.is_empty(), || {
            format!("{what}: left behind: {}", left.join(", "))
        })
    }
}

/// What the kernel keeps may differ by so much between sizes, in KiB.
const KEPT_VARIES_KIB: u64 = 1024;

fn wrong(holds: bool, what: impl FnOnce() -> String) -> Result<(), BenchError> {
    if holds {
        Ok(())
    } else {
        Err(BenchError::Wrong(what()))
    }
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// What the files of a directory take on the disk.
fn allocated(directory: &Path) -> Result<u64, BenchError> {
    let failed = |source| BenchError::File {
        path: directory.to_owned(),
        source,
    };
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        bytes += entry.and_then(|entry| entry.metadata()).map_err(failed)?.blocks() * 512;
    }
    Ok(bytes)
}

/// Listens for how long steps take, and shows how the build goes on.
struct Steps {
    boot_seconds: f64,
    rows: Vec<StepRow>,
    label: String,
    progress: BuildProgress,
}

impl Steps {
    fn new() -> Self {
        Self {
            boot_seconds: 0.0,
            rows: Vec::new(),
            label: String::new(),
            progress: BuildProgress::new(),
        }
    }
}

impl Observer for Steps {
    fn event(&mut self, event: BuildEvent<'_>) {
        match event {
            BuildEvent::Booted { took } => self.boot_seconds = seconds(took),
            BuildEvent::StepStarted { label, .. } => label.clone_into(&mut self.label),
            BuildEvent::StepDone { took, .. } => self.rows.push(StepRow {
                label: std::mem::take(&mut self.label),
                seconds: seconds(took),
            }),
            _ => {}
        }
        self.progress.event(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_floor_is_forked_below_itself() {
        assert_eq!(asked(512, &[1024, 2048]), [256, 1024, 2048]);
        assert_eq!(asked(2048, &[4096, 1024]), [1024, 4096]);
    }

    #[test]
    fn a_directory_takes_what_its_files_do_and_holes_take_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let sparse = std::fs::File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 20).unwrap();
        assert_eq!(allocated(directory.path()).unwrap(), 0);
        std::fs::write(directory.path().join("full"), [1; 8192]).unwrap();
        assert_eq!(allocated(directory.path()).unwrap(), 8192);
    }
}
