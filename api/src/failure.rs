//! Why a command did not do what it should, and how that is told.

use std::borrow::Cow;

use serde_json::{Map, Value, json};
use spore_builder::base::{BaseError, RecipeError};
use spore_builder::host::HostError;
use spore_builder::import::ImportError;
use spore_builder::{BuildError, ErrorCode};
use spore_snapshot::store::StoreError;
use spore_vmm::guest::{GuestError, ResizeError};

use crate::bench::BenchError;
use crate::client::ClientError;
use crate::demo::DemoError;
use crate::scratch::ScratchError;
use crate::ui;

/// A failure of `spore` itself. Commands in guests have exit codes of their own.
#[derive(Debug)]
pub struct Failure {
    /// Stable code for programs.
    code: Cow<'static, str>,
    /// One line (or a few, when a console's last lines are in it) for people.
    message: String,
    /// What more there is for programs.
    details: Map<String, Value>,
    exit: u8,
}

/// What was asked cannot be: nothing was started.
const REFUSED: u8 = 2;
/// It was tried and failed.
const FAILED: u8 = 1;

impl Failure {
    /// What was asked cannot be; nothing was started.
    pub fn refused(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(code, message, REFUSED)
    }

    /// This host is at fault.
    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(ErrorCode::Internal.as_str(), error.to_string(), FAILED)
    }

    fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>, exit: u8) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            details: Map::new(),
            exit,
        }
    }

    /// The same with another exit code: `run` must not be confused with what it runs.
    pub fn with_exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// The same, and what can be done about it.
    pub fn with_advice(mut self, advice: &str) -> Self {
        self.message = format!("{}: {advice}", self.message);
        self
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.exit
    }

    /// Tells it on standard error.
    pub fn report(&self, as_json: bool) {
        if as_json {
            let mut error = json!({"code": self.code, "message": self.message});
            if !self.details.is_empty() {
                error["details"] = Value::Object(self.details.clone());
            }
            ui::tell(format_args!("{}", json!({"error": error})));
        } else {
            ui::tell(format_args!("spore: {}", self.message));
        }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::new(error.code().as_str(), error.to_string(), error.exit_code())
    }
}

impl From<BaseError> for Failure {
    fn from(error: BaseError) -> Self {
        match error {
            BaseError::Busy { .. } => Self::refused("conflict", error.to_string()),
            BaseError::Stays { .. } => Self::internal(error),
            other => BuildError::from(other).into(),
        }
    }
}

impl From<RecipeError> for Failure {
    fn from(error: RecipeError) -> Self {
        match error {
            RecipeError::NoScripts { .. } => Self::refused("not_found", error.to_string()),
            _ => Self::new("base_build_failed", error.to_string(), FAILED),
        }
    }
}

impl From<ImportError> for Failure {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Tool { .. } | ImportError::File { .. } => Self::internal(error),
            ImportError::Base(error) => error.into(),
            other => Self::refused("invalid_image", other.to_string()),
        }
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        Self::internal(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound { .. } => Self::refused("not_found", error.to_string()),
            StoreError::Ambiguous { .. } => Self::refused("conflict", error.to_string()),
            _ => Self::internal(error),
        }
    }
}

impl From<GuestError> for Failure {
    fn from(error: GuestError) -> Self {
        let code = match &error {
            GuestError::Unreachable { .. } => "guest_unreachable",
            GuestError::Resize(ResizeError::AboveMaximum { .. }) => {
                return Self::refused("invalid_request", error.to_string());
            }
            GuestError::Resize(_) => "insufficient_capacity",
            _ => ErrorCode::Internal.as_str(),
        };
        Self::new(code, error.to_string(), FAILED)
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Build(error) => error.into(),
            BenchError::Host(error) => error.into(),
            BenchError::Store(error) => error.into(),
            BenchError::Guest(error) => error.into(),
            BenchError::Refused(why) => Self::refused("invalid_request", why),
            BenchError::File { .. }
            | BenchError::WrongOrigin { .. }
            | BenchError::NoShells { .. }
            | BenchError::Wrong(_)
            | BenchError::Worker(_) => Self::internal(error),
        }
    }
}

impl From<DemoError> for Failure {
    fn from(error: DemoError) -> Self {
        match error {
            DemoError::Build(error) => error.into(),
            DemoError::Host(error) => error.into(),
            DemoError::Store(error) => error.into(),
            DemoError::Scratch(error) => error.into(),
            DemoError::Recipe(_) => Self::internal(error),
        }
    }
}

impl From<ScratchError> for Failure {
    fn from(error: ScratchError) -> Self {
        match error {
            ScratchError::Busy(_) | ScratchError::NotOurs(_) => Self::refused("conflict", error.to_string()),
            ScratchError::File { .. } => Self::internal(error),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Refused(refusal) => Self {
                exit: match (refusal.status, refusal.code.as_str()) {
                    // It was begun.
                    (_, "cancelled") => FAILED,
                    (400 | 404 | 409 | 413, _) | (_, "invalid_request") => REFUSED,
                    _ => FAILED,
                },
                code: refusal.code.into(),
                details: refusal.details,
                message,
            },
            ClientError::NoDaemon(_) | ClientError::Connect { .. } => {
                Self::new("daemon_unreachable", message, FAILED)
            }
            ClientError::BrokenOff(_) | ClientError::Wire(_) => Self::new("daemon_gone", message, FAILED),
            ClientError::Answer(_) | ClientError::Local(_) => Self::internal(message),
        }
    }
}
