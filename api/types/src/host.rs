//! The host, as a scheduler sees it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Versions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Versions {
    /// Of the daemon.
    pub spore: String,
    /// Of the API.
    pub api: String,
    /// Of the host's kernel.
    pub kernel: String,
    /// BLAKE3 of the guest kernel's file; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_kernel: Option<String>,
}

/// Memory, and what of it is promised.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// The host's memory.
    #[serde(rename = "totalMB")]
    pub total_mb: u64,
    /// What its kernel would give now (MemAvailable).
    #[serde(rename = "availableMB")]
    pub available_mb: u64,
    /// Kept for the host itself.
    #[serde(rename = "reserveMB")]
    pub reserve_mb: u64,
    /// What may be promised in all: (total - reserve) times the overcommit.
    #[serde(rename = "limitMB")]
    pub limit_mb: u64,
    /// What is promised: the granted memory of all sandboxes and running builds.
    #[serde(rename = "committedMB")]
    pub committed_mb: u64,
    /// Of that, what is plugged beyond floors.
    #[serde(rename = "pluggedMB")]
    pub plugged_mb: u64,
    /// What VM processes have resident and do not share.
    #[serde(rename = "uniqueMB")]
    pub unique_mb: u64,
    /// By how much memory is promised more than once.
    pub overcommit: f64,
    /// The largest sandbox that would be admitted now; 0 while memory is short and nothing more can be given back.
    #[serde(rename = "largestFitMB")]
    pub largest_fit_mb: u64,
}

/// Pressure stall information of memory, in percent of the last 10 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pressure {
    /// Some task waited for memory.
    pub memory_some: f64,
    /// All tasks did.
    pub memory_full: f64,
    /// Some task waited for a processor.
    pub cpu_some: f64,
    /// Some task waited for input or output.
    pub io_some: f64,
}

/// The host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostInfo {
    /// Whether new sandboxes and builds are refused.
    pub draining: bool,
    /// Memory.
    pub memory: Capacity,
    /// Pressure; absent where the kernel does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Processors.
    pub cpus: u32,
    /// Load averages of 1, 5 and 15 minutes.
    pub load: [f64; 3],
    /// The data directory: its absolute path without symbolic links. U+FFFD is in it for bytes that are not UTF-8.
    pub data_dir: String,
    /// Size of the file system with the data directory.
    pub disk_total_bytes: u64,
    /// What is free of it.
    pub disk_free_bytes: u64,
    /// Sandboxes.
    pub sandboxes: u32,
    /// The most there may be.
    pub max_sandboxes: u32,
    /// Builds that are running.
    pub builds: u32,
    /// The most at once.
    pub max_builds: u32,
    /// Commands that run, in all sandboxes.
    pub execs: u32,
    /// The most at once.
    pub max_execs: u32,
    /// Ids of the images that are here.
    pub images: Vec<String>,
    /// Ids of the checkpoints that are here.
    pub checkpoints: Vec<String>,
    /// Templates that are loaded.
    pub templates: u32,
    /// Shells that are armed.
    pub shells: u32,
    /// The kind of KVM: `vmx`, `svm`, `pvm` (software, interprets guest kernels) or `unknown`.
    pub kvm: String,
    /// What VM processes are confined by, and what this host lacks for it.
    pub confinement: Vec<String>,
    /// Versions.
    pub versions: Versions,
    /// When the daemon was started.
    pub started_at: u64,
}

/// Whether the host takes new work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// Whether new sandboxes and builds are refused.
    pub draining: bool,
}
