//! Collecting garbage: what nothing refers to goes.
//!
//! | | stays while |
//! |---|---|
//! | checkpoint of an image | an image names it |
//! | checkpoint of a sandbox | always; it is deleted by hand |
//! | layer | an image, a checkpoint that stays or a cached step names it, or a running VM pins it |
//! | base | the same; and otherwise too, unless the caller wants it gone |
//!
//! And whatever the caller keeps, for records of its own. Nothing is collected while anyone [holds](Store::hold)
//! the store, and nothing when a record can't be read: who knows what it names.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::{Store, StoreError, run_dir};
use crate::checkpoint::CheckpointKind;
use crate::{CheckpointId, Digest};

/// What is not garbage although nothing in the store says so.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Layers and bases, for example of the builder's cache.
    pub layers: BTreeSet<Digest>,
    /// Checkpoints, with all they refer to.
    pub checkpoints: BTreeSet<CheckpointId>,
    /// Whether bases go too when nothing refers to them.
    pub drop_bases: bool,
}

/// What was collected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GcReport {
    /// Checkpoints that are gone.
    pub checkpoints: Vec<CheckpointId>,
    /// Layers and bases that are gone.
    pub layers: Vec<Digest>,
    /// The bytes of the host's disk that the layers and bases took. They are free once no VM has them open.
    pub layer_bytes: u64,
}

impl Store {
    /// Removes checkpoints and layers that nothing refers to.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while something is being published; or when a record can't be read, and then
    /// nothing was removed; or when something can't be removed.
    pub fn gc(&self, keep: &Keep) -> Result<GcReport, StoreError> {
        let _alone = self.exclude_holders()?;
        // What VMs that are gone have pinned doesn't count.
        self.sweep()?;
        let (garbage, mut layers) = self.references(keep)?;
        layers.extend(self.list_steps()?.into_iter().flat_map(|step| step.entry.layers));
        let mut report = GcReport::default();
        for id in garbage {
            self.delete_checkpoint(&id)?;
            report.checkpoints.push(id);
        }
        self.drop_files(&self.layers_dir(), self.list_layers()?, &layers, &mut report)?;
        if keep.drop_bases {
            self.drop_files(&self.bases_dir(), self.list_bases()?, &layers, &mut report)?;
        }
        Ok(report)
    }

    /// The checkpoints that nothing needs, and the layers that something does: an image, a checkpoint that stays, a
    /// running VM.
    pub(super) fn references(
        &self,
        keep: &Keep,
    ) -> Result<(Vec<CheckpointId>, BTreeSet<Digest>), StoreError> {
        let mut layers = keep.layers.clone();
        layers.extend(run_dir::pinned(self)?);
        let mut checkpoints = keep.checkpoints.clone();
        for image in self.list_images()? {
            layers.insert(image.record.base_digest);
            layers.extend(image.record.disk_layers);
            checkpoints.extend(
                image
                    .record
                    .checkpoints
                    .into_iter()
                    .map(|checkpoint| checkpoint.id),
            );
        }
        let mut garbage = Vec::new();
        for (id, manifest) in self.list_checkpoints()? {
            let named = checkpoints.contains(&id);
            match manifest {
                // It can't be opened, so it needs no layers; but whoever names it will want to hear of it.
                Err(StoreError::Checkpoint(_)) if named => {}
                Err(StoreError::NotFound { .. }) => {}
                Err(error) => return Err(error),
                Ok(manifest) if named || manifest.kind == CheckpointKind::Sandbox => {
                    layers.extend(manifest.disks.into_iter().flat_map(|disk| disk.layers));
                }
                Ok(_) => garbage.push(id),
            }
        }
        Ok((garbage, layers))
    }

    fn drop_files(
        &self,
        dir: &Path,
        found: Vec<Digest>,
        keep: &BTreeSet<Digest>,
        report: &mut GcReport,
    ) -> Result<(), StoreError> {
        for digest in found.into_iter().filter(|digest| !keep.contains(digest)) {
            let path = dir.join(digest.to_string());
            let bytes = path
                .symlink_metadata()
                .map_or(0, |metadata| metadata.blocks() * 512);
            if self.take_away(&path)? {
                self.forget(&digest.to_string());
                report.layers.push(digest);
                report.layer_bytes += bytes;
            }
        }
        Ok(())
    }
}
