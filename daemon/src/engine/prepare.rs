//! What a VM process needs to be a sandbox beside its machine: a control group, and to outlive the daemon.
//!
//! A shell has it before anyone asks for it, so that nobody waits for it.

use std::io;
use std::sync::Arc;

use spore_snapshot::store::Store;
use spore_types::Origin;
use spore_vmm::guest::Guest;
use spore_vmm::pool::OnArmed;

use super::Engine;
use super::cgroup::{Groups, Share};
use super::facts::FactsCache;
use super::record::Record;
use crate::error::Error;

/// What is done with every shell: it is limited to what its checkpoint has, its record is made, and it is kept.
pub(super) fn shells(store: Store, groups: Arc<Groups>, facts: Arc<FactsCache>) -> OnArmed {
    Box::new(move |checkpoint, shell| {
        let limited = facts.of(&store, checkpoint).and_then(|facts| {
            let share = Share {
                memory_mb: facts.floor_mb,
                cpus: facts.cpus,
            };
            confine(&groups, shell.id(), shell.pid(), share).map_err(Error::internal)
        });
        if let Err(error) = limited {
            tracing::warn!(%error, "a shell has no limits of its own");
        }
        // Either can be made up for when it is claimed, for a little more time.
        if let Err(error) = Record::of_nobody(shell.run_dir()) {
            tracing::info!(%error, "a shell has no record yet");
        }
        if let Err(error) = shell.keep() {
            tracing::info!(%error, "a shell is not kept yet");
        }
    })
}

impl Engine {
    /// A fork is ready: it is counted, and limited to its share, unless it was a shell of `floor_mb` that has just that
    /// already. A VM without limits is no reason to have none; it is said in the log.
    pub(super) fn welcome(&self, guest: &Guest, origin: Origin, share: Share, floor_mb: u32) {
        self.metrics.observe(origin, guest.times());
        let limited = match origin {
            Origin::Shell if share.memory_mb == floor_mb => Ok(()),
            Origin::Shell => self.groups.limit(guest.id(), share),
            // On the path of the call; shells are what avoids that.
            Origin::Fork | Origin::LiveFork => confine(&self.groups, guest.id(), guest.pid(), share),
        };
        if let Err(error) = limited {
            tracing::warn!(sandbox = guest.id(), %error, "it has no limits of its own");
        }
    }
}

/// Puts a process into its group, with what it may have.
pub(super) fn confine(groups: &Groups, id: &str, pid: u32, share: Share) -> io::Result<()> {
    groups.place(id, pid)?;
    groups.limit(id, share)
}
