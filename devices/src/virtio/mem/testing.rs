//! What the tests of this folder share: a backend that records, and a driver that asks over a queue.

use std::collections::BTreeSet;

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{BackendError, BlockRange, Mem, MemBackend, MemConfig, Request, Response};
use crate::virtio::{DeviceError, Memory, VirtioDevice};

pub(crate) const BLOCK: u64 = 2 << 20;
pub(crate) const ADDR: u64 = 4 << 30;

const WRITE: u16 = 2;
const QUEUE: u16 = 16;
const REQUEST_AT: u64 = 0x2000;
const RESPONSE_AT: u64 = 0x3000;

pub(crate) fn config(blocks: u32) -> MemConfig {
    MemConfig::new(GuestAddress(ADDR), u64::from(blocks) * BLOCK, BLOCK).unwrap()
}

pub(crate) fn request(kind: u16, addr: u64, count: u16) -> [u8; Request::SIZE] {
    let mut bytes = [0; Request::SIZE];
    bytes[..2].copy_from_slice(&kind.to_le_bytes());
    bytes[8..16].copy_from_slice(&addr.to_le_bytes());
    bytes[16..18].copy_from_slice(&count.to_le_bytes());
    bytes
}

/// Records which blocks have host memory, and fails when told to.
#[derive(Debug, Default)]
pub(crate) struct MockBackend {
    pub(crate) host: BTreeSet<u32>,
    pub(crate) calls: usize,
    pub(crate) full: bool,
    /// Unplugging a range with this block in it fails.
    pub(crate) stuck: Option<u32>,
}

impl MemBackend for MockBackend {
    fn plug(&mut self, range: BlockRange) -> Result<(), BackendError> {
        self.calls += 1;
        if self.full {
            return Err(BackendError::new("out of memory"));
        }
        for block in range.blocks() {
            assert!(self.host.insert(block.0), "block {block:?} plugged twice");
        }
        Ok(())
    }

    fn unplug(&mut self, range: BlockRange) -> Result<(), BackendError> {
        self.calls += 1;
        if self
            .stuck
            .is_some_and(|stuck| range.blocks().any(|block| block.0 == stuck))
        {
            return Err(BackendError::new("stuck"));
        }
        for block in range.blocks() {
            assert!(self.host.remove(&block.0), "block {block:?} was not plugged");
        }
        Ok(())
    }
}

/// Guest memory for a queue, a request and a response.
pub(crate) fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

/// Offers `descriptors` as one chain on a fresh queue and kicks; tells the used length, if any.
pub(crate) fn kick(
    device: &mut Mem<MockBackend>,
    memory: &Memory,
    descriptors: &[Descriptor],
) -> Result<Option<u32>, DeviceError> {
    let driver = MockSplitQueue::new(memory, QUEUE);
    let raw: Vec<_> = descriptors.iter().copied().map(RawDescriptor::from).collect();
    driver.build_desc_chain(&raw).unwrap();
    let mut queues = [driver.create_queue::<Queue>().unwrap()];
    let notify = device.process_queue(0, &mut queues, memory)?;
    let used = driver.used().idx().load();
    assert_eq!(notify, used == 1);
    assert_eq!(queues[0].next_used(), used);
    Ok((used == 1).then(|| driver.used().ring().ref_at(0).unwrap().load().len()))
}

/// Sends `bytes` as a request, as Linux does: one readable and one writable descriptor.
pub(crate) fn ask_bytes(device: &mut Mem<MockBackend>, bytes: &[u8]) -> [u8; Response::SIZE] {
    let memory = memory();
    memory.write_slice(bytes, GuestAddress(REQUEST_AT)).unwrap();
    memory
        .write_slice(&[0xee; Response::SIZE], GuestAddress(RESPONSE_AT))
        .unwrap();
    let request = Descriptor::new(REQUEST_AT, u32::try_from(bytes.len()).unwrap(), 0, 0);
    let response = Descriptor::new(RESPONSE_AT, 10, WRITE, 0);
    let used = kick(device, &memory, &[request, response]).unwrap();
    assert_eq!(used, Some(10));
    let mut answer = [0; Response::SIZE];
    memory.read_slice(&mut answer, GuestAddress(RESPONSE_AT)).unwrap();
    answer
}

/// Sends a request about `count` blocks from block `first`; tells type and state of the answer.
pub(crate) fn ask(device: &mut Mem<MockBackend>, kind: u16, first: u32, count: u16) -> (u16, u16) {
    let addr = ADDR + u64::from(first) * BLOCK;
    let answer = ask_bytes(device, &request(kind, addr, count));
    (
        u16::from_le_bytes([answer[0], answer[1]]),
        u16::from_le_bytes([answer[8], answer[9]]),
    )
}
