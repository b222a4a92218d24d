//! What is changed of a running sandbox.

use std::io::ErrorKind;
use std::sync::Arc;

use spore_types::{EventKind, SandboxState, SandboxUpdate};
use spore_vmm::cancel::Cancel;
use spore_vmm::guest::{Guest, GuestError, ResizeError};

use super::Engine;
use super::cgroup::Share;
use super::create::{AGENT, check_memory, check_metadata, expiry, idle_timeout};
use super::prepare::confine;
use super::sandbox::Sandbox;
use crate::error::{Error, Result};

impl Engine {
    /// Changes what is asked, memory first: if that fails, nothing else is changed. Cancelled, memory stays as it is then.
    ///
    /// # Errors
    /// `above_maximum`, `insufficient_capacity` with how far it got, `conflict` if it is paused.
    pub fn update(&self, id: &str, update: &SandboxUpdate, cancel: &Cancel) -> Result<Arc<Sandbox>> {
        let sandbox = self.sandbox(id)?;
        if let Some(metadata) = &update.metadata {
            check_metadata(metadata)?;
        }
        let expires_at = match update.timeout_seconds {
            Some(0) => Some(None),
            None => None,
            given => Some(expiry(given)?),
        };
        let idle_timeout = match update.idle_timeout_seconds {
            None => None,
            given => Some(idle_timeout(given, None)?),
        };
        let _use = sandbox.activity().begin();
        if let Some(memory_mb) = update.memory_mb {
            let resized = self.resize(&sandbox, memory_mb, cancel);
            // It may have come a part of the way.
            if resized.is_err() && sandbox.must_run().is_ok() {
                self.write_down(&sandbox);
            }
            resized?;
        }
        let mut changing = sandbox.changing();
        if let Some(metadata) = &update.metadata {
            changing.metadata.clone_from(metadata);
        }
        if let Some(expires_at) = expires_at {
            changing.expires_at = expires_at;
        }
        if let Some(idle_timeout) = idle_timeout {
            changing.idle_timeout_seconds = idle_timeout;
        }
        drop(changing);
        self.write_down(&sandbox);
        Ok(sandbox)
    }

    fn resize(&self, sandbox: &Sandbox, asked_mb: u32, cancel: &Cancel) -> Result<()> {
        check_memory("this sandbox can have", asked_mb, sandbox.fixed.max_mb)?;
        let wanted = asked_mb.max(sandbox.fixed.floor_mb);
        let mut work = sandbox.work();
        sandbox.must_run()?;
        cancel.check()?;
        let held = work.held()?;
        let before = held.promise.memory_mb();
        // Promised before it is given, and taken back only after it came back.
        if u64::from(wanted) > before {
            self.must_have_memory()?;
            held.promise.change(wanted)?;
        }
        let share = |memory_mb| Share {
            memory_mb,
            cpus: sandbox.fixed.cpus,
        };
        if u64::from(wanted) > before {
            self.relimit(&held.guest, share(wanted));
        }
        let agent = held.guest.agent(AGENT);
        let resized = agent.and_then(|mut agent| held.guest.resize_unless(&mut agent, wanted, cancel));
        held.awaited = false;
        let granted = match &resized {
            Ok(granted) => granted.granted_mb,
            Err(GuestError::Resize(
                ResizeError::GrewShort(short)
                | ResizeError::ShrankShort(short)
                | ResizeError::Cancelled(short)
                | ResizeError::NotOnline(short),
            )) => short.granted_mb,
            Err(_) => u32::try_from(before).unwrap_or(u32::MAX),
        };
        // Not more than was promised, so there is room.
        held.promise.change(granted)?;
        self.relimit(&held.guest, share(granted));
        let mut changing = sandbox.changing();
        changing.requested_mb = asked_mb;
        changing.granted_mb = granted;
        drop(changing);
        self.events.tell(EventKind::SandboxResized {
            sandbox: sandbox.id().to_owned(),
            granted_mb: granted,
        });
        resized.map(drop).map_err(Error::from)
    }

    fn relimit(&self, guest: &Guest, share: Share) {
        let limited = match self.groups.limit(guest.id(), share) {
            // It was made by a daemon that had its groups elsewhere.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                confine(&self.groups, guest.id(), guest.pid(), share)
            }
            limited => limited,
        };
        if let Err(error) = limited {
            tracing::warn!(sandbox = guest.id(), %error, "its limits stay as they were");
        }
    }

    /// Stops a sandbox's vCPUs; stopped is fine.
    ///
    /// # Errors
    /// `sandbox_ended`.
    pub fn pause(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.set_state(id, SandboxState::Paused)
    }

    /// Lets a sandbox's vCPUs run; running is fine.
    ///
    /// # Errors
    /// `sandbox_ended`.
    pub fn resume(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.set_state(id, SandboxState::Running)
    }

    fn set_state(&self, id: &str, wanted: SandboxState) -> Result<Arc<Sandbox>> {
        let sandbox = self.sandbox(id)?;
        let mut work = sandbox.work();
        let held = work.held()?;
        if sandbox.changing().state != wanted {
            let vm = held.guest.vm();
            match wanted {
                SandboxState::Paused => vm.pause(),
                SandboxState::Running => vm.resume(),
            }
            .map_err(GuestError::from)?;
            held.awaited = false;
            sandbox.changing().state = wanted;
        }
        drop(work);
        self.write_down(&sandbox);
        Ok(sandbox)
    }
}
