//! Live forks.

use std::collections::BTreeMap;
use std::time::Duration;

use spore_builder::Plugged;
use spore_types::{ForkRequest, Origin, SandboxState};
use spore_vmm::cancel::Cancel;
use spore_vmm::guest::{Guest, Someone};
use spore_vmm::machine::Identity;

use super::cgroup::Share;
use super::create::{
    AGENT, Made, check_count, check_env, check_memory, check_metadata, expiry, idle_timeout, policy,
};
use super::sandbox::{Changing, Fixed, Held, Sandbox, times};
use super::{Engine, now};
use crate::error::Result;

/// Forks of a running sandbox, and how long that stood still.
pub struct LiveForked {
    /// The forks, each made or with its reason.
    pub made: Vec<Result<Made>>,
    /// How long the parent stood still.
    pub paused: Duration,
}

impl Engine {
    /// Forks a running sandbox. Cancelled, forks that grow or shrink stop.
    ///
    /// # Errors
    /// What concerns all forks.
    pub fn fork(&self, id: &str, request: &ForkRequest, cancel: &Cancel) -> Result<LiveForked> {
        self.must_take_work()?;
        check_count(request.count)?;
        check_metadata(&request.metadata)?;
        check_env(&request.env)?;
        let expires_at = expiry(request.timeout_seconds)?;
        let parent = self.sandbox(id)?;
        let parents = parent.changing().idle_timeout_seconds;
        let idle_timeout_seconds = idle_timeout(request.idle_timeout_seconds, parents)?;
        let network = request.network.as_ref().unwrap_or(&parent.fixed.policy);
        let policy = policy(network)?;
        let max_mb = parent.fixed.max_mb;
        if let Some(asked) = request.memory_mb {
            check_memory("forks of this have", asked, max_mb)?;
        }
        let mut env: BTreeMap<_, _> = parent.fixed.env.clone();
        env.extend(request.env.clone());

        let plugs = (0..request.count)
            .map(|_| self.host.plug(&policy))
            .collect::<std::result::Result<Vec<_>, _>>()?;
        let people: Vec<Someone> = plugs
            .iter()
            .map(|plugged| {
                let identity = Identity {
                    env: env.clone(),
                    ..Identity::default()
                };
                Plugged::someone(plugged.as_ref(), identity)
            })
            .collect();
        // They are alike, but for their addresses.
        people.iter().try_for_each(Someone::check)?;
        let mut work = parent.work();
        parent.must_run()?;
        let held = work.held()?;
        // What it has now, which is what its forks begin with.
        let has_mb = parent.changing().granted_mb;
        let wanted_mb = request.memory_mb.unwrap_or(has_mb).max(parent.fixed.floor_mb);
        let promises = self.ledger.promise(wanted_mb.max(has_mb), request.count)?;
        let forked = held.guest.live_fork(self.host.store(), &people);
        held.awaited = false;
        drop(work);
        let forked = forked?;

        let fixed = |guest: &Guest| Fixed {
            id: guest.id().to_owned(),
            image: parent.fixed.image.clone(),
            checkpoint: parent.fixed.checkpoint.clone(),
            parent: Some(parent.id().to_owned()),
            origin: Origin::LiveFork,
            cpus: parent.fixed.cpus,
            floor_mb: parent.fixed.floor_mb,
            max_mb,
            policy: network.clone(),
            env: env.clone(),
            created_at: now(),
            times: times(guest.times()),
        };
        let made = forked.forks.into_iter().zip(plugs).zip(promises);
        let made = made.map(|((fork, plugged), mut promise)| {
            let mut guest = fork.inspect_err(|_| {
                self.metrics.fork_failures.inc();
            })?;
            let share = Share {
                memory_mb: wanted_mb.max(has_mb),
                cpus: parent.fixed.cpus,
            };
            cancel.check()?;
            self.welcome(&guest, Origin::LiveFork, share, parent.fixed.floor_mb);
            if wanted_mb != has_mb {
                let mut agent = guest.agent(AGENT)?;
                guest.resize_unless(&mut agent, wanted_mb, cancel)?;
            }
            promise.change(wanted_mb)?;
            let fixed = fixed(&guest);
            let held = Held::new(guest, plugged, promise);
            let changing = Changing {
                state: SandboxState::Running,
                ended: None,
                requested_mb: request.memory_mb.unwrap_or(wanted_mb),
                granted_mb: wanted_mb,
                metadata: request.metadata.clone(),
                expires_at,
                idle_timeout_seconds,
            };
            let sandbox = Sandbox::new(fixed, held, changing)?;
            self.keep(&sandbox);
            Ok(Made { sandbox, exec: None })
        });
        Ok(LiveForked {
            made: made.collect(),
            paused: forked.times.paused,
        })
    }
}
