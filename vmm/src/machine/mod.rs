//! A machine: memory, vCPUs and devices put together.
//!
//! A [`Machine`] stands still and belongs to one thread: it can be saved, changed, or set going. A
//! [`Running`] machine has a thread a vCPU and one for I/O; pausing it joins them all, so that the
//! process is single-threaded at that moment (and may `fork(2)`). Cold boot and restore are
//! constructors of their own: [`boot`](Machine::boot), and [`into_machine`](Template::into_machine) for what was saved.

mod boot;
mod image;
mod parts;
mod restore;
mod running;
mod state;
mod template;
mod wake;

use std::sync::Arc;

use kvm_ioctls::VmFd;

pub use boot::BootConfig;
pub use image::{ImageError, write_memory};
pub use parts::Attachments;
pub use running::Running;
pub use state::MachineState;
pub use template::Template;
pub use wake::Identity;

use crate::boot::BootError;
use crate::bus::Bus;
use crate::device_set::DeviceSet;
use crate::exit::EndedSlot;
use crate::fork_port::ForkPort;
use crate::io::IoLoop;
use crate::kvm::KvmError;
use crate::memslots::MemslotError;
use crate::ram::{Ram, RamError};
use crate::vcpu::cpuid::MissingFeature;
use crate::vcpu::gate::Gate;
use crate::vcpu::run::Vcpu;
use crate::vcpu::state::VcpuStateError;

/// Most vCPUs of a machine (the guest kernel is built for as many).
pub const MAX_VCPUS: u8 = 16;

/// Why a machine could not be made, saved or set going.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM is not usable.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A KVM call failed.
    #[error("{step}: {source}")]
    Ioctl {
        /// Which.
        step: &'static str,
        /// The cause.
        source: kvm_ioctls::Error,
    },
    /// Guest memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// Memslots.
    #[error(transparent)]
    Memslot(#[from] MemslotError),
    /// The kernel could not be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Guest memory is too small for boot structures.
    #[error("guest memory: {0}")]
    GuestMemory(#[from] vm_memory::GuestMemoryError),
    /// A vCPU's state.
    #[error(transparent)]
    Vcpu(#[from] VcpuStateError),
    /// A device's state does not fit this machine.
    #[error("the saved state of {device} is refused: {why}")]
    Device {
        /// Which device.
        device: &'static str,
        /// Why.
        why: String,
    },
    /// A machine that was saved anywhere else could not be told who its forks are.
    #[error(
        "the machine was not saved at its fork port, so no fork of it could be told who it is; checkpoint it again"
    )]
    NotAtPort,
    /// A fork cannot be what it is asked to be.
    #[error("the fork cannot be told who it is: {0}")]
    Identity(String),
    /// A bad number of vCPUs.
    #[error("{0} vCPUs: a machine has 1 to {MAX_VCPUS}")]
    VcpuCount(usize),
    /// This host lacks CPU features that the guest was promised.
    #[error(
        "this host's CPU or KVM lacks what the checkpoint's guest uses: {}; restore on a host like the one it was made on, or build the image again here",
        list(.0)
    )]
    CpuFeatures(Vec<MissingFeature>),
    /// Descriptors or threads ran out.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: std::io::Error,
    },
}

fn list(features: &[MissingFeature]) -> String {
    features
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// A step of KVM set-up, for the error message.
fn ioctl(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Ioctl { step, source }
}

fn host(what: &'static str) -> impl FnOnce(std::io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// A machine that stands still. Fields are dropped in order: vCPUs before memory.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    io: IoLoop,
    /// It stands at its fork port: a copy of it wakes there.
    at_port: bool,
    /// kvm-clock goes on from here when it runs; absent in one that was only paused.
    clock_ns: Option<u64>,
    shared: Shared,
}

/// What the threads of a running machine share.
#[derive(Clone)]
struct Shared {
    gate: Arc<Gate>,
    bus: Arc<Bus>,
    devices: Arc<DeviceSet>,
    ended: Arc<EndedSlot>,
    port: Arc<ForkPort>,
    msrs: Arc<[u32]>,
    generation: [u8; 16],
    vm: Arc<VmFd>,
    ram: Arc<Ram>,
}

impl Machine {
    /// Guest memory.
    pub fn ram(&self) -> &Arc<Ram> {
        &self.shared.ram
    }

    /// The devices.
    pub fn devices(&self) -> &DeviceSet {
        &self.shared.devices
    }

    /// The fork port.
    pub fn fork_port(&self) -> &Arc<ForkPort> {
        &self.shared.port
    }

    /// How the machine ended, once it has.
    pub fn ended(&self) -> &Arc<EndedSlot> {
        &self.shared.ended
    }
}
