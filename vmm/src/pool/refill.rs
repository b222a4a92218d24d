//! The thread that makes shells.
//!
//! It works at low priority in this sense: it makes none while anyone waits for a fork, and one at a time. Now and
//! then it looks for templates whose checkpoints are no more, and drops them with their shells.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spore_snapshot::CheckpointId;

use super::entry::Entry;
use super::{Inner, Shared, is_gone, lock};
use crate::guest::{GuestError, Shell, Template};

/// How long a deleted checkpoint's shells may stay when nobody asks for anything, and how long a template rests of
/// which no shell could be made.
const LOOK: Duration = Duration::from_secs(5);

/// How long after a fork the processors are left to whoever asked for it: to send its answer, or its first command.
const REST: Duration = Duration::from_millis(3);

pub(super) fn run(shared: &Shared) {
    let mut inner = shared.lock();
    while !inner.closing {
        let stale = inner.take_stale();
        if !stale.is_empty() {
            drop(inner);
            for entry in stale {
                entry.discard(&shared.reaper);
            }
            inner = shared.lock();
            continue;
        }
        let rest = inner.rest();
        let next = match inner.waiting {
            0 if !inner.frugal && rest.is_zero() => inner.short_of_shells(shared),
            _ => None,
        };
        let Some((id, mut template)) = next else {
            let limit = if rest.is_zero() { LOOK } else { rest };
            let waited = shared.wanted.wait_timeout(inner, limit);
            (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(inner);
        let made = make(shared, &id, &mut template);
        match made {
            Ok(shell) => {
                shared.keep(&id, &template, shell);
                inner = shared.lock();
            }
            Err(error) => {
                tracing::warn!(%error, checkpoint = %id, "no shell could be made");
                inner = shared.lock();
                // One that was loaded meanwhile may be tried at once.
                if let Some(entry) = inner.entries.get_mut(&id)
                    && entry.is_of(&template)
                {
                    entry.rests_until = Some(Instant::now() + LOOK);
                }
            }
        }
    }
}

/// Makes a shell; of a new template, if this one's process has died.
fn make(
    shared: &Shared,
    id: &CheckpointId,
    template: &mut Arc<Mutex<Template>>,
) -> Result<Shell, GuestError> {
    let split = lock(template).split_off(&shared.store);
    let unarmed = match split {
        Err(error) if is_gone(&error) => {
            *template = shared.reload(id, template)?;
            lock(template).split_off(&shared.store)?
        }
        split => split?,
    };
    shared.arm(id, unarmed)
}

impl Inner {
    /// Takes out the entries whose checkpoint's files are gone or changed.
    fn take_stale(&mut self) -> Vec<Entry> {
        let stale = self.entries.iter().filter(|(_, entry)| !entry.is_current());
        let stale: Vec<_> = stale.map(|(id, _)| *id).collect();
        stale.iter().filter_map(|id| self.entries.remove(id)).collect()
    }

    /// How long it is still to be left to whoever had a fork just now.
    fn rest(&self) -> Duration {
        let since = self.waited.map(|waited| waited.elapsed());
        since.map_or(Duration::ZERO, |since| REST.saturating_sub(since))
    }

    /// The most recently used template that may have another shell.
    fn short_of_shells(&self, shared: &Shared) -> Option<(CheckpointId, Arc<Mutex<Template>>)> {
        let budget = shared.budget;
        if self.shells() >= budget.shells {
            return None;
        }
        self.entries
            .iter()
            .filter(|(_, entry)| entry.may_have_shells() && entry.shells.len() < budget.shells_per_template)
            .filter_map(|(id, entry)| Some((entry.used, *id, entry.template.clone()?)))
            .max_by_key(|&(used, ..)| used)
            .map(|(_, id, template)| (id, template))
    }
}
