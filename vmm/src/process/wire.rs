//! How messages are put on a control stream: a length (`u32`, little-endian) and JSON. A descriptor may go along.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Largest message, in bytes.
const MAX_MESSAGE: u32 = 16 << 20;

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
pub fn send<T: Serialize>(mut stream: &UnixStream, message: &T) -> io::Result<()> {
    stream.write_all(&framed(message)?)
}

/// Writes one message and a descriptor, which the receiver gets a copy of.
///
/// # Errors
/// What the stream reports.
pub fn send_with<T: Serialize>(
    mut stream: &UnixStream,
    message: &T,
    descriptor: BorrowedFd<'_>,
) -> io::Result<()> {
    let bytes = framed(message)?;
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    let sent = loop {
        match sendmsg(
            stream,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    stream.write_all(&bytes[sent..])
}

/// Reads one message and the descriptor that came with it; `None` when the stream ended between two.
///
/// # Errors
/// What the stream reports, or a message that is too large or malformed.
pub fn receive<T: DeserializeOwned>(mut stream: &UnixStream) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut length = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let parts = &mut [IoSliceMut::new(&mut length)];
        match recvmsg(stream, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            // Others than the last are closed here.
            descriptor = descriptors.last();
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("more descriptors than a message has"));
    }
    stream.read_exact(&mut length[received.bytes..])?;
    let length = u32::from_le_bytes(length);
    if length > MAX_MESSAGE {
        return Err(io::Error::other("message too large"));
    }
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    let message = serde_json::from_slice(&body).map_err(io::Error::other)?;
    Ok(Some((message, descriptor)))
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
        let (message, descriptor) = receive::<Vec<u32>>(&theirs).unwrap().unwrap();
        assert_eq!(message, [7, 8]);
        assert!(descriptor.is_none());
        assert!(receive::<Vec<u32>>(&theirs).unwrap().is_none());
    }

    #[test]
    fn a_descriptor_goes_along() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        send_with(&ours, &1u32, there.as_fd()).unwrap();
        send(&ours, &2u32).unwrap();
        drop(there);
        let (message, descriptor) = receive::<u32>(&theirs).unwrap().unwrap();
        assert_eq!(message, 1);
        let there = UnixStream::from(descriptor.unwrap());
        (&there).write_all(b"x").unwrap();
        let mut byte = [0];
        (&here).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        assert!(receive::<u32>(&theirs).unwrap().unwrap().1.is_none());
    }

    #[test]
    fn nonsense_is_an_error() {
        for bytes in [&[0xFF; 8][..], &[2, 0, 0, 0, b'{', b'}'], &[9, 0]] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            (&ours).write_all(bytes).unwrap();
            drop(ours);
            assert!(receive::<u32>(&theirs).is_err());
        }
    }
}
