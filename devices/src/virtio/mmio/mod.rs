//! The virtio-mmio transport, modern interface only (virtio 1.2, 4.2).
//!
//! [`MmioTransport`] is one device's register page: the status machine, feature negotiation, the
//! queues and the interrupt status. It knows a [`VirtioDevice`](super::VirtioDevice), guest memory
//! and an [`Interrupt`](crate::Interrupt). It may not know buses, event descriptors, threads or KVM:
//! whoever owns it puts it behind one lock and calls it.
//!
//! - [`registers`]: an offset becomes a register or nothing.
//! - [`status`]: the device status machine.
//! - [`mod@line`]: the interrupt status register together with the line it guards.
//! - [`transport`]: the above, wired to queues and a device.
//! - [`state`]: the transport at rest, and what a restored one is checked for.

pub mod line;
pub mod registers;
pub mod state;
pub mod status;
pub mod transport;

#[cfg(test)]
mod tests;

pub use line::{InterruptLine, LostInterrupt};
pub use registers::REGION_SIZE;
pub use state::{RestoreError, TransportState};
pub use transport::MmioTransport;

use super::Memory;

/// Something behind a memory-mapped region of the guest, as a bus holds it.
///
/// Neither call may panic or block for long, whatever the guest does.
pub trait MmioDevice: Send {
    /// Fills `data` from `offset` (bytes from the start of the region). What isn't there reads as zero.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes a write of `data` at `offset` (bytes from the start of the region).
    ///
    /// # Errors
    /// [`LostInterrupt`]: the guest will never hear of what it waits for; the VM cannot go on.
    fn write(&mut self, offset: u64, data: &[u8], memory: &Memory) -> Result<(), LostInterrupt>;
}

/// What a VM does to all its virtio devices alike, whatever device is behind the transport.
pub trait VirtioMmio: MmioDevice {
    /// Number of queues; each has a notification address (virtio 1.2, 4.2.2, QueueNotify).
    fn queue_count(&self) -> usize;

    /// See [`MmioTransport::notify_queue`].
    ///
    /// # Errors
    /// [`LostInterrupt`].
    fn notify_queue(&mut self, index: usize, memory: &Memory) -> Result<(), LostInterrupt>;

    /// See [`MmioTransport::kick_all`].
    ///
    /// # Errors
    /// [`LostInterrupt`].
    fn kick_all(&mut self, memory: &Memory) -> Result<(), LostInterrupt>;

    /// See [`MmioTransport::save`].
    fn save(&self) -> TransportState;

    /// See [`MmioTransport::interrupt_line`].
    fn interrupt_line(&self) -> std::sync::Arc<InterruptLine>;
}
