//! Test doubles: a host stream in memory, and a guest driver over real rings in guest memory.
//!
//! virtio-queue's `MockSplitQueue` neither wraps around its ring nor takes buffers back, and lays
//! its used ring over its available ring; these tests move megabytes.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::packet::{HEADER_LEN, HOST_CID, Header, Op, TYPE_STREAM};
use super::{BUF_ALLOC, ClosedStream, HostStream, Vsock};
use crate::virtio::Memory;

#[derive(Default)]
struct Pipe {
    to_device: VecDeque<u8>,
    to_client: VecDeque<u8>,
    capacity: usize,
    client_ended: bool,
    client_gone: bool,
    device_ended: bool,
    device_gone: bool,
}

/// The client's end of a stream.
pub(in super::super) struct Client(Arc<Mutex<Pipe>>);

/// The device's end of it.
pub(in super::super) struct MemoryStream(Arc<Mutex<Pipe>>);

/// A connected pair.
pub(super) fn host_pair() -> (Client, MemoryStream) {
    let pipe = Arc::new(Mutex::new(Pipe {
        capacity: usize::MAX,
        ..Pipe::default()
    }));
    (Client(pipe.clone()), MemoryStream(pipe))
}

impl Client {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.0.lock().unwrap()
    }

    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.pipe().to_device.extend(bytes);
    }

    /// Bytes sent that the device has not read.
    pub(super) fn unread(&self) -> usize {
        self.pipe().to_device.len()
    }

    /// Everything the device wrote since the last call.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.pipe().to_client.drain(..).collect()
    }

    /// How many bytes may wait for the client before the device's writes block.
    pub(super) fn limit(&mut self, capacity: usize) {
        self.pipe().capacity = capacity;
    }

    pub(super) fn end(&mut self) {
        self.pipe().client_ended = true;
    }

    /// Whether the device said that no more comes.
    pub(super) fn at_eof(&self) -> bool {
        self.pipe().device_ended
    }

    /// Whether the device's end was dropped.
    pub(super) fn is_closed(&self) -> bool {
        self.pipe().device_gone
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.pipe().client_gone = true;
    }
}

impl Read for MemoryStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.0.lock().unwrap();
        if pipe.to_device.is_empty() {
            return if pipe.client_ended || pipe.client_gone {
                Ok(0)
            } else {
                Err(ErrorKind::WouldBlock.into())
            };
        }
        pipe.to_device.read(into)
    }
}

impl Write for MemoryStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.lock().unwrap();
        if pipe.client_gone {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let count = bytes
            .len()
            .min(pipe.capacity.saturating_sub(pipe.to_client.len()));
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.to_client.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HostStream for MemoryStream {
    fn shutdown_write(&mut self) -> io::Result<()> {
        self.0.lock().unwrap().device_ended = true;
        Ok(())
    }
}

impl Drop for MemoryStream {
    fn drop(&mut self) {
        self.0.lock().unwrap().device_gone = true;
    }
}

/// One part of a buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub address: u64,
    pub len: u32,
    pub writable: bool,
}

/// Descriptors per ring.
const SIZE: u16 = 32;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver's side of a split ring.
#[derive(Clone)]
struct Ring {
    base: u64,
    available: u16,
    last_used: u16,
    free: Vec<u16>,
    chains: BTreeMap<u16, Vec<Part>>,
}

impl Ring {
    fn new(base: u64) -> Self {
        Self {
            base,
            available: 0,
            last_used: 0,
            free: (0..SIZE).collect(),
            chains: BTreeMap::new(),
        }
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(SIZE).unwrap();
        let low = |address: u64| Some(u32::try_from(address).unwrap());
        queue.set_desc_table_address(low(self.base), None);
        queue.set_avail_ring_address(low(self.base + 0x1000), None);
        queue.set_used_ring_address(low(self.base + 0x2000), None);
        queue.set_ready(true);
        queue
    }

    /// Puts a chain on the ring; false if there are too few descriptors.
    fn offer(&mut self, memory: &Memory, parts: &[Part]) -> bool {
        if self.free.len() < parts.len() {
            return false;
        }
        let indices = self.free.split_off(self.free.len() - parts.len());
        for (n, part) in parts.iter().enumerate() {
            let next = indices.get(n + 1).copied();
            let flags = next.map_or(0, |_| NEXT) | if part.writable { WRITE } else { 0 };
            let mut descriptor = Vec::new();
            descriptor.extend(part.address.to_le_bytes());
            descriptor.extend(part.len.to_le_bytes());
            descriptor.extend(flags.to_le_bytes());
            descriptor.extend(next.unwrap_or(0).to_le_bytes());
            let at = self.base + u64::from(indices[n]) * 16;
            memory.write_slice(&descriptor, GuestAddress(at)).unwrap();
        }
        let slot = self.base + 0x1000 + 4 + u64::from(self.available % SIZE) * 2;
        memory.write_obj(indices[0], GuestAddress(slot)).unwrap();
        self.available = self.available.wrapping_add(1);
        memory
            .write_obj(self.available, GuestAddress(self.base + 0x1002))
            .unwrap();
        // The whole chain is found again by its head; its descriptors are freed with it.
        let head = indices[0];
        self.chains.insert(head, parts.to_vec());
        self.chain_descriptors(head, indices);
        true
    }

    fn chain_descriptors(&mut self, head: u16, indices: Vec<u16>) {
        // Heads are unique while in use; remember the rest under impossible heads.
        for (n, index) in indices.into_iter().enumerate().skip(1) {
            let key = SIZE + head * SIZE + u16::try_from(n).unwrap();
            self.chains.insert(
                key,
                vec![Part {
                    address: index.into(),
                    len: 0,
                    writable: false,
                }],
            );
        }
    }

    /// Takes one used chain off the ring.
    fn take_used(&mut self, memory: &Memory) -> Option<(Vec<Part>, u32)> {
        let used: u16 = memory.read_obj(GuestAddress(self.base + 0x2002)).unwrap();
        if used == self.last_used {
            return None;
        }
        let slot = self.base + 0x2000 + 4 + u64::from(self.last_used % SIZE) * 8;
        let head: u32 = memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.last_used = self.last_used.wrapping_add(1);
        let head = u16::try_from(head).unwrap();
        let parts = self
            .chains
            .remove(&head)
            .expect("used a buffer that was not offered");
        self.free.push(head);
        for n in 1..parts.len() {
            let key = SIZE + head * SIZE + u16::try_from(n).unwrap();
            let index = self.chains.remove(&key).unwrap()[0].address;
            self.free.push(u16::try_from(index).unwrap());
        }
        Some((parts, len))
    }
}

/// A packet as the guest sees it.
pub(super) type Packet = (Header, Vec<u8>);

/// A guest with a driver, and the transport's queues.
pub(super) struct Guest {
    pub memory: Memory,
    pub queues: Vec<Queue>,
    rings: [Ring; 3],
    tx_area: u64,
}

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;
const TX_AREA: u64 = 0x40_0000;
pub(super) const MEMORY_SIZE: usize = 0x60_0000;

impl Guest {
    /// A driver that has started: event buffers offered, and receive buffers of `rx_size` bytes.
    pub(super) fn new(rx_buffers: u64, rx_size: u32) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap();
        let rings = [Ring::new(0x1_0000), Ring::new(0x2_0000), Ring::new(0x3_0000)];
        let queues = rings.iter().map(Ring::queue).collect();
        let mut guest = Self {
            memory,
            queues,
            rings,
            tx_area: TX_AREA,
        };
        for n in 0..rx_buffers {
            let whole = Part {
                address: 0x10_0000 + n * 0x1_1000,
                len: rx_size,
                writable: true,
            };
            assert!(guest.offer(RX, &[whole]));
        }
        for n in 0..4 {
            assert!(guest.offer(
                EVENT,
                &[Part {
                    address: 0x4_0000 + n * 8,
                    len: 4,
                    writable: true
                }]
            ));
        }
        guest
    }

    /// A copy: the same memory contents and rings, apart.
    pub(super) fn fork(&self) -> Self {
        let mut bytes = vec![0; MEMORY_SIZE];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)]).unwrap();
        memory.write_slice(&bytes, GuestAddress(0)).unwrap();
        let queues = self
            .queues
            .iter()
            .map(|queue| Queue::try_from(queue.state()).unwrap())
            .collect();
        Self {
            memory,
            queues,
            rings: self.rings.clone(),
            tx_area: self.tx_area,
        }
    }

    pub(super) fn pump(&mut self, vsock: &mut Vsock) -> bool {
        vsock.pump(&mut self.queues, &self.memory).unwrap()
    }

    pub(super) fn offer(&mut self, queue: usize, parts: &[Part]) -> bool {
        self.rings[queue].offer(&self.memory, parts)
    }

    pub(super) fn take_used(&mut self, queue: usize) -> Option<(Vec<Part>, u32)> {
        self.rings[queue].take_used(&self.memory)
    }

    /// Takes what arrived and gives the buffers back.
    pub(super) fn receive(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some((parts, len)) = self.take_used(RX) {
            let mut bytes = Vec::new();
            for part in &parts {
                let mut part_bytes = vec![0; part.len as usize];
                self.memory
                    .read_slice(&mut part_bytes, GuestAddress(part.address))
                    .unwrap();
                bytes.extend(part_bytes);
            }
            bytes.truncate(len as usize);
            let payload = bytes.split_off(HEADER_LEN);
            let header = Header::from_bytes(&bytes.try_into().unwrap());
            assert_eq!(header.len as usize, payload.len());
            packets.push((header, payload));
            assert!(self.offer(RX, &parts));
        }
        packets
    }

    /// What arrived, as operations only.
    pub(super) fn receive_ops(&mut self) -> Vec<Op> {
        self.receive().into_iter().map(|(header, _)| header.op).collect()
    }

    /// Offers `bytes` to the device as a packet cut into descriptors at `cuts`; false if the ring
    /// is full.
    pub(super) fn send_raw(&mut self, bytes: &[u8], cuts: &[usize]) -> bool {
        while self.take_used(TX).is_some() {}
        if self.tx_area + 0x2_0000 > MEMORY_SIZE as u64 {
            self.tx_area = TX_AREA;
        }
        let mut parts = Vec::new();
        let mut start = 0;
        for end in cuts
            .iter()
            .copied()
            .chain([bytes.len()])
            .filter(|end| *end <= bytes.len())
        {
            if end >= start {
                self.memory
                    .write_slice(&bytes[start..end], GuestAddress(self.tx_area))
                    .unwrap();
                let len = u32::try_from(end - start).unwrap();
                parts.push(Part {
                    address: self.tx_area,
                    len,
                    writable: false,
                });
                self.tx_area += u64::from(len) + 16;
                start = end;
            }
        }
        self.offer(TX, &parts)
    }

    /// Sends a packet as Linux does: the header in one descriptor, the payload in another.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) -> bool {
        let header = Header {
            len: u32::try_from(payload.len()).unwrap(),
            ..header
        };
        self.send_raw(&[&header.to_bytes(), payload].concat(), &[HEADER_LEN])
    }

    /// Events that arrived, oldest first. Their buffers are not given back.
    pub(super) fn events(&mut self) -> Vec<u32> {
        let mut events = Vec::new();
        while let Some((parts, len)) = self.take_used(EVENT) {
            assert_eq!(len, 4);
            events.push(self.memory.read_obj(GuestAddress(parts[0].address)).unwrap());
        }
        events
    }

    /// Gives an event buffer back.
    pub(super) fn return_event_buffer(&mut self) {
        assert!(self.offer(
            EVENT,
            &[Part {
                address: 0x4_0000,
                len: 4,
                writable: true
            }]
        ));
    }
}

/// A packet of guest port `guest` for host port `host`, from a guest with plenty of room.
pub(super) fn packet(op: Op, guest: u32, host: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: HOST_CID,
        src_port: guest,
        dst_port: host,
        len: 0,
        socket_type: TYPE_STREAM,
        op,
        flags: 0,
        buf_alloc: 256 * 1024,
        fwd_cnt: 0,
    }
}

/// A guest socket that behaves, and checks that the device does.
#[derive(Default)]
pub(super) struct Socket {
    pub guest_port: u32,
    pub host_port: u32,
    pub buf_alloc: u32,
    /// Received and not yet read.
    pub unread: VecDeque<u8>,
    pub fwd_cnt: u32,
    pub sent: u32,
    pub peer_buf_alloc: u32,
    pub peer_fwd_cnt: u32,
    pub connected: bool,
    pub shutdown: u32,
    pub reset: bool,
}

impl Socket {
    pub(super) fn header(&self, op: Op) -> Header {
        Header {
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..packet(op, self.guest_port, self.host_port)
        }
    }

    /// Takes a packet; returns what to answer.
    pub(super) fn take(&mut self, (header, payload): &Packet) -> Option<Header> {
        self.peer_buf_alloc = header.buf_alloc;
        self.peer_fwd_cnt = header.fwd_cnt;
        assert!(header.op == Op::Rst || header.op == Op::Shutdown || header.buf_alloc == BUF_ALLOC);
        match header.op {
            Op::Request => {
                self.host_port = header.src_port;
                self.connected = true;
                return Some(self.header(Op::Response));
            }
            Op::Response => self.connected = true,
            Op::Rw => {
                assert!(self.connected && !payload.is_empty());
                self.unread.extend(payload);
                assert!(
                    self.unread.len() <= self.buf_alloc as usize,
                    "the device overran its credit"
                );
            }
            Op::CreditRequest => return Some(self.header(Op::CreditUpdate)),
            Op::CreditUpdate => {}
            Op::Shutdown => self.shutdown |= header.flags,
            Op::Rst => self.reset = true,
            Op::Unknown => panic!("the device sent nonsense"),
        }
        None
    }

    /// Reads up to `most` bytes.
    pub(super) fn read(&mut self, most: usize) -> Vec<u8> {
        let bytes: Vec<u8> = self.unread.drain(..most.min(self.unread.len())).collect();
        self.fwd_cnt = self.fwd_cnt.wrapping_add(u32::try_from(bytes.len()).unwrap());
        bytes
    }

    /// Bytes it may send.
    pub(super) fn credit(&self) -> usize {
        (self.peer_buf_alloc - self.sent.wrapping_sub(self.peer_fwd_cnt)) as usize
    }
}

/// Drops what the device is done with, and says how many those were.
pub(super) fn reap(vsock: &mut Vsock) -> usize {
    let closed: Vec<ClosedStream> = vsock.take_closed();
    closed.len()
}
