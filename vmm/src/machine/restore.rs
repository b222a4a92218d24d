//! A machine from a template.

use spore_devices::ioapic::Ioapic;
use spore_devices::virtio::VirtioDevice;
use spore_devices::virtio::balloon::Balloon;
use spore_devices::virtio::block::Block;
use spore_devices::virtio::mem::Mem;
use spore_devices::virtio::mmio::{MmioTransport, TransportState};
use spore_devices::virtio::net::Net;
use spore_devices::virtio::rng::Rng;
use spore_devices::virtio::vsock::Vsock;
use spore_devices::vmgenid::VmGenId;
use vm_memory::{GuestAddress, GuestAddressSpace};
use vm_superio::Serial;
use vm_superio::serial::NoEvents;

use super::parts::{Attachments, Foundation, Sleeper, mem_config};
use super::template::{Template, vcpu_count};
use super::{Machine, MachineError, host};
use crate::clock::Trace;
use crate::console::ConsoleLog;
use crate::device_set::Parts;
use crate::irq::{IrqLine, KvmRouter, SerialLine};
use crate::layout::{self, Slot};
use crate::net::Nowhere;
use crate::random;
use crate::reclaim::Reclaim;
use crate::vcpu::state;

fn refused<E: std::fmt::Display>(device: &'static str) -> impl FnOnce(E) -> MachineError {
    move |error| MachineError::Device {
        device,
        why: error.to_string(),
    }
}

impl Template {
    /// A copy of the machine that was saved, about to go on where that one stood. Its generation id is new: the
    /// guest is told when it runs. Its clocks stand until then.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn into_machine(self, attachments: Attachments, trace: &mut Trace) -> Result<Machine, MachineError> {
        let Self {
            kvm,
            state,
            ram,
            plugged,
            wake_set,
        } = self;
        let count = vcpu_count(&state)?;
        let config = mem_config(state.ram)?;
        let generation = random::bytes();
        VmGenId::new(generation, GuestAddress(layout::VMGENID))
            .write_to(&ram.view().memory())
            .map_err(refused("vmgenid"))?;

        let (base, hotplug) = Foundation::new(&kvm, ram, count, &plugged, trace)?;
        let mut vcpus = base.create_vcpus(count)?;
        trace.mark("KVM_CREATE_VCPU");
        for (vcpu, saved) in vcpus.iter_mut().zip(&state.vcpus) {
            state::restore(vcpu.index, &vcpu.fd, saved)?;
            vcpu.cpuid = saved.cpuid().to_vec();
            vcpu.tsc = Some(saved.tsc());
        }
        trace.mark("vCPU state");
        let ioapic = Ioapic::restore(&state.devices.ioapic, KvmRouter(base.vm.clone()))
            .map_err(refused("the IOAPIC"))?;

        // Devices last: from here on interrupts can be raised.
        let line = |gsi: u32| IrqLine::new(&base.vm, gsi).map_err(host("an interrupt line"));
        let view = base.ram.view().memory();
        let (mem_transport, mem_state) = &state.devices.mem;
        let (root_transport, root) = &state.devices.root;
        let (vsock_transport, vsock) = &state.devices.vsock;
        let (rng_transport, rng) = &state.devices.rng;
        let (balloon_transport, balloon) = &state.devices.balloon;
        let (net_transport, net) = &state.devices.net;
        let root = Block::restore(root.clone(), attachments.disk).map_err(refused("virtio-blk"))?;
        let mem = Mem::restore(config, mem_state, hotplug).map_err(refused("virtio-mem"))?;
        let vsock = Vsock::restore(vsock).map_err(refused("virtio-vsock"))?;
        let rng = Rng::restore(*rng, random::source());
        let balloon = Balloon::restore(*balloon, Reclaim::new(base.ram.clone()));
        let net = net
            .config()
            .and_then(|config| Net::restore(net, config, Some(Box::new(Nowhere))))
            .map_err(refused("virtio-net"))?;
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
            net: transport("virtio-net", net, net_transport, line(Slot::Net.gsi())?, &view)?,
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
        let sleeper = Sleeper {
            generation,
            asleep: true,
            clock_ns: Some(state.clock_ns),
        };
        let msrs = state.vcpus.iter().flat_map(|vcpu| vcpu.msr_indices());
        let msrs: std::collections::BTreeSet<u32> = msrs.collect();
        let machine = base.assemble(
            vcpus,
            parts,
            attachments.vsock,
            msrs.into_iter().collect(),
            sleeper,
        )?;
        trace.mark("devices");
        if let Some(pages) = wake_set {
            pages
                .populate(&machine.shared.ram)
                .map_err(host("populating the wake set"))?;
            trace.mark("wake set populated");
        }
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
