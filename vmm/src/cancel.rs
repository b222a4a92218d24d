//! Stopping work from outside: another thread, a signal handler, a client that hung up.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::process::Killer;

/// What stops work. Clones stop the same.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cancelled: bool,
    /// End the VMs that the work waits for.
    running: BTreeMap<u64, Killer>,
    /// How many there have been.
    count: u64,
}

/// It was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

/// Why a VM is not watched over.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It is too late for that.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// Descriptors ran out.
    #[error("what ends a VM: {0}")]
    Host(#[from] io::Error),
}

/// While it lives, cancelling ends the VM it was made for.
#[derive(Debug)]
pub struct Watched<'a> {
    cancel: &'a Cancel,
    number: u64,
}

impl Cancel {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops what is under way, and whatever else it is given to. Does not wait for that: the work returns an error
    /// when it has cleaned up.
    pub fn cancel(&self) {
        let mut state = self.lock();
        state.cancelled = true;
        state.running.values().for_each(Killer::kill);
    }

    /// Whether it was.
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// # Errors
    /// If it was.
    pub fn check(&self) -> Result<(), Cancelled> {
        match self.is_cancelled() {
            true => Err(Cancelled),
            false => Ok(()),
        }
    }

    /// Watches over a VM that is of no use to anybody once the work is cancelled.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn watch(&self, killer: io::Result<Killer>) -> Result<Watched<'_>, WatchError> {
        let killer = killer?;
        let mut state = self.lock();
        if state.cancelled {
            return Err(Cancelled.into());
        }
        state.count += 1;
        let number = state.count;
        state.running.insert(number, killer);
        Ok(Watched { cancel: self, number })
    }
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.cancel.lock().running.remove(&self.number);
    }
}
