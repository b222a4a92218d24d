//! The packet on the wire (virtio 1.2, 5.10.6) and the guest buffers it lies in.
//!
//! A packet may be cut into descriptors anywhere: the device makes no assumption about framing
//! (virtio 1.2, 2.7.4.1). Linux needs that: from 6.17 on (and in stable kernels that took commit
//! 6693731487a8) writes above 32 KiB come as one header and several page fragments, and
//! `MSG_ZEROCOPY` did so since 6.7. rust-vmm's `VsockPacket` takes only one data descriptor in one
//! memory region; the tests hold this parser against it wherever both apply.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use crate::virtio::Memory;

/// Context id of the host (virtio 1.2, 5.10.4).
pub const HOST_CID: u64 = 2;

/// Context id of a guest: 3 to 2^32 - 2; the others are reserved (virtio 1.2, 5.10.4).
///
/// Guests cannot reach each other through vsock here, so all of them may have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestCid(u32);

/// The number is not a [`GuestCid`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not the context id of a guest (3 to 4294967294)")]
pub struct InvalidGuestCid(pub u64);

impl GuestCid {
    /// The first one.
    pub const FIRST: Self = Self(3);

    /// The id as the packets carry it.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0.into()
    }
}

impl TryFrom<u64> for GuestCid {
    type Error = InvalidGuestCid;

    fn try_from(cid: u64) -> Result<Self, InvalidGuestCid> {
        match u32::try_from(cid) {
            Ok(valid) if valid >= Self::FIRST.0 && valid != u32::MAX => Ok(Self(valid)),
            _ => Err(InvalidGuestCid(cid)),
        }
    }
}

/// Bytes of a packet header on the wire.
pub(super) const HEADER_LEN: usize = 44;

/// Most payload in one packet, either way (Linux: `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub(super) const MAX_PAYLOAD: usize = 64 * 1024;

/// `type` of a stream socket's packets.
pub(super) const TYPE_STREAM: u16 = 1;

/// SHUTDOWN flag: the sender will receive no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: the sender will send no more.
pub(super) const SHUTDOWN_SEND: u32 = 2;

/// More descriptors than any driver uses for one packet (Linux: 18), and few enough that walking a
/// hostile chain costs little.
const MAX_DESCRIPTORS: usize = 64;

/// What a packet is for (virtio 1.2, 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Connect to a port.
    Request,
    /// The connect was accepted.
    Response,
    /// The connection is gone, or was refused.
    Rst,
    /// One or both directions end.
    Shutdown,
    /// Payload.
    Rw,
    /// Flow control news.
    CreditUpdate,
    /// Asks for flow control news.
    CreditRequest,
    /// Nothing the specification knows.
    Unknown,
}

impl Op {
    fn from_wire(op: u16) -> Self {
        match op {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Rst,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => Self::Unknown,
        }
    }

    fn to_wire(self) -> u16 {
        match self {
            Self::Unknown => 0,
            Self::Request => 1,
            Self::Response => 2,
            Self::Rst => 3,
            Self::Shutdown => 4,
            Self::Rw => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// `struct virtio_vsock_hdr` (virtio 1.2, 5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub socket_type: u16,
    pub op: Op,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            socket_type: u16::from_le_bytes(take(&mut rest)),
            op: Op::from_wire(u16::from_le_bytes(take(&mut rest))),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        put(&mut rest, &self.src_cid.to_le_bytes());
        put(&mut rest, &self.dst_cid.to_le_bytes());
        put(&mut rest, &self.src_port.to_le_bytes());
        put(&mut rest, &self.dst_port.to_le_bytes());
        put(&mut rest, &self.len.to_le_bytes());
        put(&mut rest, &self.socket_type.to_le_bytes());
        put(&mut rest, &self.op.to_wire().to_le_bytes());
        put(&mut rest, &self.flags.to_le_bytes());
        put(&mut rest, &self.buf_alloc.to_le_bytes());
        put(&mut rest, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// Takes `N` bytes off the front; zeros if there are fewer, which the fixed header size rules out.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    match bytes.split_first_chunk::<N>() {
        Some((first, rest)) => {
            *bytes = rest;
            *first
        }
        None => [0; N],
    }
}

/// Writes `value` at the front and moves past it.
fn put(bytes: &mut &mut [u8], value: &[u8]) {
    if let Some((first, rest)) = std::mem::take(bytes).split_at_mut_checked(value.len()) {
        first.copy_from_slice(value);
        *bytes = rest;
    }
}

/// Why a descriptor chain is no packet buffer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PacketError {
    /// A descriptor has the wrong direction for its queue, or there are too many.
    #[error("the descriptor chain is not one a packet may lie in")]
    Chain,
    /// A descriptor points where no memory is.
    #[error("a descriptor points outside guest memory")]
    Memory,
    /// The buffers are too short for a header.
    #[error("the buffers do not hold a packet header")]
    NoHeader,
    /// The header is there, but `len` is above the limit or above what the buffers hold.
    #[error("the payload length is wrong")]
    Payload(Header),
}

/// A packet's buffers in guest memory, checked: every byte of every span is there.
#[derive(Debug)]
pub(super) struct PacketBuffer {
    spans: Vec<(GuestAddress, usize)>,
    len: usize,
}

impl PacketBuffer {
    /// Collects the buffers of `chain`, as far as a packet can reach into them. All of them must be
    /// device-writable if `writable`, else all device-readable (virtio 1.2, 5.10.6.1.2: rx and tx).
    pub(super) fn new(
        chain: DescriptorChain<&Memory>,
        memory: &Memory,
        writable: bool,
    ) -> Result<Self, PacketError> {
        let mut buffer = Self {
            spans: Vec::new(),
            len: 0,
        };
        let access = if writable {
            Permissions::Write
        } else {
            Permissions::Read
        };
        for (index, descriptor) in chain.enumerate() {
            if descriptor.is_write_only() != writable || index == MAX_DESCRIPTORS {
                return Err(PacketError::Chain);
            }
            let room = HEADER_LEN + MAX_PAYLOAD - buffer.len;
            let len = usize::try_from(descriptor.len()).map_or(room, |len| len.min(room));
            if len == 0 {
                continue;
            }
            if !memory.check_range(descriptor.addr(), len, access) {
                return Err(PacketError::Memory);
            }
            buffer.spans.push((descriptor.addr(), len));
            buffer.len += len;
            if len == room {
                break;
            }
        }
        if buffer.len < HEADER_LEN {
            return Err(PacketError::NoHeader);
        }
        Ok(buffer)
    }

    /// Payload bytes there is room for, up to [`MAX_PAYLOAD`].
    pub(super) fn payload_capacity(&self) -> usize {
        self.len.saturating_sub(HEADER_LEN)
    }

    /// Reads a packet of the guest. The payload of a data packet is put at the front of `scratch`
    /// and its length returned; other packets have none, whatever `len` says.
    pub(super) fn read(&self, memory: &Memory, scratch: &mut [u8]) -> Result<(Header, usize), PacketError> {
        let mut bytes = [0; HEADER_LEN];
        self.each(0, HEADER_LEN, |address, range| {
            bytes
                .get_mut(range)
                .is_some_and(|part| memory.read_slice(part, address).is_ok())
        })
        .ok_or(PacketError::Memory)?;
        let header = Header::from_bytes(&bytes);
        if header.op != Op::Rw {
            return Ok((header, 0));
        }
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > scratch.len().min(self.payload_capacity()) {
            return Err(PacketError::Payload(header));
        }
        self.each(HEADER_LEN, len, |address, range| {
            scratch
                .get_mut(range)
                .is_some_and(|part| memory.read_slice(part, address).is_ok())
        })
        .ok_or(PacketError::Payload(header))?;
        Ok((header, len))
    }

    /// Writes a packet for the guest and returns how many bytes of the buffers it took.
    pub(super) fn write(&self, memory: &Memory, header: &Header, payload: &[u8]) -> Result<u32, PacketError> {
        let bytes = header.to_bytes();
        self.each(0, HEADER_LEN, |address, range| {
            bytes
                .get(range)
                .is_some_and(|part| memory.write_slice(part, address).is_ok())
        })
        .ok_or(PacketError::Memory)?;
        self.each(HEADER_LEN, payload.len(), |address, range| {
            payload
                .get(range)
                .is_some_and(|part| memory.write_slice(part, address).is_ok())
        })
        .ok_or(PacketError::Memory)?;
        u32::try_from(HEADER_LEN + payload.len()).map_err(|_| PacketError::Payload(*header))
    }

    /// Calls `copy` for every contiguous piece of the `len` bytes from `offset`, with the piece's
    /// guest address and its place within those `len` bytes. `None` if the buffers end before, or
    /// a copy fails.
    fn each(
        &self,
        offset: usize,
        len: usize,
        mut copy: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> Option<()> {
        let (mut skip, mut done) = (offset, 0);
        for &(address, span) in &self.spans {
            if done == len {
                break;
            }
            if skip >= span {
                skip -= span;
                continue;
            }
            let piece = (span - skip).min(len - done);
            let at = GuestAddress(address.0.checked_add(u64::try_from(skip).ok()?)?);
            if !copy(at, done..done + piece) {
                return None;
            }
            done += piece;
            skip = 0;
        }
        (done == len).then_some(())
    }
}
