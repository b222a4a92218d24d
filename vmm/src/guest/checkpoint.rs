//! A guest into the store.

use std::collections::BTreeMap;
use std::time::Duration;

use spore_protocol::ClientError;
use spore_snapshot::CheckpointId;
use spore_snapshot::checkpoint::{CheckpointKind, DiskRecord, KernelRecord};
use spore_snapshot::store::{CheckpointMeta, Store};

use super::{Guest, GuestError};
use crate::layout::MIB;
use crate::machine::Identity;

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

/// How long the agent may take to its fork port.
const SLEEP_LIMIT: Duration = Duration::from_secs(60);

impl Guest {
    /// Stops the guest at its fork port, so that copies of it wake there, or where it is if its
    /// agent knows no fork port.
    fn stop(&mut self) -> Result<(), GuestError> {
        self.vm.arm_fork_port()?;
        match self.agent(SLEEP_LIMIT)?.sleep() {
            Ok(()) => Ok(self.vm.pause_at_fork_port(SLEEP_LIMIT)?),
            Err(ClientError::Refused(why)) => {
                tracing::info!(%why, "checkpoint without the fork port");
                Ok(self.vm.pause()?)
            }
            Err(error) => Err(self.explain(error)),
        }
    }

    /// Pauses the guest, writes its memory, state and disk into the store as of that instant, and
    /// lets it run on.
    ///
    /// # Errors
    /// [`GuestError`]; nothing is left in the store then, and the guest runs on if it can.
    pub fn checkpoint(&mut self, store: &Store, plan: CheckpointPlan) -> Result<CheckpointId, GuestError> {
        let writer = store.begin_checkpoint()?;
        self.stop()?;
        // A new name each time: a save that fails may have used it.
        self.overlays += 1;
        let next = self.overlay(self.overlays);
        let saved = self.vm.save(&writer.directory(), &next);
        // The guest goes on whatever came of it.
        let resumed = self.vm.resume(&Identity::default());
        let saved = saved?;
        resumed?;
        self.adopt(store, saved.layers)?;
        self.run.pin(&self.disk_layers)?;
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
        Ok(writer.publish_records(meta, saved.state, saved.memory)?)
    }
}
