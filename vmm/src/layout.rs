//! Where everything lives in guest-physical address space and on the interrupt lines.
//!
//! The layout is part of the checkpoint format: a checkpoint restores only onto the same one.
//!
//! | range | what |
//! |---|---|
//! | `0x0` - `0x9_E000` | low RAM; boot structures (PVH start info, zero page, page tables, command line) |
//! | `0x9_E000` - `0x9_F000` | reserved RAM page: the fork port's mailbox |
//! | `0x9_F000` - `0xA_0000` | reserved RAM page: VM generation id |
//! | `0xE_0000` - `0x10_0000` | reserved RAM: ACPI tables |
//! | `0x10_0000` - 3 GiB | RAM |
//! | 3 GiB - 4 GiB | hole: virtio-mmio registers, fork port, IOAPIC, LAPIC |
//! | 4 GiB - ... | the rest of boot RAM |
//! | 256 GiB - ... | the virtio-mem region |

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;
/// The guest page size, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// PVH `hvm_start_info` (also the zero page of the 64-bit boot protocol).
pub const BOOT_INFO: u64 = 0x7000;
/// PVH memory map table.
pub const PVH_MEMMAP: u64 = 0x8000;
/// Page tables for the 64-bit boot protocol: PML4, PDPT, four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// GDT for the boot vCPU.
pub const BOOT_GDT: u64 = 0x500;
/// Stack pointer at entry.
pub const BOOT_STACK: u64 = 0x1_8000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Longest kernel command line, in bytes, with its terminating NUL (COMMAND_LINE_SIZE on x86).
pub const CMDLINE_MAX: usize = 2048;

/// End of conventional low RAM; the rest up to 1 MiB is reserved.
pub const LOW_RAM_END: u64 = spore_protocol::fork_port::MAILBOX;
/// The page that holds the VM generation id.
pub const VMGENID: u64 = LOW_RAM_END + PAGE_SIZE;
/// ACPI tables; the RSDP comes first.
pub const ACPI: u64 = 0xE_0000;
/// End of the ACPI area and of the first mebibyte.
pub const HIGH_RAM: u64 = 0x10_0000;

/// Start of the hole below 4 GiB.
pub const HOLE_START: u64 = 3 * GIB;
/// End of the hole: RAM goes on here.
pub const HOLE_END: u64 = 4 * GIB;

/// First virtio-mmio register page.
pub const VIRTIO_MMIO: u64 = 0xD000_0000;
/// Size of one device's register page, in bytes.
pub const VIRTIO_MMIO_STRIDE: u64 = 0x1000;
/// IOAPIC registers.
pub const IOAPIC: u64 = 0xFEC0_0000;
/// Size of the IOAPIC window, in bytes.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// Local APIC registers (handled in the kernel).
pub const LAPIC: u64 = 0xFEE0_0000;

/// Start of the virtio-mem region: above any boot RAM, below 2^39 (the smallest physical address
/// width of CPUs in servers), and a multiple of Linux's largest memory block (2 GiB).
pub const HOTPLUG: u64 = 256 * GIB;
/// Most boot RAM this layout can hold, in bytes.
pub const BOOT_RAM_MAX: u64 = HOTPLUG - HOLE_END + HOLE_START;
/// virtio-mem device block size, in bytes: a transparent huge page.
pub const HOTPLUG_BLOCK: u64 = 2 * MIB;
/// Linux memory block size on x86_64 with less than 64 GiB, in bytes: growth in multiples of it is exact.
pub const LINUX_MEMORY_BLOCK: u64 = 128 * MIB;

/// COM1, 16550A.
pub const COM1_PORT: u16 = 0x3F8;
/// COM1's interrupt line.
pub const COM1_GSI: u32 = 4;
/// Interrupt line of the ACPI generic event device.
pub const GED_GSI: u32 = 5;
/// First interrupt line of the virtio-mmio devices; device `n` has `VIRTIO_GSI + n`.
pub const VIRTIO_GSI: u32 = 6;
/// Pins of the IOAPIC.
pub const IOAPIC_PINS: u32 = 24;

/// ACPI sleep control register (one byte, I/O port; ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL_PORT: u16 = 0x600;
/// ACPI sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x601;
/// ACPI reset register.
pub const RESET_PORT: u16 = 0x602;
/// Value that resets, written to [`RESET_PORT`].
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5, soft off.
pub const S5_SLEEP_TYPE: u8 = 5;
/// pvpanic (QEMU's number; docs/specs/pvpanic.rst).
pub const PVPANIC_PORT: u16 = 0x505;

/// The virtio devices of a machine, in the order of their register pages and interrupt lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Slot {
    /// Root disk.
    Root = 0,
    /// virtio-mem.
    Mem = 1,
    /// virtio-vsock.
    Vsock = 2,
    /// virtio-rng.
    Rng = 3,
    /// virtio-balloon (free page reporting).
    Balloon = 4,
    /// virtio-net.
    Net = 5,
}

impl Slot {
    /// All of them, in order.
    pub const ALL: [Slot; 6] = [
        Slot::Root,
        Slot::Mem,
        Slot::Vsock,
        Slot::Rng,
        Slot::Balloon,
        Slot::Net,
    ];

    /// Guest-physical address of the device's registers.
    pub const fn mmio(self) -> u64 {
        VIRTIO_MMIO + self as u64 * VIRTIO_MMIO_STRIDE
    }

    /// The device's interrupt line.
    pub const fn gsi(self) -> u32 {
        VIRTIO_GSI + self as u32
    }

    /// Which device's register page holds `address`, and the offset in it.
    pub fn at(address: u64) -> Option<(Slot, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO)?;
        let index = usize::try_from(offset / VIRTIO_MMIO_STRIDE).ok()?;
        Some((*Slot::ALL.get(index)?, offset % VIRTIO_MMIO_STRIDE))
    }
}

/// The parts of boot RAM around the hole, as `(guest-physical start, bytes)`: one or two.
pub fn boot_ram(bytes: u64) -> Vec<(u64, u64)> {
    if bytes <= HOLE_START {
        vec![(0, bytes)]
    } else {
        vec![(0, HOLE_START), (HOLE_END, bytes - HOLE_START)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_below_the_hole_is_one_piece_and_more_is_two() {
        assert_eq!(boot_ram(GIB), vec![(0, GIB)]);
        assert_eq!(boot_ram(HOLE_START), vec![(0, HOLE_START)]);
        assert_eq!(boot_ram(4 * GIB), vec![(0, 3 * GIB), (4 * GIB, GIB)]);
    }

    #[test]
    fn a_register_address_names_its_device_and_others_name_none() {
        assert_eq!(Slot::at(Slot::Vsock.mmio() + 0x70), Some((Slot::Vsock, 0x70)));
        assert_eq!(Slot::at(VIRTIO_MMIO - 1), None);
        assert_eq!(Slot::at(VIRTIO_MMIO + 9 * VIRTIO_MMIO_STRIDE), None);
    }
}
