//! Making guests: by cold boot, or as a fork of a checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use spore_snapshot::checkpoint::{MEMORY_FILE, STATE_FILE};
use spore_snapshot::disk::{Layer, LayerKind};
use spore_snapshot::store::{Checkpoint, RunDir, Store};
use spore_snapshot::{Digest, RunId};

use super::{Guest, GuestError};
use crate::disk::{DiskSpec, LayerFile};
use crate::kvm::KvmKind;
use crate::layout::{LINUX_MEMORY_BLOCK, MIB};
use crate::machine::Identity;
use crate::process::{BootSpec, RestoreSpec, VmError, VmHandle, Woke};
use crate::random;

/// Largest memory a guest may grow to when nothing else is said, in MiB.
pub fn default_max_mb() -> u32 {
    16384
}

/// The kernel command line of every guest. `online_movable`: plugged memory can be taken away
/// again (docs/decisions).
const CMDLINE: &str = "console=ttyS0 quiet root=/dev/vda rw rootfstype=ext4 panic=-1 \
    mitigations=off tsc=reliable random.trust_cpu=1 memhp_default_state=online_movable";

/// The command line a guest boots with on this host.
pub fn cmdline() -> String {
    format!("{CMDLINE} {}", KvmKind::detect().guest_options())
        .trim_end()
        .to_owned()
}

/// How long a fork may take to become who it should be.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// A cold boot.
#[derive(Clone, Debug)]
pub struct ColdBoot {
    /// vCPUs, 1 to 16.
    pub vcpus: u8,
    /// Memory at boot, in MiB.
    pub memory_mb: u32,
    /// Memory it may grow to, in MiB.
    pub max_memory_mb: u32,
    /// The kernel file.
    pub kernel: PathBuf,
    /// Layers of the root disk, bottom first, and what they are called in the store.
    pub disk: Vec<(Digest, Arc<Layer>)>,
    /// Whether what the guest flushes must survive the host.
    pub durable: bool,
}

/// How long the steps of making a guest took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForkTimes {
    /// Asked → the VM process exists.
    pub spawned: Duration,
    /// Asked → machine state set, ready to run (T1).
    pub prepared: Duration,
    /// Asked → running.
    pub resumed: Duration,
    /// Asked → the agent's first act (T2); absent for a machine not saved at its fork port.
    pub woke: Option<Duration>,
    /// Asked → identity repaired (T3); absent likewise.
    pub ready: Option<Duration>,
}

impl Guest {
    /// Cold-boots a guest; it is running when this returns, its agent not yet up.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cold_boot(store: &Store, boot: &ColdBoot) -> Result<Self, GuestError> {
        let started = Instant::now();
        let layers = boot.disk.iter().map(|(_, layer)| layer_file(layer)).collect();
        let digests = boot.disk.iter().map(|(digest, _)| *digest).collect();
        let mut guest = Self::spawn(store, digests)?;
        let mut times = ForkTimes {
            spawned: started.elapsed(),
            ..ForkTimes::default()
        };
        let spec = BootSpec {
            vcpus: boot.vcpus,
            boot_bytes: u64::from(boot.memory_mb) * MIB,
            hotplug_bytes: region_bytes(boot.memory_mb, boot.max_memory_mb),
            kernel: boot.kernel.clone(),
            cmdline: cmdline(),
            disk: DiskSpec {
                layers,
                overlay: guest.overlay(0),
                virtual_size: 0,
                durable: boot.durable,
            },
            console: guest.console(),
            vsock: guest.vm.vsock().to_owned(),
        };
        guest.vm.boot(spec)?;
        times.prepared = started.elapsed();
        times.resumed = times.prepared;
        guest.times = times;
        Ok(guest)
    }

    /// A fork of a checkpoint; it is running when this returns.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn fork(store: &Store, checkpoint: &Checkpoint) -> Result<Self, GuestError> {
        Self::fork_with(store, checkpoint, BTreeMap::new())
    }

    /// A fork of a checkpoint in which everything is run with this environment, over the image's
    /// defaults; it is running when this returns.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn fork_with(
        store: &Store,
        checkpoint: &Checkpoint,
        env: BTreeMap<String, String>,
    ) -> Result<Self, GuestError> {
        let started = Instant::now();
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
        let mut guest = Self::spawn(store, record.layers.clone())?;
        let mut times = ForkTimes {
            spawned: started.elapsed(),
            ..ForkTimes::default()
        };
        let directory = store.checkpoint_dir(&checkpoint.id);
        let spec = RestoreSpec {
            state: directory.join(STATE_FILE),
            state_record: checkpoint.manifest.state,
            memory: directory.join(MEMORY_FILE),
            disk: DiskSpec {
                layers: disk.layers.iter().map(|layer| layer_file(layer)).collect(),
                overlay: guest.overlay(0),
                virtual_size: disk.virtual_size,
                durable: false,
            },
            console: guest.console(),
            vsock: guest.vm.vsock().to_owned(),
        };
        guest.vm.restore(spec)?;
        times.prepared = started.elapsed();
        guest.vm.resume(&Identity {
            hostname: guest.id().to_owned(),
            env,
        })?;
        times.resumed = started.elapsed();
        let woke = guest.vm.await_ready(READY_LIMIT)?;
        times.woke = woke.woke_us.map(|us| times.prepared + Duration::from_micros(us));
        times.ready = woke.ready_us.map(|us| times.prepared + Duration::from_micros(us));
        guest.check_awake(woke)?;
        guest.times = times;
        Ok(guest)
    }

    /// A fork that could not become who it should be is not handed out.
    fn check_awake(&mut self, woke: Woke) -> Result<(), GuestError> {
        match (woke.at_port, woke.ready_us, woke.failed) {
            (false, ..) | (true, Some(_), None) => Ok(()),
            (true, _, Some(repair)) => Err(GuestError::Identity {
                repair,
                why: woke.why,
                console: self.console_tail(),
            }),
            (true, None, None) => match self.vm.wait_end(Duration::from_millis(1))? {
                Some(ended) => Err(VmError::Ended {
                    ended,
                    console: self.console_tail(),
                }
                .into()),
                None => Err(GuestError::Unreachable {
                    limit: READY_LIMIT,
                    console: self.console_tail(),
                }),
            },
        }
    }

    fn spawn(store: &Store, disk_layers: Vec<Digest>) -> Result<Self, GuestError> {
        let run = RunDir::create(store, &new_id())?;
        run.pin(&disk_layers)?;
        let vm = VmHandle::spawn(&run.path().join("console.log"), &run.path().join("vsock"))?;
        Ok(Self {
            vm,
            run,
            overlays: 0,
            disk_layers,
            unadopted: Vec::new(),
            times: ForkTimes::default(),
        })
    }

    /// Where overlay number `index` of this guest is.
    pub(super) fn overlay(&self, index: u32) -> PathBuf {
        self.run.path().join(format!("disk-{index}"))
    }
}

/// Length of the virtio-mem region of a guest that may grow from `memory_mb` to `max_memory_mb`, in
/// bytes: whole Linux memory blocks, and at least one, since the device cannot have none.
fn region_bytes(memory_mb: u32, max_memory_mb: u32) -> u64 {
    let grows = u64::from(max_memory_mb.saturating_sub(memory_mb)) * MIB;
    grows.next_multiple_of(LINUX_MEMORY_BLOCK).max(LINUX_MEMORY_BLOCK)
}

/// A new guest id: `vm-` and 16 hexadecimal digits.
fn new_id() -> RunId {
    let id = format!("vm-{:016x}", u64::from_le_bytes(random::bytes()));
    match id.parse() {
        Ok(id) => id,
        // The store takes any short name of lower-case letters, digits and dashes.
        Err(_) => unreachable!("{id} is a valid id by construction"),
    }
}

fn layer_file(layer: &Layer) -> LayerFile {
    LayerFile {
        path: absolute(layer.path()),
        raw: layer.kind() == LayerKind::Raw,
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
