//! A driver for tests: it brings a device up through its registers and talks to its queues through
//! rings in memory, as a guest would, and as no decent guest would.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::mmio::{MmioTransport, RestoreError, TransportState};
use super::{Memory, VirtioDevice};
use crate::Interrupt;

/// Bytes of guest memory, from address 0.
pub(crate) const MEMORY_SIZE: u64 = 64 << 20;
/// Where queue 0 lies; each further queue lies [`QUEUE_STRIDE`] above.
const QUEUES: u64 = 0x1_0000;
const QUEUE_STRIDE: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where buffers are handed out from.
const BUFFERS: u64 = 16 << 20;

/// Descriptor flags (virtio 1.2, 2.7.5).
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// An interrupt line that counts.
#[derive(Default)]
pub(crate) struct CountingInterrupt(AtomicUsize);

impl CountingInterrupt {
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Interrupt for CountingInterrupt {
    fn trigger(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// An interrupt line that is cut.
pub(crate) struct BrokenInterrupt;

impl Interrupt for BrokenInterrupt {
    fn trigger(&self) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::BrokenPipe))
    }
}

/// One buffer of a chain.
#[derive(Clone, Copy)]
pub(crate) enum Buffer<'a> {
    /// The device reads these bytes.
    Out(&'a [u8]),
    /// The device may write this many bytes.
    In(usize),
}

/// A descriptor as written to the table.
#[derive(Clone, Copy)]
pub(crate) struct Raw {
    pub(crate) address: u64,
    pub(crate) length: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A chain the driver made available.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    /// Address and length of the device-writable buffers, in order.
    writable: Vec<(u64, usize)>,
}

#[derive(Clone, Default)]
struct DriverQueue {
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

/// A driver and the device it drives.
pub(crate) struct Driver<D> {
    pub(crate) transport: MmioTransport<D>,
    pub(crate) memory: Memory,
    pub(crate) interrupt: Arc<CountingInterrupt>,
    queues: Vec<DriverQueue>,
    next_buffer: u64,
}

impl<D: VirtioDevice> Driver<D> {
    /// A device nobody talked to yet.
    pub(crate) fn new(device: D) -> Self {
        let interrupt = Arc::new(CountingInterrupt::default());
        let size = usize::try_from(MEMORY_SIZE).unwrap();
        Self {
            transport: MmioTransport::new(device, interrupt.clone()),
            memory: Memory::from_ranges(&[(GuestAddress(0), size)]).unwrap(),
            interrupt,
            queues: Vec::new(),
            next_buffer: BUFFERS,
        }
    }

    /// A device brought up with every feature it offers, queues at their largest.
    pub(crate) fn live(device: D) -> Self {
        Self::live_with(device, u64::MAX)
    }

    /// A device brought up with those of its features that are in `wanted` (and VERSION_1).
    pub(crate) fn live_with(device: D, wanted: u64) -> Self {
        let mut driver = Self::new(device);
        driver.bring_up(wanted);
        driver
    }

    /// The whole of virtio 1.2, 3.1.1, through the registers.
    pub(crate) fn bring_up(&mut self, wanted: u64) {
        self.negotiate(wanted);
        for index in 0..self.transport.queue_count() {
            self.set_up_queue(index);
        }
        self.set(0x70, 15);
        assert_eq!(self.get(0x70), 15, "DRIVER_OK");
    }

    /// Up to FEATURES_OK.
    pub(crate) fn negotiate(&mut self, wanted: u64) {
        self.set(0x70, 0);
        self.set(0x70, 1);
        self.set(0x70, 3);
        let accepted = self.offered() & (wanted | 1 << 32);
        self.accept(accepted);
        self.set(0x70, 11);
        assert_eq!(self.get(0x70), 11, "FEATURES_OK");
    }

    pub(crate) fn offered(&mut self) -> u64 {
        self.set(0x14, 0);
        let low = u64::from(self.get(0x10));
        self.set(0x14, 1);
        low | u64::from(self.get(0x10)) << 32
    }

    pub(crate) fn accept(&mut self, features: u64) {
        for half in 0..2 {
            self.set(0x24, half);
            self.set(
                0x20,
                u32::try_from(features >> (32 * half) & 0xffff_ffff).unwrap(),
            );
        }
    }

    pub(crate) fn set_up_queue(&mut self, index: usize) {
        self.set(0x30, u32::try_from(index).unwrap());
        assert_eq!(self.get(0x44), 0, "the queue is not ready yet");
        let max = self.get(0x34);
        self.set(0x38, max);
        let base = QUEUES + QUEUE_STRIDE * index as u64;
        for (register, address) in [(0x80, base), (0x90, base + AVAILABLE), (0xa0, base + USED)] {
            self.set(register, u32::try_from(address).unwrap());
            self.set(register + 4, 0);
        }
        // A driver hands over clean rings.
        self.memory
            .write_slice(&[0; 0x1_0000], GuestAddress(base))
            .unwrap();
        self.set(0x44, 1);
        assert_eq!(self.get(0x44), 1, "the queue is ready");
        self.queues
            .resize(self.queues.len().max(index + 1), DriverQueue::default());
        self.queues[index] = DriverQueue {
            base,
            size: u16::try_from(max).unwrap(),
            ..DriverQueue::default()
        };
    }

    /// Reads a 32-bit register.
    pub(crate) fn get(&mut self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a 32-bit register.
    pub(crate) fn set(&mut self, offset: u64, value: u32) {
        self.transport
            .write(offset, &value.to_le_bytes(), &self.memory)
            .unwrap();
    }

    /// Puts a chain of fresh buffers in the available ring. No kick.
    pub(crate) fn offer(&mut self, index: usize, buffers: &[Buffer<'_>]) -> Chain {
        let size = self.queues[index].size;
        let first = self.queues[index].next_descriptor;
        let mut raw = Vec::new();
        let mut writable = Vec::new();
        for (position, buffer) in buffers.iter().enumerate() {
            let (length, flags) = match buffer {
                Buffer::Out(bytes) => (bytes.len(), 0),
                Buffer::In(length) => (*length, WRITE),
            };
            let address = self.allocate(length);
            match buffer {
                Buffer::Out(bytes) => self.memory.write_slice(bytes, GuestAddress(address)).unwrap(),
                Buffer::In(_) => writable.push((address, length)),
            }
            let last = position + 1 == buffers.len();
            raw.push(Raw {
                address,
                length: u32::try_from(length).unwrap(),
                flags: if last { flags } else { flags | NEXT },
                next: (first + u16::try_from(position).unwrap() + 1) % size,
            });
        }
        let head = self.offer_raw(index, &raw);
        Chain { head, writable }
    }

    /// Writes descriptors to consecutive entries of the table and makes the first available.
    pub(crate) fn offer_raw(&mut self, index: usize, raw: &[Raw]) -> u16 {
        let queue = &mut self.queues[index];
        let head = queue.next_descriptor;
        for descriptor in raw {
            let address = queue.base + 16 * u64::from(queue.next_descriptor);
            write_descriptor(&self.memory, address, *descriptor);
            queue.next_descriptor = (queue.next_descriptor + 1) % queue.size;
        }
        self.offer_head(index, head);
        head
    }

    /// Makes any head available, sensible or not.
    pub(crate) fn offer_head(&mut self, index: usize, head: u16) {
        let queue = &mut self.queues[index];
        let slot = queue.base + AVAILABLE + 4 + 2 * u64::from(queue.available % queue.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        queue.available = queue.available.wrapping_add(1);
        let available = queue.available;
        self.set_available_index(index, available);
    }

    /// Writes the available ring's index, sensible or not.
    pub(crate) fn set_available_index(&mut self, index: usize, value: u16) {
        let address = self.queues[index].base + AVAILABLE + 2;
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// With EVENT_IDX: interrupt me when the used index passes `value`.
    pub(crate) fn set_used_event(&mut self, index: usize, value: u16) {
        let queue = &self.queues[index];
        let address = queue.base + AVAILABLE + 4 + 2 * u64::from(queue.size);
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    /// QueueNotify.
    pub(crate) fn kick(&mut self, index: usize) {
        self.set(0x50, u32::try_from(index).unwrap());
    }

    /// The next entry of the used ring, if there is one: head and length.
    pub(crate) fn used(&mut self, index: usize) -> Option<(u16, u32)> {
        let queue = &mut self.queues[index];
        let ring = queue.base + USED;
        let there: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap();
        if there == queue.used {
            return None;
        }
        let entry = ring + 4 + 8 * u64::from(queue.used % queue.size);
        queue.used = queue.used.wrapping_add(1);
        let head: u32 = self.memory.read_obj(GuestAddress(entry)).unwrap();
        let length = self.memory.read_obj(GuestAddress(entry + 4)).unwrap();
        Some((u16::try_from(head).unwrap(), length))
    }

    /// The bytes of a chain's writable buffers, in order.
    pub(crate) fn written(&self, chain: &Chain) -> Vec<u8> {
        let mut all = Vec::new();
        for (address, length) in &chain.writable {
            let mut bytes = vec![0; *length];
            self.memory
                .read_slice(&mut bytes, GuestAddress(*address))
                .unwrap();
            all.extend(bytes);
        }
        all
    }

    /// Reserves guest memory, filled with 0xee so that what the device wrote can be told.
    pub(crate) fn allocate(&mut self, length: usize) -> u64 {
        let address = self.next_buffer;
        self.next_buffer += (length as u64).next_multiple_of(64);
        assert!(
            self.next_buffer <= MEMORY_SIZE,
            "the test uses more buffers than there is memory"
        );
        self.memory
            .write_slice(&vec![0xee; length], GuestAddress(address))
            .unwrap();
        address
    }

    /// The same guest, with another transport and device under it: a checkpoint restored.
    pub(crate) fn restore(&mut self, device: D, state: TransportState) -> Result<(), RestoreError> {
        self.transport = MmioTransport::restore(device, state, self.interrupt.clone(), &self.memory)?;
        Ok(())
    }
}

/// Writes one descriptor at `address`, as for an indirect table.
pub(crate) fn write_descriptor(memory: &Memory, address: u64, raw: Raw) {
    memory.write_obj(raw.address, GuestAddress(address)).unwrap();
    memory.write_obj(raw.length, GuestAddress(address + 8)).unwrap();
    memory.write_obj(raw.flags, GuestAddress(address + 12)).unwrap();
    memory.write_obj(raw.next, GuestAddress(address + 14)).unwrap();
}
