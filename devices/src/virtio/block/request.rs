//! Bytes from the guest become a typed request or a refusal, here and nowhere else (virtio 1.2, 5.2.6).

use std::io::Read;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::Reader;

use super::config::{
    MAX_DISCARD_SECTORS, MAX_DISCARD_SEGMENTS, MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_SEGMENTS,
};
use super::{Access, SECTOR};

/// Bytes of a request's header: type, reserved, sector.
pub const HEADER: usize = 16;
/// Bytes of one segment of a discard or write-zeroes: sector, number of sectors, flags.
pub const SEGMENT: usize = 16;
/// Bytes GET_ID answers.
pub const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// A run of bytes that lies within the disk, sector-aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// What the driver asks for; every number in it is within the disk and the announced limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// VIRTIO_BLK_T_IN: fill the writable part of the chain.
    Read(Extent),
    /// VIRTIO_BLK_T_OUT: store the readable part of the chain that follows the header.
    Write(Extent),
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_DISCARD.
    Discard(Vec<Extent>),
    /// VIRTIO_BLK_T_WRITE_ZEROES. Whether to unmap is the backend's choice: reads can't tell.
    WriteZeroes(Vec<Extent>),
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
}

/// Why a request is answered without touching the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The readable part is shorter than a header.
    #[error("the header is cut short")]
    Header,
    /// A request type this device doesn't have.
    #[error("unknown request type {0}")]
    UnknownType(u32),
    /// Flags with no meaning for this request.
    #[error("segment flags {0:#x} are not supported")]
    UnknownFlags(u32),
    /// Data that isn't whole sectors, or segments that aren't whole segments.
    #[error("{0} bytes of data are not a multiple of the unit")]
    Unaligned(u64),
    /// The data would lie beyond the end of the disk.
    #[error("sector {sector} and {length} bytes on is beyond the end of the disk")]
    OutOfBounds {
        /// First sector.
        sector: u64,
        /// Number of bytes.
        length: u64,
    },
    /// A write, discard or write-zeroes to a read-only disk.
    #[error("the disk is read-only")]
    ReadOnly,
    /// More segments, or sectors in one, than the configuration space allows; or no segment at all.
    #[error("beyond the announced limits")]
    Limit,
    /// The buffer for the identifier is too short.
    #[error("no room for the identifier")]
    ShortBuffer,
}

impl Refusal {
    /// What it is answered with.
    pub fn status(self) -> Status {
        match self {
            // Unknown flags are UNSUPP by 5.2.6.2.
            Self::UnknownType(_) | Self::UnknownFlags(_) => Status::Unsupported,
            _ => Status::IoError,
        }
    }
}

/// The status byte a request ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR.
    IoError = 1,
    /// VIRTIO_BLK_S_UNSUPP.
    Unsupported = 2,
}

/// What a request is judged against.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Size in sectors.
    pub capacity: u64,
    /// Whether it may be written.
    pub access: Access,
}

impl Disk {
    /// Parses the readable part of a chain. `room` is the size in bytes of the writable part without
    /// the status byte. Of a write, the data is left in `readable`; of all else, nothing of use.
    ///
    /// # Errors
    /// [`Refusal`], to be answered by its status byte.
    pub fn parse(&self, readable: &mut Reader<'_>, room: usize) -> Result<Request, Refusal> {
        let mut header = [0; HEADER];
        readable.read_exact(&mut header).map_err(|_| Refusal::Header)?;
        let (kind, sector) = (le32(&header, 0), le64(&header, 8));
        match kind {
            VIRTIO_BLK_T_IN => Ok(Request::Read(self.extent(sector, room as u64)?)),
            VIRTIO_BLK_T_OUT => {
                self.writable()?;
                Ok(Request::Write(
                    self.extent(sector, readable.available_bytes() as u64)?,
                ))
            }
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_DISCARD => {
                let segments = self.segments(readable, MAX_DISCARD_SEGMENTS, MAX_DISCARD_SECTORS, 0)?;
                Ok(Request::Discard(segments))
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                let flags = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
                let segments = self.segments(
                    readable,
                    MAX_WRITE_ZEROES_SEGMENTS,
                    MAX_WRITE_ZEROES_SECTORS,
                    flags,
                )?;
                Ok(Request::WriteZeroes(segments))
            }
            VIRTIO_BLK_T_GET_ID if room < ID_BYTES => Err(Refusal::ShortBuffer),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
            unknown => Err(Refusal::UnknownType(unknown)),
        }
    }

    fn writable(&self) -> Result<(), Refusal> {
        if self.access == Access::ReadOnly {
            Err(Refusal::ReadOnly)
        } else {
            Ok(())
        }
    }

    fn extent(&self, sector: u64, length: u64) -> Result<Extent, Refusal> {
        if !length.is_multiple_of(SECTOR) {
            return Err(Refusal::Unaligned(length));
        }
        // Compared in sectors and by subtraction, nothing can wrap.
        if sector > self.capacity || length / SECTOR > self.capacity - sector {
            return Err(Refusal::OutOfBounds { sector, length });
        }
        Ok(Extent {
            offset: sector * SECTOR,
            length,
        })
    }

    /// The segments of a discard or write-zeroes: all of them checked before the first is acted on.
    fn segments(
        &self,
        readable: &mut Reader<'_>,
        max_segments: u32,
        max_sectors: u32,
        known_flags: u32,
    ) -> Result<Vec<Extent>, Refusal> {
        self.writable()?;
        let length = readable.available_bytes();
        if !length.is_multiple_of(SEGMENT) {
            return Err(Refusal::Unaligned(length as u64));
        }
        let count = length / SEGMENT;
        if count == 0 || count > max_segments as usize {
            return Err(Refusal::Limit);
        }
        let mut extents = Vec::with_capacity(count);
        for _ in 0..count {
            let mut segment = [0; SEGMENT];
            readable.read_exact(&mut segment).map_err(|_| Refusal::Header)?;
            let (sector, sectors, flags) = (le64(&segment, 0), le32(&segment, 8), le32(&segment, 12));
            if flags & !known_flags != 0 {
                return Err(Refusal::UnknownFlags(flags));
            }
            if sectors > max_sectors {
                return Err(Refusal::Limit);
            }
            extents.push(self.extent(sector, u64::from(sectors) * SECTOR)?);
        }
        Ok(extents)
    }
}

fn le32(bytes: &[u8; 16], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

fn le64(bytes: &[u8; 16], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
