//! Giving the host back what the guest says it does not use.

use std::io;
use std::sync::Arc;

use spore_devices::virtio::balloon::PageReporter;
use vm_memory::{Address, GuestAddress};

use crate::ram::Ram;

/// Frees reported pages.
pub struct Reclaim {
    ram: Arc<Ram>,
}

impl Reclaim {
    /// Over this memory.
    pub fn new(ram: Arc<Ram>) -> Self {
        Self { ram }
    }
}

impl PageReporter for Reclaim {
    fn report_free(&mut self, gpa: GuestAddress, len: u64) -> io::Result<()> {
        let layout = self.ram.layout();
        let (Some(start), Some(last)) = (
            layout.offset_of(gpa.raw_value()),
            gpa.checked_add(len.saturating_sub(1)).map(|end| end.raw_value()),
        ) else {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        };
        // Both ends in the same piece of RAM, so everything between is.
        if len == 0 || layout.offset_of(last) != Some(start + len - 1) {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        self.ram.discard(start, len)
    }
}
