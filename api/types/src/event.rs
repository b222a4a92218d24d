//! What happens on the host, as `data` of server-sent events.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::Usage;

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "camelCase", rename_all_fields = "camelCase")]
#[non_exhaustive]
pub enum EventKind {
    /// The daemon was started.
    Started {
        /// Sandboxes of an earlier daemon that run on.
        adopted: u32,
    },
    /// A sandbox is there.
    SandboxCreated {
        /// Which.
        sandbox: String,
    },
    /// A sandbox has other memory.
    SandboxResized {
        /// Which.
        sandbox: String,
        /// What it has now.
        #[serde(rename = "grantedMB")]
        granted_mb: u32,
    },
    /// A sandbox is no more.
    SandboxEnded {
        /// Which.
        sandbox: String,
        /// Why: `deleted`, `expired`, or how its VM ended by itself.
        cause: String,
        /// What it had used, as far as it could still be seen when it ended by itself.
        usage: Usage,
    },
    /// Something of an earlier daemon could not be taken over.
    SandboxLost {
        /// Which.
        sandbox: String,
        /// Why.
        cause: String,
    },
    /// A build began.
    BuildStarted {
        /// Which.
        build: String,
    },
    /// A build ended.
    BuildEnded {
        /// Which.
        build: String,
        /// The image, if there is one.
        #[serde(skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        /// The error's code, if there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<crate::ErrorCode>,
        /// The first line of what it says.
        #[serde(skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
    },
    /// The process that forks of a checkpoint are copied from ended, or does not answer. Another is loaded when it is
    /// wanted; sandboxes run on.
    TemplateLost {
        /// Of which checkpoint.
        checkpoint: String,
        /// How it ended.
        cause: String,
    },
    /// A checkpoint is there.
    CheckpointCreated {
        /// Which.
        checkpoint: String,
    },
    /// A checkpoint is no more.
    CheckpointDeleted {
        /// Which.
        checkpoint: String,
    },
    /// An image is no more.
    ImageDeleted {
        /// Which.
        image: String,
    },
    /// The host takes new work, or none.
    Draining {
        /// None.
        draining: bool,
    },
    /// Memory is short: something was given back.
    MemoryPressure {
        /// What: `shells`, `templates` or `balloons`.
        dropped: String,
    },
    /// Memory stayed short when all that could be was given back, or is so no longer.
    MemoryShort {
        /// Whether new work is refused.
        refusing: bool,
    },
    /// Events are missing here: the client was too slow, or follows an earlier daemon.
    Missed {
        /// How many; 0 if that is not known.
        count: u64,
    },
}

/// An event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Rises from event to event, by one while the daemon runs: the id of the server-sent event, to resume by.
    pub id: u64,
    /// When, in milliseconds since 1970-01-01 UTC.
    pub time_ms: u64,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}
