//! Just enough of netlink: a message with attributes goes to the kernel, its answers come back.
//!
//! Everything is one request and its answers on a socket of its own, in the calling thread's network
//! namespace. (netlink(7), `include/uapi/linux/netlink.h`)

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// Answer with everything that there is.
pub(crate) const NLM_F_DUMP: u16 = 0x300;
/// Make what isn't there, and fail if it is.
pub(crate) const NLM_F_CREATE_EXCL: u16 = 0x600;
/// What was dumped changed meanwhile.
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// The kernel's dumps are at most this big a piece.
const BUFFER: usize = 64 * 1024;

/// A request under construction.
#[derive(Clone)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// `fixed` is the structure that follows the header for this type of message.
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
        bytes[8..12].copy_from_slice(&1u32.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Message(bytes);
        message.align();
        message
    }

    fn align(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        // All of ours are a name, an address or a nest of these; a longer one would be refused by the kernel.
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.align();
        self
    }

    pub(crate) fn nest(mut self, kind: u16, inside: impl FnOnce(Message) -> Message) -> Message {
        let start = self.0.len();
        self = inside(self.attribute(kind | NLA_F_NESTED, &[]));
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    fn finished(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// The attributes in `bytes`, up to the first that isn't whole.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Routes, links and addresses.
pub(crate) fn route(message: Message, answer: impl FnMut(u16, &[u8])) -> io::Result<()> {
    talk(None, message, answer)
}

/// Connection tracking.
pub(crate) fn netfilter(message: Message, answer: impl FnMut(u16, &[u8])) -> io::Result<()> {
    talk(Some(netlink::NETFILTER), message, answer)
}

/// Sends `message` and hands every answer's type and content to `answer`, until the kernel has said that it is
/// done. An error is the kernel's.
fn talk(protocol: Option<Protocol>, message: Message, mut answer: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    let socket: OwnedFd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    rustix::net::send(&socket, &message.finished(), SendFlags::empty())?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let (_, length) = match rustix::net::recv(&socket, buffer.as_mut_slice(), RecvFlags::TRUNC) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let mut rest = buffer.get(..length).ok_or(Errno::MSGSIZE)?;
        while rest.len() >= HEADER {
            let malformed = || io::Error::from(io::ErrorKind::InvalidData);
            let length = u32_at(rest, 0)
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(malformed)?;
            let kind = u16_at(rest, 4).ok_or_else(malformed)?;
            let flags = u16_at(rest, 6).ok_or_else(malformed)?;
            let content = rest.get(HEADER..length).ok_or_else(malformed)?;
            if flags & NLM_F_DUMP_INTR != 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match kind {
                NLMSG_ERROR | NLMSG_DONE => {
                    // Both open with an error number, negative or 0.
                    let error = u32_at(content, 0).unwrap_or(0).cast_signed();
                    return match error {
                        0 => Ok(()),
                        error => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
                    };
                }
                kind => answer(kind, content),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_back_as_they_were_written() {
        let bytes = Message::new(1, 0, &[7; 3])
            .attribute(3, b"sp-0\0")
            .nest(4, |m| m.attribute(1, &[9]).attribute(2, &[]))
            .finished();
        assert_eq!(u32_at(&bytes, 0).unwrap() as usize, bytes.len());
        let read: Vec<_> = attributes(&bytes[HEADER + 4..]).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0], (3, &b"sp-0\0"[..]));
        let inner: Vec<_> = attributes(read[1].1).collect();
        assert_eq!(inner, [(1, &[9][..]), (2, &[][..])]);
    }

    #[test]
    fn half_an_attribute_ends_the_list() {
        assert_eq!(attributes(&[8, 0, 1, 0, 5, 5]).count(), 0);
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[5]).count(), 0);
    }
}
