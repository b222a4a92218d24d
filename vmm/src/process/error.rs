//! Why a VM process could not be driven.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::Errno;

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
    /// The host did not give its owner what it needs to ask, or to hold what it asked for. Its process is none the
    /// worse.
    #[error("{what}: {source}")]
    Host {
        /// What could not be had.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The control stream failed.
    #[error("the VM process cannot be talked to: {0}")]
    Control(#[source] io::Error),
}

impl VmError {
    /// What could not be had of the host.
    pub(crate) fn host<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Host {
            what,
            source: source.into(),
        }
    }

    /// Whether it is because there is no such process any more, or none that answers.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone { .. } | Self::Control(_))
    }
}

/// What the operating system said, if an error came of that.
pub fn errno_in(error: &(dyn Error + 'static)) -> Option<Errno> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(errno) = errno_of(error) {
            return Some(errno);
        }
        next = error.source();
    }
    None
}

fn errno_of(error: &(dyn Error + 'static)) -> Option<Errno> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return Errno::from_io_error(error);
    }
    if let Some(error) = error.downcast_ref::<kvm_ioctls::Error>() {
        return Some(Errno::from_raw_os_error(error.errno()));
    }
    error.downcast_ref().copied()
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
