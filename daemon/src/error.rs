//! Why a call was not done, as its caller hears it.

use serde_json::{Map, Value};
use spore_builder::BuildError;
use spore_builder::host::HostError;
use spore_network::NetworkError;
use spore_protocol::ClientError;
use spore_snapshot::store::StoreError;
use spore_types::{ErrorBody, ErrorCode};
use spore_vmm::cancel::Cancelled;
use spore_vmm::guest::{DiskError, GuestError, ResizeError};
use spore_vmm::process::VmError;

use crate::scarce::resource;

/// An error of the API.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", .0.message)]
pub struct Error(Box<ErrorBody>);

/// What calls come to.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// With nothing but a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(Box::new(ErrorBody {
            code,
            message: message.into(),
            details: Map::new(),
        }))
    }

    /// What was asked cannot be.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }

    /// There is no such thing.
    pub fn not_found(what: &str, id: &str) -> Self {
        // What a stranger wrote is not repeated at any length.
        let short: String = id.chars().take(80).collect();
        Self::new(ErrorCode::NotFound, format!("there is no {what} {short:?}"))
    }

    /// The daemon is at fault.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Internal, error.to_string())
    }

    /// The same; or that the host has no room, if that was the cause.
    fn of_host(code: ErrorCode, error: &(dyn std::error::Error + 'static)) -> Self {
        match resource(error) {
            Some(resource) => {
                Self::new(ErrorCode::InsufficientCapacity, error.to_string()).with("resource", resource)
            }
            None => Self::new(code, error.to_string()),
        }
    }

    /// With a detail more.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.details.insert(key.to_owned(), value.into());
        self
    }

    /// Its code.
    pub fn code(&self) -> ErrorCode {
        self.0.code
    }

    /// What is sent.
    pub fn into_body(self) -> ErrorBody {
        *self.0
    }

    /// What is sent.
    pub fn body(&self) -> &ErrorBody {
        &self.0
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NotFound { .. } => ErrorCode::NotFound,
            StoreError::Ambiguous { .. } => ErrorCode::Conflict,
            StoreError::Busy => ErrorCode::Busy,
            StoreError::Checkpoint(_) | StoreError::BadRecord { .. } | StoreError::Newer { .. } => {
                ErrorCode::Damaged
            }
            _ => ErrorCode::Internal,
        };
        Self::of_host(code, &error)
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::of_host(ErrorCode::Internal, &error)
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        let code = match &error {
            NetworkError::System { .. } => ErrorCode::Internal,
            _ => ErrorCode::Unsupported,
        };
        Self::of_host(code, &error)
    }
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Store(error) => error.into(),
            error => Self::internal(error),
        }
    }
}

impl From<BuildError> for Error {
    fn from(error: BuildError) -> Self {
        use spore_builder::ErrorCode as Build;
        let code = match error.code() {
            Build::InvalidManifest => ErrorCode::InvalidManifest,
            Build::UnknownBase => ErrorCode::UnknownBase,
            Build::BaseDamaged => ErrorCode::BaseDamaged,
            Build::BuildFailed => ErrorCode::BuildFailed,
            Build::BuildOom => ErrorCode::BuildOom,
            Build::BuildDiskFull => ErrorCode::BuildDiskFull,
            Build::Cancelled => ErrorCode::Cancelled,
            Build::GuestUnreachable => ErrorCode::GuestUnreachable,
            _ => ErrorCode::Internal,
        };
        let body = Self::new(code, error.to_string());
        match error {
            BuildError::StepFailed { step, label, .. } => body.with("step", step).with("label", label),
            BuildError::OutOfMemory {
                step, label, memory, ..
            } => body
                .with("step", step)
                .with("label", label)
                .with("builderMemoryMB", memory.get()),
            BuildError::DiskFull {
                step,
                label,
                disk_mb,
                free_mb,
                ..
            } => body
                .with("step", step)
                .with("label", label)
                .with("diskMB", disk_mb)
                .with("freeMB", free_mb),
            BuildError::Network(error) => error.into(),
            BuildError::Store(error) => error.into(),
            // It was the build's VM, and no sandbox.
            BuildError::Guest(GuestError::Vm(VmError::Ended { .. } | VmError::Gone { .. })) => body,
            BuildError::Guest(error) if code == ErrorCode::Internal => error.into(),
            _ => body,
        }
    }
}

impl From<Cancelled> for Error {
    fn from(cancelled: Cancelled) -> Self {
        GuestError::from(cancelled).into()
    }
}

impl From<GuestError> for Error {
    fn from(error: GuestError) -> Self {
        let message = error.to_string();
        match error {
            GuestError::Vm(
                VmError::Spawn { .. } | VmError::Host { .. } | VmError::Control(_) | VmError::Failed(_),
            )
            | GuestError::Copy(_)
            | GuestError::Host { .. } => Self::of_host(ErrorCode::Internal, &error),
            GuestError::Store(error) => error.into(),
            GuestError::Agent(ClientError::Refused(_)) => Self::new(ErrorCode::GuestRefused, message),
            GuestError::Agent(_) | GuestError::Unreachable { .. } | GuestError::Identity { .. } => {
                Self::new(ErrorCode::GuestUnreachable, message)
            }
            GuestError::ForkCount { .. } | GuestError::CannotBe { .. } => Self::invalid(message),
            GuestError::NoForkPort { .. } => Self::new(ErrorCode::GuestUnreachable, message),
            GuestError::Checkpoint { .. } => Self::new(ErrorCode::Damaged, message),
            GuestError::Vm(VmError::Ended { .. } | VmError::Gone { .. }) => {
                Self::new(ErrorCode::SandboxEnded, message)
            }
            GuestError::Cancelled(_) => Self::new(ErrorCode::Cancelled, message),
            GuestError::Resize(error) => resize(&error),
            GuestError::Disk(error) => disk(&error),
        }
    }
}

fn resize(error: &ResizeError) -> Error {
    let message = error.to_string();
    match error {
        ResizeError::AboveMaximum { requested_mb, max_mb } => Error::new(ErrorCode::AboveMaximum, message)
            .with("requestedMB", *requested_mb)
            .with("maxMB", *max_mb),
        ResizeError::Cancelled(short) => {
            Error::new(ErrorCode::Cancelled, message).with("grantedMB", short.granted_mb)
        }
        ResizeError::GrewShort(short) | ResizeError::ShrankShort(short) | ResizeError::NotOnline(short) => {
            Error::new(ErrorCode::InsufficientCapacity, message)
                .with("requestedMB", short.requested_mb)
                .with("grantedMB", short.granted_mb)
                .with("memTotalMB", short.mem_total_mb)
        }
    }
}

fn disk(error: &DiskError) -> Error {
    let code = match error {
        DiskError::Smaller { .. } | DiskError::AboveMaximum { .. } => ErrorCode::InvalidRequest,
        _ => ErrorCode::InsufficientCapacity,
    };
    Error::new(code, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_found_the_disk_full_names_the_field_to_raise() {
        let error = Error::from(BuildError::DiskFull {
            step: 2,
            label: "run make".to_owned(),
            disk_mb: 512,
            free_mb: 3,
            tail: String::new(),
        });
        assert_eq!(error.code(), ErrorCode::BuildDiskFull);
        let details = &error.body().details;
        assert_eq!(
            (&details["step"], &details["diskMB"], &details["freeMB"]),
            (&2.into(), &512.into(), &3.into())
        );
    }
}
