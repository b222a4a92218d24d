//! Which steps need not run again: the layers of their disks are in the store, by the chain hash of everything up
//! to them.

use spore_snapshot::Digest;
use spore_snapshot::store::{Store, StoreError};

use crate::hash::{BaseDigest, LayerKey, layer_keys};
use crate::manifest::Manifest;
use crate::memory::MiB;

/// How much of a build is known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The key of the disk after each step.
    pub keys: Vec<Digest>,
    /// How many steps need not run.
    pub steps: usize,
    /// The disk after them, bottom first: the base, and what they wrote.
    pub layers: Vec<Digest>,
}

/// Looks for the longest beginning of `manifest` that is known, on the disk `base` grown to `disk` if it is to be; for
/// none if `ignore` says so.
///
/// # Errors
/// When the store cannot be read.
pub(super) fn look(
    store: &Store,
    manifest: &Manifest,
    base: Digest,
    disk: Option<MiB>,
    ignore: bool,
) -> Result<Known, StoreError> {
    let keys = layer_keys(&from_store(base, disk), manifest.step_digests());
    let keys: Vec<Digest> = keys.iter().map(in_store).collect();
    let mut known = Known {
        keys,
        steps: 0,
        layers: vec![base],
    };
    if ignore {
        return Ok(known);
    }
    for (index, key) in known.keys.iter().enumerate().rev() {
        // A disk on another base cannot have this key; one that claims it was not made by us.
        if let Some(found) = store.find_step(key)?
            && found.layers.first() == Some(&base)
        {
            (known.steps, known.layers) = (index + 1, found.layers);
            break;
        }
    }
    Ok(known)
}

/// What the disk that a build starts from is called: the base's, grown if it is to be.
pub(super) fn from_store(base: Digest, disk: Option<MiB>) -> BaseDigest {
    let base = BaseDigest::from_bytes(*base.as_bytes());
    disk.map_or(base, |disk| base.grown(disk))
}

fn in_store(key: &LayerKey) -> Digest {
    Digest::from_bytes(*key.as_bytes())
}
