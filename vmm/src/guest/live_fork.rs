//! More of a guest that runs.

use std::time::Duration;

use spore_protocol::ClientError;
use spore_snapshot::store::{RunDir, Store};

use super::launch::{console_of, new_id, vsock_of};
use super::template::Unarmed;
use super::{Guest, GuestError, Someone};
use crate::clock::{Trace, monotonic_ns};
use crate::process::{VmError, VmHandle};
use crate::together::together;

/// How long the agent may take to its fork port.
const SLEEP_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take there when nobody waits for it any more.
const LATE: Duration = Duration::from_secs(10);
/// Most forks at once.
const MAX_FORKS: usize = 64;

/// How long a guest stood still, and what happened meanwhile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplitTimes {
    /// From its last act to its next (T5).
    pub paused: Duration,
    /// The steps, from the stop on.
    pub trace: Trace,
}

/// What a live fork came to.
pub struct LiveFork {
    /// The forks, each running or why it is not, in the order they were asked for.
    pub forks: Vec<Result<Guest, GuestError>>,
    /// How long the parent stood still.
    pub times: SplitTimes,
}

impl Guest {
    /// Stops the guest for a moment at its fork port and forks its process. The fork is a template of that instant.
    ///
    /// A guest whose agent cannot go there is not split: nobody could tell a copy of it that it is one.
    pub(super) fn split(&mut self) -> Result<(VmHandle, SplitTimes), GuestError> {
        self.vm.arm_fork_port()?;
        let mut on_its_way = false;
        self.split_at_port(&mut on_its_way).inspect_err(|_| {
            // Whatever it was: the agent is not to wait there for somebody who does not come.
            let late = if on_its_way { LATE } else { Duration::ZERO };
            if let Err(error) = self.vm.leave_fork_port(late) {
                tracing::info!(%error, "the fork port");
            }
        })
    }

    fn split_at_port(&mut self, on_its_way: &mut bool) -> Result<(VmHandle, SplitTimes), GuestError> {
        let mut agent = self.agent(SLEEP_LIMIT)?;
        let limited = agent.stream().set_read_timeout(Some(SLEEP_LIMIT));
        limited.map_err(|source| GuestError::Host {
            what: self.vm.vsock().to_owned(),
            source,
        })?;
        let asleep = agent.sleep();
        *on_its_way = !matches!(asleep, Err(ClientError::Refused(_)));
        // It goes to its port when we have hung up.
        drop(agent);
        match asleep {
            Ok(()) => {}
            Err(ClientError::Refused(why)) => return Err(GuestError::NoForkPort { why: why.to_string() }),
            Err(error) => return Err(self.explain(error)),
        }
        let next = self.next_overlay();
        let (copy, split) = self.vm.split(SLEEP_LIMIT, &next)?;
        let mut trace = Trace::default();
        trace.mark_at("stopped", split.stopped_ns);
        trace.extend(split.trace);
        trace.mark_at("running again", split.resumed_ns);
        let times = SplitTimes {
            paused: Duration::from_nanos(split.resumed_ns.saturating_sub(split.stopped_ns)),
            trace,
        };
        Ok((copy, times))
    }

    /// Forks the running guest, once for each identity. The forks have its memory, processes and disk of one
    /// instant, and none of its connections; each is somebody else before anyone can talk to it. The guest itself
    /// stands still for a moment, however many forks are made of it, and keeps everything.
    ///
    /// An identity without a host name gets the fork's id for one.
    ///
    /// # Errors
    /// [`GuestError`] when there are no forks at all; the guest runs on if it can. That some of them failed is told
    /// in their places.
    pub fn live_fork<W>(&mut self, store: &Store, identities: &[W]) -> Result<LiveFork, GuestError>
    where
        for<'a> &'a W: Into<Someone>,
    {
        let count = identities.len();
        if !(1..=MAX_FORKS).contains(&count) {
            return Err(GuestError::ForkCount {
                count,
                max: MAX_FORKS,
            });
        }
        // Until the forks pin them, nothing else keeps the frozen layers from being collected.
        let _hold = store.hold()?;
        let asked = monotonic_ns();
        let (mut copy, times) = self.split()?;
        // Forked one after the other, since each is a fork of the one copy; the rest is theirs alone.
        let made: Vec<_> = identities
            .iter()
            .map(|identity| {
                let who = identity.into();
                let made = who.check().and_then(|()| self.split_off(store, &mut copy));
                (who, made)
            })
            .collect();
        drop(copy);
        let woken = together(made, |(who, made)| made?.arm()?.claim(who, asked));
        let mut forks: Vec<Result<Guest, GuestError>> = woken
            .into_iter()
            .map(|woken| woken.map_err(VmError::host("no thread to wake a fork"))?)
            .collect();
        self.adopt_frozen(store)?;
        for fork in &mut forks {
            let pinned = match fork {
                Ok(guest) => {
                    guest.disk_layers.clone_from(&self.disk_layers);
                    guest.run.pin(&guest.disk_layers)
                }
                Err(_) => Ok(()),
            };
            if let Err(error) = pinned {
                *fork = Err(error.into());
            }
        }
        Ok(LiveFork { forks, times })
    }

    /// One fork of the copy.
    fn split_off(&self, store: &Store, copy: &mut VmHandle) -> Result<Unarmed, GuestError> {
        let run = RunDir::create(store, &new_id())?;
        let vm = copy
            .fork(&console_of(run.path()), &vsock_of(run.path()))
            .map_err(GuestError::of_copy)?;
        Unarmed::new(run, vm, self.disk_layers.clone())
    }
}
