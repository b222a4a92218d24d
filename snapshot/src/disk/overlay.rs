//! The writable top of a disk.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use super::cluster::{CLUSTER, ClusterState, StateTable, cluster_count, cluster_range};
use super::cluster_file::{ClusterFile, Source, pieces, read_stack, source_of};
use super::footer::Footer;
use super::layer::{allocated_bytes, check_size, punch_strays, read_table};
use super::{DiskError, Layer};
use crate::files::{punch, to_usize};

/// Bytes of the state table that are written together when a durable overlay is flushed.
const TABLE_PAGE: u64 = 4096;

/// Whether a disk must survive a crash of the host or of the VM's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The disk dies with its VM: a flush does nothing.
    Ephemeral,
    /// After a flush, [`Overlay::reopen`] finds everything that was written before it.
    Durable,
}

/// The writable top of a disk: a private file over a stack of layers. The layers are never written.
///
/// One owner writes it. After a `fork(2)` only one of the two processes may go on using it; to go on in both,
/// [freeze](Overlay::freeze) it first and give each an overlay of its own on top.
#[derive(Debug)]
pub struct Overlay {
    own: ClusterFile,
    states: StateTable,
    lower: Vec<Arc<Layer>>,
    durability: Durability,
    /// Pages of the table that differ from those in the file. Only kept for a durable overlay.
    dirty: BTreeSet<u64>,
}

impl Overlay {
    /// A new overlay of `virtual_size` bytes over `lower` (bottom first), in a new file at `path`, mode 0600.
    /// It may be larger than what lies below: the rest reads as zero.
    ///
    /// # Errors
    /// When the file exists or can't be made, or the size cannot be a disk's or is smaller than what is below.
    pub fn create(
        path: &Path,
        virtual_size: u64,
        lower: Vec<Arc<Layer>>,
        durability: Durability,
    ) -> Result<Self, DiskError> {
        check_stack(path, virtual_size, &lower)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .map_err(DiskError::io("create", path))?;
        Self::with_file(file, path, virtual_size, lower, durability)
    }

    /// As [`Overlay::create`], in an empty file that is open for reading and writing. `path` is what errors call it.
    ///
    /// # Errors
    /// As [`Overlay::create`]; or the file is not empty.
    pub fn create_named(
        file: File,
        path: &Path,
        virtual_size: u64,
        lower: Vec<Arc<Layer>>,
        durability: Durability,
    ) -> Result<Self, DiskError> {
        check_stack(path, virtual_size, &lower)?;
        let len = file.metadata().map_err(DiskError::io("look at", path))?.len();
        if len != 0 {
            return Err(DiskError::corrupt(
                path,
                0,
                format!("a new overlay is empty, this has {len} bytes"),
            ));
        }
        Self::with_file(file, path, virtual_size, lower, durability)
    }

    fn with_file(
        file: File,
        path: &Path,
        virtual_size: u64,
        lower: Vec<Arc<Layer>>,
        durability: Durability,
    ) -> Result<Self, DiskError> {
        let table_at = Footer::table_offset(virtual_size);
        file.set_len(table_at)
            .map_err(DiskError::write(path, 0, table_at))?;
        if durability == Durability::Durable {
            let footer = Footer {
                virtual_size,
                table_digest: None,
            }
            .encode();
            let at = Footer::file_len(virtual_size) - footer.len() as u64;
            file.write_all_at(&footer, at)
                .map_err(DiskError::write(path, at, footer.len() as u64))?;
            file.sync_all().map_err(DiskError::io("sync", path))?;
        }
        let own = ClusterFile {
            file,
            path: path.to_owned(),
            virtual_size,
            states: None,
        };
        let states = StateTable::new(cluster_count(virtual_size));
        Ok(Self {
            own,
            states,
            lower,
            durability,
            dirty: BTreeSet::new(),
        })
    }

    /// Opens a durable overlay again that was not sealed, with everything as of its last flush or later.
    /// `lower` must be what it was created over; that is the caller's to remember.
    ///
    /// # Errors
    /// When it can't be opened, was not durable, is sealed already, or is damaged.
    pub fn reopen(path: &Path, lower: Vec<Arc<Layer>>) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(DiskError::io("open", path))?;
        let len = file.metadata().map_err(DiskError::io("look at", path))?.len();
        let (footer, states) = read_table(&file, path, len)?;
        if footer.table_digest.is_some() {
            return Err(DiskError::corrupt(
                path,
                0,
                "it is sealed: open it as a layer, it takes no writes",
            ));
        }
        check_stack(path, footer.virtual_size, &lower)?;
        let own = ClusterFile {
            file,
            path: path.to_owned(),
            virtual_size: footer.virtual_size,
            states: None,
        };
        // What was written but not flushed is not on the disk; it must not come back with the next write to its
        // cluster either.
        punch_strays(&own, &states)?;
        Ok(Self {
            own,
            states,
            lower,
            durability: Durability::Durable,
            dirty: BTreeSet::new(),
        })
    }

    /// The size of the disk in bytes.
    #[allow(clippy::len_without_is_empty, reason = "a disk is never empty")]
    pub fn len(&self) -> u64 {
        self.own.virtual_size
    }

    /// The layers below, bottom first.
    pub fn lower(&self) -> &[Arc<Layer>] {
        &self.lower
    }

    /// Whether the disk must survive a crash.
    pub fn durability(&self) -> Durability {
        self.durability
    }

    /// Where the file was when it was created. It may have been renamed or removed since.
    pub fn path(&self) -> &Path {
        &self.own.path
    }

    /// Whether nothing was ever written or discarded here. Such an overlay need not become a layer: what is
    /// below is the disk.
    pub fn is_pristine(&self) -> bool {
        self.states.is_empty()
    }

    /// The bytes the overlay's own file takes on the host's disk.
    ///
    /// # Errors
    /// When the file system doesn't say.
    pub fn allocated_bytes(&self) -> Result<u64, DiskError> {
        allocated_bytes(&self.own)
    }

    /// Reads `buf.len()` bytes from byte `offset` of the disk.
    ///
    /// # Errors
    /// When the range is not within the disk, or a file can't be read.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DiskError> {
        self.check_range(offset, buf.len() as u64)?;
        // Pieces of the same state first; what is absent here is then cut again by the layers below.
        pieces(
            offset,
            buf.len(),
            |cluster| self.states.get(cluster),
            |state, at, len| {
                let piece = &mut buf[to_usize(at - offset)..][..len];
                match state {
                    ClusterState::Data => self.own.read_data(piece, at),
                    ClusterState::Absent => read_stack(&self.lower, piece, at),
                    ClusterState::Zero => {
                        piece.fill(0);
                        Ok(())
                    }
                }
            },
        )
    }

    /// Writes `data` from byte `offset` of the disk on.
    ///
    /// A cluster written for the first time, and not whole, takes the rest of its bytes from below.
    ///
    /// # Errors
    /// When the range is not within the disk, a layer can't be read, or there is no space. After an error the
    /// bytes of the range are either the old or the new ones; all others are as they were.
    pub fn write_at(&mut self, data: &[u8], offset: u64) -> Result<(), DiskError> {
        self.check_range(offset, data.len() as u64)?;
        let end = offset + data.len() as u64;
        let mut runs: Vec<(bool, u64, usize)> = Vec::with_capacity(3);
        pieces(
            offset,
            data.len(),
            |cluster| self.needs_copy_up(cluster, offset..end),
            |copy_up, at, len| {
                runs.push((copy_up, at, len));
                Ok(())
            },
        )?;
        for (copy_up, at, len) in runs {
            let piece = &data[to_usize(at - offset)..][..len];
            if copy_up {
                self.copy_up(piece, at)?;
            } else {
                self.write_own(piece, at)?;
            }
        }
        Ok(())
    }

    /// Forgets a range: whole clusters read as zero afterwards and take no space; at the edges of the range,
    /// bytes read as zero or as before.
    ///
    /// # Errors
    /// When the range is not within the disk, or a hole can't be made.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero(offset, len, false)
    }

    /// Makes a range zero, without taking space for whole clusters.
    ///
    /// # Errors
    /// As [`Overlay::write_at`].
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), DiskError> {
        self.zero(offset, len, true)
    }

    /// For a durable disk: everything written before survives a crash from now on. For an ephemeral disk,
    /// nothing.
    ///
    /// # Errors
    /// When the file can't be written or synced. What was not flushed may be lost then; a retry that succeeds
    /// does not prove otherwise (Linux reports a lost page once).
    pub fn flush(&mut self) -> Result<(), DiskError> {
        if self.durability == Durability::Ephemeral {
            return Ok(());
        }
        let path = &self.own.path;
        let sync = || self.own.file.sync_data().map_err(DiskError::io("sync", path));
        sync()?;
        if self.dirty.is_empty() {
            return Ok(());
        }
        // The data was made durable first: a table never speaks of clusters that aren't there yet.
        let table_at = Footer::table_offset(self.own.virtual_size);
        for page in &self.dirty {
            let table = self.states.packed();
            let start = to_usize(page * TABLE_PAGE);
            let bytes = &table[start..table.len().min(start + to_usize(TABLE_PAGE))];
            let at = table_at + start as u64;
            let len = bytes.len() as u64;
            self.own
                .file
                .write_all_at(bytes, at)
                .map_err(DiskError::write(path, at, len))?;
        }
        sync()?;
        self.dirty.clear();
        Ok(())
    }

    /// Makes the disk `virtual_size` bytes large; what is new of it reads as zero. Its own size changes nothing.
    ///
    /// # Errors
    /// When the size cannot be a disk's or is smaller than the disk's, or the file can't be extended; the disk is as
    /// it was then. A durable overlay, whose file ends with a table that would be in the way, does not grow: lie on
    /// top of it as a larger disk.
    pub fn grow(&mut self, virtual_size: u64) -> Result<(), DiskError> {
        let path = &self.own.path;
        check_size(path, virtual_size)?;
        if virtual_size < self.len() {
            return Err(DiskError::Shrinks {
                path: path.clone(),
                lower: self.len(),
                upper: virtual_size,
            });
        }
        if virtual_size == self.len() {
            return Ok(());
        }
        if self.durability == Durability::Durable {
            return Err(DiskError::DurableGrowth { path: path.clone() });
        }
        let table_at = Footer::table_offset(virtual_size);
        self.own
            .file
            .set_len(table_at)
            .map_err(DiskError::write(path, 0, table_at))?;
        self.states.grow(cluster_count(virtual_size));
        self.own.virtual_size = virtual_size;
        Ok(())
    }

    /// Ends writing, at once: what was the overlay is now a layer, readable by any number of new overlays on
    /// top of it. Nothing is written; [`Layer::seal`] does that later. For a live fork: freeze, then give each
    /// side its own overlay over [`lower`](Overlay::lower) and this layer.
    pub fn freeze(mut self) -> Arc<Layer> {
        self.own.states = Some(self.states);
        Arc::new(Layer::frozen(self.own))
    }

    /// Freezes the overlay and seals the layer: a file that is complete, durable and read-only (0444).
    ///
    /// # Errors
    /// When the file can't be written, and then the overlay is gone. Where that must not be,
    /// [`freeze`](Overlay::freeze) it and [`seal`](Layer::seal) the layer.
    pub fn seal(self) -> Result<Arc<Layer>, DiskError> {
        let path = self.own.path.clone();
        let layer = self.freeze();
        layer.seal()?;
        match Layer::open_sealed(&path) {
            Ok(sealed) => Ok(Arc::new(sealed)),
            // An overlay without a name can't be opened again; as a layer it is the same.
            Err(DiskError::Io { .. }) => Ok(layer),
            Err(error) => Err(error),
        }
    }

    fn check_range(&self, offset: u64, len: u64) -> Result<(), DiskError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(DiskError::OutOfRange {
                offset,
                len,
                size: self.len(),
            }),
        }
    }

    /// Whether writing the part of `range` in a cluster must bring the rest of it from below.
    fn needs_copy_up(&self, cluster: u64, range: Range<u64>) -> bool {
        let whole = cluster_range(cluster, self.len());
        let covered = range.start <= whole.start && range.end >= whole.end;
        !covered
            && self.states.get(cluster) == ClusterState::Absent
            && matches!(source_of(&self.lower, cluster), Source::Layer(_))
    }

    /// Writes one or more absent clusters whole: `data` at `offset`, around it what is below.
    fn copy_up(&mut self, data: &[u8], offset: u64) -> Result<(), DiskError> {
        let end = offset + data.len() as u64;
        let start = cluster_range(offset / CLUSTER, self.len()).start;
        let stop = cluster_range((end - 1) / CLUSTER, self.len()).end;
        let mut whole = vec![0; to_usize(stop - start)];
        read_stack(&self.lower, &mut whole, start)?;
        whole[to_usize(offset - start)..][..data.len()].copy_from_slice(data);
        self.write_own(&whole, start)
    }

    /// Writes to our file. Clusters that were not data are a hole there, so what is not written reads as zero.
    fn write_own(&mut self, data: &[u8], offset: u64) -> Result<(), DiskError> {
        let len = data.len() as u64;
        let clusters = offset / CLUSTER..(offset + len).div_ceil(CLUSTER);
        if let Err(source) = self.own.file.write_all_at(data, offset) {
            // What was written of it must not show up later, when something else is written to the cluster.
            for cluster in clusters.filter(|c| self.states.get(*c) != ClusterState::Data) {
                let _ = self.punch(cluster_range(cluster, self.len()));
            }
            return Err(DiskError::write(&self.own.path, offset, len)(source));
        }
        for cluster in clusters {
            self.set_state(cluster, ClusterState::Data);
        }
        Ok(())
    }

    fn zero(&mut self, offset: u64, len: u64, exact: bool) -> Result<(), DiskError> {
        self.check_range(offset, len)?;
        let end = offset + len;
        let mut at = offset;
        while at < end {
            let cluster = at / CLUSTER;
            let whole = cluster_range(cluster, self.len());
            let stop = whole.end.min(end);
            let state = self.states.get(cluster);
            if at == whole.start && stop == whole.end {
                if state == ClusterState::Data {
                    self.punch(at..stop)?;
                }
                self.set_state(cluster, ClusterState::Zero);
            } else if state == ClusterState::Data {
                self.punch(at..stop)?;
            } else if exact && self.needs_copy_up(cluster, at..stop) {
                let zeroes = vec![0; to_usize(stop - at)];
                self.copy_up(&zeroes, at)?;
            }
            at = stop;
        }
        Ok(())
    }

    fn punch(&self, range: Range<u64>) -> Result<(), DiskError> {
        punch(&self.own.file, range).map_err(DiskError::io("punch a hole in", &self.own.path))
    }

    fn set_state(&mut self, cluster: u64, state: ClusterState) {
        if self.states.set(cluster, state) && self.durability == Durability::Durable {
            self.dirty.insert(cluster / 4 / TABLE_PAGE);
        }
    }
}

/// Whether a disk of `virtual_size` bytes can lie on `lower`.
pub(crate) fn check_stack(path: &Path, virtual_size: u64, lower: &[Arc<Layer>]) -> Result<(), DiskError> {
    check_size(path, virtual_size)?;
    let uppers = lower
        .iter()
        .skip(1)
        .map(|layer| layer.virtual_size())
        .chain([virtual_size]);
    for (layer, upper) in lower.iter().zip(uppers) {
        if layer.virtual_size() > upper {
            let lower = layer.virtual_size();
            return Err(DiskError::Shrinks {
                path: layer.path().to_owned(),
                lower,
                upper,
            });
        }
    }
    Ok(())
}
