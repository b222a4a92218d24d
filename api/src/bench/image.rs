//! What is forked: an image of the user's, or a small one of our own, and the checkpoint of it that fits.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use spore_builder::{BuildError, Cancel, Host, HostMemory, Limits, Manifest, Options, Variant};
use spore_snapshot::CheckpointId;
use spore_snapshot::store::Checkpoint;
use spore_vmm::guest::Guest;

use super::BenchError;
use super::worker::{self, Holding};
use crate::ui::BuildProgress;

/// Our own image: base busybox and the program that guests work with.
pub const OWN: &str = "spore-bench";
/// Its base.
const BASE: &str = "busybox";
/// Memory of its build VM in MiB: it copies one file.
const BUILDER_MB: u32 = 256;
/// Memory of forks, unless something else is asked for, in MiB.
const FLOOR_MB: u32 = 1024;

/// Which image, at which size.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Name or id; ours, which is built if it is not there, if absent.
    pub image: Option<&'a str>,
    /// Memory at rest in MiB; absent: what the image has.
    pub memory_mb: Option<u32>,
    /// vCPUs.
    pub cpus: u8,
}

/// What is forked.
#[derive(Clone, Debug)]
pub struct Target {
    /// What the image is called.
    pub image: String,
    /// The checkpoint.
    pub checkpoint: CheckpointId,
    /// Its memory, in MiB.
    pub memory_mb: u32,
    /// Whether the program that guests work with is in it.
    pub has_worker: bool,
}

impl Target {
    /// Finds the image, building ours if need be, and its checkpoint, making one if there is none that fits.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn find(host: &Host, wanted: Wanted<'_>) -> Result<Self, BenchError> {
        spore_vmm::kvm::open().map_err(BuildError::from)?;
        let own = wanted.image.is_none();
        let image = match wanted.image {
            Some(name) => host.store().find_record(name)?,
            None => {
                let manifest = manifest(wanted.memory_mb.unwrap_or(FLOOR_MB))?;
                spore_builder::build(host, &manifest, &Options::offline(), &mut BuildProgress::new())?
                    .image
                    .record
            }
        };
        let floors = image.checkpoints.iter().map(|known| known.floor_mb);
        let memory_mb = match (wanted.memory_mb, own) {
            (Some(memory_mb), _) => memory_mb,
            (None, true) => FLOOR_MB,
            (None, false) => floors.min().unwrap_or(FLOOR_MB),
        };
        let variant = Variant {
            floor_mb: memory_mb,
            vcpus: wanted.cpus,
        };
        let checkpoint = spore_builder::build::variant(
            host,
            &image,
            variant,
            &Cancel::default(),
            &mut BuildProgress::new(),
        )?;
        Ok(Self {
            image: wanted.image.unwrap_or(OWN).to_owned(),
            checkpoint,
            memory_mb,
            has_worker: own,
        })
    }

    /// The checkpoint, checked.
    ///
    /// # Errors
    /// [`BenchError::Store`].
    pub fn open(&self, host: &Host) -> Result<Checkpoint, BenchError> {
        Ok(host.store().open_checkpoint(&self.checkpoint)?)
    }

    /// A guest that has touched so many MiB, and what holds them in it.
    ///
    /// # Errors
    /// [`BenchError`].
    pub fn touched(
        &self,
        host: &Host,
        checkpoint: &Checkpoint,
        megabytes: u32,
    ) -> Result<(Guest, Option<Holding>), BenchError> {
        let mut guest = Guest::fork(host.store(), checkpoint)?;
        if !self.has_worker {
            worker::install(&mut guest)?;
        }
        let holding = match megabytes {
            0 => None,
            megabytes => Some(worker::touch(&mut guest, megabytes)?),
        };
        Ok((guest, holding))
    }
}

fn manifest(floor_mb: u32) -> Result<Manifest, BenchError> {
    let worker = json!({
        "path": worker::PATH,
        "content": BASE64_STANDARD.encode(worker::PROGRAM),
        "mode": "0755",
    });
    let manifest = json!({
        "base": BASE,
        "name": OWN,
        "builderMemoryMB": BUILDER_MB,
        "runtimeMemoryMB": floor_mb,
        "steps": [{"type": "add_file", "args": worker}],
    });
    let limits = Limits {
        host_memory: HostMemory::read().map_err(BuildError::from)?,
    };
    Ok(Manifest::parse(manifest.to_string().as_bytes(), &limits).map_err(BuildError::from)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_image_is_one_whatever_its_size_and_a_size_that_cannot_be_is_refused() {
        let (small, large) = (manifest(256).unwrap(), manifest(1024).unwrap());
        assert_eq!(small.content_hash().to_string(), large.content_hash().to_string());
        let error = manifest(1).unwrap_err().to_string();
        assert!(error.contains("runtimeMemoryMB"), "{error}");
    }
}
