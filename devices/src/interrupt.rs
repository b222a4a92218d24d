//! The one thing a device may ask of the machine around it: to raise its interrupt.

use std::io;

/// An edge-triggered interrupt line of one device.
///
/// In the VMM this is an irqfd (one `write(2)`, no lock, callable from any thread); in tests a counter.
pub trait Interrupt: Send + Sync {
    /// Raises the line once. Raising an already pending line is not an error and may coalesce.
    ///
    /// # Errors
    /// Whatever the descriptor behind the line reports. The interrupt is then lost: the caller ends the VM.
    fn trigger(&self) -> io::Result<()>;
}
