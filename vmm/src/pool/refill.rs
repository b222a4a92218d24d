//! The thread that makes shells.
//!
//! It works at low priority in this sense: it makes none while anyone waits for a fork, and one at a time. Now and
//! then it looks for templates whose checkpoints are no more, and drops them with their shells.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use spore_snapshot::CheckpointId;

use super::entry::Entry;
use super::{Budget, Inner, Shared};
use crate::guest::Template;

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
            0 if rest.is_zero() => inner.short_of_shells(shared.budget),
            _ => None,
        };
        let Some((id, mut template)) = next else {
            let limit = if rest.is_zero() { LOOK } else { rest };
            let waited = shared.wanted.wait_timeout(inner, limit);
            (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(inner);
        let unarmed = shared.split_off(&id, &mut template);
        let made = unarmed.and_then(|unarmed| shared.arm(&id, unarmed));
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
    fn short_of_shells(&self, budget: Budget) -> Option<(CheckpointId, Arc<Mutex<Template>>)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.may_have_shells() && self.has_room(entry, budget))
            .filter_map(|(id, entry)| Some((entry.used, *id, entry.template.clone()?)))
            .max_by_key(|&(used, ..)| used)
            .map(|(_, id, template)| (id, template))
    }
}
