//! Guests as forks of a checkpoint: through a template, which has it loaded, and shells, which are armed.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use spore_snapshot::checkpoint::{MEMORY_FILE, STATE_FILE};
use spore_snapshot::store::{Checkpoint, RunDir, Store};
use spore_snapshot::{CheckpointId, Digest};

use super::launch::{console_of, layer_file, new_id, vsock_of};
use super::{Guest, GuestError, Someone};
use crate::clock::monotonic_ns;
use crate::disk::StackSpec;
use crate::machine::Identity;
use crate::process::{LoadSpec, VmError, VmHandle, WakeSpec, Woke};
use crate::wake_set::WakeSet;

/// How long a fork may take to become who it should be.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How long the end of a fork that never was ready may take to be told: its threads are joined first.
const END_LIMIT: Duration = Duration::from_secs(1);

/// How long the steps of waking took, from when the fork was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkTimes {
    /// All machine state set, let run (T1).
    pub released: Duration,
    /// The agent's first act (T2); absent if it did not come to that.
    pub woke: Option<Duration>,
    /// Identity repaired (T3); absent likewise.
    pub ready: Option<Duration>,
}

/// A checkpoint loaded by a process that never runs it: its forks have it loaded too.
pub struct Template {
    vm: VmHandle,
    id: CheckpointId,
    disk_layers: Vec<Digest>,
    floor_mb: u32,
    max_mb: u32,
    files: Watch,
    wake_set: Option<WakeSet>,
}

/// By what a file is known not to have changed.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> std::io::Result<Stamp> {
    let file = std::fs::metadata(path)?;
    Ok((
        file.dev(),
        file.ino(),
        file.size(),
        file.mtime(),
        file.mtime_nsec(),
    ))
}

/// Files as they were when they were read: those a template was loaded from, for example. A template whose checkpoint
/// was deleted or changed could still be forked, but must not be: nobody checked what its forks would read.
#[derive(Clone, Debug)]
pub struct Watch(Vec<(PathBuf, Stamp)>);

impl Watch {
    /// Over files that are going to be read.
    ///
    /// # Errors
    /// When one is not there.
    pub fn over<'a>(paths: impl IntoIterator<Item = &'a PathBuf>) -> std::io::Result<Self> {
        let stamped = paths.into_iter().map(|path| Ok((path.clone(), stamp(path)?)));
        Ok(Self(stamped.collect::<std::io::Result<_>>()?))
    }

    /// Whether they are as they were.
    pub fn is_current(&self) -> bool {
        self.0
            .iter()
            .all(|(path, loaded)| stamp(path).is_ok_and(|now| now == *loaded))
    }
}

/// A fork that has everything but an identity: one step short of running.
pub struct Shell {
    guest: Guest,
}

impl Template {
    /// Loads a checkpoint, which the store has checked.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn load(store: &Store, checkpoint: &Checkpoint) -> Result<Self, GuestError> {
        let (spec, disk_layers) = load_spec(store, checkpoint)?;
        let files = Watch::over([&spec.memory, &spec.state]).map_err(|source| GuestError::Host {
            what: store.checkpoint_dir(&checkpoint.id),
            source,
        })?;
        let mut vm = VmHandle::spawn(Path::new(""), Path::new(""))?;
        vm.load(spec)?;
        Ok(Self {
            vm,
            id: checkpoint.id,
            disk_layers,
            floor_mb: checkpoint.manifest.floor_mb,
            max_mb: checkpoint.manifest.max_mb(),
            files,
            wake_set: None,
        })
    }

    /// Which checkpoint this is of.
    pub fn checkpoint(&self) -> CheckpointId {
        self.id
    }

    /// The least memory a fork of it has, in MiB.
    pub fn floor_mb(&self) -> u32 {
        self.floor_mb
    }

    /// The most memory a fork of it can have, in MiB.
    pub fn max_mb(&self) -> u32 {
        self.max_mb
    }

    /// Process id of the template.
    pub fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// What tells whether the checkpoint's files are still those that were checked and loaded.
    pub fn watch(&self) -> Watch {
        self.files.clone()
    }

    /// The pages that waking touches, once a fork has shown them: see [`Template::learn`].
    pub fn wake_set(&self) -> Option<&WakeSet> {
        self.wake_set.as_ref()
    }

    /// Takes what a fork that has just woken touched for what all will touch: shells are given it from now on.
    ///
    /// # Errors
    /// [`GuestError`]; the template works as before.
    pub fn learn(&mut self, awake: &mut Guest) -> Result<(), GuestError> {
        let pages = awake.vm.wake_set()?;
        self.know(pages)
    }

    /// Takes what another template of the same checkpoint had learned.
    ///
    /// # Errors
    /// [`GuestError`]; the template works as before.
    pub fn know(&mut self, pages: WakeSet) -> Result<(), GuestError> {
        self.vm.use_wake_set(&pages)?;
        self.wake_set = Some(pages);
        Ok(())
    }

    /// Forks the template's process. The fork has a directory of its own and no machine yet.
    ///
    /// # Errors
    /// [`GuestError`]; the template can be forked again, unless its process is gone.
    pub fn split_off(&mut self, store: &Store) -> Result<Unarmed, GuestError> {
        let run = RunDir::create(store, &new_id())?;
        let vm = self.vm.fork(&console_of(run.path()), &vsock_of(run.path()))?;
        Unarmed::new(run, vm, self.disk_layers.clone())
    }

    /// Makes a shell.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn arm(&mut self, store: &Store) -> Result<Shell, GuestError> {
        self.split_off(store)?.arm()
    }
}

/// A fork of a template without a machine. Arming it needs the template no more.
pub struct Unarmed {
    guest: Guest,
}

impl Unarmed {
    /// Of a process that is a template, whose machine will be in `run`.
    pub(super) fn new(run: RunDir, vm: VmHandle, disk_layers: Vec<Digest>) -> Result<Self, GuestError> {
        let mut guest = Guest::with(run, vm, disk_layers)?;
        guest.trace.mark("forked");
        Ok(Self { guest })
    }

    /// Makes its machine, up to one step short of running.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn arm(self) -> Result<Shell, GuestError> {
        let mut guest = self.guest;
        let overlay = guest.overlay(0);
        let armed = guest.vm.arm(&overlay).map_err(GuestError::of_copy)?;
        guest.trace.extend(armed);
        Ok(Shell { guest })
    }
}

impl Shell {
    /// Lets it run as somebody. An identity without a host name gets the guest's id for one. `asked_ns` is when this
    /// fork was asked for: what the times are counted from.
    ///
    /// # Errors
    /// [`GuestError::Identity`] when it could not become who it should be; it is destroyed then.
    pub fn claim(self, who: impl Into<Someone>, asked_ns: u64) -> Result<Guest, GuestError> {
        let mut guest = self.guest;
        wake(&mut guest, &who.into(), asked_ns)?;
        Ok(guest)
    }

    /// Its guest will be [kept](Guest::keep): from when it is ready it outlives its owner. The shell does not.
    ///
    /// # Errors
    /// [`GuestError`]; the shell is as good as before.
    pub fn keep(&mut self) -> Result<(), GuestError> {
        self.guest.keep()
    }

    /// The directory of its files, which its guest will have.
    pub fn run_dir(&self) -> &Path {
        self.guest.run.path()
    }

    /// The id its guest will have.
    pub fn id(&self) -> &str {
        self.guest.id()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.guest.pid()
    }

    /// Ends it without waiting for that.
    pub fn kill(&self) {
        self.guest.kill();
    }
}

impl Guest {
    /// A fork of a checkpoint, without a template: a process that loads it and runs it. It is running and who it
    /// should be when this returns.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn fork(store: &Store, checkpoint: &Checkpoint) -> Result<Self, GuestError> {
        Self::fork_as(store, checkpoint, Identity::default())
    }

    /// As [`Guest::fork`], as somebody.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn fork_as(
        store: &Store,
        checkpoint: &Checkpoint,
        who: impl Into<Someone>,
    ) -> Result<Self, GuestError> {
        let asked = monotonic_ns();
        let who = who.into();
        who.check()?;
        let (spec, layers) = load_spec(store, checkpoint)?;
        let run = RunDir::create(store, &new_id())?;
        let vm = VmHandle::spawn(&console_of(run.path()), &vsock_of(run.path()))?;
        let mut unarmed = Unarmed::new(run, vm, layers)?;
        unarmed.guest.vm.load(spec)?;
        unarmed.guest.trace.mark("loaded");
        unarmed.arm()?.claim(who, asked)
    }
}

fn load_spec(store: &Store, checkpoint: &Checkpoint) -> Result<(LoadSpec, Vec<Digest>), GuestError> {
    let refused = |why: &str| GuestError::Checkpoint {
        id: checkpoint.id.to_string(),
        why: why.to_owned(),
    };
    let [disk] = &checkpoint.disks[..] else {
        return Err(refused("it does not have exactly one disk"));
    };
    let [record] = &checkpoint.manifest.disks[..] else {
        return Err(refused("its manifest does not have one disk"));
    };
    let directory = store.checkpoint_dir(&checkpoint.id);
    let spec = LoadSpec {
        state: directory.join(STATE_FILE),
        state_record: checkpoint.manifest.state,
        memory: directory.join(MEMORY_FILE),
        disk: StackSpec {
            layers: disk.layers.iter().map(|layer| layer_file(layer)).collect(),
            virtual_size: disk.virtual_size,
        },
    };
    Ok((spec, record.layers.clone()))
}

/// Lets an armed guest run, and sees that it is who it should be.
fn wake(guest: &mut Guest, who: &Someone, asked_ns: u64) -> Result<(), GuestError> {
    let mut identity = who.identity();
    if identity.hostname.is_empty() {
        identity.hostname = guest.id().to_owned();
    }
    let spec = WakeSpec {
        identity,
        limit_ms: u64::try_from(READY_LIMIT.as_millis()).unwrap_or(u64::MAX),
    };
    let woke = guest.vm.wake(spec, who.tap()).map_err(GuestError::of_copy)?;
    let since = |at: u64| Duration::from_nanos(at.saturating_sub(asked_ns));
    guest.times = ForkTimes {
        released: since(woke.released_ns),
        woke: woke.woke_ns.map(since),
        ready: woke.ready_ns.map(since),
    };
    guest.trace.mark_at("asked", asked_ns);
    guest.trace.extend(woke.trace.clone());
    for (what, at) in [
        ("released (T1)", Some(woke.released_ns)),
        ("first act (T2)", woke.woke_ns),
        ("READY (T3)", woke.ready_ns),
    ] {
        if let Some(at) = at {
            guest.trace.mark_at(what, at);
        }
    }
    guest.trace.mark("answered");
    check_awake(guest, &woke)
}

/// A fork that could not become who it should be is not handed out.
fn check_awake(guest: &mut Guest, woke: &Woke) -> Result<(), GuestError> {
    if woke.is_ready() {
        return Ok(());
    }
    match woke.failed {
        Some(repair) => Err(GuestError::Identity {
            repair,
            why: woke.why.clone(),
            console: guest.console_tail(),
        }),
        None => match guest.vm.wait_end(END_LIMIT).map_err(GuestError::of_copy)? {
            Some(ended) => Err(GuestError::Copy(VmError::Ended {
                ended,
                console: guest.console_tail(),
            })),
            None => Err(GuestError::Unreachable {
                limit: READY_LIMIT,
                console: guest.console_tail(),
            }),
        },
    }
}
