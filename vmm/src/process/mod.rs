//! The VM process and how it is talked to.
//!
//! A VM is a process of its own, `spore-vm`. Its standard input is one end of a socket pair; on it
//! come requests, one at a time, with the files they are about, and go replies ([`message`]). When the other end is closed, by
//! whatever end its owner came to, the process exits and everything it had is gone with it; unless it was told to
//! outlive its owner (`keep`): then it waits for the next one.
//! [`server`] is the process, [`VmHandle`] its owner's handle.

mod born;
mod client;
mod error;
mod files;
mod fork;
pub(crate) mod keep;
pub mod message;
mod outlive;
mod owned;
mod program;
pub mod server;
mod stat;
mod wire;

pub(crate) use client::CONSOLE_LINES;
pub use client::VmHandle;
pub(crate) use error::Refused;
pub use error::{VmError, errno_in, serial};
pub use files::Overlays;
pub(crate) use fork::{FORK, FORK_PLAIN};
pub use keep::RecordError;
pub(crate) use message::Welcome;
pub use message::{BootSpec, Failure, FailureKind, LoadSpec, Saved, Split, VmStats, WakeSpec, Woke};
pub use owned::Killer;
pub(crate) use owned::Process;
pub use program::{confinement, program};
pub use stat::cpu_time;
pub(crate) use wire::Descriptors;
