//! Images and their builds.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::ErrorBody;

/// What a build's steps reach.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildNetwork {
    /// Everything beyond the host where the host can give a network, nothing otherwise.
    #[default]
    Auto,
    /// Nothing.
    None,
    /// Everything beyond the host's uplink; a host that cannot give that builds nothing.
    Nat,
    /// These, likewise: networks (`198.51.100.0/24`), and hosts with or without a port (`example.com:443`). 1 to 64.
    Allow(Vec<String>),
}

/// An image to build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuildRequest {
    /// `{base, steps: [{type, args}], name?, builderMemoryMB?, runtimeMemoryMB?, diskMB?}`.
    #[schema(value_type = Object)]
    pub manifest: serde_json::Value,
    /// Run every step, whatever is known of earlier builds.
    #[serde(default)]
    pub no_cache: bool,
    /// How long one step may take, 1 to 86400; absent: 1800.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 86400)]
    pub step_timeout_seconds: Option<u32>,
    /// What the steps reach.
    #[serde(default)]
    pub network: BuildNetwork,
}

/// A build that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BuildAccepted {
    /// For `/v1/builds/{id}`.
    pub build_id: String,
}

/// How a build is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BuildState {
    /// It goes on.
    Running,
    /// There is an image.
    Succeeded,
    /// There is none; `error` says why.
    Failed,
}

/// A build.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Build {
    /// Its id.
    pub id: String,
    /// How it is.
    pub state: BuildState,
    /// The manifest's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// When it was begun.
    pub started_at: u64,
    /// How long it took, or has taken.
    pub took_ms: u64,
    /// What it came to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Why it came to nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// What a build tells, in order: as `data` of server-sent events whose `event` is the type. `image` or `error` is the
/// last.
// Fields of variants are renamed one by one: utoipa does not see `rename_all_fields`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum BuildMessage {
    /// It was begun.
    Build {
        /// For `/v1/builds/{id}`.
        #[serde(rename = "buildId")]
        build_id: String,
    },
    /// Where it is, for people; not a step.
    Phase {
        /// One of `waiting`, `booting`, `booted`, `sealed`, `finalizing`, `settled`, `checkpointed`, `noNetwork`,
        /// `disksCached`.
        phase: String,
        /// More, for people.
        message: String,
    },
    /// A step begins.
    StepStarted {
        /// Its number, from 0.
        step: usize,
        /// How many there are.
        of: usize,
        /// What it is, on one line.
        label: String,
    },
    /// A step need not run: its disk is known.
    StepCached {
        /// Its number, from 0.
        step: usize,
        /// How many there are.
        of: usize,
        /// What it is, on one line.
        label: String,
    },
    /// The running step wrote something. Bytes that are not UTF-8 are U+FFFD.
    Output {
        /// What.
        text: String,
    },
    /// A step succeeded.
    StepDone {
        /// Its number, from 0.
        step: usize,
        /// How long it took.
        #[serde(rename = "tookMs")]
        took_ms: u64,
    },
    /// There is an image.
    Image {
        /// It.
        image: Image,
    },
    /// There is none.
    Error {
        /// Why.
        error: ErrorBody,
    },
}

/// A checkpoint of an image: its disks, booted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ImageCheckpoint {
    /// Its id.
    pub id: String,
    /// The memory it holds: the least a fork of it has.
    #[serde(rename = "floorMB")]
    pub floor_mb: u32,
    /// vCPUs.
    pub cpus: u32,
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// Its id.
    pub id: String,
    /// The names that mean it now.
    pub names: Vec<String>,
    /// SHA-256 over what it was built from; SDKs compute the same.
    pub content_hash: String,
    /// BLAKE3 of the base's disk.
    pub base_digest: String,
    /// When it was built.
    pub created_at: u64,
    /// What its disk layers take on the host.
    pub size_bytes: u64,
    /// Memory of the VM it was built in.
    #[serde(rename = "builderMemoryMB")]
    pub builder_memory_mb: u32,
    /// What its disk was grown to; absent where it has its base's size.
    #[serde(rename = "diskMB", skip_serializing_if = "Option::is_none")]
    pub disk_mb: Option<u32>,
    /// Its checkpoints.
    pub checkpoints: Vec<ImageCheckpoint>,
}

/// All images, the newest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Images {
    /// Them.
    pub images: Vec<Image>,
}
