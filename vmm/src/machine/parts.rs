//! The steps that cold boot and restore have in common.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VmFd};
use spore_devices::virtio::block::BlockBackend;
use spore_devices::virtio::mem::MemConfig;
use vm_memory::GuestAddress;

use super::{Machine, MachineError, Shared, host, ioctl};
use crate::bus::Bus;
use crate::clock::Trace;
use crate::device_set::{DeviceSet, Parts};
use crate::exit::EndedSlot;
use crate::fork_port::ForkPort;
use crate::hotplug::Hotplug;
use crate::io::IoLoop;
use crate::irq;
use crate::layout;
use crate::memslots::Memslots;
use crate::ram::{PluggedRun, Ram, RamLayout};
use crate::vcpu::gate::Gate;
use crate::vcpu::run::Vcpu;

/// KVM's own scratch pages on Intel hosts without unrestricted guest mode: three pages in the hole.
const TSS_ADDRESS: usize = 0xFFFB_D000;
/// KVM's identity map page on such hosts.
const IDENTITY_MAP: u64 = 0xFFFB_C000;

/// What a machine is connected to on the host.
pub struct Attachments {
    /// The root disk.
    pub disk: Box<dyn BlockBackend>,
    /// Where the serial console goes.
    pub console: File,
    /// Where clients of the guest's vsock ports connect, if anywhere.
    pub vsock: Option<UnixListener>,
}

/// Who the machine is when it first runs, and since when it has slept.
#[derive(Clone, Copy, Default)]
pub(super) struct Sleeper {
    /// VM generation id.
    pub generation: [u8; 16],
    /// It wakes at its fork port.
    pub asleep: bool,
    /// kvm-clock goes on from here when it runs; absent in a machine that boots.
    pub clock_ns: Option<u64>,
}

/// A VM with its memory mapped and its interrupt chip made, before any vCPU.
pub(super) struct Foundation {
    pub vm: Arc<VmFd>,
    pub ram: Arc<Ram>,
    pub gate: Arc<Gate>,
}

impl Foundation {
    /// Memslots before the irqchip, where they are cheap.
    pub fn new(
        kvm: &Kvm,
        ram: Arc<Ram>,
        vcpus: u8,
        plugged: &[PluggedRun],
        trace: &mut Trace,
    ) -> Result<(Self, Hotplug), MachineError> {
        let vm = Arc::new(create_vm(kvm)?);
        trace.mark("KVM_CREATE_VM");
        vm.set_tss_address(TSS_ADDRESS)
            .map_err(ioctl("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(IDENTITY_MAP)
            .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let slots = Memslots::new(vm.clone(), ram.clone(), plugged)?;
        trace.mark("memslots");
        irq::create_split_irqchip(&vm).map_err(ioctl("KVM_CAP_SPLIT_IRQCHIP"))?;
        trace.mark("irqchip");
        let gate = Arc::new(Gate::new(usize::from(vcpus)));
        let hotplug = Hotplug::new(ram.clone(), slots, gate.clone(), plugged.to_vec());
        Ok((Self { vm, ram, gate }, hotplug))
    }

    pub fn create_vcpus(&self, count: u8) -> Result<Vec<Vcpu>, MachineError> {
        (0..count)
            .map(|index| {
                let fd = self
                    .vm
                    .create_vcpu(u64::from(index))
                    .map_err(ioctl("KVM_CREATE_VCPU"))?;
                Ok(Vcpu {
                    index,
                    fd,
                    cpuid: Vec::new(),
                    tsc: None,
                })
            })
            .collect()
    }
}

/// `KVM_CREATE_VM` is interruptible by signals (it waits for a kernel thread): try again then.
fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(ioctl("KVM_CREATE_VM")),
        }
    }
}

/// The virtio-mem region of a memory layout.
pub(super) fn mem_config(ram: RamLayout) -> Result<MemConfig, MachineError> {
    MemConfig::new(GuestAddress(layout::HOTPLUG), ram.hotplug, layout::HOTPLUG_BLOCK).map_err(|error| {
        MachineError::Device {
            device: "virtio-mem",
            why: error.to_string(),
        }
    })
}

impl Foundation {
    /// Puts the finished parts together.
    pub fn assemble(
        self,
        vcpus: Vec<Vcpu>,
        parts: Parts,
        vsock: Option<UnixListener>,
        msrs: Arc<[u32]>,
        sleeper: Sleeper,
    ) -> Result<Machine, MachineError> {
        let Self { vm, ram, gate } = self;
        let Sleeper {
            generation,
            asleep,
            clock_ns,
        } = sleeper;
        let devices = Arc::new(DeviceSet::new(&vm, parts).map_err(host("ioeventfds"))?);
        let port = Arc::new(ForkPort::new(asleep).map_err(host("the fork port"))?);
        let io =
            IoLoop::new(devices.clone(), ram.clone(), port.clone(), vsock).map_err(host("the I/O loop"))?;
        let bus = Arc::new(Bus::new(devices.clone(), ram.clone(), port.clone()));
        let ended = Arc::new(EndedSlot::new().map_err(host("an event descriptor"))?);
        Ok(Machine {
            vcpus,
            io,
            at_port: false,
            clock_ns,
            shared: Shared {
                gate,
                bus,
                devices,
                ended,
                port,
                msrs,
                generation,
                vm,
                ram,
            },
        })
    }
}
