//! The thread that makes shells.
//!
//! It works at low priority in this sense: it makes none while anyone waits for a fork, and one at a time.

use std::sync::{Arc, Mutex, PoisonError};

use spore_snapshot::CheckpointId;

use super::{Inner, Shared, lock};
use crate::guest::{GuestError, Shell, Template};

pub(super) fn run(shared: &Shared) {
    let mut inner = shared.lock();
    while !inner.closing {
        let next = match inner.waiting {
            0 => inner.short_of_shells(shared),
            _ => None,
        };
        let Some((id, template)) = next else {
            inner = shared.wanted.wait(inner).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(inner);
        let made = make(shared, &template);
        inner = shared.lock();
        match (made, inner.entries.get_mut(&id)) {
            (Ok(shell), Some(entry)) if entry.is_of(&template) => entry.shells.push_back(shell),
            (Ok(shell), _) => {
                drop(inner);
                shared.reaper.shell(shell);
                inner = shared.lock();
            }
            (Err(error), entry) => {
                tracing::warn!(%error, checkpoint = %id, "no shell could be made");
                if let Some(entry) = entry {
                    entry.failing = true;
                }
            }
        }
    }
}

fn make(shared: &Shared, template: &Mutex<Template>) -> Result<Shell, GuestError> {
    let unarmed = lock(template).split_off(&shared.store)?;
    unarmed.arm()
}

impl Inner {
    /// The most recently used template that may have another shell.
    fn short_of_shells(&self, shared: &Shared) -> Option<(CheckpointId, Arc<Mutex<Template>>)> {
        let budget = shared.budget;
        let all: usize = self.entries.values().map(|entry| entry.shells.len()).sum();
        if all >= budget.shells {
            return None;
        }
        self.entries
            .iter()
            .filter(|(_, entry)| {
                entry.learned && !entry.failing && entry.shells.len() < budget.shells_per_template
            })
            .filter_map(|(id, entry)| Some((entry.used, *id, entry.template.clone()?)))
            .max_by_key(|&(used, ..)| used)
            .map(|(_, id, template)| (id, template))
    }
}
