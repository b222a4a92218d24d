//! What a pool has of one checkpoint.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::reaper::Reaper;
use crate::guest::{Shell, Template, Watch};

/// A template, or that it is being loaded, and its shells.
pub(super) struct Entry {
    pub template: Option<Arc<Mutex<Template>>>,
    pub shells: VecDeque<Shell>,
    /// When it was last asked for, counted in uses of the pool.
    pub used: u64,
    watch: Option<Watch>,
    /// A fork has shown which pages waking touches: a shell made before would lack them.
    pub learned: bool,
    /// No shell could be made of it: none is tried before this, or until a fork of it has come to be.
    pub rests_until: Option<Instant>,
}

impl Entry {
    pub fn loading(used: u64) -> Self {
        Self {
            template: None,
            shells: VecDeque::new(),
            used,
            watch: None,
            learned: false,
            rests_until: None,
        }
    }

    pub fn loaded(&mut self, template: Arc<Mutex<Template>>, watch: Watch) {
        (self.template, self.watch) = (Some(template), Some(watch));
    }

    /// Whether the checkpoint's files are still those it was loaded from.
    pub fn is_current(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::is_current)
    }

    /// Whether shells are to be made of it now.
    pub fn may_have_shells(&self) -> bool {
        self.learned && self.rests_until.is_none_or(|until| until <= Instant::now())
    }

    /// Whether this is the template.
    pub fn is_of(&self, template: &Arc<Mutex<Template>>) -> bool {
        self.template
            .as_ref()
            .is_some_and(|ours| Arc::ptr_eq(ours, template))
    }

    /// Ends all of it, off the path.
    pub fn discard(self, reaper: &Reaper) {
        for shell in self.shells {
            reaper.shell(shell);
        }
        if let Some(template) = self.template {
            reaper.template(template);
        }
    }
}
