//! Why a benchmark could not be run.

use std::io;
use std::path::PathBuf;

use spore_builder::{BuildError, HostError};
use spore_protocol::ClientError;
use spore_snapshot::store::StoreError;
use spore_vmm::guest::GuestError;

/// Why a benchmark could not be run. One fork that fails is not among the reasons: it is counted.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Building the image, or booting it at another size.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The kernel.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A file of this host's.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What was measured is not what was to be measured.
    #[error("the arm `{arm}` got a fork by {got}: its figures would be another arm's")]
    WrongOrigin {
        /// What was to be measured.
        arm: &'static str,
        /// What was.
        got: &'static str,
    },
    /// Shells are not made.
    #[error("the pool has {have} of {wanted} shells and makes no more: what failed is in its log")]
    NoShells {
        /// There are.
        have: usize,
        /// There should be.
        wanted: usize,
    },
    /// What was asked cannot be measured.
    #[error("{0}")]
    Refused(String),
    /// Something is not as it should be.
    #[error("{0}")]
    Wrong(String),
    /// The program in the guest.
    #[error("in the guest: {0}")]
    Worker(String),
}

impl From<ClientError> for BenchError {
    fn from(error: ClientError) -> Self {
        Self::Guest(error.into())
    }
}
