//! Where an exit's address leads: memory-mapped and port I/O.
//!
//! Addresses nobody claims read as all ones and swallow writes, as an empty bus does.

use std::sync::Arc;

use spore_devices::pvpanic::{self, PanicEvent};
use spore_devices::virtio::mmio::{LostInterrupt, MmioDevice};
use vm_memory::GuestAddressSpace;

use crate::device_set::{DeviceSet, QUEUE_NOTIFY, lock};
use crate::exit::Ended;
use crate::fork_port::{AfterRead, ForkPort};
use crate::layout::{self, Slot};
use crate::ram::Ram;

/// InterruptStatus (virtio 1.2, 4.2.2).
const INTERRUPT_STATUS: u64 = 0x60;
/// InterruptACK.
const INTERRUPT_ACK: u64 = 0x64;
/// SLP_EN in the sleep control register (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;

/// The buses of one machine.
pub struct Bus {
    devices: Arc<DeviceSet>,
    ram: Arc<Ram>,
    port: Arc<ForkPort>,
}

impl Bus {
    /// Buses over these devices.
    pub fn new(devices: Arc<DeviceSet>, ram: Arc<Ram>, port: Arc<ForkPort>) -> Self {
        Self { devices, ram, port }
    }

    /// A guest's read of device memory, and what the vCPU is to do after it.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> AfterRead {
        if let Some((slot, offset)) = Slot::at(address) {
            // The interrupt handler's register goes round the lock: the device may be at work.
            if offset == INTERRUPT_STATUS
                && let (Some(line), Ok(data)) =
                    (self.devices.line(slot), <&mut [u8; 4]>::try_from(&mut *data))
            {
                *data = line.status().to_le_bytes();
                return AfterRead::GoOn;
            }
            MmioDevice::read(&mut *lock(self.devices.virtio(slot)), offset, data);
        } else if let Some(offset) = in_ioapic(address) {
            lock(&self.devices.ioapic).read(offset, data);
        } else if let Some(offset) = ForkPort::offset(address) {
            return self.port.read(offset, data);
        } else {
            data.fill(0xFF);
        }
        AfterRead::GoOn
    }

    /// A guest's write to device memory.
    ///
    /// # Errors
    /// [`LostInterrupt`]: an interrupt could not be raised or routed; the VM cannot go on.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> Result<(), LostInterrupt> {
        if let Some((slot, offset)) = Slot::at(address) {
            match (offset, <[u8; 4]>::try_from(data).map(u32::from_le_bytes)) {
                // KVM takes kicks by ioeventfd; one that comes here names no queue of ours. Queues
                // are only ever worked on by the I/O thread.
                (QUEUE_NOTIFY, _) => {}
                (INTERRUPT_ACK, Ok(bits)) => {
                    if let Some(line) = self.devices.line(slot) {
                        line.acknowledge(bits);
                    }
                }
                _ => {
                    let memory = self.ram.view().memory();
                    MmioDevice::write(&mut *lock(self.devices.virtio(slot)), offset, data, &memory)?;
                }
            }
        } else if let Some(offset) = in_ioapic(address) {
            lock(&self.devices.ioapic).write(offset, data)?;
        } else if let Some(offset) = ForkPort::offset(address) {
            self.port.write(offset, data);
        }
        Ok(())
    }

    /// A guest's read of an I/O port.
    pub fn io_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xFF);
        let Some(first) = data.first_mut() else { return };
        match port {
            layout::COM1_PORT..0x400 => *first = lock(&self.devices.serial).read(com1_offset(port)),
            // The bits we understand.
            layout::PVPANIC_PORT => pvpanic::read(data),
            layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT | layout::RESET_PORT => *first = 0,
            _ => {}
        }
    }

    /// A guest's write to an I/O port; says so when it ends the VM.
    pub fn io_write(&self, port: u16, data: &[u8]) -> Option<Ended> {
        let &first = data.first()?;
        match port {
            layout::COM1_PORT..0x400 => {
                // The console is a log: losing a byte or its interrupt must not end the VM.
                if let Err(error) = lock(&self.devices.serial).write(com1_offset(port), first) {
                    tracing::debug!(?error, "console");
                }
                None
            }
            layout::PVPANIC_PORT => {
                matches!(pvpanic::write(data), Some(PanicEvent::Panicked)).then_some(Ended::Panic)
            }
            layout::SLEEP_CONTROL_PORT if first == SLEEP_ENABLE | (layout::S5_SLEEP_TYPE << 2) => {
                Some(Ended::PowerOff)
            }
            layout::RESET_PORT if first == layout::RESET_VALUE => Some(Ended::Reset),
            _ => None,
        }
    }
}

fn in_ioapic(address: u64) -> Option<u64> {
    address
        .checked_sub(layout::IOAPIC)
        .filter(|offset| *offset < layout::IOAPIC_SIZE)
}

/// The register of a port of COM1; the match arm has checked that it is one of eight.
fn com1_offset(port: u16) -> u8 {
    u8::try_from(port - layout::COM1_PORT).unwrap_or(u8::MAX)
}
