//! Device models of a Spore VM.
//!
//! A device here is a pure state machine: it knows guest memory, an [`Interrupt`] to raise and the
//! bytes it was handed. It knows no KVM, opens no files, starts no threads and reads no clock; the
//! `vmm` crate wires it to event descriptors, disks and sockets. Whatever comes from the guest or
//! from a saved state is untrusted: it becomes a typed value or an error in one place, never a panic.

pub mod interrupt;
pub mod ioapic;
pub mod pvpanic;
pub mod virtio;
pub mod vmgenid;

pub use interrupt::Interrupt;
