//! Disks: immutable layers, and one private copy-on-write overlay per VM on top of them.
//!
//! A disk is an array of bytes, divided into clusters of [`CLUSTER`] bytes. A [`Layer`] says for every cluster
//! that it is absent (look below), data, or zero; it never changes. An [`Overlay`] is the writable top of a
//! stack of layers; sealed, it is a layer itself. In the file, cluster `i` lies at offset `i` × [`CLUSTER`]:
//! there is no mapping, and contiguous clusters of one layer are one read.
//!
//! ```
//! use spore_snapshot::disk::{Durability, Layer, Overlay};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let mut disk = Overlay::create(&dir.path().join("a"), 1 << 20, Vec::new(), Durability::Ephemeral)?;
//! disk.write_at(b"hello", 70_000)?;
//! let base = disk.seal()?;
//!
//! let mut fork = Overlay::create(&dir.path().join("b"), 1 << 20, vec![base], Durability::Ephemeral)?;
//! fork.write_at(b"J", 70_000)?;
//! let mut word = [0; 5];
//! fork.read_at(&mut word, 70_000)?;
//! assert_eq!(&word, b"Jello");
//! # Ok(())
//! # }
//! ```

mod cluster;
mod cluster_file;
mod error;
mod footer;
mod hash;
mod layer;
mod merge;
mod overlay;

pub use cluster::{CLUSTER, MAX_VIRTUAL_SIZE, SECTOR};
pub use error::DiskError;
pub use layer::{Layer, LayerKind};
pub use merge::merge;
pub use overlay::{Durability, Overlay};

pub(crate) use overlay::check_stack;
