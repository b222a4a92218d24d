//! ACPI tables: hardware-reduced, so no SCI, no PM timer, no legacy devices (ACPI 6.5, 4.1).
//!
//! The DSDT names the virtio-mmio devices (`LNRO0005`), COM1, pvpanic (`QEMU0001`), the VM
//! generation id (Microsoft "Virtual Machine Generation ID") and the generic event device that
//! notifies it. Power-off and reset are the sleep control and reset registers of the FADT.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, Package, Path,
    ResourceTemplate, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use spore_devices::virtio::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::{self, Slot};

const OEM: [u8; 6] = *b"SPORE ";
const TABLE: [u8; 8] = *b"SPOREVM ";

/// Writes all tables for `cpus` vCPUs; the RSDP is at [`layout::ACPI`].
///
/// # Errors
/// When guest memory is too small for them.
pub fn write_tables(memory: &Memory, cpus: u8) -> Result<(), GuestMemoryError> {
    let mut next = layout::ACPI + 64;
    let mut place = |table: &[u8]| -> Result<u64, GuestMemoryError> {
        let at = next;
        memory.write_slice(table, GuestAddress(at))?;
        next = (at + table.len() as u64).next_multiple_of(64);
        Ok(at)
    };
    let dsdt = place(&dsdt())?;
    let fadt = place(&bytes_of(&fadt(dsdt)))?;
    let madt = place(&bytes_of(&madt(cpus)))?;
    let mut xsdt = XSDT::new(OEM, TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&bytes_of(&xsdt))?;
    memory.write_slice(&bytes_of(&Rsdp::new(OEM, xsdt)), GuestAddress(layout::ACPI))
}

struct Sink(Vec<u8>);

impl AmlSink for Sink {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut sink = Sink(Vec::new());
    table.to_aml_bytes(&mut sink);
    sink.0
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            u64::from(port),
        )
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    // IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): no VGA, no CMOS RTC; bit 1 (8042) stays clear.
    fadt.iapc_boot_arch = (1u16 << 2 | 1 << 5).into();
    fadt.reset_reg = register(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.sleep_control_reg = register(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = register(layout::SLEEP_STATUS_PORT);
    fadt.finalize()
}

#[allow(clippy::cast_possible_truncation)] // Both addresses are constants below 4 GiB.
fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(
        OEM,
        TABLE,
        1,
        LocalInterruptController::Address(layout::LAPIC as u32),
    );
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    // An id no LAPIC has.
    madt.add_structure(IoApic::new(cpus, layout::IOAPIC as u32, 0));
    madt
}

/// An edge-triggered, active-high, exclusive interrupt.
fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

/// A device under `\_SB_` with some named objects.
fn device(name: &str, objects: &[&dyn Aml]) -> Vec<u8> {
    bytes_of(&Device::new(Path::new(&format!("_SB_.{name}")), objects.to_vec()))
}

fn name(name: &str, value: &dyn Aml) -> Name {
    Name::new(Path::new(name), value)
}

fn resources(list: Vec<&dyn Aml>) -> Name {
    name("_CRS", &ResourceTemplate::new(list))
}

#[allow(clippy::cast_possible_truncation)] // Addresses in the hole fit 32 bits.
fn virtio_mmio(slot: Slot) -> Vec<u8> {
    let registers = Memory32Fixed::new(true, slot.mmio() as u32, layout::VIRTIO_MMIO_STRIDE as u32);
    device(
        &format!("VR{:02X}", slot as u8),
        &[
            &name("_HID", &"LNRO0005"),
            &name("_UID", &(slot as u8)),
            // Device DMA is coherent (ACPI 6.5, 6.2.17).
            &name("_CCA", &ONE),
            &resources(vec![&registers, &edge(slot.gsi())]),
        ],
    )
}

fn com1() -> Vec<u8> {
    let ports = IO::new(layout::COM1_PORT, layout::COM1_PORT, 1, 8);
    device(
        "COM1",
        &[
            &name("_HID", &EISAName::new("PNP0501")),
            &name("_UID", &ZERO),
            &resources(vec![&ports, &edge(layout::COM1_GSI)]),
        ],
    )
}

fn pvpanic() -> Vec<u8> {
    let port = IO::new(layout::PVPANIC_PORT, layout::PVPANIC_PORT, 1, 1);
    // _STA: present, enabled, shown, functioning.
    device(
        "PEVT",
        &[
            &name("_HID", &"QEMU0001"),
            &resources(vec![&port]),
            &name("_STA", &0xFu8),
        ],
    )
}

#[allow(clippy::cast_possible_truncation)] // An address in low RAM.
fn generation_id() -> Vec<u8> {
    let address = layout::VMGENID as u32;
    device(
        "VGEN",
        &[
            &name("_HID", &"SPOR0001"),
            &name("_CID", &"VM_Gen_Counter"),
            &name("_DDN", &"VM_Gen_Counter"),
            &name("ADDR", &Package::new(vec![&address, &ZERO])),
        ],
    )
}

/// The generic event device (ACPI 6.5, 5.6.9): its one interrupt means a new generation id.
fn events() -> Vec<u8> {
    let target = Path::new("\\_SB_.VGEN");
    let notify = Notify::new(&target, &0x80u8);
    device(
        "GED_",
        &[
            &name("_HID", &"ACPI0013"),
            &name("_UID", &ZERO),
            &resources(vec![&edge(layout::GED_GSI)]),
            &Method::new(Path::new("_EVT"), 1, true, vec![&notify]),
        ],
    )
}

fn dsdt() -> Vec<u8> {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, OEM, TABLE, 1);
    for slot in Slot::ALL {
        sdt.append_slice(&virtio_mmio(slot));
    }
    for device in [com1(), pvpanic(), generation_id(), events()] {
        sdt.append_slice(&device);
    }
    let sleep = Package::new(vec![&layout::S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    sdt.append_slice(&bytes_of(&name("_S5_", &sleep)));
    sdt.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_sums_to_zero_and_the_rsdp_leads_to_all() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        write_tables(&memory, 16).unwrap();
        let bytes = |at: u64, n: usize| {
            let mut bytes = vec![0; n];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            bytes
        };
        let table = |at: u64| {
            let length = u32::from_le_bytes(bytes(at + 4, 4).try_into().unwrap()) as usize;
            let table = bytes(at, length);
            assert_eq!(
                table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)),
                0,
                "{:?}",
                &table[..4]
            );
            table
        };
        let u64_at = |table: &[u8], at: usize| u64::from_le_bytes(table[at..at + 8].try_into().unwrap());
        let rsdp = bytes(layout::ACPI, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!(rsdp.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        let xsdt = table(u64_at(&rsdp, 24));
        let fadt = table(u64_at(&xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(&table(u64_at(&fadt, 140))[..4], b"DSDT");
        assert_eq!(&table(u64_at(&xsdt, 44))[..4], b"APIC");
    }
}
