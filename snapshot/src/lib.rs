//! Disk layers, checkpoints and the store that holds them.
//!
//! This crate knows bytes, not VMs: a disk is an array of bytes in layers, a checkpoint is a manifest, an
//! opaque state, a memory image and disks, all of one instant. It may not know KVM, devices, guests or HTTP.
//!
//! - [`disk`]: immutable [`disk::Layer`]s and the private copy-on-write [`disk::Overlay`] on top of them.
//! - [`checkpoint`]: the files of a checkpoint, how they are written and checked.
//! - [`store`]: where all of it lies: published whole or not at all, found by digest, id or name, swept up.
//!
//! Everything read from a file is untrusted: it is checked and bounded before it is used, and a refusal says
//! which file, where in it, what was expected and found, and what to do. The formats and the reasons for them
//! are in `docs/snapshot-format.md`.

pub mod checkpoint;
mod digest;
pub mod disk;
mod files;
mod ids;
pub mod store;

pub use digest::{Digest, ParseIdError};
pub use ids::{CheckpointId, ImageId, ImageName, RunId};
