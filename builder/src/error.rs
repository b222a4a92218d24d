//! Why there is no image: one error for the whole build, with the code that programs go by.

use std::fmt;

use spore_network::NetworkError;
use spore_snapshot::store::StoreError;
use spore_vmm::guest::GuestError;
use spore_vmm::kvm::KvmError;

use crate::base::BaseError;
use crate::host::HostError;
use crate::manifest::{ManifestError, ManifestFileError};
use crate::memory::{HostMemoryError, MiB};
use crate::plan::PlanError;

/// What kind of error it was, for programs. The texts are part of the API and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// `invalid_manifest`: the manifest was refused; the user has to change it.
    InvalidManifest,
    /// `unknown_base`: no base of this name is on this host.
    UnknownBase,
    /// `base_damaged`: a base is there but cannot be used; it has to be built again.
    BaseDamaged,
    /// `build_failed`: a step failed.
    BuildFailed,
    /// `build_oom`: a step ran out of the build VM's memory.
    BuildOom,
    /// `build_disk_full`: a step found no room on the guest's disk.
    BuildDiskFull,
    /// `cancelled`: the caller stopped it.
    Cancelled,
    /// `guest_unreachable`: the agent in a VM did not answer in time.
    GuestUnreachable,
    /// `internal`: this host is at fault.
    Internal,
}

impl ErrorCode {
    /// The code's text.
    pub const fn as_str(self) -> &'static str {
        match self {
            ErrorCode::InvalidManifest => "invalid_manifest",
            ErrorCode::UnknownBase => "unknown_base",
            ErrorCode::BaseDamaged => "base_damaged",
            ErrorCode::BuildFailed => "build_failed",
            ErrorCode::BuildOom => "build_oom",
            ErrorCode::BuildDiskFull => "build_disk_full",
            ErrorCode::Cancelled => "cancelled",
            ErrorCode::GuestUnreachable => "guest_unreachable",
            ErrorCode::Internal => "internal",
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no image, and why. Each prints as one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The manifest was refused.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest's file could not be read, or was refused.
    #[error(transparent)]
    ManifestFile(#[from] ManifestFileError),
    /// The base was not to be had.
    #[error(transparent)]
    Base(#[from] BaseError),
    /// The base cannot do what the manifest asks.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The host's memory, which limits what a manifest may ask for, is not known.
    #[error(transparent)]
    HostMemory(#[from] HostMemoryError),
    /// A step failed in the guest.
    #[error("steps[{step}] ({label}) failed: {reason}")]
    StepFailed {
        /// The step, from 0.
        step: usize,
        /// The step or the one of its commands that failed, on one line.
        label: String,
        /// How: an exit code, a signal, what the agent said.
        reason: String,
    },
    /// A step ran out of memory in the guest.
    #[error(
        "steps[{step}] ({label}) ran out of memory: the build VM had builderMemoryMB {memory}{}; \
         set builderMemoryMB higher{tail}", reached(*.reached_mb)
    )]
    OutOfMemory {
        /// The step, from 0.
        step: usize,
        /// The step or the one of its commands that was killed, on one line.
        label: String,
        /// What the build VM had.
        memory: MiB,
        /// What the process had that the kernel chose to kill, in MiB, if the kernel said so.
        reached_mb: Option<u64>,
        /// The last lines of the step's output, each after a line break; empty if there were none.
        tail: String,
    },
    /// A step found no room on the guest's disk.
    #[error(
        "steps[{step}] ({label}) found the disk full: it has diskMB {disk_mb}, of which {free_mb} MiB are free now; set \
         diskMB higher{tail}"
    )]
    DiskFull {
        /// The step, from 0.
        step: usize,
        /// The step or the one of its commands that failed, on one line.
        label: String,
        /// What the disk has, in MiB.
        disk_mb: u64,
        /// What of it is free after the step failed, in MiB: it may have cleaned up.
        free_mb: u64,
        /// The last lines of the step's output, each after a line break; empty if there were none.
        tail: String,
    },
    /// The caller stopped it.
    #[error("cancelled")]
    Cancelled,
    /// A step replaced what an image boots with.
    #[error(
        "the built image does not boot into its agent; a step must not replace /sbin/init or /usr/lib/spore/agent: {what}"
    )]
    NotIntact {
        /// Which files, and what became of them.
        what: String,
    },
    /// A guest could not be made or driven.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// KVM is not usable.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// This host is not ready.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A step needs a network that this host does not give.
    #[error("a build with network: {0}")]
    Network(#[from] NetworkError),
    /// Something of this host's.
    #[error("{0}")]
    Internal(String),
}

fn reached(mb: Option<u64>) -> String {
    mb.map_or_else(String::new, |mb| {
        format!(", of which the largest process had {mb}")
    })
}

impl BuildError {
    /// An error of this host's that has no kind of its own.
    pub(crate) fn internal(error: impl fmt::Display) -> Self {
        BuildError::Internal(error.to_string())
    }

    /// The code for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            BuildError::Manifest(_) | BuildError::ManifestFile(_) | BuildError::Plan(_) => {
                ErrorCode::InvalidManifest
            }
            BuildError::Base(BaseError::Unknown { .. }) => ErrorCode::UnknownBase,
            BuildError::Base(_) => ErrorCode::BaseDamaged,
            BuildError::StepFailed { .. } | BuildError::NotIntact { .. } => ErrorCode::BuildFailed,
            BuildError::OutOfMemory { .. } => ErrorCode::BuildOom,
            BuildError::DiskFull { .. } => ErrorCode::BuildDiskFull,
            BuildError::Cancelled => ErrorCode::Cancelled,
            BuildError::Guest(GuestError::Unreachable { .. }) => ErrorCode::GuestUnreachable,
            BuildError::HostMemory(_)
            | BuildError::Guest(_)
            | BuildError::Store(_)
            | BuildError::Kvm(_)
            | BuildError::Host(_)
            | BuildError::Network(_)
            | BuildError::Internal(_) => ErrorCode::Internal,
        }
    }

    /// The command line's exit code: 2 for what is refused before any VM starts because the user has to
    /// change something, 130 for what was cancelled (128 and SIGINT, as shells have it), else 1.
    pub fn exit_code(&self) -> u8 {
        match self.code() {
            ErrorCode::InvalidManifest | ErrorCode::UnknownBase => 2,
            ErrorCode::Cancelled => 130,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_names_the_field_to_raise() {
        let error = BuildError::OutOfMemory {
            step: 3,
            label: "run make".to_owned(),
            memory: MiB::new(256),
            reached_mb: Some(190),
            tail: "\n  cc x.c".to_owned(),
        };
        assert_eq!(
            error.to_string(),
            "steps[3] (run make) ran out of memory: the build VM had builderMemoryMB 256, of which the \
             largest process had 190; set builderMemoryMB higher\n  cc x.c"
        );
        assert_eq!((error.code().as_str(), error.exit_code()), ("build_oom", 1));
    }

    #[test]
    fn a_full_disk_names_the_field_to_raise() {
        let error = BuildError::DiskFull {
            step: 1,
            label: "apt-get install".to_owned(),
            disk_mb: 4096,
            free_mb: 2,
            tail: String::new(),
        };
        assert_eq!(
            error.to_string(),
            "steps[1] (apt-get install) found the disk full: it has diskMB 4096, of which 2 MiB are free now; set \
             diskMB higher"
        );
        assert_eq!((error.code().as_str(), error.exit_code()), ("build_disk_full", 1));
    }
}
