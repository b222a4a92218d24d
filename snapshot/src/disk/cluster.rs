//! Clusters, what is known of each, and the packed table of it.

use std::ops::Range;

/// Bytes in a cluster: the unit in which a layer covers what is below it.
pub const CLUSTER: u64 = 64 * 1024;

/// A disk's size is a multiple of this many bytes.
pub const SECTOR: u64 = 512;

/// The largest disk, in bytes (8 TiB). Bounds what a footer can make us allocate: a state table of 32 MiB.
pub const MAX_VIRTUAL_SIZE: u64 = 8 << 40;

/// What a layer says of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterState {
    /// Nothing: the layers below decide.
    Absent,
    /// The bytes are in this layer's file.
    Data,
    /// All zeroes, whatever is below.
    Zero,
}

/// The number of clusters of a disk of `virtual_size` bytes; the last may be short.
pub(crate) const fn cluster_count(virtual_size: u64) -> u64 {
    virtual_size.div_ceil(CLUSTER)
}

/// The bytes of one cluster of a disk of `virtual_size` bytes.
pub(crate) fn cluster_range(index: u64, virtual_size: u64) -> Range<u64> {
    index * CLUSTER..((index + 1) * CLUSTER).min(virtual_size)
}

/// The states of all clusters, two bits each: cluster `i` in bits `2 * (i % 4)` of byte `i / 4`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateTable {
    packed: Vec<u8>,
    clusters: u64,
}

/// A table that no overlay can have written: the state of this cluster is not a state, or not zero beyond the
/// last cluster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadState {
    /// The cluster whose state it would be.
    pub cluster: u64,
}

impl StateTable {
    /// A table of `clusters` absent clusters.
    pub fn new(clusters: u64) -> Self {
        Self {
            packed: vec![0; crate::files::to_usize(Self::packed_len(clusters))],
            clusters,
        }
    }

    /// The bytes a table of `clusters` clusters takes.
    pub const fn packed_len(clusters: u64) -> u64 {
        clusters.div_ceil(4)
    }

    /// The table of `clusters` clusters that `packed` says it is.
    ///
    /// # Errors
    /// Where a state is not one of the three. `packed` must have the right length.
    pub fn parse(packed: Vec<u8>, clusters: u64) -> Result<Self, BadState> {
        debug_assert_eq!(packed.len() as u64, Self::packed_len(clusters));
        // Bad is 0b11: both bits of a pair set.
        if let Some(at) = packed.iter().position(|byte| byte & (byte >> 1) & 0x55 != 0) {
            let pair = (packed[at] & (packed[at] >> 1) & 0x55).trailing_zeros() / 2;
            return Err(BadState {
                cluster: at as u64 * 4 + u64::from(pair),
            });
        }
        let used = clusters % 4;
        if used != 0 && packed.last().is_some_and(|last| last >> (2 * used) != 0) {
            return Err(BadState { cluster: clusters });
        }
        Ok(Self { packed, clusters })
    }

    /// The packed form.
    pub fn packed(&self) -> &[u8] {
        &self.packed
    }

    /// Makes it a table of `clusters` clusters, if that is more; the new ones are absent.
    pub fn grow(&mut self, clusters: u64) {
        if clusters > self.clusters {
            self.packed
                .resize(crate::files::to_usize(Self::packed_len(clusters)), 0);
            self.clusters = clusters;
        }
    }

    /// The number of clusters.
    pub fn clusters(&self) -> u64 {
        self.clusters
    }

    /// The state of one cluster; a cluster beyond the end is absent.
    pub fn get(&self, cluster: u64) -> ClusterState {
        if cluster >= self.clusters {
            return ClusterState::Absent;
        }
        match self.packed[crate::files::to_usize(cluster / 4)] >> (2 * (cluster % 4)) & 3 {
            1 => ClusterState::Data,
            2 => ClusterState::Zero,
            _ => ClusterState::Absent,
        }
    }

    /// Sets the state of one cluster, and says whether that changed it. A cluster beyond the end stays absent.
    pub fn set(&mut self, cluster: u64, state: ClusterState) -> bool {
        if cluster >= self.clusters || self.get(cluster) == state {
            return false;
        }
        let bits = match state {
            ClusterState::Absent => 0,
            ClusterState::Data => 1,
            ClusterState::Zero => 2,
        };
        let byte = &mut self.packed[crate::files::to_usize(cluster / 4)];
        let shift = 2 * (cluster % 4);
        *byte = *byte & !(3 << shift) | bits << shift;
        true
    }

    /// Whether every cluster is absent.
    pub fn is_empty(&self) -> bool {
        crate::files::is_zero(&self.packed)
    }

    /// The first run of clusters in `from..` that are data.
    pub fn next_data_run(&self, from: u64) -> Option<Range<u64>> {
        let start = (from..self.clusters).find(|c| self.get(*c) == ClusterState::Data)?;
        let end = (start..self.clusters).find(|c| self.get(*c) != ClusterState::Data);
        Some(start..end.unwrap_or(self.clusters))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_remembers_every_cluster() {
        let mut table = StateTable::new(10);
        assert!(table.is_empty());
        for cluster in 0..10 {
            let state = [ClusterState::Data, ClusterState::Zero, ClusterState::Absent]
                [crate::files::to_usize(cluster % 3)];
            assert_eq!(table.set(cluster, state), state != ClusterState::Absent);
            assert!(!table.set(cluster, state));
        }
        let back = StateTable::parse(table.packed().to_vec(), 10).unwrap();
        assert_eq!(back, table);
        assert_eq!(back.get(3), ClusterState::Data);
        assert_eq!(back.get(4), ClusterState::Zero);
        assert_eq!(back.get(5), ClusterState::Absent);
        assert_eq!(back.get(10), ClusterState::Absent);
        assert_eq!(back.next_data_run(1), Some(3..4));
        assert_eq!(back.next_data_run(10), None);
    }

    #[test]
    fn impossible_states_are_refused() {
        assert_eq!(
            StateTable::parse(vec![0, 0b0011_0000], 8),
            Err(BadState { cluster: 6 })
        );
        assert_eq!(
            StateTable::parse(vec![0b0100_0000], 3),
            Err(BadState { cluster: 3 })
        );
        assert!(StateTable::parse(vec![0b0001_0000], 3).is_ok());
    }
}
