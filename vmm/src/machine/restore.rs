//! A machine from a checkpoint.

use std::fs::File;

use spore_devices::ioapic::Ioapic;
use spore_devices::virtio::VirtioDevice;
use spore_devices::virtio::balloon::Balloon;
use spore_devices::virtio::block::Block;
use spore_devices::virtio::mem::Mem;
use spore_devices::virtio::mmio::{MmioTransport, TransportState};
use spore_devices::virtio::rng::Rng;
use spore_devices::virtio::vsock::Vsock;
use spore_devices::vmgenid::VmGenId;
use vm_memory::{GuestAddress, GuestAddressSpace};
use vm_superio::Serial;
use vm_superio::serial::NoEvents;

use super::parts::{Attachments, Foundation, mem_config};
use super::state::clock_from;
use super::{MAX_VCPUS, Machine, MachineError, MachineState, host, ioctl};
use crate::console::ConsoleLog;
use crate::device_set::Parts;
use crate::hotplug::run_of;
use crate::irq::{IrqLine, KvmRouter, SerialLine};
use crate::layout::{self, Slot};
use crate::ram::Ram;
use crate::random;
use crate::reclaim::Reclaim;
use crate::vcpu::{cpuid, state};

fn refused<E: std::fmt::Display>(device: &'static str) -> impl FnOnce(E) -> MachineError {
    move |error| MachineError::Device {
        device,
        why: error.to_string(),
    }
}

impl Machine {
    /// A copy of the machine `state` was saved from, over a private view of its `memory`, about to
    /// go on where that one stood. Its generation id is new: the guest is told when it runs.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn restore(
        state: &MachineState,
        memory: &File,
        attachments: Attachments,
    ) -> Result<Self, MachineError> {
        let count = u8::try_from(state.vcpus.len())
            .ok()
            .filter(|count| (1..=MAX_VCPUS).contains(count))
            .ok_or(MachineError::VcpuCount(state.vcpus.len()))?;
        let config = mem_config(state.ram.check()?)?;
        let (mem_transport, mem_state) = &state.devices.mem;
        let plugged: Vec<_> = mem_state
            .plugged_ranges(&config)
            .map_err(refused("virtio-mem"))?
            .into_iter()
            .map(run_of)
            .collect();
        let ram = Ram::from_checkpoint(state.ram, memory, &plugged)?;
        let generation = random::bytes();
        VmGenId::new(generation, GuestAddress(layout::VMGENID))
            .write_to(&ram.view().memory())
            .map_err(refused("vmgenid"))?;

        let (base, hotplug) = Foundation::new(ram, count, &plugged)?;
        let mut vcpus = base.create_vcpus(count)?;
        for (vcpu, saved) in vcpus.iter_mut().zip(&state.vcpus) {
            let missing = cpuid::missing_features(&base.kvm, saved.cpuid())
                .map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
            if !missing.is_empty() {
                return Err(MachineError::CpuFeatures(missing));
            }
            state::restore(vcpu.index, &vcpu.fd, saved)?;
            vcpu.cpuid = saved.cpuid().to_vec();
        }
        base.vm
            .set_clock(&clock_from(state.clock_ns))
            .map_err(ioctl("KVM_SET_CLOCK"))?;
        let ioapic = Ioapic::restore(&state.devices.ioapic, KvmRouter(base.vm.clone()))
            .map_err(refused("the IOAPIC"))?;

        // Devices last: from here on interrupts can be raised.
        let line = |gsi: u32| IrqLine::new(&base.vm, gsi).map_err(host("an interrupt line"));
        let view = base.ram.view().memory();
        let (root_transport, root) = &state.devices.root;
        let (vsock_transport, vsock) = &state.devices.vsock;
        let (rng_transport, rng) = &state.devices.rng;
        let (balloon_transport, balloon) = &state.devices.balloon;
        let root = Block::restore(root.clone(), attachments.disk).map_err(refused("virtio-blk"))?;
        let mem = Mem::restore(config, mem_state, hotplug).map_err(refused("virtio-mem"))?;
        let vsock = Vsock::restore(vsock).map_err(refused("virtio-vsock"))?;
        let rng = Rng::restore(*rng, random::source());
        let balloon = Balloon::restore(*balloon, Reclaim::new(base.ram.clone()));
        let parts = Parts {
            root: transport("virtio-blk", root, root_transport, line(Slot::Root.gsi())?, &view)?,
            mem: transport("virtio-mem", mem, mem_transport, line(Slot::Mem.gsi())?, &view)?,
            vsock: transport(
                "virtio-vsock",
                vsock,
                vsock_transport,
                line(Slot::Vsock.gsi())?,
                &view,
            )?,
            rng: transport("virtio-rng", rng, rng_transport, line(Slot::Rng.gsi())?, &view)?,
            balloon: transport(
                "virtio-balloon",
                balloon,
                balloon_transport,
                line(Slot::Balloon.gsi())?,
                &view,
            )?,
            ioapic,
            serial: Serial::from_state(
                &state.devices.serial.to_state(),
                SerialLine(line(layout::COM1_GSI)?),
                NoEvents,
                ConsoleLog::new(attachments.console),
            )
            .map_err(|error| MachineError::Device {
                device: "COM1",
                why: format!("{error:?}"),
            })?,
            generation_line: line(layout::GED_GSI)?,
        };
        drop(view);
        let mut machine = base.assemble(vcpus, parts, attachments.vsock, generation, state.at_port)?;
        machine.announce = !state.at_port;
        Ok(machine)
    }
}

fn transport<D: VirtioDevice>(
    name: &'static str,
    device: D,
    state: &TransportState,
    line: std::sync::Arc<IrqLine>,
    memory: &spore_devices::virtio::Memory,
) -> Result<MmioTransport<D>, MachineError> {
    MmioTransport::restore(device, state.clone(), line, memory).map_err(refused(name))
}
