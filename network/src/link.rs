//! Interfaces, addresses and routes, as the kernel has them. (rtnetlink(7))

use std::io;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use rustix::io::Errno;

use crate::name::IfName;
use crate::netlink::{self, Message, NLM_F_CREATE_EXCL, NLM_F_DUMP, attributes, u16_at, u32_at, u64_at};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_IFALIAS: u16 = 20;
const IFLA_STATS64: u16 = 23;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const RT_SCOPE_LINK: u8 = 253;
const RT_TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;

/// An interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    /// Longest Ethernet payload in bytes.
    pub(crate) mtu: u32,
    pub(crate) alias: Option<String>,
    pub(crate) counted: Counted,
}

/// Bytes and packets that went through an interface, from the host's side.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) received_packets: u64,
    pub(crate) sent_packets: u64,
    pub(crate) received_bytes: u64,
    pub(crate) sent_bytes: u64,
    pub(crate) sent_dropped: u64,
}

/// A route for IPv4.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) to: Ipv4Net,
    /// The interface it leaves by, or the first of several.
    pub(crate) by: Option<u32>,
    metric: u32,
    table: u32,
    kind: u8,
}

/// `struct ifinfomsg`.
fn ifinfo(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned()
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?))
}

fn parse_link(content: &[u8]) -> Option<(String, Link)> {
    let mut name = None;
    let mut link = Link {
        index: u32_at(content, 4)?,
        mtu: 0,
        alias: None,
        counted: Counted::default(),
    };
    for (kind, value) in attributes(content.get(16..)?) {
        match kind {
            IFLA_IFNAME => name = Some(text(value)),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_IFALIAS => link.alias = Some(text(value)),
            // struct rtnl_link_stats64
            IFLA_STATS64 => {
                link.counted = Counted {
                    received_packets: u64_at(value, 0)?,
                    sent_packets: u64_at(value, 8)?,
                    received_bytes: u64_at(value, 16)?,
                    sent_bytes: u64_at(value, 24)?,
                    sent_dropped: u64_at(value, 56)?,
                }
            }
            _ => {}
        }
    }
    Some((name?, link))
}

/// The interface called `name`, if there is one.
pub(crate) fn find(name: &IfName) -> io::Result<Option<Link>> {
    let mut name_and_nul = name.as_str().as_bytes().to_vec();
    name_and_nul.push(0);
    let message = Message::new(RTM_GETLINK, 0, &ifinfo(0, 0, 0)).attribute(IFLA_IFNAME, &name_and_nul);
    Ok(get(message)?.map(|(_, link)| link))
}

fn get(message: Message) -> io::Result<Option<(String, Link)>> {
    let mut found = None;
    let asked = netlink::route(message, |kind, content| {
        if kind == RTM_NEWLINK {
            found = parse_link(content);
        }
    });
    match asked {
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
        other => other.map(|()| found),
    }
}

/// All interfaces, each with its name.
pub(crate) fn all() -> io::Result<Vec<(String, Link)>> {
    let message = Message::new(RTM_GETLINK, NLM_F_DUMP, &ifinfo(0, 0, 0));
    dump(&message, |kind, content| {
        parse_link(content).filter(|_| kind == RTM_NEWLINK)
    })
}

/// The interface with this index, with its name.
pub(crate) fn by_index(index: u32) -> io::Result<Option<(String, Link)>> {
    get(Message::new(RTM_GETLINK, 0, &ifinfo(index, 0, 0)))
}

/// Gives a new interface its alias, MAC address and MTU.
pub(crate) fn dress(index: u32, alias: &str, mac: [u8; 6], mtu: u16) -> io::Result<()> {
    let message = Message::new(RTM_NEWLINK, 0, &ifinfo(index, 0, 0))
        .attribute(IFLA_IFALIAS, alias.as_bytes())
        .attribute(IFLA_ADDRESS, &mac)
        .attribute(IFLA_MTU, &u32::from(mtu).to_ne_bytes());
    netlink::route(message, |_, _| {})
}

/// Brings an interface up.
pub(crate) fn up(index: u32) -> io::Result<()> {
    netlink::route(
        Message::new(RTM_NEWLINK, 0, &ifinfo(index, IFF_UP, IFF_UP)),
        |_, _| {},
    )
}

/// Removes an interface.
pub(crate) fn delete(index: u32) -> io::Result<()> {
    netlink::route(Message::new(RTM_DELLINK, 0, &ifinfo(index, 0, 0)), |_, _| {})
}

/// Gives an interface `address` on a /31. Its scope is the link: the host never takes it as its own towards
/// anybody else.
pub(crate) fn add_address(index: u32, address: Ipv4Addr) -> io::Result<()> {
    // struct ifaddrmsg
    let mut fixed = [AF_INET, 31, 0, RT_SCOPE_LINK, 0, 0, 0, 0];
    fixed[4..].copy_from_slice(&index.to_ne_bytes());
    let message = Message::new(RTM_NEWADDR, NLM_F_CREATE_EXCL, &fixed)
        .attribute(IFA_LOCAL, &address.octets())
        .attribute(IFA_ADDRESS, &address.octets());
    netlink::route(message, |_, _| {})
}

/// Fixes the MAC address behind `address`, which then is never asked for or learned.
pub(crate) fn add_neighbour(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> io::Result<()> {
    // struct ndmsg
    let mut fixed = [0; 12];
    fixed[0] = AF_INET;
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    let message = Message::new(RTM_NEWNEIGH, NLM_F_CREATE_EXCL, &fixed)
        .attribute(NDA_DST, &address.octets())
        .attribute(NDA_LLADDR, &mac);
    netlink::route(message, |_, _| {})
}

/// A dump that was disturbed is taken again.
fn dump<T>(message: &Message, mut parse: impl FnMut(u16, &[u8]) -> Option<T>) -> io::Result<Vec<T>> {
    let mut tries = 0;
    loop {
        let mut all = Vec::new();
        match netlink::route(message.clone(), |kind, content| all.extend(parse(kind, content))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted && tries < 10 => tries += 1,
            other => return other.map(|()| all),
        }
    }
}

/// All IPv4 addresses of the host, each with the interface that has it.
pub(crate) fn addresses() -> io::Result<Vec<(u32, Ipv4Addr)>> {
    let message = Message::new(RTM_GETADDR, NLM_F_DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
    dump(&message, |kind, content| {
        let index = u32_at(content, 4).filter(|_| kind == RTM_NEWADDR)?;
        let mut found = None;
        for (kind, value) in attributes(content.get(8..)?) {
            match kind {
                IFA_LOCAL => found = ipv4(value),
                IFA_ADDRESS => found = found.or(ipv4(value)),
                _ => {}
            }
        }
        Some((index, found?))
    })
}

/// All IPv4 routes of all tables.
pub(crate) fn routes() -> io::Result<Vec<Route>> {
    let mut fixed = [0; 12];
    fixed[0] = AF_INET;
    dump(
        &Message::new(RTM_GETROUTE, NLM_F_DUMP, &fixed),
        |kind, content| {
            // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags
            if kind != RTM_NEWROUTE || content.first() != Some(&AF_INET) {
                return None;
            }
            let length = *content.get(1)?;
            let mut to = Ipv4Addr::UNSPECIFIED;
            let mut route = Route {
                to: Ipv4Net::default(),
                by: None,
                metric: 0,
                table: u32::from(*content.get(4)?),
                kind: *content.get(7)?,
            };
            for (kind, value) in attributes(content.get(12..)?) {
                match kind {
                    RTA_DST => to = ipv4(value)?,
                    RTA_OIF => route.by = u32_at(value, 0),
                    RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                    RTA_TABLE => route.table = u32_at(value, 0)?,
                    // struct rtnexthop: length, flags, hops, interface
                    RTA_MULTIPATH if u16_at(value, 0).is_some() => route.by = route.by.or(u32_at(value, 4)),
                    _ => {}
                }
            }
            route.to = Ipv4Net::new(to, length).ok()?;
            Some(route)
        },
    )
}

/// The interface by which a packet leaves that no other route wants.
pub(crate) fn default_route(routes: &[Route]) -> Option<u32> {
    routes
        .iter()
        .filter(|route| {
            route.to.prefix_len() == 0 && route.table == RT_TABLE_MAIN && route.kind == RTN_UNICAST
        })
        .filter_map(|route| Some((route.metric, route.by?)))
        .min_by_key(|(metric, _)| *metric)
        .map(|(_, by)| by)
}

#[cfg(test)]
impl Route {
    pub(crate) fn for_test(to: Ipv4Net, by: Option<u32>) -> Route {
        Route {
            to,
            by,
            metric: 0,
            table: RT_TABLE_MAIN,
            kind: RTN_UNICAST,
        }
    }
}
