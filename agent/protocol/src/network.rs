//! Who a guest is on its network.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The most name servers a resolver looks at (`MAXNS` of resolv.conf(5)).
pub const MAX_DNS: usize = 3;

/// One Ethernet interface's addresses and its way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The interface's Ethernet address.
    pub mac: [u8; 6],
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// How many of its bits are the link's: 1 to 31.
    pub prefix_len: u8,
    /// Where everything goes that is not on the link; an address on it.
    pub gateway: Ipv4Addr,
    /// Name servers, at most [`MAX_DNS`], in the order they are asked.
    pub dns: Vec<Ipv4Addr>,
    /// The largest packet, in bytes: 68 to 65535, and no more than the device says.
    pub mtu: u16,
}

/// A [`Network`] that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// A group's address, or nobody's.
    #[error("{0:02x?} is not the MAC address of an interface")]
    Mac([u8; 6]),
    /// Not an address one machine can have.
    #[error("{0} is not the address of a machine on a link of {1} bits")]
    Address(Ipv4Addr, u8),
    /// A prefix without room for two.
    #[error("a prefix of {0} bits: it may have 1 to 31")]
    Prefix(u8),
    /// The gateway is the machine itself, or not on its link.
    #[error("gateway {0} is not another machine on the link")]
    Gateway(Ipv4Addr),
    /// Too many name servers, or one that cannot be asked.
    #[error("name servers {0:?}: there may be {MAX_DNS}, each with an address")]
    Dns(Vec<Ipv4Addr>),
    /// Too small for IPv4.
    #[error("an MTU of {0} bytes: 68 is the least")]
    Mtu(u16),
}

impl Network {
    /// Whether it can be.
    ///
    /// # Errors
    /// [`NetworkError`] names the first field that cannot.
    pub fn check(&self) -> Result<(), NetworkError> {
        if self.mac[0] & 1 != 0 || self.mac == [0; 6] {
            return Err(NetworkError::Mac(self.mac));
        }
        if !(1..=31).contains(&self.prefix_len) {
            return Err(NetworkError::Prefix(self.prefix_len));
        }
        if !self.is_host(self.address) {
            return Err(NetworkError::Address(self.address, self.prefix_len));
        }
        let on_link = (u32::from(self.address) ^ u32::from(self.gateway)) & self.mask_bits() == 0;
        if !on_link || self.gateway == self.address || !self.is_host(self.gateway) {
            return Err(NetworkError::Gateway(self.gateway));
        }
        let bad = |dns: &Ipv4Addr| dns.is_unspecified() || dns.is_multicast() || dns.is_broadcast();
        if self.dns.len() > MAX_DNS || self.dns.iter().any(bad) {
            return Err(NetworkError::Dns(self.dns.clone()));
        }
        match self.mtu {
            68.. => Ok(()),
            mtu => Err(NetworkError::Mtu(mtu)),
        }
    }

    fn mask_bits(&self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix_len.min(32)))
            .unwrap_or(0)
    }

    /// Whether a machine may have the address on a link of this prefix. A link of two has no address of
    /// its own and none for all (RFC 3021).
    fn is_host(&self, address: Ipv4Addr) -> bool {
        let host = u32::from(address) & !self.mask_bits();
        let special = self.prefix_len < 31 && (host == 0 || host == !self.mask_bits());
        // 0/8, 127/8, groups, and what comes after them.
        let first = address.octets()[0];
        !special && first != 0 && first != 127 && first < 224
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn network() -> Network {
        Network {
            mac: [2, 0, 0, 0, 0, 7],
            address: Ipv4Addr::new(10, 1, 0, 3),
            prefix_len: 31,
            gateway: Ipv4Addr::new(10, 1, 0, 2),
            dns: vec![Ipv4Addr::new(10, 1, 0, 2), Ipv4Addr::new(9, 9, 9, 9)],
            mtu: 1500,
        }
    }

    #[test]
    fn what_cannot_be_is_named() {
        let ip = Ipv4Addr::new;
        let wrong = |change: fn(&mut Network)| {
            let mut network = network();
            change(&mut network);
            network.check().unwrap_err()
        };
        assert_eq!(wrong(|n| n.mac[0] = 1), NetworkError::Mac([1, 0, 0, 0, 0, 7]));
        assert_eq!(wrong(|n| n.mac = [0; 6]), NetworkError::Mac([0; 6]));
        assert_eq!(wrong(|n| n.prefix_len = 0), NetworkError::Prefix(0));
        assert_eq!(wrong(|n| n.prefix_len = 32), NetworkError::Prefix(32));
        for octets in [[127, 0, 0, 1], [0, 0, 0, 1], [224, 0, 0, 1], [255; 4]] {
            let network = Network {
                address: octets.into(),
                ..network()
            };
            assert!(matches!(network.check(), Err(NetworkError::Address(..))));
        }
        // The link's own address and the one for all, where there are such.
        for (address, prefix_len, good) in [
            (ip(10, 0, 0, 0), 24, false),
            (ip(10, 0, 0, 255), 24, false),
            (ip(10, 0, 0, 254), 24, true),
            (ip(10, 0, 0, 0), 31, true),
        ] {
            let network = Network {
                address,
                prefix_len,
                gateway: ip(10, 0, 0, 1),
                ..network()
            };
            assert_eq!(network.check().is_ok(), good, "{address}/{prefix_len}");
        }
        assert_eq!(
            wrong(|n| n.gateway = n.address),
            NetworkError::Gateway(ip(10, 1, 0, 3))
        );
        assert_eq!(
            wrong(|n| n.gateway = Ipv4Addr::new(10, 1, 0, 4)),
            NetworkError::Gateway(ip(10, 1, 0, 4))
        );
        assert!(matches!(
            wrong(|n| n.dns = vec![Ipv4Addr::LOCALHOST; 4]),
            NetworkError::Dns(_)
        ));
        assert!(matches!(
            wrong(|n| n.dns = vec![Ipv4Addr::UNSPECIFIED]),
            NetworkError::Dns(_)
        ));
        assert_eq!(wrong(|n| n.mtu = 67), NetworkError::Mtu(67));
    }
}
