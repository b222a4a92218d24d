//! Cold boot.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use spore_devices::ioapic::Ioapic;
use spore_devices::virtio::balloon::Balloon;
use spore_devices::virtio::block::{Access, Block, BlockId};
use spore_devices::virtio::mem::Mem;
use spore_devices::virtio::mmio::MmioTransport;
use spore_devices::virtio::net::Net;
use spore_devices::virtio::rng::Rng;
use spore_devices::virtio::vsock::{GuestCid, Vsock};
use spore_devices::vmgenid::VmGenId;
use vm_memory::{GuestAddress, GuestAddressSpace};
use vm_superio::Serial;

use super::parts::{Attachments, Foundation, Sleeper, mem_config};
use super::{MAX_VCPUS, Machine, MachineError, host, ioctl};
use crate::acpi;
use crate::boot;
use crate::clock::Trace;
use crate::console::ConsoleLog;
use crate::device_set::Parts;
use crate::irq::{IrqLine, KvmRouter, SerialLine};
use crate::kvm;
use crate::layout::{self, Slot};
use crate::net::{self, Nowhere};
use crate::ram::{Ram, RamLayout};
use crate::random;
use crate::reclaim::Reclaim;
use crate::vcpu::{cpuid, entry, state};

/// What a cold boot needs to know.
#[derive(Debug)]
pub struct BootConfig {
    /// vCPUs, 1 to 16.
    pub vcpus: u8,
    /// Memory sizes.
    pub ram: RamLayout,
    /// Kernel file: ELF or bzImage. What it is called, and the file.
    pub kernel: (PathBuf, File),
    /// Kernel command line.
    pub cmdline: String,
}

impl Machine {
    /// A machine about to execute the first instruction of its kernel.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn boot(mut config: BootConfig, attachments: Attachments) -> Result<Self, MachineError> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(MachineError::VcpuCount(config.vcpus.into()));
        }
        let ram = Ram::anonymous(config.ram)?;
        let memory = ram.view().memory();
        let entry = boot::load(
            &memory,
            config.ram,
            (&config.kernel.0, &mut config.kernel.1),
            &config.cmdline,
        )?;
        acpi::write_tables(&memory, config.vcpus)?;
        let generation = random::bytes();
        VmGenId::new(generation, GuestAddress(layout::VMGENID))
            .write_to(&memory)
            .map_err(|error| MachineError::Device {
                device: "vmgenid",
                why: error.to_string(),
            })?;
        drop(memory);

        let kvm = kvm::open()?;
        let trace = &mut Trace::default();
        let (base, hotplug) = Foundation::new(&kvm, Arc::new(ram), config.vcpus, &[], trace)?;
        let mut vcpus = base.create_vcpus(config.vcpus)?;
        for vcpu in &mut vcpus {
            let cpuid =
                cpuid::for_vcpu(&kvm, vcpu.index, config.vcpus).map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
            vcpu.fd.set_cpuid2(&cpuid).map_err(ioctl("KVM_SET_CPUID2"))?;
            vcpu.cpuid = cpuid.as_slice().to_vec();
        }
        let first = vcpus.first().ok_or(MachineError::VcpuCount(0))?;
        entry::set_boot_state(&first.fd, entry).map_err(ioctl("the boot vCPU's registers"))?;
        let msrs = state::readable_msrs(&kvm, &first.fd).map_err(ioctl("KVM_GET_MSR_INDEX_LIST"))?;

        let line = |gsi: u32| IrqLine::new(&base.vm, gsi).map_err(host("an interrupt line"));
        let id = BlockId::try_from("root").map_err(|error| MachineError::Device {
            device: "virtio-blk",
            why: error.to_string(),
        })?;
        let parts = Parts {
            root: MmioTransport::new(
                Block::new(attachments.disk, id, Access::ReadWrite),
                line(Slot::Root.gsi())?,
            ),
            mem: MmioTransport::new(Mem::new(mem_config(config.ram)?, hotplug), line(Slot::Mem.gsi())?),
            vsock: MmioTransport::new(
                Vsock::new(GuestCid::FIRST, u32::from_le_bytes(random::bytes())),
                line(Slot::Vsock.gsi())?,
            ),
            rng: MmioTransport::new(Rng::new(random::source()), line(Slot::Rng.gsi())?),
            balloon: MmioTransport::new(
                Balloon::new(Reclaim::new(base.ram.clone())),
                line(Slot::Balloon.gsi())?,
            ),
            net: MmioTransport::new(
                Net::new(
                    net::config(None).map_err(host("the network card"))?,
                    Some(Box::new(Nowhere)),
                ),
                line(Slot::Net.gsi())?,
            ),
            ioapic: Ioapic::new(KvmRouter(base.vm.clone())),
            serial: Serial::new(
                SerialLine(line(layout::COM1_GSI)?),
                ConsoleLog::new(attachments.console),
            ),
            generation_line: line(layout::GED_GSI)?,
        };
        let sleeper = Sleeper {
            generation,
            ..Sleeper::default()
        };
        base.assemble(vcpus, parts, attachments.vsock, msrs.into(), sleeper)
    }
}
