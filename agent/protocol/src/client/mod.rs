//! The host's end: blocking, over any stream, one conversation at a time.

mod error;
mod exec;
mod files;

use std::io::{self, Read, Write};

pub use error::ClientError;
pub use exec::{ExecEvent, ExecOutput, ExecWriter, OutputStream};

use crate::CHUNK_BYTES;
use crate::frame::{self, FrameBuf};
use crate::hello::Hello;
use crate::message::{
    DiskReport, ExecDefaults, HostFrame, Integrity, MemoryReport, Pong, Reply, Request, Status,
};
use crate::network::Network;

/// A connection to the agent.
///
/// Time-outs are the stream's: set them there, and see [`ClientError::is_timeout`]. A call that
/// fails with anything but [`ClientError::Refused`] leaves the connection
/// [`Abandoned`](ClientError::Abandoned). Dropping it in the middle of an exec kills the
/// command's process group.
#[derive(Debug)]
pub struct AgentClient<S> {
    stream: S,
    incoming: FrameBuf,
    outgoing: Vec<u8>,
    our_hello: Option<Hello>,
    their_hello: Option<Hello>,
    in_conversation: bool,
}

impl<S: Read + Write> AgentClient<S> {
    /// A client over a connected stream. Nothing is sent yet: the hello goes out with the first
    /// request, in the same write, and the agent's hello is checked before its first reply.
    pub fn new(stream: S, build: impl Into<String>) -> Self {
        Self {
            stream,
            incoming: FrameBuf::new(),
            outgoing: Vec::new(),
            our_hello: Some(Hello::new(build)),
            their_hello: None,
            in_conversation: false,
        }
    }

    /// The stream, for example to change its time-outs.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// Exchanges the hellos now, if that has not happened yet, and returns the agent's.
    ///
    /// # Errors
    /// [`ClientError::Handshake`] and whatever the stream does.
    pub fn handshake(&mut self) -> Result<&Hello, ClientError> {
        self.send_hello()?;
        self.flush()?;
        self.receive_hello()?;
        self.their_hello.as_ref().ok_or(ClientError::Closed)
    }

    /// The cheapest sign of life.
    ///
    /// # Errors
    /// [`ClientError`], like all calls here.
    pub fn ping(&mut self) -> Result<Pong, ClientError> {
        self.ask(Request::Ping, |reply| match reply {
            Reply::Pong(pong) => Ok(pong),
            other => Err(unexpected(&other)),
        })
    }

    /// How the guest is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        self.ask(Request::Status, |reply| match reply {
            Reply::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        })
    }

    /// How much memory the guest has. Poll without counting blocks, verify with.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn memory(&mut self, count_blocks: bool) -> Result<MemoryReport, ClientError> {
        self.ask(Request::Memory { count_blocks }, |reply| match reply {
            Reply::Memory(memory) => Ok(memory),
            other => Err(unexpected(&other)),
        })
    }

    /// What every exec starts from.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn get_defaults(&mut self) -> Result<ExecDefaults, ClientError> {
        self.ask(Request::GetDefaults, |reply| match reply {
            Reply::Defaults(defaults) => Ok(defaults),
            other => Err(unexpected(&other)),
        })
    }

    /// Replaces what every exec starts from.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn set_defaults(&mut self, defaults: &ExecDefaults) -> Result<(), ClientError> {
        self.command(Request::SetDefaults(defaults.clone()))
    }

    /// Makes the guest this on its network, or takes it off: what connections it had over its interface
    /// end.
    ///
    /// # Errors
    /// [`ClientError`]; refused by a guest without a network card, and by one that cannot be this.
    pub fn set_network(&mut self, network: Option<&Network>) -> Result<(), ClientError> {
        self.command(Request::Network(network.cloned()))
    }

    /// Lets the root file system fill a disk that has grown to `bytes`, and says how large both are then.
    ///
    /// # Errors
    /// [`ClientError`]; refused if the kernel does not see the disk's new size, or the file system cannot grow.
    pub fn grow_disk(&mut self, bytes: u64) -> Result<DiskReport, ClientError> {
        self.ask(Request::GrowDisk { bytes }, |reply| match reply {
            Reply::Disk(report) => Ok(report),
            other => Err(unexpected(&other)),
        })
    }

    /// Writes everything dirty in the guest to its disks.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn sync(&mut self) -> Result<(), ClientError> {
        self.command(Request::Sync)
    }

    /// Makes the guest small and still before a checkpoint.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn settle(&mut self) -> Result<(), ClientError> {
        self.command(Request::Settle)
    }

    /// Has the guest give up what it keeps in memory only because it was read or written once.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn drop_caches(&mut self) -> Result<(), ClientError> {
        self.command(Request::DropCaches)
    }

    /// Powers the guest off in order; returns when it has begun.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn poweroff(&mut self) -> Result<(), ClientError> {
        self.command(Request::Poweroff)
    }

    /// Sends the agent to the [fork port](crate::fork_port), where the VMM waits for it; returns
    /// when it is on its way. The connection is of no use after that.
    ///
    /// # Errors
    /// [`ClientError`]; refused by an agent without a fork port.
    pub fn sleep(&mut self) -> Result<(), ClientError> {
        self.command(Request::Sleep)
    }

    /// Reboots the guest in order; returns when it has begun.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn reboot(&mut self) -> Result<(), ClientError> {
        self.command(Request::Reboot)
    }

    /// Whether PID 1 is the agent, and the one on the disk.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn integrity(&mut self) -> Result<Integrity, ClientError> {
        self.ask(Request::Integrity, |reply| match reply {
            Reply::Integrity(integrity) => Ok(integrity),
            other => Err(unexpected(&other)),
        })
    }

    fn command(&mut self, request: Request) -> Result<(), ClientError> {
        self.open(request)?;
        self.flush()?;
        self.expect_done()
    }

    fn expect_done(&mut self) -> Result<(), ClientError> {
        match self.receive()? {
            Reply::Done => {
                self.in_conversation = false;
                Ok(())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn ask<T>(
        &mut self,
        request: Request,
        read: impl FnOnce(Reply<'_>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        self.open(request)?;
        self.flush()?;
        let answer = read(self.receive()?)?;
        self.in_conversation = false;
        Ok(answer)
    }

    /// Begins a conversation; its first request waits for [`flush`](Self::flush).
    fn open(&mut self, request: Request) -> Result<(), ClientError> {
        if self.in_conversation {
            return Err(ClientError::Abandoned);
        }
        self.send_hello()?;
        // A request too large for a frame is refused here, before anything was said.
        frame::encode(&HostFrame::Request(request), &mut self.outgoing)?;
        self.in_conversation = true;
        Ok(())
    }

    /// Queues a frame and sends what has come together when that is enough for a write.
    fn push(&mut self, message: &HostFrame<'_>) -> Result<(), ClientError> {
        frame::encode(message, &mut self.outgoing)?;
        if self.outgoing.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    fn send_hello(&mut self) -> Result<(), ClientError> {
        if let Some(hello) = &self.our_hello {
            frame::encode(hello, &mut self.outgoing)?;
            self.our_hello = None;
        }
        Ok(())
    }

    fn receive_hello(&mut self) -> Result<(), ClientError> {
        if self.their_hello.is_none() {
            let body = self
                .incoming
                .read_frame(&mut self.stream)?
                .ok_or(ClientError::Closed)?;
            self.their_hello = Some(Hello::accept(body)?);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ClientError> {
        if !self.outgoing.is_empty() {
            self.stream.write_all(&self.outgoing)?;
            self.stream.flush()?;
            self.outgoing.clear();
        }
        Ok(())
    }

    /// The next reply; a [`Reply::Failed`] ends the conversation and is an error.
    fn receive(&mut self) -> Result<Reply<'_>, ClientError> {
        self.receive_hello()?;
        let body = self
            .incoming
            .read_frame(&mut self.stream)?
            .ok_or(ClientError::Closed)?;
        match frame::decode(body)? {
            Reply::Failed(failure) => {
                self.in_conversation = false;
                Err(failure.into())
            }
            reply => Ok(reply),
        }
    }
}

fn read_some(source: &mut dyn Read, chunk: &mut [u8]) -> Result<usize, ClientError> {
    loop {
        match source.read(chunk) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map_err(ClientError::Local),
        }
    }
}

fn unexpected(reply: &Reply<'_>) -> ClientError {
    let mut text = format!("{reply:?}");
    if let Some((cut, _)) = text.char_indices().nth(200) {
        text.truncate(cut);
    }
    ClientError::Unexpected(text)
}
