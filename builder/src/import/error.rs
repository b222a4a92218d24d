//! Why a container image did not become a base.

use std::io;
use std::path::PathBuf;

use crate::base::BaseError;

/// Why a container image did not become a base. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// What was named is not an image that this program reads.
    #[error("{0}")]
    Source(String),
    /// The image says something that cannot be.
    #[error("the image's {what} {problem}")]
    Image {
        /// Which part of it.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Something in the image is not what its digest says.
    #[error("{what} is damaged: its digest is sha256:{found}, and the image says sha256:{expected}")]
    Digest {
        /// The blob or layer.
        what: String,
        /// What the image says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// An entry of a layer was refused.
    #[error("layer {layer}: entry {entry:?} is refused: {problem}")]
    Entry {
        /// The layer, from 0.
        layer: usize,
        /// The entry's name in the archive.
        entry: String,
        /// Why.
        problem: String,
    },
    /// A layer could not be read.
    #[error("layer {layer} cannot be read: {cause}")]
    Layer {
        /// The layer, from 0.
        layer: usize,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// There is more in the image than may be unpacked.
    #[error("the image has more than {limit}; if it is to be trusted, allow more with {option}")]
    TooMuch {
        /// Of what.
        limit: String,
        /// The option that sets the limit.
        option: &'static str,
    },
    /// The file system would be too small.
    #[error(
        "the image has {content_mib} MiB of files, too much for a disk of {disk_mib} MiB; set --disk-mb higher"
    )]
    DiskTooSmall {
        /// What the files need.
        content_mib: u64,
        /// What there would be.
        disk_mib: u64,
    },
    /// A tool of e2fsprogs failed.
    #[error("{tool}: {problem}")]
    Tool {
        /// Which.
        tool: &'static str,
        /// What it said.
        problem: String,
    },
    /// A file of this host.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        #[source]
        cause: io::Error,
    },
    /// The base was made and cannot be read.
    #[error(transparent)]
    Base(#[from] BaseError),
}

impl ImportError {
    /// An error about a file of this host, for `map_err`.
    pub(super) fn file(path: &std::path::Path) -> impl FnOnce(io::Error) -> ImportError + use<> {
        let path = path.to_owned();
        move |cause| ImportError::File { path, cause }
    }
}
