//! One Ethernet interface through rtnetlink (include/uapi/linux/rtnetlink.h): what it is, and making it
//! another.

use std::net::Ipv4Addr;

use rustix::io::Errno;
use spore_protocol::Network;

use super::netlink::{
    CREATE_NEW, CREATE_OR_REPLACE, DUMP, Messages, NetlinkError, Socket, attributes, field,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const AF_INET: u8 = 2;
const ARPHRD_ETHER: u16 = 1;
const IFF_UP: u32 = 1;
/// Bytes of `struct ifinfomsg` and `struct ifaddrmsg`.
const IFINFO: usize = 16;
const IFADDR: usize = 8;

/// Which interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The first Ethernet interface that is a device, and not made by software (a bridge, one end of a
    /// veth).
    Card,
    /// The one of this name.
    Named(String),
}

/// An interface as it was when it was looked for, and a socket to change it through.
#[derive(Debug)]
pub struct Interface {
    socket: Socket,
    index: i32,
    up: bool,
    /// IPv4 addresses and how many bits of each are the link's.
    addresses: Vec<(Ipv4Addr, u8)>,
}

impl Interface {
    /// Looks for it; `None` if there is none such.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn find(which: &Which) -> Result<Option<Self>, NetlinkError> {
        let socket = Socket::open(None).map_err(NetlinkError::opening)?;
        let mut found = None;
        let mut list = Messages::default();
        list.push("listing interfaces", RTM_GETLINK, DUMP, &[0; IFINFO]);
        socket.exchange(
            list,
            |_| false,
            |kind, body| {
                if kind == RTM_NEWLINK && found.is_none() {
                    found = matching(which, body);
                }
            },
        )?;
        let Some((index, up)) = found else {
            return Ok(None);
        };
        let mut addresses = Vec::new();
        let mut list = Messages::default();
        list.push(
            "listing addresses",
            RTM_GETADDR,
            DUMP,
            &[AF_INET, 0, 0, 0, 0, 0, 0, 0],
        );
        socket.exchange(
            list,
            |_| false,
            |kind, body| {
                let of = field(body, 4).map(i32::from_ne_bytes);
                if kind == RTM_NEWADDR && of == Some(index) && body.first() == Some(&AF_INET) {
                    addresses.extend(address(body));
                }
            },
        )?;
        Ok(Some(Self {
            socket,
            index,
            up,
            addresses,
        }))
    }

    /// Whether anything can have been sent in its name: it is up, or has an address.
    pub fn is_used(&self) -> bool {
        self.up || !self.addresses.is_empty()
    }

    /// Takes it down, which forgets its routes and neighbours, and removes its addresses.
    ///
    /// # Errors
    /// When the kernel does not.
    pub fn take_down(&self) -> Result<(), NetlinkError> {
        let mut messages = Messages::default();
        messages.push("taking the interface down", RTM_SETLINK, 0, &self.info(0));
        for (address, prefix_len) in &self.addresses {
            let body = self.address_message(*prefix_len);
            messages.push("removing its address", RTM_DELADDR, 0, &body);
            messages.attribute(IFA_LOCAL, &address.octets());
        }
        // One may have gone with another that it was second to.
        let gone = |error: &std::io::Error| error.raw_os_error() == Some(Errno::ADDRNOTAVAIL.raw_os_error());
        self.socket.exchange(messages, gone, |_, _| {})
    }

    /// Makes it this, and brings it up. It must be down and have no address.
    ///
    /// # Errors
    /// When the kernel does not.
    pub fn bring_up(&self, network: &Network) -> Result<(), NetlinkError> {
        self.socket.exchange(self.being(network), |_| false, |_, _| {})
    }

    /// Goes through all of [`Interface::bring_up`], for an interface that cannot be.
    pub fn rehearse(&self, network: &Network) -> Result<(), NetlinkError> {
        let nobody = Self {
            socket: Socket::open(None).map_err(NetlinkError::opening)?,
            index: i32::MAX,
            up: false,
            addresses: Vec::new(),
        };
        nobody.bring_up(network)
    }

    fn being(&self, network: &Network) -> Messages {
        let mut messages = Messages::default();
        messages.push(
            "setting MAC and MTU and bringing the interface up",
            RTM_SETLINK,
            0,
            &self.info(IFF_UP),
        );
        messages.attribute(IFLA_ADDRESS, &network.mac);
        messages.attribute(IFLA_MTU, &u32::from(network.mtu).to_ne_bytes());
        let body = self.address_message(network.prefix_len);
        messages.push("setting the address", RTM_NEWADDR, CREATE_NEW, &body);
        messages.attribute(IFA_LOCAL, &network.address.octets());
        messages.attribute(IFA_ADDRESS, &network.address.octets());
        // `struct rtmsg`: to anywhere, in the main table (254), set at boot (3), unicast (1).
        let route = [AF_INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
        messages.push(
            "setting the default route",
            RTM_NEWROUTE,
            CREATE_OR_REPLACE,
            &route,
        );
        messages.attribute(RTA_GATEWAY, &network.gateway.octets());
        messages.attribute(RTA_OIF, &self.index.to_ne_bytes());
        messages
    }

    /// `struct ifinfomsg` that sets IFF_UP to what it is in `flags`.
    fn info(&self, flags: u32) -> [u8; IFINFO] {
        let mut body = [0; IFINFO];
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        body[8..12].copy_from_slice(&flags.to_ne_bytes());
        body[12..].copy_from_slice(&IFF_UP.to_ne_bytes());
        body
    }

    /// `struct ifaddrmsg`.
    fn address_message(&self, prefix_len: u8) -> [u8; IFADDR] {
        let mut body = [AF_INET, prefix_len, 0, 0, 0, 0, 0, 0];
        body[4..].copy_from_slice(&self.index.to_ne_bytes());
        body
    }
}

/// Index of the interface, and whether it is up, if it is the one.
fn matching(which: &Which, body: &[u8]) -> Option<(i32, bool)> {
    let kind = field(body, 2).map(u16::from_ne_bytes)?;
    let index = field(body, 4).map(i32::from_ne_bytes)?;
    let flags = field(body, 8).map(u32::from_ne_bytes)?;
    let attribute = |wanted: u16| attributes(body, IFINFO).find(|(kind, _)| *kind == wanted);
    let it = match which {
        Which::Card => attribute(IFLA_LINKINFO).is_none(),
        Which::Named(name) => attribute(IFLA_IFNAME)
            .is_some_and(|(_, value)| value.strip_suffix(b"\0") == Some(name.as_bytes())),
    };
    (it && kind == ARPHRD_ETHER).then_some((index, flags & IFF_UP != 0))
}

/// The address of an RTM_NEWADDR.
fn address(body: &[u8]) -> Option<(Ipv4Addr, u8)> {
    let prefix_len = *body.get(1)?;
    let (_, value) = attributes(body, IFADDR).find(|(kind, _)| *kind == IFA_LOCAL)?;
    Some((Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?), prefix_len))
}
