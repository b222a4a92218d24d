//! Features, and what the configuration space says (virtio 1.2, 5.1.3 and 5.1.4).

use std::fmt;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::Offloads;

/// What the device offers. VERSION_1 is the transport's to add.
pub const OFFERED: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_MTU
    | 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_RING_F_EVENT_IDX;

/// What the driver accepted of [`OFFERED`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted(u64);

impl Accepted {
    /// Those of `features` that are this device's.
    pub(super) fn of(features: u64) -> Self {
        Self(features & OFFERED)
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    fn has(self, bit: u32) -> bool {
        self.0 & 1 << bit != 0
    }

    /// A received frame may lie in several buffers (VIRTIO_NET_F_MRG_RXBUF).
    pub(super) fn mergeable(self) -> bool {
        self.has(VIRTIO_NET_F_MRG_RXBUF)
    }

    /// What the driver may leave to the host in what it sends. A feature without the one it requires
    /// (virtio 1.2, 5.1.3.1) is none.
    pub(super) fn sending(self) -> Offloads {
        self.offloads(
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
        )
    }

    /// What the host may leave to the driver in what it receives.
    pub(super) fn receiving(self) -> Offloads {
        self.offloads(
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
        )
    }

    fn offloads(self, checksum: u32, tso4: u32, tso6: u32, ecn: u32) -> Offloads {
        let checksum = self.has(checksum);
        let (tso4, tso6) = (checksum && self.has(tso4), checksum && self.has(tso6));
        Offloads {
            checksum,
            tso4,
            tso6,
            ecn: (tso4 || tso6) && self.has(ecn),
        }
    }
}

/// The address of one Ethernet interface: not a group's, and not all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

/// The bytes are no interface's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:02x?} is not the MAC address of an interface")]
pub struct InvalidMac(pub [u8; 6]);

impl Mac {
    /// As it is in a frame.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<[u8; 6]> for Mac {
    type Error = InvalidMac;

    fn try_from(bytes: [u8; 6]) -> Result<Self, InvalidMac> {
        match bytes[0] & 1 == 0 && bytes != [0; 6] {
            true => Ok(Self(bytes)),
            false => Err(InvalidMac(bytes)),
        }
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The largest packet the link carries, in bytes, without the Ethernet header: 68 to 65535.
///
/// Linux reads it when it finds the device and never goes above it, so a fork can be given a smaller
/// one than its checkpoint's guest saw, and not a larger one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mtu(u16);

/// No IPv4 link has such an MTU (RFC 791; virtio 1.2, 5.1.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an MTU of {0} bytes is too small: 68 is the least")]
pub struct InvalidMtu(pub u16);

impl Mtu {
    /// Ethernet's.
    pub const ETHERNET: Self = Self(1500);

    /// In bytes.
    #[must_use]
    pub fn bytes(self) -> u16 {
        self.0
    }
}

impl TryFrom<u16> for Mtu {
    type Error = InvalidMtu;

    fn try_from(bytes: u16) -> Result<Self, InvalidMtu> {
        match bytes {
            68.. => Ok(Self(bytes)),
            _ => Err(InvalidMtu(bytes)),
        }
    }
}

/// What a network card is on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// The address the configuration space names. Linux reads it when it finds the device; in a fork
    /// the agent sets it.
    pub mac: Mac,
    /// The largest packet.
    pub mtu: Mtu,
    /// Frames whose source is another address are dropped.
    pub only_mac: Option<Mac>,
}

/// `struct virtio_net_config`, up to and with `mtu`.
pub(super) fn config_space(config: &NetConfig, link_up: bool) -> [u8; 12] {
    let mut space = [0; 12];
    let (mac, rest) = space.split_at_mut(6);
    mac.copy_from_slice(&config.mac.0);
    let status = match link_up {
        true => VIRTIO_NET_S_LINK_UP.to_le_bytes(),
        false => [0; 4],
    };
    let [mtu_low, mtu_high] = config.mtu.0.to_le_bytes();
    // `max_virtqueue_pairs` is between them: without VIRTIO_NET_F_MQ it does not exist, and reads as zero.
    rest.copy_from_slice(&[status[0], status[1], 0, 0, mtu_low, mtu_high]);
    space
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_where_the_specification_puts_them() {
        let config = NetConfig {
            mac: Mac::try_from([2, 1, 2, 3, 4, 5]).unwrap(),
            mtu: Mtu::try_from(0x1234).unwrap(),
            only_mac: None,
        };
        assert_eq!(
            config_space(&config, true),
            [2, 1, 2, 3, 4, 5, 1, 0, 0, 0, 0x34, 0x12]
        );
        assert_eq!(config_space(&config, false)[6..8], [0, 0]);
    }

    #[test]
    fn addresses_of_groups_and_of_nobody_are_no_interfaces() {
        assert!(Mac::try_from([0; 6]).is_err());
        assert!(Mac::try_from([0xff; 6]).is_err());
        assert!(Mac::try_from([1, 0, 0x5e, 0, 0, 1]).is_err());
        let mac = Mac::try_from([2, 0, 0, 0, 0xab, 1]).unwrap();
        assert_eq!(mac.to_string(), "02:00:00:00:ab:01");
    }

    #[test]
    fn an_mtu_no_link_has_is_refused() {
        assert_eq!(Mtu::try_from(67), Err(InvalidMtu(67)));
        assert_eq!(Mtu::try_from(68).map(Mtu::bytes), Ok(68));
        assert_eq!(Mtu::try_from(u16::MAX).map(Mtu::bytes), Ok(65535));
    }

    #[test]
    fn a_feature_without_the_one_it_requires_is_none() {
        let only = |bits: &[u32]| Accepted::of(bits.iter().map(|bit| 1 << bit).sum());
        assert_eq!(
            only(&[VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_ECN]).sending(),
            Offloads::default()
        );
        let ecn = only(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]).receiving();
        assert!(ecn.checksum && !ecn.ecn);
        let all = Accepted::of(u64::MAX);
        let every = Offloads {
            checksum: true,
            tso4: true,
            tso6: true,
            ecn: true,
        };
        assert_eq!((all.sending(), all.receiving()), (every, every));
        assert_eq!(all.bits(), OFFERED);
    }
}
