//! Templates and shells kept ready, within a budget.
//!
//! Whoever wants a fork asks the [`Pool`]. It loads a checkpoint's template once and keeps it until others are wanted
//! more (least recently used goes first). For templates that are in use it keeps **shells**, forks armed one step short
//! of running; a thread of its own makes them, and makes none while anyone waits for a fork. A shell that is taken is a
//! pool hit ([`Origin::Shell`]), anything else a miss ([`Origin::Fork`]): the two are never confused.
//!
//! A template whose checkpoint was deleted or changed is dropped with its shells, at the latest when it is next asked
//! for. One whose process died is loaded again. Guests are destroyed off the path: [`Pool::destroy`] ends them at once, and a thread
//! waits for the kernel to take them apart.

mod entry;
mod load;
mod reaper;
mod refill;

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use spore_snapshot::CheckpointId;
use spore_snapshot::store::Store;

use crate::clock::monotonic_ns;
use crate::guest::{Guest, GuestError, Shell, Someone, Template, Unarmed};
use entry::Entry;
use reaper::Reaper;

/// What a pool may keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Templates at once; at least 1.
    pub templates: usize,
    /// Shells of one template.
    pub shells_per_template: usize,
    /// Shells of all templates together.
    pub shells: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            templates: 8,
            shells_per_template: 4,
            shells: 16,
        }
    }
}

/// Where a fork came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A shell that was ready: a pool hit.
    Shell,
    /// A fork of the template made then: a pool miss.
    Fork,
}

/// A running fork.
pub struct Forked {
    /// The guest.
    pub guest: Guest,
    /// Where it came from.
    pub origin: Origin,
}

/// What is in a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct PoolStats {
    /// Templates that are loaded.
    pub templates: usize,
    /// Shells that are ready.
    pub shells: usize,
}

/// What is to be done with a shell of a checkpoint when it was made.
pub type OnArmed = Box<dyn Fn(&CheckpointId, &mut Shell) + Send + Sync>;

/// Who is told that a template's process has died, and how.
pub type OnLost = Box<dyn Fn(&CheckpointId, &GuestError) + Send + Sync>;

/// Templates and shells kept ready.
pub struct Pool {
    shared: Arc<Shared>,
    refiller: Option<JoinHandle<()>>,
}

struct Shared {
    store: Store,
    budget: Budget,
    inner: Mutex<Inner>,
    /// Something for the refilling thread to look at.
    wanted: Condvar,
    /// A template was loaded, or could not be.
    loaded: Condvar,
    on_armed: OnceLock<OnArmed>,
    on_lost: OnceLock<OnLost>,
    reaper: Reaper,
}

#[derive(Default)]
struct Inner {
    entries: BTreeMap<CheckpointId, Entry>,
    /// Forks that are being made for somebody who waits.
    waiting: usize,
    /// When the last of them was done.
    waited: Option<Instant>,
    /// No shells are made: memory is short.
    frugal: bool,
    /// Counts uses; the entry with the least is the least recently used.
    uses: u64,
    closing: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a shell, and does with it what is to be done with every one.
    fn arm(&self, id: &CheckpointId, unarmed: Unarmed) -> Result<Shell, GuestError> {
        let mut shell = unarmed.arm()?;
        if let Some(then) = self.on_armed.get() {
            then(id, &mut shell);
        }
        Ok(shell)
    }

    /// Puts a shell to those of its template; ends it if there is no room for it any more: others make shells too.
    fn keep(&self, id: &CheckpointId, template: &Arc<Mutex<Template>>, shell: Shell) {
        let mut inner = self.lock();
        let entry = inner.entries.get(id).filter(|entry| entry.is_of(template));
        let room = entry.is_some_and(|entry| inner.has_room(entry, self.budget));
        match inner.entries.get_mut(id) {
            Some(entry) if room => entry.shells.push_back(shell),
            _ => {
                drop(inner);
                self.reaper.shell(shell);
            }
        }
    }

    /// Forks a template's process. If that has died, a new one takes its place, once, and the caller's.
    fn split_off(
        &self,
        id: &CheckpointId,
        template: &mut Arc<Mutex<Template>>,
    ) -> Result<Unarmed, GuestError> {
        let split = lock(template).split_off(&self.store);
        match split {
            Err(error) if is_gone(&error) => {
                *template = self.reload(id, template, &error)?;
                lock(template).split_off(&self.store)
            }
            split => split,
        }
    }
}

impl Inner {
    /// Whether there may be another shell of one of its entries.
    fn has_room(&self, entry: &Entry, budget: Budget) -> bool {
        !self.frugal && entry.shells.len() < budget.shells_per_template && self.shells() < budget.shells
    }

    /// Shells of all templates.
    fn shells(&self) -> usize {
        self.entries.values().map(|entry| entry.shells.len()).sum()
    }
}

/// Somebody waits for a fork; no shells are made meanwhile. See [`Pool::waiting`].
pub struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.lock().waiting += 1;
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.waiting -= 1;
        inner.waited = Some(Instant::now());
        let nobody_else = inner.waiting == 0;
        drop(inner);
        if nobody_else {
            self.0.wanted.notify_all();
        }
    }
}

impl Pool {
    /// A pool over a store.
    ///
    /// # Errors
    /// When its threads cannot be started.
    pub fn new(store: Store, budget: Budget) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            store,
            budget,
            inner: Mutex::default(),
            wanted: Condvar::new(),
            loaded: Condvar::new(),
            on_armed: OnceLock::new(),
            on_lost: OnceLock::new(),
            reaper: Reaper::start()?,
        });
        let refilled = shared.clone();
        let refiller = std::thread::Builder::new()
            .name("refill".into())
            .spawn(move || refill::run(&refilled))?;
        Ok(Self {
            shared,
            refiller: Some(refiller),
        })
    }

    /// Says what is to be done with every shell, off the path of whoever wants a fork. The first to say so is heard.
    pub fn on_armed(&self, what: OnArmed) {
        // Somebody was first.
        let _ = self.shared.on_armed.set(what);
    }

    /// Says who is told of templates that died, once of each, when it is seen. The first to say so is heard.
    pub fn on_lost(&self, who: OnLost) {
        // Somebody was first.
        let _ = self.shared.on_lost.set(who);
    }

    /// Drops all shells and makes no more, or makes them again. Says how many were dropped.
    pub fn set_frugal(&self, frugal: bool) -> usize {
        let mut dropped = Vec::new();
        let mut inner = self.shared.lock();
        inner.frugal = frugal;
        if frugal {
            for entry in inner.entries.values_mut() {
                dropped.extend(entry.shells.drain(..));
            }
        }
        drop(inner);
        self.shared.wanted.notify_all();
        let count = dropped.len();
        for shell in dropped {
            self.shared.reaper.shell(shell);
        }
        count
    }

    /// Drops all templates but those that are being loaded, with their shells. Says how many.
    pub fn drop_templates(&self) -> usize {
        let mut inner = self.shared.lock();
        let loaded: Vec<_> = inner
            .entries
            .iter()
            .filter(|(_, entry)| entry.template.is_some())
            .map(|(id, _)| *id)
            .collect();
        let dropped: Vec<_> = loaded.iter().filter_map(|id| inner.entries.remove(id)).collect();
        drop(inner);
        let count = dropped.len();
        for entry in dropped {
            entry.discard(&self.shared.reaper);
        }
        count
    }

    /// For who waits longer than for the fork itself: until this is dropped no shells are made, which would take the
    /// processor that the fork, and what is done with it first, could have.
    pub fn waiting(&self) -> Waiting<'_> {
        Waiting::new(&self.shared)
    }

    /// A running fork of a checkpoint, from a shell if there is one. Its times count from this call.
    ///
    /// # Errors
    /// [`GuestError`]. A shell whose process died is no error: there is another way to a fork.
    pub fn fork(&self, id: &CheckpointId, who: impl Into<Someone>) -> Result<Forked, GuestError> {
        let who = &who.into();
        let asked = monotonic_ns();
        who.check()?;
        let _waiting = Waiting::new(&self.shared);
        while let Some(shell) = self.take_shell(id) {
            match shell.claim(who, asked) {
                Err(GuestError::Copy(error)) if error.is_gone() => {}
                result => {
                    return result.map(|guest| Forked {
                        guest,
                        origin: Origin::Shell,
                    });
                }
            }
        }
        self.fork_template(id, who, asked)
    }

    /// A running fork of a checkpoint's template, even if there are shells.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn fork_without_shell(
        &self,
        id: &CheckpointId,
        who: impl Into<Someone>,
    ) -> Result<Forked, GuestError> {
        let who = &who.into();
        let asked = monotonic_ns();
        who.check()?;
        let _waiting = Waiting::new(&self.shared);
        self.fork_template(id, who, asked)
    }

    fn fork_template(&self, id: &CheckpointId, who: &Someone, asked: u64) -> Result<Forked, GuestError> {
        let mut template = self.shared.template(id)?;
        let unarmed = self.shared.split_off(id, &mut template)?;
        let mut guest = unarmed.arm()?.claim(who, asked)?;
        self.learn(id, &template, &mut guest);
        Ok(Forked {
            guest,
            origin: Origin::Fork,
        })
    }

    /// The first fork shows what all others touch when they wake.
    fn learn(&self, id: &CheckpointId, template: &Arc<Mutex<Template>>, guest: &mut Guest) {
        let mut locked = lock(template);
        if locked.wake_set().is_none()
            && let Err(error) = locked.learn(guest)
        {
            // Shells are made all the same; waking them takes longer.
            tracing::info!(%error, "the pages that waking touches could not be recorded");
        }
        drop(locked);
        let mut inner = self.shared.lock();
        if let Some(entry) = inner.entries.get_mut(id)
            && entry.is_of(template)
        {
            (entry.learned, entry.rests_until) = (true, None);
        }
    }

    /// Loads the template of a checkpoint and has `shells` shells of it ready when this returns, within the budget.
    /// Says how many there are.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn warm(&self, id: &CheckpointId, shells: usize) -> Result<usize, GuestError> {
        let template = self.shared.template(id)?;
        if lock(&template).wake_set().is_none() {
            // The first fork shows what the others will touch.
            let forked = self.fork_without_shell(id, Someone::default())?;
            self.destroy(forked.guest);
        }
        // If its process had died, the fork was of another.
        let mut template = self.shared.template(id)?;
        loop {
            {
                let inner = self.shared.lock();
                let entry = inner.entries.get(id).filter(|entry| entry.is_of(&template));
                let have = entry.map_or(0, |entry| entry.shells.len());
                let wanted = entry.filter(|entry| have < shells && inner.has_room(entry, self.shared.budget));
                if wanted.is_none() {
                    return Ok(have);
                }
            }
            let unarmed = self.shared.split_off(id, &mut template)?;
            let shell = self.shared.arm(id, unarmed)?;
            self.shared.keep(id, &template, shell);
        }
    }

    /// Ends a guest at once. The kernel takes it apart in the background.
    pub fn destroy(&self, guest: Guest) {
        self.shared.reaper.guest(guest);
    }

    /// Waits until everything that was to be destroyed is gone.
    pub fn settle(&self) {
        self.shared.reaper.settle();
    }

    /// Drops a checkpoint's template and shells, if there are any. Forks that run go on.
    pub fn forget(&self, id: &CheckpointId) {
        let entry = self.shared.lock().entries.remove(id);
        if let Some(entry) = entry {
            entry.discard(&self.shared.reaper);
        }
    }

    /// What is in it now.
    pub fn stats(&self) -> PoolStats {
        let inner = self.shared.lock();
        PoolStats {
            templates: inner
                .entries
                .values()
                .filter(|entry| entry.template.is_some())
                .count(),
            shells: inner.shells(),
        }
    }

    /// The process of a checkpoint's template, if it is loaded.
    pub fn template_pid(&self, id: &CheckpointId) -> Option<u32> {
        let template = self.shared.lock().entries.get(id)?.template.clone()?;
        Some(lock(&template).pid())
    }

    fn take_shell(&self, id: &CheckpointId) -> Option<Shell> {
        let mut inner = self.shared.lock();
        inner.uses += 1;
        let uses = inner.uses;
        let entry = inner.entries.get_mut(id)?;
        entry.used = uses;
        if !entry.is_current() {
            let entry = inner.entries.remove(id)?;
            drop(inner);
            entry.discard(&self.shared.reaper);
            return None;
        }
        entry.shells.pop_front()
    }
}

/// Whether a template's process is no more.
fn is_gone(error: &GuestError) -> bool {
    matches!(error, GuestError::Vm(error) if error.is_gone())
}

fn lock(template: &Mutex<Template>) -> MutexGuard<'_, Template> {
    template.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Pool {
    fn drop(&mut self) {
        let entries = {
            let mut inner = self.shared.lock();
            inner.closing = true;
            std::mem::take(&mut inner.entries)
        };
        self.shared.wanted.notify_all();
        for entry in entries.into_values() {
            entry.discard(&self.shared.reaper);
        }
        if let Some(refiller) = self.refiller.take() {
            // It does not panic; if it did, it refills no more.
            let _ = refiller.join();
        }
        self.shared.reaper.settle();
    }
}
