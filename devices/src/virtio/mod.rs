//! Virtio 1.2 devices behind a modern virtio-mmio transport.
//!
//! [`VirtioDevice`] is what a device model implements; the transport owns the queues, the status
//! machine and the interrupt status register, and is the only one that raises the interrupt.

pub mod balloon;
pub mod block;
pub mod device;
pub mod drain;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod queue_state;
pub mod rng;

#[cfg(test)]
pub(crate) mod testing;
pub mod vsock;

pub use device::{ActivateError, DeviceError, DeviceType, Memory, VirtioDevice};
pub use queue_state::QueueState;
