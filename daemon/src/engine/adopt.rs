//! Sandboxes that outlive their daemon.

use std::path::Path;
use std::sync::Arc;

use spore_builder::{Host, Plugged};
use spore_snapshot::RunId;
use spore_snapshot::store::{RunDir, Store};
use spore_types::{EventKind, SandboxState};
use spore_vmm::guest::{AdoptError, Guest, adoptable, discard};
use spore_vmm::process::VmStats;

use super::Engine;
use super::record::Record;
use super::sandbox::{Changing, Held, Sandbox};

/// What there is of an earlier daemon's sandboxes.
#[derive(Default)]
pub struct Found {
    guests: Vec<(Guest, Record)>,
    /// Those that could not be taken over, and why.
    lost: Vec<(String, String)>,
}

impl Found {
    /// Looks for them. Before the data directory is opened: that sweeps what is dead, and here it is to be told.
    pub fn look(data: &Path) -> Self {
        let store = Store::attach(data);
        let mut found = Self::default();
        // A directory that is not there yet has none.
        for id in adoptable(&store).unwrap_or_default() {
            match take_over(&store, &id) {
                Ok(Some(taken)) => found.guests.push(taken),
                Ok(None) => {}
                Err(why) => found.lost.push((id.as_str().to_owned(), why)),
            }
        }
        found
    }
}

/// `None`: it has an owner that is none of ours, a command line's for example, or it was no sandbox yet: a shell, or one
/// that nobody has been told of.
fn take_over(store: &Store, id: &RunId) -> Result<Option<(Guest, Record)>, String> {
    // First, since what is dead is swept.
    let record = Record::read(&RunDir::place(store, id)).transpose();
    let guest = match Guest::adopt(store, id) {
        Ok(guest) => guest,
        Err(AdoptError::Owned { .. }) => return Ok(None),
        Err(error) => {
            if !error.is_gone()
                && let Err(error) = discard(store, id)
            {
                tracing::warn!(%error, sandbox = %id.as_str(), "what cannot be adopted could not be ended");
            }
            return record.map_or(Ok(None), |_| Err(error.to_string()));
        }
    };
    // Without its record nobody knows whose it is; dropped, it ends.
    let Some(record) = record.transpose()? else {
        return Ok(None);
    };
    if record.fixed.id != guest.id() {
        return Err("its record is another sandbox's".to_owned());
    }
    Ok(Some((guest, record)))
}

/// What a VM says of itself counts where its record says something else: the daemon before may have ended between the
/// two. Memory that it was asked to take it may take at any time.
fn believe(changing: &mut Changing, stats: &VmStats) {
    changing.state = match stats.paused {
        true => SandboxState::Paused,
        false => SandboxState::Running,
    };
    let may_have = stats.boot_bytes + stats.requested_bytes.max(stats.plugged_bytes);
    let may_have_mb = u32::try_from(may_have >> 20).unwrap_or(u32::MAX);
    changing.granted_mb = changing.granted_mb.max(may_have_mb);
}

impl Engine {
    /// Takes over what was found, and tells of it.
    pub(super) fn adopt(&self, found: Found) {
        let mut adopted = 0;
        let mut lost = found.lost;
        for (mut guest, mut record) in found.guests {
            let id = record.fixed.id.clone();
            match guest.vm().stats() {
                Ok(stats) => believe(&mut record.changing, &stats),
                Err(error) => {
                    lost.push((id, error.to_string()));
                    continue;
                }
            }
            let plugged = match self.place_of(&mut guest) {
                Ok(plugged) => plugged,
                Err(error) => {
                    lost.push((id, format!("its place on the network: {error}")));
                    continue;
                }
            };
            let promise = self.ledger.acknowledge(record.changing.granted_mb);
            let held = Held::new(guest, plugged, promise);
            match Sandbox::new(record.fixed, held, record.changing) {
                Ok(sandbox) => {
                    self.map().insert(id, Arc::new(sandbox));
                    adopted += 1;
                }
                Err(error) => lost.push((id, error.to_string())),
            }
        }
        self.events.tell(EventKind::Started { adopted });
        for (sandbox, cause) in lost {
            tracing::warn!(sandbox, cause, "a sandbox of an earlier daemon is lost");
            self.events.tell(EventKind::SandboxLost { sandbox, cause });
        }
    }

    /// Takes over the place on the network that a guest was kept with.
    fn place_of(&self, guest: &mut Guest) -> crate::error::Result<Option<Plugged>> {
        let descriptors = guest.take_descriptors();
        if descriptors.is_empty() {
            return Ok(None);
        }
        Ok(Some(Plugged::adopt(&self.host.network()?, descriptors)?))
    }

    /// Writes down how a sandbox is now.
    pub(super) fn write_down(&self, sandbox: &Sandbox) {
        if let Err(error) = Record::of(sandbox).write(sandbox.run()) {
            // The next daemon will think of it as it was.
            tracing::warn!(sandbox = sandbox.id(), %error, "a change could not be written down");
        }
    }

    /// Makes a sandbox outlive the daemon. One that cannot ends with it, or with the next, as it says in the log.
    pub(super) fn keep(&self, sandbox: &Sandbox) {
        let mut work = sandbox.work();
        let Ok(held) = work.held() else { return };
        // Its place on the network is ours and would go with us, so the VM has it in keeping.
        let place = held
            .plugged
            .as_ref()
            .map(Plugged::descriptors)
            .unwrap_or_default();
        if let Err(error) = held.guest.keep_with(&place) {
            tracing::warn!(sandbox = sandbox.id(), %error, "it will end with this daemon");
            return;
        }
        // Last: what has a record has all that belongs to it.
        if let Err(error) = Record::of(sandbox).write_first(sandbox.run()) {
            tracing::warn!(sandbox = sandbox.id(), %error, "it cannot be written down and the next daemon will end it");
        }
    }

    /// The daemon goes, and leaves its sandboxes to the next.
    pub fn leave(&self) {
        let all = std::mem::take(&mut *self.map());
        for sandbox in all.into_values() {
            let held = sandbox.work().take();
            if let Some(held) = held {
                // One that is not kept ends, and its place with it.
                if let Some(plugged) = held.plugged.filter(|_| held.guest.is_kept()) {
                    plugged.release();
                }
                held.guest.release();
            }
        }
        self.pool.settle();
    }
}

/// The host of a data directory, and the sandboxes that an earlier daemon left in it.
pub(super) fn open(config: &crate::Config) -> crate::error::Result<(Host, Found)> {
    // Before anything in it is taken for ours.
    Store::check_version(&config.data)?;
    let found = Found::look(&config.data);
    let host = Host::open(&config.data, &config.cache, config.kernel.as_deref())?;
    Ok((host, found))
}
