//! All connections of one guest: identities, ports, fairness, and last words to those gone.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use super::connection::{Connection, Fate, LastWord};
use super::packet::{GuestCid, HOST_CID, Header, Op, SHUTDOWN_RECEIVE, SHUTDOWN_SEND, TYPE_STREAM};
use super::{GuestConnect, HostStream, Readiness};

/// Most host streams at a time, those in the handshake and those not yet taken back by the VMM
/// included.
pub const MAX_CONNECTIONS: usize = 1024;

/// Most last words waiting for guest buffers. A guest that provokes more without giving buffers to
/// take them loses the rest, and asks again if it cares.
const MAX_FAREWELLS: usize = 2 * MAX_CONNECTIONS;

/// Local ports are taken in turn from `1 << 30` up to, not including, `1 << 31`: away from the
/// numbers programs choose, and so many that none comes back while anyone may remember it.
const LOCAL_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// Name of a host stream between device and VMM. Never given twice by one device, so that a late
/// report about a stream that is gone names no other. Counts up from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// The id as a number, as the VMM may give it to epoll.
    #[must_use]
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The id of such a number. Numbers that name no stream are harmless.
    #[must_use]
    pub fn from_u64(id: u64) -> Self {
        Self(id)
    }
}

/// There are [`MAX_CONNECTIONS`] streams already; the new one was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are {MAX_CONNECTIONS} vsock connections to this VM already")]
pub struct TooManyConnections;

/// A host stream the device is done with. The VMM takes it out of its epoll, then drops it, which
/// closes it. (Not the device: a forked copy of the VM may hold the same open file, and then
/// closing a descriptor does not take it out of epoll.)
pub struct ClosedStream {
    /// Which stream.
    pub id: ConnectionId,
    /// The stream; dropping it closes it.
    pub stream: Box<dyn HostStream>,
}

impl fmt::Debug for ClosedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosedStream")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The host's and the guest's port: what identifies a connection to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    local: u32,
    guest: u32,
}

struct Entry {
    connection: Connection,
    /// `None` in the handshake, and when the guest is done with it.
    ports: Option<Ports>,
    /// It is in `ready`.
    queued: bool,
}

pub(super) struct Muxer {
    guest_cid: GuestCid,
    entries: BTreeMap<ConnectionId, Entry>,
    by_ports: BTreeMap<Ports, ConnectionId>,
    /// Connections with a packet for the guest, each once, in the order they get their turn.
    ready: VecDeque<ConnectionId>,
    /// Last words, by ports and socket type.
    farewells: BTreeMap<(Ports, u16), LastWord>,
    closed: Vec<ClosedStream>,
    next_id: u64,
    next_local_port: u32,
    /// Connection requests may be delivered.
    connects_allowed: bool,
    guest_connect: Option<Box<dyn GuestConnect>>,
}

impl Muxer {
    pub(super) fn new(guest_cid: GuestCid, first_local_port: u32, connects_allowed: bool) -> Self {
        Self {
            guest_cid,
            entries: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            ready: VecDeque::new(),
            farewells: BTreeMap::new(),
            closed: Vec::new(),
            next_id: 0,
            next_local_port: into_local_ports(first_local_port),
            connects_allowed,
            guest_connect: None,
        }
    }

    pub(super) fn guest_cid(&self) -> GuestCid {
        self.guest_cid
    }

    pub(super) fn next_local_port(&self) -> u32 {
        self.next_local_port
    }

    pub(super) fn set_guest_connect(&mut self, hook: Box<dyn GuestConnect>) {
        self.guest_connect = Some(hook);
    }

    pub(super) fn add_stream(
        &mut self,
        stream: Box<dyn HostStream>,
    ) -> Result<ConnectionId, TooManyConnections> {
        if self.is_full() {
            return Err(TooManyConnections);
        }
        let id = self.new_id();
        let connection = Connection::waiting(stream);
        self.entries.insert(
            id,
            Entry {
                connection,
                ports: None,
                queued: false,
            },
        );
        self.host_ready(id, Readiness::default());
        Ok(id)
    }

    fn is_full(&self) -> bool {
        self.entries.len() + self.closed.len() >= MAX_CONNECTIONS
    }

    fn new_id(&mut self) -> ConnectionId {
        let id = ConnectionId(self.next_id);
        self.next_id += 1;
        id
    }

    /// A local port no connection has. There are more ports than connections, so there is one.
    fn new_local_port(&mut self) -> u32 {
        loop {
            let port = self.next_local_port;
            self.next_local_port = into_local_ports(port + 1);
            let taken = Ports {
                local: port,
                guest: 0,
            }..=Ports {
                local: port,
                guest: u32::MAX,
            };
            if self.by_ports.range(taken).next().is_none() {
                return port;
            }
        }
    }

    pub(super) fn host_ready(&mut self, id: ConnectionId, readiness: Readiness) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.connection.ready(readiness);
        let mut fate = match entry.connection.handshake() {
            Ok(None) => Fate::Alive,
            Err(fate) => fate,
            Ok(Some(guest)) => {
                let ports = Ports {
                    local: self.new_local_port(),
                    guest,
                };
                self.by_ports.insert(ports, id);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.ports = Some(ports);
                }
                Fate::Alive
            }
        };
        if let (Fate::Alive, Some(entry)) = (fate, self.entries.get_mut(&id)) {
            fate = entry.connection.flush();
        }
        if let (Fate::Alive, Some(entry)) = (fate, self.entries.get_mut(&id)) {
            fate = entry.connection.check_hang_up();
        }
        self.settle(id, fate);
    }

    /// Takes a packet of the guest. `payload` is `None` if its data could not be had.
    pub(super) fn receive(&mut self, header: &Header, payload: Option<&[u8]>) {
        // Not the guest's to send, or not to the host: no one to answer (Linux' vhost does the same).
        if header.src_cid != self.guest_cid.as_u64() || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports {
            local: header.dst_port,
            guest: header.src_port,
        };
        let id = self
            .by_ports
            .get(&ports)
            .filter(|_| header.socket_type == TYPE_STREAM)
            .copied();
        if let Some((id, entry)) = id.and_then(|id| Some((id, self.entries.get_mut(&id)?))) {
            let fate = entry.connection.receive(header, payload, ports.local);
            self.settle(id, fate);
        } else if header.op != Op::Rst && !self.accept(ports, header) {
            self.say_farewell(ports, header.socket_type, LastWord::Reset);
        }
    }

    /// Whether someone on the host takes the connection the guest asks for.
    fn accept(&mut self, ports: Ports, header: &Header) -> bool {
        if header.op != Op::Request || header.socket_type != TYPE_STREAM || self.is_full() {
            return false;
        }
        let id = self.new_id();
        let Some(stream) = self
            .guest_connect
            .as_mut()
            .and_then(|hook| hook.connect(id, ports.local))
        else {
            return false;
        };
        // A last word to an older connection of these ports would hit the new one.
        self.farewells.remove(&(ports, TYPE_STREAM));
        let connection = Connection::accepted(stream, header);
        self.entries.insert(
            id,
            Entry {
                connection,
                ports: Some(ports),
                queued: false,
            },
        );
        self.by_ports.insert(ports, id);
        self.schedule(id);
        true
    }

    /// Does what a step of a connection led to.
    fn settle(&mut self, id: ConnectionId, fate: Fate) {
        match fate {
            Fate::Alive => self.schedule(id),
            Fate::GuestDone(word) => self.forget_ports(id, word),
            Fate::Over(word) => self.close(id, word),
        }
    }

    fn schedule(&mut self, id: ConnectionId) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let held_back = entry.connection.wants_to_connect() && !self.connects_allowed;
        if !entry.queued && !held_back && entry.connection.has_packet() {
            entry.queued = true;
            self.ready.push_back(id);
        }
    }

    fn forget_ports(&mut self, id: ConnectionId, word: LastWord) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if std::mem::take(&mut entry.queued) {
            self.ready.retain(|other| *other != id);
        }
        if let Some(ports) = entry.ports.take() {
            self.by_ports.remove(&ports);
            self.say_farewell(ports, TYPE_STREAM, word);
        }
    }

    fn close(&mut self, id: ConnectionId, word: LastWord) {
        self.forget_ports(id, word);
        if let Some(entry) = self.entries.remove(&id) {
            self.closed.push(ClosedStream {
                id,
                stream: entry.connection.into_stream(),
            });
        }
    }

    fn say_farewell(&mut self, ports: Ports, socket_type: u16, word: LastWord) {
        let key = (ports, socket_type);
        if word == LastWord::Nothing {
            return;
        }
        if self.farewells.len() < MAX_FAREWELLS || self.farewells.contains_key(&key) {
            // Of two, the later: it is the answer to what the guest did last.
            self.farewells.insert(key, word);
        } else {
            tracing::debug!(
                ?ports,
                "too many connections to reset; the guest is not told of one"
            );
        }
    }

    /// Lets connection requests through from now on.
    pub(super) fn allow_connects(&mut self) {
        if !std::mem::replace(&mut self.connects_allowed, true) {
            let ids: Vec<_> = self.entries.keys().copied().collect();
            for id in ids {
                self.schedule(id);
            }
        }
    }

    /// Whether [`Muxer::next_packet`] is worth a guest buffer.
    pub(super) fn has_packet(&self) -> bool {
        !self.farewells.is_empty() || !self.ready.is_empty()
    }

    /// The next packet for the guest; its payload is at the front of `scratch`, whose length is the
    /// room for it. Last words first, then one packet of every ready connection in turn.
    pub(super) fn next_packet(&mut self, scratch: &mut [u8]) -> Option<Header> {
        loop {
            if let Some(((ports, socket_type), word)) = self.farewells.pop_first() {
                let (op, flags) = match word {
                    LastWord::Nothing => continue,
                    LastWord::Reset => (Op::Rst, 0),
                    LastWord::Shutdown => (Op::Shutdown, SHUTDOWN_RECEIVE | SHUTDOWN_SEND),
                };
                return Some(Header {
                    socket_type,
                    op,
                    flags,
                    ..self.header(ports)
                });
            }
            let id = self.ready.pop_front()?;
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            entry.queued = false;
            let Some(ports) = entry.ports else { continue };
            match entry.connection.next_packet(scratch) {
                Ok(None) => {}
                Ok(Some(packet)) => {
                    self.schedule(id);
                    return Some(Header {
                        op: packet.op,
                        flags: packet.flags,
                        // At most `scratch`, which is at most 64 KiB.
                        len: u32::try_from(packet.len).unwrap_or(0),
                        buf_alloc: packet.buf_alloc,
                        fwd_cnt: packet.fwd_cnt,
                        ..self.header(ports)
                    });
                }
                // A farewell may be due now: around again.
                Err(fate) => self.settle(id, fate),
            }
        }
    }

    fn header(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid.as_u64(),
            src_port: ports.local,
            dst_port: ports.guest,
            len: 0,
            socket_type: TYPE_STREAM,
            op: Op::Unknown,
            flags: 0,
            buf_alloc: 0,
            fwd_cnt: 0,
        }
    }

    /// The driver reset the device: every connection it knew of is over. Those it never heard of
    /// wait for it to come back.
    pub(super) fn driver_reset(&mut self) {
        self.farewells.clear();
        let known: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| !entry.connection.unknown_to_guest())
            .map(|(id, _)| *id)
            .collect();
        for id in known {
            self.close(id, LastWord::Nothing);
        }
        self.allow_connects();
    }

    pub(super) fn take_closed(&mut self) -> Vec<ClosedStream> {
        std::mem::take(&mut self.closed)
    }

    /// What the bounds are about: streams, last words, ready connections, most bytes buffered for one.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize, usize) {
        let buffered = self
            .entries
            .values()
            .map(|entry| entry.connection.buffered())
            .max()
            .unwrap_or(0);
        (
            self.entries.len(),
            self.farewells.len(),
            self.ready.len(),
            buffered,
        )
    }
}

/// `port`, or the port its low bits name if it is no local port.
fn into_local_ports(port: u32) -> u32 {
    LOCAL_PORTS.start | (port & (LOCAL_PORTS.start - 1))
}
