//! The PVH start information (Xen `public/arch-x86/hvm/start_info.h`).

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use spore_devices::virtio::Memory;
use vm_memory::GuestAddress;

use super::{BootError, memory_map};
use crate::layout;
use crate::ram::RamLayout;

/// XEN_HVM_START_MAGIC_VALUE.
const MAGIC: u32 = 0x336E_C578;

/// Writes `hvm_start_info` and its memory map.
pub fn write_start_info(memory: &Memory, ram: RamLayout) -> Result<(), BootError> {
    let map: Vec<_> = memory_map(ram)
        .iter()
        .map(|entry| hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.bytes,
            type_: entry.kind,
            reserved: 0,
        })
        .collect();
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: layout::ACPI,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: u32::try_from(map.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::BOOT_INFO));
    params.set_sections(&map, GuestAddress(layout::PVH_MEMMAP));
    PvhBootConfigurator::write_bootparams(&params, memory).map_err(BootError::Configure)
}
