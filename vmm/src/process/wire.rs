//! How messages are put on a control stream: a length (`u32`, little-endian) and JSON. Descriptors may go along.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest message, in bytes.
const MAX_MESSAGE: u32 = 16 << 20;
/// Most descriptors at a time (`SCM_MAX_FD` in include/net/scm.h).
const AT_A_TIME: usize = 253;
/// Most descriptors of a message.
pub const MAX_DESCRIPTORS: usize = 4 * AT_A_TIME;

/// The descriptors that came with a message, in their order.
#[derive(Debug, Default)]
pub struct Descriptors(VecDeque<OwnedFd>);

impl Descriptors {
    /// The next, which is to be `what`.
    ///
    /// # Errors
    /// When there is no other.
    pub fn next(&mut self, what: &str) -> io::Result<OwnedFd> {
        self.0
            .pop_front()
            .ok_or_else(|| io::Error::other(format!("{what} did not come along")))
    }

    /// All that are left.
    pub fn rest(self) -> Vec<OwnedFd> {
        self.0.into()
    }

    /// Whether there are no more.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<OwnedFd> for Descriptors {
    fn from_iter<I: IntoIterator<Item = OwnedFd>>(all: I) -> Self {
        Self(all.into_iter().collect())
    }
}

fn framed<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|length| *length <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::other("message too large"))?;
    let mut framed = length.to_le_bytes().to_vec();
    framed.extend(body);
    Ok(framed)
}

/// Writes one message.
///
/// # Errors
/// What the stream reports.
pub fn send<T: Serialize>(mut stream: impl Write, message: &T) -> io::Result<()> {
    stream.write_all(&framed(message)?)
}

/// Writes one message and descriptors, which the receiver gets copies of.
///
/// # Errors
/// What the stream reports; too many descriptors.
pub fn send_with<T: Serialize>(
    mut stream: &UnixStream,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::other("more descriptors than a message may have"));
    }
    let bytes = framed(message)?;
    let mut rest = &bytes[..];
    let mut left = descriptors.len();
    for part in descriptors.chunks(AT_A_TIME) {
        left -= part.len();
        // Descriptors go with bytes: with one of the length, and the last of them with all there is.
        let now = if left == 0 { rest } else { &rest[..1] };
        rest = &rest[send_part(stream, now, part)?..];
    }
    stream.write_all(rest)
}

fn send_part(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_A_TIME))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("no room for descriptors"));
    }
    loop {
        let parts = &[IoSlice::new(bytes)];
        match sendmsg(stream, parts, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// What came with the bytes of a message.
#[derive(Default)]
struct Came {
    descriptors: VecDeque<OwnedFd>,
    sender: Option<Pid>,
}

impl Came {
    /// Reads bytes until `buffer` is full, and says how many came before the stream ended.
    fn fill(&mut self, stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.part(stream, &mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        Ok(filled)
    }

    fn part(&mut self, stream: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_A_TIME), ScmCredentials(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let parts = &mut [IoSliceMut::new(buffer)];
            match recvmsg(stream, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                result => break result?,
            }
        };
        for message in ancillary.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(more) => self.descriptors.extend(more),
                RecvAncillaryMessage::ScmCredentials(sender) => self.sender = Some(sender.pid),
                _ => {}
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::other("more descriptors than fit"));
        }
        Ok(received.bytes)
    }
}

/// Reads one message and the descriptors that came with it; `None` when the stream ended between two.
///
/// # Errors
/// What the stream reports, or a message that is too large or malformed.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Descriptors)>> {
    let mut came = Came::default();
    Ok(receive_into(stream, &mut came)?.map(|message| (message, Descriptors(came.descriptors))))
}

/// Reads one message and says which process sent it, by the kernel's word: the stream must have had `SO_PASSCRED`
/// since before it was sent.
///
/// # Errors
/// As [`receive`]; or the kernel did not say.
pub fn receive_from<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Pid)>> {
    let mut came = Came::default();
    let Some(message) = receive_into(stream, &mut came)? else {
        return Ok(None);
    };
    let sender = came
        .sender
        .ok_or_else(|| io::Error::other("nobody knows who sent this"))?;
    Ok(Some((message, sender)))
}

fn receive_into<T: DeserializeOwned>(stream: &UnixStream, came: &mut Came) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match came.fill(stream, &mut length)? {
        0 => return Ok(None),
        4 => {}
        _ => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::other("message too large"));
    }
    let mut body = vec![0; length as usize];
    if came.fill(stream, &mut body)? < body.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_slice(&body).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn messages_come_back_and_the_end_is_the_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, &vec![7u32, 8]).unwrap();
        drop(ours);
        let (message, descriptors) = receive::<Vec<u32>>(&theirs).unwrap().unwrap();
        assert_eq!(message, [7, 8]);
        assert!(descriptors.is_empty());
        assert!(receive::<Vec<u32>>(&theirs).unwrap().is_none());
    }

    #[test]
    fn descriptors_go_along_in_their_order_however_many() {
        for count in [1, 2, AT_A_TIME, AT_A_TIME + 1, 3 * AT_A_TIME] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let (here, there) = UnixStream::pair().unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            let mut all = vec![null.as_fd(); count];
            all[count - 1] = there.as_fd();
            send_with(&ours, &1u32, &all).unwrap();
            send(&ours, &2u32).unwrap();
            drop(all);
            drop(there);
            let (message, mut descriptors) = receive::<u32>(&theirs).unwrap().unwrap();
            assert_eq!(message, 1);
            for _ in 1..count {
                descriptors.next("a file").unwrap();
            }
            let there = UnixStream::from(descriptors.next("a socket").unwrap());
            (&there).write_all(b"x").unwrap();
            let mut byte = [0];
            std::io::Read::read_exact(&mut &here, &mut byte).unwrap();
            assert_eq!(&byte, b"x");
            let error = descriptors.next("the disk").unwrap_err();
            assert_eq!(error.to_string(), "the disk did not come along");
            assert!(receive::<u32>(&theirs).unwrap().unwrap().1.is_empty());
        }
    }

    #[test]
    fn who_sent_a_message_is_known_if_that_was_asked_before() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        rustix::net::sockopt::set_socket_passcred(&theirs, true).unwrap();
        send(&ours, &1u32).unwrap();
        let (_, sender) = receive_from::<u32>(&theirs).unwrap().unwrap();
        assert_eq!(sender, rustix::process::getpid());
        rustix::net::sockopt::set_socket_passcred(&theirs, false).unwrap();
        send(&ours, &2u32).unwrap();
        assert!(receive_from::<u32>(&theirs).is_err());
    }

    #[test]
    fn nonsense_is_an_error() {
        for bytes in [
            &[0xFF; 8][..],
            &[2, 0, 0, 0, b'{', b'}'],
            &[9, 0],
            &[9, 0, 0, 0, b'1'],
        ] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (&ours).write_all(bytes).unwrap();
            drop(ours);
            assert!(receive::<u32>(&theirs).is_err());
        }
    }
}
