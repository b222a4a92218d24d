//! What can go wrong with the store.

use std::io;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;
use crate::disk::DiskError;
use crate::{Digest, RunId};

/// Why an operation on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
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
    /// No room for a file of the store. What was written of it is removed.
    #[error(
        "no space for {path}: {missing} more bytes needed ({source}); free some space and try again",
        path = .path.display()
    )]
    NoSpace {
        /// The file that could not grow.
        path: PathBuf,
        /// Bytes that were still to come.
        missing: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// There is no such thing in the store.
    #[error("there is no {what} {id:?}")]
    NotFound {
        /// What was looked for ("image", "checkpoint", ...).
        what: &'static str,
        /// By which name.
        id: String,
    },
    /// The start of an id fits several.
    #[error("{text:?} could be any of {}; give more digits", .matches.join(", "))]
    Ambiguous {
        /// What was given.
        text: String,
        /// What it could mean.
        matches: Vec<String>,
    },
    /// A VM with this id is there already.
    #[error("a VM {0:?} is running already; choose another id")]
    RunExists(RunId),
    /// Something is being published, so it can't be known what is in use.
    #[error("the store is being written to; collect garbage later")]
    Busy,
    /// The whole directory is of a form that this build does not know.
    #[error("{root} is of a later Spore (version {found}; this one knows {known}): use that one, or another directory", root = .root.display())]
    Newer {
        /// The data directory.
        root: PathBuf,
        /// What it says.
        found: u32,
        /// The latest that is known here.
        known: u32,
    },
    /// A record that is not JSON of the right form.
    #[error("{path} is not a valid record: {why}; delete it, and make again what it was of", path = .path.display())]
    BadRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A layer is not what its name says.
    #[error(
        "{path} is damaged: its digest should be {expected} and is {found}; delete it and rebuild or fetch the image again",
        path = .path.display()
    )]
    LayerDigest {
        /// The file.
        path: PathBuf,
        /// Its name.
        expected: Digest,
        /// What its content has.
        found: Digest,
    },
    /// A disk or layer.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl StoreError {
    /// For `map_err`: the operating system refused to `action` the file at `path`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    /// For `map_err`: writing failed with `missing` bytes still to come.
    pub(crate) fn write(path: &Path, missing: u64) -> impl FnOnce(io::Error) -> Self {
        move |source| {
            if crate::files::is_no_space(&source) {
                Self::NoSpace {
                    path: path.to_owned(),
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

    pub(crate) fn not_found(what: &'static str, id: impl ToString) -> Self {
        Self::NotFound {
            what,
            id: id.to_string(),
        }
    }
}
