//! From a manifest to an image.
//!
//! A **manifest** comes from a stranger. This crate turns its bytes into a typed [`manifest::Manifest`] or
//! into one line that names the field and the rule it broke, before anything boots; names what it would build
//! ([`hash`]); finds the **base** to start from ([`base`]); and lays out, step by step, what must happen in
//! the guest ([`plan`]), so that what drives the VM ([`build`](mod@build)) is a thin loop over [`plan::Action`]s.
//!
//! It may not know: HTTP, the command line's words, or how a VM works inside.

pub mod base;
pub mod build;
pub mod cancel;
pub mod defaults;
pub mod error;
pub mod hash;
pub mod host;
pub mod import;
pub mod manifest;
pub mod memory;
pub mod observe;
pub mod options;
pub mod plan;
pub mod plugged;

pub use build::{Built, Variant, build};
pub use cancel::Cancel;
pub use error::{BuildError, ErrorCode};
pub use host::{Host, HostError};
pub use manifest::{Limits, Manifest, ManifestError};
pub use memory::{HostMemory, MiB};
pub use options::Options;
pub use plan::Plan;
pub use plugged::Plugged;
