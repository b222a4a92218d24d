//! The block device (virtio 1.2, 5.2).
//!
//! [`Block`] turns a driver's requests into calls on a [`BlockBackend`], one at a time and through a
//! bounded bounce buffer. It may not know what is behind the backend: files, overlays, layers and
//! their formats are the VMM's.
//!
//! - [`request`]: bytes from the guest become a typed request or a refusal.
//! - [`backend`]: what a disk must be able to do.
//! - [`config`]: the configuration space.
//! - [`device`]: the device model, and what carries a request out.

pub mod backend;
pub mod config;
pub mod device;
pub mod request;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use backend::{BlockBackend, MemoryBackend};
pub use device::{Access, Block, BlockId, BlockState, CapacityMismatch, LongBlockId, RestoreError};

/// Bytes of a sector, the unit of the protocol whatever the block size (virtio 1.2, 5.2.6).
pub const SECTOR: u64 = 512;
