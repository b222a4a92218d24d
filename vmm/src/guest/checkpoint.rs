//! A guest into the store.

use std::collections::BTreeMap;

use spore_snapshot::CheckpointId;
use spore_snapshot::checkpoint::{CheckpointKind, DiskRecord, KernelRecord};
use spore_snapshot::store::{CheckpointMeta, Store};

use super::{Guest, GuestError, SplitTimes};
use crate::cancel::Cancel;
use crate::layout::MIB;

/// What is said of a checkpoint beside what the machine knows.
#[derive(Clone, Debug)]
pub struct CheckpointPlan {
    /// What it is of.
    pub kind: CheckpointKind,
    /// The kernel in it.
    pub kernel: KernelRecord,
    /// Whatever else should be found again.
    pub annotations: BTreeMap<String, String>,
}

impl Guest {
    /// Writes the guest's memory, state and disk into the store, all as of one instant.
    ///
    /// The guest stands still for a moment at its fork port, so that copies wake there, and its process forks. The
    /// guest runs on while the fork writes.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left in the store then, and the guest runs on if it can.
    pub fn checkpoint(&mut self, store: &Store, plan: CheckpointPlan) -> Result<CheckpointId, GuestError> {
        Ok(self.checkpoint_timed(store, plan, &Cancel::default())?.0)
    }

    /// As [`Guest::checkpoint`], and says how long the guest stood still. Cancelled, what writes is ended; the guest runs
    /// on.
    ///
    /// # Errors
    /// As there, and [`GuestError::Cancelled`].
    pub fn checkpoint_timed(
        &mut self,
        store: &Store,
        plan: CheckpointPlan,
        cancel: &Cancel,
    ) -> Result<(CheckpointId, SplitTimes), GuestError> {
        let writer = store.begin_checkpoint()?;
        cancel.check()?;
        let (mut copy, times) = self.split()?;
        let saved = match cancel.watch(copy.killer()) {
            Ok(_watched) => copy.save(&writer.directory()).map_err(GuestError::of_copy),
            Err(error) => Err(error.into()),
        };
        drop(copy);
        // What was frozen becomes layers whatever came of the save: the guest's disk lies on it.
        let sealed = self.adopt_frozen(store);
        // That it was ended on purpose is the better reason.
        cancel.check()?;
        let saved = saved?;
        sealed?;
        let meta = CheckpointMeta {
            kind: plan.kind,
            kernel: plan.kernel,
            vmm_build: concat!("spore-vm ", env!("CARGO_PKG_VERSION")).to_owned(),
            cpu_features: saved.cpu_features,
            vcpus: saved.vcpus,
            floor_mb: u32::try_from(saved.memory_bytes / MIB).unwrap_or(u32::MAX),
            disks: vec![DiskRecord {
                name: "root".into(),
                virtual_size: saved.disk_bytes,
                layers: self.disk_layers.clone(),
            }],
            annotations: plan.annotations,
        };
        let id = writer.publish_records(meta, saved.state, saved.memory)?;
        Ok((id, times))
    }

    /// Puts what splits have frozen of the disk into the store.
    pub(super) fn adopt_frozen(&mut self, store: &Store) -> Result<(), GuestError> {
        let sealed = self.vm.seal_frozen()?;
        self.take_in(store, sealed)?;
        Ok(self.run.pin(&self.disk_layers)?)
    }
}
