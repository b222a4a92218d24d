//! Making guests by cold boot.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use spore_snapshot::disk::{Layer, LayerKind};
use spore_snapshot::store::{RunDir, Store};
use spore_snapshot::{Digest, RunId};

use super::{ForkTimes, Guest, GuestError, Plug};
use crate::clock::Trace;
use crate::disk::{DiskSpec, LayerFile, StackSpec, overlay_name};
use crate::kvm::KvmKind;
use crate::layout::{LINUX_MEMORY_BLOCK, MIB};
use crate::process::{BootSpec, Overlays, VmHandle};
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

impl Guest {
    /// Cold-boots a guest; it is running when this returns, its agent not yet up. With a `plug` its card is connected,
    /// and its agent has to be told who it is there ([`AgentClient::set_network`](spore_protocol::AgentClient)).
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn cold_boot(store: &Store, boot: &ColdBoot, plug: Option<&Plug>) -> Result<Self, GuestError> {
        let layers = boot.disk.iter().map(|(_, layer)| layer_file(layer)).collect();
        let digests = boot.disk.iter().map(|(digest, _)| *digest).collect();
        let mut guest = Self::spawn(store, digests)?;
        let spec = BootSpec {
            vcpus: boot.vcpus,
            boot_bytes: u64::from(boot.memory_mb) * MIB,
            hotplug_bytes: region_bytes(boot.memory_mb, boot.max_memory_mb),
            kernel: boot.kernel.clone(),
            cmdline: cmdline(),
            disk: DiskSpec {
                stack: StackSpec {
                    layers,
                    virtual_size: 0,
                },
                overlay: guest.overlay(0),
                durable: boot.durable,
            },
            network: plug.map(|plug| plug.network.clone()),
        };
        guest.vm.boot(spec, plug.map(|plug| plug.tap.as_fd()))?;
        Ok(guest)
    }

    fn spawn(store: &Store, disk_layers: Vec<Digest>) -> Result<Self, GuestError> {
        let run = RunDir::create(store, &new_id())?;
        let vm = VmHandle::spawn(&console_of(run.path()), &vsock_of(run.path()))?;
        Self::with(run, vm, disk_layers)
    }

    /// A guest whose process has, or will have, its machine in `run`.
    pub(super) fn with(run: RunDir, vm: VmHandle, disk_layers: Vec<Digest>) -> Result<Self, GuestError> {
        run.pin(&disk_layers)?;
        Ok(Self {
            vm,
            run,
            overlays: 0,
            overlay_in_use: 0,
            disk_layers,
            unadopted: Vec::new(),
            kept: false,
            left: Vec::new(),
            times: ForkTimes::default(),
            trace: Trace::default(),
        })
    }

    /// Where its disk is written to, and a new name each time: what was to go on there may have failed after it was
    /// made.
    pub(super) fn next_overlay(&mut self) -> Overlays {
        // One that was made and not used is gone, or has no length.
        let newest = std::fs::metadata(self.overlay(self.overlays));
        if newest.is_ok_and(|file| file.len() > 0) {
            self.overlay_in_use = self.overlays;
        }
        self.overlays += 1;
        Overlays {
            present: self.overlay(self.overlay_in_use),
            next: self.overlay(self.overlays),
        }
    }

    /// Where overlay number `index` of this guest is.
    pub(super) fn overlay(&self, index: u32) -> PathBuf {
        self.run.path().join(overlay_name(index))
    }
}

/// Where a VM's console is logged.
pub(super) fn console_of(run: &Path) -> PathBuf {
    run.join("console.log")
}

/// Where clients of a VM's vsock ports connect.
pub(super) fn vsock_of(run: &Path) -> PathBuf {
    run.join("vsock")
}

/// Length of the virtio-mem region of a guest that may grow from `memory_mb` to `max_memory_mb`, in
/// bytes: whole Linux memory blocks, and at least one, since the device cannot have none.
fn region_bytes(memory_mb: u32, max_memory_mb: u32) -> u64 {
    let grows = u64::from(max_memory_mb.saturating_sub(memory_mb)) * MIB;
    grows.next_multiple_of(LINUX_MEMORY_BLOCK).max(LINUX_MEMORY_BLOCK)
}

/// A new guest id: `vm-` and 16 hexadecimal digits.
pub(super) fn new_id() -> RunId {
    let id = format!("vm-{:016x}", u64::from_le_bytes(random::bytes()));
    match id.parse() {
        Ok(id) => id,
        // The store takes any short name of lower-case letters, digits and dashes.
        Err(_) => unreachable!("{id} is a valid id by construction"),
    }
}

pub(super) fn layer_file(layer: &Layer) -> LayerFile {
    LayerFile {
        path: absolute(layer.path()),
        raw: layer.kind() == LayerKind::Raw,
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
