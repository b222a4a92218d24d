//! Virtio 1.2 devices behind a modern virtio-mmio transport.
//!
//! [`VirtioDevice`] is what a device model implements; the transport owns the queues, the status
//! machine and the interrupt status register, and is the only one that raises the interrupt.

pub mod device;
pub mod vsock;

pub use device::{ActivateError, DeviceError, DeviceType, Memory, VirtioDevice};
