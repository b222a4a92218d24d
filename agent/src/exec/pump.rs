//! The loop between a running command and the host.
//!
//! One thread, one poll: the command's three pipes or its terminal, the connection both ways, the
//! command's end and its time limit. Nothing in it blocks and everything in it is bounded, so no amount of
//! output or input stops it: it leaves output in the pipe while the host does not read, and
//! input in the socket while the command does not.
//!
//! A command that writes a little at a time would have us wake, read and send for each little; so
//! after a short read we leave its output alone for as long as that round took us. A single line
//! is sent at once, a stream of them arrives in larger pieces, and we never take more than about
//! half of the time from the command.
//!
//! # When it is over
//! When the command has ended and both its outputs are at their end. If somebody else keeps an
//! output open (a background process it left behind), it is over [`GRACE`] after the command
//! ended, with all that the pipe held at that moment; what is written to it later is lost, and the
//! writer gets SIGPIPE. A terminal is hung up then: who still has it open can use it no more. While
//! the command runs its terminal is not at its end, whatever it closed: it can open `/dev/tty` again.
//!
//! # Who is killed
//! At the time limit, and when the host vanishes: the command's process group, with SIGKILL and
//! without a SIGTERM first, and then whatever is left of its session. A process that made itself a
//! session of its own is a daemon and lives on. A command that ends by itself leaves its
//! background processes running.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use spore_protocol::frame;
use spore_protocol::{CHUNK_BYTES, HostFrame, Reply, STDIN_WINDOW_BYTES};

use super::terminal::{self, Terminal};
use super::{Gone, session};
use crate::conversation::{Buffers, Conn};
use crate::reaper::{Child, Exit};

/// How long output that somebody keeps open is waited for after the command has ended.
const GRACE: Duration = Duration::from_millis(250);
/// How long a killed command may take to end before we stop waiting: it hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// No more output is read while this much waits to be sent.
const MAX_QUEUED_BYTES: usize = CHUNK_BYTES;
/// A read of less than this is a short one.
const SHORT_BYTES: usize = CHUNK_BYTES / 4;
/// The longest we leave output alone.
const MAX_REST: Duration = Duration::from_millis(20);
/// How long a terminal is left alone that nobody has open while the command still runs.
const REOPEN: Duration = Duration::from_millis(50);
/// A read of a terminal that gives so much has more behind it: the kernel hands out about 4 KiB at a time.
const TERMINAL_READ_BYTES: usize = 2048;
/// Input is acknowledged in pieces of at least this size, or when the command has taken it all.
const ACK_BYTES: usize = STDIN_WINDOW_BYTES / 4;

/// Our ends of a command's pipes or terminal; absent: closed.
#[derive(Debug)]
pub struct Pipes {
    /// Where its input goes; not blocking.
    pub stdin: Option<OwnedFd>,
    /// Where its output comes from.
    pub stdout: Option<OwnedFd>,
    /// Where its errors come from.
    pub stderr: Option<OwnedFd>,
    /// Its terminal, of which input and output are descriptors too, neither blocking.
    pub terminal: Option<Terminal>,
}

/// How it was over.
#[derive(Debug)]
pub struct Ended {
    /// The command's end.
    pub exit: Exit,
    /// It was killed at its time limit.
    pub timed_out: bool,
}

/// The state of the loop.
pub struct Pump<'a> {
    connection: &'a Conn,
    buffers: &'a mut Buffers,
    child: &'a Child<'a>,
    wake: &'a OwnedFd,
    stdin: Option<OwnedFd>,
    outputs: [Output; 2],
    terminal: Option<Terminal>,
    deadline: Option<Instant>,
    killed_at: Option<Instant>,
    /// Input the command has not taken yet.
    pending: Vec<u8>,
    stdin_ended: bool,
    stdin_full: bool,
    /// A terminal's line has begun, as far as we know: its last character was not the end of one.
    line_begun: bool,
    /// Input taken or thrown away and not acknowledged.
    unacknowledged: usize,
    connection_full: bool,
    sent: usize,
    /// Output is left alone until then.
    rest_until: Option<Instant>,
}

/// One output of the command.
struct Output {
    pipe: Option<OwnedFd>,
    is_terminal: bool,
    reply: fn(&[u8]) -> Reply<'_>,
    /// What must still be read from it although the command has ended.
    owed: usize,
}

/// What a descriptor is polled for, in the order of the poll set.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Connection,
    End,
    Stdin,
    Output(usize),
}

impl<'a> Pump<'a> {
    /// A pump for a command that just started.
    pub fn new(
        connection: &'a Conn,
        buffers: &'a mut Buffers,
        child: &'a Child<'a>,
        wake: &'a OwnedFd,
        pipes: Pipes,
        deadline: Option<Instant>,
    ) -> Self {
        buffers
            .scratch
            .reserve_exact(CHUNK_BYTES.saturating_sub(buffers.scratch.capacity()));
        Self {
            connection,
            buffers,
            child,
            wake,
            stdin: pipes.stdin,
            outputs: [
                Output {
                    pipe: pipes.stdout,
                    is_terminal: pipes.terminal.is_some(),
                    reply: |bytes| Reply::Stdout(bytes),
                    owed: 0,
                },
                Output {
                    pipe: pipes.stderr,
                    is_terminal: false,
                    reply: |bytes| Reply::Stderr(bytes),
                    owed: 0,
                },
            ],
            terminal: pipes.terminal,
            deadline,
            killed_at: None,
            pending: Vec::new(),
            stdin_ended: false,
            stdin_full: false,
            line_begun: false,
            unacknowledged: 0,
            connection_full: false,
            sent: 0,
            rest_until: None,
        }
    }

    /// Pumps until it is over. Output may be left queued.
    ///
    /// # Errors
    /// If the host is gone or breaks the protocol; the command is killed then.
    pub fn run(mut self) -> Result<Ended, Gone> {
        let result = self.pump();
        if result.is_err() {
            self.kill();
        }
        result
    }

    fn pump(&mut self) -> Result<Ended, Gone> {
        let mut exit: Option<(Exit, Instant)> = None;
        let mut woken = Instant::now();
        let mut rest: Option<Duration> = None;
        loop {
            self.take_input()?;
            self.feed_command();
            self.acknowledge()?;
            self.send()?;
            let now = Instant::now();
            if exit.is_none()
                && let Some(ended) = self.child.exit()
            {
                exit = Some((ended, now + GRACE));
                self.outputs.iter_mut().for_each(Output::note_owed);
            }
            if let Some((ended, grace)) = exit
                && self.outputs.iter().all(|output| output.is_over(now >= grace))
            {
                return Ok(Ended {
                    exit: ended,
                    timed_out: self.killed_at.is_some(),
                });
            }
            if exit.is_none() && self.killed_at.is_none() && self.deadline.is_some_and(|limit| now >= limit) {
                self.kill();
                self.killed_at = Some(now);
            }
            if let Some(at_least) = rest {
                self.rest_until = Some(now + (now - woken).min(MAX_REST).max(at_least));
            }
            self.rest_until = self.rest_until.filter(|until| exit.is_none() && now < *until);
            let until = match (exit, self.killed_at) {
                (Some((_, grace)), _) => Some(grace).filter(|grace| now < *grace),
                (None, Some(killed)) if now >= killed + KILL_PATIENCE => {
                    let exit = Exit {
                        wait_status: libc::SIGKILL,
                        max_rss_bytes: 0,
                    };
                    return Ok(Ended {
                        exit,
                        timed_out: true,
                    });
                }
                (None, Some(killed)) => Some(killed + KILL_PATIENCE),
                (None, None) => self.deadline,
            };
            let until = until.into_iter().chain(self.rest_until).min();
            let happened = self.wait(exit.is_some(), until.map(|until| until - now))?;
            woken = Instant::now();
            rest = None;
            for (source, events) in happened {
                match source {
                    Source::Connection => self.on_connection(events)?,
                    Source::Stdin => self.stdin_full = false,
                    Source::Output(index) => rest = rest.max(self.on_output(index, events)?),
                    Source::End => {}
                }
            }
        }
    }

    /// Waits for something to happen. A source is absent from the set while we could not act on
    /// it, because its hang-up would be reported all the same.
    fn wait(&self, ended: bool, at_most: Option<Duration>) -> Result<Vec<(Source, PollFlags)>, Gone> {
        let mut interest = PollFlags::RDHUP;
        interest.set(PollFlags::IN, self.has_room_for_input());
        interest.set(PollFlags::OUT, self.connection_full);
        let mut sources = vec![Source::Connection];
        let mut polled = vec![PollFd::from_borrowed_fd(self.connection.as_fd(), interest)];
        if !ended {
            sources.push(Source::End);
            polled.push(PollFd::new(self.wake, PollFlags::IN));
        }
        if let Some(stdin) = self.stdin.as_ref().filter(|_| self.stdin_full) {
            sources.push(Source::Stdin);
            polled.push(PollFd::new(stdin, PollFlags::OUT));
        }
        if self.queued() < MAX_QUEUED_BYTES && self.rest_until.is_none() {
            for (index, output) in self.outputs.iter().enumerate() {
                if let Some(pipe) = &output.pipe {
                    sources.push(Source::Output(index));
                    polled.push(PollFd::new(pipe, PollFlags::IN));
                }
            }
        }
        let timeout = at_most.map(|at_most| Timespec {
            tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(at_most.subsec_nanos()),
        });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => {
                eprintln!("spore-agent: poll: {error}");
                return Err(Gone);
            }
        }
        let happened = sources.into_iter().zip(polled.iter().map(PollFd::revents));
        Ok(happened.filter(|(_, events)| !events.is_empty()).collect())
    }

    fn on_connection(&mut self, events: PollFlags) -> Result<(), Gone> {
        if events.contains(PollFlags::OUT) {
            self.connection_full = false;
        }
        if events.contains(PollFlags::IN) {
            match rustix::net::recv(
                self.connection,
                self.buffers.incoming.space(),
                RecvFlags::DONTWAIT,
            ) {
                Ok((_, 0)) => return Err(Gone),
                Ok((_, count)) => self.buffers.incoming.advance(count),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        } else if events.intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL) {
            return Err(Gone);
        }
        Ok(())
    }

    /// How long to leave output alone at least after that.
    fn on_output(&mut self, index: usize, events: PollFlags) -> Result<Option<Duration>, Gone> {
        let output = &mut self.outputs[index];
        let Some(pipe) = &output.pipe else { return Ok(None) };
        let scratch = &mut self.buffers.scratch;
        scratch.clear();
        let at_end = match output.is_terminal {
            true => read_terminal(pipe, events, scratch),
            false => read_pipe(pipe, events, scratch),
        };
        // The command has a terminal as long as it runs, also if it closed it: it can open /dev/tty again.
        let closed = at_end && output.is_terminal && self.child.exit().is_none();
        if at_end && !closed {
            output.pipe = None;
        }
        let count = scratch.len();
        output.owed = output.owed.saturating_sub(count);
        if count > 0 {
            frame::encode(&(output.reply)(scratch), &mut self.buffers.outgoing)?;
        }
        Ok(match closed {
            true => Some(REOPEN),
            false => (count < SHORT_BYTES).then_some(Duration::ZERO),
        })
    }

    /// Takes what the host has sent apart.
    fn take_input(&mut self) -> Result<(), Gone> {
        while self.has_room_for_input()
            && let Some(body) = self.buffers.incoming.next_frame()?
        {
            match frame::decode(body)? {
                HostFrame::Stdin(bytes) if self.stdin.is_some() && !self.stdin_ended => {
                    self.pending.extend_from_slice(bytes);
                    if let Some(last) = bytes.last() {
                        self.line_begun = !b"\r\n".contains(last);
                    }
                }
                HostFrame::Stdin(bytes) => self.unacknowledged += bytes.len(),
                HostFrame::StdinEof => self.end_input(),
                HostFrame::Signal(signal) => self.signal(signal),
                HostFrame::Resize(size) => {
                    if let Some(terminal) = self.terminal.as_ref().filter(|_| size.check().is_ok()) {
                        // It fails only for what is no terminal.
                        let _ = terminal.resize(size);
                    }
                }
                HostFrame::Request(_) | HostFrame::Data(_) | HostFrame::End => return Err(Gone),
            }
        }
        Ok(())
    }

    fn end_input(&mut self) {
        if let Some(terminal) = &self.terminal
            && !self.stdin_ended
        {
            // One hands over what there is of a line; one with nothing before it is the end.
            let times = if self.line_begun { 2 } else { 1 };
            self.pending
                .extend(std::iter::repeat_n(terminal.end_of_file(), times));
        }
        self.stdin_ended = true;
    }

    fn signal(&self, signal: i32) {
        if self.child.exit().is_none()
            && !self
                .terminal
                .as_ref()
                .is_some_and(|terminal| terminal.signal_foreground(signal))
        {
            self.child.signal_group(signal);
        }
    }

    /// True for every host that respects the window, so its signals are never stuck behind input.
    fn has_room_for_input(&self) -> bool {
        self.pending.len() <= STDIN_WINDOW_BYTES
    }

    fn feed_command(&mut self) {
        while !self.stdin_full
            && let Some(pipe) = &self.stdin
        {
            if self.pending.is_empty() {
                if self.stdin_ended {
                    self.stdin = None;
                }
                return;
            }
            match rustix::io::write(pipe, &self.pending) {
                Ok(count) => {
                    self.stdin_full = count < self.pending.len();
                    self.unacknowledged += count;
                    self.pending.drain(..count);
                }
                Err(Errno::AGAIN) => self.stdin_full = true,
                Err(Errno::INTR) => {}
                Err(_) => {
                    // The command closed its input; it is not an error not to read it all.
                    self.unacknowledged += self.pending.len();
                    self.pending.clear();
                    self.stdin = None;
                }
            }
        }
    }

    fn acknowledge(&mut self) -> Result<(), Gone> {
        let enough = self.unacknowledged >= ACK_BYTES || self.pending.is_empty();
        if self.unacknowledged > 0 && enough && !self.stdin_ended {
            let count = u32::try_from(std::mem::take(&mut self.unacknowledged)).unwrap_or(u32::MAX);
            self.buffers.push(&Reply::StdinAck(count))?;
        }
        Ok(())
    }

    fn queued(&self) -> usize {
        self.buffers.outgoing.len() - self.sent
    }

    fn send(&mut self) -> Result<(), Gone> {
        while self.queued() > 0 && !self.connection_full {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(self.connection, &self.buffers.outgoing[self.sent..], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => self.connection_full = true,
                Err(Errno::INTR) => {}
                Err(_) => return Err(Gone),
            }
        }
        self.buffers.outgoing.drain(..self.sent);
        self.sent = 0;
        Ok(())
    }

    fn kill(&self) {
        if self.child.exit().is_none() {
            self.child.signal_group(libc::SIGKILL);
            session::kill(self.child.pid());
        }
    }
}

impl Output {
    /// The command has ended: what its pipes hold now is still its output. How much a terminal holds cannot be asked.
    fn note_owed(&mut self) {
        if self.is_terminal {
            self.owed = terminal::MOST_HELD_BYTES;
            return;
        }
        let held = self
            .pipe
            .as_ref()
            .and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok())
            .unwrap_or(0);
        self.owed = usize::try_from(held).unwrap_or(usize::MAX);
    }

    fn is_over(&self, grace_is_over: bool) -> bool {
        let Some(pipe) = &self.pipe else { return true };
        grace_is_over && (self.owed == 0 || (self.is_terminal && terminal::is_empty(pipe)))
    }
}

/// Reads once. Whether the pipe is at its end.
fn read_pipe(pipe: &OwnedFd, events: PollFlags, into: &mut Vec<u8>) -> bool {
    if !events.contains(PollFlags::IN) {
        return true;
    }
    match rustix::io::read(pipe, spare_capacity(into)) {
        Err(Errno::AGAIN | Errno::INTR) => false,
        Err(_) | Ok(0) => true,
        // With nobody left to write, a short read was the last.
        Ok(_) => events.contains(PollFlags::HUP) && into.len() < into.capacity(),
    }
}

/// Reads what there is. Whether the terminal is at its end: nobody has it open, which is `EIO`.
fn read_terminal(master: &OwnedFd, events: PollFlags, into: &mut Vec<u8>) -> bool {
    if !events.contains(PollFlags::IN) {
        return true;
    }
    loop {
        match rustix::io::read(master, spare_capacity(into)) {
            Err(Errno::AGAIN | Errno::INTR) => return false,
            Err(_) | Ok(0) => return true,
            Ok(TERMINAL_READ_BYTES..) if into.len() < into.capacity() => {}
            Ok(_) => return false,
        }
    }
}
