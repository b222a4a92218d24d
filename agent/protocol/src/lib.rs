//! What the host and the agent inside the guest say to each other.
//!
//! One crate for both ends, and pure: it reads and writes through generic [`Read`](std::io::Read)
//! and [`Write`](std::io::Write) and knows no sockets, no files and no virtual machines.
//!
//! # The wire
//! A frame is a little-endian `u32` length and that many bytes of [postcard] ([`frame`]). A
//! connection opens with one [`Hello`] each way and then carries requests, one at a time: the
//! host sends a [`Request`] in a [`HostFrame`], the agent answers with one or more [`Reply`] frames ([`message`]).
//! The host may send its hello and its first request in one write; an agent of another version
//! answers with its own hello and closes, so the request is never misread. Who wants two things
//! at once opens two connections.
//!
//! # The host's side
//! [`AgentClient`] speaks all of it over any blocking stream, for example the Unix socket of the
//! VMM's vsock device after [`connect_handshake`].
//!
//! ```no_run
//! use spore_protocol::{AGENT_PORT, AgentClient, ExecRequest, connect_handshake};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut stream = std::os::unix::net::UnixStream::connect("vsock.sock")?;
//! connect_handshake(&mut stream, AGENT_PORT)?;
//! let mut agent = AgentClient::new(stream, "host 0.1.0");
//! let output = agent.exec_collect(&ExecRequest::new(["uname", "-r"]), b"")?;
//! assert!(output.outcome.status.success());
//! # Ok(())
//! # }
//! ```

pub mod client;
pub mod connect;
pub mod fork_port;
pub mod frame;
mod hello;
pub mod message;
pub mod network;
mod window;

pub use client::{AgentClient, ClientError, ExecEvent, ExecOutput, ExecWriter, OutputStream};
pub use connect::{ConnectError, connect_handshake};
pub use frame::{FrameBuf, FrameError, MAX_FRAME_BYTES};
pub use hello::{HandshakeError, Hello};
pub use message::{
    DirEntry, DiskReport, EntryKind, ExecDefaults, ExecOutcome, ExecRequest, ExitStatus, Failure,
    FailureKind, FileInfo, FileIntegrity, FileStat, HostFrame, Integrity, MemoryBlocks, MemoryReport, Pong,
    Reply, Request, Status, StdinMode, TtySize,
};
pub use network::{Network, NetworkError};
pub use window::StdinWindow;

/// The version of this protocol. Both ends must have the same one; there is no negotiation,
/// because the agent is part of the image and the host knows which images it can run.
pub const PROTOCOL_VERSION: u32 = 5;

/// The vsock port the agent listens on.
pub const AGENT_PORT: u32 = 1024;

/// The most bytes either end puts into one [`HostFrame::Stdin`], [`HostFrame::Data`],
/// [`Reply::Stdout`], [`Reply::Stderr`] or [`Reply::Data`].
pub const CHUNK_BYTES: usize = 64 * 1024;

/// How many bytes of standard input may be on the way to a process without being acknowledged
/// by [`Reply::StdinAck`]. The agent always has room for them, so a host that respects the
/// window ([`StdinWindow`] counts it) may feed input and collect output from a single thread.
pub const STDIN_WINDOW_BYTES: usize = 128 * 1024;
