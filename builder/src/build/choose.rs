//! Which checkpoint of an image is forked.

use spore_snapshot::CheckpointId;
use spore_snapshot::store::ImageRecord;

use super::{Variant, variant};
use crate::cancel::Cancel;
use crate::error::BuildError;
use crate::host::Host;
use crate::observe::Observer;

/// The floor of an image without any checkpoint, in MiB.
const DEFAULT_FLOOR_MB: u32 = 1024;

/// The checkpoint of an image to fork, if it has one: with so many vCPUs (`None`: any), the largest floor that is not
/// above what is asked, else the smallest. Of several, which other kernels booted, the newest, which is the last.
pub fn choose(image: &ImageRecord, asked_mb: u32, cpus: Option<u32>) -> Option<CheckpointId> {
    let fitting = || {
        let all = image.checkpoints.iter();
        all.filter(|checkpoint| cpus.is_none_or(|cpus| checkpoint.vcpus == cpus))
    };
    let below = fitting().filter(|checkpoint| checkpoint.floor_mb <= asked_mb);
    below
        .max_by_key(|checkpoint| checkpoint.floor_mb)
        .or_else(|| fitting().rev().min_by_key(|checkpoint| checkpoint.floor_mb))
        .map(|checkpoint| checkpoint.id)
}

/// The checkpoint of an image to fork for so much memory (MiB) with so many vCPUs (`None`: any): of those it has with as
/// many, the one with the largest floor that is not above what is asked, else the smallest. Without any the image is
/// booted once more, at its smallest floor.
///
/// # Errors
/// As [`build`](super::build), when it is booted.
pub fn checkpoint_for(
    host: &Host,
    image: &ImageRecord,
    asked_mb: u32,
    cpus: Option<u8>,
    observer: &mut dyn Observer,
) -> Result<CheckpointId, BuildError> {
    if let Some(checkpoint) = choose(image, asked_mb, cpus.map(u32::from)) {
        return Ok(checkpoint);
    }
    variant(host, image, missing(image, cpus), &Cancel::default(), observer)
}

/// What [`checkpoint_for`] makes of an image that has none with so many vCPUs.
pub fn missing(image: &ImageRecord, cpus: Option<u8>) -> Variant {
    let floors = image.checkpoints.iter().map(|checkpoint| checkpoint.floor_mb);
    Variant {
        floor_mb: floors.min().unwrap_or(DEFAULT_FLOOR_MB),
        vcpus: cpus.unwrap_or(1),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use spore_snapshot::Digest;
    use spore_snapshot::store::ImageCheckpoint;

    fn image(checkpoints: &[(u32, u32, char)]) -> ImageRecord {
        ImageRecord {
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

    #[test]
    fn of_equal_checkpoints_the_newest_is_forked() {
        let image = image(&[(512, 1, 'a'), (512, 1, 'b')]);
        for asked in [0, 512, 1024] {
            let chosen = choose(&image, asked, None).map(|id| id.to_string()[..1].to_owned());
            assert_eq!(chosen.as_deref(), Some("b"), "for {asked}");
        }
    }
}
