//! What a disk must be able to do for the block device.

use std::io;
use std::ops::Range;

/// The bytes behind a block device.
///
/// Offsets and lengths are in bytes; the device passes multiples of 512 that lie within
/// [`len`](Self::len). Calls block until done. An error is answered to the guest as VIRTIO_BLK_S_IOERR.
pub trait BlockBackend: Send {
    /// Size of the disk in bytes. While a device holds the backend it may only become larger; the device
    /// goes by it when it is told ([`Block::grow`](super::Block::grow)).
    fn len(&self) -> u64;

    /// Whether the disk has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `data` from `offset`.
    ///
    /// # Errors
    /// Whatever keeps the bytes from being read; `data` is then undefined.
    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` at `offset`. A later read sees it; only [`flush`](Self::flush) makes it durable.
    ///
    /// # Errors
    /// Whatever keeps the bytes from being written; any part of them may have been.
    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Makes every completed write durable, or says by contract elsewhere that the disk is ephemeral.
    ///
    /// # Errors
    /// Durability could not be had.
    fn flush(&mut self) -> io::Result<()>;

    /// The guest no longer cares for these bytes: what they read as afterwards is the backend's choice.
    ///
    /// # Errors
    /// As for a write.
    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// These bytes read as zero from now on; storage behind them may be given up.
    ///
    /// # Errors
    /// As for a write.
    fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()>;
}

/// A disk in memory, for tests and scratch disks. Nothing in it outlives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryBackend(Vec<u8>);

impl MemoryBackend {
    /// A disk of these bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The disk's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn range(&self, offset: u64, length: u64) -> io::Result<Range<usize>> {
        offset
            .checked_add(length)
            .filter(|end| *end <= self.len())
            .and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?))
            .ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}

impl BlockBackend for MemoryBackend {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&mut self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let range = self.range(offset, data.len() as u64)?;
        data.copy_from_slice(&self.0[range]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = self.range(offset, data.len() as u64)?;
        self.0[range].copy_from_slice(data);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.write_zeroes(offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64) -> io::Result<()> {
        let range = self.range(offset, length)?;
        self.0[range].fill(0);
        Ok(())
    }
}
