//! Stopping a build from outside: another thread, a signal handler's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spore_vmm::guest::Guest;
use spore_vmm::process::Killer;

use crate::error::BuildError;

/// What stops builds. Clones stop the same ones.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cancelled: bool,
    /// Ends the VM that the build waits for.
    running: Option<Killer>,
}

/// While it lives, cancelling ends the guest it was made for.
#[derive(Debug)]
pub(crate) struct Watched<'a>(&'a Cancel);

impl Cancel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the build that is under way, and every later one. Does not wait for that: the build returns
    /// [`BuildError::Cancelled`] when it has cleaned up.
    pub fn cancel(&self) {
        let mut state = self.lock();
        state.cancelled = true;
        if let Some(killer) = &state.running {
            killer.kill();
        }
    }

    /// Whether it was.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Watches over a guest.
    ///
    /// # Errors
    /// [`BuildError::Cancelled`] if it is too late for that.
    pub(crate) fn watch(&self, guest: &Guest) -> Result<Watched<'_>, BuildError> {
        let killer = guest.killer().map_err(BuildError::internal)?;
        let mut state = self.lock();
        if state.cancelled {
            return Err(BuildError::Cancelled);
        }
        state.running = Some(killer);
        Ok(Watched(self))
    }

    /// The error that an error is: that of a guest that was ended on purpose is none of its own.
    pub(crate) fn explain(&self, error: BuildError) -> BuildError {
        match self.is_cancelled() {
            true => BuildError::Cancelled,
            false => error,
        }
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.lock().running = None;
    }
}
