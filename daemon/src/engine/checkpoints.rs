//! Checkpoints of sandboxes.

use std::collections::BTreeMap;
use std::time::Duration;

use spore_snapshot::CheckpointId;
use spore_snapshot::checkpoint::{CheckpointKind, KernelRecord, Manifest};
use spore_snapshot::store::Keep;
use spore_types::{Checkpoint, CheckpointRequest, ErrorCode, EventKind};
use spore_vmm::cancel::Cancel;
use spore_vmm::guest::CheckpointPlan;

use super::Engine;
use super::create::AGENT;
use crate::error::{Error, Result};
use crate::time::micros;

/// The annotation that holds a checkpoint's name.
const NAME: &str = "name";
/// What a finalized sandbox may be booted with, in MiB.
const FINALIZE_MB: std::ops::RangeInclusive<u32> = 256..=16_384;

/// # Errors
/// `invalid_request`.
fn check_name(name: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && name.len() <= 64 && name.bytes().all(fits) {
        return Ok(());
    }
    Err(Error::invalid(
        "name: 1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit",
    ))
}

fn show(id: &CheckpointId, manifest: &Manifest) -> Checkpoint {
    Checkpoint {
        id: id.to_string(),
        name: manifest.annotations.get(NAME).cloned(),
        kind: match manifest.kind {
            CheckpointKind::Image => spore_types::CheckpointKind::Image,
            CheckpointKind::Sandbox => spore_types::CheckpointKind::Sandbox,
        },
        floor_mb: manifest.floor_mb,
        max_memory_mb: manifest.max_mb(),
        cpus: manifest.vcpus,
        memory_bytes: manifest.memory.data_bytes,
        disk_mb: manifest.disk_mb(),
        created_at: manifest.created_unix_seconds,
        paused_us: None,
    }
}

impl Engine {
    /// All checkpoints that can be read, the newest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<Checkpoint>> {
        let all = self.host.store().list_checkpoints()?;
        let mut shown: Vec<_> = all
            .iter()
            .filter_map(|(id, manifest)| Some(show(id, manifest.as_ref().ok()?)))
            .collect();
        shown.sort_by_key(|checkpoint| std::cmp::Reverse(checkpoint.created_at));
        Ok(shown)
    }

    /// The id of a checkpoint that is given by name or id.
    ///
    /// # Errors
    /// `not_found`.
    pub fn checkpoint_id(&self, text: &str) -> Result<CheckpointId> {
        if let Ok(id) = text.parse::<CheckpointId>() {
            self.facts.of(self.host.store(), &id)?;
            return Ok(id);
        }
        let named = |checkpoint: &Checkpoint| checkpoint.name.as_deref() == Some(text);
        match self.checkpoints()?.into_iter().find(named) {
            Some(checkpoint) => checkpoint.id.parse().map_err(Error::internal),
            None => Err(Error::not_found("checkpoint", text)),
        }
    }

    /// One checkpoint.
    ///
    /// # Errors
    /// `not_found`, `damaged`.
    pub fn checkpoint(&self, text: &str) -> Result<Checkpoint> {
        let id = self.checkpoint_id(text)?;
        Ok(show(&id, &self.host.store().manifest(&id)?))
    }

    /// Checkpoints a sandbox, as it runs or by a boot of its disks. Cancelled, there is none.
    ///
    /// # Errors
    /// Whatever it is, nothing is left and the sandbox runs on if it can.
    pub fn make_checkpoint(
        &self,
        id: &str,
        request: &CheckpointRequest,
        cancel: &Cancel,
    ) -> Result<Checkpoint> {
        let sandbox = self.sandbox(id)?;
        let mut annotations = BTreeMap::from([("sandbox".to_owned(), id.to_owned())]);
        let name = request.name.as_deref();
        name.map_or(Ok(()), check_name)?;
        let _naming = name.map(|name| self.naming.begin(name)).transpose()?;
        if let Some(name) = name {
            if self.checkpoint_id(name).is_ok() {
                let message = format!("there is a checkpoint {name:?} already");
                return Err(Error::new(ErrorCode::Conflict, message));
            }
            annotations.insert(NAME.to_owned(), name.to_owned());
        }
        let finalize = request.finalize_memory_mb;
        if let Some(mb) = finalize.filter(|mb| !FINALIZE_MB.contains(mb)) {
            return Err(Error::invalid(format!(
                "finalizeMemoryMB {mb}: it must be {} to {}",
                FINALIZE_MB.start(),
                FINALIZE_MB.end()
            )));
        }
        let (id, paused) = match finalize {
            Some(floor_mb) => (self.finalize(&sandbox, floor_mb, annotations, cancel)?, None),
            None => {
                let (id, paused) = self.checkpoint_live(&sandbox, annotations, cancel)?;
                (id, Some(paused))
            }
        };
        // Nobody knows of it, and nobody asked for it any more.
        if let Err(cancelled) = cancel.check() {
            self.host.store().delete_checkpoint(&id)?;
            self.collect();
            return Err(cancelled.into());
        }
        self.events.tell(EventKind::CheckpointCreated {
            checkpoint: id.to_string(),
        });
        let mut shown = show(&id, &self.host.store().manifest(&id)?);
        shown.paused_us = paused.map(micros);
        Ok(shown)
    }

    fn checkpoint_live(
        &self,
        sandbox: &super::sandbox::Sandbox,
        annotations: BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<(CheckpointId, Duration)> {
        let mut work = sandbox.work();
        sandbox.must_run()?;
        let held = work.held()?;
        let status = held.guest.wait_agent(AGENT)?.1;
        let plan = CheckpointPlan {
            kind: CheckpointKind::Sandbox,
            kernel: KernelRecord {
                release: status.kernel_release,
                blake3: self.kernel_of(sandbox)?,
                cmdline: spore_vmm::guest::cmdline(),
            },
            annotations,
        };
        let taken = held.guest.checkpoint_timed(self.host.store(), plan, cancel);
        held.awaited = false;
        let (id, times) = taken?;
        Ok((id, times.paused))
    }

    /// The disks as of now, synced, are booted with so much memory by a fresh VM, which is checkpointed.
    fn finalize(
        &self,
        sandbox: &super::sandbox::Sandbox,
        floor_mb: u32,
        annotations: BTreeMap<String, String>,
        cancel: &Cancel,
    ) -> Result<CheckpointId> {
        self.must_have_memory()?;
        let _promise = self.ledger.promise_build(floor_mb)?;
        let store = self.host.store();
        let (layers, _hold) = {
            let mut work = sandbox.work();
            sandbox.must_run()?;
            let held = work.held()?;
            let mut agent = held.guest.agent(AGENT)?;
            agent
                .sync()
                .map_err(|error| super::agent::explain(sandbox, error))?;
            // Nothing names the frozen layers until the checkpoint does, once the sandbox is gone. Not before: while it
            // is held no garbage is collected, and how long a guest takes to sync is up to the guest.
            let hold = store.hold()?;
            let frozen = held.guest.freeze_disk(store);
            held.awaited = false;
            (frozen?, hold)
        };
        let vcpus = u8::try_from(sandbox.fixed.cpus).unwrap_or(1);
        let variant = spore_builder::Variant { floor_mb, vcpus };
        Ok(spore_builder::build::finalize_disks(
            &self.host,
            &layers,
            variant,
            annotations,
            cancel,
        )?)
    }

    /// The kernel a sandbox runs: that of the checkpoint it was made of.
    fn kernel_of(&self, sandbox: &super::sandbox::Sandbox) -> Result<spore_snapshot::Digest> {
        let checkpoint = sandbox.fixed.checkpoint.as_deref().unwrap_or_default();
        match checkpoint.parse::<CheckpointId>() {
            // It may have been deleted meanwhile.
            Ok(id) => match self.host.store().manifest(&id) {
                Ok(manifest) => Ok(manifest.kernel.blake3),
                Err(_) => Ok(self.host.kernel_digest()?),
            },
            Err(_) => Ok(self.host.kernel_digest()?),
        }
    }

    /// Deletes a checkpoint of a sandbox; those of images go with their images. Forks that run go on.
    ///
    /// # Errors
    /// `not_found`; `conflict` for an image's.
    pub fn delete_checkpoint(&self, text: &str) -> Result<()> {
        let id = self.checkpoint_id(text)?;
        let store = self.host.store();
        if let Ok(manifest) = store.manifest(&id)
            && manifest.kind == CheckpointKind::Image
        {
            let message = "this checkpoint is an image's; delete the image";
            return Err(Error::new(ErrorCode::Conflict, message));
        }
        store.delete_checkpoint(&id)?;
        self.pool.forget(&id);
        self.events.tell(EventKind::CheckpointDeleted {
            checkpoint: id.to_string(),
        });
        self.collect();
        Ok(())
    }

    /// Removes what nothing refers to any more, if nothing is being written now; else that goes the next time.
    pub fn collect(&self) {
        if let Err(error) = self.host.store().gc(&Keep::default()) {
            tracing::info!(%error, "nothing was collected");
        }
    }
}
