//! Loading templates, once for all who ask.

use std::sync::{Arc, Mutex, PoisonError};

use spore_snapshot::CheckpointId;

use super::entry::Entry;
use super::{Inner, Shared, lock};
use crate::guest::{GuestError, Template};

impl Shared {
    /// The template of a checkpoint, loaded if it is not. Who comes while it is being loaded waits for it.
    pub(super) fn template(&self, id: &CheckpointId) -> Result<Arc<Mutex<Template>>, GuestError> {
        let mut inner = self.lock();
        loop {
            inner.uses += 1;
            let uses = inner.uses;
            match inner.entries.get_mut(id) {
                Some(entry) if entry.is_current() => {
                    entry.used = uses;
                    if let Some(template) = &entry.template {
                        return Ok(template.clone());
                    }
                    // Somebody loads it.
                    inner = self.loaded.wait(inner).unwrap_or_else(PoisonError::into_inner);
                }
                Some(_) => {
                    if let Some(entry) = inner.entries.remove(id) {
                        drop(inner);
                        entry.discard(&self.reaper);
                        inner = self.lock();
                    }
                }
                None => {
                    inner.entries.insert(*id, Entry::loading(uses));
                    break;
                }
            }
        }
        drop(inner);
        self.load(id)
    }

    /// Loads a template anew whose process died, as `error` says. Its shells stay, and what it had learned of waking.
    pub(super) fn reload(
        &self,
        id: &CheckpointId,
        dead: &Arc<Mutex<Template>>,
        error: &GuestError,
    ) -> Result<Arc<Mutex<Template>>, GuestError> {
        let mut inner = self.lock();
        match inner.entries.get_mut(id) {
            Some(entry) if entry.is_of(dead) => entry.template = None,
            // Somebody else was first.
            _ => {
                drop(inner);
                return self.template(id);
            }
        }
        drop(inner);
        if let Some(tell) = self.on_lost.get() {
            tell(id, error);
        }
        self.reaper.template(dead.clone());
        let template = self.load(id)?;
        let pages = lock(dead).wake_set().cloned();
        if let Some(pages) = pages
            && let Err(error) = lock(&template).know(pages)
        {
            // As when they could not be recorded: waking takes longer.
            tracing::info!(%error, "the pages that waking touches could not be handed on");
        }
        Ok(template)
    }

    /// Loads the template of an entry that has none. All who wait for it are told.
    fn load(&self, id: &CheckpointId) -> Result<Arc<Mutex<Template>>, GuestError> {
        let checkpoint = self.store.open_checkpoint(id).map_err(GuestError::from);
        let loaded = checkpoint.and_then(|checkpoint| Template::load(&self.store, &checkpoint));
        let mut inner = self.lock();
        let mut dropped = Vec::new();
        let result = match loaded {
            Ok(template) => {
                let (current, template) = (template.watch(), Arc::new(Mutex::new(template)));
                if let Some(entry) = inner.entries.get_mut(id) {
                    entry.loaded(template.clone(), current);
                }
                Ok(template)
            }
            Err(error) => {
                dropped.extend(inner.entries.remove(id));
                Err(error)
            }
        };
        dropped.extend(inner.surplus(self.budget.templates.max(1), id));
        drop(inner);
        self.loaded.notify_all();
        self.wanted.notify_all();
        for entry in dropped {
            entry.discard(&self.reaper);
        }
        result
    }
}

impl Inner {
    /// Takes out what is over the budget, the least recently used first, but not `keep`.
    fn surplus(&mut self, templates: usize, keep: &CheckpointId) -> Vec<Entry> {
        let mut surplus = Vec::new();
        while self.entries.len() > templates {
            let idle = self
                .entries
                .iter()
                .filter(|(id, entry)| *id != keep && entry.template.is_some());
            let Some(id) = idle.min_by_key(|(_, entry)| entry.used).map(|(id, _)| *id) else {
                break;
            };
            surplus.extend(self.entries.remove(&id));
        }
        surplus
    }
}
