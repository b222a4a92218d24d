//! The memory balloon device (virtio 1.2, 5.5), for free page reporting only.
//!
//! Sandboxes grow and shrink by virtio-mem; what the balloon adds is VIRTIO_BALLOON_F_REPORTING
//! (5.5.6.7): the guest names pages it has just freed, and the host takes their memory back until
//! they are touched again. The host never asks for pages (`num_pages` is 0), so a driver has no
//! reason to inflate. Lists on the inflate and deflate queues are acknowledged unread, which the
//! specification allows: the device MAY do something with such pages, and does nothing.
//!
//! A queue exists only if its feature was accepted, and Linux numbers those that exist without gaps
//! (`vm_find_vqs()` in `drivers/virtio/virtio_mmio.c`). With neither statistics nor free page hints
//! the reporting queue is therefore number 2, as in QEMU, and not the 4 of the specification's list.

use std::io;

use serde::{Deserialize, Serialize};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::{DeviceError, DeviceType, Memory, VirtioDevice};

/// The driver reports free pages (virtio 1.2, 5.5.3).
const VIRTIO_BALLOON_F_REPORTING: u32 = 5;

const INFLATE_QUEUE: usize = 0;
const DEFLATE_QUEUE: usize = 1;
const REPORTING_QUEUE: usize = 2;

/// Linux sends one list at a time on the first two, and refuses a reporting queue of less than 32
/// (`PAGE_REPORTING_CAPACITY`).
const QUEUE_MAX_SIZES: [u16; 3] = [16, 16, 64];

/// Where `actual` is in the configuration space, after `num_pages`.
const ACTUAL_OFFSET: u64 = 4;

const PAGE_SIZE: u64 = 4096;

/// Takes the memory of free guest pages back.
pub trait PageReporter: Send {
    /// The guest has no use for the content of `len` bytes at `gpa`: whole pages, all of them in
    /// guest memory. It may touch them again as soon as this returns, and then finds whatever the
    /// reporter left there (it treats them as uninitialised), which must be nobody else's data.
    ///
    /// # Errors
    /// The memory could not be taken back. The guest is not told: it has lost nothing.
    fn report_free(&mut self, gpa: GuestAddress, len: u64) -> io::Result<()>;
}

/// A balloon at rest. Any value is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// Pages of 4 KiB the driver says are in the balloon.
    pub actual: u32,
}

/// The balloon device.
pub struct Balloon<R> {
    reporter: R,
    state: BalloonState,
}

impl<R: PageReporter> Balloon<R> {
    /// An empty balloon that hands free pages to `reporter`.
    pub fn new(reporter: R) -> Self {
        Self::restore(BalloonState::default(), reporter)
    }

    /// The balloon `state` was saved from.
    pub fn restore(state: BalloonState, reporter: R) -> Self {
        Self { reporter, state }
    }

    /// What [`restore`](Self::restore) needs.
    pub fn save(&self) -> BalloonState {
        self.state
    }

    /// One report: each buffer the device may write is a run of free pages. A buffer that is not
    /// whole pages of guest memory is passed over, since rounding it would take pages in use.
    fn report(&mut self, chain: DescriptorChain<&Memory>, memory: &Memory) {
        for run in chain.writable() {
            let (gpa, len) = (run.addr(), u64::from(run.len()));
            let whole = gpa.0.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE) && len > 0;
            if !whole || !memory.check_range(gpa, run.len() as usize, Permissions::Write) {
                tracing::debug!(?gpa, len, "virtio-balloon: report of what are no pages");
                continue;
            }
            if let Err(error) = self.reporter.report_free(gpa, len) {
                tracing::warn!(%error, ?gpa, len, "virtio-balloon: cannot take free pages back");
            }
        }
    }
}

impl<R: PageReporter> VirtioDevice for Balloon<R> {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &QUEUE_MAX_SIZES
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BALLOON_F_REPORTING
    }

    /// `num_pages` (0) and `actual`; the fields after them belong to features not offered.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.state.actual) << 32;
        let bytes = config.to_le_bytes();
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| bytes.get(offset..))
            .unwrap_or_default();
        let mut from = from.iter().copied();
        data.fill_with(|| from.next().unwrap_or(0));
    }

    /// `actual` is the driver's to write, all of it at once.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (ACTUAL_OFFSET, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            self.state.actual = u32::from_le_bytes(bytes);
        }
    }

    fn reset(&mut self) {
        self.state = BalloonState::default();
    }

    fn process_queue(
        &mut self,
        index: usize,
        queues: &mut [Queue],
        memory: &Memory,
    ) -> Result<bool, DeviceError> {
        let queue = match index {
            INFLATE_QUEUE | DEFLATE_QUEUE | REPORTING_QUEUE => queues.get_mut(index),
            _ => None,
        };
        let queue = queue.ok_or(DeviceError::NoSuchQueue(index))?;
        let broken = |source| DeviceError::Queue { index, source };
        let mut used = false;
        while let Some(chain) = queue.iter(memory).map_err(broken)?.next() {
            let head = chain.head_index();
            if index == REPORTING_QUEUE {
                self.report(chain, memory);
            }
            queue.add_used(memory, head, 0).map_err(broken)?;
            used = true;
        }
        Ok(used && queue.needs_notification(memory).map_err(broken)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::desc::{RawDescriptor, split::Descriptor};
    use virtio_queue::mock::MockSplitQueue;

    use super::*;

    const WRITE: u16 = 2;
    const RAM: u64 = 0x10_0000;

    #[derive(Default)]
    struct Reports {
        runs: Vec<(u64, u64)>,
        fail: bool,
    }

    impl PageReporter for Reports {
        fn report_free(&mut self, gpa: GuestAddress, len: u64) -> io::Result<()> {
            self.runs.push((gpa.0, len));
            if self.fail {
                Err(io::ErrorKind::OutOfMemory.into())
            } else {
                Ok(())
            }
        }
    }

    fn balloon() -> Balloon<Reports> {
        Balloon::new(Reports::default())
    }

    /// Guest memory in two adjoining regions.
    fn memory() -> Memory {
        Memory::from_ranges(&[(GuestAddress(0), 0x8_0000), (GuestAddress(0x8_0000), 0x8_0000)]).unwrap()
    }

    /// Offers the buffers as one chain on queue `index`; tells whether it was used.
    fn kick(device: &mut Balloon<Reports>, index: usize, buffers: &[(u64, u32, u16)]) -> bool {
        let memory = memory();
        let driver = MockSplitQueue::new(&memory, 16);
        let chain: Vec<_> = buffers
            .iter()
            .map(|&(addr, len, flags)| RawDescriptor::from(Descriptor::new(addr, len, flags, 0)))
            .collect();
        driver.build_desc_chain(&chain).unwrap();
        let mut queues = [(); 3].map(|()| driver.create_queue::<Queue>().unwrap());
        let notify = device.process_queue(index, &mut queues, &memory).unwrap();
        assert_eq!(notify, driver.used().idx().load() == 1);
        notify
    }

    #[test]
    fn reported_pages_reach_the_reporter() {
        let mut device = balloon();
        assert_eq!(device.features(), 1 << 5);
        assert!(kick(
            &mut device,
            2,
            &[(0x1_0000, 0x2000, WRITE), (0x7_f000, 0x2000, WRITE)]
        ));
        assert_eq!(device.reporter.runs, [(0x1_0000, 0x2000), (0x7_f000, 0x2000)]);
    }

    #[test]
    fn what_are_no_pages_of_guest_memory_is_passed_over() {
        let mut device = balloon();
        let buffers = [
            (0x1_0001, 0x1000, WRITE),
            (0x1_0000, 0x1001, WRITE),
            (0x1_0000, 0, WRITE),
            (0x1_0000, 0x1000, 0),
            (RAM - 0x1000, 0x2000, WRITE),
            (RAM, 0x1000, WRITE),
            (u64::MAX - 0xfff, 0x1000, WRITE),
            (0, 0xffff_f000, WRITE),
            (0x3_0000, 0x1000, WRITE),
        ];
        for buffer in buffers {
            assert!(kick(&mut device, 2, &[buffer]));
        }
        assert_eq!(device.reporter.runs, [(0x3_0000, 0x1000)]);
    }

    #[test]
    fn a_reporter_that_fails_does_not_hold_up_the_guest() {
        let mut device = balloon();
        device.reporter.fail = true;
        assert!(kick(
            &mut device,
            2,
            &[(0x1_0000, 0x1000, WRITE), (0x2_0000, 0x1000, WRITE)]
        ));
        assert_eq!(device.reporter.runs.len(), 2);
    }

    #[test]
    fn inflate_and_deflate_are_acknowledged_and_change_nothing() {
        let mut device = balloon();
        assert!(kick(&mut device, 0, &[(0x1_0000, 0x1000, 0)]));
        assert!(kick(&mut device, 1, &[(0x1_0000, 0x1000, WRITE)]));
        assert!(device.reporter.runs.is_empty());
        for (index, count) in [(3, 3), (4, 5), (2, 2)] {
            let queue = || Queue::new(16).unwrap();
            let mut queues: Vec<_> = std::iter::repeat_with(queue).take(count).collect();
            let error = device.process_queue(index, &mut queues, &memory());
            assert!(matches!(error, Err(DeviceError::NoSuchQueue(_))));
        }
    }

    #[test]
    fn the_host_wants_no_pages_and_the_driver_may_say_how_many_it_gave() {
        let mut device = balloon();
        device.write_config(4, &0x0102_0304u32.to_le_bytes());
        device.write_config(0, &[9; 4]);
        device.write_config(4, &[9; 8]);
        device.write_config(5, &[9; 4]);
        let mut bytes = [0xff; 16];
        device.read_config(0, &mut bytes);
        assert_eq!(bytes, [0, 0, 0, 0, 4, 3, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let mut bytes = [0xff; 4];
        device.read_config(6, &mut bytes);
        assert_eq!(bytes, [2, 1, 0, 0]);
        device.read_config(u64::MAX, &mut bytes);
        assert_eq!(bytes, [0; 4]);

        let restored = Balloon::restore(device.save(), Reports::default());
        assert_eq!(restored.save(), BalloonState { actual: 0x0102_0304 });
        device.reset();
        assert_eq!(device.save(), BalloonState { actual: 0 });
    }

    proptest! {
        #[test]
        fn no_chain_of_descriptors_breaks_the_device(
            chain in proptest::collection::vec((any::<u64>(), any::<u32>(), 0u16..8, 0u16..18), 1..6),
            near in any::<bool>(),
            index in 0usize..3,
        ) {
            let memory = memory();
            let driver = MockSplitQueue::new(&memory, 16);
            let (addr_mask, len_mask) = if near { (0x1f_f000, 0xf000) } else { (u64::MAX, u32::MAX) };
            let raw: Vec<_> = chain
                .iter()
                .map(|&(addr, len, flags, next)| Descriptor::new(addr & addr_mask, len & len_mask, flags, next))
                .map(RawDescriptor::from)
                .collect();
            driver.add_desc_chains(&raw, 0).unwrap();
            let mut device = balloon();
            let mut queues = [(); 3].map(|()| driver.create_queue::<Queue>().unwrap());
            let _ = device.process_queue(index, &mut queues, &memory);
            for (addr, len) in device.reporter.runs {
                prop_assert!(addr % 4096 == 0 && len % 4096 == 0 && len > 0 && addr + len <= RAM);
            }
        }
    }
}
