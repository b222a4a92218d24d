//! What can go wrong with a disk.

use std::io;
use std::path::{Path, PathBuf};

/// Why an operation on a disk or a layer failed.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The operating system refused.
    #[error("cannot {action} {path}: {source}", path = .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// No room: the file system is full, or a quota or file size limit is reached. Nothing that was written
    /// before is lost; make room and try again.
    #[error(
        "no space for {len} bytes at offset {offset} of {path}: {source}; free some space and try again",
        path = .path.display()
    )]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// How many bytes did not fit.
        len: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// A request reaches beyond the end of the disk.
    #[error("bytes {offset}..+{len} are not within the disk's {size} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// How many bytes.
        len: u64,
        /// The disk's size in bytes.
        size: u64,
    },
    /// A disk cannot have this size.
    #[error(
        "{path} cannot be a disk of {size} bytes: a disk's size is a multiple of 512 bytes, at least 512 and at most 8 TiB",
        path = .path.display()
    )]
    BadSize {
        /// The file.
        path: PathBuf,
        /// The size asked for or found, in bytes.
        size: u64,
    },
    /// A layer is larger than the one above it.
    #[error(
        "a disk of {upper} bytes cannot lie on {path}, which has {lower}: disks only grow",
        path = .path.display()
    )]
    Shrinks {
        /// The layer below.
        path: PathBuf,
        /// Its size in bytes.
        lower: u64,
        /// The size of what should lie on it, in bytes.
        upper: u64,
    },
    /// The file is not a sealed layer, or no longer what it was when it was sealed.
    #[error(
        "{path} is not an intact layer: {what} at offset {offset}; delete it and rebuild or fetch the image again",
        path = .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The layer was written by another version of Spore.
    #[error(
        "{path} is a layer of format version {found}; this build reads version {supported}: rebuild the image, or use the build that wrote it",
        path = .path.display()
    )]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// The version it says it has.
        found: u32,
        /// The version this build reads.
        supported: u32,
    },
    /// A durable overlay was to grow.
    #[error(
        "{path} is a durable disk, which does not grow while it is written to; make a larger disk on top of it",
        path = .path.display()
    )]
    DurableGrowth {
        /// The overlay.
        path: PathBuf,
    },
    /// There was no layer to merge.
    #[error("nothing to merge: a merge takes at least one layer")]
    NothingToMerge,
}

impl DiskError {
    /// For `map_err`: the operating system refused to `action` the file at `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// For `map_err`: writing `len` bytes at `offset` failed.
    pub(crate) fn write(path: &Path, offset: u64, len: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if crate::files::is_no_space(&source) {
                Self::NoSpace {
                    path: path.to_owned(),
                    offset,
                    len,
                    source,
                }
            } else {
                Self::Io {
                    action: "write",
                    path: path.to_owned(),
                    source,
                }
            }
        }
    }

    pub(crate) fn corrupt(path: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            offset,
            what: what.into(),
        }
    }
}
