//! Sandboxes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{ErrorBody, ExecRequest, ExecResult};

/// What a sandbox reaches. Never the host, other sandboxes, or link-local addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkPolicy {
    /// It has no network.
    #[default]
    None,
    /// Everything beyond the host's uplink.
    Nat,
    /// These: networks (`198.51.100.0/24`), and hosts with or without a port (`example.com:443`). 1 to 64.
    Allow(Vec<String>),
}

/// A sandbox to make, or several. Exactly one of `image` and `checkpoint` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CreateSandbox {
    /// Name or id of an image.
    pub image: Option<String>,
    /// Name or id of a checkpoint.
    pub checkpoint: Option<String>,
    /// Memory; less than the checkpoint's floor is raised to that. Absent: the floor.
    #[serde(rename = "memoryMB")]
    #[schema(minimum = 1, maximum = 1048576)]
    pub memory_mb: Option<u32>,
    /// vCPUs, 1 to 16; absent: those of the checkpoint. An image that was not booted with so many is booted once.
    #[schema(minimum = 1, maximum = 16)]
    pub cpus: Option<u8>,
    /// Disk; absent: the checkpoint's. Less than that is refused.
    #[serde(rename = "diskMB")]
    #[schema(minimum = 1, maximum = 1048576)]
    pub disk_mb: Option<u64>,
    /// Variables of every command.
    pub env: BTreeMap<String, String>,
    /// Whatever its owner wants to find again: at most 64 entries, 16 KiB in all.
    pub metadata: BTreeMap<String, String>,
    /// It is destroyed after this many seconds, 1 to 2592000; absent: never.
    #[schema(minimum = 1, maximum = 2592000)]
    pub timeout_seconds: Option<u32>,
    /// It is destroyed when nobody has used it for this many seconds: no command or copy went on, and it was not forked,
    /// checkpointed or changed. 0: never; absent: what the daemon was told.
    #[schema(maximum = 2592000)]
    pub idle_timeout_seconds: Option<u32>,
    /// What it reaches.
    pub network: NetworkPolicy,
    /// How many, 1 to 64; with this the answer is a list.
    #[schema(minimum = 1, maximum = 64)]
    pub count: Option<u32>,
    /// With `count`: whether some are kept when others failed. Absent: all or none.
    pub partial: bool,
    /// A command to run at once; its result is in the answer.
    pub exec: Option<ExecRequest>,
}

/// Where a sandbox came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    /// A shell that was ready.
    Shell,
    /// A fork of a checkpoint's template.
    Fork,
    /// A live fork of another sandbox.
    LiveFork,
}

/// What a sandbox is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// Its vCPUs run.
    Running,
    /// They do not; its memory stays.
    Paused,
}

/// A sandbox's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxMemory {
    /// The least it can have.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// What was asked for last.
    #[serde(rename = "requestedMB")]
    pub requested_mb: u32,
    /// What it has, as verified in the guest.
    #[serde(rename = "grantedMB")]
    pub granted_mb: u32,
    /// The most it can have.
    #[serde(rename = "maxMB")]
    pub max_mb: u32,
}

/// A sandbox's place on the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// What it reaches.
    pub policy: NetworkPolicy,
    /// Its IPv4 address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Its MAC address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}

/// How long its making took, in microseconds from when the daemon had read the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SandboxTimes {
    /// All machine state set (T1).
    pub released_us: u64,
    /// The guest's first act (T2).
    pub woke_us: u64,
    /// It is who it should be (T3).
    pub ready_us: u64,
}

/// What it has used, for accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Processor time of its VM process, in all.
    pub cpu_ms: u64,
    /// Memory of its VM process that is resident, shared pages included.
    pub rss_bytes: u64,
    /// Of that, what is its own: written by it, or by its guest, and shared with no other.
    pub unique_bytes: u64,
    /// Memory plugged beyond the floor.
    pub plugged_bytes: u64,
    /// What its disk's own overlay takes on the host.
    pub disk_bytes: u64,
    /// Bytes the guest received.
    pub network_received_bytes: u64,
    /// Bytes the guest sent.
    pub network_sent_bytes: u64,
}

/// A sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// What it is doing.
    pub state: SandboxState,
    /// The image it was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The checkpoint it was made of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    /// The sandbox it was forked from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Where it came from.
    pub origin: Origin,
    /// Its memory.
    pub memory: SandboxMemory,
    /// vCPUs.
    pub cpus: u32,
    /// Its network.
    pub network: Network,
    /// Its owner's words.
    pub metadata: BTreeMap<String, String>,
    /// When it was made.
    pub created_at: u64,
    /// When it will be destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<u64>,
    /// After how long without use it will be destroyed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u32>,
    /// When it was last used.
    pub last_used_at: u64,
    /// How long its making took.
    pub times: SandboxTimes,
    /// What it has used; only in the answer for one sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// A sandbox that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreatedSandbox {
    /// It.
    #[serde(flatten)]
    pub sandbox: Sandbox,
    /// What its first command came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecResult>,
}

/// Sandboxes that were made at once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Forked {
    /// Those that are there.
    pub sandboxes: Vec<CreatedSandbox>,
    /// Why the others are not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<ErrorBody>,
    /// How long the sandbox that was forked stood still.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_us: Option<u64>,
}

/// All sandboxes, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Sandboxes {
    /// Them.
    pub sandboxes: Vec<Sandbox>,
}

/// What is to change of a sandbox; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SandboxUpdate {
    /// Memory; answered when the guest shows it.
    #[serde(rename = "memoryMB")]
    #[schema(minimum = 1, maximum = 1048576)]
    pub memory_mb: Option<u32>,
    /// Seconds from now until it is destroyed; 0: never.
    #[schema(maximum = 2592000)]
    pub timeout_seconds: Option<u32>,
    /// After how many seconds without use it is destroyed; 0: never.
    #[schema(maximum = 2592000)]
    pub idle_timeout_seconds: Option<u32>,
    /// All of its metadata.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// How a running sandbox is forked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ForkRequest {
    /// How many, 1 to 64.
    #[schema(minimum = 1, maximum = 64)]
    pub count: u32,
    /// Memory of each; absent: what the parent has.
    #[serde(rename = "memoryMB")]
    #[schema(minimum = 1, maximum = 1048576)]
    pub memory_mb: Option<u32>,
    /// Variables of every command, over the parent's.
    pub env: BTreeMap<String, String>,
    /// Their owner's words.
    pub metadata: BTreeMap<String, String>,
    /// Each is destroyed after this many seconds; absent: never.
    #[schema(minimum = 1, maximum = 2592000)]
    pub timeout_seconds: Option<u32>,
    /// Each is destroyed after so many seconds without use; 0: never; absent: as the parent.
    #[schema(maximum = 2592000)]
    pub idle_timeout_seconds: Option<u32>,
    /// What each reaches; absent: what the parent does.
    pub network: Option<NetworkPolicy>,
    /// Whether some are kept when others failed. Absent: all or none.
    pub partial: bool,
}

impl Default for ForkRequest {
    fn default() -> Self {
        Self {
            count: 1,
            memory_mb: None,
            env: BTreeMap::new(),
            metadata: BTreeMap::new(),
            timeout_seconds: None,
            idle_timeout_seconds: None,
            network: None,
            partial: false,
        }
    }
}
