//! Requests to a disk: none may reach beyond it, or write to one that is read-only.

use std::io;

use spore_devices::virtio::block::{Access, Block, BlockBackend, BlockId, MemoryBackend};

use crate::driver::drive;

const BYTES: usize = 64 << 10;

/// A disk that is never asked for what the device was not promised.
pub struct Disk {
    inner: MemoryBackend,
    writable: bool,
}

impl Disk {
    pub fn new(writable: bool) -> Self {
        Self {
            inner: MemoryBackend::new(vec![7; BYTES]),
            writable,
        }
    }

    fn check(&self, offset: u64, length: u64) {
        let end = offset.checked_add(length).expect("it ends");
        assert!(
            end <= BYTES as u64,
            "{offset} and {length} bytes are beyond the disk"
        );
        assert!(offset.is_multiple_of(512) && length.is_multiple_of(512));
    }
}

impl BlockBackend for Disk {
    fn len(&self) -> u64 {
        BYTES as u64
    }

    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.check(offset, data.len() as u64);
        self.inner.read_at(offset, data)
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        assert!(self.writable);
        self.check(offset, data.len() as u64);
        self.inner.write_at(offset, data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.write_zeroes(offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        assert!(self.writable);
        self.check(offset, length);
        self.inner.write_zeroes(offset, length)
    }
}

pub fn device(writable: bool) -> Block {
    let access = if writable {
        Access::ReadWrite
    } else {
        Access::ReadOnly
    };
    let id = BlockId::try_from("root").expect("short enough");
    Block::new(Box::new(Disk::new(writable)), id, access)
}

pub fn run(data: &[u8]) {
    let writable = data.last().is_none_or(|byte| byte % 4 != 0);
    let driver = drive(device(writable), data, |_, _| {});
    let saved = driver.transport.device().save();
    let again = Block::restore(saved.clone(), Box::new(Disk::new(writable))).expect("it is that disk");
    assert_eq!(again.save(), saved);
}
