//! What must be known of a checkpoint to fork it, kept: a checkpoint does not change under its id.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use spore_snapshot::CheckpointId;
use spore_snapshot::store::{Image, Store};

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
            max_mb: u32::try_from(manifest.memory.span_bytes >> 20).unwrap_or(u32::MAX),
            cpus: manifest.vcpus,
            disk_mb: manifest
                .disks
                .iter()
                .map(|disk| disk.virtual_size.div_ceil(1 << 20))
                .sum(),
        };
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= MOST {
            cache.clear();
        }
        cache.insert(*id, facts);
        Ok(facts)
    }
}

/// The checkpoint of an image to fork: with so many vCPUs (`None`: any), the largest floor that is not above what is
/// asked, else the smallest.
pub fn choose(image: &Image, asked_mb: u32, cpus: Option<u32>) -> Option<CheckpointId> {
    let fitting = || {
        let all = image.record.checkpoints.iter();
        all.filter(|checkpoint| cpus.is_none_or(|cpus| checkpoint.vcpus == cpus))
    };
    let below = fitting().filter(|checkpoint| checkpoint.floor_mb <= asked_mb);
    below
        .max_by_key(|checkpoint| checkpoint.floor_mb)
        .or_else(|| fitting().min_by_key(|checkpoint| checkpoint.floor_mb))
        .map(|checkpoint| checkpoint.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use spore_snapshot::Digest;
    use spore_snapshot::store::{ImageCheckpoint, ImageRecord};

    fn image(checkpoints: &[(u32, u32, char)]) -> Image {
        Image {
            record: ImageRecord {
                id: "01234567".parse().unwrap(),
                content_hash: String::new(),
                base_digest: Digest::of(b"base"),
                disk_layers: Vec::new(),
                checkpoints: checkpoints
                    .iter()
                    .map(|(floor_mb, vcpus, digit)| ImageCheckpoint {
                        floor_mb: *floor_mb,
                        vcpus: *vcpus,
                        kernel: Digest::of(b"kernel"),
                        id: digit.to_string().repeat(32).parse().unwrap(),
                    })
                    .collect(),
                created_unix_seconds: 0,
                size_bytes: 0,
                builder_memory_mb: 512,
                disk_mb: None,
                annotations: BTreeMap::new(),
            },
            names: Vec::new(),
        }
    }

    #[test]
    fn the_largest_floor_that_fits_is_forked_else_the_smallest() {
        let image = image(&[(512, 1, 'a'), (1024, 1, 'b'), (2048, 1, 'c'), (256, 2, 'd')]);
        let chosen = |asked, cpus| choose(&image, asked, cpus).map(|id| id.to_string()[..1].to_owned());
        assert_eq!(chosen(1500, Some(1)).as_deref(), Some("b"));
        assert_eq!(chosen(2048, Some(1)).as_deref(), Some("c"));
        assert_eq!(chosen(100, Some(1)).as_deref(), Some("a"));
        assert_eq!(chosen(0, Some(2)).as_deref(), Some("d"));
        assert_eq!(chosen(9999, Some(4)), None);
    }
}
