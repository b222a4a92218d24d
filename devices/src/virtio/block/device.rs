//! The device model: requests carried out against a backend.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{DescriptorChain, Queue, Reader, Writer};
use vm_memory::{Bytes, GuestAddress};

use super::config::{QUEUE_SIZE, config_space, read_space};
use super::request::{Disk, Extent, ID_BYTES, Request, Status};
use super::{BlockBackend, SECTOR};
use crate::virtio::drain::drain;
use crate::virtio::{ActivateError, DeviceError, DeviceType, Memory, VirtioDevice};

/// Largest piece in which a request of any size is carried out, in bytes. The buffer for it stays
/// allocated, and a fork that does I/O pays for it in private memory, so it is not larger than it helps.
const CHUNK: usize = 256 << 10;

const FLUSH: u64 = 1 << VIRTIO_BLK_F_FLUSH;

/// Whether the guest may write to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Reads and writes.
    ReadWrite,
    /// VIRTIO_BLK_F_RO: every write is answered with an error.
    ReadOnly,
}

/// What GET_ID answers, and Linux shows as the disk's `serial`: at most 20 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockId([u8; ID_BYTES]);

/// An identifier has more than the 20 bytes the protocol has room for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a disk's identifier has at most 20 bytes, and {0:?} has more")]
pub struct LongBlockId(String);

impl TryFrom<&str> for BlockId {
    type Error = LongBlockId;

    fn try_from(id: &str) -> Result<Self, LongBlockId> {
        let mut bytes = [0; ID_BYTES];
        match bytes.get_mut(..id.len()) {
            Some(start) => start.copy_from_slice(id.as_bytes()),
            None => return Err(LongBlockId(id.to_owned())),
        }
        Ok(Self(bytes))
    }
}

/// A block device at rest. The backend's content is not in it: that is the disk's business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Size in sectors of 512 bytes, as the guest was told.
    pub capacity_sectors: u64,
    /// Whether the guest may write.
    pub access: Access,
    /// What GET_ID answers.
    pub id: BlockId,
    /// The driver didn't accept VIRTIO_BLK_F_FLUSH, so every write is flushed (virtio 1.2, 5.2.6.2).
    pub write_through: bool,
}

/// A disk of another size than the guest was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest knows a disk of {expected} sectors, this one has {found}")]
pub struct CapacityMismatch {
    /// Sectors the guest was told.
    pub expected: u64,
    /// Sectors of the disk at hand.
    pub found: u64,
}

/// Why a saved block device was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The backend isn't the disk the state is of.
    #[error(transparent)]
    Capacity(#[from] CapacityMismatch),
}

/// A virtio block device (virtio 1.2, 5.2) with one request queue.
pub struct Block {
    backend: Box<dyn BlockBackend>,
    disk: Disk,
    id: BlockId,
    write_through: bool,
    bounce: Vec<u8>,
    io_errors: u64,
}

impl Block {
    /// A device over `backend`; bytes beyond its last whole sector are not shown to the guest.
    pub fn new(backend: Box<dyn BlockBackend>, id: BlockId, access: Access) -> Self {
        let disk = Disk {
            capacity: backend.len() / SECTOR,
            access,
        };
        Self {
            backend,
            disk,
            id,
            write_through: false,
            bounce: Vec::new(),
            io_errors: 0,
        }
    }

    /// The device of a checkpoint, over the disk of the same instant.
    ///
    /// # Errors
    /// [`RestoreError`]: the disk isn't of the size the guest was told.
    pub fn restore(state: BlockState, backend: Box<dyn BlockBackend>) -> Result<Self, RestoreError> {
        let mut block = Self::new(backend, state.id, state.access);
        block.check_capacity(state.capacity_sectors, block.disk.capacity)?;
        block.write_through = state.write_through;
        Ok(block)
    }

    /// The device at rest. No request is ever in flight between two calls, so there is none in it.
    pub fn save(&self) -> BlockState {
        BlockState {
            capacity_sectors: self.disk.capacity,
            access: self.disk.access,
            id: self.id,
            write_through: self.write_through,
        }
    }

    /// The disk, for an owner that freezes, flushes or measures it while the VM stands still.
    pub fn backend_mut(&mut self) -> &mut dyn BlockBackend {
        self.backend.as_mut()
    }

    /// Takes the disk out, as when a fork builds a device of its own over what it inherited.
    pub fn into_backend(self) -> Box<dyn BlockBackend> {
        self.backend
    }

    /// Puts another disk under the device, such as a fresh overlay on the old one frozen, and hands
    /// the old one back. The VM must stand still, and the new disk must read as the old one did.
    ///
    /// # Errors
    /// [`CapacityMismatch`]; the old disk then stays.
    pub fn set_backend(
        &mut self,
        backend: Box<dyn BlockBackend>,
    ) -> Result<Box<dyn BlockBackend>, CapacityMismatch> {
        self.check_capacity(self.disk.capacity, backend.len() / SECTOR)?;
        Ok(std::mem::replace(&mut self.backend, backend))
    }

    /// The backend has become larger, or is as it was: shows the driver its size from now on. The transport then has to
    /// raise a configuration interrupt (virtio 1.2, 5.2.5.2).
    ///
    /// # Errors
    /// [`CapacityMismatch`] if it has become smaller; the driver goes on seeing what it saw.
    pub fn grow(&mut self) -> Result<(), CapacityMismatch> {
        let (expected, found) = (self.disk.capacity, self.backend.len() / SECTOR);
        if found < expected {
            return Err(CapacityMismatch { expected, found });
        }
        self.disk.capacity = found;
        Ok(())
    }

    /// Requests the backend failed since the device was made, answered to the guest as errors.
    pub fn io_errors(&self) -> u64 {
        self.io_errors
    }

    fn check_capacity(&self, expected: u64, found: u64) -> Result<(), CapacityMismatch> {
        if expected == found {
            Ok(())
        } else {
            Err(CapacityMismatch { expected, found })
        }
    }

    /// Answers one request; returns how many bytes from the start of the writable part were written.
    fn serve(&mut self, chain: DescriptorChain<&Memory>, memory: &Memory) -> u32 {
        let (mut readable, mut writable, mut status_byte) = match split(&chain, memory) {
            Ok(parts) => parts,
            Err(error) => {
                debug!(%error, "a block request names memory that isn't there");
                fail_blindly(chain, memory);
                return 0;
            }
        };
        let room = writable.available_bytes();
        let status = match self.disk.parse(&mut readable, room) {
            Ok(request) => match self.execute(&request, &mut readable, &mut writable) {
                Ok(()) => Status::Ok,
                Err(error) => {
                    self.note_failure(&request, &error);
                    Status::IoError
                }
            },
            Err(refusal) => {
                debug!(%refusal, "block request refused");
                refusal.status()
            }
        };
        let answered = status_byte.write_all(&[status as u8]).is_ok();
        // The length counts from the start of the writable part (virtio 1.2, 2.7.8.2): behind data
        // that was not written, the status byte doesn't count.
        let written = writable.bytes_written();
        let written = if written == room && answered {
            written + 1
        } else {
            written
        };
        u32::try_from(written).unwrap_or(u32::MAX)
    }

    fn execute(
        &mut self,
        request: &Request,
        readable: &mut Reader<'_>,
        writable: &mut Writer<'_>,
    ) -> io::Result<()> {
        match request {
            Request::Read(extent) => self.in_chunks(*extent, |backend, offset, chunk| {
                backend.read_at(offset, chunk)?;
                writable.write_all(chunk)
            }),
            Request::Write(extent) => {
                self.in_chunks(*extent, |backend, offset, chunk| {
                    readable.read_exact(chunk)?;
                    backend.write_at(offset, chunk)
                })?;
                self.settle()
            }
            Request::Flush => self.backend.flush(),
            Request::Discard(extents) => {
                for extent in extents.iter().filter(|extent| extent.length > 0) {
                    self.backend.discard(extent.offset, extent.length)?;
                }
                self.settle()
            }
            Request::WriteZeroes(extents) => {
                for extent in extents.iter().filter(|extent| extent.length > 0) {
                    self.backend.write_zeroes(extent.offset, extent.length)?;
                }
                self.settle()
            }
            Request::GetId => writable.write_all(&self.id.0),
        }
    }

    /// Walks `extent` in pieces of at most [`CHUNK`] bytes, each with a buffer of its size.
    fn in_chunks(
        &mut self,
        extent: Extent,
        mut transfer: impl FnMut(&mut dyn BlockBackend, u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < extent.length {
            let length = usize::try_from(extent.length - done).map_or(CHUNK, |rest| rest.min(CHUNK));
            if self.bounce.len() < length {
                self.bounce.resize(length, 0);
            }
            let Some(chunk) = self.bounce.get_mut(..length) else {
                break;
            };
            transfer(self.backend.as_mut(), extent.offset + done, chunk)?;
            done += length as u64;
        }
        Ok(())
    }

    /// Without VIRTIO_BLK_F_FLUSH the driver takes a completed write for durable (virtio 1.2, 5.2.6.2).
    fn settle(&mut self) -> io::Result<()> {
        if self.write_through {
            self.backend.flush()
        } else {
            Ok(())
        }
    }

    /// A failing disk is the operator's to know of, but not once per request.
    fn note_failure(&mut self, request: &Request, error: &io::Error) {
        self.io_errors = self.io_errors.saturating_add(1);
        if self.io_errors.is_power_of_two() {
            warn!(?request, %error, failures = self.io_errors, "the disk failed a request of the guest");
        }
    }
}

type Parts<'m> = (Reader<'m>, Writer<'m>, Writer<'m>);

/// The readable part, the writable part without its last byte, and that byte: the status.
fn split<'m>(
    chain: &DescriptorChain<&'m Memory>,
    memory: &'m Memory,
) -> Result<Parts<'m>, virtio_queue::Error> {
    let readable = Reader::new(memory, chain.clone())?;
    let mut writable = Writer::new(memory, chain.clone())?;
    let room = writable
        .available_bytes()
        .checked_sub(1)
        .ok_or(virtio_queue::Error::InvalidChain)?;
    let status = writable.split_at(room)?;
    Ok((readable, writable, status))
}

/// Answers a chain that could not be taken apart, if there is a status byte to answer in: drivers
/// read that byte, and left alone it may say OK.
fn fail_blindly(chain: DescriptorChain<&Memory>, memory: &Memory) {
    let last = chain.writable().filter(|descriptor| descriptor.len() > 0).last();
    if let Some(descriptor) = last
        && let Some(address) = descriptor.addr().0.checked_add(u64::from(descriptor.len()) - 1)
        && memory
            .write_slice(&[Status::IoError as u8], GuestAddress(address))
            .is_err()
    {
        debug!("its status byte isn't there either");
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        let common = 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | FLUSH;
        common
            | match self.disk.access {
                Access::ReadOnly => 1 << VIRTIO_BLK_F_RO,
                Access::ReadWrite => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_space(&config_space(self.disk.capacity), offset, data);
    }

    fn activate(&mut self, features: u64) -> Result<(), ActivateError> {
        self.write_through = features & FLUSH == 0;
        Ok(())
    }

    fn reset(&mut self) {
        self.write_through = false;
    }

    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError> {
        let queue = queues.get_mut(index).ok_or(DeviceError::NoSuchQueue(index))?;
        drain(index, queue, memory, |chain| Ok(self.serve(chain, memory)))
    }
}
