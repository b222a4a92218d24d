//! One sandbox, as the daemon has it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spore_builder::Plugged;
use spore_network::Traffic;
use spore_types::{ErrorCode, Network, NetworkPolicy, Origin, SandboxMemory, SandboxState, SandboxTimes};
use spore_vmm::guest::{ForkTimes, Guest};
use spore_vmm::process::Killer;

use super::activity::{Activity, Use};
use super::ledger::Promise;
use crate::error::{Error, Result};
use crate::time::micros;

/// What does not change of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Fixed {
    /// Its id, that of its guest.
    pub id: String,
    /// The image it was made of.
    pub image: Option<String>,
    /// The checkpoint it was made of.
    pub checkpoint: Option<String>,
    /// The sandbox it was forked from.
    pub parent: Option<String>,
    /// Where it came from.
    pub origin: Origin,
    /// vCPUs.
    pub cpus: u32,
    /// The least memory it can have, in MiB.
    pub floor_mb: u32,
    /// The most, in MiB.
    pub max_mb: u32,
    /// What it reaches.
    pub policy: NetworkPolicy,
    /// Variables of its commands: its forks have them too.
    pub env: BTreeMap<String, String>,
    /// Seconds since 1970.
    pub created_at: u64,
    /// How long its making took.
    pub times: SandboxTimes,
}

/// What changes.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Changing {
    /// What it is doing.
    pub state: SandboxState,
    /// Why it is no more, once it is.
    pub ended: Option<String>,
    /// What was asked for last, in MiB.
    pub requested_mb: u32,
    /// What it has, in MiB.
    pub granted_mb: u32,
    /// Its owner's words.
    pub metadata: BTreeMap<String, String>,
    /// When it is to be destroyed, in seconds since 1970.
    pub expires_at: Option<u64>,
    /// After how many seconds without use it is to be destroyed.
    #[serde(default)]
    pub idle_timeout_seconds: Option<u32>,
}

/// A sandbox.
pub struct Sandbox {
    /// What does not change.
    pub fixed: Fixed,
    vsock: PathBuf,
    console: PathBuf,
    pid: u32,
    killer: Killer,
    network: Network,
    changing: Mutex<Changing>,
    activity: Arc<Activity>,
    /// What had gone through its interface when that was last counted.
    traffic: Mutex<Traffic>,
    /// Held while its VM is worked with; gone when it is no more.
    guest: Mutex<Option<Held>>,
}

/// What a sandbox holds of the host.
pub struct Held {
    /// Its VM.
    pub guest: Guest,
    /// Its place on the network.
    pub plugged: Option<Plugged>,
    /// Its memory.
    pub promise: Promise,
    /// Whether the VM was asked to say when it ends since it was last worked with.
    pub awaited: bool,
}

/// A sandbox's VM, held by whoever works with it.
pub struct Work<'a> {
    guest: MutexGuard<'a, Option<Held>>,
    /// Absent for those who only look.
    _use: Option<Use>,
}

impl Held {
    /// What a sandbox begins with.
    pub fn new(guest: Guest, plugged: Option<Plugged>, promise: Promise) -> Self {
        Self {
            guest,
            plugged,
            promise,
            awaited: false,
        }
    }
}

impl Work<'_> {
    /// The VM with what belongs to it.
    ///
    /// # Errors
    /// `sandbox_ended`.
    pub fn held(&mut self) -> Result<&mut Held> {
        self.guest.as_mut().ok_or_else(ended)
    }

    /// Takes it out: the sandbox is no more.
    pub fn take(&mut self) -> Option<Held> {
        self.guest.take()
    }
}

fn ended() -> Error {
    Error::new(ErrorCode::SandboxEnded, "the sandbox has ended")
}

/// As the API has them.
pub fn times(times: ForkTimes) -> SandboxTimes {
    SandboxTimes {
        released_us: micros(times.released),
        woke_us: times.woke.map(micros).unwrap_or_default(),
        ready_us: times.ready.map(micros).unwrap_or_default(),
    }
}

impl Sandbox {
    /// Of a guest that is ready.
    ///
    /// # Errors
    /// When descriptors run out; the guest is ended then.
    pub fn new(fixed: Fixed, mut held: Held, changing: Changing) -> Result<Self> {
        let interface = held.plugged.as_ref().map(|plugged| &plugged.plug().network);
        let network = Network {
            policy: fixed.policy.clone(),
            address: interface.map(|interface| interface.address.to_string()),
            mac: interface.map(|interface| mac(interface.mac)),
        };
        Ok(Self {
            vsock: held.guest.vm().vsock().to_owned(),
            console: held.guest.console(),
            pid: held.guest.pid(),
            killer: held.guest.killer()?,
            network,
            traffic: Mutex::default(),
            fixed,
            changing: Mutex::new(changing),
            activity: Arc::default(),
            guest: Mutex::new(Some(held)),
        })
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.fixed.id
    }

    /// Unix socket of its vsock.
    pub fn vsock(&self) -> &Path {
        &self.vsock
    }

    /// The log of its serial console.
    pub fn console(&self) -> &Path {
        &self.console
    }

    /// The directory of its VM's files.
    pub fn run(&self) -> &Path {
        self.console.parent().unwrap_or(Path::new("/"))
    }

    /// Process id of its VM.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What changes of it.
    pub fn changing(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is in use.
    pub fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Its VM, when nobody else works with it. It is in use meanwhile.
    pub fn work(&self) -> Work<'_> {
        let _use = Some(self.activity.begin());
        Work {
            guest: self.guest.lock().unwrap_or_else(PoisonError::into_inner),
            _use,
        }
    }

    /// Its VM, if nobody else works with it now: for who only looks.
    pub fn try_work(&self) -> Option<Work<'_>> {
        let guest = match self.guest.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(Work { guest, _use: None })
    }

    /// As [`Sandbox::try_work`], for who would rather wait a moment: whoever only looks is soon done.
    pub fn try_work_within(&self, limit: Duration) -> Option<Work<'_>> {
        let started = Instant::now();
        loop {
            match self.try_work() {
                Some(work) => return Some(work),
                None if started.elapsed() >= limit => return None,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// What has gone through its interface; while somebody works with its VM, what had when that was last counted.
    pub fn traffic(&self) -> Traffic {
        let now = self.try_work().and_then(|mut work| {
            let held = work.held().ok()?;
            held.plugged.as_ref()?.attachment().traffic().ok()
        });
        let mut counted = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(now) = now {
            *counted = now;
        }
        *counted
    }

    /// Ends its VM without waiting for whoever works with it: that fails.
    pub fn kill(&self) {
        self.killer.kill();
    }

    /// Notes that it is no more. `false` if that was noted before.
    pub fn note_end(&self, cause: &str) -> bool {
        let mut changing = self.changing();
        let first = changing.ended.is_none();
        if first {
            changing.ended = Some(cause.to_owned());
        }
        first
    }

    /// # Errors
    /// `sandbox_ended`, or a `conflict` if it is paused.
    pub fn must_run(&self) -> Result<()> {
        let changing = self.changing();
        if changing.ended.is_some() {
            return Err(ended());
        }
        match changing.state {
            SandboxState::Running => Ok(()),
            SandboxState::Paused => {
                let message = format!("sandbox {} is paused; resume it first", self.id());
                Err(Error::new(ErrorCode::Conflict, message))
            }
        }
    }

    /// As the API shows it.
    pub fn show(&self) -> spore_types::Sandbox {
        let changing = self.changing();
        let fixed = &self.fixed;
        spore_types::Sandbox {
            id: fixed.id.clone(),
            state: changing.state,
            image: fixed.image.clone(),
            checkpoint: fixed.checkpoint.clone(),
            parent: fixed.parent.clone(),
            origin: fixed.origin,
            memory: SandboxMemory {
                floor_mb: fixed.floor_mb,
                requested_mb: changing.requested_mb,
                granted_mb: changing.granted_mb,
                max_mb: fixed.max_mb,
            },
            cpus: fixed.cpus,
            network: self.network.clone(),
            metadata: changing.metadata.clone(),
            created_at: fixed.created_at,
            expires_at: changing.expires_at,
            idle_timeout_seconds: changing.idle_timeout_seconds,
            last_used_at: self.activity.last(),
            times: fixed.times,
            usage: None,
        }
    }
}

fn mac(bytes: [u8; 6]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}
