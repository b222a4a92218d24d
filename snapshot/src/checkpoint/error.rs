//! What can go wrong with a checkpoint.

use std::io;
use std::path::{Path, PathBuf};

use crate::Digest;
use crate::disk::DiskError;

/// Why a checkpoint could not be written or opened.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
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
    /// No room: the file system is full, or a quota or file size limit is reached. What was written of the
    /// checkpoint is removed; the VM it is of is not affected.
    #[error(
        "no space for {path}: {written} bytes written, up to {missing} more needed ({source}); free that much and try again",
        path = .path.display()
    )]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// Bytes of this file that were written.
        written: u64,
        /// Bytes that were still to come: an upper bound where the caller gave no estimate.
        missing: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file is not what was written.
    #[error(
        "{path} is damaged at {location}: expected {expected}, found {found}; delete this checkpoint and make it again",
        path = .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Where in it (an offset in bytes, a chunk, a field).
        location: String,
        /// What belongs there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// Written by another version of Spore.
    #[error(
        "{path} has format version {found}; this build reads version {supported}: make the checkpoint again, or use the build that wrote it",
        path = .path.display()
    )]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// The version it says it has.
        found: u64,
        /// The version this build reads.
        supported: u32,
    },
    /// A manifest that says something impossible.
    #[error("{path} is not a valid manifest: {why}; make the checkpoint again", path = .path.display())]
    BadManifest {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A caller's mistake: memory must come in whole pages, in ascending order, within the span.
    #[error("cannot write {len} bytes of memory at offset {offset}: {why}")]
    BadRegion {
        /// Offset in the memory file, in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// What is wrong.
        why: &'static str,
    },
    /// A caller's mistake: a state this large is not a state.
    #[error("a state of {len} bytes is too large: at most {max}")]
    StateTooLarge {
        /// Length in bytes.
        len: u64,
        /// The limit in bytes.
        max: u64,
    },
    /// A disk refers to a layer that the store does not have.
    #[error("disk {disk:?} needs layer {layer}, which is not in the store; build or fetch its image again")]
    MissingLayer {
        /// The disk's name.
        disk: String,
        /// The layer's digest.
        layer: Digest,
    },
    /// A layer of a disk is damaged or can't be read.
    #[error("disk {disk:?}: {source}")]
    Layer {
        /// The disk's name.
        disk: String,
        /// What is wrong with the layer.
        source: DiskError,
    },
}

impl CheckpointError {
    /// For `map_err`: the operating system refused to `action` the file at `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// For `map_err`: writing failed after `written` bytes, with `missing` still to come.
    pub(crate) fn write(path: &Path, written: u64, missing: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if crate::files::is_no_space(&source) {
                Self::NoSpace {
                    path: path.to_owned(),
                    written,
                    missing,
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

    pub(crate) fn corrupt(
        path: &Path,
        location: impl Into<String>,
        expected: impl ToString,
        found: impl ToString,
    ) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            location: location.into(),
            expected: expected.to_string(),
            found: found.to_string(),
        }
    }
}
