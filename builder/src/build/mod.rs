//! The two-phase build: steps in a big VM, then a cold boot of the disks at the floor.
//!
//! `steps` runs the first phase, `finalize` the second; this file decides which of them is
//! needed, and makes equal builds run once: each holds a lock named by what it builds, and who
//! waited for it finds the result in the store.

mod cache;
mod choose;
mod finalize;
mod steps;

use std::collections::BTreeMap;
use std::fs::File;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock};
use spore_snapshot::checkpoint::CheckpointKind;
use spore_snapshot::store::{Image, ImageCheckpoint, ImageRecord, Keep};
use spore_snapshot::{CheckpointId, Digest, ImageId, ImageName};

pub use self::choose::{checkpoint_for, choose, missing};
use self::finalize::Finalize;
use self::steps::Phase;
use crate::base::Base;
use crate::cancel::Cancel;
use crate::error::BuildError;
use crate::hash::cache_key;
use crate::host::Host;
use crate::manifest::Manifest;
use crate::memory::MiB;
use crate::observe::{BuildEvent, Observer, Silent};
use crate::options::Options;
use crate::plan::Plan;

/// Hexadecimal digits of the cache key that make an image's id.
const ID_DIGITS: usize = 32;

/// What makes one checkpoint of an image another than its siblings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// Memory at rest, in MiB.
    pub floor_mb: u32,
    /// vCPUs, 1 to 16.
    pub vcpus: u8,
}

/// What a build came to.
#[derive(Clone, Debug)]
pub struct Built {
    /// The image.
    pub image: Image,
    /// The checkpoint at the floor that was asked for.
    pub checkpoint: CheckpointId,
    /// How long the build phase took; absent when its disks were there already.
    pub build: Option<Duration>,
    /// How long the finalize phase took; absent when the checkpoint was there already.
    pub finalize: Option<Duration>,
    /// Size of the checkpoint's memory file, in bytes.
    pub memory_bytes: u64,
}

/// Builds an image, or finds it built.
///
/// # Errors
/// [`BuildError`]. Whatever it is, no VM, process, file or lock of this build is left, and the same
/// build can be tried again.
pub fn build(
    host: &Host,
    manifest: &Manifest,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Built, BuildError> {
    let base = host.bases().get(manifest.base())?;
    let plan = Plan::new(manifest, &base)?;
    spore_vmm::kvm::open()?;
    let kernel = host.kernel_digest()?;
    // What is refused up to here has not touched the store.
    let phase = Phase {
        host,
        manifest,
        plan: &plan,
        options,
    };
    let result = build_or_find(&phase, &base, kernel, observer);
    if result.is_err() {
        collect(host);
    }
    result
}

/// Removes the layers that a failed build left without an image. Busy means that another build is
/// under way; whoever collects next removes them then.
fn collect(host: &Host) {
    if let Err(error) = host.store().gc(&Keep::default()) {
        tracing::info!(%error, "nothing was collected after a failed build");
    }
}

fn build_or_find(
    phase: &Phase<'_>,
    base: &Base,
    kernel: Digest,
    observer: &mut dyn Observer,
) -> Result<Built, BuildError> {
    let Phase {
        host,
        manifest,
        options,
        ..
    } = *phase;
    let base_digest = host.store().import_raw(base.rootfs())?;
    let disk = phase.plan.disk;
    let key = cache_key(&manifest.content_hash(), &cache::from_store(base_digest, disk));
    let id: ImageId = key.to_string()[..ID_DIGITS]
        .parse()
        .map_err(BuildError::internal)?;
    let name = match manifest.name() {
        Some(name) => Some(name.as_str().parse::<ImageName>().map_err(BuildError::internal)?),
        None => None,
    };
    let _only_one = BuildLock::take(host, &id, observer)?;
    // Until the image names them, nothing else keeps the new layers from being collected.
    let _hold = host.store().hold()?;

    let earlier = host
        .store()
        .list_images()?
        .into_iter()
        .find(|image| image.record.id == id && usable(host, image))
        .filter(|_| !options.no_cache);
    let (layers, built) = match earlier {
        Some(image) => {
            observer.event(BuildEvent::DisksCached);
            (image.record.disk_layers, None)
        }
        None => {
            let started = Instant::now();
            let layers = phase.run(base_digest, observer)?;
            let took = started.elapsed();
            observer.event(BuildEvent::Sealed { took });
            let record = ImageRecord {
                id: id.clone(),
                content_hash: manifest.content_hash().to_string(),
                base_digest,
                disk_layers: layers.clone(),
                checkpoints: Vec::new(),
                created_unix_seconds: now(),
                size_bytes: layer_bytes(host, &layers)?,
                builder_memory_mb: manifest.builder_memory().get(),
                disk_mb: disk.map(MiB::get),
                annotations: BTreeMap::new(),
            };
            (layers, Some((record, took)))
        }
    };
    let variant = Variant {
        floor_mb: manifest.runtime_memory().get(),
        vcpus: 1,
    };
    let known = match options.no_cache {
        true => None,
        false => find(host, &id, variant, &kernel)?,
    };
    let (checkpoint, finalize) = match known {
        Some(checkpoint) => (checkpoint, None),
        None => {
            let started = Instant::now();
            let content = manifest.content_hash();
            let phase = Finalize {
                host,
                kernel,
                kind: CheckpointKind::Image,
                annotations: finalize::of_content(&content),
                disk,
                cancel: &options.cancel,
            };
            let checkpoint = phase.run(&layers, variant, observer)?;
            (checkpoint, Some(started.elapsed()))
        }
    };
    let build = match built {
        Some((mut record, took)) => {
            record.checkpoints.push(entry(variant, kernel, checkpoint));
            host.store().put_image(&record, name.as_ref())?;
            Some(took)
        }
        None => {
            let record = host.store().update_image(&id, |record| {
                put(record, entry(variant, kernel, checkpoint));
            })?;
            if name.is_some() {
                host.store().put_image(&record, name.as_ref())?;
            }
            None
        }
    };
    let image = host.store().find_image(id.as_str())?;
    let memory_bytes = host.store().manifest(&checkpoint)?.memory.data_bytes;
    Ok(Built {
        image,
        checkpoint,
        build,
        finalize,
        memory_bytes,
    })
}

/// Whether an image's disks are there: one that lost a layer is built again.
fn usable(host: &Host, image: &Image) -> bool {
    let lost = |digest: &&Digest| host.store().layer(digest).is_err();
    let lost = image.record.disk_layers.iter().find(lost);
    if let Some(layer) = lost {
        tracing::warn!(image = %image.record.id, %layer, "a layer is lost or damaged; building again");
    }
    lost.is_none()
}

/// The checkpoint of an image with these properties, made now if there is none.
///
/// # Errors
/// As [`build`].
pub fn variant(
    host: &Host,
    image: &ImageRecord,
    variant: Variant,
    cancel: &Cancel,
    observer: &mut dyn Observer,
) -> Result<CheckpointId, BuildError> {
    let id = &image.id;
    let kernel = host.kernel_digest()?;
    let _only_one = BuildLock::take(host, id, observer)?;
    if let Some(checkpoint) = find(host, id, variant, &kernel)? {
        return Ok(checkpoint);
    }
    // It may have waited long.
    cancel.check().map_err(|_| BuildError::Cancelled)?;
    let _hold = host.store().hold()?;
    let content = image.content_hash.parse().map_err(BuildError::internal)?;
    let phase = Finalize {
        host,
        kernel,
        kind: CheckpointKind::Image,
        annotations: finalize::of_content(&content),
        disk: image.disk_mb.map(MiB::new),
        cancel,
    };
    let checkpoint = phase.run(&image.disk_layers, variant, observer)?;
    host.store().update_image(id, |record| {
        put(record, entry(variant, kernel, checkpoint));
    })?;
    Ok(checkpoint)
}

/// Cold-boots disks that are no image's, a sandbox's, and checkpoints that: phase two alone. The caller holds the
/// store, since nothing names the layers yet.
///
/// # Errors
/// As [`build`].
pub fn finalize_disks(
    host: &Host,
    layers: &[Digest],
    variant: Variant,
    annotations: BTreeMap<String, String>,
    cancel: &Cancel,
) -> Result<CheckpointId, BuildError> {
    let phase = Finalize {
        host,
        kernel: host.kernel_digest()?,
        kind: CheckpointKind::Sandbox,
        annotations,
        disk: None,
        cancel,
    };
    phase.run(layers, variant, &mut Silent)
}

/// Puts a checkpoint into an image's record, in place of one of the same properties: that was lost.
fn put(record: &mut ImageRecord, new: ImageCheckpoint) {
    let same = |known: &ImageCheckpoint| {
        known.floor_mb == new.floor_mb && known.vcpus == new.vcpus && known.kernel == new.kernel
    };
    record.checkpoints.retain(|known| !same(known));
    record.checkpoints.push(new);
}

fn entry(variant: Variant, kernel: Digest, id: CheckpointId) -> ImageCheckpoint {
    ImageCheckpoint {
        floor_mb: variant.floor_mb,
        vcpus: variant.vcpus.into(),
        kernel,
        id,
    }
}

fn find(
    host: &Host,
    id: &ImageId,
    variant: Variant,
    kernel: &Digest,
) -> Result<Option<CheckpointId>, BuildError> {
    let images = host.store().list_images()?;
    let Some(image) = images.into_iter().find(|image| image.record.id == *id) else {
        return Ok(None);
    };
    let fits = |known: &&ImageCheckpoint| {
        known.floor_mb == variant.floor_mb
            && known.vcpus == u32::from(variant.vcpus)
            && known.kernel == *kernel
    };
    // One that is lost or damaged is made again.
    let opens = |known: &&ImageCheckpoint| match host.store().open_checkpoint(&known.id) {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(checkpoint = %known.id, %error, "finalizing again");
            false
        }
    };
    let known = image.record.checkpoints.iter().filter(fits).find(opens);
    Ok(known.map(|known| known.id))
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn layer_bytes(host: &Host, layers: &[Digest]) -> Result<u64, BuildError> {
    let mut bytes = 0;
    for layer in layers {
        bytes += host
            .store()
            .layer(layer)?
            .allocated_bytes()
            .map_err(BuildError::internal)?;
    }
    Ok(bytes)
}

/// Held by the one process that builds an image; the kernel lets go of it when that process ends.
struct BuildLock {
    _file: File,
}

impl BuildLock {
    fn take(host: &Host, id: &ImageId, observer: &mut dyn Observer) -> Result<Self, BuildError> {
        let directory = host.store().root().join("builds");
        std::fs::create_dir_all(&directory).map_err(BuildError::internal)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(directory.join(id.as_str()))
            .map_err(BuildError::internal)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            observer.event(BuildEvent::Waiting);
            flock(&file, FlockOperation::LockExclusive).map_err(BuildError::internal)?;
        }
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Limits;
    use crate::memory::HostMemory;

    fn checkpoint(floor_mb: u32, digit: char) -> ImageCheckpoint {
        ImageCheckpoint {
            floor_mb,
            vcpus: 1,
            kernel: Digest::of(b"kernel"),
            id: digit.to_string().repeat(32).parse().unwrap(),
        }
    }

    #[test]
    fn a_checkpoint_made_again_takes_the_place_of_the_one_that_was_lost() {
        let mut record = ImageRecord {
            id: "01234567".parse().unwrap(),
            content_hash: String::new(),
            base_digest: Digest::of(b"base"),
            disk_layers: Vec::new(),
            checkpoints: vec![checkpoint(256, 'a'), checkpoint(512, 'b')],
            created_unix_seconds: 0,
            size_bytes: 0,
            builder_memory_mb: 512,
            disk_mb: None,
            annotations: BTreeMap::new(),
        };
        put(&mut record, checkpoint(256, 'c'));
        let ids: Vec<_> = record
            .checkpoints
            .iter()
            .map(|known| known.id.to_string())
            .collect();
        assert_eq!(ids, ["b".repeat(32), "c".repeat(32)]);
    }

    #[test]
    fn a_build_that_is_refused_leaves_no_file() {
        let data = tempfile::tempdir().unwrap();
        let host = Host::open(data.path(), &data.path().join("cache"), None).unwrap();
        let limits = Limits {
            host_memory: HostMemory::new(MiB::new(4096)),
        };
        let manifest = Manifest::parse(br#"{"base": "nope", "steps": []}"#, &limits).unwrap();
        assert!(build(&host, &manifest, &Options::default(), &mut Silent).is_err());
        let mut files = Vec::new();
        let mut directories = vec![data.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).unwrap().flatten() {
                match entry.file_type().unwrap().is_dir() {
                    true => directories.push(entry.path()),
                    false => files.push(entry.path()),
                }
            }
        }
        assert_eq!(
            files,
            [data.path().join("version")],
            "which says of which form it is"
        );
    }
}
