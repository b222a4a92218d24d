//! The VM process and how it is talked to.
//!
//! A VM is a process of its own, `spore-vm`. Its standard input is one end of a socket pair; on it
//! come requests, one at a time, and go replies ([`message`]). When the other end is closed, by
//! whatever end its owner came to, the process exits and everything it had is gone with it.
//! [`server`] is the process, [`client`] its owner's handle.

pub mod client;
pub mod message;
pub mod server;

pub use client::{VmError, VmHandle};
pub use message::{BootSpec, Failure, FailureKind, RestoreSpec, Saved, VmStats, Woke};
