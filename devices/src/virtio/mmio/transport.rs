//! One device's registers wired to its queues, its interrupt and its model.

use std::sync::Arc;

use tracing::debug;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::line::{self, InterruptLine, LostInterrupt};
use super::registers::{MAGIC, NO_SHARED_MEMORY, Register, Target, VENDOR, VERSION};
use super::state::{RestoreError, TransportState};
use super::status::{self, Request, Status, Step};
use super::{MmioDevice, VirtioMmio};
use crate::Interrupt;
use crate::virtio::queue_state::check_rings;
use crate::virtio::{DeviceError, Memory, VirtioDevice};

/// How many complaints about one driver reach the log before it is ignored in silence.
const MAX_COMPLAINTS: u8 = 32;

/// The feature every driver must accept: there is no legacy interface (virtio 1.2, 6.1).
pub(super) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// Interrupt and kick suppression by index (virtio 1.2, 2.7.10); offered by the device if at all.
pub(super) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

/// A virtio device behind its page of registers (virtio 1.2, 4.2).
///
/// The owner puts it behind one lock and calls [`write`](Self::write) for a vCPU's access,
/// [`notify_queue`](Self::notify_queue) when a kick came as an event, and [`poll`](Self::poll) when
/// the host side of the device has something for the guest. Everything a driver does wrong ends in
/// an ignored access or in DEVICE_NEEDS_RESET, never in an error to the owner; the one error there
/// is, [`LostInterrupt`], is the host's.
pub struct MmioTransport<D> {
    pub(super) device: D,
    pub(super) line: Arc<InterruptLine>,
    pub(super) status: Status,
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
    pub(super) driver_features: u64,
    pub(super) queue_sel: u32,
    pub(super) queues: Vec<Queue>,
    pub(super) config_generation: u32,
    pub(super) complaints: u8,
}

impl<D: VirtioDevice> MmioTransport<D> {
    /// Puts `device` behind a transport in the reset state.
    ///
    /// A queue whose maximum size is no power of two up to 32768 cannot exist: the driver sees it
    /// as unavailable (QueueNumMax 0).
    pub fn new(device: D, interrupt: Arc<dyn Interrupt>) -> Self {
        let queues = device
            .queue_max_sizes()
            .iter()
            .map(|&size| Queue::new(size).unwrap_or_default())
            .collect();
        Self {
            device,
            line: Arc::new(InterruptLine::new(interrupt, 0)),
            status: Status::default(),
            device_features_sel: 0,
            driver_features_sel: 0,
            driver_features: 0,
            queue_sel: 0,
            queues,
            config_generation: 0,
            complaints: 0,
        }
    }

    /// The transport of a checkpoint, around a device restored from the same one.
    ///
    /// `state` is untrusted: every field is checked against the device and against `memory`, which
    /// must be the checkpoint's, plugged memory included. The device is not activated again; its own
    /// state says what `activate` did. No interrupt is raised before [`kick_all`](Self::kick_all).
    ///
    /// # Errors
    /// [`RestoreError`] names the field that cannot be.
    pub fn restore(
        device: D,
        state: TransportState,
        interrupt: Arc<dyn Interrupt>,
        memory: &Memory,
    ) -> Result<Self, RestoreError> {
        super::state::restore(device, state, interrupt, memory)
    }

    /// The transport at rest; the device's own state is saved by its owner through [`device`](Self::device).
    pub fn save(&self) -> TransportState {
        super::state::save(self)
    }

    /// The device model.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The device model. After changing what the configuration space shows, call
    /// [`config_changed`](Self::config_changed).
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Takes the device out, as when a fork builds a transport of its own around what it inherited.
    pub fn into_device(self) -> D {
        self.device
    }

    /// Whether the driver set DRIVER_OK and neither side gave up since.
    pub fn is_active(&self) -> bool {
        self.status.is_active()
    }

    /// The features the driver accepted; meaningful from FEATURES_OK on.
    pub fn driver_features(&self) -> u64 {
        self.driver_features
    }

    /// Number of queues.
    pub fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// InterruptStatus and InterruptACK, for an owner that wants to answer these two registers
    /// (offsets 0x60 and 0x64) without taking the lock this transport is behind.
    pub fn interrupt_line(&self) -> Arc<InterruptLine> {
        Arc::clone(&self.line)
    }

    /// Answers a driver's read of `data.len()` bytes at `offset`. What isn't there reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match Target::of(offset, data.len()) {
            Target::Register(register) => {
                let value = self.read_register(register);
                data.copy_from_slice(&value.to_le_bytes());
            }
            Target::Config(inner) => self.device.read_config(inner, data),
            Target::Nothing => self.complain("read of no register", offset),
        }
    }

    /// Takes a driver's write of `data` at `offset`; a kick by register is served before it returns.
    ///
    /// # Errors
    /// [`LostInterrupt`]: end the VM.
    pub fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> Result<(), LostInterrupt> {
        match Target::of(offset, data.len()) {
            Target::Register(register) => match <[u8; 4]>::try_from(data) {
                Ok(bytes) => self.write_register(register, u32::from_le_bytes(bytes), memory),
                Err(_) => Ok(()),
            },
            Target::Config(inner) => {
                // Before DRIVER nobody claims to know what the fields mean.
                if self.status.has(status::DRIVER) {
                    self.device.write_config(inner, data);
                }
                Ok(())
            }
            Target::Nothing => {
                self.complain("write to no register", offset);
                Ok(())
            }
        }
    }

    /// The driver kicked queue `index`, and the kick came as an event and not as a register write.
    /// Does nothing unless the device is active and the queue ready.
    ///
    /// # Errors
    /// [`LostInterrupt`]: end the VM.
    pub fn notify_queue(&mut self, index: usize, memory: &Memory) -> Result<(), LostInterrupt> {
        if !self.is_active() || !self.queues.get(index).is_some_and(Queue::ready) {
            return Ok(());
        }
        let outcome = self.device.process_queue(index, &mut self.queues, memory);
        self.conclude(outcome)
    }

    /// Lets the host side of the device use queues: `work` says whether the driver wants to hear of
    /// what it did. Does nothing unless the device is active; single queues may still not be ready.
    ///
    /// # Errors
    /// [`LostInterrupt`]: end the VM. An error of `work` is the guest's: DEVICE_NEEDS_RESET.
    pub fn poll(
        &mut self,
        memory: &Memory,
        work: impl FnOnce(&mut D, &mut [Queue], &Memory) -> Result<bool, DeviceError>,
    ) -> Result<(), LostInterrupt> {
        if !self.is_active() {
            return Ok(());
        }
        let outcome = work(&mut self.device, &mut self.queues, memory);
        self.conclude(outcome)
    }

    /// The configuration space shows something new: bumps ConfigGeneration and interrupts the driver.
    /// A driver not yet at DRIVER_OK hears of it when it gets there.
    ///
    /// # Errors
    /// [`LostInterrupt`]: end the VM.
    pub fn config_changed(&mut self) -> Result<(), LostInterrupt> {
        self.config_generation = self.config_generation.wrapping_add(1);
        if self.status.has(status::DRIVER_OK) {
            self.line.raise(line::CONFIGURATION)
        } else {
            if self.status.has(status::DRIVER) {
                self.line.set(line::CONFIGURATION);
            }
            Ok(())
        }
    }

    /// Looks at every ready queue again and repeats an interrupt the driver hasn't acknowledged.
    /// To be called once after a resume or restore: neither a kick nor an interrupt that was in
    /// flight when the VM stood still is then lost, and one too many is harmless.
    ///
    /// # Errors
    /// [`LostInterrupt`]: end the VM.
    pub fn kick_all(&mut self, memory: &Memory) -> Result<(), LostInterrupt> {
        for index in 0..self.queues.len() {
            self.notify_queue(index, memory)?;
        }
        if self.status.has(status::DRIVER_OK) {
            self.line.raise_pending()
        } else {
            Ok(())
        }
    }

    fn offered_features(&self) -> u64 {
        offered_features(&self.device)
    }

    fn selected_queue(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn read_register(&mut self, register: Register) -> u32 {
        match register {
            Register::MagicValue => MAGIC,
            Register::Version => VERSION,
            Register::DeviceId => self.device.device_type() as u32,
            Register::VendorId => VENDOR,
            Register::DeviceFeatures => half(self.offered_features(), self.device_features_sel),
            Register::QueueNumMax => self.selected_queue().map_or(0, |queue| queue.max_size().into()),
            Register::QueueReady => self.selected_queue().map_or(0, |queue| queue.ready().into()),
            Register::InterruptStatus => self.line.status(),
            Register::Status => self.status.bits(),
            Register::ShmLenLow | Register::ShmLenHigh | Register::ShmBaseLow | Register::ShmBaseHigh => {
                NO_SHARED_MEMORY
            }
            Register::ConfigGeneration => self.config_generation,
            _ => {
                self.complain("read of a write-only register", register as u64);
                0
            }
        }
    }

    fn write_register(
        &mut self,
        register: Register,
        value: u32,
        memory: &Memory,
    ) -> Result<(), LostInterrupt> {
        match register {
            Register::DeviceFeaturesSel => self.device_features_sel = value,
            Register::DriverFeaturesSel => self.driver_features_sel = value,
            Register::DriverFeatures => self.accept_features(value),
            Register::QueueSel => self.queue_sel = value,
            Register::QueueNum
            | Register::QueueDescLow
            | Register::QueueDescHigh
            | Register::QueueDriverLow
            | Register::QueueDriverHigh
            | Register::QueueDeviceLow
            | Register::QueueDeviceHigh => return self.set_up_queue(register, value),
            Register::QueueReady => return self.set_queue_ready(value, memory),
            Register::QueueNotify => {
                return usize::try_from(value).map_or(Ok(()), |index| self.notify_queue(index, memory));
            }
            Register::InterruptAck => self.line.acknowledge(value),
            Register::Status => return self.write_status(value),
            Register::ShmSel => {}
            _ => self.complain("write to a read-only register", register as u64),
        }
        Ok(())
    }

    fn accept_features(&mut self, value: u32) {
        if !self.status.has(status::DRIVER) || self.status.has(status::FEATURES_OK) {
            return self.complain("features written out of turn", value.into());
        }
        let value = u64::from(value);
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
            // There are no features beyond 64; accepting one is caught by nobody and means nothing.
            _ => {}
        }
    }

    /// One of a queue's size and addresses. What breaks the specification's rules for them
    /// (virtio 1.2, 2.7) could only be guessed at later, so it is fatal for the device at once.
    fn set_up_queue(&mut self, register: Register, value: u32) -> Result<(), LostInterrupt> {
        let configuring = self.status.is_configuring();
        let Some(queue) = usize::try_from(self.queue_sel)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
        else {
            self.complain("set-up of a queue that isn't there", self.queue_sel.into());
            return Ok(());
        };
        if !configuring || queue.ready() {
            self.complain("queue set-up out of turn", self.queue_sel.into());
            return Ok(());
        }
        let low = |address: u64| GuestAddress(address & !0xffff_ffff | u64::from(value));
        let high = |address: u64| GuestAddress(address & 0xffff_ffff | u64::from(value) << 32);
        let legal = match register {
            Register::QueueNum => u16::try_from(value).is_ok_and(|size| queue.try_set_size(size).is_ok()),
            Register::QueueDescLow => queue.try_set_desc_table_address(low(queue.desc_table())).is_ok(),
            Register::QueueDescHigh => queue.try_set_desc_table_address(high(queue.desc_table())).is_ok(),
            Register::QueueDriverLow => queue.try_set_avail_ring_address(low(queue.avail_ring())).is_ok(),
            Register::QueueDriverHigh => queue.try_set_avail_ring_address(high(queue.avail_ring())).is_ok(),
            Register::QueueDeviceLow => queue.try_set_used_ring_address(low(queue.used_ring())).is_ok(),
            Register::QueueDeviceHigh => queue.try_set_used_ring_address(high(queue.used_ring())).is_ok(),
            _ => true,
        };
        if legal {
            return Ok(());
        }
        self.complain("illegal queue size or alignment", value.into());
        self.need_reset()
    }

    fn set_queue_ready(&mut self, value: u32, memory: &Memory) -> Result<(), LostInterrupt> {
        let configuring = self.status.is_configuring();
        let Some(queue) = usize::try_from(self.queue_sel)
            .ok()
            .and_then(|index| self.queues.get_mut(index))
        else {
            return Ok(());
        };
        match value {
            // Taking a queue away is legal at any time (virtio 1.2, 4.2.3.2).
            0 => queue.set_ready(false),
            1 if configuring && !queue.ready() => match check_rings(queue, memory) {
                Ok(()) => queue.set_ready(true),
                Err(error) => {
                    debug!(queue = self.queue_sel, %error, "the driver set up a queue that cannot work");
                    return self.need_reset();
                }
            },
            _ => self.complain("QueueReady out of turn", value.into()),
        }
        Ok(())
    }

    fn write_status(&mut self, value: u32) -> Result<(), LostInterrupt> {
        loop {
            match self.status.request(value) {
                Request::Reset => {
                    self.reset();
                    return Ok(());
                }
                Request::GiveUp => {
                    debug!(device = ?self.device.device_type(), "the driver gave up on the device");
                    self.status.give_up();
                    return Ok(());
                }
                Request::Take(step) => match step {
                    Step::FeaturesOk if !self.agree_on_features() => return Ok(()),
                    Step::DriverOk => return self.go_live(),
                    _ => self.status.take(step),
                },
                Request::Nothing => return Ok(()),
                Request::Illegal => {
                    self.complain("illegal status", value.into());
                    return Ok(());
                }
            }
        }
    }

    /// Whether the driver accepted VERSION_1 and nothing that wasn't offered; a driver that finds
    /// FEATURES_OK clear after setting it knows that it was refused (virtio 1.2, 2.2.2).
    fn agree_on_features(&mut self) -> bool {
        let features = self.driver_features;
        let agreed = features & !self.offered_features() == 0 && features & VERSION_1 != 0;
        if agreed {
            for queue in &mut self.queues {
                queue.set_event_idx(features & EVENT_IDX != 0);
            }
        } else {
            self.complain("features refused", features);
        }
        agreed
    }

    fn go_live(&mut self) -> Result<(), LostInterrupt> {
        self.status.take(Step::DriverOk);
        if self.status.has(status::DEVICE_NEEDS_RESET) {
            // Set while queues were set up, when there was nobody to interrupt yet.
            return self.need_reset();
        }
        if let Err(error) = self.device.activate(self.driver_features) {
            debug!(device = ?self.device.device_type(), %error, "the device cannot be activated");
            return self.need_reset();
        }
        self.line.raise_pending()
    }

    fn reset(&mut self) {
        self.device.reset();
        for queue in &mut self.queues {
            queue.reset();
        }
        self.line.acknowledge(line::ALL);
        self.status = Status::default();
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
    }

    fn conclude(&mut self, outcome: Result<bool, DeviceError>) -> Result<(), LostInterrupt> {
        match outcome {
            Ok(true) => self.line.raise(line::USED_BUFFER),
            Ok(false) => Ok(()),
            Err(error) => {
                debug!(device = ?self.device.device_type(), %error, "the device needs a reset");
                self.need_reset()
            }
        }
    }

    /// DEVICE_NEEDS_RESET, and the driver hears of it if it is at DRIVER_OK (virtio 1.2, 2.1.2).
    fn need_reset(&mut self) -> Result<(), LostInterrupt> {
        self.status.need_reset();
        if self.status.has(status::DRIVER_OK) {
            self.line.raise(line::CONFIGURATION)
        } else {
            Ok(())
        }
    }

    /// Says what a driver did wrong, until it has been said often enough.
    fn complain(&mut self, what: &str, value: u64) {
        if self.complaints < MAX_COMPLAINTS {
            self.complaints += 1;
            debug!(device = ?self.device.device_type(), value, "ignored: {what}");
        }
    }
}

/// What the driver is offered: the device's features and the one every modern device has.
pub(super) fn offered_features<D: VirtioDevice>(device: &D) -> u64 {
    device.features() | VERSION_1
}

/// The 32 bits of `features` that a feature-select register of `select` shows.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

impl<D: VirtioDevice> MmioDevice for MmioTransport<D> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        MmioTransport::read(self, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> Result<(), LostInterrupt> {
        MmioTransport::write(self, offset, data, memory)
    }
}

impl<D: VirtioDevice> VirtioMmio for MmioTransport<D> {
    fn queue_count(&self) -> usize {
        MmioTransport::queue_count(self)
    }

    fn notify_queue(&mut self, index: usize, memory: &Memory) -> Result<(), LostInterrupt> {
        MmioTransport::notify_queue(self, index, memory)
    }

    fn kick_all(&mut self, memory: &Memory) -> Result<(), LostInterrupt> {
        MmioTransport::kick_all(self, memory)
    }

    fn save(&self) -> TransportState {
        MmioTransport::save(self)
    }

    fn interrupt_line(&self) -> Arc<InterruptLine> {
        MmioTransport::interrupt_line(self)
    }
}
