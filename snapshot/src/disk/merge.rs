//! Flattening: one layer that says what several said.

use std::path::Path;
use std::sync::Arc;

use super::cluster::{cluster_count, cluster_range};
use super::cluster_file::{Source, read_stack, source_of};
use super::{DiskError, Durability, Layer, LayerKind, Overlay};
use crate::files::{is_zero, to_usize};

/// Writes a sealed layer at `path` that can take the place of `layers` (bottom first) in any stack. Nothing is
/// changed about these; a running VM goes on with them.
///
/// # Errors
/// When there is no layer, one can't be read, or the new one can't be written (it is removed then).
pub fn merge(path: &Path, layers: &[Arc<Layer>]) -> Result<Arc<Layer>, DiskError> {
    let (Some(bottom), Some(top)) = (layers.first(), layers.last()) else {
        return Err(DiskError::NothingToMerge);
    };
    let merged = Overlay::create(path, top.virtual_size(), Vec::new(), Durability::Ephemeral)?;
    // Over a raw image nothing shows through from below, so zeroes need not be written down.
    let hides_all = bottom.kind() == LayerKind::Raw;
    fill(merged, layers, hides_all).inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}

fn fill(mut merged: Overlay, layers: &[Arc<Layer>], hides_all: bool) -> Result<Arc<Layer>, DiskError> {
    let mut buf = vec![0; to_usize(super::CLUSTER)];
    for cluster in 0..cluster_count(merged.len()) {
        let range = cluster_range(cluster, merged.len());
        let len = range.end - range.start;
        match source_of(layers, cluster) {
            Source::Nothing => {}
            Source::Zero if hides_all => {}
            Source::Zero => merged.write_zeroes(range.start, len)?,
            Source::Layer(_) => {
                let bytes = &mut buf[..to_usize(len)];
                read_stack(layers, bytes, range.start)?;
                match (is_zero(bytes), hides_all) {
                    (false, _) => merged.write_at(bytes, range.start)?,
                    (true, true) => {}
                    (true, false) => merged.write_zeroes(range.start, len)?,
                }
            }
        }
    }
    merged.seal()
}
