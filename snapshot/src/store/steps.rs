//! What building found out: the disk after each step of a build, by a key that the builder makes of everything
//! up to that step.
//!
//! An entry is a file, `steps/<key>`, that names layers; it keeps them from being collected. Nothing else depends
//! on it: an entry that is lost, damaged, or names a layer that is lost costs a build its time and no more. So
//! entries are written without syncing, and one that cannot be read counts as none. When it was last used is the
//! file's modification time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::Digest;
use crate::files::read_small;

/// The version of entries. Others are none.
const VERSION: u32 = 1;
/// The longest entry in bytes.
const MAX_ENTRY: u64 = 1 << 20;

/// The disk after a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepEntry {
    /// All layers of the disk, bottom first.
    pub layers: Vec<Digest>,
    /// The step, on one line, for people.
    pub label: String,
    /// How long it took when it ran, in milliseconds.
    pub took_ms: u64,
}

/// A [`StepEntry`] and what the store knows of it.
#[derive(Debug, Clone)]
pub struct CachedStep {
    /// Its key.
    pub key: Digest,
    /// What was put in.
    pub entry: StepEntry,
    /// When it was last put in or used.
    pub used: SystemTime,
}

/// Which entries go.
#[derive(Debug, Clone, Copy, Default)]
pub struct PruneSteps {
    /// Those that were not used for so long.
    pub unused_for: Option<Duration>,
    /// And of the rest the least recently used, until the layers that only entries keep take no more than this, in bytes.
    pub keep_bytes: Option<u64>,
}

impl PruneSteps {
    /// All of them.
    pub const ALL: Self = Self {
        unused_for: Some(Duration::ZERO),
        keep_bytes: None,
    };
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    format_version: u32,
    step: StepEntry,
}

impl Store {
    fn steps_dir(&self) -> PathBuf {
        self.root.join("steps")
    }

    fn step_path(&self, key: &Digest) -> PathBuf {
        self.steps_dir().join(key.to_string())
    }

    /// Remembers the disk after a step. Hold the store from adopting its top layer until then.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn put_step(&self, key: &Digest, step: &StepEntry) -> Result<(), StoreError> {
        let path = self.step_path(key);
        let entry = Entry {
            format_version: VERSION,
            step: step.clone(),
        };
        let bad = |why: serde_json::Error| StoreError::BadRecord {
            path: path.clone(),
            why: why.to_string(),
        };
        let json = serde_json::to_vec(&entry).map_err(bad)?;
        let tmp = self.tmp()?;
        let file = tmp.join("step");
        std::fs::write(&file, json).map_err(StoreError::write(&path, 0))?;
        std::fs::rename(&file, &path).map_err(StoreError::write(&path, 0))
    }

    /// The disk after the step with this key, if that is known and all its layers are there, intact. It counts as
    /// used now.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn find_step(&self, key: &Digest) -> Result<Option<StepEntry>, StoreError> {
        let _hold = self.hold()?;
        let Some(found) = self.read_step(key)? else {
            return Ok(None);
        };
        for layer in &found.entry.layers {
            if self.layer(layer).is_err() {
                return Ok(None);
            }
        }
        let path = self.step_path(key);
        // If this fails it only looks unused.
        let _ = File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some(found.entry))
    }

    /// All entries, the most recently used first.
    ///
    /// # Errors
    /// When the store can't be read.
    pub fn list_steps(&self) -> Result<Vec<CachedStep>, StoreError> {
        let mut steps = Vec::new();
        for key in super::layers::names(&self.steps_dir())? {
            steps.extend(self.read_step(&key)?);
        }
        steps.sort_by_key(|step| std::cmp::Reverse(step.used));
        Ok(steps)
    }

    fn read_step(&self, key: &Digest) -> Result<Option<CachedStep>, StoreError> {
        let path = self.step_path(key);
        let read = read_small(&path, MAX_ENTRY).and_then(|json| Ok((json, path.metadata()?.modified()?)));
        let (json, used) = match read {
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", &path)(error)),
        };
        match serde_json::from_slice::<Entry>(&json) {
            Ok(entry) if entry.format_version == VERSION => Ok(Some(CachedStep {
                key: *key,
                entry: entry.step,
                used,
            })),
            _ => Ok(None),
        }
    }

    /// The layers that no image, checkpoint or VM needs, but a cached step does: what they take on the host's disk,
    /// in bytes.
    ///
    /// # Errors
    /// When a record can't be read.
    pub fn step_bytes(&self) -> Result<u64, StoreError> {
        let (_, needed) = self.references(&Default::default())?;
        let steps = self.list_steps()?;
        let layers: BTreeSet<Digest> = steps.into_iter().flat_map(|step| step.entry.layers).collect();
        Ok(layers.difference(&needed).map(|layer| self.bytes_of(layer)).sum())
    }

    /// Forgets entries; says how many. Their layers go with the next [`Store::gc`], unless something needs them.
    ///
    /// # Errors
    /// When a record can't be read, or an entry can't be removed.
    pub fn prune_steps(&self, which: PruneSteps) -> Result<usize, StoreError> {
        let (_, mut counted) = self.references(&Default::default())?;
        let (now, mut bytes, mut gone) = (SystemTime::now(), 0, 0);
        for step in self.list_steps()? {
            let unused = now.duration_since(step.used).unwrap_or_default();
            let old = which.unused_for.is_some_and(|limit| unused >= limit);
            let new = step.entry.layers.iter().filter(|layer| !counted.contains(layer));
            let more: u64 = new.map(|layer| self.bytes_of(layer)).sum();
            if old || which.keep_bytes.is_some_and(|limit| bytes + more > limit) {
                let path = self.step_path(&step.key);
                match std::fs::remove_file(&path) {
                    Ok(()) => gone += 1,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::io("remove", &path)(error)),
                }
                continue;
            }
            bytes += more;
            counted.extend(step.entry.layers);
        }
        Ok(gone)
    }

    fn bytes_of(&self, layer: &Digest) -> u64 {
        let path = self.layers_dir().join(layer.to_string());
        path.symlink_metadata()
            .map_or(0, |metadata| metadata.blocks() * 512)
    }
}
