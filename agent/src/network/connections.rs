//! Ends connections that a fork would share with its original: same ports, same sequence numbers, and
//! two machines at one end.
//!
//! The kernel lists sockets and ends them through `NETLINK_SOCK_DIAG` (include/uapi/linux/inet_diag.h), if
//! it was built to (INET_DIAG, INET_UDP_DIAG, INET_DIAG_DESTROY). Where it was not, there must be none.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use rustix::io::Errno;
use rustix::net::netlink;

use super::netlink::{DUMP, Messages, NetlinkError, Socket, field};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Bytes of `struct inet_diag_sockid`, and where it is in what is listed.
const ID: usize = 48;
const ID_AT: usize = 4;
/// Where the inode is; 0: the socket is nobody's any more.
const INODE_AT: usize = 68;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ESTABLISHED: u8 = 1;
/// All states of a TCP socket with another end, but TIME_WAIT (6): there the kernel only waits. Not CLOSE
/// (7), not LISTEN (10).
const CONNECTED_TCP: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 12;
const CONNECTED_UDP: u32 = 1 << ESTABLISHED;

/// How often is looked whether any is left.
const ROUNDS: usize = 8;

/// A kind of socket: family, protocol, states, and where the kernel lists it for people.
#[derive(Debug, Clone, Copy)]
struct Kind {
    family: u8,
    protocol: u8,
    states: u32,
    list: &'static str,
}

const fn kind(family: u8, protocol: u8, states: u32, list: &'static str) -> Kind {
    Kind {
        family,
        protocol,
        states,
        list,
    }
}

const KINDS: [Kind; 4] = [
    kind(AF_INET, TCP, CONNECTED_TCP, "/proc/net/tcp"),
    kind(AF_INET6, TCP, CONNECTED_TCP, "/proc/net/tcp6"),
    kind(AF_INET, UDP, CONNECTED_UDP, "/proc/net/udp"),
    kind(AF_INET6, UDP, CONNECTED_UDP, "/proc/net/udp6"),
];

/// Why connections could not be ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionsError {
    /// The kernel said no.
    #[error("ending connections: {0}")]
    Kernel(#[from] NetlinkError),
    /// It can't be asked, and there are some.
    #[error("there are connections, and this kernel cannot end them (INET_DIAG_DESTROY)")]
    Unable,
    /// It can't be asked, and one cannot see whether there are some.
    #[error("{0}: {1}")]
    List(&'static str, io::Error),
    /// There always are more.
    #[error("connections are there however often they are ended")]
    Endless,
}

/// What is needed to end connections, found out before there is a hurry.
#[derive(Debug)]
pub struct Connections {
    socket: Socket,
    kinds: Vec<Kind>,
}

impl Connections {
    /// Prepares it.
    ///
    /// # Errors
    /// When the kernel has no netlink, or descriptors run out.
    pub fn prepare() -> Result<Self, NetlinkError> {
        let six = Path::new("/proc/net/tcp6").exists();
        let kinds = KINDS.into_iter().filter(|kind| kind.family == AF_INET || six);
        Ok(Self {
            socket: Socket::open(Some(netlink::SOCK_DIAG)).map_err(NetlinkError::opening)?,
            kinds: kinds.collect(),
        })
    }

    /// Ends every TCP connection and connected UDP socket whose address here is not loopback. Their
    /// programs see `ECONNABORTED`. The interface must be down: nothing is said to the other ends.
    ///
    /// # Errors
    /// [`ConnectionsError`]: there may be some left.
    pub fn end_all(&self) -> Result<(), ConnectionsError> {
        self.kinds.iter().try_for_each(|kind| self.end(*kind))
    }

    fn end(&self, kind: Kind) -> Result<(), ConnectionsError> {
        for _ in 0..ROUNDS {
            let found = match self.list(kind) {
                Ok(found) => found,
                Err(error) if is_unable(&error.source) => return none_listed(kind),
                Err(error) => return Err(error.into()),
            };
            if found.is_empty() {
                return Ok(());
            }
            let mut destroy = Messages::default();
            for (id, _) in &found {
                destroy.push("ending a connection", SOCK_DESTROY, 0, &request(kind, 0, id));
            }
            // Ended by itself meanwhile.
            let gone = |error: &io::Error| error.raw_os_error() == Some(Errno::NOENT.raw_os_error());
            match self.socket.exchange(destroy, gone, |_, _| {}) {
                Ok(()) => {}
                // Kernels before 6.5 cannot end one that only waits for the other end's last word; it says
                // nothing unasked.
                Err(error) if is_unable(&error.source) && found.iter().all(|(_, orphan)| *orphan) => {
                    return Ok(());
                }
                Err(error) if is_unable(&error.source) => return Err(ConnectionsError::Unable),
                Err(error) => return Err(error.into()),
            }
        }
        Err(ConnectionsError::Endless)
    }

    /// Each one's id, and whether it is nobody's any more.
    fn list(&self, kind: Kind) -> Result<Vec<([u8; ID], bool)>, NetlinkError> {
        let mut found = Vec::new();
        let mut dump = Messages::default();
        let body = request(kind, kind.states, &[0; ID]);
        dump.push("listing connections", SOCK_DIAG_BY_FAMILY, DUMP, &body);
        self.socket.exchange(
            dump,
            |_| false,
            |message, body| {
                if message == SOCK_DIAG_BY_FAMILY
                    && let Some(id) = field::<ID>(body, ID_AT)
                    && is_outside(local(kind, &id))
                {
                    let orphan = field(body, INODE_AT).map(u32::from_ne_bytes) == Some(0);
                    found.push((id, orphan));
                }
            },
        )?;
        Ok(found)
    }
}

/// `struct inet_diag_req_v2`.
fn request(kind: Kind, states: u32, id: &[u8; ID]) -> Vec<u8> {
    let mut body = vec![kind.family, kind.protocol, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(id);
    body
}

/// The address at our end: behind two ports.
fn local(kind: Kind, id: &[u8; ID]) -> IpAddr {
    match kind.family {
        AF_INET => IpAddr::from(field::<4>(id, 4).unwrap_or_default()),
        _ => IpAddr::from(field::<16>(id, 4).unwrap_or_default()),
    }
}

/// Whether a socket with this address may have its other end outside the machine.
fn is_outside(address: IpAddr) -> bool {
    let address = address.to_canonical();
    !address.is_loopback() && !address.is_unspecified()
}

/// The kernel has no such list, or no way to end what is in it.
fn is_unable(error: &io::Error) -> bool {
    [
        Errno::NOENT,
        Errno::OPNOTSUPP,
        Errno::INVAL,
        Errno::PROTONOSUPPORT,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether there is none in the list for people.
fn none_listed(kind: Kind) -> Result<(), ConnectionsError> {
    match fs::read_to_string(kind.list) {
        Ok(list) if list.lines().skip(1).all(|line| !is_connection(kind, line)) => Ok(()),
        Ok(_) => Err(ConnectionsError::Unable),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(ConnectionsError::List(kind.list, error)),
    }
}

/// Whether a line of `/proc/net/tcp` or its like is a socket that would have to be ended; also if it
/// cannot be read.
fn is_connection(kind: Kind, line: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let (address, state) = (words.next().and_then(proc_address), words.nth(1));
    let state = state.and_then(|state| u32::from_str_radix(state, 16).ok());
    match (address, state) {
        (Some(address), Some(state @ 0..=31)) => kind.states & 1 << state != 0 && is_outside(address),
        _ => true,
    }
}

/// An address as it is there: each 32 bits as the machine has them, in hex, and a port.
fn proc_address(word: &str) -> Option<IpAddr> {
    let (digits, _) = word.split_once(':')?;
    let mut octets = Vec::new();
    for at in (0..digits.len()).step_by(8) {
        let word = u32::from_str_radix(digits.get(at..at + 8)?, 16).ok()?;
        octets.extend(word.to_ne_bytes());
    }
    match octets.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people_is_read_as_it_is_meant() {
        let tcp = |line: &str| is_connection(KINDS[0], line);
        let line = |local: &str, state: &str| {
            format!("   0: {local}:0277 0A00020F:C350 {state} 00000000:00000000 00:00000000 00000000 0 0 1")
        };
        let (outside, loopback) = ("0200000A", "0100007F");
        assert_eq!(
            proc_address("0200000A:1F90"),
            Some(Ipv4Addr::new(10, 0, 0, 2).into())
        );
        assert!(tcp(&line(outside, "01")) && tcp(&line(outside, "02")) && tcp(&line(outside, "08")));
        // Listening, waiting, loopback, anywhere.
        assert!(!tcp(&line(outside, "0A")) && !tcp(&line(outside, "06")));
        assert!(!tcp(&line(loopback, "01")) && !tcp(&line("00000000", "01")));
        assert!(tcp("nonsense") && tcp("") && tcp(&line("0200", "01")));
        let six = |local: &str| is_connection(KINDS[1], &line(local, "01"));
        assert!(six("0000000000000000FFFF00000200000A"));
        assert!(!six("0000000000000000FFFF00000100007F"));
        assert!(!six("00000000000000000000000001000000"));
        assert!(six("000080FE000000000000000001000000"));
        let udp = |state: &str| is_connection(KINDS[2], &line(outside, state));
        assert!(udp("01") && !udp("07"));
    }
}
