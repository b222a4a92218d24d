//! What a virtio device model is to its transport.

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

/// Guest memory as devices see it: only what is plugged at this moment is in it, so an address in
/// unplugged memory is an ordinary "no such address" error.
pub type Memory = GuestMemoryMmap<()>;

/// Virtio device ids (virtio 1.2, section 5) of the devices Spore models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DeviceType {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Entropy source.
    Rng = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket device.
    Vsock = 19,
    /// Memory device.
    Mem = 24,
}

/// The driver set DRIVER_OK with something the device cannot work with; the device then sets
/// DEVICE_NEEDS_RESET (virtio 1.2, 2.1).
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// A feature the device requires was not accepted by the driver.
    #[error("the driver did not accept required feature bit {0}")]
    FeatureRequired(u32),
    /// The device is in no state to be activated.
    #[error("{0}")]
    Refused(String),
}

/// The guest (or the backend) broke a queue in a way the request itself cannot report; the
/// transport answers with DEVICE_NEEDS_RESET, and the VM lives on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A queue structure in guest memory is malformed or out of bounds.
    #[error("queue {index}: {source}")]
    Queue {
        /// Which queue.
        index: usize,
        /// What virtio-queue found.
        source: virtio_queue::Error,
    },
    /// Guest memory named by a descriptor is not there.
    #[error("queue {index}: guest memory: {source}")]
    Memory {
        /// Which queue.
        index: usize,
        /// What vm-memory found.
        source: vm_memory::GuestMemoryError,
    },
    /// The driver kicked a queue the device does not have.
    #[error("no queue {0}")]
    NoSuchQueue(usize),
}

impl DeviceError {
    /// What virtio-queue found wrong with queue `index`.
    pub fn on(index: usize) -> impl Fn(virtio_queue::Error) -> Self {
        move |source| Self::Queue { index, source }
    }
}

/// A virtio device model: the part that differs from device to device.
///
/// All calls for one device come one at a time (its transport is behind one lock).
pub trait VirtioDevice: Send {
    /// The device id the driver binds to.
    fn device_type(&self) -> DeviceType;

    /// Largest size of each queue, in descriptors; the length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Feature bits offered. The transport adds VIRTIO_F_VERSION_1; everything else is the device's.
    fn features(&self) -> u64;

    /// Fills `data` from the device configuration space at `offset`; bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes a driver's write to the configuration space. Devices without writable fields ignore it.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver set DRIVER_OK, having accepted `features`.
    ///
    /// # Errors
    /// [`ActivateError`] makes the transport set DEVICE_NEEDS_RESET.
    fn activate(&mut self, _features: u64) -> Result<(), ActivateError> {
        Ok(())
    }

    /// The driver reset the device: back to the state before `activate`.
    fn reset(&mut self);

    /// The driver kicked queue `index` (or the VMM asks to look at it again after a resume).
    ///
    /// Returns whether buffers were used and the driver wants to hear of it (the device asks
    /// `Queue::needs_notification`); the transport then raises the interrupt, once.
    ///
    /// # Errors
    /// [`DeviceError`] makes the transport set DEVICE_NEEDS_RESET and raise a configuration interrupt.
    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError>;
}
