//! `spore bench checkpoint`: how long a guest stands still for a checkpoint of it, and how long that takes in all.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;
use spore_builder::Host;
use spore_snapshot::checkpoint::CheckpointKind;
use spore_snapshot::store::Keep;
use spore_vmm::cancel::Cancel;
use spore_vmm::guest::{CheckpointPlan, Guest};

use super::BenchError;
use super::host::HostReport;
use super::image::Target;
use super::source::nanos;
use super::stats::{Percentiles, median};

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct SavePlan {
    /// Checkpoints at each size.
    pub count: usize,
    /// How much of the guest's memory a process in it has touched, in MiB.
    pub touched_mb: Vec<u32>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SaveReport {
    /// Of which image.
    pub image: String,
    /// Memory of the guest.
    #[serde(rename = "memoryMB")]
    pub memory_mb: u32,
    /// Checkpoints at each size.
    pub count: usize,
    /// Size by size.
    pub sizes: Vec<Saved>,
    /// The machine.
    pub host: HostReport,
}

/// Checkpoints of one guest.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Saved {
    /// Memory a process in it had touched.
    #[serde(rename = "touchedMB")]
    pub touched_mb: u32,
    /// From the guest's last act to when its vCPUs were let go on.
    pub pause_us: Option<Percentiles>,
    /// From when it was asked for until the checkpoint is published and would outlive the host's crash.
    pub total_us: Option<Percentiles>,
    /// What is not zero of the guest's memory, in the middle checkpoint's file.
    pub memory_file_bytes: u64,
}

/// Runs the benchmark; `say` is told what goes on.
///
/// # Errors
/// [`BenchError`]. Neither guests nor checkpoints are left.
pub fn run(
    host: &Host,
    target: &Target,
    plan: &SavePlan,
    say: &mut dyn FnMut(&str),
) -> Result<SaveReport, BenchError> {
    let mut report = SaveReport {
        image: target.image.clone(),
        memory_mb: target.memory_mb,
        count: plan.count,
        sizes: Vec::new(),
        host: HostReport::look(),
    };
    let checkpoint = target.open(host)?;
    let save = CheckpointPlan {
        kind: CheckpointKind::Sandbox,
        kernel: checkpoint.manifest.kernel.clone(),
        annotations: BTreeMap::new(),
    };
    for &touched_mb in &plan.touched_mb {
        say(&format!(
            "{} checkpoints of a guest of {} MiB that has touched {touched_mb}",
            plan.count, target.memory_mb
        ));
        let (mut guest, _holding) = target.touched(host, &checkpoint, touched_mb)?;
        report
            .sizes
            .push(size(host, &mut guest, touched_mb, plan.count, &save)?);
    }
    // The layers that the guests' disks became.
    host.store().gc(&Keep {
        drop_bases: false,
        ..Keep::default()
    })?;
    report.host = report.host.after();
    Ok(report)
}

fn size(
    host: &Host,
    guest: &mut Guest,
    touched_mb: u32,
    count: usize,
    save: &CheckpointPlan,
) -> Result<Saved, BenchError> {
    let store = host.store();
    let (mut pauses, mut totals, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        let started = Instant::now();
        let (id, times) = guest.checkpoint_timed(store, save.clone(), &Cancel::default())?;
        totals.push(nanos(started.elapsed()));
        pauses.push(nanos(times.paused));
        let written = store.manifest(&id);
        store.delete_checkpoint(&id)?;
        bytes.push(written?.memory.data_bytes);
    }
    Ok(Saved {
        touched_mb,
        pause_us: Percentiles::of(&pauses),
        total_us: Percentiles::of(&totals),
        memory_file_bytes: median(&bytes).unwrap_or_default(),
    })
}
