//! Getting a Linux kernel into guest memory and the boot vCPU to its entry.
//!
//! Two protocols: PVH when the kernel has its note, else the 64-bit Linux boot protocol. The kernel
//! file is an uncompressed `vmlinux`, or a bzImage whose payload is unpacked on the host (guests
//! never decompress: see `kernel_file`).

pub mod kernel_file;
mod linux64;
mod pvh;

use std::fs::File;
use std::path::{Path, PathBuf};

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{Elf, KernelLoader};
use spore_devices::virtio::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::ram::RamLayout;
use crate::vcpu::entry::{self, Entry};

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file cannot be read.
    #[error("kernel {path}: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is no kernel we can boot.
    #[error("kernel {path}: {why}; give an uncompressed 64-bit ELF vmlinux or an x86_64 bzImage")]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What was found.
        why: String,
    },
    /// The command line is too long or not ASCII.
    #[error("kernel command line: {0}")]
    CommandLine(String),
    /// Boot structures do not fit into guest memory.
    #[error("boot structures: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
    /// linux-loader could not write the boot parameters.
    #[error("boot parameters: {0}")]
    Configure(linux_loader::configurator::Error),
}

/// An entry of the memory map handed to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapEntry {
    pub start: u64,
    pub bytes: u64,
    /// E820 type: 1 RAM, 2 reserved.
    pub kind: u32,
}

/// The memory map: what is RAM, and which part of it is kept back for tables.
pub(crate) fn memory_map(ram: RamLayout) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry {
            start: 0,
            bytes: layout::LOW_RAM_END,
            kind: 1,
        },
        MapEntry {
            start: layout::LOW_RAM_END,
            bytes: layout::HIGH_RAM - layout::LOW_RAM_END,
            kind: 2,
        },
    ];
    for (start, bytes) in layout::boot_ram(ram.boot) {
        let skip = layout::HIGH_RAM.saturating_sub(start).min(bytes);
        map.push(MapEntry {
            start: start + skip,
            bytes: bytes - skip,
            kind: 1,
        });
    }
    map
}

/// Loads `kernel` and everything its entry needs, but for the ACPI tables.
///
/// # Errors
/// [`BootError`].
pub fn load(
    memory: &Memory,
    ram: RamLayout,
    (kernel, file): (&Path, &mut File),
    cmdline: &str,
) -> Result<Entry, BootError> {
    let not_a_kernel = |why: String| BootError::NotAKernel {
        path: kernel.to_owned(),
        why,
    };
    let mut image = kernel_file::read(file, kernel)?;
    let loaded = Elf::load(memory, None, &mut image, Some(GuestAddress(layout::HIGH_RAM)))
        .map_err(|error| not_a_kernel(error.to_string()))?;
    if loaded.kernel_end > ram.boot.min(layout::HOLE_START) {
        return Err(not_a_kernel(format!(
            "it ends at {:#x}, beyond the guest's RAM",
            loaded.kernel_end
        )));
    }
    write_command_line(memory, cmdline)?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(address) => {
            pvh::write_start_info(memory, ram)?;
            Entry::Pvh(address.0)
        }
        _ => {
            linux64::write_boot_params(memory, ram, cmdline.len())?;
            linux64::write_page_tables(memory)?;
            Entry::Linux64(loaded.kernel_load.0)
        }
    };
    let gdt = entry::boot_gdt(matches!(entry, Entry::Linux64(_)));
    for (index, descriptor) in (0u64..).zip(gdt) {
        memory.write_obj(descriptor, GuestAddress(layout::BOOT_GDT + index * 8))?;
    }
    Ok(entry)
}

fn write_command_line(memory: &Memory, cmdline: &str) -> Result<(), BootError> {
    if cmdline.len() >= layout::CMDLINE_MAX {
        return Err(BootError::CommandLine(format!(
            "{} bytes; at most {} fit",
            cmdline.len(),
            layout::CMDLINE_MAX - 1
        )));
    }
    if !cmdline.bytes().all(|b| (0x20..0x7F).contains(&b)) {
        return Err(BootError::CommandLine("only printable ASCII is allowed".into()));
    }
    memory.write_slice(cmdline.as_bytes(), GuestAddress(layout::CMDLINE))?;
    memory.write_obj(0u8, GuestAddress(layout::CMDLINE + cmdline.len() as u64))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{GIB, MIB};

    #[test]
    fn the_memory_map_leaves_no_gap_in_ram_and_keeps_the_tables_back() {
        let map = memory_map(RamLayout {
            boot: 4 * GIB,
            hotplug: 0,
        });
        assert_eq!(
            map[0],
            MapEntry {
                start: 0,
                bytes: layout::LOW_RAM_END,
                kind: 1
            }
        );
        assert_eq!(
            map[2],
            MapEntry {
                start: MIB,
                bytes: 3 * GIB - MIB,
                kind: 1
            }
        );
        assert_eq!(
            map[3],
            MapEntry {
                start: 4 * GIB,
                bytes: GIB,
                kind: 1
            }
        );
    }

    #[test]
    fn a_command_line_that_is_too_long_or_not_ascii_is_refused() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        assert!(write_command_line(&memory, &"x".repeat(2048)).is_err());
        assert!(write_command_line(&memory, "a\nb").is_err());
        write_command_line(&memory, "quiet").unwrap();
        assert_eq!(
            memory.read_obj::<u8>(GuestAddress(layout::CMDLINE + 5)).unwrap(),
            0
        );
    }
}
