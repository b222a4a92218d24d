//! What the driver asks and what it is answered: bytes to a typed request or an error, and a typed
//! response to bytes (virtio 1.2, 5.15.6; `include/uapi/linux/virtio_mem.h`).

use vm_memory::GuestAddress;

use super::{BlockRange, MemConfig, RangeState};

/// A request the device can act on: its blocks are whole, at least one, and in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Plug these blocks, all of them unplugged now.
    Plug(BlockRange),
    /// Unplug these blocks, all of them plugged now.
    Unplug(BlockRange),
    /// Unplug whatever is plugged.
    UnplugAll,
    /// Tell what these blocks are.
    State(BlockRange),
}

/// A request that is answered with VIRTIO_MEM_RESP_ERROR whatever the device's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Fewer bytes than a request has.
    #[error("a request of {0} bytes, not 24")]
    Short(usize),
    /// No such request type.
    #[error("unknown request type {0}")]
    UnknownType(u16),
    /// Not the start of a block, no blocks, or not all in the region.
    #[error("{count} blocks at {addr:#x} are not whole blocks of the region")]
    Range {
        /// Guest physical address asked for.
        addr: u64,
        /// Number of blocks asked for.
        count: u16,
    },
}

impl Request {
    /// Length of a request in bytes.
    pub const SIZE: usize = 24;

    /// Reads a request off the driver's bytes. Padding and anything after it are ignored, as the
    /// specification demands.
    ///
    /// # Errors
    /// [`RequestError`]; the answer is VIRTIO_MEM_RESP_ERROR.
    pub fn parse(bytes: &[u8], config: &MemConfig) -> Result<Self, RequestError> {
        let Some(bytes) = bytes.first_chunk::<{ Self::SIZE }>() else {
            return Err(RequestError::Short(bytes.len()));
        };
        let [
            t0,
            t1,
            _,
            _,
            _,
            _,
            _,
            _,
            a0,
            a1,
            a2,
            a3,
            a4,
            a5,
            a6,
            a7,
            n0,
            n1,
            ..,
        ] = *bytes;
        let addr = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let count = u16::from_le_bytes([n0, n1]);
        let range = || {
            config
                .range_at(GuestAddress(addr), u32::from(count))
                .ok_or(RequestError::Range { addr, count })
        };
        match u16::from_le_bytes([t0, t1]) {
            0 => Ok(Self::Plug(range()?)),
            1 => Ok(Self::Unplug(range()?)),
            2 => Ok(Self::UnplugAll),
            3 => Ok(Self::State(range()?)),
            unknown => Err(RequestError::UnknownType(unknown)),
        }
    }
}

/// The device's answer. What Linux does with each is in `virtio_mem_run_wq()` and
/// `virtio_mem_send_*_request()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Done.
    Ack,
    /// To a STATE request: this is what the blocks are.
    State(RangeState),
    /// More than the host asked for; only to PLUG. Linux reads the configuration again and goes on.
    Nack,
    /// Not now. Linux tries again after 50 to 300 s, or at the next configuration change.
    Busy,
    /// The request makes no sense. Linux takes the device for broken and never asks again.
    Error,
}

impl Response {
    /// Length of a response in bytes.
    pub const SIZE: usize = 10;

    /// The response as the driver reads it.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let (kind, state) = match self {
            Self::Ack => (0u16, 0),
            Self::State(state) => (0, state as u16),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        let ([k0, k1], [s0, s1]) = (kind.to_le_bytes(), state.to_le_bytes());
        [k0, k1, 0, 0, 0, 0, 0, 0, s0, s1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::mem::testing::{ADDR, BLOCK, config, request};

    #[test]
    fn the_four_requests_are_read() {
        let config = config(8);
        let range = config.range_at(GuestAddress(ADDR + BLOCK), 2).unwrap();
        let parse = |kind| Request::parse(&request(kind, ADDR + BLOCK, 2), &config);
        assert_eq!(parse(0), Ok(Request::Plug(range)));
        assert_eq!(parse(1), Ok(Request::Unplug(range)));
        assert_eq!(parse(2), Ok(Request::UnplugAll));
        assert_eq!(parse(3), Ok(Request::State(range)));
        assert_eq!(parse(4), Err(RequestError::UnknownType(4)));
        assert_eq!(parse(0x100), Err(RequestError::UnknownType(0x100)));
    }

    #[test]
    fn padding_and_surplus_are_ignored() {
        let mut bytes = request(0, ADDR, 1).to_vec();
        bytes[2..8].fill(0xff);
        bytes[18..24].fill(0xff);
        bytes.extend([0xff; 40]);
        assert!(matches!(Request::parse(&bytes, &config(8)), Ok(Request::Plug(_))));
        bytes[0] = 2;
        bytes[8..24].fill(0xff);
        assert_eq!(Request::parse(&bytes, &config(8)), Ok(Request::UnplugAll));
    }

    #[test]
    fn ranges_that_are_not_whole_blocks_of_the_region_are_errors() {
        let config = config(8);
        for kind in [0, 1, 3] {
            for (addr, count) in [
                (ADDR, 0),
                (ADDR, 9),
                (ADDR + 7 * BLOCK, 2),
                (ADDR + 8 * BLOCK, 1),
                (ADDR - BLOCK, 1),
                (ADDR + 1, 1),
                (ADDR + BLOCK / 2, 1),
                (0, 1),
                (u64::MAX, u16::MAX),
                (0u64.wrapping_sub(BLOCK), u16::MAX),
            ] {
                let parsed = Request::parse(&request(kind, addr, count), &config);
                assert_eq!(parsed, Err(RequestError::Range { addr, count }));
            }
        }
        assert_eq!(Request::parse(&[0; 23], &config), Err(RequestError::Short(23)));
        assert_eq!(Request::parse(&[], &config), Err(RequestError::Short(0)));
    }
}
