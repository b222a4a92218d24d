//! Socket device (virtio 1.2, section 5.10): stream sockets between the guest and host streams.
//!
//! The device is a pure state machine. It is handed connected, non-blocking host streams, speaks a
//! one-line handshake on each (`CONNECT <port>\n`, answered with `OK <local port>\n`), opens a
//! connection to that port in the guest and moves bytes both ways under credit flow control. It
//! opens no file, starts no thread, reads no clock and knows no epoll: the VMM's I/O thread watches
//! the streams, **edge triggered**, and says which became ready ([`Vsock::host_ready`]).
//!
//! One idea a file: `packet` (the wire format and guest buffers), `credit` (flow control
//! arithmetic), `handshake` (the CONNECT line), `connection` (one stream), `muxer` (all of them:
//! ports, fairness, resets), `event` (the transport reset a restored copy owes its guest), `device`
//! (queues and the public API).
//!
//! What bounds it: [`MAX_CONNECTIONS`] streams, [`BUF_ALLOC`] bytes buffered for each, no queue of
//! control packets at all (what a connection still has to say is state, not a queue), and a capped
//! set of last words to connections that are gone.

mod connection;
mod credit;
mod device;
mod event;
mod handshake;
mod muxer;
mod packet;

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

pub use credit::BUF_ALLOC;
pub use device::{Vsock, VsockState};
pub use muxer::{ClosedStream, ConnectionId, MAX_CONNECTIONS, TooManyConnections};
pub use packet::{GuestCid, HOST_CID, InvalidGuestCid};

/// The host's end of a connection: a connected, **non-blocking** byte stream.
///
/// [`io::ErrorKind::WouldBlock`] means "not now"; the device then leaves that direction alone until
/// [`Vsock::host_ready`] names it again. Dropping the stream closes it, and must do no more than
/// that: a forked copy of the VM drops its inherited streams while the parent goes on using them.
pub trait HostStream: Read + Write + Send {
    /// Tells the client that no more bytes come from the guest (it reads end-of-file), while bytes
    /// may still flow to the guest.
    ///
    /// # Errors
    /// Whatever the stream reports; the device takes it as the client having gone, which reading
    /// or writing will find as well.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

impl HostStream for UnixStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Who answers connections the guest opens. Without one, all of them are refused with RST.
pub trait GuestConnect: Send {
    /// The guest asks for `port` of the host (context id 2). Returning a stream accepts, and the
    /// VMM registers that stream with its epoll under `id`, as it does with those it adds itself;
    /// `None` refuses.
    ///
    /// Called in the middle of [`Vsock::pump`]: it must neither block nor call the device.
    fn connect(&mut self, id: ConnectionId, port: u32) -> Option<Box<dyn HostStream>>;
}

/// What epoll said about a host stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// There are bytes, or end-of-file, to read (`EPOLLIN`, `EPOLLRDHUP`).
    pub readable: bool,
    /// There is room to write (`EPOLLOUT`).
    pub writable: bool,
    /// The client closed both directions or the stream failed (`EPOLLHUP`, `EPOLLERR`). What it
    /// wrote before is still delivered; nobody is there to read answers.
    pub hung_up: bool,
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
