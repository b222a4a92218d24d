//! Checkpoints in the store: written, opened, listed, deleted.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::lock::Hold;
use super::publish::publish;
use super::tmp::TmpEntry;
use super::{Store, StoreError, Trust};
use crate::CheckpointId;
use crate::checkpoint::{
    CheckpointError, CheckpointKind, DiskRecord, FORMAT_VERSION, KernelRecord, MANIFEST_FILE, MAX_MANIFEST,
    MEMORY_FILE, Manifest, MemoryRecord, MemoryWriter, STATE_FILE, StateRecord, WrittenMemory, WrittenState,
    check_length, read_state, verify_memory, write_state,
};
use crate::disk::Layer;
use crate::files::{read_small, sync_dir};

/// What the writer of a checkpoint says about it; the rest of its manifest is found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointMeta {
    /// What it is of.
    pub kind: CheckpointKind,
    /// The kernel in it.
    pub kernel: KernelRecord,
    /// The build of the VMM that writes it.
    pub vmm_build: String,
    /// What the host's CPU must have; the VMM's words.
    pub cpu_features: Vec<String>,
    /// Number of virtual CPUs.
    pub vcpus: u32,
    /// Guest memory it holds, in MiB.
    pub floor_mb: u32,
    /// The disks. Every layer must be in the store.
    pub disks: Vec<DiskRecord>,
    /// Whatever else should be found again.
    pub annotations: BTreeMap<String, String>,
}

/// A checkpoint that is being written. Dropped before it is published, it leaves nothing.
///
/// Write memory and state in any order, then publish with what these gave. In a forked child, begin after the
/// fork.
#[derive(Debug)]
pub struct CheckpointWriter {
    store: Store,
    entry: TmpEntry,
    _hold: Hold,
}

/// A checkpoint, open and intact.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its name.
    pub id: CheckpointId,
    /// What it is.
    pub manifest: Manifest,
    /// vCPU and device state, as it was given.
    pub state: Vec<u8>,
    /// The memory file, read-only; its length is the manifest's `memory.span_bytes`.
    pub memory: File,
    /// The disks, in the manifest's order.
    pub disks: Vec<CheckpointDisk>,
}

/// One disk of a checkpoint.
#[derive(Debug, Clone)]
pub struct CheckpointDisk {
    /// What the VMM calls it.
    pub name: String,
    /// Size in bytes.
    pub virtual_size: u64,
    /// Its layers, bottom first: what an [`Overlay`](crate::disk::Overlay) is created over.
    pub layers: Vec<Arc<Layer>>,
}

impl CheckpointWriter {
    fn file(&self, name: &str) -> PathBuf {
        self.entry.join("checkpoint").join(name)
    }

    /// Where the files are written, for a writer in another process: see
    /// [`CheckpointWriter::publish_records`].
    pub fn directory(&self) -> PathBuf {
        self.entry.join("checkpoint")
    }

    /// Begins the memory file, for `span_bytes` of guest memory (a multiple of 4096).
    ///
    /// # Errors
    /// When that is no span, or the file can't be made.
    pub fn memory(&self, span_bytes: u64) -> Result<MemoryWriter, StoreError> {
        Ok(MemoryWriter::create(&self.file(MEMORY_FILE), span_bytes)?)
    }

    /// Writes the state file.
    ///
    /// # Errors
    /// When the state is larger than [`MAX_STATE`](crate::checkpoint::MAX_STATE), or can't be written.
    pub fn state(&self, payload: &[u8]) -> Result<WrittenState, StoreError> {
        Ok(write_state(&self.file(STATE_FILE), payload)?)
    }

    /// Puts the checkpoint into the store, whole and durable, and says what it is called there.
    ///
    /// # Errors
    /// When a layer is not in the store, what `meta` says is impossible, or something can't be written. Nothing
    /// of the checkpoint is left then.
    pub fn publish(
        self,
        meta: CheckpointMeta,
        state: WrittenState,
        memory: WrittenMemory,
    ) -> Result<CheckpointId, StoreError> {
        self.publish_records(meta, state.record, memory.record)
    }

    /// As [`CheckpointWriter::publish`], for state and memory that another process wrote into
    /// [`CheckpointWriter::directory`].
    ///
    /// # Errors
    /// As [`CheckpointWriter::publish`].
    pub fn publish_records(
        self,
        meta: CheckpointMeta,
        state: StateRecord,
        memory: MemoryRecord,
    ) -> Result<CheckpointId, StoreError> {
        let path = self.file(MANIFEST_FILE);
        for disk in &meta.disks {
            self.store
                .open_disk(disk, |store, digest| store.open_layer(digest).map(Arc::new))?;
        }
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            kind: meta.kind,
            created_unix_seconds: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            kernel: meta.kernel,
            vmm_build: meta.vmm_build,
            cpu_features: meta.cpu_features,
            vcpus: meta.vcpus,
            floor_mb: meta.floor_mb,
            memory,
            state,
            disks: meta.disks,
            annotations: meta.annotations,
        };
        let json = manifest.to_json().map_err(|why| CheckpointError::BadManifest {
            path: path.clone(),
            why,
        })?;
        let id = CheckpointId::of_manifest(&json);
        let write = |error| CheckpointError::write(&path, 0, json.len() as u64)(error);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(&path)
            .map_err(write)?;
        file.write_all_at(&json, 0).map_err(write)?;
        file.sync_all().map_err(write)?;
        let dir = self.entry.join("checkpoint");
        sync_dir(&dir).map_err(StoreError::io("sync", &dir))?;
        let place = self.store.checkpoints_dir().join(id.to_string());
        if !publish(&dir, &place)? {
            // The very same, written by someone else. If that one is damaged, ours takes its place.
            if self.store.open_checkpoint(&id).is_err() {
                self.store.take_away(&place)?;
                publish(&dir, &place)?;
            }
        }
        Ok(id)
    }
}

impl Store {
    /// Begins to write a checkpoint.
    ///
    /// # Errors
    /// When there is no place to write it.
    pub fn begin_checkpoint(&self) -> Result<CheckpointWriter, StoreError> {
        let hold = self.hold()?;
        let entry = self.tmp()?;
        self.make_dir(&entry.join("checkpoint"))?;
        Ok(CheckpointWriter {
            store: self.clone(),
            entry,
            _hold: hold,
        })
    }

    /// Opens a checkpoint, with all its files checked against their digests ([`Trust::Stamps`]).
    ///
    /// # Errors
    /// When there is none, it is of another version, or anything in it or below its disks is not as written.
    pub fn open_checkpoint(&self, id: &CheckpointId) -> Result<Checkpoint, StoreError> {
        self.open_checkpoint_with(id, Trust::Stamps)
    }

    /// As [`Store::open_checkpoint`], believing as much as `trust` says.
    ///
    /// # Errors
    /// As [`Store::open_checkpoint`].
    pub fn open_checkpoint_with(&self, id: &CheckpointId, trust: Trust) -> Result<Checkpoint, StoreError> {
        let manifest = self.manifest(id)?;
        let dir = self.checkpoints_dir().join(id.to_string());
        let open = |name| {
            let path = dir.join(name);
            match File::open(&path) {
                Ok(file) => Ok((file, path)),
                Err(error) => Err(CheckpointError::io("open", &path)(error)),
            }
        };
        let (file, path) = open(STATE_FILE)?;
        let state = read_state(&file, &path, &manifest.state)?;
        let (memory, path) = open(MEMORY_FILE)?;
        check_length(&memory, &path, &manifest.memory)?;
        // The id stands for the manifest, and so for the digests in it.
        self.check_once(trust, &memory_stamp(id), &id.to_string(), &memory, || {
            verify_memory(&memory, &path, &manifest.memory)
        })?;
        let mut disks = Vec::new();
        for disk in &manifest.disks {
            let layers = self.open_disk(disk, |store, digest| store.layer_with(digest, trust))?;
            let (name, virtual_size) = (disk.name.clone(), disk.virtual_size);
            disks.push(CheckpointDisk {
                name,
                virtual_size,
                layers,
            });
        }
        Ok(Checkpoint {
            id: *id,
            manifest,
            state,
            memory,
            disks,
        })
    }

    /// The manifest of a checkpoint, checked against the id. Nothing else of it is read.
    ///
    /// # Errors
    /// When there is none, or it is damaged or of another version.
    pub fn manifest(&self, id: &CheckpointId) -> Result<Manifest, StoreError> {
        let path = self.checkpoints_dir().join(id.to_string()).join(MANIFEST_FILE);
        let bytes = match read_small(&path, MAX_MANIFEST) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !parent_exists(&path) => {
                return Err(StoreError::not_found("checkpoint", id));
            }
            Err(error) => return Err(CheckpointError::io("read", &path)(error).into()),
        };
        let found = CheckpointId::of_manifest(&bytes);
        if found != *id {
            let place = "offset 0 (the whole file)";
            return Err(CheckpointError::corrupt(&path, place, format!("digest {id}"), found).into());
        }
        Ok(Manifest::parse(&bytes, &path)?)
    }

    /// All checkpoints, with their manifests or why these can't be read.
    ///
    /// # Errors
    /// When the directory can't be read.
    #[allow(
        clippy::type_complexity,
        reason = "two results, of the list and of each entry"
    )]
    pub fn list_checkpoints(&self) -> Result<Vec<(CheckpointId, Result<Manifest, StoreError>)>, StoreError> {
        let ids: Vec<CheckpointId> = super::layers::names(&self.checkpoints_dir())?;
        Ok(ids.into_iter().map(|id| (id, self.manifest(&id))).collect())
    }

    /// Deletes a checkpoint. VMs that run from it go on; its layers stay until garbage is collected.
    ///
    /// # Errors
    /// When there is none, or it can't be moved away.
    pub fn delete_checkpoint(&self, id: &CheckpointId) -> Result<(), StoreError> {
        let gone = self.take_away(&self.checkpoints_dir().join(id.to_string()))?;
        self.forget(&memory_stamp(id));
        match gone {
            true => Ok(()),
            false => Err(StoreError::not_found("checkpoint", id)),
        }
    }

    /// The layers of a disk, each opened by `open`, and whether the disk can lie on them.
    fn open_disk(
        &self,
        disk: &DiskRecord,
        open: impl Fn(&Self, &crate::Digest) -> Result<Arc<Layer>, StoreError>,
    ) -> Result<Vec<Arc<Layer>>, StoreError> {
        let in_disk = |source| CheckpointError::Layer {
            disk: disk.name.clone(),
            source,
        };
        let mut layers = Vec::new();
        for digest in &disk.layers {
            let layer = open(self, digest).map_err(|error| match error {
                StoreError::NotFound { .. } => CheckpointError::MissingLayer {
                    disk: disk.name.clone(),
                    layer: *digest,
                }
                .into(),
                StoreError::Disk(source) => in_disk(source).into(),
                other => other,
            })?;
            layers.push(layer);
        }
        crate::disk::check_stack(Path::new(&disk.name), disk.virtual_size, &layers).map_err(in_disk)?;
        Ok(layers)
    }
}

fn parent_exists(path: &Path) -> bool {
    path.parent().is_some_and(Path::exists)
}

fn memory_stamp(id: &CheckpointId) -> String {
    format!("{id}.memory")
}
