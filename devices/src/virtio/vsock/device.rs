//! The device: its three queues, what the VMM calls, and what a copy of it inherits.

use std::fmt;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::event::TransportReset;
use super::muxer::{ClosedStream, ConnectionId, Muxer, TooManyConnections};
use super::packet::{GuestCid, InvalidGuestCid, MAX_PAYLOAD, PacketBuffer, PacketError};
use super::{GuestConnect, HostStream, Readiness};
use crate::virtio::{DeviceError, DeviceType, Memory, VirtioDevice};

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
/// 128 receive buffers of Linux' 4 KiB are twice its default socket buffer; a guest pays for every
/// page of them when the driver starts. Linux uses 8 event buffers.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// `VIRTIO_VSOCK_F_STREAM` (virtio 1.2, 5.10.3).
const F_STREAM: u64 = 1 << 0;

/// Most packets one call moves each way, so that a busy guest cannot keep the VMM's I/O thread.
const BUDGET: usize = 256;

/// A virtio socket device (virtio 1.2, 5.10). See the [module](super) for what it is.
///
/// The VMM's I/O thread owns epoll and hands in what it accepts:
///
/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
/// use spore_devices::virtio::vsock::{ConnectionId, GuestCid, Readiness, Vsock};
///
/// let mut vsock = Vsock::new(GuestCid::FIRST, 0x5eed);
/// // The listener accepted a client: non-blocking, into the device, then into epoll
/// // (EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, with the id as its data), then `pump`.
/// let (mut client, stream) = UnixStream::pair()?;
/// stream.set_nonblocking(true)?;
/// let id = vsock.add_stream(Box::new(stream))?;
/// // Epoll reported it: tell the device, then `pump`.
/// client.write_all(b"this is no CONNECT line\n")?;
/// vsock.host_ready(ConnectionId::from_u64(id.as_u64()), Readiness { readable: true, ..Default::default() });
/// // After every call: take what is over out of epoll and drop it.
/// for closed in vsock.take_closed() {
///     assert_eq!(closed.id, id);
/// }
/// assert_eq!(client.read(&mut [0; 1])?, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Vsock {
    muxer: Muxer,
    reset: TransportReset,
    /// One packet's payload on its way.
    scratch: Vec<u8>,
    out_of_budget: bool,
}

impl fmt::Debug for Vsock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vsock")
            .field("guest_cid", &self.muxer.guest_cid())
            .finish_non_exhaustive()
    }
}

/// What a copy of the device inherits. No connection does: the copy's guest is told that all of
/// them are gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Context id of the guest.
    pub guest_cid: u64,
    /// Where local ports go on, so that a copy uses none the guest remembers.
    pub next_local_port: u32,
    /// The event queue's available index at which the driver will have handled the last transport
    /// reset, if it had not.
    pub reset_handled_at: Option<u16>,
}

impl Vsock {
    /// A device for the guest with context id `guest_cid`.
    ///
    /// Local ports are taken in turn from a place `first_local_port` decides, which should be
    /// random: a guest may outlive this device in a copy, and must not meet a port again.
    #[must_use]
    pub fn new(guest_cid: GuestCid, first_local_port: u32) -> Self {
        Self::build(guest_cid, first_local_port, TransportReset::default())
    }

    /// The device of a copy of the VM that `state` was saved from. Before anything else it tells
    /// the guest that its connections are gone, and it opens new ones only when the guest has
    /// taken that in. The VMM calls [`Vsock::pump`] once the guest may run.
    ///
    /// # Errors
    /// [`InvalidGuestCid`] if the state cannot be one of this device.
    pub fn restore(state: &VsockState) -> Result<Self, InvalidGuestCid> {
        let reset = TransportReset::owed(state.reset_handled_at);
        Ok(Self::build(
            state.guest_cid.try_into()?,
            state.next_local_port,
            reset,
        ))
    }

    fn build(guest_cid: GuestCid, first_local_port: u32, reset: TransportReset) -> Self {
        Self {
            muxer: Muxer::new(guest_cid, first_local_port, reset.is_handled()),
            reset,
            scratch: vec![0; MAX_PAYLOAD],
            out_of_budget: false,
        }
    }

    /// What a copy made of the VM now needs. Changes nothing: this VM's connections live on.
    #[must_use]
    pub fn save(&self) -> VsockState {
        VsockState {
            guest_cid: self.muxer.guest_cid().as_u64(),
            next_local_port: self.muxer.next_local_port(),
            reset_handled_at: self.reset.saved(),
        }
    }

    /// Lets `hook` answer the connections the guest opens; without one they are refused.
    pub fn set_guest_connect(&mut self, hook: Box<dyn GuestConnect>) {
        self.muxer.set_guest_connect(hook);
    }

    /// Takes a connected, non-blocking stream whose client is to say `CONNECT <port>\n`, and reads
    /// what it said already. [`Vsock::pump`] is due after it.
    ///
    /// # Errors
    /// [`TooManyConnections`] if there is no room; the stream is dropped, which closes it.
    pub fn add_stream(&mut self, stream: Box<dyn HostStream>) -> Result<ConnectionId, TooManyConnections> {
        self.muxer.add_stream(stream)
    }

    /// Epoll reported a stream. Late reports, of streams that are gone, do nothing.
    /// [`Vsock::pump`] is due after it; one for many reports is enough.
    ///
    /// Streams are watched edge triggered: the device remembers what it is told until the stream
    /// says `WouldBlock`, so its interest never changes and is set once.
    pub fn host_ready(&mut self, id: ConnectionId, readiness: Readiness) {
        self.muxer.host_ready(id, readiness);
    }

    /// The streams that are over since the last call. The VMM takes them out of its epoll, then
    /// drops them. Due after every other call; until taken they count as connections.
    #[must_use]
    pub fn take_closed(&mut self) -> Vec<ClosedStream> {
        self.muxer.take_closed()
    }

    /// Whether the last [`Vsock::pump`] (or kick) stopped because it had moved enough for once.
    /// Then the VMM calls `pump` again soon, after it has looked at its other duties.
    #[must_use]
    pub fn wants_pump(&self) -> bool {
        self.out_of_budget
    }

    /// Moves everything that can move: takes the guest's packets, writes to host streams, and
    /// fills the guest's receive buffers from them. Returns whether to interrupt the guest.
    ///
    /// # Errors
    /// [`DeviceError`] if the driver broke a queue.
    pub fn pump(&mut self, queues: &mut [Queue], memory: &Memory) -> Result<bool, DeviceError> {
        let [rx, tx, event, ..] = queues else {
            return Err(DeviceError::NoSuchQueue(queues.len()));
        };
        self.out_of_budget = false;
        let event_used = self
            .reset
            .advance(event, memory)
            .map_err(DeviceError::on(EVENT))?;
        if self.reset.is_handled() {
            self.muxer.allow_connects();
        }
        let tx_used = self.take_packets(tx, memory).map_err(DeviceError::on(TX))?;
        let rx_used = self.give_packets(rx, memory).map_err(DeviceError::on(RX))?;

        let mut interrupt = false;
        for (used, queue, index) in [(event_used, event, EVENT), (tx_used, tx, TX), (rx_used, rx, RX)] {
            if used {
                interrupt |= queue.needs_notification(memory).map_err(DeviceError::on(index))?;
            }
        }
        Ok(interrupt)
    }

    /// Takes the guest's packets off the tx queue.
    fn take_packets(&mut self, queue: &mut Queue, memory: &Memory) -> Result<bool, virtio_queue::Error> {
        let mut taken = 0;
        // Looking writes nothing, so pumping an idle guest dirties no page of it.
        while has_available(queue, memory)? {
            let before = taken;
            queue.disable_notification(memory)?;
            while taken < BUDGET
                && let Some(chain) = queue.iter(memory)?.next()
            {
                taken += 1;
                let head = chain.head_index();
                let packet = PacketBuffer::new(chain, memory, false)
                    .and_then(|buffer| buffer.read(memory, &mut self.scratch));
                match packet {
                    Ok((header, len)) => self.muxer.receive(&header, self.scratch.get(..len)),
                    // Its connection has lost bytes, so it must end.
                    Err(PacketError::Payload(header)) => self.muxer.receive(&header, None),
                    Err(error) => tracing::debug!(%error, "vsock: the guest sent no packet"),
                }
                queue.add_used(memory, head, 0)?;
            }
            queue.enable_notification(memory)?;
            self.out_of_budget |= taken == BUDGET;
            // No progress: the ring announces what cannot be read.
            if self.out_of_budget || taken == before {
                break;
            }
        }
        Ok(taken > 0)
    }

    /// Puts packets into the guest's buffers on the rx queue.
    fn give_packets(&mut self, queue: &mut Queue, memory: &Memory) -> Result<bool, virtio_queue::Error> {
        let mut given = 0;
        // A copy says nothing before the transport reset.
        while !self.reset.is_owed() && self.muxer.has_packet() && has_available(queue, memory)? {
            if given == BUDGET {
                self.out_of_budget = true;
                break;
            }
            let Some(chain) = queue.iter(memory)?.next() else {
                break;
            };
            let head = chain.head_index();
            let buffer = match PacketBuffer::new(chain, memory, true) {
                Ok(buffer) if buffer.payload_capacity() > 0 => buffer,
                unusable => {
                    tracing::debug!(error = ?unusable.err(), "vsock: a receive buffer takes no packet");
                    queue.add_used(memory, head, 0)?;
                    given += 1;
                    continue;
                }
            };
            let room = buffer.payload_capacity().min(self.scratch.len());
            let packet = self
                .scratch
                .get_mut(..room)
                .and_then(|scratch| self.muxer.next_packet(scratch));
            let Some(header) = packet else {
                // Nothing to say after all: the buffer keeps its place.
                queue.go_to_previous_position();
                continue;
            };
            let payload = usize::try_from(header.len)
                .ok()
                .and_then(|len| self.scratch.get(..len));
            // The buffer was checked byte by byte before, so writing to it does not fail.
            let used = buffer
                .write(memory, &header, payload.unwrap_or_default())
                .unwrap_or(0);
            queue.add_used(memory, head, used)?;
            given += 1;
        }
        Ok(given > 0)
    }
}

/// Whether the driver offers a buffer the device has not taken.
fn has_available(queue: &Queue, memory: &Memory) -> Result<bool, virtio_queue::Error> {
    Ok(queue.ready() && queue.avail_idx(memory, Ordering::Acquire)?.0 != queue.next_avail())
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Streams only. No VIRTIO_F_EVENT_IDX: with it the event queue could not say "kick me when
    /// you give a buffer back", for the buffers it leaves unused stand in the way.
    fn features(&self) -> u64 {
        F_STREAM
    }

    /// `guest_cid` (virtio 1.2, 5.10.4).
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let cid = self.muxer.guest_cid().as_u64().to_le_bytes();
        let config = usize::try_from(offset)
            .ok()
            .and_then(|offset| cid.get(offset..))
            .unwrap_or_default();
        data.fill(0);
        for (to, from) in data.iter_mut().zip(config) {
            *to = *from;
        }
    }

    /// Every connection the driver knew of ends. A driver that starts over needs no transport reset.
    fn reset(&mut self) {
        self.reset = TransportReset::default();
        self.muxer.driver_reset();
        self.out_of_budget = false;
    }

    /// A kick of any queue moves everything: packets from the guest make packets for it, new
    /// receive buffers take what waits, and event buffers given back let connections through.
    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError> {
        match index {
            RX | TX | EVENT => self.pump(queues, memory),
            _ => Err(DeviceError::NoSuchQueue(index)),
        }
    }
}

#[cfg(test)]
impl Vsock {
    pub(super) fn muxer(&self) -> &Muxer {
        &self.muxer
    }
}
