//! Errors.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, for programs. A code's text never changes; there may be new ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is malformed, or asks for what nobody can have. 400.
    InvalidRequest,
    /// The manifest was refused; `details` names the step and the field where there is one. 400.
    InvalidManifest,
    /// No base of this name is on this host. 400.
    UnknownBase,
    /// Less memory than what the checkpoint holds. No call says so today: less than the floor is the floor. 400.
    BelowFloor,
    /// More than this sandbox, or any, can have. 400.
    AboveMaximum,
    /// There is no such thing. 404.
    NotFound,
    /// No such call, or not with this method. 404, 405.
    NoSuchCall,
    /// It cannot be in the present state: in use, paused, of this name already, of this idempotency key already. 409.
    Conflict,
    /// The body, or what is asked for, is larger than is taken here. 413.
    TooLarge,
    /// The host has no room: `details` says what would fit. 503.
    InsufficientCapacity,
    /// The host takes no new sandboxes or builds. 503.
    Draining,
    /// Too many requests of this kind at once; try again in a moment. 429.
    Busy,
    /// A build's step failed. 422.
    BuildFailed,
    /// A build's step ran out of the build VM's memory: raise `builderMemoryMB`. 422.
    BuildOom,
    /// A build's step found the disk full: raise `diskMB`. 422.
    BuildDiskFull,
    /// A base cannot be used; it has to be built again. 500.
    BaseDamaged,
    /// It was stopped by whoever asked. 409.
    Cancelled,
    /// It took longer than was allowed. 504.
    TimedOut,
    /// The agent in the guest did not answer. 502.
    GuestUnreachable,
    /// The sandbox ended while it was worked with. 410.
    SandboxEnded,
    /// The guest itself refused: a file that is not there, a command that cannot be started. 422.
    GuestRefused,
    /// What is in the store is damaged or of another version. 500.
    Damaged,
    /// This host lacks what is needed, for example the privilege to make networks. 501.
    Unsupported,
    /// The daemon is at fault. 500.
    Internal,
}

impl ErrorCode {
    /// The HTTP status that goes with it.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest
            | Self::InvalidManifest
            | Self::UnknownBase
            | Self::BelowFloor
            | Self::AboveMaximum => 400,
            Self::NotFound | Self::NoSuchCall => 404,
            Self::Conflict | Self::Cancelled => 409,
            Self::SandboxEnded => 410,
            Self::TooLarge => 413,
            Self::BuildFailed | Self::BuildOom | Self::BuildDiskFull | Self::GuestRefused => 422,
            Self::Busy => 429,
            Self::BaseDamaged | Self::Damaged | Self::Internal => 500,
            Self::Unsupported => 501,
            Self::GuestUnreachable => 502,
            Self::InsufficientCapacity | Self::Draining => 503,
            Self::TimedOut => 504,
        }
    }
}

/// An error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ErrorBody {
    /// For programs.
    pub code: ErrorCode,
    /// For people: one line, or a few where a program's last words are in it.
    pub message: String,
    /// What there is more to say, by code.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    #[schema(value_type = Object, additional_properties = true)]
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// The body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ErrorReply {
    /// What went wrong.
    pub error: ErrorBody,
}
