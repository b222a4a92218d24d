//! Sandboxes from images and checkpoints.

use std::collections::BTreeMap;
use std::sync::Arc;

use spore_builder::Plugged;
use spore_builder::build::{choose, missing, variant};
use spore_builder::observe::Silent;
use spore_protocol::fork_port;
use spore_snapshot::CheckpointId;
use spore_types::{CreateSandbox, ErrorCode, ExecResult, NetworkPolicy, Origin, SandboxState};
use spore_vmm::cancel::Cancel;
use spore_vmm::guest::{Guest, GuestError};
use spore_vmm::machine::Identity;
use spore_vmm::pool;
use spore_vmm::together::together;

use super::cgroup::Share;
use super::exec::Collected;
use super::facts::Facts;
use super::ledger::Promise;
use super::sandbox::{Changing, Fixed, Held, Sandbox, times};
use super::{Engine, now};
use crate::error::{Error, Result};

/// Most sandboxes of one call.
pub const MAX_COUNT: u32 = 64;
/// Most entries of metadata, and bytes of all of it.
const MAX_METADATA: (usize, usize) = (64, 16 * 1024);
/// The longest time limit of a sandbox, in seconds: 30 days.
const MAX_TIMEOUT: u32 = 2_592_000;
/// How long a ready fork's agent may take to answer.
pub(super) const AGENT: std::time::Duration = std::time::Duration::from_secs(60);

/// A sandbox that was made, not yet known to anybody. Dropped, it is ended.
pub struct Made {
    /// It.
    pub sandbox: Sandbox,
    /// What its first command came to.
    pub exec: Option<ExecResult>,
}

/// Sandboxes that are known now.
pub struct Admitted {
    /// They, with what their first commands came to.
    pub known: Vec<(Arc<Sandbox>, Option<ExecResult>)>,
    /// Why others are not there.
    pub failed: Vec<Error>,
}

/// What was asked for, checked.
struct Order {
    checkpoint: CheckpointId,
    facts: Facts,
    memory_mb: u32,
    policy: spore_network::Policy,
    image: Option<String>,
    exec: Option<Collected>,
    expires_at: Option<u64>,
    idle_timeout_seconds: Option<u32>,
}

/// # Errors
/// `invalid_request`.
pub(super) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    let bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    let (entries, most) = MAX_METADATA;
    if metadata.len() > entries || bytes > most {
        return Err(Error::invalid(format!(
            "metadata: {} entries of {bytes} bytes in all; at most {entries} of {most} are kept",
            metadata.len()
        )));
    }
    Ok(())
}

/// Before anything is made for it: a fork that cannot be told its environment is destroyed.
///
/// # Errors
/// `invalid_request`.
pub(super) fn check_env(env: &BTreeMap<String, String>) -> Result<()> {
    fork_port::check_env(env).map_err(|error| Error::invalid(error.to_string()))
}

/// # Errors
/// `invalid_request`.
pub(super) fn expiry(timeout_seconds: Option<u32>) -> Result<Option<u64>> {
    match timeout_seconds {
        None => Ok(None),
        Some(seconds @ 1..=MAX_TIMEOUT) => Ok(Some(now() + u64::from(seconds))),
        Some(seconds) => Err(Error::invalid(format!(
            "timeoutSeconds {seconds}: it must be 1 to {MAX_TIMEOUT}"
        ))),
    }
}

/// What is asked for, of which 0 is never, else `otherwise`.
///
/// # Errors
/// `invalid_request`.
pub(super) fn idle_timeout(asked: Option<u32>, otherwise: Option<u32>) -> Result<Option<u32>> {
    match asked {
        None => Ok(otherwise),
        Some(0) => Ok(None),
        Some(seconds @ 1..=MAX_TIMEOUT) => Ok(Some(seconds)),
        Some(seconds) => Err(Error::invalid(format!(
            "idleTimeoutSeconds {seconds}: it must be 0 to {MAX_TIMEOUT}"
        ))),
    }
}

/// # Errors
/// `invalid_request`.
pub(super) fn check_count(count: u32) -> Result<()> {
    match count {
        1..=MAX_COUNT => Ok(()),
        _ => Err(Error::invalid(format!(
            "count {count}: it must be 1 to {MAX_COUNT}"
        ))),
    }
}

/// Whether `whose` (the beginning of a sentence) can be so much memory, in MiB.
///
/// # Errors
/// `above_maximum`; `invalid_request` if it is nothing.
pub(super) fn check_memory(whose: &str, asked_mb: u32, max_mb: u32) -> Result<()> {
    if asked_mb == 0 {
        return Err(Error::invalid("memoryMB 0: it must be at least 1"));
    }
    if asked_mb <= max_mb {
        return Ok(());
    }
    let message = format!("memoryMB {asked_mb}: {whose} at most {max_mb} MiB");
    Err(Error::new(ErrorCode::AboveMaximum, message).with("maxMB", max_mb))
}

/// As the network has it.
///
/// # Errors
/// `invalid_request` with the entry that is none.
pub(super) fn policy(policy: &NetworkPolicy) -> Result<spore_network::Policy> {
    Ok(match policy {
        NetworkPolicy::None => spore_network::Policy::None,
        NetworkPolicy::Nat => spore_network::Policy::Nat,
        NetworkPolicy::Allow(entries) => {
            let list = spore_network::AllowList::try_from(entries.clone())
                .map_err(|error| Error::invalid(format!("network.allow: {error}")))?;
            spore_network::Policy::Allow(list)
        }
    })
}

impl Engine {
    /// Makes sandboxes; each is made or has its reason. Only what concerns all of them is an error of the call. Cancelled,
    /// what boots or grows for it stops.
    ///
    /// # Errors
    /// `invalid_request`, `not_found`, `above_maximum`, `insufficient_capacity`, `draining`, and others.
    pub fn create(&self, request: &CreateSandbox, cancel: &Cancel) -> Result<Vec<Result<Made>>> {
        self.must_take_work()?;
        let count = request.count.unwrap_or(1);
        check_count(count)?;
        check_metadata(&request.metadata)?;
        check_env(&request.env)?;
        let order = self.order(request, cancel)?;
        let promises = self.ledger.promise(order.memory_mb, count)?;
        let one = |promise| self.make(request, &order, promise, cancel);
        if count == 1 {
            return Ok(promises.into_iter().map(one).collect());
        }
        let made = together(promises, one).into_iter();
        Ok(made.map(|made| made?).collect())
    }

    fn order(&self, request: &CreateSandbox, cancel: &Cancel) -> Result<Order> {
        let expires_at = expiry(request.timeout_seconds)?;
        let otherwise = self.config.limits.idle_seconds;
        let idle_timeout_seconds = idle_timeout(request.idle_timeout_seconds, otherwise)?;
        let exec = request.exec.as_ref().map(Collected::new).transpose()?;
        let (checkpoint, image) = match (&request.image, &request.checkpoint) {
            (Some(image), None) => {
                let (checkpoint, id) = self.checkpoint_of_image(image, request, cancel)?;
                (checkpoint, Some(id))
            }
            (None, Some(checkpoint)) => (self.checkpoint_id(checkpoint)?, None),
            _ => return Err(Error::invalid("give either image or checkpoint")),
        };
        let facts = self.facts.of(self.host.store(), &checkpoint)?;
        if let Some(cpus) = request.cpus.filter(|cpus| u32::from(*cpus) != facts.cpus) {
            let message = format!("cpus {cpus}: the checkpoint has {}", facts.cpus);
            return Err(Error::invalid(message));
        }
        let asked = request.memory_mb.unwrap_or(facts.floor_mb);
        check_memory("forks of this have", asked, facts.max_mb)?;
        if let Some(disk) = request.disk_mb.filter(|disk| *disk < facts.disk_mb) {
            let message = format!("diskMB {disk}: it has {} MiB, and disks only grow", facts.disk_mb);
            return Err(Error::invalid(message));
        }
        Ok(Order {
            checkpoint,
            facts,
            memory_mb: asked.max(facts.floor_mb),
            policy: policy(&request.network)?,
            image,
            exec,
            expires_at,
            idle_timeout_seconds,
        })
    }

    fn checkpoint_of_image(
        &self,
        name: &str,
        request: &CreateSandbox,
        cancel: &Cancel,
    ) -> Result<(CheckpointId, String)> {
        let store = self.host.store();
        let image = self.records.find(store, name)?;
        let id = image.id.as_str().to_owned();
        let vcpus = request.cpus.unwrap_or(1);
        if !(1..=16).contains(&vcpus) {
            return Err(Error::invalid(format!("cpus {vcpus}: it must be 1 to 16")));
        }
        let asked = request.memory_mb.unwrap_or(0);
        if let Some(checkpoint) = choose(&image, asked, request.cpus.map(u32::from)) {
            return Ok((checkpoint, id));
        }
        // A VM that boots, as a build's does.
        let wanted = missing(&image, request.cpus);
        let _promise = self.ledger.promise_build(wanted.floor_mb)?;
        Ok((variant(&self.host, &image, wanted, cancel, &mut Silent)?, id))
    }

    fn make(
        &self,
        request: &CreateSandbox,
        order: &Order,
        promise: Promise,
        cancel: &Cancel,
    ) -> Result<Made> {
        let plugged = self.host.plug(&order.policy)?;
        let identity = Identity {
            env: request.env.clone(),
            ..Identity::default()
        };
        let who = Plugged::someone(plugged.as_ref(), identity);
        let waiting = self.pool.waiting();
        let forked = self.pool.fork(&order.checkpoint, who);
        let forked = forked.inspect_err(|_| {
            self.metrics.fork_failures.inc();
        })?;
        let origin = match forked.origin {
            pool::Origin::Shell => Origin::Shell,
            pool::Origin::Fork => Origin::Fork,
        };
        let mut guest = forked.guest;
        let share = Share {
            memory_mb: order.memory_mb,
            cpus: order.facts.cpus,
        };
        self.welcome(&guest, origin, share, order.facts.floor_mb);
        if order.memory_mb > order.facts.floor_mb || request.disk_mb.is_some() {
            grow(&mut guest, order, request.disk_mb, cancel)?;
        }
        let granted_mb = order.memory_mb;
        let fixed = Fixed {
            id: guest.id().to_owned(),
            image: order.image.clone(),
            checkpoint: Some(order.checkpoint.to_string()),
            parent: None,
            origin,
            cpus: order.facts.cpus,
            floor_mb: order.facts.floor_mb,
            max_mb: order.facts.max_mb,
            policy: request.network.clone(),
            env: request.env.clone(),
            created_at: now(),
            times: times(guest.times()),
        };
        let first = order.exec.as_ref().map(|exec| (exec, guest.killer()));
        let held = Held::new(guest, plugged, promise);
        let changing = Changing {
            state: SandboxState::Running,
            ended: None,
            requested_mb: request.memory_mb.unwrap_or(granted_mb),
            granted_mb,
            metadata: request.metadata.clone(),
            expires_at: order.expires_at,
            idle_timeout_seconds: order.idle_timeout_seconds,
        };
        let sandbox = Sandbox::new(fixed, held, changing)?;
        self.keep(&sandbox);
        drop(waiting);
        // A first command is part of the call that makes its sandbox: what ends the call ends the sandbox.
        let exec = match first {
            Some((exec, killer)) => {
                let _watched = cancel.watch(killer).map_err(GuestError::from)?;
                let mut cut = None;
                let result = exec.run(&sandbox, |given| cut = Some(given));
                // That it was ended on purpose is the better reason.
                cancel.check()?;
                Some(result?)
            }
            None => None,
        };
        Ok(Made { sandbox, exec })
    }

    /// Makes all of them known, or none where all were asked for: those that were made are ended then.
    ///
    /// # Errors
    /// The first reason why there is none.
    pub fn admit(&self, made: Vec<Result<Made>>, partial: bool) -> Result<Admitted> {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for result in made {
            match result {
                Ok(made) => good.push(made),
                Err(error) => bad.push(error),
            }
        }
        match bad.first() {
            Some(error) if !partial || good.is_empty() => return Err(error.clone()),
            _ => {}
        }
        let known = good
            .into_iter()
            .map(|made| (self.register(made.sandbox), made.exec));
        Ok(Admitted {
            known: known.collect(),
            failed: bad,
        })
    }
}

/// Memory and disk beyond what the checkpoint has.
fn grow(guest: &mut Guest, order: &Order, disk_mb: Option<u64>, cancel: &Cancel) -> Result<()> {
    let mut agent = guest.agent(AGENT)?;
    if order.memory_mb > order.facts.floor_mb {
        guest.resize_unless(&mut agent, order.memory_mb, cancel)?;
    }
    if let Some(disk) = disk_mb {
        guest.grow_disk(&mut agent, disk)?;
    }
    Ok(())
}
