//! Why the demonstration could not go on.

use std::io;
use std::path::PathBuf;

use spore_builder::{BuildError, HostError};
use spore_snapshot::store::StoreError;

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
    /// Another demonstration is under way in the same data directory.
    #[error("another `spore demo` uses {}; wait for it, or choose another place with --data", .0.display())]
    Busy(PathBuf),
    /// Where it works there is something that is not its own.
    #[error("{} is not from a demo: remove it, or choose another place with --data", .0.display())]
    NotOurs(PathBuf),
    /// A file of this host's.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// What the demonstration itself is made of is not as it should be.
    #[error("the demo's own manifest: {0}")]
    Recipe(String),
}
