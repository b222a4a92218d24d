//! The digest of a layer: its name in the store.
//!
//! BLAKE3 over, for a sealed layer, `"spore layer 1\n"`, the virtual size (u64 LE), the packed state table, and
//! the clusters that are data, in order; for a raw image, `"spore raw 1\n"`, the virtual size, and every cluster
//! that is not all zero, in order: its index (u64 LE) and its bytes. So holes cost nothing, and how a file
//! system happens to store zeroes makes no difference.

use super::cluster::{CLUSTER, ClusterState, StateTable, cluster_range};
use super::cluster_file::ClusterFile;
use super::{DiskError, Layer};
use crate::Digest;
use crate::files::{CHUNK, is_zero, next_data, to_usize};

impl Layer {
    /// Reads all data of the layer and computes its digest. For a sealed layer, also checks that the file holds
    /// nothing outside the clusters that are data.
    ///
    /// # Errors
    /// When the file can't be read, or holds bytes where nothing belongs.
    pub fn digest(&self) -> Result<Digest, DiskError> {
        match &self.inner.states {
            Some(states) => sealed(&self.inner, states),
            None => raw(&self.inner),
        }
    }
}

fn sealed(of: &ClusterFile, states: &StateTable) -> Result<Digest, DiskError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"spore layer 1\n");
    hasher.update(&of.virtual_size.to_le_bytes());
    hasher.update(states.packed());
    let mut buf = vec![0; CHUNK];
    let mut from = 0;
    while let Some(run) = states.next_data_run(from) {
        let end = (run.end * CLUSTER).min(of.virtual_size);
        let mut at = run.start * CLUSTER;
        while at < end {
            let len = CHUNK.min(to_usize(end - at));
            of.read_data(&mut buf[..len], at)?;
            hasher.update(&buf[..len]);
            at += len as u64;
        }
        from = run.end;
    }
    nothing_elsewhere(of, states, &mut buf)?;
    Ok(hasher.finalize().into())
}

/// Refuses bytes in clusters that aren't data, and between the disk's end and the table. They would never be
/// read, but someone wrote them.
fn nothing_elsewhere(of: &ClusterFile, states: &StateTable, buf: &mut [u8]) -> Result<(), DiskError> {
    let table_at = states.clusters() * CLUSTER;
    let read_error = || DiskError::io("read", &of.path);
    let mut at = 0;
    while let Some(extent) = next_data(&of.file, at, table_at).map_err(read_error())? {
        at = extent.end;
        let mut cluster = extent.start / CLUSTER;
        while cluster * CLUSTER < extent.end {
            let start = match states.get(cluster) {
                ClusterState::Data => cluster_range(cluster, of.virtual_size).end,
                _ => cluster * CLUSTER,
            };
            let end = (cluster + 1) * CLUSTER;
            if start < end {
                let piece = &mut buf[..to_usize(end - start)];
                std::os::unix::fs::FileExt::read_exact_at(&of.file, piece, start).map_err(read_error())?;
                if let Some(stray) = piece.iter().position(|byte| *byte != 0) {
                    let what = format!("a byte where cluster {cluster} has no data");
                    return Err(DiskError::corrupt(&of.path, start + stray as u64, what));
                }
            }
            cluster += 1;
        }
    }
    Ok(())
}

fn raw(of: &ClusterFile) -> Result<Digest, DiskError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"spore raw 1\n");
    hasher.update(&of.virtual_size.to_le_bytes());
    let mut buf = vec![0; CHUNK];
    let mut done = 0;
    while let Some(extent) =
        next_data(&of.file, done, of.virtual_size).map_err(DiskError::io("read", &of.path))?
    {
        let mut at = (extent.start / CLUSTER * CLUSTER).max(done);
        let end = (extent.end.div_ceil(CLUSTER) * CLUSTER).min(of.virtual_size);
        while at < end {
            let len = CHUNK.min(to_usize(end - at));
            of.read_data(&mut buf[..len], at)?;
            for (index, cluster) in (at / CLUSTER..).zip(buf[..len].chunks(to_usize(CLUSTER))) {
                if !is_zero(cluster) {
                    hasher.update(&index.to_le_bytes());
                    hasher.update(cluster);
                }
            }
            at += len as u64;
        }
        done = end;
    }
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Durability, Overlay};
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;

    fn sealed_layer(path: &Path, data: u8) -> Arc<Layer> {
        let mut disk = Overlay::create(path, 1 << 20, Vec::new(), Durability::Ephemeral).unwrap();
        disk.write_at(&[data; 3000], 65000).unwrap();
        disk.discard(131_072, 65536).unwrap();
        disk.seal().unwrap()
    }

    #[test]
    fn equal_layers_have_equal_digests_and_others_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let digest = |name, data| sealed_layer(&dir.path().join(name), data).digest().unwrap();
        assert_eq!(digest("a", 1), digest("b", 1));
        assert_ne!(digest("c", 1), digest("d", 2));
    }

    #[test]
    fn how_a_raw_image_stores_its_zeroes_makes_no_difference() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, sparse: bool, at: u64| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_len(5 << 20).unwrap();
            if !sparse {
                file.write_all_at(&vec![0; 5 << 20], 0).unwrap();
            }
            file.write_all_at(b"ext4", at).unwrap();
            Layer::open_raw(&path).unwrap().digest().unwrap()
        };
        let digest = write("sparse", true, 3_000_000);
        assert_eq!(write("full", false, 3_000_000), digest);
        assert_ne!(write("other", true, 3_000_512), digest);
    }

    #[test]
    fn a_byte_where_there_is_no_data_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for at in [131_072u64, 300_000] {
            let path = dir.path().join(at.to_string());
            drop(sealed_layer(&path, 1));
            let file = File::options().write(true).open(&path).unwrap();
            file.write_all_at(b"x", at).unwrap();
            let error = Layer::open_sealed(&path).unwrap().digest().unwrap_err();
            assert!(
                matches!(error, DiskError::Corrupt { offset, .. } if offset == at),
                "{error}"
            );
        }
    }
}
