//! Reports of free pages: only whole pages of guest memory may reach the host.

use std::io;

use spore_devices::virtio::balloon::{Balloon, PageReporter};
use vm_memory::GuestAddress;

use crate::driver::{MEMORY_BYTES, drive};

/// Believes nothing.
pub struct Pages;

impl PageReporter for Pages {
    fn report_free(&mut self, gpa: GuestAddress, len: u64) -> io::Result<()> {
        assert!(
            len > 0 && len.is_multiple_of(4096) && gpa.0.is_multiple_of(4096),
            "{gpa:?} {len:#x}"
        );
        let end = gpa.0.checked_add(len).expect("it ends");
        assert!(end <= MEMORY_BYTES, "{gpa:?} {len:#x} is not guest memory");
        Ok(())
    }
}

pub fn run(data: &[u8]) {
    let driver = drive(Balloon::new(Pages), data, |_, _| {});
    let saved = driver.transport.device().save();
    assert_eq!(Balloon::restore(saved, Pages).save(), saved);
}
