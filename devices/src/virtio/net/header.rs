//! The header before each frame (virtio 1.2, 5.1.6): what the guest says of a frame it sends becomes a
//! [`Header`] that says only what makes sense, or a refusal.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::{ETHERNET_HEADER, MAX_FRAME, Offloads};

/// `struct virtio_net_hdr_v1` of a frame that is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The checksum that is left to be computed.
    pub checksum: Option<Checksum>,
    /// How the frame is to be cut into segments.
    pub segments: Option<Segments>,
}

/// Where a checksum is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where in the frame the bytes begin that are summed up, to its end.
    pub start: u16,
    /// Where the sum goes, from there.
    pub offset: u16,
}

/// A large TCP packet, to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// IPv6 rather than IPv4.
    pub v6: bool,
    /// It has ECN bits.
    pub ecn: bool,
    /// Bytes of all its headers, as a hint.
    pub headers: u16,
    /// Bytes of a segment's payload.
    pub size: u16,
}

/// Why a frame is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Nonsense {
    /// Shorter than an Ethernet header, or longer than any frame.
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// A kind of segmentation that is not known, or was not agreed on.
    #[error("segmentation of kind {0:#x}")]
    Segmentation(u8),
    /// Segments of no bytes, headers longer than the frame, or no checksum to be computed.
    #[error("segments that cannot be cut")]
    Segments,
    /// A checksum outside the frame, or one that was not agreed to be left.
    #[error("a checksum at {start} and {offset}")]
    Checksum {
        /// `csum_start`.
        start: u16,
        /// `csum_offset`.
        offset: u16,
    },
}

impl Header {
    /// Bytes of it, before each frame in either direction.
    pub const BYTES: usize = 12;

    /// What `bytes` say of a frame of `length` bytes (without them), sent by a driver that may leave
    /// `allowed` to the host. Flags that mean nothing here are ignored (5.1.6.2.2), and so is
    /// `num_buffers`.
    ///
    /// # Errors
    /// [`Nonsense`]: the frame must not be sent.
    pub fn parse(bytes: [u8; Self::BYTES], length: usize, allowed: Offloads) -> Result<Self, Nonsense> {
        if !(ETHERNET_HEADER..=MAX_FRAME).contains(&length) {
            return Err(Nonsense::Length(length));
        }
        let [flags, kind, fields @ ..] = bytes;
        let field = |at: usize| u16::from_le_bytes([fields[at], fields[at + 1]]);
        let (headers, size, start, offset) = (field(0), field(2), field(4), field(6));
        let checksum = match u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM {
            0 => None,
            _ => {
                // Two bytes of sum, all of them in the frame and behind the Ethernet header.
                let inside = usize::from(start) >= ETHERNET_HEADER
                    && usize::from(start) + usize::from(offset) + 2 <= length;
                if !inside || !allowed.checksum {
                    return Err(Nonsense::Checksum { start, offset });
                }
                Some(Checksum { start, offset })
            }
        };
        let ecn = u32::from(kind) & VIRTIO_NET_HDR_GSO_ECN != 0;
        let (v6, may) = match u32::from(kind) & !VIRTIO_NET_HDR_GSO_ECN {
            VIRTIO_NET_HDR_GSO_NONE if !ecn => {
                return Ok(Self {
                    checksum,
                    segments: None,
                });
            }
            VIRTIO_NET_HDR_GSO_TCPV4 => (false, allowed.tso4),
            VIRTIO_NET_HDR_GSO_TCPV6 => (true, allowed.tso6),
            _ => return Err(Nonsense::Segmentation(kind)),
        };
        if !may || ecn && !allowed.ecn {
            return Err(Nonsense::Segmentation(kind));
        }
        if checksum.is_none() || size == 0 || usize::from(headers) > length {
            return Err(Nonsense::Segments);
        }
        Ok(Self {
            checksum,
            segments: Some(Segments {
                v6,
                ecn,
                headers,
                size,
            }),
        })
    }

    /// As it goes to the host: nothing that was not understood is in it.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let mut put = |at: usize, field: u16| bytes[at..at + 2].copy_from_slice(&field.to_le_bytes());
        if let Some(Checksum { start, offset }) = self.checksum {
            put(6, start);
            put(8, offset);
        }
        if let Some(segments) = self.segments {
            put(2, segments.headers);
            put(4, segments.size);
        }
        let kind = match self.segments {
            None => VIRTIO_NET_HDR_GSO_NONE,
            Some(Segments { v6: false, .. }) => VIRTIO_NET_HDR_GSO_TCPV4,
            Some(Segments { v6: true, .. }) => VIRTIO_NET_HDR_GSO_TCPV6,
        };
        let ecn = match self.segments {
            Some(Segments { ecn: true, .. }) => VIRTIO_NET_HDR_GSO_ECN,
            _ => 0,
        };
        let flags = match self.checksum {
            Some(_) => VIRTIO_NET_HDR_F_NEEDS_CSUM,
            None => 0,
        };
        // All three are below 256.
        bytes[0] = flags.to_le_bytes()[0];
        bytes[1] = (kind | ecn).to_le_bytes()[0];
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Offloads = Offloads {
        checksum: true,
        tso4: true,
        tso6: true,
        ecn: true,
    };

    fn bytes(flags: u8, kind: u8, fields: [u16; 4]) -> [u8; 12] {
        let mut bytes = [flags, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0xee, 0xee];
        for (index, field) in fields.into_iter().enumerate() {
            bytes[2 + 2 * index..4 + 2 * index].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_plain_frame_has_a_header_of_zeroes() {
        let header = Header::parse(bytes(0, 0, [0; 4]), 60, Offloads::default()).unwrap();
        assert_eq!(header, Header::default());
        assert_eq!(header.to_bytes(), [0; 12]);
    }

    #[test]
    fn what_was_agreed_on_goes_through_and_nothing_else_does() {
        for kind in [1, 4, 0x81, 0x84] {
            let said = bytes(1, kind, [54, 1448, 34, 16]);
            let header = Header::parse(said, 9000, ALL).unwrap();
            let mut expected = said;
            expected[10..].fill(0);
            assert_eq!(header.to_bytes(), expected);
            for less in [
                Offloads {
                    checksum: false,
                    ..ALL
                },
                Offloads {
                    tso4: false,
                    tso6: false,
                    ..ALL
                },
                Offloads::default(),
            ] {
                assert!(Header::parse(said, 9000, less).is_err());
            }
        }
        let ecn = bytes(1, 0x81, [54, 1448, 34, 16]);
        assert_eq!(
            Header::parse(ecn, 9000, Offloads { ecn: false, ..ALL }),
            Err(Nonsense::Segmentation(0x81))
        );
    }

    #[test]
    fn flags_that_mean_nothing_here_are_not_passed_on() {
        let header = Header::parse(bytes(0xfe, 0, [7, 7, 7, 7]), 60, ALL).unwrap();
        assert_eq!(header.to_bytes(), [0; 12]);
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |said, length| Header::parse(said, length, ALL).unwrap_err();
        for length in [0, 13, MAX_FRAME + 1, usize::MAX] {
            assert_eq!(refused(bytes(0, 0, [0; 4]), length), Nonsense::Length(length));
        }
        // UDP fragmentation, UDP segmentation, nothing known, ECN of nothing.
        for kind in [2, 3, 5, 0x7f, 0x80, 0x83, 0xff] {
            assert_eq!(
                refused(bytes(1, kind, [54, 1448, 34, 16]), 9000),
                Nonsense::Segmentation(kind)
            );
        }
        for (start, offset) in [(34, 25), (0, 0), (13, 2), (u16::MAX, u16::MAX), (60, 0)] {
            assert_eq!(
                refused(bytes(1, 0, [0, 0, start, offset]), 60),
                Nonsense::Checksum { start, offset }
            );
        }
        assert!(Header::parse(bytes(1, 0, [0, 0, 34, 24]), 60, ALL).is_ok());
        for said in [
            bytes(1, 1, [54, 0, 34, 16]),
            bytes(1, 1, [9001, 1448, 34, 16]),
            bytes(0, 1, [54, 1448, 34, 16]),
        ] {
            assert_eq!(refused(said, 9000), Nonsense::Segments);
        }
    }
}
