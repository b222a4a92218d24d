//! The devices of one machine, each behind its own lock.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{IoEventAddress, VmFd};
use serde::{Deserialize, Serialize};
use spore_devices::ioapic::{Ioapic, IoapicState};
use spore_devices::virtio::balloon::{Balloon, BalloonState};
use spore_devices::virtio::block::{Block, BlockState};
use spore_devices::virtio::mem::{Mem, MemState};
use spore_devices::virtio::mmio::{InterruptLine, LostInterrupt, MmioTransport, TransportState, VirtioMmio};
use spore_devices::virtio::net::{Net, NetState};
use spore_devices::virtio::rng::{Rng, RngState};
use spore_devices::virtio::vsock::{Vsock, VsockState};
use spore_protocol::network::Network;
use vm_superio::Serial;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::console::ConsoleLog;
use crate::hotplug::{Hotplug, Settle};
use crate::irq::{IrqLine, KvmRouter, SerialLine};
use crate::layout::Slot;
use crate::net::{self, Tap};
use crate::ram::Ram;
use crate::reclaim::Reclaim;

/// Offset of QueueNotify in a virtio-mmio register page (virtio 1.2, 4.2.2).
pub const QUEUE_NOTIFY: u64 = 0x50;

/// COM1 with its log.
pub type Com1 = Serial<SerialLine, NoEvents, ConsoleLog>;

/// All devices.
pub struct DeviceSet {
    /// Root disk.
    pub root: Mutex<MmioTransport<Block>>,
    /// virtio-mem.
    pub mem: Mutex<MmioTransport<Mem<Hotplug>>>,
    /// virtio-vsock.
    pub vsock: Mutex<MmioTransport<Vsock>>,
    /// virtio-rng.
    pub rng: Mutex<MmioTransport<Rng>>,
    /// virtio-balloon.
    pub balloon: Mutex<MmioTransport<Balloon<Reclaim>>>,
    /// virtio-net.
    pub net: Mutex<MmioTransport<Net>>,
    /// What it is connected to, for whoever waits for frames.
    tap: Mutex<Option<Arc<OwnedFd>>>,
    /// The interrupt router.
    pub ioapic: Mutex<Ioapic<KvmRouter>>,
    /// The console.
    pub serial: Mutex<Com1>,
    /// Raises the generic event device's interrupt: a new generation id.
    pub generation_line: Arc<IrqLine>,
    lines: Vec<Arc<InterruptLine>>,
    kicks: Vec<Kick>,
    settle: Arc<Settle>,
}

/// The ioeventfd of one queue.
pub struct Kick {
    /// Which device.
    pub slot: Slot,
    /// Which of its queues.
    pub queue: usize,
    /// Readable when the driver wrote the queue's number to QueueNotify.
    pub event: EventFd,
}

/// The devices at rest, as a checkpoint holds them.
#[derive(Clone, Serialize, Deserialize)]
pub struct DeviceStates {
    /// Root disk.
    pub root: (TransportState, BlockState),
    /// virtio-mem.
    pub mem: (TransportState, MemState),
    /// virtio-vsock.
    pub vsock: (TransportState, VsockState),
    /// virtio-rng.
    pub rng: (TransportState, RngState),
    /// virtio-balloon.
    pub balloon: (TransportState, BalloonState),
    /// virtio-net.
    pub net: (TransportState, NetState),
    /// IOAPIC.
    pub ioapic: IoapicState,
    /// Serial registers that the driver set up.
    pub serial: SerialRegisters,
}

/// A 16550's registers; what was in its receive FIFO is not kept (nobody types into a sandbox).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // The names are the data sheet's.
pub struct SerialRegisters {
    pub baud_divisor_low: u8,
    pub baud_divisor_high: u8,
    pub interrupt_enable: u8,
    pub interrupt_identification: u8,
    pub line_control: u8,
    pub line_status: u8,
    pub modem_control: u8,
    pub modem_status: u8,
    pub scratch: u8,
}

impl SerialRegisters {
    /// Reads them off a port.
    pub fn of(serial: &Com1) -> Self {
        let state = serial.state();
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }

    /// As vm-superio wants them.
    pub fn to_state(self) -> vm_superio::serial::SerialState {
        vm_superio::serial::SerialState {
            baud_divisor_low: self.baud_divisor_low,
            baud_divisor_high: self.baud_divisor_high,
            interrupt_enable: self.interrupt_enable,
            interrupt_identification: self.interrupt_identification,
            line_control: self.line_control,
            line_status: self.line_status,
            modem_control: self.modem_control,
            modem_status: self.modem_status,
            scratch: self.scratch,
            in_buffer: Vec::new(),
        }
    }
}

/// The devices one by one, before they are put behind locks.
pub struct Parts {
    /// Root disk.
    pub root: MmioTransport<Block>,
    /// virtio-mem.
    pub mem: MmioTransport<Mem<Hotplug>>,
    /// virtio-vsock.
    pub vsock: MmioTransport<Vsock>,
    /// virtio-rng.
    pub rng: MmioTransport<Rng>,
    /// virtio-balloon.
    pub balloon: MmioTransport<Balloon<Reclaim>>,
    /// virtio-net.
    pub net: MmioTransport<Net>,
    /// IOAPIC.
    pub ioapic: Ioapic<KvmRouter>,
    /// Console.
    pub serial: Com1,
    /// Generation id interrupt.
    pub generation_line: Arc<IrqLine>,
}

/// Takes a lock whatever happened to its last holder: device models do not panic, and if one did,
/// the VM ends by the panic of its thread, not by a second one here.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceSet {
    /// Puts the devices together and registers an ioeventfd for each queue.
    ///
    /// # Errors
    /// When descriptors run out or KVM refuses one.
    pub fn new(vm: &VmFd, parts: Parts) -> io::Result<Self> {
        let settle = parts.mem.device().backend().settle();
        let mut set = Self {
            root: Mutex::new(parts.root),
            mem: Mutex::new(parts.mem),
            vsock: Mutex::new(parts.vsock),
            rng: Mutex::new(parts.rng),
            balloon: Mutex::new(parts.balloon),
            net: Mutex::new(parts.net),
            tap: Mutex::new(None),
            ioapic: Mutex::new(parts.ioapic),
            serial: Mutex::new(parts.serial),
            generation_line: parts.generation_line,
            lines: Vec::new(),
            kicks: Vec::new(),
            settle,
        };
        for slot in Slot::ALL {
            let (line, queues) = {
                let device = lock(set.virtio(slot));
                (device.interrupt_line(), device.queue_count())
            };
            set.lines.push(line);
            for queue in 0..queues {
                let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
                let number = u32::try_from(queue).map_err(io::Error::other)?;
                vm.register_ioevent(&event, &IoEventAddress::Mmio(slot.mmio() + QUEUE_NOTIFY), number)
                    .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
                set.kicks.push(Kick { slot, queue, event });
            }
        }
        Ok(set)
    }

    /// A device by its slot, whatever it is.
    pub fn virtio(&self, slot: Slot) -> &Mutex<dyn VirtioMmio> {
        match slot {
            Slot::Root => &self.root,
            Slot::Mem => &self.mem,
            Slot::Vsock => &self.vsock,
            Slot::Rng => &self.rng,
            Slot::Balloon => &self.balloon,
            Slot::Net => &self.net,
        }
    }

    /// The interrupt line of a device, which needs no lock.
    pub fn line(&self, slot: Slot) -> Option<&InterruptLine> {
        self.lines.get(slot as usize).map(Arc::as_ref)
    }

    /// Connects the network card to a TAP device. The guest is not told: it has not run yet.
    ///
    /// # Errors
    /// When the card cannot be what is asked, or the TAP cannot do what the guest's driver was promised.
    pub fn connect(&self, spec: &Network, tap: OwnedFd) -> io::Result<()> {
        let tap = Arc::new(tap);
        let backend = Box::new(Tap::new(tap.clone())?);
        let config = net::config(Some(spec))?;
        let mut card = lock(&self.net);
        card.device_mut().set_config(config);
        card.device_mut().set_backend(Some(backend))?;
        *lock(&self.tap) = Some(tap);
        Ok(())
    }

    /// The TAP device that the network card is connected to, if it is to one.
    pub fn tap(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.tap).clone()
    }

    /// All queue kicks.
    pub fn kicks(&self) -> &[Kick] {
        &self.kicks
    }

    /// Looks at every queue of these devices again: a kick may have been lost on the way into a checkpoint.
    ///
    /// # Errors
    /// [`LostInterrupt`].
    pub fn kick_all(&self, slots: &[Slot], ram: &Ram) -> Result<(), LostInterrupt> {
        for &slot in slots {
            lock(self.virtio(slot)).kick_all(&vm_memory::GuestAddressSpace::memory(ram.view()))?;
            self.settle.finish(ram);
        }
        Ok(())
    }

    /// Serves one kick, on the I/O thread.
    ///
    /// # Errors
    /// [`LostInterrupt`].
    pub fn serve(&self, kick: &Kick, ram: &Ram) -> Result<(), LostInterrupt> {
        // Reading empties the counter; one round serves all kicks up to now.
        let _ = kick.event.read();
        lock(self.virtio(kick.slot))
            .notify_queue(kick.queue, &vm_memory::GuestAddressSpace::memory(ram.view()))?;
        self.settle.finish(ram);
        Ok(())
    }

    /// All devices at rest. The machine must be paused.
    pub fn save(&self) -> DeviceStates {
        let (root, mem, vsock) = (lock(&self.root), lock(&self.mem), lock(&self.vsock));
        let (rng, balloon, net) = (lock(&self.rng), lock(&self.balloon), lock(&self.net));
        DeviceStates {
            root: (root.save(), root.device().save()),
            mem: (mem.save(), mem.device().save()),
            vsock: (vsock.save(), vsock.device().save()),
            rng: (rng.save(), rng.device().save()),
            balloon: (balloon.save(), balloon.device().save()),
            net: (net.save(), net.device().save()),
            ioapic: lock(&self.ioapic).save(),
            serial: SerialRegisters::of(&lock(&self.serial)),
        }
    }
}
