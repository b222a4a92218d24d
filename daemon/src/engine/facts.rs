//! What must be known of a checkpoint to fork it, kept: a checkpoint does not change under its id.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use spore_snapshot::CheckpointId;
use spore_snapshot::store::Store;

use crate::error::Result;

/// What must be known of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The memory it holds, in MiB.
    pub floor_mb: u32,
    /// The most memory, in MiB.
    pub max_mb: u32,
    /// vCPUs.
    pub cpus: u32,
    /// Size of its disk, in MiB, rounded up.
    pub disk_mb: u64,
}

/// Facts by checkpoint.
#[derive(Debug, Default)]
pub struct FactsCache(Mutex<BTreeMap<CheckpointId, Facts>>);

/// More than any host has of checkpoints in use at once.
const MOST: usize = 4096;

impl FactsCache {
    /// Of a checkpoint.
    ///
    /// # Errors
    /// `not_found`, `damaged`.
    pub fn of(&self, store: &Store, id: &CheckpointId) -> Result<Facts> {
        let known = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(id)
            .copied();
        if let Some(facts) = known {
            return Ok(facts);
        }
        let manifest = store.manifest(id)?;
        let facts = Facts {
            floor_mb: manifest.floor_mb,
            max_mb: manifest.max_mb(),
            cpus: manifest.vcpus,
            disk_mb: manifest.disk_mb(),
        };
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MOST {
            cache.clear();
        }
        cache.insert(*id, facts);
        Ok(facts)
    }
}
