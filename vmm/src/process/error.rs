//! Why a VM process could not be driven.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::message::Failure;
use crate::exit::Ended;

/// Why a VM could not be driven.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The program is not there or does not start.
    #[error("{program} does not start: {source}; it is installed beside `spore`, or named by SPORE_VM")]
    Spawn {
        /// Which.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It said no.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The VM ended when it should not have.
    #[error("{ended}{}", serial(.console))]
    Ended {
        /// How.
        ended: Ended,
        /// The last lines of its console.
        console: String,
    },
    /// The process died or was killed.
    #[error("the VM process is gone ({status}){}", serial(.console))]
    Gone {
        /// Its exit status.
        status: String,
        /// The last lines of the VM's console.
        console: String,
    },
    /// The control stream failed.
    #[error("the VM process cannot be talked to: {0}")]
    Control(#[source] io::Error),
}

/// Console lines as part of an error message.
pub fn serial(console: &str) -> String {
    if console.is_empty() {
        String::new()
    } else {
        format!("; the console's last lines:\n{console}")
    }
}

/// Why a process does not take a new owner.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error("it has an owner")]
    Owned,
    #[error("the token is another")]
    WrongToken,
    #[error("it did not answer within {0:?}")]
    Busy(Duration),
    #[error(transparent)]
    Vm(#[from] VmError),
}
