//! The interrupt status register and the line it guards.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Interrupt;

/// InterruptStatus bit 0: the device used buffers (virtio 1.2, 4.2.2).
pub const USED_BUFFER: u32 = 1 << 0;
/// InterruptStatus bit 1: the configuration, or DEVICE_NEEDS_RESET, changed (virtio 1.2, 4.2.2).
pub const CONFIGURATION: u32 = 1 << 1;
/// All bits the register has.
pub const ALL: u32 = USED_BUFFER | CONFIGURATION;

/// An interrupt could not be raised. The guest would wait for it for ever, so the VM has to end.
#[derive(Debug, thiserror::Error)]
#[error("the guest's interrupt could not be raised")]
pub struct LostInterrupt(#[from] io::Error);

/// One device's interrupt: why (InterruptStatus) and that (the line).
///
/// It is shared and takes no lock, so that a vCPU may answer InterruptStatus and InterruptACK while
/// another thread holds the transport busy with a queue; it need not be used that way.
pub struct InterruptLine {
    status: AtomicU32,
    line: Arc<dyn Interrupt>,
}

impl InterruptLine {
    pub(super) fn new(line: Arc<dyn Interrupt>, status: u32) -> Self {
        Self {
            status: AtomicU32::new(status & ALL),
            line,
        }
    }

    /// The InterruptStatus register.
    pub fn status(&self) -> u32 {
        self.status.load(Ordering::SeqCst)
    }

    /// A driver's write to InterruptACK: it handled `bits`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// Sets status bits without raising the line.
    pub(super) fn set(&self, bits: u32) {
        self.status.fetch_or(bits & ALL, Ordering::SeqCst);
    }

    /// Sets status bits, then raises the line: a driver must find the reason when the interrupt arrives.
    pub(super) fn raise(&self, bits: u32) -> Result<(), LostInterrupt> {
        self.set(bits);
        Ok(self.line.trigger()?)
    }

    /// Raises the line if the driver has anything left to hear of.
    pub(super) fn raise_pending(&self) -> Result<(), LostInterrupt> {
        if self.status() == 0 {
            Ok(())
        } else {
            Ok(self.line.trigger()?)
        }
    }
}
