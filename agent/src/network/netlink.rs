//! Netlink (RFC 3549, include/uapi/linux/netlink.h): several messages in one system call, and their
//! answers in another.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};

/// Flags of a message.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
/// Everything there is, not one.
pub const DUMP: u16 = 0x300;
/// There must be none yet.
pub const CREATE_NEW: u16 = 0x600;
/// In place of one that is there.
pub const CREATE_OR_REPLACE: u16 = 0x500;

const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Bytes of a message's header, and of an attribute's.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;
/// What is received at once; the kernel fills as much as it is offered, up to 32 KiB.
const BUFFER_BYTES: usize = 16 * 1024;

/// Messages that go out together.
#[derive(Debug, Default)]
pub struct Messages {
    bytes: Vec<u8>,
    /// Where the last one begins.
    last: usize,
    /// What each does.
    names: Vec<&'static str>,
}

/// A message that failed, and why.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct NetlinkError {
    /// What it was to do.
    what: &'static str,
    /// What the kernel says, or kept us from asking.
    pub source: io::Error,
}

impl NetlinkError {
    /// There is no socket to ask through.
    pub fn opening(source: io::Error) -> Self {
        Self {
            what: "opening a netlink socket",
            source,
        }
    }
}

impl Messages {
    /// One more message, to do `what`. Attributes are added to it.
    pub fn push(&mut self, what: &'static str, kind: u16, flags: u16, body: &[u8]) {
        self.last = self.bytes.len();
        self.names.push(what);
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((flags | REQUEST).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.put(body);
    }

    /// An attribute of the last message.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.put(value);
    }

    /// Appends, aligned, to the last message.
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        let length = u32::try_from(self.bytes.len() - self.last).unwrap_or(u32::MAX);
        self.set(self.last, &length.to_ne_bytes());
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    /// Numbers the messages, and asks for an answer to the last one, unless it is a dump, which has one.
    fn number(&mut self, first: u32) {
        let mut at = 0;
        let mut sequence = first;
        while let Some(length) = field::<4>(&self.bytes, at).map(u32::from_ne_bytes) {
            self.set(at + 8, &sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
            at += usize::try_from(length).unwrap_or(usize::MAX).max(HEADER);
        }
        if let Some(flags) = field::<2>(&self.bytes, self.last + 6).map(u16::from_ne_bytes)
            && flags & DUMP != DUMP
        {
            self.set(self.last + 6, &(flags | ACK).to_ne_bytes());
        }
    }
}

/// A netlink socket. One exchange at a time.
#[derive(Debug)]
pub struct Socket {
    socket: rustix::fd::OwnedFd,
    /// The number of the next message: answers to earlier ones are told from those that are waited for.
    next: AtomicU32,
}

impl Socket {
    /// A socket that speaks `protocol` to the kernel; rtnetlink, the first of them, if none is named.
    ///
    /// # Errors
    /// When descriptors run out, or the kernel does not know it.
    pub fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
        Ok(Self {
            socket,
            next: AtomicU32::new(1),
        })
    }

    /// Has the messages carried out, one after the other, also after one that failed. What they dump goes
    /// to `each` by its type. Errors that `pardon` says yes to are none.
    ///
    /// # Errors
    /// The first that failed.
    pub fn exchange(
        &self,
        mut messages: Messages,
        pardon: impl Fn(&io::Error) -> bool,
        mut each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NetlinkError> {
        let names = std::mem::take(&mut messages.names);
        let Some(final_name) = names.last().copied() else {
            return Ok(());
        };
        let failed = |source: rustix::io::Errno| NetlinkError {
            what: final_name,
            source: source.into(),
        };
        let count = u32::try_from(names.len()).unwrap_or(u32::MAX);
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        messages.number(first);
        send(&self.socket, &messages.bytes, SendFlags::empty()).map_err(failed)?;
        let mut outcome = Ok(());
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            // The kernel answers while it is asked, so what is not there does not come.
            let (length, _) = recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT).map_err(failed)?;
            for (kind, sequence, body) in parts(buffer.get(..length).unwrap_or_default()) {
                let index = sequence.wrapping_sub(first);
                let Some(what) = usize::try_from(index).ok().and_then(|index| names.get(index)) else {
                    continue;
                };
                let is_last = index + 1 == count;
                match kind {
                    ERROR | DONE => {
                        let code = field::<4>(body, 0).map_or(0, i32::from_ne_bytes);
                        let source = io::Error::from_raw_os_error(code.saturating_neg());
                        if code != 0 && outcome.is_ok() && !pardon(&source) {
                            outcome = Err(NetlinkError { what, source });
                        }
                        if is_last {
                            return outcome;
                        }
                    }
                    kind => each(kind, body),
                }
            }
        }
    }
}

/// The messages in what was received: type, number, body.
fn parts(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(field(bytes, 0).map(u32::from_ne_bytes)?).ok()?;
        let kind = field(bytes, 4).map(u16::from_ne_bytes)?;
        let sequence = field(bytes, 8).map(u32::from_ne_bytes)?;
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// The attributes in a message's body, behind its first `skip` bytes: type, value.
pub fn attributes(body: &[u8], skip: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(skip..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(field(rest, 0).map(u16::from_ne_bytes)?);
        let kind = field(rest, 2).map(u16::from_ne_bytes)?;
        let value = rest.get(ATTRIBUTE..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        // The two highest bits say how it is to be read.
        Some((kind & 0x3FFF, value))
    })
}

/// The `N` bytes at `at`.
pub fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let mut messages = Messages::default();
        messages.push("first", 19, 0, &[1; 16]);
        messages.attribute(1, &[2; 6]);
        messages.push("second", 20, CREATE_NEW, &[3; 8]);
        messages.number(7);
        let all: Vec<_> = parts(&messages.bytes).collect();
        assert_eq!(all.len(), 2);
        let (kind, sequence, body) = all[0];
        assert_eq!((kind, sequence, body.len()), (19, 7, 28));
        assert_eq!(attributes(body, 16).collect::<Vec<_>>(), [(1, &[2; 6][..])]);
        assert_eq!((all[1].0, all[1].1, all[1].2), (20, 8, &[3; 8][..]));
        // Only the last is acknowledged.
        assert_eq!(field(&messages.bytes, 6).map(u16::from_ne_bytes), Some(REQUEST));
        let flags = field(&messages.bytes, messages.last + 6).map(u16::from_ne_bytes);
        assert_eq!(flags, Some(REQUEST | CREATE_NEW | ACK));
    }

    #[test]
    fn what_was_cut_short_is_left_out_and_ends() {
        let mut messages = Messages::default();
        messages.push("one", 1, 0, &[0; 8]);
        for length in 0..messages.bytes.len() {
            assert_eq!(parts(&messages.bytes[..length]).count(), 0);
        }
        assert_eq!(parts(&[0xff; 100]).count(), 0);
        assert_eq!(parts(&[0; 100]).count(), 0);
        assert_eq!(attributes(&[0xff; 100], 4).count(), 0);
        assert_eq!(attributes(&[0; 100], 0).count(), 0);
    }
}
