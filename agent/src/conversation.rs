//! One connection: hellos, then requests and their answers, one at a time.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::SendFlags;
use spore_protocol::frame::{self, FrameBuf, FrameError};
use spore_protocol::{
    CHUNK_BYTES, ExecRequest, Failure, FailureKind, HandshakeError, Hello, HostFrame, Reply, Request,
};

use crate::defaults::Defaults;
use crate::exec::{self, Gone};
use crate::fork_port::ForkPort;
use crate::network::Networking;
use crate::power::{self, Ending};
use crate::reaper::Reaper;
use crate::status::{self, OomCounter};
use crate::views::Views;
use crate::{BUILD, disk, files, integrity};

/// What all connections share.
#[derive(Debug)]
pub struct Agent {
    /// Waits for every process.
    pub reaper: Reaper,
    /// What every exec starts from.
    pub defaults: Defaults,
    /// Counts processes killed for want of memory.
    pub oom: OomCounter,
    /// Drawn once, kept only here.
    boot_nonce: [u8; 16],
    /// Whether the machine is ours.
    is_init: bool,
    /// Files that say which machine this is.
    pub views: Views,
    /// Who it is on its network.
    pub network: Networking,
    /// Opened at the first sleep.
    fork_port: OnceLock<ForkPort>,
}

/// A connected stream socket, of whatever family.
#[derive(Debug)]
pub struct Conn(OwnedFd);

/// What a thread keeps between connections, so that its pages are touched once.
#[derive(Debug, Default)]
pub struct Buffers {
    /// What came and was not understood yet.
    pub incoming: FrameBuf,
    /// What is to be sent.
    pub outgoing: Vec<u8>,
    /// For one read of a pipe or file.
    pub scratch: Vec<u8>,
    /// The eventfd that wakes the thread when its process ended.
    wake: Option<Arc<OwnedFd>>,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum Over {
    #[error("the host is gone")]
    Gone,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl From<io::Error> for Over {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<Gone> for Over {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Conn {
    /// Wraps an accepted socket.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }
}

impl AsFd for Conn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for &Conn {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, buffer)?)
    }
}

impl Write for &Conn {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Buffers {
    /// Forgets the last connection and gives back what was unusually large.
    pub fn recycle(&mut self) {
        self.incoming = FrameBuf::new();
        self.outgoing.clear();
        self.outgoing.shrink_to(4 * CHUNK_BYTES);
    }

    /// The thread's eventfd.
    pub fn wake(&mut self) -> io::Result<Arc<OwnedFd>> {
        if let Some(wake) = &self.wake {
            return Ok(Arc::clone(wake));
        }
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        Ok(Arc::clone(self.wake.insert(wake)))
    }

    /// Queues a reply.
    pub fn push(&mut self, reply: &Reply<'_>) -> Result<(), FrameError> {
        frame::encode(reply, &mut self.outgoing)
    }

    /// Queues an answer or the failure to find one.
    pub fn push_result<T>(
        &mut self,
        result: Result<T, Failure>,
        reply: impl FnOnce(T) -> Reply<'static>,
    ) -> Result<(), FrameError> {
        self.push(&result.map_or_else(Reply::Failed, reply))
    }

    /// Queues [`Reply::Done`] or the failure.
    pub fn push_done(&mut self, result: Result<(), Failure>) -> Result<(), FrameError> {
        self.push_result(result, |()| Reply::Done)
    }

    /// Sends what is queued.
    pub fn flush(&mut self, connection: &Conn) -> io::Result<()> {
        let mut stream = connection;
        stream.write_all(&self.outgoing)?;
        self.outgoing.clear();
        Ok(())
    }
}

impl Agent {
    /// The agent of this process; `is_init` if the machine is ours.
    pub fn new(defaults: Defaults, views: Views, network: Networking, is_init: bool) -> Self {
        Self {
            reaper: Reaper::default(),
            defaults,
            oom: OomCounter::default(),
            boot_nonce: status::draw_nonce(),
            is_init,
            views,
            network,
            fork_port: OnceLock::new(),
        }
    }

    /// Serves one connection until it closes.
    pub fn converse(&self, connection: &Conn, buffers: &mut Buffers) {
        match self.serve(connection, buffers) {
            Ok(()) | Err(Over::Gone) => {}
            // Not for every stranger, but a host of another version deserves a line in the log.
            Err(error) => eprintln!("spore-agent: connection closed: {error}"),
        }
    }

    fn serve(&self, connection: &Conn, buffers: &mut Buffers) -> Result<(), Over> {
        let mut stream = connection;
        let Some(body) = buffers.incoming.read_frame(&mut stream)? else {
            return Ok(());
        };
        let hello = Hello::accept(body);
        if !matches!(hello, Err(HandshakeError::NotAHello(_))) {
            // A host of another version learns ours from this.
            frame::encode(&Hello::new(BUILD), &mut buffers.outgoing)?;
        }
        if hello.is_err() || !buffers.incoming.holds_frame()? {
            buffers.flush(connection)?;
        }
        hello?;
        loop {
            let Some(body) = buffers.incoming.read_frame(&mut stream)? else {
                return Ok(());
            };
            match frame::decode(body)? {
                HostFrame::Request(request) => self.answer(request, connection, buffers)?,
                // On its way while the process ended, or while a file was refused.
                HostFrame::Stdin(_) | HostFrame::StdinEof | HostFrame::Signal(_) | HostFrame::Resize(_) => {
                    continue;
                }
                HostFrame::Data(_) | HostFrame::End => {
                    let failure = Failure::new(FailureKind::OutOfTurn, "file contents without a file");
                    buffers.push(&Reply::Failed(failure))?;
                }
            }
            buffers.flush(connection)?;
        }
    }

    /// Queues or sends the answers to a request; the last of them may be left queued.
    fn answer(&self, request: Request, connection: &Conn, buffers: &mut Buffers) -> Result<(), Over> {
        match request {
            Request::Ping => buffers.push(&Reply::Pong(status::pong(self.boot_nonce)))?,
            Request::Status => {
                let status = status::status(self.boot_nonce, &self.oom);
                buffers.push_result(status, Reply::Status)?;
            }
            Request::Memory { count_blocks } => {
                buffers.push(&Reply::Memory(status::memory(count_blocks)))?;
            }
            Request::Exec(request) => self.exec(&request, connection, buffers)?,
            Request::ReadFile { path } => files::send(&path, connection, buffers)?,
            Request::WriteFile { path, mode } => files::receive(&path, mode, connection, buffers)?,
            Request::ListDir { path } => files::list(&path, connection, buffers)?,
            Request::Stat { path } => buffers.push_result(files::stat(&path), Reply::Stat)?,
            Request::MakeDir { path, mode } => buffers.push_done(files::make_dir(&path, mode))?,
            Request::Remove { path, recursive } => buffers.push_done(files::remove(&path, recursive))?,
            Request::GetDefaults => buffers.push(&Reply::Defaults((*self.defaults.get()).clone()))?,
            Request::SetDefaults(defaults) => buffers.push_done(self.defaults.set(defaults))?,
            Request::Sync => {
                match self.is_init {
                    true => power::sync(),
                    false => rustix::fs::sync(),
                }
                buffers.push(&Reply::Done)?;
            }
            Request::Settle => buffers.push_done(power::settle(self.is_init))?,
            Request::DropCaches => buffers.push_done(power::drop_caches(self.is_init))?,
            Request::Integrity => buffers.push_result(integrity::check(), Reply::Integrity)?,
            Request::Poweroff => self.end(Ending::Poweroff, connection, buffers)?,
            Request::Reboot => self.end(Ending::Reboot, connection, buffers)?,
            Request::Sleep => self.sleep(connection, buffers)?,
            Request::GrowDisk { bytes } => {
                let grown = match self.is_init {
                    true => disk::grow(bytes),
                    // The root file system is not ours to touch.
                    false => Err(Failure::new(FailureKind::Unsupported, "this agent is not PID 1")),
                };
                buffers.push_result(grown, Reply::Disk)?;
            }
            Request::Network(network) => {
                let view = self.views.resolv_conf.as_ref().ok();
                buffers.push_done(self.network.set(network.as_ref(), view))?;
            }
        }
        Ok(())
    }

    fn exec(&self, request: &ExecRequest, connection: &Conn, buffers: &mut Buffers) -> Result<(), Over> {
        match exec::run(self, request, connection, buffers)? {
            Ok(outcome) => Ok(buffers.push(&Reply::Exited(outcome))?),
            Err(failure) => Ok(buffers.push(&Reply::Failed(failure))?),
        }
    }

    /// Opens the fork port, answers, and goes to sleep there. The connection is over after that: in
    /// a fork its other end belongs to somebody else.
    fn sleep(&self, connection: &Conn, buffers: &mut Buffers) -> Result<(), Over> {
        let port = match self.fork_port() {
            Ok(port) => port,
            Err(error) => {
                let failure = Failure::new(FailureKind::Unsupported, format!("fork port: {error}"));
                return Ok(buffers.push(&Reply::Failed(failure))?);
            }
        };
        buffers.push(&Reply::Done)?;
        buffers.flush(connection)?;
        // The host hangs up when it has the answer. Before that the answer may still be the kernel's to send, and
        // asleep it sends nothing.
        buffers.scratch.resize(1, 0);
        while matches!((&*connection).read(&mut buffers.scratch), Ok(1..)) {}
        port.sleep(self);
        Err(Over::Gone)
    }

    fn fork_port(&self) -> io::Result<&ForkPort> {
        if let Some(port) = self.fork_port.get() {
            return Ok(port);
        }
        if !self.is_init {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this agent is not PID 1",
            ));
        }
        let port = ForkPort::open()?;
        Ok(self.fork_port.get_or_init(|| port))
    }

    fn end(&self, ending: Ending, connection: &Conn, buffers: &mut Buffers) -> Result<(), Over> {
        if !self.is_init {
            let failure = Failure::new(FailureKind::Unsupported, "this agent is not PID 1");
            return Ok(buffers.push(&Reply::Failed(failure))?);
        }
        buffers.push(&Reply::Done)?;
        // A host that does not wait for the answer wants it no less.
        let _ = buffers.flush(connection);
        power::end(&self.reaper, ending)
    }
}
