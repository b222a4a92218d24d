//! The 64-bit Linux boot protocol: `boot_params` and an identity map of the first 4 GiB.

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use spore_devices::virtio::Memory;
use vm_memory::{Bytes, GuestAddress};

use super::{BootError, memory_map};
use crate::layout;
use crate::ram::RamLayout;

/// Writes the zero page: command line, memory map, where the RSDP is.
pub fn write_boot_params(memory: &Memory, ram: RamLayout, cmdline_length: usize) -> Result<(), BootError> {
    let mut params = boot_params::default();
    params.hdr.type_of_loader = 0xFF;
    params.hdr.boot_flag = 0xAA55;
    params.hdr.header = 0x5372_6448; // "HdrS"
    params.hdr.cmd_line_ptr = u32::try_from(layout::CMDLINE).unwrap_or(0);
    params.hdr.cmdline_size = u32::try_from(cmdline_length + 1).unwrap_or(0);
    params.hdr.kernel_alignment = 0x20_0000;
    params.acpi_rsdp_addr = layout::ACPI;
    let map = memory_map(ram);
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.start,
            size: entry.bytes,
            r#type: entry.kind,
        };
    }
    params.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    let params = BootParams::new(&params, GuestAddress(layout::BOOT_INFO));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(BootError::Configure)
}

/// PML4 -> PDPT -> four directories of 2 MiB pages.
pub fn write_page_tables(memory: &Memory) -> Result<(), BootError> {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 1 << 7;
    let page = |index: u64| layout::BOOT_PAGE_TABLES + index * layout::PAGE_SIZE;
    memory.write_obj(page(1) | PRESENT_WRITABLE, GuestAddress(page(0)))?;
    for gib in 0..4u64 {
        memory.write_obj(page(2 + gib) | PRESENT_WRITABLE, GuestAddress(page(1) + gib * 8))?;
        for entry in 0..512u64 {
            let target = (gib << 30) | (entry << 21);
            memory.write_obj(
                target | LARGE | PRESENT_WRITABLE,
                GuestAddress(page(2 + gib) + entry * 8),
            )?;
        }
    }
    Ok(())
}
