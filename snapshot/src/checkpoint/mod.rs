//! The checkpoint format: a VM at rest, as a directory of three files.
//!
//! | file | |
//! |---|---|
//! | `manifest.json` | what this is, what it needs, and the digest of everything else; its own digest is the directory's name |
//! | `state` | vCPU and device state: bytes that this crate does not interpret |
//! | `memory` | guest memory, sparse: a page of zeroes is a hole; every page at its offset, so the file maps directly |
//!
//! Disk layers are referred to by digest and lie elsewhere in the store, shared.
//!
//! What one build writes another may not read: [`manifest::FORMAT_VERSION`] goes up with every change that an
//! older build would misread, and a checkpoint of another version is refused. Checkpoints are made from images
//! in minutes; they are not archives.

mod error;
pub mod manifest;
mod memory;
mod pages;
mod state;

pub use error::CheckpointError;
pub use manifest::{
    CheckpointKind, DiskRecord, FORMAT_VERSION, KernelRecord, Manifest, MemoryRecord, StateRecord,
};
pub use memory::{MemoryWriter, WrittenMemory};
pub use pages::{ChunkDigest, MEMORY_CHUNK, PAGE};
pub use state::{MAX_STATE, WrittenState};

pub(crate) use manifest::MAX_MANIFEST;
pub(crate) use memory::{check_length, verify_memory};
pub use state::{read_state, write_state, write_state_to};

/// Name of the manifest in a checkpoint's directory.
pub const MANIFEST_FILE: &str = "manifest.json";
/// Name of the state file in a checkpoint's directory.
pub const STATE_FILE: &str = "state";
/// Name of the memory file in a checkpoint's directory.
pub const MEMORY_FILE: &str = "memory";
