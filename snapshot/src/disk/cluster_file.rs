//! A file of clusters with what is known of each: the part that layers and overlays have in common, and how a
//! stack of them answers a read.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::cluster::{CLUSTER, ClusterState, StateTable, cluster_count};
use super::{DiskError, Layer};
use crate::files::to_usize;

/// A file of clusters.
#[derive(Debug)]
pub(crate) struct ClusterFile {
    pub file: File,
    /// For messages: the file may have been renamed since.
    pub path: PathBuf,
    pub virtual_size: u64,
    /// `None` for a raw image, where every cluster is data.
    pub states: Option<StateTable>,
}

/// Who answers for a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// No layer has anything: zeroes.
    Nothing,
    /// A layer says: zeroes.
    Zero,
    /// The data in the layer with this index in its stack.
    Layer(usize),
}

impl ClusterFile {
    /// What this file says of one cluster; beyond its end, nothing.
    pub fn state(&self, cluster: u64) -> ClusterState {
        match &self.states {
            Some(table) => table.get(cluster),
            None if cluster < cluster_count(self.virtual_size) => ClusterState::Data,
            None => ClusterState::Absent,
        }
    }

    /// Reads clusters that are data. What lies beyond this file's virtual size, because the disk above it is
    /// larger, is zero.
    pub fn read_data(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        let have = to_usize(self.virtual_size.saturating_sub(offset).min(buf.len() as u64));
        let (data, beyond) = buf.split_at_mut(have);
        beyond.fill(0);
        self.file
            .read_exact_at(data, offset)
            .map_err(|source| match source.kind() {
                std::io::ErrorKind::UnexpectedEof => DiskError::corrupt(
                    &self.path,
                    offset,
                    format!("it ends before {have} bytes that belong"),
                ),
                _ => DiskError::Io {
                    action: "read",
                    path: self.path.clone(),
                    source,
                },
            })
    }
}

/// The highest layer of `stack` (bottom first) that has something to say of a cluster.
pub(crate) fn source_of(stack: &[Arc<Layer>], cluster: u64) -> Source {
    for (index, layer) in stack.iter().enumerate().rev() {
        match layer.inner.state(cluster) {
            ClusterState::Absent => {}
            ClusterState::Data => return Source::Layer(index),
            ClusterState::Zero => return Source::Zero,
        }
    }
    Source::Nothing
}

/// Calls `each` for the longest pieces of `len` bytes at `offset` that have one source, in order, with the
/// source, the piece's offset and its length.
pub(crate) fn pieces<S: PartialEq>(
    offset: u64,
    len: usize,
    mut source: impl FnMut(u64) -> S,
    mut each: impl FnMut(S, u64, usize) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    let end = offset + len as u64;
    let mut at = offset;
    let mut next = (at < end).then(|| source(at / CLUSTER));
    while let Some(this) = next.take() {
        let mut stop = ((at / CLUSTER + 1) * CLUSTER).min(end);
        while stop < end {
            let other = source(stop / CLUSTER);
            if other != this {
                next = Some(other);
                break;
            }
            stop = (stop + CLUSTER).min(end);
        }
        each(this, at, to_usize(stop - at))?;
        at = stop;
    }
    Ok(())
}

/// Reads from a stack of layers, bottom first. The caller checked the range.
pub(crate) fn read_stack(stack: &[Arc<Layer>], buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
    pieces(
        offset,
        buf.len(),
        |cluster| source_of(stack, cluster),
        |source, at, len| {
            let piece = &mut buf[to_usize(at - offset)..][..len];
            match source {
                Source::Nothing | Source::Zero => piece.fill(0),
                Source::Layer(index) => stack[index].inner.read_data(piece, at)?,
            }
            Ok(())
        },
    )
}
