//! Checkpoints.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How a sandbox is checkpointed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CheckpointRequest {
    /// A name for it, unique among checkpoints: letters, digits, `.`, `_`, `-`, at most 64.
    #[schema(pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    pub name: Option<String>,
    /// Cold-boot the sandbox's disks at this size and checkpoint that: processes and memory are left behind. Absent:
    /// the sandbox as it runs, with the memory it has as the floor.
    #[serde(rename = "finalizeMemoryMB")]
    #[schema(minimum = 256, maximum = 16384)]
    pub finalize_memory_mb: Option<u32>,
}

/// What a checkpoint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointKind {
    /// An image; it goes with that.
    Image,
    /// A sandbox; it stays until it is deleted.
    Sandbox,
}

/// A checkpoint: a VM at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// Its id.
    pub id: String,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it is of.
    pub kind: CheckpointKind,
    /// The memory it holds: the least a fork of it has.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// The most a fork of it can have.
    #[serde(rename = "maxMemoryMB")]
    pub max_memory_mb: u32,
    /// vCPUs.
    pub cpus: u32,
    /// Bytes of memory that are not zero: what its memory file takes.
    pub memory_bytes: u64,
    /// Size of its disk.
    #[serde(rename = "diskMB")]
    pub disk_mb: u64,
    /// When it was taken.
    pub created_at: u64,
    /// How long the sandbox stood still for it; only in the answer to the call that took it, and not if it was booted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
}

/// All checkpoints, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Checkpoints {
    /// Them.
    pub checkpoints: Vec<Checkpoint>,
}
