//! A driver without decency: it brings a device up as the specification has it, or not, and then writes registers,
//! descriptors, rings and memory as its input says.

use std::io;
use std::sync::Arc;

use spore_devices::Interrupt;
use spore_devices::virtio::mmio::{MmioTransport, TransportState};
use spore_devices::virtio::{Memory, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;

/// Bytes of guest memory, from address 0.
pub const MEMORY_BYTES: u64 = 256 << 10;
/// Where queue 0 is; each further one is [`STRIDE`] above.
const QUEUES: u64 = 0x1000;
const STRIDE: u64 = 0x3000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where buffers are that the input does not put elsewhere.
const BUFFERS: u64 = 0x1_0000;

/// Most acts of one input.
const ACTS: usize = 256;

struct Line;

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Guest memory, all zero.
pub fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).expect("it can be mapped")
}

/// A device and its driver.
pub struct Driver<D> {
    pub transport: MmioTransport<D>,
    pub memory: Memory,
}

impl<D: VirtioDevice> Driver<D> {
    pub fn new(device: D) -> Self {
        Self {
            transport: MmioTransport::new(device, Arc::new(Line)),
            memory: memory(),
        }
    }

    /// One that was saved, if it can be.
    pub fn restored(device: D, state: TransportState, memory: Memory) -> Option<Self> {
        let transport = MmioTransport::restore(device, state, Arc::new(Line), &memory).ok()?;
        Some(Self { transport, memory })
    }

    pub fn set(&mut self, register: u64, value: u32) {
        let written = self.transport.write(register, &value.to_le_bytes(), &self.memory);
        written.expect("the line is never cut");
    }

    pub fn get(&mut self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// As virtio 1.2, 3.1.1, with these of its features.
    pub fn bring_up(&mut self, wanted: u64) {
        for status in [0, 1, 3] {
            self.set(0x70, status);
        }
        for half in 0..2u32 {
            self.set(0x14, half);
            let offered = self.get(0x10);
            self.set(0x24, half);
            // VERSION_1 it must have.
            let wanted = (wanted | 1 << 32) >> (32 * half);
            self.set(0x20, offered & wanted as u32);
        }
        self.set(0x70, 11);
        for index in 0..self.transport.queue_count() {
            let base = QUEUES + STRIDE * index as u64;
            self.set(0x30, index as u32);
            let max = self.get(0x34);
            self.set(0x38, max);
            for (register, address) in [(0x80, base), (0x90, base + AVAILABLE), (0xA0, base + USED)] {
                self.set(register, address as u32);
            }
            self.set(0x44, 1);
        }
        self.set(0x70, 15);
    }

    fn put(&mut self, bytes: &[u8], address: u64) {
        // What is no memory cannot be written, by a guest either.
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    fn queue(&self, input: &mut Input<'_>) -> (usize, u64) {
        let index = usize::from(input.u8()) % self.transport.queue_count();
        (index, QUEUES + STRIDE * index as u64)
    }

    /// An address: mostly one that may be a buffer's.
    fn address(input: &mut Input<'_>) -> u64 {
        match input.u8() {
            choice @ 0..=0xBF => BUFFERS + u64::from(choice) * 0x400,
            0xC0..=0xDF => input.u16().into(),
            0xE0..=0xEF => MEMORY_BYTES - u64::from(input.u8()),
            _ => input.u64(),
        }
    }

    /// Does what the input says until it is used up. What only this device has is `own`'s.
    pub fn act(&mut self, input: &mut Input<'_>, mut own: impl FnMut(&mut Self, &mut Input<'_>)) {
        for _ in 0..ACTS {
            if input.is_empty() {
                break;
            }
            match input.u8() % 12 {
                0 => {
                    let offset = u64::from(input.u8()) * 4;
                    let value = input.u32();
                    self.set(offset, value);
                }
                1 => {
                    let (offset, length) = (input.u16().into(), usize::from(input.u8() % 9));
                    let mut bytes = [0; 8];
                    self.transport.read(offset, &mut bytes[..length]);
                }
                2 => {
                    let (offset, length) = (input.u16().into(), usize::from(input.u8() % 9));
                    let bytes = input.take(length);
                    let written = self.transport.write(offset, bytes, &self.memory);
                    written.expect("the line is never cut");
                }
                3 => {
                    let (address, length) = (Self::address(input), input.u8().into());
                    let bytes = input.take(length);
                    self.put(bytes, address);
                }
                // A descriptor.
                4 | 5 => {
                    let (_, base) = self.queue(input);
                    let slot = base + 16 * u64::from(input.u8());
                    let address = Self::address(input);
                    let length = match input.u8() {
                        short @ 0..=0xEF => u32::from(short) * 4,
                        _ => input.u32(),
                    };
                    self.put(&address.to_le_bytes(), slot);
                    self.put(&length.to_le_bytes(), slot + 8);
                    self.put(&u16::from(input.u8()).to_le_bytes(), slot + 12);
                    self.put(&u16::from(input.u8()).to_le_bytes(), slot + 14);
                }
                // A head, in the next place of the ring.
                6 | 7 => {
                    let (_, base) = self.queue(input);
                    let ring = base + AVAILABLE;
                    let at: u16 = self.memory.read_obj(GuestAddress(ring + 2)).unwrap_or(0);
                    let size = self.get(0x34).max(1);
                    let slot = ring + 4 + 2 * (u64::from(at) % u64::from(size));
                    self.put(&u16::from(input.u8()).to_le_bytes(), slot);
                    self.put(&at.wrapping_add(1).to_le_bytes(), ring + 2);
                }
                8 => {
                    let (_, base) = self.queue(input);
                    let value = input.u16();
                    self.put(&value.to_le_bytes(), base + AVAILABLE + 2);
                }
                9 => {
                    let index = usize::from(input.u8() % 4);
                    let kicked = self.transport.notify_queue(index, &self.memory);
                    kicked.expect("the line is never cut");
                }
                10 => self
                    .transport
                    .kick_all(&self.memory)
                    .expect("the line is never cut"),
                _ => own(self, input),
            }
        }
        // Whatever it came to can be written into a checkpoint.
        let _ = self.transport.save();
    }
}

/// A device that a driver brings up, or not, and then does to what `data` says.
pub fn drive<D: VirtioDevice>(
    device: D,
    data: &[u8],
    own: impl FnMut(&mut Driver<D>, &mut Input<'_>),
) -> Driver<D> {
    let mut input = Input::new(data);
    let mut driver = Driver::new(device);
    match input.u8() {
        0 => {}
        1 => driver.bring_up(0),
        _ => driver.bring_up(u64::MAX),
    }
    driver.act(&mut input, own);
    driver
}
