//! A guest: a VM process with its run directory, its disks from the store and its agent.
//!
//! [`Guest::cold_boot`] makes one, and so does a [`Template`] of a checkpoint, with a [`Shell`] in between or at
//! once; [`Guest::live_fork`] makes more of one that runs. [`resize`](Guest::resize) grows and shrinks it,
//! [`grow_disk`](Guest::grow_disk) its disk, [`checkpoint`](Guest::checkpoint) writes it into the store. Dropping a guest ends its process and removes all it
//! had. One that is [kept](Guest::keep) outlives the process that owns it, and is [adopted](Guest::adopt) by the next.

mod adopt;
mod checkpoint;
mod grow_disk;
mod launch;
mod live_fork;
mod nudge;
mod resize;
mod someone;
mod template;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use spore_protocol::fork_port::Repair;
use spore_protocol::{AGENT_PORT, AgentClient, ClientError, ConnectError, Status, connect_handshake};
use spore_snapshot::Digest;
use spore_snapshot::store::{RunDir, Store, StoreError};

pub use adopt::{AdoptError, adoptable, discard};
pub use checkpoint::CheckpointPlan;
pub use grow_disk::{DiskError, DiskGranted, MAX_DISK_MB};
pub use launch::{ColdBoot, cmdline, default_max_mb};
pub use live_fork::{LiveFork, SplitTimes};
pub use resize::{Granted, ResizeError, Shortfall};
pub use someone::{Plug, Someone};
pub use template::{ForkTimes, Shell, Template, Unarmed, Watch};

use crate::cancel::{Cancelled, WatchError};
use crate::clock::Trace;
use crate::exit::Ended;
use crate::process::{Killer, VmError, VmHandle, serial};
use crate::socket;

/// What the host calls itself to agents.
const BUILD: &str = concat!("spore ", env!("CARGO_PKG_VERSION"));

/// A connection to a guest's agent.
pub type Agent = AgentClient<UnixStream>;

/// Why a guest could not be made or driven.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// Its VM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A copy of the guest, or of the checkpoint, ended before it was of any use. What it is a copy of is none the worse.
    #[error("the copy came to nothing: {0}")]
    Copy(#[source] VmError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The agent did not answer in time.
    #[error("the agent did not answer within {}{}", seconds(.limit), serial(.console))]
    Unreachable {
        /// How long it was waited for.
        limit: Duration,
        /// The last lines of the console.
        console: String,
    },
    /// The agent answered, but not as it should.
    #[error("the agent: {0}")]
    Agent(#[from] ClientError),
    /// A fork could not become who it should be; it was destroyed.
    #[error("the fork was destroyed: {repair} failed in it{}{}", because(.why), serial(.console))]
    Identity {
        /// What failed.
        repair: Repair,
        /// Why, in the guest's words; empty if it did not say.
        why: String,
        /// The last lines of the console.
        console: String,
    },
    /// A fork cannot be what it is asked to be; none was made.
    #[error("{why}")]
    CannotBe {
        /// Why not.
        why: String,
    },
    /// Copies of the guest could not be told that they are copies.
    #[error("this guest cannot be copied, since its copies would have its random numbers and ids: {why}")]
    NoForkPort {
        /// Why not.
        why: String,
    },
    /// A number of forks that nobody can want.
    #[error("{count} forks at once: it must be 1 to {max}")]
    ForkCount {
        /// Asked for.
        count: usize,
        /// The most at once.
        max: usize,
    },
    /// The checkpoint does not hold what a guest is made of.
    #[error("checkpoint {id}: {why}")]
    Checkpoint {
        /// Which.
        id: String,
        /// Why.
        why: String,
    },
    /// Nobody wanted it any more.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
    /// The host.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Growing or shrinking.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// Growing the disk.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl From<WatchError> for GuestError {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::Cancelled(cancelled) => cancelled.into(),
            WatchError::Host(error) => VmError::host("what ends a VM")(error).into(),
        }
    }
}

impl GuestError {
    /// What became of a copy, which its caller does not know of yet.
    pub(crate) fn of_copy(error: VmError) -> Self {
        match error {
            VmError::Gone { .. } | VmError::Ended { .. } | VmError::Control(_) => Self::Copy(error),
            other => Self::Vm(other),
        }
    }
}

/// Whether a machine that is just being made, or has more to hear than it can, will answer yet.
fn is_early(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, Interrupted, NotFound, WouldBlock};
    let kinds = [
        ConnectionRefused,
        ConnectionReset,
        Interrupted,
        NotFound,
        WouldBlock,
    ];
    kinds.contains(&error.kind())
}

fn because(why: &str) -> String {
    if why.is_empty() {
        String::new()
    } else {
        format!(": {why}")
    }
}

fn seconds(limit: &Duration) -> String {
    format!("{:.1} s", limit.as_secs_f64())
}

/// A guest. Fields are dropped in order: the process before its directory.
pub struct Guest {
    vm: VmHandle,
    run: RunDir,
    /// The number of the newest overlay there was to be, and of the one in use.
    overlays: u32,
    overlay_in_use: u32,
    disk_layers: Vec<Digest>,
    /// Sealed layers that are not in the store yet: a checkpoint failed in between.
    unadopted: Vec<PathBuf>,
    /// Whether it outlives this process.
    kept: bool,
    /// What its last owner kept it with.
    left: Vec<OwnedFd>,
    times: ForkTimes,
    trace: Trace,
}

impl Guest {
    /// Its id on this host.
    pub fn id(&self) -> &str {
        self.run.id().as_str()
    }

    /// Process id of its VM.
    pub fn pid(&self) -> u32 {
        self.vm.pid()
    }

    /// Where its serial console is logged.
    pub fn console(&self) -> PathBuf {
        self.run.path().join("console.log")
    }

    /// The last lines of its console.
    pub fn console_tail(&self) -> String {
        self.vm.console_tail()
    }

    /// How long the steps of its making took.
    pub fn times(&self) -> ForkTimes {
        self.times
    }

    /// What happened when, on the way to its running.
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Ends the guest without waiting for it. Dropping it later waits, and removes what it had.
    pub fn kill(&self) {
        self.vm.kill();
    }

    /// What ends it from elsewhere.
    ///
    /// # Errors
    /// When descriptors run out.
    pub fn killer(&self) -> io::Result<Killer> {
        self.vm.killer()
    }

    /// The VM, for what is not about the guest's inside.
    pub fn vm(&mut self) -> &mut VmHandle {
        &mut self.vm
    }

    /// A new connection to the agent, which must be up: see [`Guest::wait_agent`].
    ///
    /// # Errors
    /// [`GuestError::Unreachable`] after `limit`.
    pub fn agent(&mut self, limit: Duration) -> Result<Agent, GuestError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(agent) = self.try_agent(deadline)? {
                return Ok(agent);
            }
            if self.vm.is_gone() {
                return Err(self.end_of_vm());
            }
            if let Some(ended) = self.vm.wait_end(Duration::from_millis(1))? {
                return Err(VmError::Ended {
                    ended,
                    console: self.console_tail(),
                }
                .into());
            }
            if Instant::now() >= deadline {
                return Err(GuestError::Unreachable {
                    limit,
                    console: self.console_tail(),
                });
            }
            // Nothing listens yet: a booting guest. Each try costs it some time, so not too often.
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// One try; `None` when nothing listens in the guest yet.
    fn try_agent(&self, deadline: Instant) -> Result<Option<Agent>, GuestError> {
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        let host = |source| GuestError::Host {
            what: self.vm.vsock().to_owned(),
            source,
        };
        let mut stream = match socket::connect(self.vm.vsock()) {
            Ok(stream) => stream,
            Err(error) if is_early(&error) => return Ok(None),
            Err(error) => return Err(host(error)),
        };
        // A guest that dies while we wait closes the stream, so waiting long is no risk.
        stream.set_read_timeout(Some(left)).map_err(host)?;
        match connect_handshake(&mut stream, AGENT_PORT) {
            Ok(_) => {}
            Err(ConnectError::Refused { .. } | ConnectError::Io(_)) => return Ok(None),
            Err(error @ ConnectError::Unexpected { .. }) => {
                return Err(host(io::Error::other(error)));
            }
        }
        stream.set_read_timeout(None).map_err(host)?;
        Ok(Some(AgentClient::new(stream, BUILD)))
    }

    /// Waits until the agent answers, and says how the guest is.
    ///
    /// # Errors
    /// [`GuestError::Unreachable`] after `limit`, with the console's last lines; [`VmError::Ended`]
    /// when the VM ends instead.
    pub fn wait_agent(&mut self, limit: Duration) -> Result<(Agent, Status), GuestError> {
        let mut agent = self.agent(limit)?;
        let status = agent.status()?;
        Ok((agent, status))
    }

    /// What became of a VM whose process or machine is no more.
    fn end_of_vm(&mut self) -> GuestError {
        match self.vm.stats() {
            Err(error) => error.into(),
            Ok(_) => GuestError::Unreachable {
                limit: Duration::ZERO,
                console: self.console_tail(),
            },
        }
    }

    /// Explains a broken connection: if the VM has ended that is the cause, and said instead.
    pub fn explain(&mut self, error: ClientError) -> GuestError {
        // The end is reported by the VM process a moment after the stream breaks.
        match self.vm.wait_end(Duration::from_millis(500)) {
            Ok(Some(ended)) => VmError::Ended {
                ended,
                console: self.console_tail(),
            }
            .into(),
            Ok(None) => error.into(),
            Err(gone) => gone.into(),
        }
    }

    /// Powers the guest off in order: processes ended, file systems clean.
    ///
    /// # Errors
    /// When the agent does not take the request, or the guest is not off within `limit`.
    pub fn power_off(&mut self, limit: Duration) -> Result<(), GuestError> {
        self.agent(limit)?.poweroff()?;
        match self.vm.wait_end(limit)? {
            Some(Ended::PowerOff) => Ok(()),
            Some(ended) => Err(VmError::Ended {
                ended,
                console: self.console_tail(),
            }
            .into()),
            None => Err(GuestError::Unreachable {
                limit,
                console: self.console_tail(),
            }),
        }
    }

    /// Seals the disk of a guest that has been powered off and adopts it as a layer of the store.
    /// Returns all layers of the disk, bottom first.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn seal_disk(mut self, store: &Store) -> Result<Vec<Digest>, GuestError> {
        let sealed = self.vm.seal_disk()?;
        self.take_in(store, sealed)?;
        Ok(std::mem::take(&mut self.disk_layers))
    }

    /// The disk as of now, as layers of the store, bottom first; the guest runs on above them. To these it is as if
    /// the power had failed: the guest should have synced.
    ///
    /// # Errors
    /// [`GuestError`]; the guest runs on.
    pub fn freeze_disk(&mut self, store: &Store) -> Result<Vec<Digest>, GuestError> {
        let next = self.next_overlay();
        let sealed = self.vm.freeze_disk(&next)?;
        self.take_in(store, sealed)?;
        Ok(self.disk_layers.clone())
    }

    /// Puts sealed layers into the store; what fails half-way goes on with the next call. The run directory always
    /// knows which layers the disk has.
    fn take_in(&mut self, store: &Store, sealed: Vec<u32>) -> Result<(), GuestError> {
        let sealed: Vec<_> = sealed.iter().map(|number| self.overlay(*number)).collect();
        self.take_in_files(store, sealed)
    }

    fn take_in_files(&mut self, store: &Store, sealed: Vec<PathBuf>) -> Result<(), GuestError> {
        self.unadopted.extend(sealed);
        while let Some(layer) = self.unadopted.first() {
            // Should we die before its digest is written down, the file is still found by this name.
            let kept = self.kept.then(|| layer.with_extension("in"));
            if let Some(kept) = &kept {
                let _ = std::fs::hard_link(layer, kept);
            }
            self.disk_layers.push(store.adopt_layer(layer)?);
            self.unadopted.remove(0);
            if let Some(kept) = &kept {
                self.run.pin(&self.disk_layers)?;
                let _ = std::fs::remove_file(kept);
            }
        }
        Ok(())
    }

    /// Memory of the VM process that is resident, in bytes; 0 when it cannot be read.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid())).unwrap_or_default();
        let pages: u64 = statm
            .split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0);
        pages.saturating_mul(4096)
    }
}
