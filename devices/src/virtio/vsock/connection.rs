//! One host stream and its connection to a port of the guest.
//!
//! What a connection still has to tell the guest is state, not a queue: [`Connection::next_packet`]
//! derives the next packet from it whenever the guest has a buffer to put one in. So control
//! packets can neither pile up nor be lost.

use std::collections::VecDeque;
use std::io::ErrorKind;

use super::credit::Credit;
use super::handshake::{Handshake, Progress};
use super::packet::{Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::{HostStream, Readiness};

/// What is left to say to the guest when a connection ends on our side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastWord {
    /// Nothing: the guest never heard of it, or ended it itself.
    Nothing,
    /// RST: it ended badly.
    Reset,
    /// SHUTDOWN of both directions: it ended well.
    Shutdown,
}

/// What became of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum Fate {
    /// It goes on.
    Alive,
    /// The guest is done with it; only buffered bytes still go to the host stream.
    GuestDone(LastWord),
    /// It is over on both sides.
    Over(LastWord),
}

/// A packet for the guest but for its addresses.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub op: Op,
    pub flags: u32,
    pub len: usize,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

#[derive(Debug)]
enum Phase {
    /// Reading the client's CONNECT line.
    Handshake(Handshake),
    /// The guest was, or is to be, asked to accept.
    Connecting { requested: bool },
    /// Bytes flow.
    Established,
    /// The guest is gone; the host stream gets what is buffered for it.
    Draining,
}

/// One connection. The flags about the host stream follow edge-triggered readiness: set by
/// [`Connection::ready`], cleared when the stream says `WouldBlock`.
pub(super) struct Connection {
    stream: Box<dyn HostStream>,
    phase: Phase,
    credit: Credit,
    may_read: bool,
    may_write: bool,
    /// The client closed both directions; it may have written before that.
    hung_up: bool,

    /// Bytes the client sent right behind its CONNECT line (at most 31).
    early: Vec<u8>,
    /// The client ended its direction, and we read that.
    host_eof: bool,
    /// The guest receives no more.
    guest_deaf: bool,
    /// The client receives no more: what the guest still sends is thrown away.
    host_deaf: bool,
    /// SHUTDOWN flags the guest was told.
    told: u32,

    /// Bytes for the host stream, at most `BUF_ALLOC` and the greeting.
    to_host: VecDeque<u8>,
    /// How many of them, at the front, are our greeting and not the guest's bytes.
    greeting: usize,
    /// The guest sends no more.
    guest_eof: bool,
    /// The host stream was told so.
    passed_eof: bool,

    /// The guest waits for a RESPONSE.
    response_due: bool,
    /// The guest asked for a credit update.
    update_asked: bool,
    /// We asked for credit and got none yet.
    credit_asked: bool,
}

impl Connection {
    fn new(stream: Box<dyn HostStream>, phase: Phase) -> Self {
        Self {
            stream,
            phase,
            credit: Credit::default(),
            // Epoll reports a stream that is ready when it is added, but trying is cheaper than
            // another turn of the loop.
            may_read: true,
            may_write: true,
            hung_up: false,
            early: Vec::new(),
            host_eof: false,
            guest_deaf: false,
            host_deaf: false,
            told: 0,
            to_host: VecDeque::new(),
            greeting: 0,
            guest_eof: false,
            passed_eof: false,
            response_due: false,
            update_asked: false,
            credit_asked: false,
        }
    }

    /// A stream whose client has yet to say which port it wants.
    pub(super) fn waiting(stream: Box<dyn HostStream>) -> Self {
        Self::new(stream, Phase::Handshake(Handshake::default()))
    }

    /// A stream that answers the guest's `request`.
    pub(super) fn accepted(stream: Box<dyn HostStream>, request: &Header) -> Self {
        let mut connection = Self::new(stream, Phase::Established);
        connection.credit.peer_says(request.buf_alloc, request.fwd_cnt);
        connection.response_due = true;
        connection
    }

    /// The host stream, when all is over.
    pub(super) fn into_stream(self) -> Box<dyn HostStream> {
        self.stream
    }

    /// Notes what epoll said.
    pub(super) fn ready(&mut self, readiness: Readiness) {
        self.may_read |= readiness.readable || readiness.hung_up;
        self.may_write |= readiness.writable || readiness.hung_up;
        self.hung_up |= readiness.hung_up;
        self.host_deaf |= readiness.hung_up;
    }

    /// Goes on reading the CONNECT line. The first port it returns starts the connection.
    pub(super) fn handshake(&mut self) -> Result<Option<u32>, Fate> {
        let Phase::Handshake(handshake) = &mut self.phase else {
            return Ok(None);
        };
        match handshake.advance(self.stream.as_mut()) {
            Progress::Pending => Ok(None),
            Progress::Refused => Err(Fate::Over(LastWord::Nothing)),
            Progress::Connect { port, early } => {
                self.early = early;
                self.phase = Phase::Connecting { requested: false };
                Ok(Some(port))
            }
        }
    }

    /// Whether the guest has not heard of this connection: not even a reset of the device ends it.
    pub(super) fn unknown_to_guest(&self) -> bool {
        matches!(
            self.phase,
            Phase::Handshake(_) | Phase::Connecting { requested: false }
        )
    }

    /// Whether the next packet is a connection request.
    pub(super) fn wants_to_connect(&self) -> bool {
        matches!(self.phase, Phase::Connecting { requested: false })
    }

    /// Whether [`Connection::next_packet`] is worth a guest buffer.
    pub(super) fn has_packet(&self) -> bool {
        match self.phase {
            Phase::Handshake(_) | Phase::Draining => false,
            Phase::Connecting { requested } => !requested,
            Phase::Established => {
                self.response_due
                    || self.may_send_data()
                    || self.shutdown_due() != 0
                    || self.update_asked
                    || self.credit.update_due()
                    || self.credit_request_due()
            }
        }
    }

    fn host_has_data(&self) -> bool {
        !self.guest_deaf && (!self.early.is_empty() || (self.may_read && !self.host_eof))
    }

    fn may_send_data(&self) -> bool {
        self.host_has_data() && self.credit.available() > 0
    }

    fn credit_request_due(&self) -> bool {
        !self.credit_asked && self.host_has_data() && self.credit.available() == 0
    }

    /// SHUTDOWN flags that are true and that the guest was not told.
    fn shutdown_due(&self) -> u32 {
        let send = self.host_eof && self.early.is_empty() && !self.guest_deaf;
        let receive = self.host_deaf && !self.guest_eof;
        let flags = if send { SHUTDOWN_SEND } else { 0 } | if receive { SHUTDOWN_RECEIVE } else { 0 };
        flags & !self.told
    }

    /// The next packet for the guest, its payload, if any, at the front of `scratch`, whose length
    /// is the room in the guest's buffer. `Ok(None)` if there is nothing to send after all.
    pub(super) fn next_packet(&mut self, scratch: &mut [u8]) -> Result<Option<Outgoing>, Fate> {
        match &mut self.phase {
            Phase::Handshake(_) | Phase::Draining => return Ok(None),
            Phase::Connecting { requested: true } => return Ok(None),
            Phase::Connecting { requested } => {
                *requested = true;
                return Ok(Some(self.outgoing(Op::Request, 0, 0)));
            }
            Phase::Established => {}
        }
        if std::mem::take(&mut self.response_due) {
            return Ok(Some(self.outgoing(Op::Response, 0, 0)));
        }
        if self.may_send_data() {
            let len = self.take_from_host(scratch)?;
            if let Some(counted) = u32::try_from(len).ok().filter(|len| *len > 0) {
                self.credit.count_sent(counted);
                return Ok(Some(self.outgoing(Op::Rw, 0, len)));
            }
        }
        let shutdown = self.shutdown_due();
        if shutdown != 0 {
            self.told |= shutdown;
            if let over @ Fate::Over(_) = self.settle() {
                return Err(over);
            }
            return Ok(Some(self.outgoing(Op::Shutdown, self.told, 0)));
        }
        if self.update_asked || self.credit.update_due() {
            return Ok(Some(self.outgoing(Op::CreditUpdate, 0, 0)));
        }
        if self.credit_request_due() {
            self.credit_asked = true;
            return Ok(Some(self.outgoing(Op::CreditRequest, 0, 0)));
        }
        Ok(None)
    }

    fn outgoing(&mut self, op: Op, flags: u32, len: usize) -> Outgoing {
        // Whatever the packet is, it carries what the guest asked for.
        self.update_asked = false;
        let (buf_alloc, fwd_cnt) = self.credit.announce();
        Outgoing {
            op,
            flags,
            len,
            buf_alloc,
            fwd_cnt,
        }
    }

    /// Takes bytes for the guest, as many as credit and `scratch` allow; zero if there are none now.
    fn take_from_host(&mut self, scratch: &mut [u8]) -> Result<usize, Fate> {
        let credit = usize::try_from(self.credit.available()).unwrap_or(usize::MAX);
        let room = scratch.len().min(credit);
        let Some(scratch) = scratch.get_mut(..room) else {
            return Ok(0);
        };
        if !self.early.is_empty() {
            let count = self.early.len().min(room);
            for (to, from) in scratch.iter_mut().zip(self.early.drain(..count)) {
                *to = from;
            }
            return Ok(count);
        }
        loop {
            match self.stream.read(scratch) {
                Ok(0) => {
                    self.host_eof = true;
                    return Ok(0);
                }
                Ok(count) => return Ok(count.min(room)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.may_read = false;
                    return Ok(0);
                }
                Err(_) => return Err(Fate::Over(LastWord::Reset)),
            }
        }
    }

    /// Takes a packet of the guest for this connection. `payload` is `None` if the packet's data
    /// could not be had.
    pub(super) fn receive(&mut self, header: &Header, payload: Option<&[u8]>, local_port: u32) -> Fate {
        match &self.phase {
            // The guest cannot know these: a forged packet, or one so old that its port is due again.
            Phase::Handshake(_) | Phase::Connecting { requested: false } | Phase::Draining => Fate::Alive,
            Phase::Connecting { requested: true } => match header.op {
                Op::Response => {
                    self.credit.peer_says(header.buf_alloc, header.fwd_cnt);
                    self.phase = Phase::Established;
                    let greeting = format!("OK {local_port}\n");
                    self.greeting = greeting.len();
                    self.to_host.extend(greeting.as_bytes());
                    self.flush()
                }
                Op::Rst => Fate::Over(LastWord::Nothing),
                _ => Fate::Over(LastWord::Reset),
            },
            Phase::Established => {
                self.credit.peer_says(header.buf_alloc, header.fwd_cnt);
                if self.credit.available() > 0 {
                    self.credit_asked = false;
                }
                self.receive_established(header, payload)
            }
        }
    }

    fn receive_established(&mut self, header: &Header, payload: Option<&[u8]>) -> Fate {
        match header.op {
            Op::Rw => match payload {
                Some(payload) if !self.guest_eof => self.receive_data(payload),
                _ => Fate::Over(LastWord::Reset),
            },
            Op::CreditUpdate => Fate::Alive,
            Op::CreditRequest => {
                self.update_asked = true;
                Fate::Alive
            }
            Op::Shutdown => {
                self.guest_eof |= header.flags & SHUTDOWN_SEND != 0;
                if header.flags & SHUTDOWN_RECEIVE != 0 {
                    self.guest_deaf = true;
                    self.early.clear();
                }
                if self.guest_eof && self.guest_deaf {
                    // The guest closed its socket and waits for RST before it forgets it.
                    self.end_guest_side(LastWord::Reset)
                } else {
                    self.flush()
                }
            }
            Op::Rst => self.end_guest_side(LastWord::Nothing),
            Op::Request | Op::Response | Op::Unknown => Fate::Over(LastWord::Reset),
        }
    }

    fn receive_data(&mut self, payload: &[u8]) -> Fate {
        let Ok(len) = u32::try_from(payload.len()) else {
            return Fate::Over(LastWord::Reset);
        };
        if self.credit.receive(len).is_err() {
            return Fate::Over(LastWord::Reset);
        }
        let mut rest = payload;
        // The way without a copy: nothing waits before these bytes.
        while self.to_host.is_empty() && self.may_write && !rest.is_empty() {
            let count = self.write_some(rest);
            self.credit.count_forwarded(u32::try_from(count).unwrap_or(0));
            rest = rest.get(count..).unwrap_or_default();
        }
        self.to_host.extend(rest);
        Fate::Alive
    }

    /// The guest is done: what is buffered still goes to the host stream, then it is closed.
    fn end_guest_side(&mut self, word: LastWord) -> Fate {
        self.phase = Phase::Draining;
        match self.flush() {
            Fate::Alive => Fate::GuestDone(word),
            _ => Fate::Over(word),
        }
    }

    /// Gives the host stream what is buffered for it, and end-of-file behind that if it is due.
    pub(super) fn flush(&mut self) -> Fate {
        while self.may_write && !self.to_host.is_empty() {
            let chunk = std::mem::take(&mut self.to_host);
            let count = self.write_some(chunk.as_slices().0);
            self.to_host = chunk;
            self.to_host.drain(..count);
            let greeting = self.greeting.min(count);
            self.greeting -= greeting;
            self.credit
                .count_forwarded(u32::try_from(count - greeting).unwrap_or(0));
        }
        if !self.to_host.is_empty() {
            return Fate::Alive;
        }
        // An idle connection keeps no buffer.
        self.to_host = VecDeque::new();
        match self.phase {
            Phase::Draining => Fate::Over(LastWord::Nothing),
            Phase::Established => self.settle(),
            Phase::Handshake(_) | Phase::Connecting { .. } => Fate::Alive,
        }
    }

    /// Passes on the guest's end-of-file, and ends the connection when both directions have ended.
    fn settle(&mut self) -> Fate {
        let inbound_finished = self.host_deaf || (self.guest_eof && self.to_host.is_empty());
        if self.guest_eof && self.to_host.is_empty() && !self.passed_eof {
            self.passed_eof = true;
            // A failure means that the client is gone, which the other direction will find.
            let _ = self.stream.shutdown_write();
        }
        let outbound_finished = self.guest_deaf || self.told & SHUTDOWN_SEND != 0;
        if inbound_finished && outbound_finished {
            Fate::Over(LastWord::Shutdown)
        } else {
            Fate::Alive
        }
    }

    /// Writes to the host stream; zero if it takes nothing now. A client that takes nothing any
    /// more is given everything in vain: what it wrote itself must still reach the guest, so this
    /// is no reason to reset the connection.
    fn write_some(&mut self, bytes: &[u8]) -> usize {
        while !self.host_deaf {
            match self.stream.write(bytes) {
                Ok(count) if count > 0 => return count.min(bytes.len()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.may_write = false;
                    return 0;
                }
                _ => self.host_deaf = true,
            }
        }
        bytes.len()
    }

    /// The client may have left for good: ends what has nothing left to deliver.
    pub(super) fn check_hang_up(&mut self) -> Fate {
        match self.phase {
            _ if !self.hung_up => Fate::Alive,
            // In the handshake the line may still be there to read, which comes to nothing.
            Phase::Handshake(_) | Phase::Connecting { requested: false } | Phase::Draining => {
                Fate::Over(LastWord::Nothing)
            }
            Phase::Connecting { requested: true } => Fate::Over(LastWord::Reset),
            Phase::Established => self.settle(),
        }
    }

    /// Bytes buffered for the host stream.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.to_host.len()
    }
}
