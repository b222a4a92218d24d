//! Why the demonstration could not go on.

use spore_builder::{BuildError, HostError};
use spore_snapshot::store::StoreError;

use crate::scratch::ScratchError;

/// Why the demonstration could not go on. Each prints as one line.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A build.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The data directory, or the kernel.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory it works in.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
    /// What the demonstration itself is made of is not as it should be.
    #[error("the demo's own manifest: {0}")]
    Recipe(String),
}
