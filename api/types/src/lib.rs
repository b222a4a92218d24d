//! What the daemon and its clients say to each other: the bodies of `/v1`, with their OpenAPI schemas.
//!
//! JSON in camelCase; sizes of memory in MiB where a name ends in `MB`, all other sizes in bytes; times in whole
//! milliseconds where a name ends in `Ms`; instants in seconds since 1970-01-01 UTC where it ends in `At`. Requests
//! with a field that is not known are refused. Answers may get new fields: clients ignore what they do not know.
//!
//! Only data: whether an id means anything, or a size fits, is for the daemon to say.

pub mod checkpoint;
pub mod error;
pub mod event;
pub mod exec;
pub mod file;
pub mod host;
pub mod image;
pub mod sandbox;

pub use checkpoint::{Checkpoint, CheckpointKind, CheckpointRequest, Checkpoints};
pub use error::{ErrorBody, ErrorCode, ErrorReply};
pub use event::{Event, EventKind};
pub use exec::{Encoding, ExecControl, ExecReport, ExecRequest, ExecResult, ExecSignal, TtySize};
pub use file::{DirEntries, DirEntry, EntryKind, FileInfo};
pub use host::{Capacity, Drain, HostInfo, Pressure, Versions};
pub use image::{
    Build, BuildAccepted, BuildMessage, BuildNetwork, BuildRequest, BuildState, Image, ImageCheckpoint,
    Images,
};
pub use sandbox::{
    CreateSandbox, CreatedSandbox, ForkRequest, Forked, Network, NetworkPolicy, Origin, Sandbox,
    SandboxMemory, SandboxState, SandboxTimes, SandboxUpdate, Sandboxes, Usage,
};
