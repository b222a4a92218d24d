//! Running commands in the guest.

use std::io::{self, Read, Write};

use super::{AgentClient, ClientError, read_some, unexpected};
use crate::frame;
use crate::message::{ExecOutcome, ExecRequest, HostFrame, Reply, Request, StdinMode, TtySize};
use crate::{CHUNK_BYTES, StdinWindow};

/// Which of a process's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What happens while a command runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent<'a> {
    /// It wrote something.
    Output(OutputStream, &'a [u8]),
    /// It took this many more bytes of its standard input.
    StdinAck(u32),
    /// It ended; nothing follows.
    Exited(ExecOutcome),
}

/// A finished command with all it wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub outcome: ExecOutcome,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl<S: Read + Write> AgentClient<S> {
    /// Runs a command, feeding it `stdin` (if the request says [`StdinMode::Piped`]) and handing
    /// what it writes to `sink` as it comes. One thread does both: this reads from `stdin` only
    /// when the process has taken what it got, and does not hear the guest while `stdin` blocks.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if the command was not even tried; [`ClientError::Local`] if
    /// `stdin` or `sink` failed: then drop the client, which kills the command.
    pub fn exec(
        &mut self,
        request: &ExecRequest,
        stdin: &mut dyn Read,
        sink: &mut dyn FnMut(OutputStream, &[u8]) -> io::Result<()>,
    ) -> Result<ExecOutcome, ClientError> {
        let mut feed = (request.stdin == StdinMode::Piped).then_some(stdin);
        let mut window = StdinWindow::default();
        self.open(Request::Exec(request.clone()))?;
        // Input that is there already travels with the request.
        self.feed_stdin(&mut feed, &mut window)?;
        self.flush()?;
        loop {
            match self.next_event()? {
                ExecEvent::Output(stream, bytes) => sink(stream, bytes).map_err(ClientError::Local)?,
                ExecEvent::StdinAck(count) => {
                    window.acknowledge(count);
                    self.feed_stdin(&mut feed, &mut window)?;
                    self.flush()?;
                }
                ExecEvent::Exited(outcome) => return Ok(outcome),
            }
        }
    }

    /// Runs a command and collects all it writes. `stdin` is used if it is not empty or the
    /// request says [`StdinMode::Piped`].
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn exec_collect(
        &mut self,
        request: &ExecRequest,
        mut stdin: &[u8],
    ) -> Result<ExecOutput, ClientError> {
        let mut request = request.clone();
        if !stdin.is_empty() {
            request.stdin = StdinMode::Piped;
        }
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let outcome = self.exec(&request, &mut stdin, &mut |stream, bytes| {
            match stream {
                OutputStream::Stdout => stdout.extend_from_slice(bytes),
                OutputStream::Stderr => stderr.extend_from_slice(bytes),
            }
            Ok(())
        })?;
        Ok(ExecOutput {
            outcome,
            stdout,
            stderr,
        })
    }

    /// Starts a command for an interactive caller: read with [`next_event`](Self::next_event)
    /// here, and write with an [`ExecWriter`] on a clone of the stream from another thread.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn start_exec(&mut self, request: &ExecRequest) -> Result<(), ClientError> {
        self.open(Request::Exec(request.clone()))?;
        self.flush()
    }

    /// Waits for the next thing the command started with [`start_exec`](Self::start_exec) does.
    /// After [`ExecEvent::Exited`] the connection is free again. A time-out of the stream loses
    /// nothing; call again.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn next_event(&mut self) -> Result<ExecEvent<'_>, ClientError> {
        // Freed before the reply is looked at, because the reply borrows `self`.
        self.receive_hello()?;
        let body = self
            .incoming
            .read_frame(&mut self.stream)?
            .ok_or(ClientError::Closed)?;
        match frame::decode(body)? {
            Reply::Stdout(bytes) => Ok(ExecEvent::Output(OutputStream::Stdout, bytes)),
            Reply::Stderr(bytes) => Ok(ExecEvent::Output(OutputStream::Stderr, bytes)),
            Reply::StdinAck(count) => Ok(ExecEvent::StdinAck(count)),
            Reply::Exited(outcome) => {
                self.in_conversation = false;
                Ok(ExecEvent::Exited(outcome))
            }
            Reply::Failed(failure) => {
                self.in_conversation = false;
                Err(failure.into())
            }
            other => Err(unexpected(&other)),
        }
    }

    fn feed_stdin(
        &mut self,
        feed: &mut Option<&mut dyn Read>,
        window: &mut StdinWindow,
    ) -> Result<(), ClientError> {
        if feed.is_none() || window.room() == 0 {
            return Ok(());
        }
        let mut chunk = vec![0; CHUNK_BYTES];
        while let Some(stdin) = feed
            && window.room() > 0
        {
            let room = chunk.len().min(window.room());
            let count = read_some(*stdin, &mut chunk[..room])?;
            if count == 0 {
                *feed = None;
                self.push(&HostFrame::StdinEof)?;
            } else {
                window.send(count);
                self.push(&HostFrame::Stdin(&chunk[..count]))?;
            }
        }
        Ok(())
    }
}

/// Writes to a running command from another thread than the one that reads its
/// [`ExecEvent`]s: over a clone of the client's stream, after
/// [`start_exec`](AgentClient::start_exec). The stream's own flow control is the limit.
#[derive(Debug)]
pub struct ExecWriter<W> {
    stream: W,
    outgoing: Vec<u8>,
}

impl<W: Write> ExecWriter<W> {
    /// A writer over a clone of the client's stream.
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            outgoing: Vec::new(),
        }
    }

    /// Bytes for the command's standard input.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stdin(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        bytes
            .chunks(CHUNK_BYTES)
            .try_for_each(|chunk| self.send(&HostFrame::Stdin(chunk)))
    }

    /// No more standard input will come.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn stdin_eof(&mut self) -> Result<(), ClientError> {
        self.send(&HostFrame::StdinEof)
    }

    /// Sends a signal to the command's process group, or to the foreground of its terminal.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.send(&HostFrame::Signal(signal))
    }

    /// Gives the command's terminal another size.
    ///
    /// # Errors
    /// [`ClientError::Refused`] if there are no terminals of that size; nothing is sent then.
    pub fn resize(&mut self, size: TtySize) -> Result<(), ClientError> {
        size.check()?;
        self.send(&HostFrame::Resize(size))
    }

    fn send(&mut self, message: &HostFrame<'_>) -> Result<(), ClientError> {
        self.outgoing.clear();
        frame::encode(message, &mut self.outgoing)?;
        self.stream.write_all(&self.outgoing)?;
        Ok(self.stream.flush()?)
    }
}
