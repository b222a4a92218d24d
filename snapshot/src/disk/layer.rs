//! An immutable layer of a disk.

use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::DiskError;
use super::cluster::{
    CLUSTER, ClusterState, MAX_VIRTUAL_SIZE, SECTOR, StateTable, cluster_count, cluster_range,
};
use super::cluster_file::ClusterFile;
use super::footer::{BadFooter, FOOTER_LEN, Footer, VERSION};
use crate::files::{next_data, punch, to_usize};

/// What kind of file a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A plain disk image: every cluster is data, holes read as zero, nothing below shows through.
    Raw,
    /// A sealed overlay: state table and footer are in the file, which is read-only.
    Sealed,
    /// An overlay that takes no more writes, but whose table is only in memory: a crash loses it.
    /// [`Layer::seal`] makes its file a sealed one.
    Frozen,
}

/// An immutable layer of a disk. Shared by everything that lies on it; reads take no lock and no file
/// position, so threads and forked processes can share one.
#[derive(Debug)]
pub struct Layer {
    pub(crate) inner: ClusterFile,
    kind: LayerKind,
}

/// The open file. One that was an overlay is open for writing, until its descriptor is replaced.
impl AsFd for Layer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.file.as_fd()
    }
}

impl Layer {
    /// Opens a raw disk image, read-only.
    ///
    /// # Errors
    /// When it can't be opened, is not a regular file, or its size cannot be a disk's.
    pub fn open_raw(path: &Path) -> Result<Self, DiskError> {
        Self::raw_of(open_read_only(path)?, path)
    }

    /// As [`Layer::open_raw`], of a file that is open. `path` is what errors call it.
    ///
    /// # Errors
    /// As there.
    pub fn raw_of(file: File, path: &Path) -> Result<Self, DiskError> {
        let len = length_of(&file, path)?;
        check_size(path, len)?;
        let inner = ClusterFile {
            file,
            path: path.to_owned(),
            virtual_size: len,
            states: None,
        };
        Ok(Self {
            inner,
            kind: LayerKind::Raw,
        })
    }

    /// Opens a sealed layer, read-only. Footer and state table are checked; the data is not read
    /// ([`Layer::digest`] does that).
    ///
    /// # Errors
    /// When it can't be opened, is of another version, was cut off, or footer or table are not what was
    /// written.
    pub fn open_sealed(path: &Path) -> Result<Self, DiskError> {
        Self::sealed_of(open_read_only(path)?, path)
    }

    /// As [`Layer::open_sealed`], of a file that is open. `path` is what errors call it.
    ///
    /// # Errors
    /// As there.
    pub fn sealed_of(file: File, path: &Path) -> Result<Self, DiskError> {
        let len = length_of(&file, path)?;
        let (footer, states) = read_table(&file, path, len)?;
        if footer.table_digest.is_none() {
            return Err(DiskError::corrupt(
                path,
                footer_offset(len),
                "this overlay was never sealed",
            ));
        }
        let virtual_size = footer.virtual_size;
        let inner = ClusterFile {
            file,
            path: path.to_owned(),
            virtual_size,
            states: Some(states),
        };
        Ok(Self {
            inner,
            kind: LayerKind::Sealed,
        })
    }

    pub(crate) fn frozen(inner: ClusterFile) -> Self {
        Self {
            inner,
            kind: LayerKind::Frozen,
        }
    }

    /// Makes a frozen layer's file a sealed one: table and footer are written, everything is durable, the file
    /// is read-only (0444). Does nothing for other kinds. The layer itself stays as it is and goes on being
    /// readable meanwhile, so this can be done off the path, by one of the processes that share the file;
    /// after an error, again.
    ///
    /// # Errors
    /// When the file can't be written. Nothing is lost then.
    pub fn seal(&self) -> Result<(), DiskError> {
        match (&self.inner.states, self.kind) {
            (Some(states), LayerKind::Frozen) => write_sealed(&self.inner, states),
            _ => Ok(()),
        }
    }

    /// What kind of file this is.
    pub fn kind(&self) -> LayerKind {
        self.kind
    }

    /// The size in bytes of the disk this layer is of.
    pub fn virtual_size(&self) -> u64 {
        self.inner.virtual_size
    }

    /// Where the file was when it was opened. It may have been renamed or removed since.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The bytes the file takes on the host's disk.
    ///
    /// # Errors
    /// When the file system doesn't say.
    pub fn allocated_bytes(&self) -> Result<u64, DiskError> {
        allocated_bytes(&self.inner)
    }

    /// The open file, for what needs its identity (inode, times). Writing it breaks every fork on this layer.
    pub fn file(&self) -> &File {
        &self.inner.file
    }
}

pub(crate) fn allocated_bytes(of: &ClusterFile) -> Result<u64, DiskError> {
    let metadata = of.file.metadata().map_err(DiskError::io("look at", &of.path))?;
    Ok(metadata.blocks() * 512)
}

pub(crate) fn check_size(path: &Path, size: u64) -> Result<(), DiskError> {
    if size == 0 || size > MAX_VIRTUAL_SIZE || !size.is_multiple_of(SECTOR) {
        return Err(DiskError::BadSize {
            path: path.to_owned(),
            size,
        });
    }
    Ok(())
}

fn open_read_only(path: &Path) -> Result<File, DiskError> {
    // Non-blocking, or a pipe under this name would hang us. It means nothing for a regular file.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(DiskError::io("open", path))
}

fn length_of(file: &File, path: &Path) -> Result<u64, DiskError> {
    let metadata = file.metadata().map_err(DiskError::io("look at", path))?;
    if !metadata.is_file() {
        return Err(DiskError::corrupt(path, 0, "not a regular file"));
    }
    Ok(metadata.len())
}

fn footer_offset(file_len: u64) -> u64 {
    file_len.saturating_sub(FOOTER_LEN)
}

/// Footer and table of a sealed layer, or of a durable overlay that is still open.
pub(crate) fn read_table(file: &File, path: &Path, len: u64) -> Result<(Footer, StateTable), DiskError> {
    let at = footer_offset(len);
    let mut bytes = [0; to_usize(FOOTER_LEN)];
    if len < FOOTER_LEN {
        return Err(DiskError::corrupt(
            path,
            0,
            format!("{len} bytes are too few for a footer"),
        ));
    }
    file.read_exact_at(&mut bytes, at)
        .map_err(DiskError::io("read", path))?;
    let footer = Footer::decode(&bytes, len).map_err(|bad| match bad {
        BadFooter::Wrong(offset, what) => DiskError::corrupt(path, at + offset, what),
        BadFooter::Version(found) => DiskError::UnsupportedVersion {
            path: path.to_owned(),
            found,
            supported: VERSION,
        },
    })?;
    let table_at = Footer::table_offset(footer.virtual_size);
    let mut packed = vec![0; to_usize(Footer::table_len(footer.virtual_size))];
    file.read_exact_at(&mut packed, table_at)
        .map_err(DiskError::io("read", path))?;
    if let Some(expected) = footer.table_digest {
        let found = crate::Digest::of(&packed);
        if found != expected {
            let what = format!("the state table's digest should be {expected} and is {found}");
            return Err(DiskError::corrupt(path, table_at, what));
        }
    }
    let states = StateTable::parse(packed, cluster_count(footer.virtual_size)).map_err(|bad| {
        DiskError::corrupt(
            path,
            table_at + bad.cluster / 4,
            format!("no state of cluster {}", bad.cluster),
        )
    })?;
    Ok((footer, states))
}

/// Makes everything a hole that isn't in a cluster of data: bytes that a failed write left there, or one that
/// was not flushed before a crash.
pub(crate) fn punch_strays(of: &ClusterFile, states: &StateTable) -> Result<(), DiskError> {
    let path = &of.path;
    let table_at = Footer::table_offset(of.virtual_size);
    let mut at = 0;
    while let Some(extent) = next_data(&of.file, at, table_at).map_err(DiskError::io("read", path))? {
        for cluster in extent.start / CLUSTER..extent.end.div_ceil(CLUSTER) {
            if states.get(cluster) != ClusterState::Data {
                let range = cluster_range(cluster, table_at);
                punch(&of.file, range).map_err(DiskError::io("punch a hole in", path))?;
            }
        }
        at = extent.end;
    }
    Ok(())
}

/// Ends a file of clusters with table and footer, durable, and makes it read-only.
fn write_sealed(of: &ClusterFile, states: &StateTable) -> Result<(), DiskError> {
    let path = &of.path;
    punch_strays(of, states)?;
    let table_at = Footer::table_offset(of.virtual_size);
    let footer = Footer {
        virtual_size: of.virtual_size,
        table_digest: Some(crate::Digest::of(states.packed())),
    };
    let mut end = states.packed().to_vec();
    // First all but the footer, durable: a footer promises that the rest is there.
    of.file
        .write_all_at(&end, table_at)
        .map_err(DiskError::write(path, table_at, end.len() as u64))?;
    of.file.sync_data().map_err(DiskError::io("sync", path))?;
    let footer_at = table_at + end.len() as u64;
    end = footer.encode().to_vec();
    of.file
        .write_all_at(&end, footer_at)
        .map_err(DiskError::write(path, footer_at, FOOTER_LEN))?;
    match of.file.set_permissions(Permissions::from_mode(0o444)) {
        // It belongs to who gave it to us, and who takes it into a store makes it so.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
        result => result.map_err(DiskError::io("make read-only", path))?,
    }
    of.file.sync_all().map_err(DiskError::io("sync", path))
}
